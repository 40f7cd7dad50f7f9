"""`explain(image, texts, model=[A, B])`: the explanation of each model, and a figure of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import captum_clip
from captum_clip import Comparison, Explanation, load_clip, targets
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import ClipAdapter
from captum_clip.visualization import grid
from tests import builders
from tests.figure_parts import lines_of

# its type is that of one model's answer, or any
explain: Any = captum_clip.explain
TEXTS = ["a horse", "sky", "a dog"]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", 32)


@pytest.fixture(scope="module")
def clips() -> list[ClipAdapter]:
    """A ViT of 32 pixels and a ResNet of 96."""
    return [
        builders.hf_vit().load(name="small ViT"),
        builders.open_clip_resnet().load(name="small ResNet"),
    ]


def photo(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def rows_of(figure: Any) -> list[list[Any]]:
    """The pictures of each row from the left, from the top."""
    rows: dict[float, list[Any]] = {}
    for axes in figure.axes:
        pixels = np.asarray(axes.images[0].get_array())
        rows.setdefault(round(axes.get_position().y0, 4), []).append(pixels)
    return [rows[y] for y in sorted(rows, reverse=True)]


def check_rows(found: Comparison, wanted: list[list[Any]], **look: Any) -> None:
    shown = rows_of(found.plot(**look))
    assert [len(row) for row in shown] == [len(row) for row in wanted]
    for row, expected in zip(shown, wanted, strict=True):
        for pixels, alone in zip(row, expected, strict=True):
            np.testing.assert_allclose(pixels, alone, atol=1e-6)


def test_each_model_answers_as_it_does_alone(clips: list[ClipAdapter]) -> None:
    found = explain(photo(), TEXTS, model=clips)
    assert isinstance(found, Comparison)
    assert [one.model for one in found] == ["small ViT", "small ResNet"]
    for clip, one in zip(clips, found, strict=True):
        alone = explain(photo(), TEXTS, model=clip)
        assert found[clip.name] is one
        assert (one.method, one.hints, one.names) == (alone.method, alone.hints, tuple(TEXTS))
        torch.testing.assert_close(one.maps, alone.maps, rtol=0, atol=0)
        torch.testing.assert_close(one.scores, alone.scores, rtol=0, atol=0)
    assert found[1] is found["small ResNet"]
    some = found[:1]
    assert isinstance(some, Comparison)
    assert [one.model for one in some] == ["small ViT"]
    with pytest.raises(InputError, match=r"^Comparison: expected a model of small ViT, small ResN"):
        found["RN50"]


def test_what_is_not_of_the_same_texts_images_and_signs_is_not_drawn_together(
    clips: list[ClipAdapter],
) -> None:
    one = explain(photo(), "a horse", model=clips[0], hints=False)
    others: Any = [
        {"texts": "a dog"},
        {"texts": ["a horse", "a dog"]},
        {"image": [photo(), photo()]},
        {"sign": "both"},
    ]
    for change in others:
        asked = {"image": photo(), "texts": "a horse", "model": clips[1], "hints": False, **change}
        with pytest.raises(InputError, match=r"^plot: expected explanations of the same images"):
            Comparison([one, explain(**asked)]).plot()
    with pytest.raises(InputError, match=r"^plot: expected explanations of the same images"):
        Comparison().plot()


def test_names_and_models_may_be_mixed_and_one_name_is_numbered(clips: list[ClipAdapter]) -> None:
    found = explain(photo(), "a horse", model=("demo/vit", clips[0], load_clip("demo/vit")))
    assert [one.model for one in found] == ["demo/vit", "small ViT", "demo/vit (2)"]
    assert {"demo/vit", "small ViT", "demo/vit (2)"} <= set(lines_of(found.plot()))
    [one] = explain(photo(), "a horse", model=["demo/vit"])
    assert one.model == "demo/vit"


def test_the_figure_has_a_row_for_each_image_and_model(clips: list[ClipAdapter]) -> None:
    """On the whole photos, with the same pictures as alone; the models of an image together."""
    given = [photo(), photo(1)]
    found = explain(given, TEXTS, model=clips, hints=True)
    alone = [rows_of(explain(given, TEXTS, model=clip).plot()) for clip in clips]
    assert alone[0][0][0].shape == (40, 60, 3)
    check_rows(found, [alone[0][0], alone[1][0], alone[0][1], alone[1][1]])
    figure = found.plot()
    texts: list[Any] = [text for axes in figure.axes for text in axes.texts]
    labels = [text.get_text() for text in texts if text.get_ha() == "right"]
    assert labels == 2 * ["small ViT", "small ResNet"]
    said = " ".join(figure.legends[0].get_title().get_text().split())
    assert said.startswith("small ViT \N{MIDDLE DOT} direct")
    for one in found:
        hints = [sentence for sentences in one.hints for sentence in sentences]
        [part] = [part for part in said.split(" | ") if part.startswith(one.model)]
        assert hints
        assert all(hint in part for hint in hints)


def test_a_photo_is_drawn_whole_where_one_model_sees_a_crop(clips: list[ClipAdapter]) -> None:
    """Also by the model that sees all of it, so that rows can be compared."""
    found = explain(photo(), "a horse", model=[clips[0], "demo/siglip"])
    assert found[1].crops[0].is_whole
    assert not found[0].crops[0].is_whole
    wanted = [rows_of(one.plot(original=True))[0] for one in found]
    check_rows(found, wanted)


@pytest.mark.parametrize(
    "asked",
    [
        {"texts": "a horse", "words": True},
        {"texts": "a horse", "sign": "negative"},
        {"texts": "a horse", "against": "sky"},
        {"texts": "a horse", "sign": "both"},
        {"reference": photo(3)},
    ],
)
def test_words_signs_contrasts_and_references_are_drawn_as_alone(
    clips: list[ClipAdapter], asked: dict[str, Any]
) -> None:
    found = explain([photo(), photo(1)], model=clips, **asked)
    alone = [explain([photo(), photo(1)], model=clip, **asked).plot() for clip in clips]
    one, other = map(rows_of, alone)
    check_rows(found, [one[0], other[0], one[1], other[1]])
    written = {line for figure in alone for text in figure.axes for line in notes_of(text)}
    assert {line for axes in found.plot().axes for line in notes_of(axes)} - {""} == written - {""}


def _fail(*_: Any, **__: Any) -> None:
    pytest.fail("was loaded")


def notes_of(axes: Any) -> list[str]:
    """What is written under a picture, without labels and headings."""
    return [text.get_text() for text in axes.texts if text.get_va() == "top"]


def test_both_signs_have_the_models_of_a_text_together(clips: list[ClipAdapter]) -> None:
    found = explain(photo(), TEXTS[:2], model=clips, sign="both")
    one, other = (rows_of(explanation.plot()) for explanation in found)
    check_rows(found, [one[0], other[0], one[1], other[1]])


def test_it_saves_its_figure_in_a_look(clips: list[ClipAdapter], tmp_path: Path) -> None:
    found = explain(photo(), "a horse", model=clips)
    path = found.save(tmp_path / "found.png", cmap="viridis", original=False)
    found.plot(cmap="viridis", original=False).savefig(tmp_path / "plotted.png", dpi="figure")
    with Image.open(path) as saved, Image.open(tmp_path / "plotted.png") as plotted:
        assert np.array_equal(np.asarray(saved), np.asarray(plotted))
    with pytest.raises(InputError, match=r"found.npz: the name must end in .png, .jpg"):
        found.save(tmp_path / "found.npz")
    assert isinstance(Explanation.load(found[1].save(tmp_path / "one.npz")), Explanation)


def test_what_is_of_one_model_is_refused_before_any_is_loaded(
    clips: list[ClipAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.explaining.explain.load_clip", _fail)
    target = targets.text(clips[0], "a horse")
    both: Any = {"model": ["demo/vit", "demo/resnet"]}
    with pytest.raises(InputError, match=r"^explain: a Target works with one `model`; run"):
        explain(photo(), target, **both)
    for side in ("text", "both", "pairs"):
        with pytest.raises(InputError, match=f"`side='{side}'` works with one `model`"):
            explain(photo(), "a horse", side=side, **both)


def test_errors_name_the_model(clips: list[ClipAdapter]) -> None:
    with pytest.raises(InputError, match=r"^explain: small ViT: ClipGradCam needs a convolutional"):
        explain(photo(), "a horse", model=clips[::-1], method="grad-cam")
    with pytest.raises(InputError, match=r"^explain: `model='demo/none'`: no such embedded model"):
        explain(photo(), "a horse", model=[clips[0], "demo/none"])
    with pytest.raises(UnsupportedModelError, match=r"a name, a folder or a CLIP model, got \[\]"):
        explain(photo(), "a horse", model=[])
