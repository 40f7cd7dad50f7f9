"""The perturbation test: does the score fall when what the map marks is removed?

Also what takes the place of removed pixels: one color, or a blurred copy.
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
    """Maps of images (B, C, H, W) as planes (B, h, w), at least in single precision.

    Maps are (B, h, w) or (B, 1, h, w) on a grid that is no finer than the image. Or they have the
    images' shape, as Captum's input methods give them; then their channels are added up.
    """
    check_maps(maps)
    flat = maps[:, None] if maps.ndim == 3 else maps
    one_each = flat.ndim == 4 and len(flat) == len(images) and maps.device == images.device
    finer = maps.shape[-2] > images.shape[-2] or maps.shape[-1] > images.shape[-1]
    fits = one_each and not finer and (flat.shape[1] == 1 or flat.shape == images.shape)
    expected = "one map per image, (B, 1, h, w) or (B, h, w) and no finer than it, or of its shape"
    advice = f"the images are {describe(images)}, and of several targets pass one, maps[:, k]"
    expect(fits, expected, maps, advice)
    return to_float32(flat).sum(1)


def shifted_cells(grid: tuple[int, int], images: Tensor) -> tuple[Tensor, Tensor]:
    """The row (H, 1) and the column (W,) of the cell that each pixel of images (..., H, W) lies in.

    The grid is shifted by half a cell, so it has one row and one column more.

    Example:
        >>> shifted_cells((1, 2), torch.zeros(1, 4))
        (tensor([[0]]), tensor([0, 1, 1, 2]))
    """

    def owners(pixels: int, cells: int) -> Tensor:
        starts = 2 * cells * torch.arange(pixels, device=images.device)
        return (starts + pixels) // (2 * pixels)

    (rows, columns), (height, width) = grid, images.shape[-2:]
    return owners(height, rows)[:, None], owners(width, columns)


def seeds_of(seed: Any, count: int) -> list[int]:
    """The seed of each of `count` images: seed + i, or as they are listed."""
    if not isinstance(seed, list | tuple):
        check_integer("a seed", seed, least=0)
        return [seed + index for index in range(count)]
    fits = len(seed) == count and all(is_integer(value, least=0) for value in seed)
    expect(fits, f"a seed from 0 on, or one for each of {count} images", seed)
    return list(seed)


def checked_targets(targets: Targets, images: Tensor, *, name: str) -> Tensor:
    """The index (B,) of each image's target, on the images' device; None stands for 0."""
    expected = f"{name} as an index from 0 on, or one for each of {len(images)} images"
    with expecting(expected, targets):  # what is no tensor; or complex, without order
        index = torch.as_tensor(0 if targets is None else targets, device=images.device)
        whole = not index.is_floating_point() and index.dtype != torch.bool
        fits = whole and index.shape in ((), (len(images),)) and bool((index >= 0).all())
        expect(fits, expected, targets)
    return index.long().expand(len(images))


def checked_scores(forward: Forward, images: Tensor, largest: int | None) -> Tensor:
    """The scores (B, K) of a forward function that has a column for the largest target.

    Without a target it must have one column only.
    """
    scores = forward(images.clone())  # which may change them
    fits = isinstance(scores, Tensor) and scores.ndim in (1, 2) and len(scores) == len(images)
    expect(fits, f"a forward function that returns (B,) or (B, K) for {len(images)} images", scores)
    scores = scores.reshape(len(images), -1)
    count = scores.shape[1]
    if count != 1 if largest is None else largest >= count:
        advice = "say which by a target" if largest is None else f"there is none of index {largest}"
        raise InputError(f"the forward function returns {count} scores per image; {advice}.")
    return scores


@dataclass(frozen=True, eq=False)
class Curves:
    """One measure while more and more of each image is changed, in both orders.

    Args:
        fractions: (F,) float64, what is really removed after rounding to whole pixels.
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
        """(B,) the area of least first minus that of most first; for deletion high is good."""
        return self.least_area - self.most_area


@dataclass(frozen=True, eq=False)
class PerturbationTest:
    """The curves of one test, all from the same forward passes.

    Args:
        score: the score of the target, such as its cosine.
        top1: 1 where the label has the highest score of all, else 0; None without labels.
        margin: the score of the target less the highest of all others; None with one score. What
            any object adds to the score of any text drops out.
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
    r"""Score images of which a growing share of the pixels is removed (deletion).

    .. math:: x_f = x \odot (1 - R_f) + \text{fill} \odot R_f

    Pixels are ranked by the map, resized to the image (bilinear), and removed in that order. Most
    relevant first (the positive test) the score of a good map falls early; least relevant first
    (the negative test) it falls late. Pixels of equal value come in random order, drawn anew for
    each image, so a constant map is a random one. Insertion into the same fill is deletion in the
    other order, read backwards. All steps are scored `batch_size` at a time:
    twenty forward passes per image for eleven fractions, since both orders begin and end alike.

    Args:
        forward: images (B, C, H, W) -> scores (B,) or (B, K).
        images: (B, C, H, W), preprocessed.
        maps: (B, 1, h, w) or (B, h, w), or of the images' shape, whose channels are added up.
        targets: column of the score curves, one for all or one per image; the map's target as a
            rule. None for the labels, or for the only column.
        fill: what takes the place of removed pixels, a tensor that can be broadcast to the images:
            :func:`mean_fill`, :func:`blur_fill`, ``clip.color((0, 0, 0))`` for black.
        labels: the classes of the top-1 curves, one for all or one per image: the true ones,
            whatever target the map is of. A tie for the highest score counts as wrong.
        fractions: of the pixels, rising, from 0 to 1.
        batch_size: images per forward pass.
        seed: image i draws its ties from seed + i, so that a set may come in batches of any size;
            or the seed of each image.

    Returns:
        Curves (B, F) of the score, of top-1 where there are labels, and of the margin where there
        is more than one score; their areas.

    Raises:
        InputError: images and maps that do not belong together, NaN or infinity, more targets than
            scores, or an option that does not exist.

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
    rising = all(low < high for low, high in pairwise(fractions))
    fits = rising and len(fractions) >= 2 and 0 <= fractions[0] <= fractions[-1] <= 1
    expect(fits, "two or more rising fractions from 0 to 1", fractions)
    check_integer("a batch size", batch_size)
    planes = upsample(as_planes(maps, images), (images.shape[-2], images.shape[-1]))
    classes = None if labels is None else checked_targets(labels, images, name="labels")
    followed = labels if targets is None else targets
    chosen = checked_targets(followed, images, name="targets")
    columns = [chosen] if classes is None else [chosen, classes]
    largest = None if followed is None else max(int(index.max()) for index in columns)
    expected = f"fill as a tensor that can be broadcast to images {tuple(images.shape)}"
    with expecting(expected, fill, "metrics.mean_fill(images) is one"):
        filled = fill.to(images).expand_as(images)
    ranks = _pixel_ranks(planes, seeds_of(seed, len(images)))

    total = planes[0].numel()
    counts = [round(fraction * total) for fraction in fractions]
    most = [(False, count) for count in counts]
    least = [(0 < count < total, count) for count in counts]  # both orders begin and end alike
    states = list(dict.fromkeys(most + least))
    all_states = torch.tensor(states, device=images.device)
    shape = (len(states), len(images))
    pairs = torch.cartesian_prod(*map(torch.arange, shape)).to(images.device)
    measured: dict[str, list[Tensor]] = defaultdict(list)
    for step, index in (some.T for some in torch.split(pairs, batch_size)):
        backwards, changed = (column[:, None, None] for column in all_states[step].T)
        order = torch.where(backwards.bool(), total - 1 - ranks[index], ranks[index])
        perturbed = torch.where((order < changed)[:, None], filled[index], images[index])
        scores = to_float32(checked_scores(forward, perturbed, largest))
        measured["score"].append(scores.gather(1, chosen[index, None])[:, 0])
        if scores.shape[1] > 1:
            measured["margin"].append(_margin(scores, chosen[index]))
        if classes is not None:
            measured["top1"].append((_margin(scores, classes[index]) > 0).to(scores.dtype))

    real = torch.tensor(counts, dtype=torch.float64, device=images.device) / total
    columns_of = [[states.index(state) for state in order] for order in (most, least)]
    curves = {}
    for name, parts in measured.items():
        table = torch.cat(parts).reshape(shape).T  # (B, S)
        curves[name] = Curves(real, *(table[:, column] for column in columns_of))
    return PerturbationTest(curves["score"], curves.get("top1"), curves.get("margin"))


def _margin(scores: Tensor, columns: Tensor) -> Tensor:
    """How far one score of each image is above all others, (N, K) and (N,) -> (N,)."""
    others = scores.scatter(1, columns[:, None], -torch.inf).amax(1)
    return scores.gather(1, columns[:, None])[:, 0] - others


def _pixel_ranks(planes: Tensor, seeds: Sequence[int]) -> Tensor:
    """Ranks of pixels (B, H, W), 0 the most relevant; ties are in random order."""
    flat = torch.where(varies(planes)[:, None, None], planes, 0).flatten(1).cpu()
    ranks = torch.empty(flat.shape, dtype=torch.long, device="cpu")
    for index, (values, seed) in enumerate(zip(flat, seeds, strict=True)):
        # A stable sort of shuffled values: the seed decides which of equal pixels comes first, not
        # their place in the image or the device.
        shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
        order = values[shuffled].argsort(descending=True, stable=True)
        ranks[index, shuffled[order]] = torch.arange(len(values), device="cpu")
    return ranks.reshape(planes.shape).to(planes.device)


@public("mean_fill")
def mean_fill(images: Tensor) -> Tensor:
    """The mean color of the model's training images: zero, since images are normalized.

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
    """The images blurred by a Gaussian, edges repeated: the usual start of insertion.

    Args:
        images: (B, C, H, W), preprocessed.
        deviation: standard deviation of the Gaussian in pixels, above 0; it is cut off at three.

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
    options = {"sigma": deviation, "radius": max(1, round(3 * deviation)), "axes": (-2, -1)}
    return torch.from_numpy(gaussian_filter(planes, mode="nearest", **options)).to(images)
