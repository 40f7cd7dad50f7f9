"""Effects of objects, random masks, sensitivity: known games, linear scorers, Captum itself."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from captum import attr as captum_attr
from captum import metrics as captum_metrics

from captum_clip import attr, maps
from captum_clip.errors import InputError
from captum_clip.metrics import (
    effect_agreement,
    faithfulness_correlation,
    infidelity,
    masked_changes,
    object_mass,
    sensitivity,
    shapley_effects,
)
from tests.attr import cases
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


def test_what_each_pixel_adds_predicts_every_mask():
    """Of a linear score, whatever the grid; an offset and a scale make no difference."""
    found = masked_changes(linear, IMAGES, 1, grid=GRID)
    assert found.masks.shape == (4, 32, 8, 12)
    torch.testing.assert_close(found.predicted(pixels(1)), found.changes, atol=1e-5, rtol=1e-5)
    assert faithfulness_correlation(pixels(1), found) == pytest.approx([1] * 4)
    assert faithfulness_correlation(-3 * pixels(1), found) == pytest.approx([-1] * 4)
    assert infidelity(pixels(1), found).max() < 1e-9


def test_correlation_is_numpys_of_masks_drawn_one_by_one():
    maps, images = normal(4, *GRID, seed=2).double(), IMAGES.double()
    found = masked_changes(linear, images, 0, grid=GRID, samples=9, seed=5)
    for index, image in enumerate(images):
        generator = torch.Generator().manual_seed(5 + index)
        drawn = torch.rand(9, 3, 4, generator=generator) < 0.2  # half cells at the edges
        taken = drawn.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, 2:-2, 2:-2]
        spread = maps[index].repeat_interleave(4, 0).repeat_interleave(4, 1) / 16
        told = [(mask * spread).sum().item() for mask in taken]
        left = [linear(torch.where(mask, 0, image)[None])[0, 0].item() for mask in taken]
        changes = linear(image[None])[0, 0].item() - np.array(left)
        assert torch.equal(found.masks[index], taken)
        wanted = np.corrcoef(told, changes)[0, 1]
        assert faithfulness_correlation(maps, found)[index].item() == pytest.approx(wanted)


def test_a_map_of_one_value_is_no_map_of_zeros():
    """Zeros get the mean square of the change, one value everywhere much less than that."""
    images = normal(4, 3, 8, 12).abs()
    found = masked_changes(lambda x: x.mean((1, 2, 3)), images, grid=GRID, samples=64)
    zeros, ones = (infidelity(torch.full((4, *GRID), v), found) for v in (0.0, 1.0))
    torch.testing.assert_close(zeros, found.changes.square().mean(1))
    assert (ones < 0.2 * zeros).all()
    assert (faithfulness_correlation(torch.ones(4, *GRID), found) > 0.5).all()
    assert faithfulness_correlation(torch.zeros(4, *GRID), found).isnan().all()


def test_infidelity_is_captums():
    """The same masks, given to Captum as perturbations."""
    heatmap, samples = normal(4, 1, *GRID, seed=3), 12
    found = masked_changes(linear, IMAGES, 1, grid=GRID, samples=samples)
    taken = found.masks.flatten(0, 1)[:, None].expand(-1, 3, -1, -1).to(IMAGES.dtype)
    wanted = captum_metrics.infidelity(
        linear,
        lambda inputs: (taken, inputs * (1 - taken)),
        IMAGES,
        maps.expand_to_input(heatmap, IMAGES),
        target=1,
        n_perturb_samples=samples,
        normalize=True,
    )
    values = infidelity(heatmap, found)
    torch.testing.assert_close(values.float(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(infidelity(-1e4 * heatmap, found), values)


def test_draws_depend_on_the_image_alone():
    """Neither on the batch size nor on the other images nor on the global generator."""
    state = torch.get_rng_state()
    whole = masked_changes(linear, IMAGES, 0, grid=GRID, seed=3)
    some = masked_changes(linear, IMAGES[[3, 1]], 0, grid=GRID, seed=[6, 4], batch_size=5)
    assert torch.equal(some.masks, whole.masks[[3, 1]])
    torch.testing.assert_close(some.changes, whole.changes[[3, 1]], atol=1e-4, rtol=1e-4)
    steady = sensitivity(lambda x, target: x, IMAGES, samples=10, seed=3)
    for batch_size in (1, 7, 24):
        options = {"samples": 10, "batch_size": batch_size}
        found = sensitivity(lambda x, target: x, IMAGES[[3, 1]], seed=[6, 4], **options)
        torch.testing.assert_close(found, steady[[3, 1]])
    assert torch.equal(torch.get_rng_state(), state)


def test_masked_changes_says_what_it_cannot_use():
    refused: list[tuple[dict[str, Any], str]] = [
        ({"grid": (0, 3)}, "rows of 1 or more, got 0"),
        ({"share": 1.0}, r"expected share in \(0, 1\), got 1.0"),
        ({"samples": 0}, "samples of 1 or more"),
        ({"seed": [1, 2]}, r"from 0 on, or one for each of 4 images, got \[1, 2\]"),
        ({"target": None}, "returns 2 scores per image; say which"),
        ({"target": 2}, "returns 2 scores per image; there is none of index 2"),
    ]
    call: dict[str, Any] = {"forward": linear, "images": IMAGES, "target": 0, "grid": GRID}
    for changes, message in refused:
        with pytest.raises(InputError, match=f"masked_changes: .*{message}"):
            masked_changes(**{**call, **changes})
    found = masked_changes(linear, IMAGES, 0, grid=GRID)
    with pytest.raises(InputError, match=r"got Tensor \(2, 1, 2, 3\) .*; the images are"):
        infidelity(torch.ones(2, 1, *GRID), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_changed_images_keep_their_type(dtype):
    """Noise and removal are in the type of the images, maps at least in single precision."""
    kinds = set()

    def forward(images):
        kinds.add(images.dtype)
        return linear(images)

    images = IMAGES.to(dtype)
    masked_changes(forward, images, 0, grid=GRID, samples=2)
    found = sensitivity(lambda x, target: forward(x)[:, :1], images, samples=2)
    assert kinds == {dtype}
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_sensitivity_is_the_largest_relative_move():
    """A map that is the image moves by the noise itself, whose draws are known."""
    found = sensitivity(lambda x, target: x, IMAGES, radius=0.05, samples=6, seed=2)
    for i, image in enumerate(IMAGES):
        generator = torch.Generator().manual_seed(2 + i)
        moves = [0.05 * (2 * torch.rand(image.shape, generator=generator) - 1) for _ in range(6)]
        wanted = max(move.norm() / image.norm() for move in moves)
        assert found[i].item() == pytest.approx(wanted.item(), rel=1e-3)
    assert not sensitivity(lambda x, target: torch.ones(len(x), 1, 2, 2), IMAGES).any()


def test_sensitivity_is_captums():
    """With the same noise, which Captum asks for image by image."""
    generators = [torch.Generator().manual_seed(number) for number in range(4)]

    def noise(images):
        drawn = [torch.rand(images.shape[1:], generator=generators[i // 5]) for i in range(20)]
        return images + 0.02 * (2 * torch.stack(drawn) - 1)

    def attribute(images, target):  # Captum gives a tuple first and a tensor afterwards
        return (images[0].tanh(),) if isinstance(images, tuple) else images.tanh()

    options: dict[str, Any] = {"perturb_func": noise, "n_perturb_samples": 5, "target": 1}
    wanted = captum_metrics.sensitivity_max(attribute, IMAGES, **options)
    torch.testing.assert_close(sensitivity(attribute, IMAGES, 1, samples=5), wanted)


def test_each_image_keeps_its_target_and_options_are_passed_on():
    """However images are split, and with a method that takes gradients itself."""
    seen = []

    def attribute(images, target, power):
        seen.append(len(images))
        leaf = images.clone().requires_grad_()
        rows = torch.arange(len(images))
        score = (linear(leaf) ** power)[rows, target]
        return torch.autograd.grad(score.sum(), leaf)[0]

    targets = [1, 0, 1, 1]
    found = sensitivity(attribute, IMAGES, targets, samples=4, batch_size=6, power=2)
    assert max(seen) <= 6
    for i, target in enumerate(targets):
        alone = sensitivity(
            attribute, IMAGES[i : i + 1], torch.tensor([target]), samples=4, seed=i, power=2
        )
        torch.testing.assert_close(found[i : i + 1], alone)
    flat = sensitivity(attribute, IMAGES, targets, samples=4, power=1)
    assert (flat == 0).all()
    assert (found > 0).all()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("hf_vit", attr.LastGradAttention),
        ("hf_vit", attr.AttentionRollout),
        ("open_clip_vit", attr.AttentionGradCam),
        ("open_clip_resnet", attr.ClipGradCam),
        ("hf_vit", captum_attr.Saliency),
        ("open_clip_resnet", captum_attr.InputXGradient),
    ],
)
def test_any_method_over_clip_can_be_scored(name, method):
    """Maps on the token grid and of the images' shape; the images stay as they are."""
    forward, images = cases.similarity(name), cases.images(name, batch=2)
    explain, before = method(forward), images.clone()
    maps = explain.attribute(images.clone().requires_grad_(), target=[1, 0]).detach()
    changes = masked_changes(forward, images, [1, 0], grid=(4, 4), samples=6)
    found = infidelity(maps.sum(1), changes)
    moved = sensitivity(explain.attribute, images, [1, 0], samples=3)
    with torch.inference_mode():
        torch.testing.assert_close(
            sensitivity(explain.attribute, images.clone(), [1, 0], samples=3), moved
        )
    for values in (found, moved):
        assert values.shape == (2,)
        assert torch.isfinite(values).all()
        assert (values > 0).all()
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_sensitivity_refuses_what_it_cannot_do():
    """One sentence that says what was given."""
    with pytest.raises(InputError, match="sensitivity: expected images of shape"):
        sensitivity(lambda x, target: x, IMAGES[0])
    with pytest.raises(InputError, match=r"a radius in \(0, inf\), got 0"):
        sensitivity(lambda x, target: x, IMAGES, radius=0)
    assert sensitivity(lambda x, target: x / 0, IMAGES).isnan().all()
    with pytest.raises(InputError, match="one for each of 4 images"):
        sensitivity(lambda x, target: x, IMAGES, [0, 1])


random = partial(normal, dtype=torch.float64)


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


def test_effects_are_mean_gains_over_all_orders():
    """The formula over subsets and the definition by orders agree."""
    for objects in (1, 2, 3, 5):
        scores = random(2**objects, seed=objects)
        torch.testing.assert_close(shapley_effects(scores), by_orders(scores))


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


def test_scores_of_some_subsets_only_are_refused():
    """One sentence that says what was given."""
    refused: list[tuple[Any, str]] = [
        ([0.0, 1.0], r"scores as a tensor \(..., 2\^n\), got \[0.0, 1.0\]"),
        (torch.zeros(4).int(), "floating-point tensor, got .* of torch.int32"),
        (torch.zeros(6), r"all 2\^n subsets of 1 to 16 objects, got Tensor \(6,\)"),
        (torch.zeros(1), r"got Tensor \(1,\)"),
        (torch.zeros(()), r"got Tensor \(\)"),
        (torch.tensor([0.0, torch.nan]), "NaN or infinity"),
    ]
    for scores, message in refused:
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


def test_agreement_is_counted_pair_by_pair():
    """Ranks one by one, signs of each kind, and all pairs of an effect above and one below zero."""
    mass, effects = random(40, 3, seed=4).round(decimals=1), random(40, 3, seed=5).round(decimals=1)
    found = effect_agreement(mass, effects)
    assert found.spearman == pytest.approx(oracles.spearman(mass, effects))
    rises, falls = mass[effects > 0], mass[effects < 0]
    right = [(1 + part.sign().mean() * sign) / 2 for part, sign in ((rises, 1), (falls, -1))]
    assert found.balanced_accuracy == pytest.approx(float(sum(right)) / 2)
    order = (rises[:, None] - falls).sign()
    assert found.auc == pytest.approx(float((1 + order).mean()) / 2)


def test_map_of_zeros_says_nothing():
    """No rank correlation, and half of the signs."""
    effects = torch.tensor([0.5, -0.2, 0.1])
    assert effect_agreement(torch.zeros(3), effects) == pytest.approx(
        (math.nan, 0.5, 0.5), nan_ok=True
    )
    nothing = effect_agreement(torch.zeros(2), torch.zeros(2))
    assert nothing == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert math.isnan(effect_agreement(torch.ones(1), torch.ones(1)).spearman)


MAPS = torch.ones(3, 3, 4)
EFFECTS = torch.ones(3, 2)


def test_what_does_not_belong_together_is_refused():
    """One sentence that says what was given."""
    refused: list[tuple[dict[str, Any], str]] = [
        ({"maps": MAPS / 0}, "NaN or infinity"),
        ({"masks": HALVES.float()}, "masks as a bool tensor, got Tensor .* of torch.float32"),
        ({"masks": HALVES[0]}, r"of each map of Tensor \(3, 3, 4\) .*, got Tensor \(6, 8\)"),
        ({"masks": HALVES.expand(2, 2, 6, 8)}, r"got Tensor \(2, 2, 6, 8\)"),
        ({"masks": HALVES & HALVES.flip(0)}, "2 of the masks are empty"),
        ({"masks": HALVES | HALVES.flip(0)}, "2 of the masks are full"),
    ]
    for changes, message in refused:
        with pytest.raises(InputError, match=message):
            object_mass(**{"maps": MAPS, "masks": HALVES, **changes})
    for effects, message in (
        (EFFECTS[:2], r"one effect per mass of Tensor \(3, 2\) .*, got Tensor \(2, 2\)"),
        (EFFECTS * torch.nan, r"effects \(3, 2\) hold NaN"),
        ([1.0], r"effects as a tensor \(...\), got \[1.0\]"),
    ):
        with pytest.raises(InputError, match=message):
            effect_agreement(EFFECTS, effects)  # type: ignore[arg-type]


def test_no_cell_of_the_shifted_grid_is_a_patch():
    """A mask that takes one whole patch away takes a part of another one too."""
    found = masked_changes(lambda x: x.mean((1, 2, 3)), normal(8, 3, 16, 16), grid=(4, 4))
    inner = found.masks[..., 4:12, 4:12].reshape(-1, 2, 4, 2, 4).transpose(2, 3).flatten(3)
    partly = inner.any(-1) & ~inner.all(-1)
    assert partly.any((1, 2)).float().mean() > 0.8


def members(objects: int) -> torch.Tensor:
    """Which objects each subset holds, (2^n, n)."""
    return torch.tensor([[s >> i & 1 for i in range(objects)] for s in range(2**objects)]).double()


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


def test_masks_may_be_shared_by_all_maps():
    """(n, H, W) for the targets of one scene, (..., n, H, W) for several scenes."""
    maps = random(5, 3, 4, seed=3)
    shared = object_mass(maps, HALVES)
    assert shared.shape == (5, 2)
    torch.testing.assert_close(shared, object_mass(maps, HALVES.expand(5, 2, 6, 8)))
    torch.testing.assert_close(shared[3], object_mass(maps[3], HALVES))
    torch.testing.assert_close(shared.sum(1), maps.sum((1, 2)))


def test_true_map_agrees_and_its_opposite_disagrees():
    """A map that holds each object's effect in the object is right in everything."""
    effects = random(30, 2, seed=6)
    heatmap = (effects[:, :, None, None] * HALVES).sum(1)
    mass = object_mass(heatmap, HALVES.expand(30, 2, 6, 8))
    torch.testing.assert_close(mass, 24 * effects)
    assert effect_agreement(mass, effects) == pytest.approx((1, 1, 1))
    assert effect_agreement(-mass, effects) == pytest.approx((-1, 0, 0))
