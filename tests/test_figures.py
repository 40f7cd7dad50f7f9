"""Each figure is made of the maps that the library itself computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from captum_clip import Explanation, explain, maps, targets
from captum_clip.attr.registry import methods_for
from captum_clip.bench import figures
from captum_clip.bench.study import run_study
from captum_clip.errors import InputError
from captum_clip.models import ClipAdapter
from captum_clip.visualization import grid
from captum_clip.visualization.arrays import framed, letterbox
from captum_clip.visualization.charts import strip
from captum_clip.visualization.colors import (
    ALPHA,
    HEAT,
    NEGATIVE,
    POSITIVE,
    blend,
    colormap,
    score_note,
)
from tests import builders, folders
from tests.figure_parts import lines_of, pixels_of

BAD: Any = "nonsense"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", 32)


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    return builders.hf_vit().load(name="small ViT")


@pytest.fixture(scope="module")
def resnet() -> ClipAdapter:
    return builders.open_clip_resnet().load(name="small ResNet")


def photo(seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height))


def enlarged(raw: torch.Tensor, side: int) -> torch.Tensor:
    return maps.upsample(raw, (side, side), mode="bicubic", clamp=True)


def picture_of(clip: ClipAdapter, seed: int = 0) -> Any:
    """What a model sees of a photo, (H, W, 3)."""
    return clip.denormalize(clip.preprocess(photo(seed)))[0].movedim(0, -1).numpy()


def over(picture: Any, heatmap: torch.Tensor, cmap: Any = HEAT) -> Any:
    """A map laid over its picture, in whose frame it is."""
    [large] = letterbox(heatmap[None].numpy(), picture.shape[:2], 0.0)
    return blend(picture, large, colormap(cmap), ALPHA)


def seen_by(explanation: Explanation, frame: tuple[int, int] | None = None) -> Any:
    picture = explanation.images[0].movedim(0, -1).numpy()
    return framed(picture, frame or picture.shape)


def check_pictures(figure: Figure, wanted: list[Any]) -> None:
    """A figure shows these pictures and no others, row by row."""
    for pixels, expected in zip(pixels_of(figure), wanted, strict=True):
        gap = np.abs(pixels - expected)
        assert gap.max() < 2.5 / 255  # a value between two colors may take either
        assert gap.mean() < 1e-4


def check_signed(shown: list[Any], picture: Any, raw: Any) -> None:
    """Maps (L, H, W) are drawn in orange and blue, to their largest absolute value."""
    largest = np.abs(raw).max(axis=(-2, -1), keepdims=True)
    for pixels, heatmap in zip(shown, raw / np.where(largest > 0, largest, 1), strict=True):
        for cmap, sign in ((POSITIVE, 1), (NEGATIVE, -1)):
            there = sign * heatmap >= 0
            drawn = blend(picture, (sign * heatmap).clip(0), cmap, ALPHA)
            np.testing.assert_allclose(pixels[there], drawn[there], atol=5e-3)


# compare


def test_compare_has_all_methods_that_fit_and_all_targets(
    vit: ClipAdapter, resnet: ClipAdapter
) -> None:
    figure = figures.compare_methods(
        [photo(), photo(1)], ["a horse", "sky"], references=photo(2), models=[vit, resnet]
    )
    lines = lines_of(figure)
    of_vit = methods_for("vit")
    expected = {f"small ViT ({name})" for name in of_vit}
    expected |= {f"small ResNet ({name})" for name in methods_for("resnet")}
    assert expected <= set(lines)
    assert lines.count("sky") == lines.count("image 0") == 4  # of two images and two models
    assert lines.count("target image") == 4
    rows = {round(axes.get_position().y0, 3) for axes in figure.axes}
    rows_of_vit = 2  # of five methods each
    assert 5 < len(of_vit) <= 10
    assert len(rows) == 2 * 3 * (rows_of_vit + 1)
    assert max(figure.get_size_inches()) < 60


def test_compare_draws_the_maps_of_explain(vit: ClipAdapter, resnet: ClipAdapter) -> None:
    """A row an image, target and model, a column a method, on what the first model sees."""
    columns = [(vit, "last-grad"), (vit, "all-grad"), (resnet, "grad-cam")]
    figure = figures.compare_methods(
        [photo(), photo(1)],
        ["a horse", "sky"],
        references=photo(2),
        models=[vit, resnet],
        methods=["last-grad", "all-grad", "grad-cam"],
    )
    wanted = []
    for image in (photo(), photo(1)):
        explained = []
        for clip, method in columns:
            parts = [targets.text(clip, ["a horse", "sky"]), targets.image(clip, photo(2))]
            target = targets.concatenate(parts)
            explained.append(explain(image, target, model=clip, method=method))
        for k in range(3):
            picture = seen_by(explained[0])
            shares = [enlarged(e.heatmap("bicubic")["positive"][0, k], 32) for e in explained]
            for of_model in (shares[:2], shares[2:]):
                wanted += [picture, *(over(picture, share) for share in of_model)]
                wanted += [picture_of(vit, 2)] * (k == 2)
    check_pictures(figure, wanted)
    [score] = explained[2].scores[0, 1:2].tolist()
    assert score_note(score) in lines_of(figure)


# average


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    images = folders.make_images(folder / "images", count=3)
    model = folders.make_vit(folder / "vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        run_study(folders.config_of(images, folder / "out", model))
    return folder / "out"


def mean_maps(study: Path) -> Any:
    """(K, 224, 224)."""
    [file] = (study / "mean_maps").iterdir()
    with np.load(file) as arrays:
        return enlarged(torch.from_numpy(arrays["stretched"]).float(), 224).numpy()


def test_average_draws_the_mean_maps_of_a_study(study: Path) -> None:
    figure, mean = figures.draw_average(study), mean_maps(study)
    share = (mean - mean.min()) / (mean.max() - mean.min())
    check_pictures(figure, list(colormap(HEAT)(share)[..., :3]))
    lines = lines_of(figure)
    assert {"a horse", "a dog", "mean of min-max maps of 3 images"} <= set(lines)
    assert any("(direct)" in line for line in lines)


def test_average_takes_several_studies_and_some_targets(study: Path) -> None:
    figure = figures.draw_average([study, study], names="a dog", cmap="jet")
    share = maps.normalize(torch.from_numpy(mean_maps(study)[1])).numpy()
    drawn = colormap("jet")(share)[..., :3]
    check_pictures(figure, [drawn, drawn])
    assert sum("(2)" in line for line in lines_of(figure)) == 1


def test_average_says_what_is_no_study(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished study; 'captum-clip study statistics"):
        figures.draw_average(tmp_path)
    with pytest.raises(
        InputError, match=r"`names` that the study holds \('a horse', 'a dog'\), got 'a cat'"
    ):
        figures.draw_average(study, names=["a cat"])
    with pytest.raises(InputError, match="at least one folder"):
        figures.draw_average([])
    (tmp_path / "statistics.csv").touch()
    (tmp_path / "mean_maps").mkdir()
    (tmp_path / "mean_maps" / "00.npz").touch()
    with pytest.raises(InputError, match="no study that can be read"):
        figures.draw_average(tmp_path)


# All of them


def test_every_figure_names_its_model_and_method(vit: ClipAdapter) -> None:
    """Mamooler's only where it is asked for."""
    lines = lines_of(figures.compare_methods(photo(), "a horse", models=vit, methods="mamooler"))
    assert any("small ViT" in line for line in lines)
    assert any(re.search(r"\blast-grad\b", line) for line in lines)
    assert explain(photo(), "a horse", model=vit).method == "direct"


WRONG_FIGURES: list[tuple[Callable[[ClipAdapter], Any], str]] = [
    (lambda clip: figures.compare_methods([], "a", models=clip), "at least one image"),
    (lambda clip: figures.compare_methods(photo(), models=clip), "neither"),
    (lambda clip: figures.compare_methods(photo(), "a", models=[]), "at least one model"),
    (
        lambda clip: figures.compare_methods(photo(), "a", models=clip, methods="kam"),
        "expected one of",
    ),
    (
        lambda clip: figures.compare_methods(photo(), "a", models=clip, methods="grad-cam"),
        "none of the methods grad-cam fits small ViT",
    ),
]


def test_figures_name_what_is_wrong(vit: ClipAdapter) -> None:
    for draw, message in WRONG_FIGURES:
        with pytest.raises(InputError, match=message):
            draw(vit)


def test_maps_of_a_strip_are_orange_above_zero_and_blue_below(vit: ClipAdapter) -> None:
    """Each on a scale of its own, behind the image."""
    picture, raw = picture_of(vit), torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    raw[2] = 0
    lead = grid.Panel(picture, "image", "")
    shown = pixels_of(grid.grid(strip(picture, raw, lead, ["a", "b", "c"], notes=["", "", ""])))
    np.testing.assert_allclose(shown[0], picture, atol=1e-6)
    check_signed(shown[1:], picture, enlarged(raw, 32).numpy())
