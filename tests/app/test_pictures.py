"""What the browser draws and what is downloaded agree with the library's pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from captum_clip.app import html
from captum_clip.app.model_cache import ModelCache
from captum_clip.app.pictures import (
    archive,
    data_url,
    layer,
    photo,
    picture,
    signed_heat,
    signed_layer,
)
from captum_clip.app.queries import Query, Result, ask, layers, pick
from captum_clip.demo.scenes import draw_scene
from captum_clip.explanation import Explanation
from captum_clip.visualization import NEGATIVE, POSITIVE
from captum_clip.visualization.colors import HEAT, blend, colormap

IMAGE = draw_scene(0, objects=["horse", "dog"]).image


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    return ModelCache()


@pytest.fixture(scope="module")
def answer(cache: ModelCache) -> Result:
    """Both signs of two texts, of which one shows a word."""
    question = Query(IMAGE, "a horse\na horse and a dog", "demo/vit", "last-grad", "both")
    return pick(cache, ask(cache, question), 1, 5)


def pixels_of(url: str) -> npt.NDArray[np.float32]:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture, dtype=np.float32) / np.float32(255)


@pytest.mark.parametrize("alpha", [0, 0.35, 1])
@pytest.mark.parametrize("cmap", [HEAT, NEGATIVE])
def test_layers_over_the_photo_are_what_overlay_draws(alpha: float, cmap: str) -> None:
    """The browser's blending, after the rounding to 8 bits, against `blend`."""
    generator = torch.Generator().manual_seed(0)
    image, heatmap = (torch.rand(shape, generator=generator) for shape in ((3, 20, 30), (20, 30)))
    heatmap[0, :] = 0
    over = pixels_of(data_url(layer(heatmap, colormap(cmap))))
    under = pixels_of(photo(image))
    opacity = alpha * over[..., 3:]
    seen = (1 - opacity) * under + opacity * over[..., :3]
    expected = blend(image.permute(1, 2, 0).numpy(), heatmap.numpy(), colormap(cmap), alpha)
    np.testing.assert_allclose(seen, expected, atol=2.5 / 255)


def test_signed_layer_shows_each_sign_in_its_colour() -> None:
    up, down = signed_heat(torch.tensor([[2.0, -1.0]]), (1, 2))
    assert (up.tolist(), down.tolist()) == ([[1, 0]], [[0, 0.5]])
    pixels = signed_layer(up, down, (POSITIVE, NEGATIVE))
    np.testing.assert_allclose(pixels[0, 0], [*POSITIVE(1.0)[:3], 1], atol=1e-5)
    np.testing.assert_allclose(pixels[0, 1, :3], NEGATIVE(0.5)[:3], atol=1e-5)
    assert 0 < pixels[0, 1, 3] < 1


def test_cards_say_texts_scores_norms_and_words(answer: Result) -> None:
    page = html.cards(answer)
    score, norms = answer.explanation.scores[0, 0], answer.words[1].norms
    assert f"cosine {score:.3f}" in page
    assert f"norm {norms[5]:.2f}, largest {norms[1:].max():.2f}" in page
    assert page.count('aria-pressed="true"') == 2
    assert 'data-text="1" data-word="5" aria-pressed="true">dog<' in page
    assert page.count('class="map"') == 4
    assert "speaks for the text" in page
    assert "speaks against it" in page


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_cards_of_one_sign_have_one_map_a_text(cache: ModelCache, sign: str) -> None:
    question = Query(IMAGE, "a horse", "demo/resnet", "grad-cam", sign)  # type: ignore[arg-type]
    page = html.cards(ask(cache, question))
    assert page.count('class="map"') == 1
    assert ("speaks against it" in page) == (sign == "negative")


def test_cards_escape_what_was_typed(cache: ModelCache) -> None:
    """The demo's tokenizer drops the outer punctuation, the page shows it."""
    answer = ask(cache, Query(IMAGE, 'a <horse> & a "dog"', "demo/vit", "last-grad"))
    page = html.cards(answer)
    assert "&lt;horse&gt;" in page
    assert "<horse>" not in page
    assert html.problem("<b>") == '<p class="problem" role="alert">&lt;b&gt;</p>'
    assert html.problem("") == ""


def test_layer_rows_have_a_picture_for_each_layer(cache: ModelCache, answer: Result) -> None:
    page = html.layer_rows(answer, 0, *layers(cache, answer))
    assert page.count('class="map"') == 12
    assert page.count("layer 5<") == 2


def test_the_archive_holds_what_the_cards_show(answer: Result, tmp_path: Path) -> None:
    (tmp_path / "maps.npz").write_bytes(archive(answer))
    found, expected = Explanation.load(tmp_path / "maps.npz"), answer.shown()
    assert found.names == expected.names
    assert (found.model, found.method) == ("demo/vit", "last-grad")
    torch.testing.assert_close(found.scores, expected.scores)
    for sign in ("positive", "negative"):
        torch.testing.assert_close(found.maps[sign], expected.maps[sign])


@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_the_picture_follows_the_opacity(cache: ModelCache, sign: str) -> None:
    question = Query(IMAGE, "a horse", "demo/vit", "last-grad", sign)  # type: ignore[arg-type]
    answer = ask(cache, question)
    pictures = []
    for opacity in (0.0, 0.5, 0.5):
        with Image.open(io.BytesIO(picture(answer, opacity))) as drawn:
            assert drawn.format == "PNG"
            pictures.append(np.asarray(drawn))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(pictures[1], pictures[2])
