"""Do maps put their mass on what changes the score, and predict random changes of it?

Throughout, `forward` takes images (B, C, H, W) to scores (B,) or (B, K), and `images` are
preprocessed. `target` is a column of the scores, the same for all or one per image (None with one
column). `batch_size` images go into a forward pass. Image i of a call draws from `seed` + i, so
that a set may come in batches of any size; a list has a seed for each image. `changes` are those of
the images, from :func:`masked_changes`; `masks` are bool, none empty or full. What does not belong
together, and NaN or infinity, raises an InputError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any, NamedTuple

import torch
from captum import metrics as captum_metrics
from torch import Tensor

from ..checks import check_integer, check_interval, describe, expect, expecting
from ..errors import public
from ..maps import check_maps, check_tensor, expand_to_input, pearson, to_float32
from . import perturbation
from .localization import check_bool, check_filled, resize_to_masks
from .map_statistics import area_of_ranks, spearman
from .perturbation import Forward, Seed, Targets

_MOST_OBJECTS = 16


@dataclass(frozen=True, eq=False)
class MaskedChanges:
    """Random masks of images and what they change; made once, it serves the maps of any method.

    Args:
        masks: (B, S, H, W) bool, the pixels that each draw removes from an image.
        changes: (B, S) float64, the score of the image less that of the image without them.
    """

    masks: Tensor
    changes: Tensor

    @public("MaskedChanges.predicted")
    def predicted(self, maps: Tensor) -> Tensor:
        """Changes that maps predict: the sum of each over the pixels of each mask, (B, S) float64.

        Maps are (B, 1, h, w) or (B, h, w), and their cells are spread over their pixels.
        """
        images = self.masks[:, :1]
        planes = perturbation.as_planes(maps, images).double()
        spread = expand_to_input(planes[:, None], images)[:, 0]  # (B, H, W)
        pairs = zip(self.masks, spread, strict=True)
        return torch.stack(
            [mask.flatten(1).double() @ heatmap.flatten() for mask, heatmap in pairs]
        )


@torch.no_grad()
@public("masked_changes")
def masked_changes(
    forward: Forward,
    images: Tensor,
    target: Targets = None,
    *,
    grid: tuple[int, int],
    share: float = 0.2,
    samples: int = 32,
    fill: float | Tensor = 0.0,
    batch_size: int = 32,
    seed: Seed = 0,
) -> MaskedChanges:
    """Remove random cells from images, and see what that does to a score.

    The grid is moved by half a cell, with cells of half the size at the edges, so that no cell
    coincides with a patch of a ViT. Where they coincide, a method that itself removes patches
    (occlusion) is tested on what it measured.

    Args:
        forward: images -> scores.
        images: (B, C, H, W).
        target: column of the scores.
        grid: rows and columns of the cells, as ``clip.grid(height, width)`` gives them.
        share: the chance of each cell to be removed, in (0, 1).
        samples: S, draws per image.
        fill: what takes their place; zero is the mean color of normalized images.
        batch_size: images per forward pass.
        seed: of the draws.

    Raises:
        InputError: no such images, targets, grid or share.

    Example:
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> torch.allclose(found.predicted(images.mean(1) / 64), found.changes)
        True
    """
    perturbation.check_pixels(images)
    counts = {"rows": grid[0], "columns": grid[1], "samples": samples, "a batch size": batch_size}
    for name, count in counts.items():
        check_integer(name, count)
    check_interval("share", share, "(0, 1)")
    chosen = perturbation.checked_targets(target, images, name="target")
    largest = None if target is None else int(chosen.max())
    row, column = perturbation.shifted_cells(grid, images)
    size = (samples, grid[0] + 1, grid[1] + 1)
    masks, changes = [], []
    expected = f"fill as a number or a tensor that can be broadcast to {tuple(images[:1].shape)}"
    with expecting(expected, fill):
        filled = torch.as_tensor(fill).to(images).expand_as(images[:1])
    seeds = perturbation.seeds_of(seed, len(images))
    for image, column_of_target, start in zip(images, chosen, seeds, strict=True):
        # On the CPU, whose draws are the same for every device.
        generator = torch.Generator().manual_seed(start)
        drawn = torch.rand(size, generator=generator).to(images.device) < share
        taken = drawn[:, row, column]  # (S, H, W)
        states = torch.cat([taken.new_zeros(1, *taken.shape[1:]), taken])
        parts = (torch.where(p[:, None], filled, image) for p in torch.split(states, batch_size))
        scores = [perturbation.checked_scores(forward, changed, largest) for changed in parts]
        score = torch.cat(scores)[:, column_of_target].double()
        masks.append(taken)
        changes.append(score[0] - score[1:])
    return MaskedChanges(torch.stack(masks), torch.stack(changes))


@public("faithfulness_correlation")
def faithfulness_correlation(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""The correlation of what maps predict of random masks with what these change.

    .. math:: \rho = \mathrm{corr}_S \Bigl(\sum_{p \in S} m_p, \; y(x) - y(x \setminus S)\Bigr)

    Pearson's, so scale and offset of a map make no difference. A map that has one value everywhere
    predicts that larger masks change more, which is true: report what it reaches next to any
    figure. A map of random values gets 0 on average, one upside down the negative.

    Returns:
        (B,) float64 from -1 to 1; NaN for a map of zeros, and where no mask changes anything.

    Source: Bhatt et al. 2020, *Evaluating and Aggregating Feature-based Model Explanations*
    (arXiv:2005.00631). There S has a fixed number of pixels; here every cell is drawn by itself.

    Example:
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> faithfulness_correlation(images.mean(1), found)
        tensor([1.0000], dtype=torch.float64)
    """
    return pearson(changes.predicted(maps), changes.changes)


@public("infidelity")
def infidelity(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""Infidelity of maps: how far they are from predicting what random masks change.

    .. math:: \mathrm{INFD} = E_S\bigl[(\beta \, I_S \cdot m - (y(x) - y(x \setminus S)))^2\bigr],
              \quad \beta = \frac{E[I_S \cdot m \, (y(x) - y(x \setminus S))]}{E[(I_S \cdot m)^2]}

    with :math:`I_S` 1 on the pixels of the mask: the figure of `captum.metrics.infidelity`, which
    takes perturbations of other kinds (with :func:`captum_clip.maps.expand_to_input`), with
    ``normalize=True``. The scale of the map makes no difference, nor does its sign as a whole,
    since beta may be negative. Zero is perfect, and a map of zeros gets the mean square of the
    score's change, the unit that a figure is to be read in. There is no intercept. A map with one
    value everywhere says how much an average cell counts, which explains most of the square. So it
    may beat maps that tell cells apart. :func:`faithfulness_correlation` has an offset.

    Returns:
        (B,) float64.

    Source: Yeh et al. 2019 (arXiv:1901.09392); Captum.

    Example:
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> infidelity(images.mean(1), found) < 1e-12
        tensor([True, True])
    """
    predicted, true = changes.predicted(maps), changes.changes
    square = predicted.square().mean(1)
    factor = (predicted * true).mean(1) / torch.where(square > 0, square, 1)
    return (factor[:, None] * predicted - true).square().mean(1)


@torch.inference_mode(False)
@public("sensitivity")
def sensitivity(
    attribute: Callable[..., Any],
    images: Tensor,
    target: Targets = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    batch_size: int = 32,
    seed: Seed = 0,
    **options: Any,
) -> Tensor:
    r"""The largest relative change of maps under small noise: Captum's `sensitivity_max`.

    .. math:: \mathrm{SENS} = \max_{|\delta|_\infty \le r} \frac{|m(x + \delta) - m(x)|}{|m(x)|}

    over uniform draws. A map of zeros is divided by 1.

    Args:
        attribute: images, ``target=`` and the options -> maps (B, ...): the `attribute` of any
            method of Captum or of this package. It is called with a tensor, with gradients on.
        images: (B, C, H, W).
        target: None where the method needs none.
        radius: r, in units of the normalized images.
        samples: draws per image.
        batch_size: images per call of `attribute`.
        seed: of the draws.
        **options: passed on to `attribute` as they are.

    Returns:
        (B,), 0 for a map that does not change; NaN where a map under noise holds NaN.

    Source: Yeh et al. 2019 (arXiv:1901.09392); Captum.

    Example:
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> sensitivity(lambda pixels, target: torch.ones(len(pixels), 1, 2, 2), images)
        tensor([0., 0.])
    """
    perturbation.check_pixels(images)
    check_interval("a radius", radius, "(0, inf)")
    check_integer("samples", samples)
    check_integer("a batch size", batch_size)
    seeds = perturbation.seeds_of(seed, len(images))
    chosen = None if target is None else perturbation.checked_targets(target, images, name="target")

    def explain(pixels: Tensor | tuple[Tensor], target: Any) -> Tensor | tuple[Tensor]:
        # Captum gives a tuple first and a tensor afterwards, and turns gradients off.
        leaf = (pixels[0] if isinstance(pixels, tuple) else pixels).detach().clone()
        with torch.enable_grad():
            result = attribute(leaf.requires_grad_(), target=target, **options)
        maps = to_float32(result.detach()).contiguous()
        return (maps,) if isinstance(pixels, tuple) else maps

    def noisy(generators: Sequence[torch.Generator], pixels: Tensor) -> Tensor:
        repeated = len(pixels) // len(generators)  # Captum repeats each image
        draws = [generators[index // repeated] for index in range(len(pixels))]
        noise = torch.stack([torch.rand(pixels.shape[1:], generator=draw) for draw in draws])
        return pixels + radius * (2 * noise - 1).to(pixels)

    values, together = [], max(1, batch_size // samples)
    for indices in torch.split(torch.arange(len(images), device="cpu"), together):
        generators = [torch.Generator().manual_seed(seeds[number]) for number in indices.tolist()]
        largest = captum_metrics.sensitivity_max(
            explain,
            images[indices],
            perturb_func=partial(noisy, generators),
            n_perturb_samples=samples,
            max_examples_per_batch=min(batch_size, len(indices) * samples),
            target=None if chosen is None else chosen[indices],
        )
        values.append(largest)
    return torch.cat(values)


@public("shapley_effects")
def shapley_effects(scores: Tensor) -> Tensor:
    r"""The exact Shapley effect of each of n objects on a score.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{|S|! \, (n - |S| - 1)!}{n!}
                       \bigl(y(S \cup i) - y(S)\bigr)

    where y(S) is the score of the scene that holds the objects S and no other. The effects add up
    to y(all) - y(none).

    Args:
        scores: (..., 2^n), the score of every subset of the objects. Object i is in the subset of
            index s exactly where bit i of s is set: index 0 is the empty scene, 2^n - 1 the whole
            one. Leading dimensions are scenes, targets or anything else.

    Returns:
        (..., n), at least in single precision.

    Raises:
        InputError: scores that are no finite floating-point tensor of 2, 4, 8, ... subsets.

    Source: Shapley 1953.

    Example:
        >>> horse, dog, both = 0.3, -0.1, 0.2
        >>> shapley_effects(torch.tensor([0.0, horse, dog, both]))
        tensor([ 0.3000, -0.1000])
    """
    check_tensor("scores", scores, "(..., 2^n)")
    objects = scores.shape[-1].bit_length() - 1
    fits = scores.shape[-1] == 2**objects and 1 <= objects <= _MOST_OBJECTS
    expect(fits, f"the scores of all 2^n subsets of 1 to {_MOST_OBJECTS} objects", scores)
    sides = [2] * objects  # the highest bit comes first
    cube = scores.double().reshape(*scores.shape[:-1], *sides)
    gains = [cube.diff(dim=-1 - thing).flatten(-objects) for thing in range(objects)]
    return mean_over_orders(torch.stack(gains, -2)).to(to_float32(scores).dtype)


def mean_over_orders(gains: Tensor) -> Tensor:
    """The mean over all orders of players of what a player adds to those before it.

    Gains (..., 2^k) are those to every subset of the k others.
    """
    others = gains.shape[-1].bit_length() - 1
    orders = [(others + 1) * comb(others, subset.bit_count()) for subset in range(2**others)]
    return (gains / torch.tensor(orders).to(gains)).sum(-1)


@public("object_mass")
def object_mass(maps: Tensor, masks: Tensor) -> Tensor:
    r"""The signed mass of each map inside each object.

    .. math:: \mu_i = \frac{hw}{HW} \sum_{p \in M_i} m_p

    Maps are resized to their masks (bilinear); the factor makes it the mass of the map's own cells,
    whatever the size of the image.

    Args:
        maps: (..., h, w), signed or not.
        masks: (..., n, H, W), the objects of each map; or (n, H, W), the objects of all maps.

    Returns:
        (..., n)

    Example:
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> object_mass(torch.tensor([[2.0, -1.0]]), masks)
        tensor([ 2., -1.])
    """
    check_maps(maps)
    check_bool("masks", masks)
    fits = masks.ndim >= 3 and masks.shape[:-3] in (maps.shape[:-2], torch.Size())
    expected = f"masks (..., n, H, W), the objects of each map of {describe(maps)}, or (n, H, W)"
    expect(fits, expected, masks)
    check_filled(masks)
    heatmap = resize_to_masks(maps, masks)
    share = maps.shape[-2] * maps.shape[-1] / (masks.shape[-2] * masks.shape[-1])
    planes = masks.flatten(-2).to(heatmap.dtype)
    return torch.einsum("...p,...np->...n", heatmap.flatten(-2), planes) * share


class Agreement(NamedTuple):
    """How far the mass of maps agrees with the effects of objects, over pairs of map and object.

    Args:
        spearman: rank correlation of mass and effect; NaN where either is constant, or for less
            than two pairs.
        balanced_accuracy: mean of the shares of right signs among the positive and among the
            negative effects, where a mass of zero has no sign and counts one half. A constant
            answer gets .5, whatever the base rate is; NaN where either kind is missing.
        auc: the chance that the mass of a positive effect is above that of a negative one, equal
            ones counting one half; .5 where mass and sign have nothing to do with each other.
    """

    spearman: float
    balanced_accuracy: float
    auc: float


@public("effect_agreement")
def effect_agreement(mass: Tensor, effects: Tensor) -> Agreement:
    """How far masses agree with effects, pooled over all pairs of map and object.

    Masks measure whether a map looks right; this measures whether it is. Maps enter on their own
    raw scale. Over the pairs where the text names another object the figures tell whether negative
    evidence is right.

    Args:
        mass: any shape, as :func:`object_mass` gives it.
        effects: the same shape, as :func:`shapley_effects` gives them, on any device.

    Example:
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> mass = object_mass(torch.tensor([[2.0, -1.0]]), masks)
        >>> effect_agreement(mass, torch.tensor([0.3, -0.1]))
        Agreement(spearman=1.0, balanced_accuracy=1.0, auc=1.0)
    """
    check_tensor("mass", mass, "(...)")
    check_tensor("effects", effects, "(...)")
    expect(mass.shape == effects.shape, f"one effect per mass of {describe(mass)}", effects)
    pairs = mass.double().flatten(), effects.to(mass.device).double().flatten()
    right, rises, falls = right_signs(*pairs)
    balanced = (right[rises].mean() + right[falls].mean()) / 2
    above = area_of_ranks(pairs[0][rises | falls], rises[rises | falls])
    return Agreement(*(float(figure) for figure in (spearman(*pairs), balanced, above)))


def right_signs(mass: Tensor, effects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether masses have the signs of their effects, half where one has none; effects > 0, < 0."""
    return (1 + mass.sign() * effects.sign()) / 2, effects > 0, effects < 0
