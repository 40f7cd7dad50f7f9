"""Answers of the page: each is the library's own, each refusal a sentence."""

from __future__ import annotations

import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from captum_clip import (
    Explanation,
    explain,
    load_clip,
    targets,
)
from captum_clip.apps.answers import (
    EMBEDDED,
    MAX_TEXTS,
    Answer,
    Models,
    ask,
    offered_methods,
    panels,
)
from captum_clip.attr.registry import default_method, methods_for
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, TargetError
from captum_clip.models import ClipAdapter
from captum_clip.visualization.colors import (
    ALPHA,
    HEAT,
    NEGATIVE,
    POSITIVE,
    blend,
    colormap,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
IMAGE = draw_scene(0, objects=["horse", "dog"]).image
TEXTS = "a horse\n\n  a horse and   a dog \n"


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/vit")


@pytest.fixture(scope="module", params=["positive", "negative", "both"])
def answer(request: pytest.FixtureRequest, clip: ClipAdapter) -> Answer:
    return ask(clip, IMAGE, TEXTS, "last-grad", request.param)


@pytest.fixture(scope="module")
def both(clip: ClipAdapter) -> Answer:
    return ask(clip, IMAGE, TEXTS, "last-grad", "both")


def test_ask_answers_as_explain_does(both: Answer, clip: ClipAdapter) -> None:
    """One text per line; lines without one and needless spaces do not count."""
    texts = ["a horse", "a horse and a dog"]
    expected = explain(IMAGE, texts, model=clip, method="last-grad", sign="both")
    found = both.shown()
    assert (found.names, found.method) == (expected.names, "last-grad")
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(dict(found.maps), dict(expected.maps))
    assert both.notes() == [f"cosine {score:.3f}" for score in expected.scores[0]]


def test_an_answer_keeps_what_is_shown_of_a_large_photo(tmp_path: Path, clip: ClipAdapter) -> None:
    """As numbers of the model's image and of its maps; of all its words once."""
    draw_large(tmp_path / "photo.jpg")
    photo = Models().read(str(tmp_path / "photo.jpg"))
    assert photo.size == (2000, 1500)
    answer = ask(clip, photo, "a horse\na dog", "direct").show_word(0, 1).show_word(1, 1)
    assert answer.name == "photo.jpg"
    assert [crop.size for crop in answer.explanation.crops] == [(1500, 2000)]
    # two images of float32 and the scores, maps and names
    assert len(pickle.dumps(replace(answer, clip=None))) < 2 * 4 * 3 * 224**2 + 10_000  # type: ignore[arg-type]
    whole = explain(tmp_path / "photo.jpg", ["a horse", "a dog"], model=clip)
    torch.testing.assert_close(answer.explanation.scores, whole.scores, rtol=0, atol=0.003)


def draw_large(path: Path) -> None:
    """A scene of twelve megapixels."""
    Image.fromarray(IMAGE).resize((4000, 3000), Image.Resampling.BICUBIC).save(path)


def test_the_page_refuses_images_by_their_pixels_before_it_unpacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (9450, 9450)).save(path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    limits = {None: "50,000,000", 10**6: "1,000,000", 89_302_499: "89,302,499"}
    for most, named in limits.items():
        with pytest.raises(
            InputError,
            match=rf"more than {named} pixels, .* or raise --max-pixels of the command if",
        ):
            Models(max_pixels=most).read(str(path))


def test_pick_shows_the_word_of_targets_words(answer: Answer, clip: ClipAdapter) -> None:
    """The map and the norm of the fifth word; the other text stays."""
    picked = answer.show_word(1, 5)
    words = targets.words(clip, "a horse and a dog")
    shown = picked.shown()
    assert shown.names == ("a horse", "'dog' in 'a horse and a dog'")
    assert picked.notes()[1] == f"norm {words.norms[4]:.2f}"
    torch.testing.assert_close(shown.norms[1], words.norms[4])
    for sign, maps in shown.maps.items():
        target = words if sign == "positive" else -words
        expected = explain(IMAGE, target, model=clip, method="last-grad").maps["positive"]
        torch.testing.assert_close(maps[:, 1], expected[:, 4])
        torch.testing.assert_close(maps[:, 0], answer.explanation.maps[sign][:, 0])


def test_pick_goes_back_and_explains_the_words_of_a_text_once(
    both: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = both.show_word(1, 2)
    monkeypatch.setattr("captum_clip.apps.answers.explain", lambda *_, **__: pytest.fail("again"))
    assert picked.show_word(1, 5).chosen == (0, 5)
    assert picked.show_word(1, 0).shown().names == both.explanation.names
    assert both.chosen == (0, 0)


def test_images_are_maps_over_the_image_with_words_dimmed_by_their_norms(answer: Answer) -> None:
    """Of both signs one is below the other, on the same columns of pixels."""
    picked = answer.show_word(1, 4)
    image, maps = picked.images(picked.plot(0.6))
    pixels = answer.explanation.images[0].permute(1, 2, 0).numpy()
    norms = picked.words[1].norms
    colors = {"positive": colormap(HEAT), "negative": NEGATIVE}
    if answer.sign == "both":
        colors["positive"] = POSITIVE
    heatmaps = picked.shown().heatmap("bicubic")
    starts = range(0, 228 * len(heatmaps), 228)  # four pixels are between them
    assert image.shape == maps[0].shape == (starts[-1] + 224, 224, 3)
    for start, (sign, values) in zip(starts, heatmaps.items(), strict=True):
        rows = slice(start, start + 224)
        np.testing.assert_allclose(image[rows] / 255, pixels, atol=1 / 255)
        for text, weight in ((0, 1.0), (1, norms[3] / norms.max())):
            expected = blend(pixels, (weight * values[0, text]).numpy(), colors[sign], 0.6)
            np.testing.assert_allclose(maps[text][rows] / 255, expected, atol=2 / 255)
    assert picked.row(0.6)[2][1] == f"'a' in 'a horse and a dog', norm {norms[3]:.2f}"


def test_pairs_have_each_word_in_one_picture_of_both_signs(both: Answer) -> None:
    """As in the figure, where the rows of the signs are one after the other."""
    found = explain(both.pixels, "a horse and a dog", model=both.clip, sign="both", side="pairs")
    above = list(panels(found.plot()))[:7]
    below = list(panels(found.plot()))[7:]
    words, colors, drawn = both.pairs(1)
    assert [word for word, _ in words] == ["a", "horse", "and", "a", "dog"]
    assert {value for _, value in words} == set(colors)
    assert [said.removesuffix(", contradicts: empty map") for _, said in drawn] == [
        said for _, said in above
    ]
    for (pixels, said), (top, _), (bottom, lower) in zip(drawn, above, below, strict=True):
        assert np.array_equal(pixels[:224], top)
        assert np.array_equal(pixels[228:], bottom)
        assert said.endswith("contradicts: empty map") == lower.endswith("empty map")


def test_the_legend_is_a_bar_of_the_colors_of_the_maps_between_their_names(answer: Answer) -> None:
    """From nothing to the strongest of a sign; of both from one's strongest to the other's."""
    gray = np.full((1, 1, 3), 0.5, dtype=np.float32)

    def drawn(cmap: Any, value: float) -> str:
        heatmap = np.full((1, 1), value, dtype=np.float32)
        return to_hex(blend(gray, heatmap, colormap(cmap), 0.6)[0, 0])

    before, after, ends = {
        "positive": ("supports it: low", "high", ((HEAT, 0), (HEAT, 1))),
        "negative": ("contradicts it: low", "high", ((NEGATIVE, 0), (NEGATIVE, 1))),
        "both": ("contradicts it", "supports it", ((NEGATIVE, 1), (POSITIVE, 1))),
    }[answer.sign]
    legend = answer.legend(answer.sign, 0.6)
    assert re.sub(" *<.*> *", "|", legend).strip() == f"{before}|{after}"
    shades = re.findall("#[0-9a-f]{6}", legend)
    assert (shades[0], shades[-1]) == tuple(drawn(*end) for end in ends)
    if answer.sign == "both":  # nothing speaks for or against in the middle
        assert set(shades[31:33]) == {drawn(POSITIVE, 0)}


def test_an_empty_map_is_named(both: Answer) -> None:
    maps = {sign: torch.zeros_like(values) for sign, values in both.explanation.maps.items()}
    empty = replace(both, explanation=replace(both.explanation, maps=maps))
    assert all(note.endswith(", empty map") for note in empty.notes())


def test_hints_name_doubtful_maps_and_cut_images(clip: ClipAdapter) -> None:
    found = ask(clip, IMAGE, "a horse\na rocket", "direct").hints()
    assert "fit better than \u201ca rocket\u201d" in found
    assert found.endswith("demo/vit \N{MIDDLE DOT} direct")
    part = "The model sees only part of the image."
    assert part not in found
    assert part in ask(clip, Image.new("RGB", (60, 30)), "a horse", "direct").hints()


@pytest.mark.parametrize(
    ("model", "method", "by"),
    [
        ("demo/vit", "direct", "conservative"),
        ("demo/vit", "last-grad", "last-grad"),
        ("demo/resnet", "grad-cam", "conservative"),
    ],
)
def test_text_map_is_that_of_the_text_side(model: str, method: str, by: str) -> None:
    """By the text side's default for the image's, and where the question's needs a grid."""
    asked = ask(load_clip(model), IMAGE, "a dog", method)
    values, colors, [drawn] = asked.text_map(0)
    assert np.array_equal(drawn, asked.row(ALPHA)[1][0])
    found = explain(IMAGE, "a dog", model=model, method=by, side="text").text_maps[0]
    assert [word for word, _ in values] == ["a", "dog"]
    largest = max(abs(value) for _, value in found)
    for (_, written), (_, value) in zip(values, found, strict=True):
        number = f"{value:.2g}".replace("-", "\N{MINUS SIGN}")
        assert written == (number if abs(value) >= 0.005 * largest else "0")
        assert colors[written].startswith("#")


def test_every_method_of_a_model_is_offered_its_default_first() -> None:
    for model in EMBEDDED:
        clip = load_clip(model)
        names = [name for _, name in offered_methods(clip)]
        assert sorted(names) == sorted(methods_for(clip.kind))
        assert names[0] == default_method(clip.tower)
        assert ("rollout (no text)", "rollout") in offered_methods(clip) or clip.kind == "resnet"


def test_a_text_that_the_model_cannot_take_leaves_the_others(clip: ClipAdapter) -> None:
    found = ask(clip, IMAGE, "a unicorn\na horse\na wug", "direct")
    assert found.explanation.names == ("a horse",)
    assert found.hints().startswith(
        "“a unicorn” is left out: the demo models do not know 'unicorn'"
    )
    assert "“a wug” is left out" in found.hints()
    with pytest.raises(TargetError, match="'wug'"):
        ask(clip, IMAGE, "a unicorn\na wug", "direct")


@pytest.mark.parametrize(
    ("texts", "method", "sign", "kind", "message"),
    [
        (" \n", "direct", "positive", TargetError, "Type a text"),
        ("a dog\n" * (MAX_TEXTS + 1), "direct", "positive", TargetError, "13 texts; at most 12"),
        ("a unicorn", "direct", "positive", TargetError, "do not know 'unicorn'"),
        ("a dog", "rollout", "both", InputError, "no negative map"),
    ],
)
def test_ask_refuses_with_a_reason(
    clip: ClipAdapter, texts: str, method: str, sign: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ask(clip, IMAGE, texts, method, sign)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Choose an image"):
        ask(clip, None, texts, method)
    with pytest.raises(TargetError, match="Type a text"):  # a client sends what it likes
        ask(clip, IMAGE, None, method)


def test_models_are_the_named_ones_first_and_each_once() -> None:
    named = Models(["demo/resnet", "ViT-B/32", "ViT-B/32"]).names
    assert named == ("demo/resnet", "ViT-B/32", "demo/vit", "demo/siglip")
    with pytest.raises(InputError, match="nonsense"):
        Models(["nonsense"])


def test_models_give_processor_and_tokenizer_to_the_named_ones(tmp_path: Path, vit: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(Path(vit, name).read_bytes())
    models = Models([str(tmp_path)], processor=vit, tokenizer=vit)
    bare, whole = models.get(str(tmp_path)), load_clip(vit)
    assert torch.equal(bare.encode_text(["a horse"]), whole.encode_text(["a horse"]))
    assert bare.identity() == whole.identity()
    assert models.get("demo/vit").identity() == load_clip("demo/vit").identity()


def test_a_model_is_loaded_once_for_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str, **_: object) -> object:
        loaded.append(name)
        sleep(0.05)
        return object()

    monkeypatch.setattr("captum_clip.apps.answers.load_clip", load)
    models = Models()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(models.get, ["demo/vit"] * 8))
    assert loaded == ["demo/vit"]
    assert len(set(map(id, found))) == 1


def test_what_is_shown_can_be_saved(both: Answer, tmp_path: Path) -> None:
    shown = both.show_word(1, 5).shown()
    loaded = Explanation.load(shown.save(tmp_path / "maps.npz"))
    assert loaded.names == shown.names
    torch.testing.assert_close(dict(loaded.maps), dict(shown.maps))
