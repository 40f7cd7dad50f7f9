"""An explanation draws itself, and comes back from its file as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import ListedColormap

from captum_clip import explain
from captum_clip.errors import InputError
from captum_clip.explaining.explanation import Explanation
from captum_clip.models import ClipAdapter
from captum_clip.visualization.colors import HEAT, blend, colormap
from tests import builders
from tests.figure_parts import lines_of, pixels_of
from tests.samples import picture

TEXTS = ["a horse", "a dog"]


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


@pytest.fixture(params=["negative", "both", "words both"])
def found(request: pytest.FixtureRequest, vit: ClipAdapter) -> Explanation:
    asked = request.param.split()
    sign: Any = asked[-1] if asked[-1] != "words" else "positive"
    texts = "a horse" if asked[0] == "words" else TEXTS
    return explain(
        picture(),
        texts,
        model=vit,
        sign=sign,
        words=asked[0] == "words",
        method="all-grad",
        hints=False,
    )


def test_everything_comes_back_from_a_file(found: Explanation, tmp_path: Path) -> None:
    path = found.save(tmp_path / "found.npz")
    assert path == tmp_path / "found.npz"
    back = Explanation.load(path)
    assert list(back.maps) == list(found.maps)
    pairs = [(back.maps[sign], found.maps[sign]) for sign in found.maps]
    pairs += [(getattr(back, n), getattr(found, n)) for n in ("scores", "norms", "images")]
    for one, other in pairs:
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    for name in ("names", "model", "method", "words"):
        assert getattr(back, name) == getattr(found, name)


def test_save_writes_figures(found: Explanation, tmp_path: Path) -> None:
    path = found.save(str(tmp_path / "found.png"))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == [path.name]


def test_the_figure_names_what_it_shows(found: Explanation) -> None:
    written = lines_of(found.plot())
    assert set(found.names) <= set(written)
    against = " \u00b7 negative evidence" if list(found.maps) == ["negative"] else ""
    assert f"{found.model} \u00b7 {found.method}{against}" in written
    assert any(line.startswith("cosine") for line in written)
    assert any(line.startswith("norm") for line in written) == found.words


def test_plot_takes_colors_opacity_and_interpolation(vit: ClipAdapter) -> None:
    found = explain(picture(), "a horse", model=vit)
    colors = colormap("viridis")
    look: dict[str, Any] = {"cmap": colors, "alpha": 0.5, "interpolation": "nearest"}
    drawn = pixels_of(found.plot(**look, original=False))[1]
    cells = found.heatmap("nearest")["positive"][0, 0]
    assert len(cells.unique()) <= found.maps["positive"].numel()
    image = found.images[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(drawn, blend(image, cells.numpy(), colors, 0.5), atol=1e-6)
    both = explain(picture(), "a horse", model=vit, sign="both")
    signs = pixels_of(both.plot(cmap="viridis", original=False))[1:]
    for shown, sign, end in zip(signs, both.maps, (1, 0), strict=True):
        heatmap = both.heatmap("bicubic")[sign][0, 0].numpy()
        half = ListedColormap(colors(np.linspace(0.5, end, 256)))
        np.testing.assert_allclose(shown, blend(image, heatmap, half, 0.9), atol=1e-6)


def test_plot_dims_words_by_their_norms(vit: ClipAdapter) -> None:
    found = explain(picture(), "a red horse", model=vit, words=True)
    image = found.images[0].movedim(0, -1).numpy()
    weights = [1, *(found.norms[1:] / found.norms[1:].max()).tolist()]
    drawn = pixels_of(found.plot(original=False))[1:]
    heatmap = found.heatmap("bicubic")["positive"][0]
    for shown, values, weight in zip(drawn, heatmap, weights, strict=True):
        wanted = blend(image, weight * values.numpy(), colormap(HEAT), 0.9)
        np.testing.assert_allclose(shown, wanted, atol=5e-3)
    assert min(weights) < 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmap": "jetset"}, "no color map 'jetset'"),
        ({"alpha": 1.5}, r"`alpha` in \[0, 1\], got 1.5"),
        ({"interpolation": "cubic"}, "a mode of bilinear, bicubic, nearest, got 'cubic'"),
    ],
)
def test_plot_names_what_it_cannot_draw(
    vit: ClipAdapter, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain(picture(), "a horse", model=vit).plot(**options)


def test_the_two_signs_are_drawn_on_one_scale(vit: ClipAdapter) -> None:
    found = explain(picture(), "a", model=vit, sign="both")
    weak = replace(found, maps={**found.maps, "negative": 0.01 * found.maps["positive"]})
    heatmap = weak.heatmap()
    torch.testing.assert_close(heatmap["positive"].max(), torch.tensor(1.0))
    assert heatmap["negative"].max() < 0.011
    assert heatmap["negative"].shape == (1, 1, 32, 32)


def test_an_explanation_is_frozen_and_short_to_print(found: Explanation) -> None:
    with pytest.raises(FrozenInstanceError):
        found.model = "other"  # type: ignore[misc]
    assert len(repr(found)) < 250
    assert "all-grad" in repr(found)


def test_parts_that_do_not_belong_together_are_refused(vit: ClipAdapter) -> None:
    found = explain(picture(), TEXTS, model=vit)
    wrong: list[dict[str, Any]] = [
        {"names": ("one",)},
        {"scores": torch.zeros(1, 3)},
        {"norms": torch.zeros(1)},
        {"maps": {}},
        {"maps": {"plus": torch.zeros(1, 2, 4, 4)}},
        {"maps": {"positive": torch.zeros(2, 2, 4, 4)}},
        {"images": torch.zeros(3, 32, 32)},
    ]
    for changes in wrong:
        with pytest.raises(InputError, match="do not belong together"):
            replace(found, **changes)


# Files that cannot be


def test_a_failure_leaves_nothing_behind(
    vit: ClipAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explain(picture(), "a", model=vit)

    def broken(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(InputError, match="No space left"):
        found.save(tmp_path / "found.npz")
    assert os.listdir(tmp_path) == []


WRONG_FACTS = {"text_maps": [[["a", "b"]]], "crops": [[3, 4]], "words": 1}


def spoiled(folder: Path, found: Explanation) -> Iterator[Path]:
    whole = found.save(folder / "whole.npz").read_bytes()
    for name, content in {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}.items():
        path = folder / f"{name}.npz"
        path.write_bytes(content)
        yield path
    np.savez(folder / "other.npz", scores=np.zeros(3))
    yield folder / "other.npz"
    np.savez(folder / "pickled.npz", names=np.array([{}], dtype=object))
    yield folder / "pickled.npz"
    np.save(folder / "array.npy", np.zeros(3))
    yield folder / "array.npy"
    with np.load(folder / "whole.npz") as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    texts = [json.dumps({**about, name: WRONG_FACTS.get(name, [[3]])}) for name in about]
    shapes = [{"about": np.array(text)} for text in (*texts, "[]", "[" * 99_999)]
    for wrong in (*shapes, {"scores": np.zeros((9, 9))}, {"scores": np.zeros((1, 1), int)}):
        np.savez(folder / "shape.npz", **{**arrays, **wrong})
        yield folder / "shape.npz"


def test_load_refuses_what_is_no_explanation(vit: ClipAdapter, tmp_path: Path) -> None:
    found = explain(picture(), "a", model=vit)
    for path in spoiled(tmp_path, found):
        with pytest.raises(InputError, match=rf"Explanation\.load: .*{path.name}"):
            Explanation.load(path)
    with pytest.raises(InputError, match="there is no file"):
        Explanation.load(tmp_path / "none.npz")


def test_save_names_itself_and_the_looks_that_there_are(vit: ClipAdapter, tmp_path: Path) -> None:
    found = explain(vit.preprocess(picture()), "a horse", model=vit)
    unknown: dict[str, Any] = {"colormap": "jet"}
    with pytest.raises(InputError, match=r"^save: expected path, .*got 'colormap'"):
        found.save(tmp_path / "a.png", **unknown)
    with pytest.raises(InputError, match=r"^save: a map cannot be laid on"):
        found.save(tmp_path / "a.png", original=True)


def test_a_file_that_cannot_be_written_is_refused(vit: ClipAdapter, tmp_path: Path) -> None:
    found = explain(picture(), "a", model=vit)
    for name, message in (
        ("a.gif", r"must end in \.png, \.jpg, \.jpeg, \.pdf, \.svg, \.npz"),
        ("none/a.png", "no folder"),
    ):
        with pytest.raises(InputError, match=message):
            found.save(tmp_path / name)
    assert os.listdir(tmp_path) == []
