"""The perturbation test: does the score fall when the pixels that a map marks are removed?

The fills that take the place of removed pixels, one color or a blurred copy, are here as well.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_interval, describe, expect, expecting, is_integer
from ..errors import InputError, public
from ..maps import check_maps, check_tensor, to_float32, upsample
from .localization import varies

Forward = Callable[[Tensor], Tensor]
Targets = int | Sequence[int] | Tensor | None
Seed = int | Sequence[int]

TENTHS = tuple(tenth / 10 for tenth in range(11))


def check_pixels(images: Any) -> None:
    """Raise InputError unless images are a finite floating-point tensor (B, C, H, W)."""
    check_tensor("images", images, "(B, C, H, W)", "clip.preprocess(...) makes them")


def as_planes(maps: Tensor, images: Tensor) -> Tensor:
    """Return maps of images (B, C, H, W) as planes (B, h, w), at least in single precision.

    Maps are (B, h, w) or (B, 1, h, w) on a grid that is no finer than the image. Or they have the
    images' shape, as Captum's input methods give them; then their channels are added up.
    """
    check_maps(maps)
    with_channels = maps[:, None] if maps.ndim == 3 else maps
    is_one_per_image = with_channels.ndim == 4 and len(with_channels) == len(images)
    is_same_device = maps.device == images.device
    is_finer = maps.shape[-2] > images.shape[-2] or maps.shape[-1] > images.shape[-1]
    fits = is_one_per_image and is_same_device and not is_finer
    if fits:
        fits = with_channels.shape[1] == 1 or with_channels.shape == images.shape
    expected = "one map per image, (B, 1, h, w) or (B, h, w) and no finer than it, or of its shape"
    advice = f"the images are {describe(images)}, and of several targets pass one, maps[:, k]"
    expect(fits, expected, maps, advice)
    return to_float32(with_channels).sum(1)


def shifted_cells(grid: tuple[int, int], images: Tensor) -> tuple[Tensor, Tensor]:
    """Find the row (H, 1) and the column (W,) of the cell of each pixel of images (..., H, W).

    The grid is shifted by half a cell, so it has one row and one column more.

    Example:
        >>> shifted_cells((1, 2), torch.zeros(1, 4))
        (tensor([[0]]), tensor([0, 1, 1, 2]))
    """

    def cells_of_pixels(pixels: int, cells: int) -> Tensor:
        # This is floor(cells * pixel / pixels + 1/2) in whole numbers, which do not round.
        numerators = 2 * cells * torch.arange(pixels, device=images.device)
        return (numerators + pixels) // (2 * pixels)

    rows, columns = grid
    height, width = images.shape[-2:]
    return cells_of_pixels(height, rows)[:, None], cells_of_pixels(width, columns)


def seeds_of(seed: Any, count: int) -> list[int]:
    """Return the seed of each of `count` images: seed + i, or the seeds of a list."""
    if not isinstance(seed, list | tuple):
        check_integer("a seed", seed, least=0)
        return [seed + index for index in range(count)]
    are_seeds = all(is_integer(value, least=0) for value in seed)
    fits = are_seeds and len(seed) == count
    expect(fits, f"a seed from 0 on, or one for each of {count} images", seed)
    return list(seed)


def checked_targets(targets: Targets, images: Tensor, *, name: str) -> Tensor:
    """Return the index (B,) of each image's target, on the images' device; None stands for 0."""
    if targets is None:
        targets = 0
    expected = f"{name} as an index from 0 on, or one for each of {len(images)} images"
    # Torch has errors of its own for values that make no tensor, and for complex numbers.
    with expecting(expected, targets):
        index = torch.as_tensor(targets, device=images.device)
        is_whole = not index.is_floating_point() and index.dtype != torch.bool
        has_shape = index.shape in ((), (len(images),))
        expect(is_whole and has_shape and bool((index >= 0).all()), expected, targets)
    return index.long().expand(len(images))


def checked_scores(forward: Forward, images: Tensor, last_column: int | None) -> Tensor:
    """Return the scores (B, K) of a forward function, which must have the last column asked for.

    Without a target, None, they must have one column only.
    """
    # A forward function may change its images in place, so it gets a copy.
    scores = forward(images.clone())
    fits = isinstance(scores, Tensor) and scores.ndim in (1, 2) and len(scores) == len(images)
    expect(fits, f"a forward function that returns (B,) or (B, K) for {len(images)} images", scores)
    scores = scores.reshape(len(images), -1)
    count = scores.shape[1]
    if last_column is None:
        has_columns = count == 1
        advice = "say which by a target"
    else:
        has_columns = last_column < count
        advice = f"there is none of index {last_column}"
    if not has_columns:
        raise InputError(f"the forward function returns {count} scores per image; {advice}.")
    return scores


@dataclass(frozen=True, eq=False)
class Curves:
    """One measure while more and more of each image is changed, in both orders.

    Args:
        fractions: (F,) float64, the shares that are removed after rounding to whole pixels.
        most_first: (B, F), the most relevant first.
        least_first: (B, F), the least relevant first.
    """

    fractions: Tensor
    most_first: Tensor
    least_first: Tensor

    @property
    def most_area(self) -> Tensor:
        """(B,) the area under `most_first` by trapezoid."""
        return torch.trapezoid(self.most_first, self.fractions.to(self.most_first))

    @property
    def least_area(self) -> Tensor:
        """(B,) the area under `least_first` by trapezoid."""
        return torch.trapezoid(self.least_first, self.fractions.to(self.least_first))

    @property
    def gap(self) -> Tensor:
        """(B,) `least_area` minus `most_area`; in a deletion test high is good."""
        return self.least_area - self.most_area


@dataclass(frozen=True, eq=False)
class PerturbationTest:
    """The curves of one test, all from the same forward passes.

    Args:
        score: the score of the target, such as its cosine.
        top1: 1 where the label has the highest score of all, else 0; None without labels.
        margin: the score of the target minus the highest of all others; None with one score. A
            contribution that is the same for all texts cancels.
    """

    score: Curves
    top1: Curves | None
    margin: Curves | None


@torch.no_grad()
@public("perturbation_test")
def perturbation_test(
    forward: Forward,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    fill: Tensor,
    labels: Targets = None,
    fractions: Sequence[float] = TENTHS,
    batch_size: int = 32,
    seed: Seed = 0,
) -> PerturbationTest:
    r"""Score images while a growing share of their pixels is removed (deletion).

    .. math:: x_f = x \odot (1 - R_f) + \text{fill} \odot R_f

    Pixels are ranked by the map, resized to the image (bilinear), and removed in that order. With
    the most relevant first (the positive test) the score of a good map falls early; with the least
    relevant first (the negative test) it falls late. Pixels of equal value come in random order,
    drawn anew for each image, so a constant map is a random one. Insertion into the same fill is
    deletion in the other order, read backwards. All steps are scored `batch_size` at a time:
    twenty forward passes per image for eleven fractions, since both orders begin and end alike.

    Args:
        forward: images (B, C, H, W) -> scores (B,) or (B, K).
        images: (B, C, H, W), preprocessed.
        maps: (B, 1, h, w) or (B, h, w), or of the images' shape, whose channels are added up.
        targets: column of the score curves, one for all or one per image; usually the target of
            the map. None takes the labels, or the only column.
        fill: the values of removed pixels, a tensor that can be broadcast to the images:
            :func:`mean_fill`, :func:`blur_fill`, ``clip.color((0, 0, 0))`` for black.
        labels: the classes of the top-1 curves, one for all or one per image: the true classes,
            whatever the target of the map. A tie for the highest score counts as wrong.
        fractions: shares of the pixels to remove, rising, from 0 to 1.
        batch_size: images per forward pass.
        seed: image i draws its ties from seed + i, so that a set may come in batches of any size;
            or the seed of each image.

    Returns:
        Curves (B, F) of the score, of top-1 where there are labels, and of the margin where there
        is more than one score; their areas.

    Raises:
        InputError: images and maps that do not belong together, NaN or infinity, a target without
            a score, or an option out of range.

    Source: Samek et al. 2017 (arXiv:1509.06321); Petsiuk et al. 2018 (arXiv:1806.07421); Chefer et
    al. 2021 (arXiv:2103.15679).

    Example:
        >>> images = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2)
        >>> test = perturbation_test(
        ...     lambda x: x.sum((1, 2, 3)),
        ...     images,
        ...     images,
        ...     fill=mean_fill(images),
        ...     fractions=[0, 0.5, 1],
        ... )
        >>> test.score.most_first, test.score.least_first
        (tensor([[10.,  3.,  0.]]), tensor([[10.,  7.,  0.]]))
    """
    check_pixels(images)
    is_rising = all(low < high for low, high in pairwise(fractions))
    fits = is_rising and len(fractions) >= 2 and 0 <= fractions[0] <= fractions[-1] <= 1
    expect(fits, "two or more rising fractions from 0 to 1", fractions)
    check_integer("a batch size", batch_size)
    planes = upsample(as_planes(maps, images), (images.shape[-2], images.shape[-1]))
    if targets is None:
        targets = labels
    class_columns = None
    if labels is not None:
        class_columns = checked_targets(labels, images, name="labels")
    target_columns = checked_targets(targets, images, name="targets")
    last_column = None
    if targets is not None:
        last_column = int(target_columns.max())
    if last_column is not None and class_columns is not None:
        last_column = max(last_column, int(class_columns.max()))
    expected = f"fill as a tensor that can be broadcast to images {tuple(images.shape)}"
    with expecting(expected, fill, "metrics.mean_fill(images) is one"):
        fill_pixels = fill.to(images).expand_as(images)
    ranks = _pixel_ranks(planes, seeds_of(seed, len(images)))

    # A step is an order (whether the least relevant pixels come first) and a count of pixels to
    # remove. Both orders begin and end alike, so they share their first and their last step.
    pixel_count = planes[0].numel()
    counts = [round(fraction * pixel_count) for fraction in fractions]
    most_steps = [(False, count) for count in counts]
    least_steps = [(0 < count < pixel_count, count) for count in counts]
    steps = list(dict.fromkeys(most_steps + least_steps))
    step_table = torch.tensor(steps, device=images.device)  # (S, 2)

    step_indices = torch.arange(len(steps))
    image_indices = torch.arange(len(images))
    pairs = torch.cartesian_prod(step_indices, image_indices).to(images.device)  # (S * B, 2)
    measured: dict[str, list[Tensor]] = defaultdict(list)
    for batch in torch.split(pairs, batch_size):
        step, index = batch.T
        steps_of_batch = step_table[step]  # (N, 2)
        least_first = steps_of_batch[:, 0, None, None].bool()
        removed_count = steps_of_batch[:, 1, None, None]
        most_ranks = ranks[index]  # (N, H, W)
        removal_ranks = torch.where(least_first, pixel_count - 1 - most_ranks, most_ranks)
        is_removed = (removal_ranks < removed_count)[:, None]
        perturbed = torch.where(is_removed, fill_pixels[index], images[index])
        scores = to_float32(checked_scores(forward, perturbed, last_column))
        targets_of_batch = target_columns[index]
        measured["score"].append(scores.gather(1, targets_of_batch[:, None])[:, 0])
        if scores.shape[1] > 1:
            measured["margin"].append(_margin(scores, targets_of_batch))
        if class_columns is not None:
            is_top = _margin(scores, class_columns[index]) > 0
            measured["top1"].append(is_top.to(scores.dtype))

    removed_shares = torch.tensor(counts, dtype=torch.float64, device=images.device) / pixel_count
    most_columns = [steps.index(step) for step in most_steps]
    least_columns = [steps.index(step) for step in least_steps]
    curves = {}
    for name, batches in measured.items():
        table = torch.cat(batches).reshape(len(steps), len(images)).T  # (B, S)
        curves[name] = Curves(removed_shares, table[:, most_columns], table[:, least_columns])
    return PerturbationTest(curves["score"], curves.get("top1"), curves.get("margin"))


def _margin(scores: Tensor, columns: Tensor) -> Tensor:
    """Return how far one score of each image is above all others, (N, K) and (N,) -> (N,)."""
    others = scores.scatter(1, columns[:, None], -torch.inf).amax(1)
    return scores.gather(1, columns[:, None])[:, 0] - others


def _pixel_ranks(planes: Tensor, seeds: Sequence[int]) -> Tensor:
    """Rank pixels, (B, H, W), where 0 is the most relevant; ties are in random order."""
    # A map that differs from a constant by rounding alone is made constant: all its pixels tie.
    flat = torch.where(varies(planes)[:, None, None], planes, 0).flatten(1).cpu()
    ranks = torch.empty(flat.shape, dtype=torch.long, device="cpu")
    for index, (values, seed) in enumerate(zip(flat, seeds, strict=True)):
        # The shuffled values are sorted stably on the CPU, so that the seed decides which of equal
        # pixels comes first, and neither their place in the image nor the device does.
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(values), generator=generator)
        order = values[shuffled].argsort(descending=True, stable=True)
        ranks[index, shuffled[order]] = torch.arange(len(values), device="cpu")
    return ranks.reshape(planes.shape).to(planes.device)


@public("mean_fill")
def mean_fill(images: Tensor) -> Tensor:
    """Return the mean color of the model's training images: zero, since images are normalized.

    Returns:
        Zeros (1, C, 1, 1) for `fill`; black is ``clip.color((0, 0, 0))``.

    Example:
        >>> mean_fill(torch.ones(2, 3, 8, 8)).shape
        torch.Size([1, 3, 1, 1])
    """
    check_pixels(images)
    return images.new_zeros(1, images.shape[1], 1, 1)


@public("blur_fill")
def blur_fill(images: Tensor, *, deviation: float = 10.0) -> Tensor:
    """Blur images by a Gaussian, with repeated edges: the usual start of insertion.

    Args:
        images: (B, C, H, W), preprocessed.
        deviation: standard deviation of the Gaussian in pixels, above 0. The Gaussian is cut off
            at three of them.

    Returns:
        (B, C, H, W), same type and device.

    Example:
        >>> blur_fill(torch.ones(1, 3, 8, 8), deviation=2.0).shape
        torch.Size([1, 3, 8, 8])
    """
    from scipy.ndimage import gaussian_filter

    check_pixels(images)
    check_interval("a standard deviation in pixels", deviation, "(0, inf)")
    planes = to_float32(images.detach()).cpu().numpy()
    radius = max(1, round(3 * deviation))
    blurred = gaussian_filter(planes, deviation, mode="nearest", radius=radius, axes=(-2, -1))
    return torch.from_numpy(blurred).to(images)
