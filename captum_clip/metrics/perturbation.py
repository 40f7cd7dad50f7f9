"""The perturbation test: does the score fall when what the map marks is removed?

Also what takes the place of removed pixels: one color, or a blurred copy.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import check_integer, check_interval, expect, expecting
from ..errors import public
from ..maps import to_float32, upsample
from . import inputs
from .inputs import Forward, Seed, Targets

TENTHS = tuple(tenth / 10 for tenth in range(11))


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
    inputs.check_images(images)
    rising = all(low < high for low, high in pairwise(fractions))
    fits = rising and len(fractions) >= 2 and 0 <= fractions[0] <= fractions[-1] <= 1
    expect(fits, "two or more rising fractions from 0 to 1", fractions)
    check_integer("a batch size", batch_size)
    planes = upsample(inputs.as_planes(maps, images), (images.shape[-2], images.shape[-1]))
    classes = None if labels is None else inputs.checked_targets(labels, images, name="labels")
    followed = labels if targets is None else targets
    chosen = inputs.checked_targets(followed, images, name="targets")
    columns = [chosen] if classes is None else [chosen, classes]
    largest = None if followed is None else max(int(index.max()) for index in columns)
    expected = f"fill as a tensor that can be broadcast to images {tuple(images.shape)}"
    with expecting(expected, fill, "metrics.mean_fill(images) is one"):
        filled = fill.to(images).expand_as(images)
    ranks = _ranks(planes, inputs.seeds_of(seed, len(images)))

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
        scores = to_float32(inputs.checked_scores(forward, perturbed, largest))
        measured["score"].append(scores.gather(1, chosen[index, None])[:, 0])
        if scores.shape[1] > 1:
            measured["margin"].append(_margin(scores, chosen[index]))
        if classes is not None:
            measured["top1"].append((_margin(scores, classes[index]) > 0).to(scores.dtype))

    real = torch.tensor(counts, dtype=torch.float64, device=images.device) / total
    places = [[states.index(state) for state in order] for order in (most, least)]
    curves = {}
    for name, parts in measured.items():
        table = torch.cat(parts).reshape(shape).T  # (B, S)
        curves[name] = Curves(real, *(table[:, place] for place in places))
    return PerturbationTest(curves["score"], curves.get("top1"), curves.get("margin"))


def _margin(scores: Tensor, columns: Tensor) -> Tensor:
    """How far one score of each image is above all others, (N, K) and (N,) -> (N,)."""
    others = scores.scatter(1, columns[:, None], -torch.inf).amax(1)
    return scores.gather(1, columns[:, None])[:, 0] - others


def _ranks(planes: Tensor, seeds: Sequence[int]) -> Tensor:
    """Ranks of pixels (B, H, W), 0 the most relevant; ties are in random order."""
    flat = torch.where(inputs.varies(planes)[:, None, None], planes, 0).flatten(1).cpu()
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
    inputs.check_images(images)
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

    inputs.check_images(images)
    check_interval("a standard deviation in pixels", deviation, "(0, inf)")
    planes = to_float32(images.detach()).cpu().numpy()
    options = {"sigma": deviation, "radius": max(1, round(3 * deviation)), "axes": (-2, -1)}
    return torch.from_numpy(gaussian_filter(planes, mode="nearest", **options)).to(images)
