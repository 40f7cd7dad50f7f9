"""Each picture shows what it says, from arrays as from tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from captum_clip import visualization
from captum_clip.errors import InputError
from captum_clip.visualization.blend import blend, soften
from tests.figure_parts import lines_of, pixels_of, texts_of

LONG = "a rather long text about a horse and a dog on wet grass, which costs $5 and weighs 3$"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES, HEAT = random(2, 3, 32, 32), random(2, 3, 4, 4, seed=1)
NAMES = ["a horse", LONG, "Zo\u00eb"]
SCORES = random(2, 3, seed=2) - 0.5

PICTURES: dict[str, Callable[[], Figure]] = {
    "overlay": lambda: visualization.overlay(
        IMAGES, HEAT, names=NAMES, scores=SCORES, caption="ViT-B/32"
    ),
    "one image": lambda: visualization.overlay(
        IMAGES[:1], HEAT[:1, :1], names=[LONG], original=False, caption=LONG
    ),
    "signs": lambda: visualization.signs(IMAGES, HEAT, HEAT / 2, names=NAMES, scores=SCORES),
    "words": lambda: visualization.words(
        IMAGES, random(2, 10, 4, 4), [LONG, *"abcdefghi"], range(1, 11), scores=random(2, 10)
    ),
    "word signs": lambda: visualization.words(
        IMAGES, HEAT, NAMES, [1, 0.2, 0.5], negative=HEAT.flip(1), caption="RN50"
    ),
    "sheet": lambda: visualization.contact_sheet(
        IMAGES, {"one method": HEAT[:, :1], LONG: HEAT[:, 1:2]}, names=[LONG, "a dog"]
    ),
    "wide letters": lambda: visualization.overlay(IMAGES, HEAT, names=["W" * 40, LONG, "M W" * 9]),
    "narrow": lambda: visualization.overlay(
        random(1, 3, 64, 24), random(1, 1, 8, 3), original=False, caption=LONG
    ),
    "not square": lambda: visualization.overlay(
        random(1, 3, 32, 64), random(1, 3, 4, 8), names=NAMES
    ),
}


def boxes(figure: Figure) -> tuple[list[Bbox], list[Bbox]]:
    """Where the texts and the pictures lie, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text.get_window_extent(canvas.get_renderer()) for text in texts_of(figure)]
    return texts, [axes.get_window_extent() for axes in figure.axes if axes.images]


@pytest.mark.parametrize("name", PICTURES)
def test_every_text_is_inside_and_nothing_overlaps(name: str) -> None:
    figure = PICTURES[name]()
    texts, pictures = boxes(figure)
    page = figure.bbox
    for box in [*texts, *pictures]:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1 + 1e-6
        assert page.y0 <= box.y0 <= box.y1 <= page.y1 + 1e-6
    for one, other in itertools.combinations([*texts, *pictures], 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 0.5 or height < 0.5


@pytest.mark.parametrize("name", PICTURES)
def test_no_figure_is_left_with_pyplot(name: str) -> None:
    PICTURES[name]()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_lies_on_whole_multiples_of_its_pixels(name: str) -> None:
    figure = PICTURES[name]()
    high, wide = pixels_of(figure)[0].shape[:2]
    for box in boxes(figure)[1]:
        assert box.width / wide == pytest.approx(round(box.width / wide), abs=1e-3)
        assert box.height / high == pytest.approx(round(box.height / high), abs=1e-3)
        assert min(box.width, box.height) >= 250


def test_texts_are_taken_as_they_are() -> None:
    written = " ".join(lines_of(PICTURES["overlay"]()))
    assert "$5 and weighs 3$" in written
    assert "cosine 0." in written
    assert "cosine \u2212" in written


def test_no_text_is_read_as_a_formula() -> None:
    boxes(visualization.overlay(IMAGES, HEAT[:, :1], names=[r"$\nonsense{$"], caption="$_$"))


def test_the_image_is_shown_as_it_is() -> None:
    figure = visualization.overlay(IMAGES, HEAT)
    np.testing.assert_array_equal(pixels_of(figure)[0], IMAGES[0].permute(1, 2, 0).numpy())


def test_overlay_has_a_row_an_image_and_a_column_a_target() -> None:
    _, pictures = boxes(visualization.overlay(IMAGES, HEAT, original=False))
    assert len({round(box.x0) for box in pictures}) == 3
    assert len({round(box.y0) for box in pictures}) == 2


def test_arrays_and_tensors_give_the_same_picture_and_stay_as_they_are() -> None:
    images, heatmap = IMAGES.numpy().copy(), HEAT.numpy().copy()
    from_arrays = visualization.overlay(images, heatmap)
    np.testing.assert_array_equal(images, IMAGES.numpy())
    for one, other in zip(
        pixels_of(from_arrays), pixels_of(visualization.overlay(IMAGES, HEAT)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_tensors_that_want_gradients_or_are_of_half_precision_are_drawn() -> None:
    visualization.overlay(IMAGES.clone().requires_grad_(), HEAT.bfloat16().requires_grad_())


# Colours


def test_without_heat_the_image_shows_through() -> None:
    image = IMAGES[0].permute(1, 2, 0).numpy()
    none = np.zeros((32, 32), dtype=np.float32)
    for cmap in (visualization.POSITIVE, matplotlib.colormaps["viridis"]):
        np.testing.assert_allclose(blend(image, none, cmap, 0.9), soften(image), atol=1e-6)


def test_full_heat_with_full_opacity_is_the_last_colour() -> None:
    image = IMAGES[0].permute(1, 2, 0).numpy()
    cmap = matplotlib.colormaps["inferno"]
    drawn = blend(image, np.ones((32, 32), dtype=np.float32), cmap, 1.0)
    np.testing.assert_allclose(drawn[0, 0], cmap(1.0)[:3], atol=1e-6)


def test_a_map_without_any_heat_is_named() -> None:
    figure = visualization.overlay(
        IMAGES[:1], torch.zeros(1, 1, 4, 4), scores=torch.tensor([[0.25]])
    )
    assert "cosine 0.250, no heat" in lines_of(figure)


@pytest.mark.parametrize("cmap", [visualization.POSITIVE, visualization.NEGATIVE])
def test_the_two_signs_get_steadily_darker(cmap: Any) -> None:
    luma = cmap(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) < 0).all()


# Words


def test_words_are_weighed_with_their_norms() -> None:
    same = HEAT[:1, :1].expand(1, 3, 4, 4)
    pictures = pixels_of(visualization.words(IMAGES[:1], same, ["a b", "a", "b"], [9, 0.1, 0.4]))
    weighed = same * torch.tensor([1, 0.25, 1]).view(1, 3, 1, 1)
    plain = pixels_of(visualization.overlay(IMAGES[:1], weighed))
    for one, other in zip(pictures, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    unweighed = pixels_of(
        visualization.words(IMAGES[:1], same, ["a b", "a", "b"], [9, 0.1, 0.4], relative=False)
    )
    np.testing.assert_array_equal(unweighed[2], unweighed[3])


def test_words_print_their_norms() -> None:
    figure = visualization.words(IMAGES[:1], HEAT[:1], ["a b", "a", "b"], [1, 0.123, 0.4])
    assert [line for line in lines_of(figure) if "norm" in line] == ["norm 0.12", "norm 0.40"]


def test_a_long_text_goes_on_in_the_next_row() -> None:
    _, pictures = boxes(PICTURES["words"]())  # 11 pictures an image
    assert len({round(box.x0) for box in pictures}) == 6
    assert len(pictures) == 22


# What is refused


@pytest.mark.parametrize(
    ("images", "heatmap", "options", "message"),
    [
        (IMAGES[0], HEAT, {}, r"images of shape \(B, 3, H, W\), got \(3, 32, 32\)"),
        (IMAGES * 2 - 1, HEAT, {}, r"images in \[0, 1\].*denormalize"),
        (IMAGES * float("nan"), HEAT, {}, "nan to nan"),
        ("photo.jpg", HEAT, {}, "expected images as a tensor or an array, got str"),
        (IMAGES, HEAT[:1], {}, r"for 2 images, got \(1, 3, 4, 4\)"),
        (IMAGES, HEAT[0], {}, r"got \(3, 4, 4\)"),
        (IMAGES, 5 * HEAT, {}, r"maps in \[0, 1\].*normalize"),
        (IMAGES, HEAT, {"names": ["a"]}, r"expected 3 names, got 1"),
        (IMAGES, HEAT, {"scores": SCORES[:1]}, r"scores of shape \(2, 3\)"),
        (IMAGES, HEAT, {"alpha": 2}, "alpha in"),
        (IMAGES, HEAT, {"cmap": "jetset"}, "no colour map 'jetset'"),
    ],
)
def test_overlay_says_what_does_not_fit(
    images: Any, heatmap: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        visualization.overlay(images, heatmap, **options)


def test_the_other_pictures_say_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="expected 3 maps per image, got 2"):
        visualization.signs(IMAGES, HEAT, HEAT[:, :2])
    for norms in ([1, 2], [1, 0, 2], [1, float("nan"), 2]):
        with pytest.raises(InputError, match="expected 3 positive norms"):
            visualization.words(IMAGES, HEAT, NAMES, norms)
    with pytest.raises(InputError, match="at least one column"):
        visualization.contact_sheet(IMAGES, {})
    with pytest.raises(InputError, match="expected 1 maps per image, got 3"):
        visualization.contact_sheet(IMAGES, {"method": HEAT})


def test_too_many_pictures_for_one_figure_are_refused() -> None:
    with pytest.raises(InputError, match="draw fewer images"):
        visualization.overlay(torch.zeros(800, 3, 64, 64), torch.zeros(800, 1, 1, 1))


@pytest.mark.parametrize(("targets", "times"), [(1, 2), (8, 1)])
def test_a_large_figure_has_the_images_own_pixels_and_a_small_one_more(
    targets: int, times: int
) -> None:
    """224-pixel pictures are drawn twice as large, until the whole would be past 2,400 pixels."""
    figure = visualization.overlay(random(1, 3, 224, 224), random(1, targets, 7, 7))
    _, pictures = boxes(figure)
    assert {round(box.width) for box in pictures} == {224 * times}
    assert max(figure.get_size_inches() * figure.dpi) <= 2400
