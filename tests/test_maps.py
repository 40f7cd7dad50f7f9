from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_clip import maps
from captum_clip.errors import InputError
from tests.samples import normal

ALL: dict[str, Callable[[Any], torch.Tensor]] = {
    "upsample": lambda m: maps.upsample(m, (8, 8)),
    "normalize": maps.normalize,
    "positive": maps.positive,
    "negative": maps.negative,
    "expand_to_input": lambda m: maps.expand_to_input(m, torch.zeros(len(m), 3, 8, 8)),
}


# What all of them refuse


NO_MAPS: list[tuple[Any, str]] = [
    ([[1.0]], r"got \[\[1.0\]\]"),
    (torch.zeros(3), r"got Tensor \(3,\)"),
    (torch.zeros(1, 1, 0, 4), r"none of them empty, got Tensor \(1, 1, 0, 4\)"),
    (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "int64"),
    (torch.full((1, 1, 2, 2), float("nan")), "NaN or infinity"),
    (torch.full((1, 1, 2, 2), float("-inf")), "NaN or infinity"),
]


@pytest.mark.parametrize("name", ALL)
def test_every_function_refuses_what_is_no_map(name: str) -> None:
    for bad, message in NO_MAPS:
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            ALL[name](bad)


@pytest.mark.parametrize("name", ALL)
def test_every_function_keeps_the_type_and_its_argument_as_it_was(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        given = normal(2, 1, 3, 4, dtype=dtype)
        before = given.clone()
        assert ALL[name](given).dtype == dtype
        assert torch.equal(given, before)


# upsample


def test_upsample_keeps_pixel_centers_in_place() -> None:
    assert maps.upsample(torch.tensor([[0.0, 1.0]]), (1, 4)).tolist() == [[0, 0.25, 0.75, 1]]


def test_a_clamped_map_keeps_its_range_and_inside_it_its_values():
    raw = torch.randn(2, 3, 4, 5)
    free = maps.upsample(raw, (20, 30), mode="bicubic")
    kept = maps.upsample(raw, (20, 30), mode="bicubic", clamp=True)
    low, high = raw.amin((-2, -1), True), raw.amax((-2, -1), True)
    assert (free > high).any()
    assert torch.equal(kept, free.clamp(low, high))


def test_upsample_nearest_repeats_cells() -> None:
    given = normal(3, 4)
    expected = given.repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.equal(maps.upsample(given, (6, 12), mode="nearest"), expected)


def test_upsample_refuses_what_is_no_size_or_mode() -> None:
    sizes: list[Any] = [3, (3,), (0, 4), (3, -1), "ab", (1, 2, 3)]
    for size in sizes:
        with pytest.raises(InputError, match=r"expected a size \(H, W\)"):
            maps.upsample(torch.zeros(2, 2), size)
    with pytest.raises(InputError, match=r"bilinear, bicubic, nearest, got 'cubic'"):
        maps.upsample(torch.zeros(2, 2), (4, 4), mode="cubic")  # type: ignore[arg-type]


# normalize


def test_normalize_spans_zero_to_one_in_each_map() -> None:
    made = maps.normalize(normal(2, 3, 4, 5))
    assert torch.equal(made.amin((-2, -1)), torch.zeros(2, 3))
    assert torch.equal(made.amax((-2, -1)), torch.ones(2, 3))


def test_normalize_is_the_min_max_formula() -> None:
    given = torch.tensor([[2.0, 3.0], [4.0, 6.0]])
    torch.testing.assert_close(maps.normalize(given), (given - 2) / 4)


def test_normalize_of_a_constant_map_is_zero() -> None:
    for value in (0.0, 1.0, -3.0, 0.1, 1e-30, 3e38):
        flat = torch.full((1, 7, 7), value)
        assert not maps.normalize(flat).any()
        assert not maps.normalize(maps.upsample(flat, (50, 30))).any()  # rounding is no saliency


# positive, negative


def test_positive_and_negative_are_the_two_halves_of_a_signed_map() -> None:
    given = normal(2, 3, 3)
    up, down = maps.positive(given), maps.negative(given)
    assert (up >= 0).all()
    assert (down >= 0).all()
    assert torch.equal(up - down, given)
    assert not (up * down).any()
    assert torch.equal(maps.negative(given), maps.positive(-given))


# expand_to_input


def test_expand_to_input_keeps_each_sum() -> None:
    for grid, size in (((2, 3), (5, 7)), ((3, 3), (3, 3)), ((1, 2), (9, 5))):
        given = normal(2, 1, *grid, dtype=torch.float64)
        spread = maps.expand_to_input(given, torch.zeros(2, 3, *size))
        assert spread.shape == (2, 3, *size)
        assert spread.is_contiguous()
        torch.testing.assert_close(spread.sum((1, 2, 3)), given.sum((1, 2, 3)))


def test_expand_to_input_gives_a_cell_to_its_own_pixels() -> None:
    given = torch.tensor([[[[6.0, 12.0]]]])
    spread = maps.expand_to_input(given, torch.zeros(1, 3, 1, 3))  # two pixels and one
    assert spread[0, 0].tolist() == [[1, 1, 4]]
    assert torch.equal(spread[0, 0], spread[0, 2])


def test_expand_to_input_fits_captums_infidelity() -> None:
    """A linear function is explained without error by its own gradient times the cell."""
    from captum.metrics import infidelity

    weights = normal(1, 1, 2, 2)
    images = normal(1, 3, 4, 4, seed=3)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return (F.avg_pool2d(x.mean(1, keepdim=True), 2) * weights).sum((1, 2, 3))

    def shift(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = torch.randn(len(x), 1, 2, 2, generator=torch.Generator().manual_seed(5))
        step = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
        return step, x - step

    error = infidelity(forward, shift, images, maps.expand_to_input(weights, images))
    assert error.item() < 1e-10


def test_expand_to_input_refuses_shapes_that_do_not_belong_together() -> None:
    for shape, image in (
        ((2, 2, 3, 3), (2, 3, 9, 9)),
        ((2, 1, 3, 3), (1, 3, 9, 9)),
        ((1, 3, 3), (1, 3, 9, 9)),
        ((1, 1, 3, 3), (3, 9, 9)),
        ((1, 1, 4, 3), (1, 3, 3, 9)),
    ):
        with pytest.raises(InputError, match="expand_to_input"):
            maps.expand_to_input(torch.zeros(shape), torch.zeros(image))


def test_large_finite_values_are_no_infinity() -> None:
    """A sum that overflows is not a map that does."""
    assert maps.positive(torch.full((1, 1, 32, 32), 1e37)).isfinite().all()


def test_upsample_takes_any_leading_dimensions() -> None:
    for lead in ((), (2, 3)):
        given = normal(*lead, 3, 4)
        expected = F.interpolate(
            given.reshape(1, -1, 3, 4), (7, 9), mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(maps.upsample(given, (7, 9)), expected.reshape(*lead, 7, 9))


def test_upsample_is_linear() -> None:
    a, b = normal(2, 3, 3, seed=1), normal(2, 3, 3, seed=2)
    left = maps.upsample(2 * a - b, (10, 8), mode="bicubic")
    right = 2 * maps.upsample(a, (10, 8), mode="bicubic") - maps.upsample(
        b, (10, 8), mode="bicubic"
    )
    torch.testing.assert_close(left, right)


def test_upsample_to_its_own_size_changes_nothing() -> None:
    given = normal(2, 3, 4)
    for mode in ("bilinear", "nearest"):
        torch.testing.assert_close(maps.upsample(given, (3, 4), mode=mode), given)


def test_normalize_ignores_scale_and_shift() -> None:
    given = normal(2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(maps.normalize(1e-9 * given + 3e-9), maps.normalize(given))


def test_normalize_leaves_one_map_alone_where_another_is_constant() -> None:
    given = torch.stack([torch.zeros(3, 3), normal(3, 3)])
    torch.testing.assert_close(maps.normalize(given)[1], maps.normalize(given[1]))


def test_normalize_of_a_constant_map_has_finite_gradients() -> None:
    flat = torch.ones(1, 3, 3, requires_grad=True)
    maps.normalize(flat).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_normalize_neither_overflows_nor_divides_by_zero() -> None:
    for scale in (1e-42, 3e38):
        assert maps.normalize(torch.tensor([[-scale, scale]])).tolist() == [[0, 1]]
