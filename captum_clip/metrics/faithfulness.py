"""Do maps put their mass on what changes the score, and predict random changes of it?

Throughout, `forward` takes images (B, C, H, W) to scores (B,) or (B, K), and `images` are
preprocessed. `target` is a column of the scores, the same for all or one per image (None with one
column). `batch_size` images go into a forward pass. Image i of a call draws from `seed` + i, so
that a set may come in batches of any size; a list has a seed for each image. `changes` are made
from the same images by :func:`masked_changes`; `masks` are bool, none empty or full. Arguments that
do not belong together, and NaN or infinity, raise an InputError.
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
    """Random masks of images and how they change a score; they serve the maps of any method.

    Args:
        masks: (B, S, H, W) bool, the pixels that each draw removes from an image.
        changes: (B, S) float64, the score of the image minus its score without those pixels.
    """

    masks: Tensor
    changes: Tensor

    @public("MaskedChanges.predicted")
    def predicted(self, maps: Tensor) -> Tensor:
        """Predict the changes: the sum of each map over the pixels of each mask, (B, S) float64.

        Maps are (B, 1, h, w) or (B, h, w); the value of a cell is spread evenly over its pixels.
        """
        # A mask stands for its image, of which only the shape is needed.
        image_shaped = self.masks[:, :1]
        planes = perturbation.as_planes(maps, image_shaped).double()
        spread = expand_to_input(planes[:, None], image_shaped)[:, 0]  # (B, H, W)
        sums = []
        # One image at a time, since the masks of all images in float64 could fill the memory.
        for masks, heatmap in zip(self.masks, spread, strict=True):
            sums.append(masks.flatten(1).double() @ heatmap.flatten())
        return torch.stack(sums)


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
    """Remove random cells from images and measure how a score changes.

    The grid is moved by half a cell, with cells of half the size at the edges, so that no cell
    coincides with a patch of a ViT. If they coincided, a method that itself removes patches
    (occlusion) would be tested on its own measurements.

    Args:
        forward: images -> scores.
        images: (B, C, H, W).
        target: column of the scores.
        grid: rows and columns of the cells, as ``clip.grid(height, width)`` gives them.
        share: the probability that a cell is removed, in (0, 1).
        samples: S, draws per image.
        fill: the value of removed pixels; zero is the mean color of normalized images.
        batch_size: images per forward pass.
        seed: seed of the draws.

    Raises:
        InputError: images, targets, a grid or a share other than described above.

    Example:
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> changes = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> torch.allclose(changes.predicted(images.mean(1) / 64), changes.changes)
        True
    """
    perturbation.check_pixels(images)
    counts = {"rows": grid[0], "columns": grid[1], "samples": samples, "a batch size": batch_size}
    for name, count in counts.items():
        check_integer(name, count)
    check_interval("share", share, "(0, 1)")
    target_columns = perturbation.checked_targets(target, images, name="target")
    last_column = None if target is None else int(target_columns.max())
    cell_row, cell_column = perturbation.shifted_cells(grid, images)
    expected = f"fill as a number or a tensor that can be broadcast to {tuple(images[:1].shape)}"
    with expecting(expected, fill):
        fill_pixels = torch.as_tensor(fill).to(images).expand_as(images[:1])
    seeds = perturbation.seeds_of(seed, len(images))
    masks = []
    changes = []
    for image, target_column, image_seed in zip(images, target_columns, seeds, strict=True):
        # The draws are made on the CPU, so that they are the same for every device.
        generator = torch.Generator().manual_seed(image_seed)
        draws = torch.rand((samples, grid[0] + 1, grid[1] + 1), generator=generator)
        removed_cells = draws.to(images.device) < share
        removed_pixels = removed_cells[:, cell_row, cell_column]  # (S, H, W)
        # The first mask removes nothing, so the first score is that of the image itself.
        nothing_removed = removed_pixels.new_zeros(1, *removed_pixels.shape[1:])
        scores = []
        for batch in torch.split(torch.cat([nothing_removed, removed_pixels]), batch_size):
            masked_images = torch.where(batch[:, None], fill_pixels, image)
            scores.append(perturbation.checked_scores(forward, masked_images, last_column))
        target_scores = torch.cat(scores)[:, target_column].double()
        masks.append(removed_pixels)
        changes.append(target_scores[0] - target_scores[1:])
    return MaskedChanges(torch.stack(masks), torch.stack(changes))


@public("faithfulness_correlation")
def faithfulness_correlation(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""Correlate the changes that maps predict for random masks with the measured ones.

    .. math:: \rho = \mathrm{corr}_S \Bigl(\sum_{p \in S} m_p, \; y(x) - y(x \setminus S)\Bigr)

    It is Pearson's correlation, so the scale and the offset of a map make no difference. A map with
    one value everywhere predicts that larger masks change more, which is true: report its figure
    next to any other. A map of random values gets 0 on average; a negated map gets the negative.

    Returns:
        (B,) float64 from -1 to 1; NaN for a map of zeros, and where no mask changes anything.

    Source: Bhatt et al. 2020, *Evaluating and Aggregating Feature-based Model Explanations*
    (arXiv:2005.00631). There S has a fixed number of pixels; here every cell is drawn by itself.

    Example:
        >>> images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> changes = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> faithfulness_correlation(images.mean(1), changes)
        tensor([1.0000], dtype=torch.float64)
    """
    return pearson(changes.predicted(maps), changes.changes)


@public("infidelity")
def infidelity(maps: Tensor, changes: MaskedChanges) -> Tensor:
    r"""Measure the squared error of the changes that maps predict for random masks (infidelity).

    .. math:: \mathrm{INFD} = E_S\bigl[(\beta \, I_S \cdot m - (y(x) - y(x \setminus S)))^2\bigr],
              \quad \beta = \frac{E[I_S \cdot m \, (y(x) - y(x \setminus S))]}{E[(I_S \cdot m)^2]}

    where :math:`I_S` is 1 on the pixels of the mask. This is the figure of
    `captum.metrics.infidelity` with ``normalize=True``; use that function for perturbations of
    other kinds (with :func:`captum_clip.maps.expand_to_input`). The scale of the map makes no
    difference, nor does its sign as a whole, since beta may be negative. Zero is perfect. A map of
    zeros gets the mean square of the score's change, the unit in which to read a figure. There is
    no intercept: a map with one value everywhere predicts the effect of an average cell, which
    explains most of the square, so it may beat maps that tell cells apart.
    :func:`faithfulness_correlation` has an offset.

    Returns:
        (B,) float64.

    Source: Yeh et al. 2019 (arXiv:1901.09392); Captum.

    Example:
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> changes = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=(2, 2))
        >>> infidelity(images.mean(1), changes) < 1e-12
        tensor([True, True])
    """
    predicted = changes.predicted(maps)
    measured = changes.changes
    mean_square = predicted.square().mean(1)
    # A map of zeros predicts no change, whatever beta is.
    beta = (predicted * measured).mean(1) / torch.where(mean_square > 0, mean_square, 1)
    return (beta[:, None] * predicted - measured).square().mean(1)


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
    r"""Measure the largest relative change of maps under small noise: Captum's `sensitivity_max`.

    .. math:: \mathrm{SENS} = \max_{|\delta|_\infty \le r} \frac{|m(x + \delta) - m(x)|}{|m(x)|}

    over uniform draws. The change of a map of zeros is divided by 1.

    Args:
        attribute: images, ``target=`` and the options -> maps (B, ...): the `attribute` of any
            method of Captum or of this package. It is called with a tensor, with gradients on.
        images: (B, C, H, W).
        target: None where the method needs none.
        radius: r, in units of the normalized images.
        samples: draws per image.
        batch_size: images per call of `attribute`.
        seed: seed of the draws.
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
    target_columns = None
    if target is not None:
        target_columns = perturbation.checked_targets(target, images, name="target")

    def explain(pixels: Tensor | tuple[Tensor], target: Any) -> Tensor | tuple[Tensor]:
        # Captum passes a tuple in its first call and a tensor in all others, and expects the same
        # type back. It turns gradients off, which most methods need.
        is_tuple = isinstance(pixels, tuple)
        leaf = pixels[0] if isinstance(pixels, tuple) else pixels
        leaf = leaf.detach().clone().requires_grad_()
        with torch.enable_grad():
            result = attribute(leaf, target=target, **options)
        maps = to_float32(result.detach()).contiguous()
        return (maps,) if is_tuple else maps

    def add_noise(generators: Sequence[torch.Generator], pixels: Tensor) -> Tensor:
        # Captum repeats each image in place, so its draws come from one generator in a row.
        repeats = len(pixels) // len(generators)
        noise = []
        for generator in generators:
            for _ in range(repeats):
                noise.append(torch.rand(pixels.shape[1:], generator=generator))
        return pixels + radius * (2 * torch.stack(noise) - 1).to(pixels)

    values = []
    # Captum repeats each image once per draw, so this many images fill a batch.
    images_per_call = max(1, batch_size // samples)
    for indices in torch.split(torch.arange(len(images), device="cpu"), images_per_call):
        generators = [torch.Generator().manual_seed(seeds[index]) for index in indices.tolist()]
        largest_change = captum_metrics.sensitivity_max(
            explain,
            images[indices],
            perturb_func=partial(add_noise, generators),
            n_perturb_samples=samples,
            max_examples_per_batch=min(batch_size, len(indices) * samples),
            target=None if target_columns is None else target_columns[indices],
        )
        values.append(largest_change)
    return torch.cat(values)


@public("shapley_effects")
def shapley_effects(scores: Tensor) -> Tensor:
    r"""Compute the exact Shapley effect of each of n objects on a score.

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
        InputError: scores other than a finite floating-point tensor of 2, 4, 8, ... subsets.

    Source: Shapley 1953.

    Example:
        >>> horse, dog, both = 0.3, -0.1, 0.2
        >>> shapley_effects(torch.tensor([0.0, horse, dog, both]))
        tensor([ 0.3000, -0.1000])
    """
    check_tensor("scores", scores, "(..., 2^n)")
    subset_count = scores.shape[-1]
    object_count = subset_count.bit_length() - 1
    fits = subset_count == 2**object_count and 1 <= object_count <= _MOST_OBJECTS
    expect(fits, f"the scores of all 2^n subsets of 1 to {_MOST_OBJECTS} objects", scores)
    # The cube has a dimension of size 2 for each bit. The highest bit comes first, so object i is
    # dimension -1 - i.
    cube = scores.double().reshape(*scores.shape[:-1], *[2] * object_count)
    gains = []
    for index in range(object_count):
        gains.append(cube.diff(dim=-1 - index).flatten(-object_count))
    effects = mean_over_orders(torch.stack(gains, -2))
    return effects.to(to_float32(scores).dtype)


def mean_over_orders(gains: Tensor) -> Tensor:
    """Average what a player adds to those before it, over all orders of the players.

    Gains (..., 2^k) are what the player adds to each subset of the k others.
    """
    others = gains.shape[-1].bit_length() - 1
    # The weight |S|! (k - |S|)! / (k + 1)! of a subset S is 1 / ((k + 1) binom(k, |S|)).
    divisors = []
    for subset in range(2**others):
        size = subset.bit_count()
        divisors.append((others + 1) * comb(others, size))
    return (gains / torch.tensor(divisors).to(gains)).sum(-1)


@public("object_mass")
def object_mass(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Sum the signed mass of each map inside each object.

    .. math:: \mu_i = \frac{hw}{HW} \sum_{p \in M_i} m_p

    Maps are resized to their masks (bilinear). The factor turns a sum over pixels into a sum over
    the map's own cells, so that the size of the image makes no difference.

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
    cells = maps.shape[-2] * maps.shape[-1]
    pixels = masks.shape[-2] * masks.shape[-1]
    inside = masks.flatten(-2).to(heatmap.dtype)
    return torch.einsum("...p,...np->...n", heatmap.flatten(-2), inside) * (cells / pixels)


class Agreement(NamedTuple):
    """How far the mass of maps agrees with the effects of objects, over pairs of map and object.

    Args:
        spearman: rank correlation of mass and effect; NaN where either is constant, or for fewer
            than two pairs.
        balanced_accuracy: mean of the shares of right signs among the positive and among the
            negative effects, where a mass of zero has no sign and counts one half. A constant
            answer gets .5, whatever the base rate is; NaN without positive or negative effects.
        auc: the probability that the mass of a positive effect is above the mass of a negative
            one, where equal masses count one half; .5 where mass and sign are unrelated.
    """

    spearman: float
    balanced_accuracy: float
    auc: float


@public("effect_agreement")
def effect_agreement(mass: Tensor, effects: Tensor) -> Agreement:
    """Measure how far masses agree with effects, pooled over all pairs of map and object.

    Masks alone measure whether a map looks right; this measures whether it is right. Maps enter on
    their own raw scale. Over the pairs where the text names another object, the figures tell
    whether negative evidence is right.

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
    masses = mass.double().flatten()
    true_effects = effects.to(mass.device).double().flatten()
    right, rises, falls = right_signs(masses, true_effects)
    balanced_accuracy = (right[rises].mean() + right[falls].mean()) / 2
    # An effect of zero is on neither side of the comparison.
    has_effect = rises | falls
    auc = area_of_ranks(masses[has_effect], rises[has_effect])
    correlation = spearman(masses, true_effects)
    return Agreement(float(correlation), float(balanced_accuracy), float(auc))


def right_signs(mass: Tensor, effects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the signs of masses and effects.

    Returns 1 where they are the same, 0 where they differ and 1/2 where either is zero; then where
    effects are positive, and where they are negative.
    """
    right = (1 + mass.sign() * effects.sign()) / 2
    return right, effects > 0, effects < 0
