"""Overlays show what is given, from arrays as from tensors; two are compared with stored images.

``python -m tests.visualization.test_overlays`` writes the stored images anew; look at them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from captum_clip import visualization
from captum_clip.errors import InputError
from captum_clip.visualization import grid
from captum_clip.visualization.arrays import letterbox
from captum_clip.visualization.colors import blend
from tests.figure_parts import lines_of, pixels_of, texts_of
from tests.samples import uniform

BASELINE = Path(__file__).with_name("baseline")
PIXELS = 200  # of a drawn panel's side, at least
WIDTH = 240  # pixels of a stored image: letters are blurred, panels are not
SIZE = (32, 48)
LONG = "a rather long text about a horse and a dog on wet grass, which costs $5 and weighs 3$"


@pytest.fixture(autouse=True)
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", PIXELS)


def image(hue: float = 0.0) -> torch.Tensor:
    """A bright disc before two ramps, (1, 3, 32, 48)."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, SIZE[0]), torch.linspace(0, 1, SIZE[1]), indexing="ij"
    )
    disc = ((x - 0.3) ** 2 + (y - 0.5) ** 2 < 0.06).float()
    return torch.stack([torch.maximum(x, disc), torch.full_like(x, hue), y])[None]


def bump(column: int, row: int = 1) -> torch.Tensor:
    """A map (4, 6) with one high cell."""
    found = torch.zeros(4, 6)
    found[row, column] = 1
    return found


IMAGES, MAPS = uniform(2, 3, 32, 32), uniform(2, 3, 4, 4, seed=1)
NAMES = ["a horse", LONG, "Zo\u00eb"]
SCORES = uniform(2, 3, seed=2) - 0.5
BUMPS = torch.stack([bump(0), bump(2), bump(4, 2)])[None]  # (1, 3, 4, 6)
REFERENCE = image(0.8)[0]


def draw_signs(**changes: Any) -> Figure:
    given: dict[str, Any] = {
        "names": ["a horse", "a dog"],
        "scores": [[0.2, 0.3], [-0.1, 0.4]],
        "labels": ["ViT", "ResNet"],
    }
    images = torch.cat([image(), image(0.5)])
    up = BUMPS[:, :2].expand(2, -1, -1, -1)
    return visualization.signs(images, up, up.flip(-1) / 2, **{**given, **changes})


def draw_words(**changes: Any) -> Figure:
    weights = torch.tensor([[1, 0.125, 1], [1, 0.8, 1]])[:, :, None, None]
    given: dict[str, Any] = {
        "names": ["a horse", "a", "horse"],
        "labels": ["ViT", "ResNet"],
        "notes": [["cosine 0.300", "norm 0.10", "norm 0.80"]] * 2,
    }
    images, heatmap = image().expand(2, -1, -1, -1), torch.cat([BUMPS, BUMPS.flip(-1)])
    return visualization.overlay(images, weights * heatmap, **{**given, **changes})


DRAWN: dict[str, Callable[..., Figure]] = {"signs": draw_signs, "words": draw_words}


def rendered(figure: Figure) -> Image.Image:
    """The figure as a small image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    height = round(drawn.height * WIDTH / drawn.width)
    return drawn.resize((WIDTH, height), Image.Resampling.BOX)


def looks_the_same(figure: Figure, name: str) -> bool:
    """Whether the mean difference from the stored image, and that of any 6 pixels, is small."""
    with Image.open(BASELINE / f"{name}.png") as stored:
        wanted = stored.convert("RGB")
    found = rendered(figure)
    if abs(found.height - wanted.height) > 2:
        return False
    found = found.resize(wanted.size)
    gap = np.abs(np.asarray(found, dtype=float) - np.asarray(wanted, dtype=float)).mean(-1)
    padded = np.pad(gap, [(0, -side % 6) for side in gap.shape])
    rows, columns = padded.shape
    squares = padded.reshape(rows // 6, 6, columns // 6, 6).mean((1, 3))
    return bool(gap.mean() < 2 and squares.max() < 30)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_looks_as_its_stored_image(name: str) -> None:
    """Letters of another version are no difference; a missing image or legend is one."""
    figure, without_image, without_legend = (DRAWN[name]() for _ in range(3))
    for text in texts_of(figure):
        text.set_fontsize(1.04 * float(text.get_fontsize()))
        text.set_x(text.get_position()[0] + 0.5)
    assert looks_the_same(figure, name)
    without_image.axes[1].remove()
    without_legend.legends[0].remove()
    assert not looks_the_same(without_image, name)
    assert not looks_the_same(without_legend, name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("signs", {"cmap": "coolwarm"}),
        ("signs", {"labels": ()}),
        ("words", {"cmap": "viridis"}),
    ],
)
def test_other_colors_or_parts_are_a_difference(name: str, changes: dict[str, Any]) -> None:
    assert not looks_the_same(DRAWN[name](**changes), name)


# Layout

LAYOUTS: dict[str, Callable[[], Figure]] = {
    "overlay": lambda: visualization.overlay(
        IMAGES, MAPS, names=NAMES, scores=SCORES, caption="ViT-B/32"
    ),
    "one image": lambda: visualization.overlay(
        IMAGES[:1], MAPS[:1, :1], names=[LONG], caption=LONG
    ),
    "signs": lambda: visualization.signs(IMAGES, MAPS, MAPS / 2, names=NAMES, scores=SCORES),
    "folded": lambda: visualization.overlay(
        IMAGES, uniform(2, 10, 4, 4), negative=uniform(2, 10, 4, 4), names=[LONG, *"abcdefghi"]
    ),
    "sheet": lambda: visualization.contact_sheet(
        IMAGES, {"one method": MAPS[:, :1], LONG: MAPS[:, 1:2]}, names=[LONG, "a dog"]
    ),
    "wide letters": lambda: visualization.overlay(IMAGES, MAPS, names=["W" * 40, LONG, "M W" * 9]),
    "narrow": lambda: visualization.overlay(
        uniform(1, 3, 64, 24), uniform(1, 1, 8, 3), caption=LONG
    ),
}


def boxes(figure: Figure) -> tuple[list[Bbox], list[Bbox]]:
    """Where the texts and the images lie, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text.get_window_extent(canvas.get_renderer()) for text in texts_of(figure)]
    return texts, [axes.get_window_extent() for axes in figure.axes if axes.images]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_text_is_inside_and_nothing_overlaps(name: str) -> None:
    """And each image lies on whole multiples of its pixels, so that it is not blurred."""
    figure = LAYOUTS[name]()
    texts, shown = boxes(figure)
    page = figure.bbox
    for box in [*texts, *shown]:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1 + 1e-6
        assert page.y0 <= box.y0 <= box.y1 <= page.y1 + 1e-6
    for one, other in itertools.combinations([*texts, *shown], 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 0.5 or height < 0.5
    high, wide = pixels_of(figure)[0].shape[:2]
    for box in shown:
        assert box.width / wide == pytest.approx(round(box.width / wide), abs=1e-3)
        assert box.height / high == pytest.approx(round(box.height / high), abs=1e-3)
    assert pyplot.get_fignums() == []


def test_rows_are_images_and_columns_targets_and_many_go_on_in_another_row() -> None:
    _, shown = boxes(visualization.overlay(IMAGES, MAPS))
    assert (len({round(box.x0) for box in shown}), len({round(box.y0) for box in shown})) == (4, 2)
    folded = LAYOUTS["folded"]()  # ten maps of each sign, after the image
    lefts = [round(axes.get_position().x0, 3) for axes in folded.axes[:11]]
    assert lefts[1:6] == lefts[6:]
    assert lefts[0] < lefts[6]  # nothing under the image
    assert len(folded.axes) == 2 * 2 * 11


@pytest.mark.parametrize("count", [24, 30])
def test_many_images_are_a_contact_sheet(count: int) -> None:
    """About as wide as it is high, read from left to right; two dozen stand under each other."""
    shades = torch.linspace(0, 1, count)[:, None, None, None]
    images = shades.expand(-1, 3, 8, 8)
    figure = visualization.overlay(images, torch.zeros(count, 1, 2, 2))
    width, height = figure.get_size_inches()
    assert (height > 5 * width) == (count == 24)
    assert count == 24 or 0.5 < height / width < 2
    shown = [pixels[0, 0, 0] for pixels in pixels_of(figure)[::2]]
    np.testing.assert_allclose(shown, shades.flatten(), atol=1e-6)
    lines = [line for line in lines_of(figure) if line.startswith("image")]
    assert lines == [f"image {n + 1}" if count == 30 else "image" for n in range(count)]


@pytest.mark.parametrize(("targets", "times"), [(1, 2), (8, 1)])
def test_a_large_figure_has_the_images_own_pixels_and_a_small_one_more(
    targets: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 224 pixels are drawn twice as large, until the whole would be past 2,400."""
    monkeypatch.setattr(grid, "_FINE", 400)
    figure = visualization.overlay(uniform(1, 3, 224, 224), uniform(1, targets, 7, 7))
    assert {round(box.width) for box in boxes(figure)[1]} == {224 * times}
    assert max(figure.get_size_inches() * figure.dpi) <= 2400


@pytest.mark.parametrize(("targets", "share"), [(1, 2), (8, 4)])
def test_photos_are_drawn_for_a_screen(targets: int, share: int, tmp_path: Path) -> None:
    """With a half or a quarter of their pixels, and at least 150 an inch; all of them at `dpi`."""
    figure = visualization.overlay(torch.zeros(1, 3, 1024, 1024), torch.zeros(1, targets, 7, 7))
    assert {round(box.width) for box in boxes(figure)[1]} == {1024 // share}
    assert figure.dpi >= 150
    with Image.open(visualization.save_figure(figure, tmp_path / "a.png")) as saved:
        small = saved.width
    path = visualization.save_figure(figure, tmp_path / "a.png", dpi=share * figure.dpi)
    with Image.open(path) as saved:
        assert saved.width == share * small
    for dpi, message in ((0, r"dpi in \[10, inf\)"), (1e4, "would be .* pixels")):
        with pytest.raises(InputError, match=message):
            visualization.save_figure(figure, tmp_path / "a.png", dpi=dpi)


def test_images_of_other_sizes_stand_in_a_frame() -> None:
    """White around the smaller one; each map lies on its own image."""
    wide, square = uniform(3, 16, 32), uniform(3, 16, 16)
    figure = visualization.overlay([wide, square], [torch.zeros(1, 2, 4), torch.ones(1, 2, 2)])
    first, _, second, drawn = pixels_of(figure)
    np.testing.assert_array_equal(first, wide.movedim(0, -1))
    np.testing.assert_array_equal(second[:, 8:24], square.movedim(0, -1))
    last = matplotlib.colormaps[visualization.HEAT](1.0)[:3]
    for pixels in (second, drawn):
        assert (pixels[:, :8] == 1).all()
        assert (pixels[:, 24:] == 1).all()
    assert np.abs(drawn[:, 8:24] - last).max() < 0.11  # opaque but for a tenth
    tall = letterbox(np.full((3, 10, 20), 0.5, dtype=np.float32), (20, 20), 1.0)
    assert (tall[:, 5:15] == 0.5).all()
    assert (tall[:, :5] == 1).all()
    assert letterbox(np.zeros((3, 1, 500), dtype=np.float32), (8, 8), 0.0).shape == (3, 8, 8)


# What is drawn


def test_arrays_and_tensors_give_the_same_figure_and_stay_as_they_are() -> None:
    images, heatmap = IMAGES.numpy().copy(), MAPS.numpy().copy()
    from_arrays = pixels_of(visualization.overlay(images, heatmap))
    np.testing.assert_array_equal(images, IMAGES.numpy())
    np.testing.assert_array_equal(from_arrays[0], IMAGES[0].permute(1, 2, 0).numpy())
    listed = visualization.overlay(list(IMAGES), list(MAPS))
    for figure in (visualization.overlay(IMAGES, MAPS), listed):
        for one, other in zip(from_arrays, pixels_of(figure), strict=True):
            np.testing.assert_array_equal(one, other)
    visualization.overlay(IMAGES.clone().requires_grad_(), MAPS.bfloat16().requires_grad_())


def test_notes_follow_the_cosine_and_an_empty_map_is_named() -> None:
    maps = torch.cat([BUMPS[:, :2], torch.zeros(1, 1, 4, 6)], dim=1)
    notes = [["one", "two", "three"]]
    scores = torch.tensor([[0.1, 0.2, 0.3]])
    figure = visualization.overlay(image(), maps, scores=scores, notes=notes, labels=["ViT"])
    written = {"ViT", "cosine 0.200, two", "cosine 0.300, three, empty map"}
    assert written <= set(lines_of(figure))


def test_negative_maps_have_a_row_in_blue() -> None:
    figure = visualization.overlay(image(), BUMPS, negative=BUMPS.flip(1), names=["a", "b", "c"])
    assert {"contradicts: a", "supports", "contradicts"} <= set(lines_of(figure))
    shown = image()[0].movedim(0, -1).numpy()
    large = torch.nn.functional.interpolate(BUMPS, SIZE, mode="bicubic").clamp(0, 1).numpy()
    for place, values, cmap in (
        (1, large[0, 0], visualization.POSITIVE),
        (5, large[0, 2], visualization.NEGATIVE),
    ):
        wanted = blend(shown, values, cmap, 0.9)
        np.testing.assert_allclose(pixels_of(figure)[place], wanted, atol=1e-5)


def test_signs_put_the_models_of_one_target_together() -> None:
    lines = lines_of(draw_signs())  # row by row
    assert [text for text in lines if text in ("ViT", "ResNet")] == ["ViT", "ResNet"] * 2
    names = [text for text in lines if text in ("a horse", "a dog")]
    assert names == ["a horse"] * 2 + ["a dog"] * 2  # once a row
    peaks = [line for line in lines if line.startswith("peak")]
    assert peaks == 4 * ["peak 50% of the other\u2019s"]  # of the four, none of the stronger ones


def test_a_reference_stands_at_the_end_of_its_row() -> None:
    figure = draw_signs(references=[None, REFERENCE])
    assert "target image" in lines_of(figure)
    assert len(pixels_of(figure)) == 12 + 2
    # after two rows of three, and three of the third
    np.testing.assert_allclose(pixels_of(figure)[9], REFERENCE.movedim(0, -1).numpy(), atol=1e-6)
    sheet = visualization.contact_sheet(
        image(),
        {"method": BUMPS[:, :1]},
        names=["a"],
        scores=torch.tensor([[0.5]]),
        references=[torch.zeros(3, 500, 750)],
    )
    assert {"image", "method", "target image", "cosine 0.500"} <= set(lines_of(sheet))
    assert lines_of(sheet).count("a") == 1  # under the image
    assert pixels_of(sheet)[2].shape == (*SIZE, 3)


def test_all_mean_maps_share_one_scale() -> None:
    """The smallest value of all is the darkest color, the largest the lightest."""
    rows = {"a": torch.full((1, 4, 4), 0.2), "b": torch.full((1, 3, 3), 0.6)}
    notes = {"a": ["one"], "b": ["two"]}
    figure = visualization.average(rows, names=["awe"], notes=notes, caption="below")
    ends = np.array([[0.001462, 0.000466, 0.013866], [0.988362, 0.998364, 0.644924]])
    for pixels, end in zip(pixels_of(figure), ends, strict=True):
        np.testing.assert_allclose(pixels[0, 0], end, atol=1e-4)
    assert {"0.2 to 0.6", "awe", "a", "b", "one", "two", "below"} <= set(lines_of(figure))
    given = visualization.average({"a": torch.full((1, 4, 4), 0.5)}, scale=(0.0, 1.0))
    assert "0 to 1" in lines_of(given)
    visualization.average({"a": np.zeros((1, 2, 2))})  # no scale at all is no failure


# What is refused


WRONG_OVERLAYS: list[tuple[Any, Any, dict[str, Any], str]] = [
    (IMAGES[0], MAPS, {}, r"images of shape \(B, 3, H, W\), got \(3, 32, 32\)"),
    ([], MAPS, {}, r"images of shape \(B, 3, H, W\), got \(0,\)"),
    (IMAGES * 2 - 1, MAPS, {}, r"images in \[0, 1\].*denormalize"),
    (IMAGES * float("nan"), MAPS, {}, "the images hold NaN"),
    ("photo.jpg", MAPS, {}, "expected images as a tensor or an array, got 'photo"),
    (IMAGES, MAPS[:1], {}, r"maps of shape \(2, K, h, w\), got \(1, 3, 4, 4\)"),
    (IMAGES, MAPS[0], {}, r"got \(3, 4, 4\)"),
    (IMAGES, [MAPS[0], MAPS[0, :2]], {}, r"maps of shape \(3, h, w\), got \(2, 4, 4\)"),
    (IMAGES, [MAPS[0]], {}, "expected 2 maps, got 1"),
    (IMAGES, 5 * MAPS, {}, r"maps in \[0, 1\].*normalize"),
    (IMAGES, MAPS, {"names": ["a"]}, r"expected 3 names, got 1"),
    (IMAGES, MAPS, {"labels": ["a"]}, "expected 2 labels, got 1"),
    (IMAGES, MAPS, {"notes": [["a"] * 3]}, "expected 2 notes, got 1"),
    (IMAGES, MAPS, {"scores": SCORES[:1]}, r"scores of shape \(2, 3\)"),
    (IMAGES, MAPS, {"alpha": 2}, "`alpha` in"),
    (IMAGES, MAPS, {"cmap": "jetset"}, "`cmap`: matplotlib knows no color map 'jetset'"),
    (torch.zeros(800, 3, 64, 64), torch.zeros(800, 1, 1, 1), {}, "draw fewer images"),
]
WRONG_FIGURES: list[tuple[Callable[[], Figure], str]] = [
    (
        lambda: visualization.signs(IMAGES, MAPS, MAPS[:, :2]),
        r"expected maps of shape \(2, 3, h, w\), got \(2, 2, 4, 4\)",
    ),
    (lambda: draw_signs(references=[]), "expected 2 references, got 0"),
    (lambda: visualization.contact_sheet(IMAGES, {}), "at least one column"),
    (lambda: visualization.contact_sheet(IMAGES, {"a": MAPS}), r"maps of shape \(2, 1, h, w\)"),
    (lambda: visualization.average({}), "average: .*at least one row"),
    (
        lambda: visualization.average({"a": MAPS[0, 0]}),
        r"maps for 'a' of shape \(K, h, w\), got \(4, 4\)",
    ),
    (
        lambda: visualization.average({"a": MAPS[0], "b": MAPS[0, :1]}),
        r"maps for 'b' of shape \(3, h, w\), got \(1, 4, 4\)",
    ),
    (lambda: visualization.average({"a": MAPS[0] * torch.nan}), "the maps for 'a' hold NaN"),
    (lambda: visualization.average({"a": MAPS[0]}, names=["a"]), "expected 3 names, got 1"),
]


def test_overlay_names_what_does_not_fit() -> None:
    for images, heatmap, options, message in WRONG_OVERLAYS:
        with pytest.raises(InputError, match=message):
            visualization.overlay(images, heatmap, **options)


def test_the_other_figures_name_what_does_not_fit() -> None:
    for draw, message in WRONG_FIGURES:
        with pytest.raises(InputError, match=message):
            draw()


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    grid._FINE = PIXELS
    for name, draw in DRAWN.items():
        rendered(draw()).save(BASELINE / f"{name}.png", optimize=True)
