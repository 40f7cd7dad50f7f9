"""Infidelity and sensitivity: linear scorers, Captum's own figures, seeds, real methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum import attr as captum_attr
from captum import metrics as captum_metrics
from torch.nn import functional as F

from captum_clip import attr
from captum_clip.errors import InputError
from captum_clip.metrics import gaussian_noise, infidelity, patch_removal, sensitivity
from tests.attr import cases
from tests.samples import normal

IMAGES, WEIGHTS = normal(4, 3, 8, 12), normal(2, 3, 8, 12, seed=1)


def linear(images: torch.Tensor) -> torch.Tensor:
    """Two linear scores (B, 2)."""
    return torch.einsum("bchw,kchw->bk", images, WEIGHTS.to(images))


def contributions(target: int) -> torch.Tensor:
    """What each of 2 x 3 cells adds to the score, (B, 1, 2, 3)."""
    return F.avg_pool2d((IMAGES * WEIGHTS[target]).sum(1, keepdim=True), 4) * 16


@pytest.mark.parametrize("normalize", [True, False])
def test_map_of_a_linear_scorers_cells_has_no_infidelity(normalize):
    """Removing cells changes the score by the sum of their values."""
    found = infidelity(linear, IMAGES, contributions(1), 1, normalize=normalize)
    assert found.shape == (4,)
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-7, rtol=0)
    assert (infidelity(linear, IMAGES, contributions(0), 1, normalize=normalize) > 1).all()


def test_gradient_of_a_linear_scorer_has_no_infidelity_under_noise():
    """Maps of the images' shape are taken as they are, each with its own target."""
    maps = WEIGHTS[[0, 1, 1, 0]]
    found = infidelity(linear, IMAGES, maps, [0, 1, 1, 0], perturbation=gaussian_noise(0.1))
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-7, rtol=0)
    wrong = infidelity(linear, IMAGES, maps, [1, 0, 0, 1], perturbation=gaussian_noise(0.1))
    assert (wrong > 0.1).all()


def test_scale_of_a_map_makes_no_difference_unless_asked():
    """Normalised infidelity fits one factor."""
    maps = normal(4, 1, 2, 3, seed=2)
    one, other = (infidelity(linear, IMAGES, m, 0) for m in (maps, -1e4 * maps))
    torch.testing.assert_close(one, other)
    raw, larger = (infidelity(linear, IMAGES, m, 0, normalize=False) for m in (maps, 100 * maps))
    assert (larger > raw).all()


def test_infidelity_is_the_rest_of_a_regression():
    """The formula, written out over the same draws; a map of zeros explains nothing."""
    maps, samples = normal(4, 2, 3, seed=3), 20
    found = infidelity(linear, IMAGES, maps, 0, samples=samples, seed=7)
    nothing = infidelity(linear, IMAGES, 0 * maps, 0, samples=samples, seed=7)
    draw = patch_removal((2, 3))
    for i, (image, heatmap) in enumerate(zip(IMAGES, maps, strict=True)):
        generator = torch.Generator().manual_seed(7 + i)
        told, change = [], []
        for _ in range(samples):
            removed, left = draw(image, generator)
            told.append((removed[0, ::4, ::4] * heatmap).sum())
            change.append((linear(image[None]) - linear(left[None]))[0, 0])
        dot, delta = torch.stack(told).double(), torch.stack(change).double()
        factor = (dot @ delta) / (dot @ dot)
        assert found[i].item() == pytest.approx((factor * dot - delta).square().mean().item())
        assert nothing[i].item() == pytest.approx(delta.square().mean().item())


def test_infidelity_is_captums():
    """The same perturbations given to Captum directly."""
    maps = normal(4, 3, 8, 12, seed=4)
    noise = normal(4, 3, 8, 12, seed=5)

    def fixed(image, generator):
        index = next(i for i in range(4) if torch.equal(image, IMAGES[i]))
        return noise[index], image - noise[index]

    repeated = noise.repeat_interleave(3, 0)
    for normalize in (True, False):
        found = infidelity(
            linear, IMAGES, maps, 1, perturbation=fixed, samples=3, normalize=normalize
        )
        wanted = captum_metrics.infidelity(
            linear,
            lambda inputs: (repeated, inputs - repeated),
            IMAGES,
            maps,
            target=1,
            n_perturb_samples=3,
            normalize=normalize,
        )
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 1000])
def test_draws_depend_on_the_image_alone(batch_size):
    """Neither on the batch size nor on the other images nor on the global generator."""
    maps, options = normal(4, 1, 2, 3, seed=6), dict[str, Any](samples=10, seed=3)
    state = torch.get_rng_state()
    whole = infidelity(linear, IMAGES, maps, 1, **options)
    found = infidelity(linear, IMAGES, maps, 1, batch_size=batch_size, **options)
    torch.testing.assert_close(found, whole)
    last = infidelity(linear, IMAGES[3:], maps[3:], 1, batch_size=batch_size, samples=10, seed=6)
    torch.testing.assert_close(last, whole[3:])
    steady = sensitivity(lambda x, target: x, IMAGES, samples=10, seed=3)
    found = sensitivity(lambda x, target: x, IMAGES, samples=10, seed=3, batch_size=batch_size)
    torch.testing.assert_close(found, steady)
    found = sensitivity(lambda x, target: x, IMAGES[2:], samples=10, seed=5)
    torch.testing.assert_close(found, steady[2:])
    assert torch.equal(torch.get_rng_state(), state)


def test_patches_are_removed_at_their_share():
    """Whole cells, filled with what is asked for."""
    draw, generator = patch_removal((2, 3), share=0.3, fill=9.0), torch.Generator().manual_seed(0)
    removed, left = (torch.stack(p) for p in zip(*(draw(IMAGES[0], generator) for _ in range(500))))  # noqa: B905
    assert removed.mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(removed, removed[:, :1, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(removed))  # fmt: skip  # noqa: E501
    assert (left[removed == 1] == 9).all()
    assert torch.equal(left[removed == 0], IMAGES[0].expand_as(left)[removed == 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_perturbed_images_keep_their_type(dtype):
    """Noise, removal and moves are in the type of the images."""
    kinds = set()

    def forward(images):
        kinds.add(images.dtype)
        return linear(images)

    images = IMAGES.to(dtype)
    for change in (patch_removal((2, 3)), gaussian_noise()):
        infidelity(forward, images, contributions(0), 0, perturbation=change, samples=2)
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
    found = infidelity(forward, images, maps, [1, 0], samples=6, perturbation=patch_removal((4, 4)))
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[0]}, "preprocessed images"),
        ({"maps": torch.ones(2, 1, 2, 3)}, "got maps .2, 1, 2, 3. for images"),
        ({"maps": torch.full((4, 1, 2, 3), torch.nan)}, "NaN or infinity"),
        ({"maps": IMAGES}, r"as fine as the images, 8 x 12; say what to perturb"),
        ({"target": 2}, "returns 2 scores per image, and a target is 2"),
        ({"target": None}, "returns 2 scores per image; say which"),
        ({"target": [0]}, "one for each of 4 images"),
        ({"samples": 0}, "samples as a whole number from 1"),
        ({"batch_size": 0}, "batch_size as a whole number from 1"),
        ({"seed": -1}, "seed as a whole number from 0"),
    ],
)
def test_infidelity_refuses_what_does_not_belong_together(changes, message):
    """One sentence that says what was given."""
    call = {"forward": linear, "images": IMAGES, "maps": torch.ones(4, 1, 2, 3), "target": 0}
    with pytest.raises(InputError, match=message):
        infidelity(**{**call, **changes})


def test_sensitivity_and_changes_refuse_what_they_cannot_do():
    """One sentence that says what was given."""
    with pytest.raises(InputError, match="sensitivity: expected preprocessed images"):
        sensitivity(lambda x, target: x, IMAGES[0])
    with pytest.raises(InputError, match="a radius above 0, got 0"):
        sensitivity(lambda x, target: x, IMAGES, radius=0)
    with pytest.raises(InputError, match="NaN or infinity"):
        sensitivity(lambda x, target: x / 0, IMAGES)
    with pytest.raises(InputError, match="one for each of 4 images"):
        sensitivity(lambda x, target: x, IMAGES, [0, 1])
    with pytest.raises(InputError, match="the grid's rows as a whole number from 1"):
        patch_removal((0, 2))
    with pytest.raises(InputError, match=r"a share in \(0, 1\], got 0"):
        patch_removal((2, 2), share=0)
    with pytest.raises(InputError, match="a standard deviation above 0, got 0"):
        gaussian_noise(0)
