"""Does a map put its mass on what changes the score? The exact effect of each object."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from ..errors import InputError
from ..maps import check_maps
from .checks import check_bool, check_device, check_filled, check_finite
from .ranks import spearman
from .resize import at_least_single, resize_to_masks

_MOST_OBJECTS = 16


def shapley_effects(scores: Tensor) -> Tensor:
    r"""The exact Shapley effect of each of n objects on a score.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{|S|! \, (n - |S| - 1)!}{n!}
                       \bigl(y(S \cup i) - y(S)\bigr)

    where y(S) is the score of the scene that holds the objects S and no other. The effects add up
    to y(all) - y(none).

    Args:
        scores: (..., 2^n), the score of every subset of the objects; object i is in the subset of
            index s exactly where bit i of s is set, so index 0 is the empty scene and 2^n - 1 the
            whole one. Leading dimensions are scenes, targets or anything else.

    Returns:
        (..., n), at least in single precision.

    Raises:
        InputError: scores that are no finite floating-point tensor of 2, 4, 8, ... subsets.

    Source: Shapley 1953.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> horse, dog, both = 0.3, -0.1, 0.2
        >>> metrics.shapley_effects(torch.tensor([0.0, horse, dog, both]))
        tensor([ 0.3000, -0.1000])
    """
    check_finite("shapley_effects", "scores", scores)
    subsets = scores.shape[-1] if scores.ndim else 0
    objects = subsets.bit_length() - 1
    if subsets != 2 ** max(objects, 0) or not 1 <= objects <= _MOST_OBJECTS:
        raise InputError(
            f"shapley_effects: expected the scores of all 2^n subsets of 1 to {_MOST_OBJECTS} "
            f"objects, (..., 2^n), got {tuple(scores.shape)}."
        )
    return (scores.double() @ _weights(objects).to(scores.device)).to(at_least_single(scores).dtype)


@dataclass(frozen=True)
class Agreement:
    """How far the mass of maps agrees with the effects of objects, over pairs of map and object.

    Args:
        spearman: rank correlation of mass and effect; NaN where either is constant, or for less
            than two pairs.
        signs: share of the pairs whose mass has the sign of the effect, of those with an effect; a
            mass of zero has no sign and counts one half. NaN where no pair has an effect.
        one_sign: the same of a method that always says the more frequent sign.
        pairs: number of pairs.
        signed: number of pairs with an effect other than zero.
        balanced_accuracy: mean of the shares of right signs among the positive and among the
            negative effects. A constant answer gets .5, whatever the base rate is; NaN where one of
            the two kinds is missing.
        auc: the chance that the mass of a positive effect is above that of a negative one, equal
            ones counting one half; .5 where mass and sign have nothing to do with each other.
        negative_effects: share of the pairs whose effect is below zero.
        negative_masses: share of the pairs whose mass is below zero.
    """

    spearman: float
    signs: float
    one_sign: float
    pairs: int
    signed: int
    balanced_accuracy: float
    auc: float
    negative_effects: float
    negative_masses: float


@dataclass(frozen=True, eq=False)
class ObjectEffect:
    """Signed mass of maps in objects, and its agreement with the objects' effects.

    Args:
        mass: (..., n) of each map in each object.
        agreement: over all pairs.
        off_target: over the pairs where the text names another object; None where those are not
            told.
    """

    mass: Tensor
    agreement: Agreement
    off_target: Agreement | None


def object_mass(maps: Tensor, masks: Tensor) -> Tensor:
    r"""The signed mass of each map inside each object.

    .. math:: \mu_i = \frac{hw}{HW} \sum_{p \in M_i} m_p

    Maps are resized to their masks (bilinear); the factor makes the mass one of the map's own
    cells, whatever the size of the image.

    Args:
        maps: (..., h, w), signed or not.
        masks: (..., n, H, W) bool, the objects of each map, none empty or full; or (n, H, W), the
            objects of all maps.

    Returns:
        (..., n)

    Raises:
        InputError: maps that are no finite floating-point tensor, or other masks.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> metrics.object_mass(torch.tensor([[2.0, -1.0]]), masks)
        tensor([ 2., -1.])
    """
    check_maps("object_mass", maps)
    check_bool("object_mass", "masks", masks)
    if masks.ndim < 3 or masks.shape[:-3] not in (maps.shape[:-2], torch.Size()):
        raise InputError(
            f"object_mass: expected masks (..., n, H, W), the objects of each map, or (n, H, W), "
            f"got masks {tuple(masks.shape)} for maps {tuple(maps.shape)}."
        )
    check_device("object_mass", maps, masks, what="masks")
    check_filled("object_mass", masks)
    heatmap = resize_to_masks(maps, masks)
    share = maps.shape[-2] * maps.shape[-1] / (masks.shape[-2] * masks.shape[-1])
    inside = torch.einsum(
        "...p,...np->...n", heatmap.flatten(-2), masks.flatten(-2).to(heatmap.dtype)
    )
    return inside * share


def effect_agreement(mass: Tensor, effects: Tensor) -> Agreement:
    """How far masses agree with effects, pooled over all pairs of map and object.

    Args:
        mass: any shape, as :func:`object_mass` gives it.
        effects: the same shape, as :func:`shapley_effects` gives them, on any device.

    Raises:
        InputError: different shapes, or NaN or infinity.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> agreement = metrics.effect_agreement(
        ...     torch.tensor([4.0, -1.0, 2.0]), torch.tensor([0.3, 0.1, 0.2])
        ... )
        >>> agreement.spearman, round(agreement.signs, 3), agreement.one_sign
        (1.0, 0.667, 1.0)
    """
    check_finite("effect_agreement", "mass", mass)
    check_finite("effect_agreement", "effects", effects)
    if mass.shape != effects.shape:
        raise InputError(
            f"effect_agreement: expected one effect per mass, got {tuple(effects.shape)} for "
            f"{tuple(mass.shape)}."
        )
    masses, truths = mass.cpu().double().flatten(), effects.cpu().double().flatten()
    some, rises, falls = truths != 0, truths > 0, truths < 0
    signed, positive = int(some.sum()), int(rises.sum())
    right = (1 + masses.sign() * truths.sign()) / 2  # no mass has no sign and counts one half
    above = (masses[rises][:, None] - masses[falls]).sign()
    return Agreement(
        spearman=float(spearman(masses, truths)) if len(masses) > 1 else float("nan"),
        signs=float(right[some].mean()),
        one_sign=max(positive, signed - positive) / signed if signed else float("nan"),
        pairs=len(masses),
        signed=signed,
        balanced_accuracy=float(right[rises].mean() + right[falls].mean()) / 2,
        auc=float((1 + above).mean()) / 2,
        negative_effects=float(falls.double().mean()),
        negative_masses=float((masses < 0).double().mean()),
    )


def object_effect(
    maps: Tensor, masks: Tensor, effects: Tensor, *, off_target: Tensor | None = None
) -> ObjectEffect:
    """The signed mass of maps in objects, and how far it agrees with the objects' true effects.

    Masks measure whether a map looks right; this measures whether it is. Figures are pooled over
    all pairs of map and object, so maps enter on their own raw scale. Over the pairs where the
    text names another object they tell whether negative saliency is right, where always saying
    "negative" may already be (`Agreement.one_sign`).

    For sets that do not fit in one call, collect :func:`object_mass` batch by batch and give all
    of it to :func:`effect_agreement`.

    Args:
        maps: (..., h, w), signed or not.
        masks: (..., n, H, W) bool, the objects of each map, none empty or full; or (n, H, W).
        effects: (..., n), from :func:`shapley_effects`.
        off_target: (..., n) bool, the pairs where the text names another object.

    Raises:
        InputError: shapes that do not belong together, empty or full masks, NaN or infinity.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> effect = metrics.object_effect(
        ...     torch.tensor([[2.0, -1.0]]), masks, torch.tensor([0.3, -0.1])
        ... )
        >>> effect.mass, effect.agreement.spearman, effect.agreement.signs
        (tensor([ 2., -1.]), 1.0, 1.0)
    """
    mass = object_mass(maps, masks)
    agreement = effect_agreement(mass, effects)
    if off_target is None:
        return ObjectEffect(mass, agreement, None)
    check_bool("object_effect", "off_target", off_target)
    if off_target.shape != mass.shape:
        raise InputError(
            f"object_effect: expected off_target {tuple(mass.shape)}, one per pair, got "
            f"{tuple(off_target.shape)}."
        )
    pairs = off_target.cpu()
    restricted = effect_agreement(mass.cpu()[pairs], effects.cpu()[pairs])
    return ObjectEffect(mass, agreement, restricted)


def _weights(objects: int) -> Tensor:
    """What each subset's score counts for each object, (2^n, n) float64."""
    subsets = torch.arange(2**objects)
    inside = (subsets[:, None] >> torch.arange(objects)) & 1  # (2^n, n)
    sizes = inside.sum(1).tolist()
    total = factorial(objects)
    gain = [factorial(max(s - 1, 0)) * factorial(objects - s) / total for s in sizes]
    loss = [-factorial(s) * factorial(max(objects - s - 1, 0)) / total for s in sizes]
    gains, losses = (torch.tensor(w, dtype=torch.float64)[:, None] for w in (gain, loss))
    return torch.where(inside.bool(), gains, losses)
