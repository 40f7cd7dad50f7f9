"""The perturbation test: does the score fall when what the map marks is taken away?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_choice
from ..errors import InputError
from ..maps import upsample
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
from .fills import Fill, Removal
from .resize import as_planes, at_least_single

TENTHS = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True, eq=False)
class Curves:
    """One measure while more and more of each image is changed, in both orders.

    Args:
        fractions: (F,) float64, what is really removed (or inserted) after rounding to whole units.
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

    @property
    def reversed(self) -> Curves:
        """The curves of insertion into the fill of a deletion, or the other way round.

        What is shown first is what is removed last.
        """
        shown = 1 - self.fractions.flip(0)
        return Curves(shown, self.least_first.flip(-1), self.most_first.flip(-1))


@dataclass(frozen=True, eq=False)
class PerturbationTest:
    """The curves of one test, both from the same forward passes.

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
def perturbation_test(
    forward: Forward,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    fill: Fill,
    labels: Targets = None,
    mode: Literal["deletion", "insertion"] = "deletion",
    unit: Literal["pixel", "patch"] = "pixel",
    fractions: Sequence[float] = TENTHS,
    batch_size: int = 32,
    seed: Seed = 0,
) -> PerturbationTest:
    r"""Score images of which a growing part is removed (deletion) or shown (insertion).

    Units are ranked by the map and changed in that order. Most relevant first (the positive test)
    a good map's deletion falls early; least relevant first (the negative test) it falls late. Units
    of equal value come in random order, drawn anew for each image, so a constant map is a random
    one. Least first is the reverse of most first; therefore insertion with the same fill is
    deletion in the other order, read backwards.

    .. math:: x_f = x \odot (1 - R_f) + \text{fill} \odot R_f

    The perturbed images of all steps are stacked and scored `batch_size` at a time, without
    gradients: twenty forward passes per image for eleven fractions, since both orders begin and end
    alike.

    Args:
        forward: images (B, C, H, W) -> scores (B,) or (B, K).
        images: (B, C, H, W), preprocessed.
        maps: (B, 1, h, w) or (B, h, w), or of the images' shape, whose channels are added up.
        targets: column of the score curves, one for all or one per image; the map's target as a
            rule. None for the labels, or for the only column.
        fill: what takes the place of removed pixels: a tensor that can be broadcast to the images
            (:func:`mean_fill`, :func:`blur_fill`, ``clip.color((0, 0, 0))`` for black), or "road",
            :func:`road_fill` with Gaussian noise of standard deviation 0.01.
        labels: the classes of the top-1 curves, one for all or one per image: the true ones,
            whatever target the map is of. A tie for the highest score counts as wrong.
        mode: "deletion" or "insertion".
        unit: "pixel" (the map is resized to the image, bilinear) or "patch" (cells of the map's own
            grid).
        fractions: of the units, rising, from 0 to 1.
        batch_size: images per forward pass.
        seed: image i takes its ties and its noise from seed + i, so that a set may come in batches
            of any size; or the seed of each image.

    Returns:
        Curves (B, F) of the score, of top-1 where there are labels, and of the margin where there
        is more than one score; their areas.

    Raises:
        InputError: images and maps that do not belong together, NaN or infinity, more targets than
            scores, or an option that does not exist.

    Source: Samek et al. 2017 (arXiv:1509.06321); Petsiuk et al. 2018 (arXiv:1806.07421); Chefer et
    al. 2021 (arXiv:2103.15679); Rong et al. 2022 (arXiv:2202.00449).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2)
        >>> test = metrics.perturbation_test(
        ...     lambda x: x.sum((1, 2, 3)),
        ...     images,
        ...     images,
        ...     fill=metrics.mean_fill(images),
        ...     fractions=[0, 0.5, 1],
        ... )
        >>> test.score.most_first, test.score.least_first
        (tensor([[10.,  3.,  0.]]), tensor([[10.,  7.,  0.]]))
    """
    caller = "perturbation_test"
    check_images(caller, images)
    _check_options(mode, unit, fractions)
    check_count(caller, "batch_size", batch_size)
    seeds = seeds_of(caller, seed, len(images))
    units = as_planes(caller, maps, images)
    if unit == "pixel":
        units = upsample(units, (images.shape[-2], images.shape[-1]))
    classes = None if labels is None else checked_targets(caller, labels, images, name="labels")
    followed = labels if targets is None else targets
    chosen = checked_targets(caller, followed, images, name="targets")
    removal = Removal.of(images, units, fill, insertion=mode == "insertion", seeds=seeds)

    total = units.shape[-2] * units.shape[-1]
    counts = [round(fraction * total) for fraction in fractions]
    most = [(False, count) for count in counts]
    least = [(0 < count < total, count) for count in counts]  # both orders begin and end alike
    states = list(dict.fromkeys(most + least))
    largest = max(int(i.max()) for i in (chosen, classes) if i is not None)
    scored = partial(checked_scores, caller, forward, largest=None if followed is None else largest)
    tables = _tables(scored, removal, states, chosen, classes, batch_size)
    real = torch.tensor(counts, dtype=torch.float64, device=images.device) / total
    rows = [[states.index(state) for state in order] for order in (most, least)]
    curves = {
        name: Curves(real, *(table[:, row] for row in rows)) for name, table in tables.items()
    }
    return PerturbationTest(curves["score"], curves.get("top1"), curves.get("margin"))


def area_between(
    deletion: Curves, insertion: Curves | None = None, *, normalize: bool = False
) -> Tensor:
    r"""AID, the area between the insertion and the deletion curve, most relevant first.

    .. math:: AID = \int_0^1 I(f) - D(f) \, df

    High is good, and a random order gets 0 where both start from the same fill. FIxLIP normalises
    each curve by its ends, so that images with large and small scores count alike:

    .. math:: y' = \frac{y - y(\text{nothing left})}{y(\text{whole image}) - y(\text{nothing left})}

    and takes the mean of the n + 1 points of n units, which is n / (n + 1) of the area.

    Args:
        deletion: curves of :func:`perturbation_test`.
        insertion: those of ``mode="insertion"``, perhaps into another fill: insertion usually
            starts from a blurred image and deletion ends in one colour (RISE). None is
            ``deletion.reversed``, insertion into the same fill, as FIxLIP has it.
        normalize: as FIxLIP does.

    Returns:
        (B,) in units of the score, or normalised: NaN where nothing scores as high as the image.

    Raises:
        InputError: curves of other numbers of images, or without their ends, fractions 0 and 1.

    Source: Baniecki et al. 2025, FIxLIP (arXiv:2508.05430); Petsiuk et al. 2018
    (arXiv:1806.07421), whose insertion starts from a blur.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> images = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2)
        >>> fill = metrics.mean_fill(images)
        >>> fractions = [0, 0.25, 0.5, 0.75, 1]
        >>> score = lambda x: x.sum((1, 2, 3))
        >>> test = metrics.perturbation_test(score, images, images, fill=fill, fractions=fractions)
        >>> metrics.area_between(test.score, normalize=True)
        tensor([0.2500])
    """
    shown = deletion.reversed if insertion is None else insertion
    ends = [float(curves.fractions[end]) for curves in (deletion, shown) for end in (0, -1)]
    if ends != [0, 1, 0, 1] or len(shown.most_first) != len(deletion.most_first):
        raise InputError(
            "area_between: expected deletion and insertion of the same images over fractions from "
            f"0 to 1, got {len(deletion.most_first)} and {len(shown.most_first)} images from "
            f"{ends[0]} to {ends[1]} and from {ends[2]} to {ends[3]}."
        )
    inserted, deleted = shown.most_area, deletion.most_area
    if not normalize:
        return inserted - deleted
    return _scaled(inserted, shown.most_first.flip(-1)) - _scaled(deleted, deletion.most_first)


def _scaled(area: Tensor, curve: Tensor) -> Tensor:
    """An area (B,) in units of what is lost from the first to the last point of a curve (B, F)."""
    whole, nothing = curve[:, 0], curve[:, -1]
    return torch.where(whole > nothing, (area - nothing) / (whole - nothing), torch.nan)


def _tables(
    scored: Forward,
    removal: Removal,
    states: list[tuple[bool, int]],
    targets: Tensor,
    labels: Tensor | None,
    batch_size: int,
) -> dict[str, Tensor]:
    """The target's score (B, S) in every state; its margin, and whether labels come first.

    A state says whether the least relevant come first, and how many units are changed.
    """
    shape = (len(states), len(targets))
    backwards, counts = torch.tensor(states, device=targets.device).T
    pairs = torch.cartesian_prod(*map(torch.arange, shape)).to(targets.device)
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for step, image in (part.T for part in torch.split(pairs, batch_size)):
        perturbed = removal.perturbed(image, backwards[step].bool(), counts[step])
        scores = at_least_single(scored(perturbed))
        columns["score"].append(scores.gather(1, targets[image, None])[:, 0])
        if scores.shape[1] > 1:
            columns["margin"].append(_margin(scores, targets[image]))
        if labels is not None:
            first = _margin(scores, labels[image]) > 0
            columns["top1"].append(first.to(scores.dtype))
    return {name: torch.cat(parts).reshape(shape).T for name, parts in columns.items()}


def _margin(scores: Tensor, columns: Tensor) -> Tensor:
    """How far one score of each image is above all others, (N, K) and (N,) -> (N,)."""
    others = scores.scatter(1, columns[:, None], -torch.inf).amax(1)
    return scores.gather(1, columns[:, None])[:, 0] - others


def _check_options(mode: str, unit: str, fractions: Sequence[float]) -> None:
    check_choice("perturbation_test", mode, ("deletion", "insertion"), name="a mode")
    check_choice("perturbation_test", unit, ("pixel", "patch"), name="a unit")
    rising = all(low < high for low, high in pairwise(fractions))
    if len(fractions) < 2 or not rising or not 0 <= fractions[0] <= fractions[-1] <= 1:
        raise InputError(
            f"perturbation_test: expected two or more rising fractions from 0 to 1, got "
            f"{list(fractions)}."
        )
