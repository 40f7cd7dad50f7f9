"""Mamooler's figures as pictures: what is in them, and three compared with stored ones.

``python -m tests.visualization.test_figures`` writes the stored pictures anew; look at them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from captum_clip import visualization
from captum_clip.errors import InputError
from captum_clip.visualization import grid
from captum_clip.visualization.arrays import letterbox
from captum_clip.visualization.blend import blend
from captum_clip.visualization.heads import sum_notes
from captum_clip.visualization.style import score_note
from tests.figure_parts import lines_of, pixels_of, texts_of

BASELINE = Path(__file__).with_name("baseline")
PIXELS = 200  # of a drawn panel's side, at least
WIDTH = 240  # pixels of a stored picture: letters are blurred, panels are not
SIZE = (32, 48)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", PIXELS)


def image(hue: float = 0.0) -> torch.Tensor:
    """A bright disc before two ramps, (1, 3, 32, 48)."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, SIZE[0]), torch.linspace(0, 1, SIZE[1]), indexing="ij"
    )
    disc = ((x - 0.3) ** 2 + (y - 0.5) ** 2 < 0.06).float()
    return torch.stack([torch.maximum(x, disc), torch.full_like(x, hue), y])[None]


def bump(column: int, row: int = 1, height: float = 1.0) -> torch.Tensor:
    """A map (4, 6) with one high cell."""
    found = torch.zeros(4, 6)
    found[row, column] = height
    return found


HEAT = torch.stack([bump(0), bump(2), bump(4, 2)])[None]  # (1, 3, 4, 6)
REFERENCE = image(0.8)[0]


def draw_layers(**changes: Any) -> Figure:
    attention = torch.stack([bump(i, 1, 0.2) for i in range(3)])[None]
    gradients = torch.stack([attention - 0.1, -attention], dim=1)
    given: dict[str, Any] = {
        "names": ["a horse", "another image"],
        "scores": [[0.25, -0.1]],
        "references": [None, REFERENCE],
        "caption": "model",
    }
    return visualization.layers(image(), attention, gradients, **{**given, **changes})


def draw_signs(**changes: Any) -> Figure:
    given: dict[str, Any] = {
        "names": ["a horse", "a dog"],
        "scores": [[0.2, 0.3], [-0.1, 0.4]],
        "labels": ["ViT", "ResNet"],
    }
    images = torch.cat([image(), image(0.5)])
    up = HEAT[:, :2].expand(2, -1, -1, -1)
    return visualization.signs(images, up, up.flip(-1) / 2, **{**given, **changes})


def draw_words(**changes: Any) -> Figure:
    given: dict[str, Any] = {"labels": ["ViT", "ResNet"], "scores": torch.full((2, 3), 0.3)}
    images, heatmap = image().expand(2, -1, -1, -1), torch.cat([HEAT, HEAT.flip(-1)])
    norms = torch.tensor([[1, 0.1, 0.8], [1, 0.4, 0.5]])
    return visualization.words(
        images, heatmap, ["a horse", "a", "horse"], norms, **{**given, **changes}
    )


DRAWN: dict[str, Callable[..., Figure]] = {
    "layers": draw_layers,
    "signs": draw_signs,
    "words": draw_words,
}


def rendered(figure: Figure) -> Image.Image:
    """The figure as a small picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    return picture.resize((WIDTH, height), Image.Resampling.BOX)


def differences(figure: Figure, name: str) -> tuple[float, float]:
    """Mean difference from the stored picture, and the largest of a square of 6 pixels; of 255."""
    with Image.open(BASELINE / f"{name}.png") as stored:
        wanted = stored.convert("RGB")
    found = rendered(figure)
    if abs(found.height - wanted.height) > 2:
        return 255.0, 255.0
    found = found.resize(wanted.size)
    gap = np.abs(np.asarray(found, dtype=float) - np.asarray(wanted, dtype=float)).mean(-1)
    padded = np.pad(gap, [(0, -side % 6) for side in gap.shape])
    rows, columns = padded.shape
    squares = padded.reshape(rows // 6, 6, columns // 6, 6).mean((1, 3))
    return float(gap.mean()), float(squares.max())


def looks_the_same(figure: Figure, name: str) -> bool:
    mean, square = differences(figure, name)
    return mean < 2 and square < 30


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_looks_as_its_stored_picture(name: str) -> None:
    assert looks_the_same(DRAWN[name](), name)


@pytest.mark.parametrize("name", DRAWN)
def test_letters_of_another_version_are_no_difference(name: str) -> None:
    figure = DRAWN[name]()
    for text in texts_of(figure):
        text.set_fontsize(1.04 * float(text.get_fontsize()))
        text.set_x(text.get_position()[0] + 0.5)
    assert looks_the_same(figure, name)


@pytest.mark.parametrize("name", DRAWN)
def test_a_missing_picture_or_legend_is_a_difference(name: str) -> None:
    figure, other = DRAWN[name](), DRAWN[name]()
    figure.axes[1].remove()
    other.legends[0].remove()
    assert not looks_the_same(figure, name)
    assert not looks_the_same(other, name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("signs", {"cmaps": (visualization.NEGATIVE, visualization.POSITIVE)}),
        ("signs", {"labels": ()}),
        ("layers", {"cmap": "inferno"}),
        ("layers", {"references": None}),
        ("words", {"cmap": "viridis"}),
        ("words", {"relative": False}),
    ],
)
def test_other_colours_or_parts_are_a_difference(name: str, changes: dict[str, Any]) -> None:
    assert not looks_the_same(DRAWN[name](**changes), name)


# Layers


def test_layers_multiply_the_image_with_each_stretched_map() -> None:
    """I (m - min m) / (max m - min m), so a constant added or a factor changes nothing."""
    attention, gradients = torch.rand(1, 2, *SIZE), torch.randn(1, 1, 2, *SIZE)
    shown = pixels_of(visualization.layers(image(), attention, gradients, cmap="mask"))
    picture = image()[0].movedim(0, -1).numpy()
    for place, raw in ((1, attention[0, 0]), (2, attention[0, 1]), (5, gradients[0, 0, 1])):
        share = ((raw - raw.min()) / (raw.max() - raw.min())).numpy()
        np.testing.assert_allclose(shown[place], picture * share[..., None], atol=1e-5)
    again = pixels_of(visualization.layers(image(), 7 * attention + 3, gradients, cmap="mask"))
    np.testing.assert_allclose(again[1], shown[1], atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_orange_above_zero_and_blue_below(shared: bool) -> None:
    gradients = torch.randn(1, 1, 2, *SIZE) * torch.tensor([1.0, 0.3]).view(2, 1, 1)
    figure = visualization.layers(image(), torch.rand(1, 2, *SIZE), gradients, shared=shared)
    picture = image()[0].movedim(0, -1).numpy()
    for place, raw in zip((4, 5), gradients[0, 0].numpy(), strict=True):
        heatmap = raw / (gradients.abs().max().item() if shared else np.abs(raw).max())
        for cmap, sign in ((visualization.POSITIVE, 1), (visualization.NEGATIVE, -1)):
            there = sign * heatmap > 0
            wanted = blend(picture, (sign * heatmap).clip(0), cmap, 0.9)
            np.testing.assert_allclose(pixels_of(figure)[place][there], wanted[there], atol=1e-6)
    assert {"attention, low to high", "raises the cosine", "lowers it"} <= set(lines_of(figure))


def test_a_shared_scale_keeps_a_weak_layer_dark() -> None:
    attention = torch.stack([bump(1, height=0.1), bump(1, height=1.0)])[None]
    gradients = attention[:, None]
    own = pixels_of(visualization.layers(image(), attention, gradients, cmap="mask"))
    shared = pixels_of(
        visualization.layers(image(), attention, gradients, cmap="mask", shared=True)
    )
    np.testing.assert_allclose(own[1], own[2], atol=1e-5)
    np.testing.assert_allclose(shared[1], 0.1 * own[1], atol=1e-5)
    np.testing.assert_allclose(shared[2], own[2], atol=1e-5)


def test_layers_say_their_range_and_their_target() -> None:
    lines = lines_of(draw_layers())
    assert {"attention", "gradient", "layer 0", "cosine 0.250", "model"} <= set(lines)
    assert lines.count("a horse") == lines.count("another image") == 1
    assert "\u22120.1 to 0.097" in lines
    assert "\u22120.2 to 0" in lines  # no minus zero


def test_many_layers_are_folded_under_each_other() -> None:
    figure = visualization.layers(image(), torch.rand(1, 12, 4, 6), torch.rand(1, 1, 12, 4, 6))
    lefts = [round(axes.get_position().x0, 3) for axes in figure.axes[:13]]
    assert lefts[1:7] == lefts[7:]
    assert lefts[0] < lefts[7]  # nothing under the image


@pytest.mark.parametrize(
    ("attention", "gradients", "options", "message"),
    [
        ((1, 2, 4), (1, 1, 2, 4, 6), {}, r"attention \(B, L, h, w\), got \(1, 2, 4\)"),
        ((1, 2, 4, 6), (1, 2, 4, 6), {}, r"gradients \(B, K, L, h, w\), got \(1, 2, 4, 6\)"),
        ((1, 2, 4, 6), (1, 1, 3, 4, 6), {}, "do not belong together"),
        ((2, 2, 4, 6), (2, 1, 2, 4, 6), {}, "of 1 images do not belong together"),
        ((1, 2, 4, 6), (1, 1, 2, 4, 6), {"names": ["a", "b"]}, "expected 1 names, got 2"),
        ((1, 2, 4, 6), (1, 1, 2, 4, 6), {"references": []}, "expected 1 references, got 0"),
        ((1, 2, 4, 6), (1, 1, 2, 4, 6), {"cmap": "jetset"}, "no colour map 'jetset'"),
    ],
)
def test_layers_say_what_does_not_fit(
    attention: tuple[int, ...], gradients: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        visualization.layers(image(), torch.rand(attention), torch.rand(gradients), **options)


def test_layers_refuse_what_is_not_finite() -> None:
    bad = torch.full((1, 2, 4, 4), torch.nan)
    with pytest.raises(InputError, match="attention holds NaN"):
        visualization.layers(image(), bad, bad[:, None])


# Heads


def test_numbers_under_the_pictures_add_up_to_the_score() -> None:
    """Each is rounded up or down, whichever lets the sum come out."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.001, 0.1, 10):
        parts = scale * torch.randn(9, 2, 3, generator=generator).numpy()
        score, notes = sum_notes(parts, 0.25)
        numbers = [float(note.split(",")[0].replace("\u2212", "-")) for note in notes]
        exact = [*parts.sum((-2, -1)), 0.25]
        np.testing.assert_allclose(numbers, exact, rtol=0, atol=1e-3)
        assert score == score_note(sum(numbers))
        shares = [int(note.split(", ")[1][:-1].replace("\u2212", "-")) for note in notes]
        assert sum(shares) == 100
        np.testing.assert_allclose(shares, [100 * e / sum(exact) for e in exact], atol=1.001)


def test_a_score_of_zero_has_no_shares() -> None:
    parts = np.array([[[0.1, 0.02]], [[-0.12, 0.0]], [[0.0001, 0.0]]])
    assert sum_notes(parts, 0.0) == ("cosine 0.000", ["+0.120", "\u22120.120", "0.000", "0.000"])


@pytest.mark.parametrize(
    ("contributions", "options", "message"),
    [
        ((2, 4, 6), {}, r"heads: expected contributions \(1, M, h, w\), got \(2, 4, 6\)"),
        ((2, 2, 4, 6), {}, "heads: expected one image, got 1 with the maps of 2"),
        ((1, 3, 4, 6), {}, "heads, labels: expected 3 names, got 2"),
        ((1, 2, 4, 6), {"rest": float("nan")}, "heads: expected a finite rest, got nan"),
        ((1, 2, 4, 6), {"cmap": "jetset"}, "no colour map 'jetset'"),
    ],
)
def test_heads_say_what_does_not_fit(
    contributions: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    given = {"rest": 0.1, "labels": ["head 0", "head 1"], **options}
    with pytest.raises(InputError, match=message):
        visualization.heads(image(), torch.rand(contributions), **given)


def test_heads_refuse_what_is_not_finite() -> None:
    bad = torch.full((1, 1, 4, 6), torch.inf)
    with pytest.raises(InputError, match="heads: contributions holds NaN or infinity"):
        visualization.heads(image(), bad, 0.1, labels=["head 0"])


# Names, labels and pictures of other sizes


def test_signs_put_the_models_of_one_target_together() -> None:
    figure = draw_signs()
    lines = lines_of(figure)  # row by row
    order = [text for text in lines if text in ("ViT", "ResNet")]
    assert order == ["ViT", "ResNet", "ViT", "ResNet"]
    names = [text for text in lines if text in ("a horse", "a dog")]
    assert names == ["a horse"] * 2 + ["a dog"] * 2  # once a row


def test_the_weaker_sign_says_how_weak_it_is() -> None:
    peaks = [line for line in lines_of(draw_signs()) if line.startswith("peak")]
    assert peaks == 4 * ["peak 50% of the other\u2019s"]  # of the four, none of the stronger ones


def test_a_reference_stands_at_the_end_of_its_row() -> None:
    figure = draw_signs(references=[None, REFERENCE])
    assert "target image" in lines_of(figure)
    assert len(pixels_of(figure)) == 12 + 2
    np.testing.assert_allclose(
        pixels_of(figure)[9], REFERENCE.movedim(0, -1).numpy(), atol=1e-6
    )  # after two rows of three, and three of the third
    sheet = visualization.contact_sheet(
        image(),
        {"method": HEAT[:, :1]},
        names=["a"],
        scores=torch.tensor([[0.5]]),
        references=[REFERENCE],
    )
    assert {"image", "method", "target image"} <= set(lines_of(sheet))
    assert lines_of(sheet).count("a") == 1  # under the image
    assert "cosine 0.500" in lines_of(sheet)


def test_overlay_takes_a_label_and_notes_for_each_row() -> None:
    notes = [["one", "two", "three"]]
    figure = visualization.overlay(
        image(), HEAT, scores=torch.tensor([[0.1, 0.2, 0.3]]), notes=notes, labels=["ViT"]
    )
    assert {"ViT", "cosine 0.200, two"} <= set(lines_of(figure))
    with pytest.raises(InputError, match="labels: expected 1 names, got 2"):
        visualization.overlay(image(), HEAT, labels=["a", "b"])
    with pytest.raises(InputError, match="notes for 1 images, got 2"):
        visualization.overlay(image(), HEAT, notes=notes * 2)


def test_words_of_each_row_are_dimmed_by_its_own_norms() -> None:
    figure = draw_words()
    assert {"norm 0.10", "norm 0.80", "norm 0.40", "norm 0.50"} <= set(lines_of(figure))
    alone = visualization.words(image(), HEAT.flip(-1), ["a horse", "a", "horse"], [1, 0.4, 0.5])
    for one, other in zip(pixels_of(figure)[4:8], pixels_of(alone)[:4], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_many_mean_maps_are_folded_and_named() -> None:
    names = [f"target {place}" for place in range(10)]
    figure = visualization.average({"a": torch.rand(10, 4, 4)}, names=names)
    assert set(names) <= set(lines_of(figure))
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes[:10]}) == 5


def test_a_frame_keeps_shapes_and_values() -> None:
    wide = torch.full((3, 10, 20), 0.5)
    framed = letterbox(wide, (20, 20), 1.0)
    assert (framed[:, 5:15] == 0.5).all()
    assert (framed[:, :5] == 1).all()
    assert (framed[:, 15:] == 1).all()
    assert letterbox(wide, (10, 20), 1.0) is wide
    assert letterbox(torch.rand(3, 1, 500), (8, 8), 0.0).shape == (3, 8, 8)


def test_the_finest_picture_decides_the_pixels_of_a_figure() -> None:
    fine = torch.rand(3, 500, 750)
    sheet = visualization.contact_sheet(image(), {"m": HEAT[:, :1]}, references=[fine])
    assert sheet.axes[2].get_window_extent().width >= SIZE[1]
    large = visualization.contact_sheet(fine[None], {"m": HEAT[:, :1]}, references=[fine])
    assert round(large.axes[2].get_window_extent().width) >= 750


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    grid._FINE = PIXELS
    for name, draw in DRAWN.items():
        rendered(draw()).save(BASELINE / f"{name}.png", optimize=True)
