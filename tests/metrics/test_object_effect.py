"""Effects of objects: known games, Shapley's laws, agreement with the mass of maps."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import effect_agreement, object_effect, object_mass, shapley_effects
from tests.metrics import oracles
from tests.samples import normal

random = partial(normal, dtype=torch.float64)


def members(objects: int) -> torch.Tensor:
    """Which objects each subset holds, (2^n, n)."""
    return torch.tensor([[s >> i & 1 for i in range(objects)] for s in range(2**objects)]).double()


def by_orders(scores: torch.Tensor) -> torch.Tensor:
    """Shapley's other definition: the mean gain over all orders of arrival."""
    objects = int(math.log2(len(scores)))
    effects = torch.zeros(objects, dtype=scores.dtype)
    for order in permutations(range(objects)):
        present = 0
        for i in order:
            effects[i] += scores[present | 1 << i] - scores[present]
            present |= 1 << i
    return effects / math.factorial(objects)


@pytest.mark.parametrize("objects", [1, 2, 3, 5])
def test_effects_are_mean_gains_over_all_orders(objects):
    """The formula over subsets and the definition by orders agree."""
    scores = random(2**objects, seed=objects)
    torch.testing.assert_close(shapley_effects(scores), by_orders(scores))


def test_effects_of_an_additive_scorer_are_its_terms():
    """Whatever the score of the empty scene."""
    terms = torch.tensor([0.3, -0.2, 0.05]).double()
    torch.testing.assert_close(shapley_effects(7 + members(3) @ terms), terms)


def test_an_interaction_is_shared():
    """Two objects that count only together get one half each, a third one nothing."""
    inside = members(3)
    torch.testing.assert_close(
        shapley_effects(inside[:, 0] * inside[:, 2]), torch.tensor([0.5, 0, 0.5]).double()
    )


def test_effects_obey_shapleys_laws():
    """Efficiency, symmetry, the null player, linearity, permutation; any leading dimensions."""
    scores, others = random(4, 3, 8, seed=1), random(4, 3, 8, seed=2)
    effects = shapley_effects(scores)
    assert effects.shape == (4, 3, 3)
    torch.testing.assert_close(effects.sum(-1), scores[..., 7] - scores[..., 0])
    torch.testing.assert_close(effects[2, 1], shapley_effects(scores[2, 1]))
    torch.testing.assert_close(
        shapley_effects(2 * scores - others), 2 * effects - shapley_effects(others)
    )
    without = torch.tensor([s & 0b101 for s in range(8)])  # object 1 changes nothing
    null = shapley_effects(scores[..., without])
    torch.testing.assert_close(null[..., 1], torch.zeros(4, 3).double())
    swapped = torch.tensor([(s & 1) << 2 | s & 2 | s >> 2 for s in range(8)])
    torch.testing.assert_close(shapley_effects(scores[..., swapped]), effects.flip(-1))
    symmetric = shapley_effects(scores + scores[..., swapped])
    torch.testing.assert_close(symmetric[..., 0], symmetric[..., 2])
    assert shapley_effects(scores.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.0, 1.0], "floating-point tensor, got list"),
        (torch.zeros(4).int(), "got torch.int32"),
        (torch.zeros(6), r"all 2\^n subsets of 1 to 16 objects, .*, got \(6,\)"),
        (torch.zeros(1), r"got \(1,\)"),
        (torch.zeros(()), r"got \(\)"),
        (torch.tensor([0.0, torch.nan]), "NaN or infinity"),
    ],
)
def test_scores_of_some_subsets_only_are_refused(scores, message):
    """One sentence that says what was given."""
    with pytest.raises(InputError, match=message):
        shapley_effects(scores)


HALVES = torch.zeros(2, 6, 8, dtype=torch.bool)
HALVES[0, :, :4], HALVES[1, :, 4:] = True, True


def test_mass_is_one_of_the_maps_own_cells():
    """The same cells at any size of the mask, with their sign."""
    heatmap = torch.tensor([[3.0, 3.0, -1.0, -1.0]]).expand(3, 4)  # constant beside the border
    for size in (8, 64):
        masks = torch.zeros(2, 12, size, dtype=torch.bool)
        masks[0, :, : size // 4], masks[1, :, -size // 4 :] = True, True
        torch.testing.assert_close(object_mass(heatmap, masks), torch.tensor([9.0, -3.0]))


def test_masks_may_be_shared_by_all_maps():
    """(n, H, W) for the targets of one scene, (..., n, H, W) for several scenes."""
    maps = random(5, 3, 4, seed=3)
    shared = object_mass(maps, HALVES)
    assert shared.shape == (5, 2)
    torch.testing.assert_close(shared, object_mass(maps, HALVES.expand(5, 2, 6, 8)))
    torch.testing.assert_close(shared[3], object_mass(maps[3], HALVES))
    torch.testing.assert_close(shared.sum(1), maps.sum((1, 2)))


def test_agreement_is_spearmans_and_of_signs():
    """Against ranks counted one by one, over all pairs at once."""
    mass, effects = random(40, 3, seed=4).round(decimals=1), random(40, 3, seed=5).round(decimals=1)
    found = effect_agreement(mass, effects)
    assert found.spearman == pytest.approx(oracles.spearman(mass, effects))
    some = effects != 0
    assert 0 < found.signed == int(some.sum()) < found.pairs == 120
    half = 0.5 * (mass[some] == 0).sum()
    right = (mass[some].sign() == effects[some].sign()).sum() + half
    assert found.signs == pytest.approx(float(right) / found.signed)


def test_true_map_agrees_and_its_opposite_disagrees():
    """A map that holds each object's effect in the object is right in everything."""
    effects = random(30, 2, seed=6)
    maps = (effects[:, :, None, None] * HALVES).sum(1)
    found = object_effect(maps, HALVES.expand(30, 2, 6, 8), effects)
    assert found.agreement.spearman == pytest.approx(1)
    assert found.agreement.signs == 1
    torch.testing.assert_close(found.mass, 24 * effects)
    opposite = object_effect(-maps, HALVES, effects).agreement
    assert opposite.spearman == pytest.approx(-1)
    assert opposite.signs == 0


def test_map_of_zeros_says_nothing():
    """No rank correlation, and half of the signs."""
    effects = torch.tensor([0.5, -0.2, 0.1])
    found = effect_agreement(torch.zeros(3), effects)
    assert math.isnan(found.spearman)
    assert found.signs == 0.5
    assert found.one_sign == pytest.approx(2 / 3)
    nothing = effect_agreement(torch.zeros(2), torch.zeros(2))
    assert math.isnan(nothing.signs)
    assert math.isnan(nothing.one_sign)
    assert math.isnan(effect_agreement(torch.ones(1), torch.ones(1)).spearman)


def test_off_target_pairs_are_measured_apart():
    """There the sign that most effects have is what a method must beat."""
    effects = torch.tensor([[0.9, -0.1], [0.8, -0.3], [0.7, 0.2]])
    maps = torch.stack([torch.tensor([[1.0, v]]) for v in (-2.0, 1.0, 1.5)])
    masks = torch.tensor([[[True, False]], [[False, True]]])
    off_target = torch.tensor([[False, True]]).expand(3, 2)
    found = object_effect(maps, masks, effects, off_target=off_target)
    assert found.agreement.pairs == 6
    assert found.agreement.signs == pytest.approx(5 / 6)
    assert found.off_target is not None
    assert found.off_target.pairs == 3
    assert found.off_target.spearman == pytest.approx(0.5)  # ranks 1 2 3 and 2 1 3
    assert found.off_target.signs == pytest.approx(2 / 3)
    assert found.off_target.one_sign == pytest.approx(2 / 3)
    assert object_effect(maps, masks, effects).off_target is None


MAPS = torch.ones(3, 3, 4)
EFFECTS = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": MAPS / 0}, "NaN or infinity"),
        ({"masks": HALVES.float()}, "masks as a bool tensor, got torch.float32"),
        ({"masks": HALVES[0]}, r"got masks \(6, 8\) for maps \(3, 3, 4\)"),
        ({"masks": HALVES.expand(2, 2, 6, 8)}, r"got masks \(2, 2, 6, 8\)"),
        ({"masks": HALVES & HALVES.flip(0)}, "2 of the masks are empty"),
        ({"masks": HALVES | HALVES.flip(0)}, "2 of the masks are full"),
        ({"effects": EFFECTS[:2]}, r"one effect per mass, got \(2, 2\) for \(3, 2\)"),
        ({"effects": EFFECTS * torch.nan}, "effects hold NaN"),
        ({"effects": [1.0]}, "effects as a floating-point tensor"),
        ({"off_target": EFFECTS}, "off_target as a bool tensor"),
        ({"off_target": EFFECTS[:2] > 0}, r"off_target \(3, 2\), one per pair, got \(2, 2\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message):
    """One sentence that says what was given."""
    with pytest.raises(InputError, match=message):
        object_effect(**{"maps": MAPS, "masks": HALVES, "effects": EFFECTS, **changes})
