"""Random masks, what they change, and how far maps predict it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import (
    faithfulness_correlation,
    infidelity,
    masked_changes,
    p_faithfulness,
    patch_removal,
    sensitivity,
)
from captum_clip.metrics.masked_changes import infidelity_of
from tests.metrics import oracles
from tests.samples import normal

IMAGES, WEIGHTS = normal(4, 3, 8, 12), normal(2, 3, 8, 12, seed=1)
GRID = (2, 3)


def linear(images: torch.Tensor) -> torch.Tensor:
    """Two linear scores (B, 2)."""
    return torch.einsum("bchw,kchw->bk", images, WEIGHTS.to(images))


def pixels(target: int) -> torch.Tensor:
    """What each pixel adds to a linear score, (B, H, W)."""
    return (IMAGES * WEIGHTS[target]).sum(1)


@pytest.mark.parametrize("shifted", [True, False])
def test_what_each_pixel_adds_predicts_every_mask(shifted):
    """Of a linear score, whatever the grid; an offset and a scale make no difference."""
    found = masked_changes(linear, IMAGES, 1, grid=GRID, shifted=shifted)
    assert found.masks.shape == (4, 32, 8, 12)
    torch.testing.assert_close(found.predicted(pixels(1)), found.changes, atol=1e-5, rtol=1e-5)
    assert faithfulness_correlation(pixels(1), found) == pytest.approx([1] * 4)
    assert faithfulness_correlation(-3 * pixels(1), found) == pytest.approx([-1] * 4)
    assert infidelity_of(pixels(1), found).max() < 1e-9


def test_correlation_is_numpys_of_masks_drawn_one_by_one():
    maps = normal(4, *GRID, seed=2)
    found = masked_changes(linear, IMAGES, 0, grid=GRID, samples=9, seed=5, shifted=False)
    for index, image in enumerate(IMAGES):
        generator = torch.Generator().manual_seed(5 + index)
        drawn = torch.rand(9, *GRID, generator=generator) < 0.2
        told = [(cells * maps[index]).sum().item() for cells in drawn]
        taken = drawn.repeat_interleave(4, 1).repeat_interleave(4, 2)
        left = [linear(torch.where(mask, 0, image)[None])[0, 0].item() for mask in taken]
        changes = linear(image[None])[0, 0].item() - np.array(left)
        assert torch.equal(found.masks[index], taken)
        wanted = np.corrcoef(told, changes)[0, 1]
        assert faithfulness_correlation(maps, found)[index].item() == pytest.approx(wanted)


@pytest.mark.parametrize("p", [0.3, 0.7])
def test_p_faithfulness_is_fixlips(p):
    """Their way: values of the coalitions that stay, less that of none, against the cells' sums."""
    maps = normal(4, *GRID, seed=2)
    score = lambda images: linear(images).tanh()  # noqa: E731
    found = masked_changes(score, IMAGES, 1, grid=GRID, share=1 - p, samples=40, shifted=False)
    for index, image in enumerate(IMAGES):
        stay = ~found.masks[index]
        values = score(torch.where(stay[:, None], image, 0))[:, 1] - score(0 * image[None])[0, 1]
        sums = (stay[:, ::4, ::4] * maps[index]).sum((1, 2))
        wanted = oracles.spearman(sums.double().round(decimals=5), values)
        assert p_faithfulness(maps, found)[index].item() == pytest.approx(wanted, abs=1e-9)
    assert found.masks.double().mean().item() == pytest.approx(1 - p, abs=0.03)


def test_no_cell_of_the_shifted_grid_is_a_patch():
    """A mask that takes one whole patch away takes a part of another one too."""
    found = masked_changes(lambda x: x.mean((1, 2, 3)), normal(8, 3, 16, 16), grid=(4, 4))
    inner = found.masks[..., 4:12, 4:12].reshape(-1, 2, 4, 2, 4).transpose(2, 3).flatten(3)
    partly = inner.any(-1) & ~inner.all(-1)
    assert partly.any((1, 2)).float().mean() > 0.8
    removed, _ = patch_removal((1, 1), share=1.0, shifted=True)(IMAGES[0], torch.Generator())
    assert removed.all()


def test_a_map_of_one_value_is_no_map_of_zeros():
    """Zeros get the mean square of the change, one value everywhere much less than that."""
    images = normal(4, 3, 8, 12).abs()
    found = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=GRID, samples=64)
    zeros, ones = (infidelity_of(torch.full((4, *GRID), v), found) for v in (0.0, 1.0))
    torch.testing.assert_close(zeros, found.changes.square().mean(1))
    assert (ones < 0.2 * zeros).all()
    assert (faithfulness_correlation(torch.ones(4, *GRID), found) > 0.5).all()
    assert faithfulness_correlation(torch.zeros(4, *GRID), found).isnan().all()


def test_infidelity_of_masks_is_captums():
    """The same draws, given to Captum one by one."""
    maps, samples = normal(4, *GRID, seed=3), 12
    found = masked_changes(linear, IMAGES, 1, grid=GRID, samples=samples, shifted=True)

    def repeat(image: torch.Tensor, generator: torch.Generator) -> Any:
        index = next(i for i in range(4) if torch.equal(image, IMAGES[i]))
        mask = found.masks[index, next(counts[index])]
        return mask.expand_as(image).to(image.dtype), torch.where(mask, 0, image)

    counts = [iter(range(samples)) for _ in range(4)]
    wanted = infidelity(linear, IMAGES, maps, 1, perturbation=repeat, samples=samples)
    torch.testing.assert_close(infidelity_of(maps, found).float(), wanted)


def test_seeds_may_be_listed():
    """One an image, so that a batch may hold any images of a set."""
    whole = masked_changes(linear, IMAGES, 0, grid=GRID, seed=3)
    some = masked_changes(linear, IMAGES[[3, 1]], 0, grid=GRID, seed=[6, 4], batch_size=5)
    assert torch.equal(some.masks, whole.masks[[3, 1]])
    torch.testing.assert_close(some.changes, whole.changes[[3, 1]], atol=1e-4, rtol=1e-4)
    maps = normal(4, *GRID, seed=4)
    together = infidelity(linear, IMAGES, maps, 0, seed=3, samples=4)
    listed = infidelity(linear, IMAGES[[3, 1]], maps[[3, 1]], 0, seed=[6, 4], samples=4)
    torch.testing.assert_close(listed, together[[3, 1]])
    moved = sensitivity(lambda x, target: x, IMAGES, seed=3)
    listed = sensitivity(lambda x, target: x, IMAGES[[3, 1]], seed=[6, 4])
    torch.testing.assert_close(listed, moved[[3, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (0, 3)}, "the grid's rows as a whole number from 1, got 0"),
        ({"share": 1.0}, r"expected share in \(0, 1\), got 1.0"),
        ({"samples": 0}, "samples as a whole number from 1"),
        ({"seed": [1, 2]}, r"from 0, or one for each of 4 images, got \[1, 2\]"),
        ({"target": None}, "say which one is meant"),
    ],
)
def test_masked_changes_says_what_it_cannot_use(changes, message):
    call = {"forward": linear, "images": IMAGES, "target": 0, "grid": GRID}
    with pytest.raises(InputError, match=f"masked_changes: .*{message}"):
        masked_changes(**{**call, **changes})
