"""Do maps predict what taking parts of the image away does to the score?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_interval
from ..maps import expand_to_input
from .checks import (
    Forward,
    Seed,
    Targets,
    check_count,
    check_images,
    checked_scores,
    checked_targets,
    seeds_of,
)
from .ranks import pearson, spearman
from .resize import as_planes, cell_indices


@dataclass(frozen=True, eq=False)
class MaskedChanges:
    """Random masks of images and what they change; made once, it serves the maps of any method.

    Args:
        masks: (B, S, H, W) bool, the pixels that each draw takes from an image.
        changes: (B, S) float64, the score of the image less that of the image without them.
    """

    masks: Tensor
    changes: Tensor

    def predicted(self, maps: Tensor) -> Tensor:
        """What maps predict: the sum of each over the pixels of each mask, (B, S) float64.

        Args:
            maps: (B, 1, h, w) or (B, h, w), whose cells are spread over their pixels.

        Raises:
            InputError: maps of other images, NaN or infinity.
        """
        images = self.masks[:, :1]
        planes = as_planes("MaskedChanges.predicted", maps, images).double()
        spread = expand_to_input(planes[:, None], images)[:, 0]  # (B, H, W)
        pairs = zip(self.masks, spread, strict=True)
        return torch.stack(
            [mask.flatten(1).double() @ heatmap.flatten() for mask, heatmap in pairs]
        )


@torch.no_grad()
def masked_changes(
    forward: Forward,
    images: Tensor,
    target: Targets = None,
    *,
    grid: tuple[int, int],
    share: float = 0.2,
    samples: int = 32,
    shifted: bool = True,
    fill: float | Tensor = 0.0,
    batch_size: int = 32,
    seed: Seed = 0,
) -> MaskedChanges:
    """Take random cells away from images, and see what that does to a score.

    Args:
        forward: images (B, C, H, W) -> scores (B,) or (B, K).
        images: (B, C, H, W), preprocessed.
        target: column of the scores, one for all or one an image; None with one column.
        grid: rows and columns of the cells, as ``clip.grid(height, width)`` gives them.
        share: the chance of each cell to be taken away, in (0, 1).
        samples: S, draws per image.
        shifted: move the grid by half a cell, with cells of half the size at the edges, so that no
            cell is one of the patches that a ViT cuts. Where they coincide, a method that itself
            takes patches away (occlusion) is asked for what it measured.
        fill: what takes their place; zero is the mean colour of normalised images.
        batch_size: images per forward pass.
        seed: image i draws from seed + i, so that a set may come in batches of any size; or the
            seed of each image.

    Raises:
        InputError: no such images, targets, grid or share.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = metrics.masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> brightness = torch.nn.functional.avg_pool2d(images.mean(1), 1) / 64
        >>> torch.allclose(found.predicted(brightness), found.changes)
        True
    """
    caller = "masked_changes"
    check_images(caller, images)
    check_count(caller, "the grid's rows", grid[0])
    check_count(caller, "the grid's columns", grid[1])
    check_interval(caller, "share", share, "(0, 1)")
    check_count(caller, "samples", samples)
    check_count(caller, "batch_size", batch_size)
    chosen = checked_targets(caller, target, images, name="target")
    largest = None if target is None else int(chosen.max())
    row, column = cell_indices(grid, images, shifted=shifted)
    size = (samples, grid[0] + shifted, grid[1] + shifted)
    masks, changes = [], []
    for image, own, start in zip(images, chosen, seeds_of(caller, seed, len(images)), strict=True):
        generator = torch.Generator().manual_seed(start)
        drawn = torch.rand(size, generator=generator).to(images.device) < share
        taken = drawn[:, row, column]  # (S, H, W)
        states = torch.cat([taken.new_zeros(1, *taken.shape[1:]), taken])
        filled = torch.as_tensor(fill).to(image)
        parts = (torch.where(p[:, None], filled, image) for p in torch.split(states, batch_size))
        scores = [checked_scores(caller, forward, part, largest)[:, own] for part in parts]
        score = torch.cat(scores).double()
        masks.append(taken)
        changes.append(score[0] - score[1:])
    return MaskedChanges(torch.stack(masks), torch.stack(changes))


def faithfulness_correlation(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""The correlation of what maps predict of random masks with what these change.

    .. math:: \rho = \mathrm{corr}_S \Bigl(\sum_{p \in S} m_p, \; y(x) - y(x \setminus S)\Bigr)

    Pearson's, so scale and offset of a map make no difference. A map that has one value everywhere
    predicts that larger masks change more, which is true: state what it reaches beside any figure.
    A map of random values gets 0 on average, one upside down the negative.

    Args:
        maps: (B, 1, h, w) or (B, h, w).
        changes: of the images, from :func:`masked_changes`.

    Returns:
        (B,) float64 from -1 to 1; NaN for a map of zeros, and where no mask changes anything.

    Raises:
        InputError: maps of other images, NaN or infinity.

    Source: Bhatt et al. 2020, *Evaluating and Aggregating Feature-based Model Explanations*
    (arXiv:2005.00631). There S has a fixed number of pixels; here every cell is drawn by itself.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = metrics.masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> metrics.faithfulness_correlation(images.mean(1), found)
        tensor([1.0000], dtype=torch.float64)
    """
    return pearson(changes.predicted(maps), changes.changes)


def p_faithfulness(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""FIxLIP's p-faithfulness: do maps rank random coalitions of cells as the score does?

    .. math:: \rho_p = \mathrm{Spearman}_S
              \Bigl(\sum_{c \in S} m_c, \; y(x_S) - y(x_\emptyset)\Bigr)

    where each cell c is in S with chance p and the others are removed. Ranks do not change if both
    sides are subtracted from those of the whole image, so what is taken away does as well as what
    stays. The authors draw 1,000 coalitions of a ViT's patches at p = .3, .5 and .7:
    ``masked_changes(..., share=1 - p, shifted=False, samples=1000)``. They mask the attention to
    the others, here they are filled.

    Args:
        maps: (B, 1, h, w) or (B, h, w).
        changes: of the images, from :func:`masked_changes`.

    Returns:
        (B,) float64 from -1 to 1; NaN where one side is constant.

    Raises:
        InputError: maps of other images, NaN or infinity.

    Source: Baniecki et al. 2025, FIxLIP (arXiv:2508.05430).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> score = lambda x: x.mean((1, 2, 3)).exp()
        >>> found = metrics.masked_changes(score, images, grid=(2, 2), share=0.5, shifted=False)
        >>> brightness = torch.nn.functional.avg_pool2d(images.mean(1), 4)
        >>> metrics.p_faithfulness(brightness, found).round(decimals=9)
        tensor([1.], dtype=torch.float64)
    """
    return spearman(changes.predicted(maps), changes.changes)


def infidelity_of(maps: Tensor, changes: MaskedChanges) -> Tensor:
    """:func:`captum_clip.metrics.infidelity` of maps (B, h, w) over masks that are there, (B,)."""
    predicted, true = changes.predicted(maps), changes.changes
    square = predicted.square().mean(1)
    factor = (predicted * true).mean(1) / torch.where(square > 0, square, 1)
    return (factor[:, None] * predicted - true).square().mean(1)
