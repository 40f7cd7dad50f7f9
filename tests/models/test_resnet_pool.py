"""The attention pool of a ResNet, computed with a shift of all positions."""

from __future__ import annotations

import pytest
import torch

from captum_clip.models import ResNetTower, tower_of
from tests import builders

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def small(name, dtype=torch.float32, **vision):
    built = builders.BUILDERS[name](**vision)
    built.model.to(dtype)
    return built


def resnet_of(model) -> ResNetTower:
    tower = tower_of(model)
    assert isinstance(tower, ResNetTower)
    return tower


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_pool_without_a_shift_equals_the_librarys_attention_pool(dtype):
    built = small("open_clip_resnet", dtype)
    tower = resnet_of(built.model)
    features = torch.randn(3, 256, 3, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    own = tower.pool(features, features.new_zeros(3, 256))
    expected = built.model.visual.attnpool(features)
    torch.testing.assert_close(own, expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype])


def test_pool_shifts_every_position():
    built = small("open_clip_resnet", torch.float64)
    tower = resnet_of(built.model)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 256, 3, 3, generator=generator, dtype=torch.float64)
    shift = torch.randn(2, 256, generator=generator, dtype=torch.float64)
    pool = built.model.visual.attnpool
    expected = pool(features + shift[:, :, None, None])
    torch.testing.assert_close(tower.pool(features, shift), expected, atol=1e-11, rtol=1e-11)


def test_gradient_of_the_shift_is_the_sum_over_positions():
    built = small("open_clip_resnet", torch.float64)
    tower = resnet_of(built.model)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 256, 3, 3, generator=generator, dtype=torch.float64)
    features.requires_grad_()
    direction = torch.randn(24, generator=generator, dtype=torch.float64)
    direct = (built.model.visual.attnpool(features) @ direction).sum()
    (expected,) = torch.autograd.grad(direct, features)
    shift = torch.zeros(2, 256, dtype=torch.float64, requires_grad=True)
    (own,) = torch.autograd.grad((tower.pool(features.detach(), shift) @ direction).sum(), shift)
    torch.testing.assert_close(own, expected.sum((2, 3)), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_pool_computes_half_precision_in_single(dtype):
    built = small("open_clip_resnet", dtype)
    tower = resnet_of(built.model)
    features = torch.randn(2, 256, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    own = tower.pool(features, torch.zeros(2, 256, dtype=dtype))
    assert own.dtype == dtype
    expected = built.model.visual.attnpool.float()(features.float())
    torch.testing.assert_close(own, expected.to(dtype))


def test_pool_sees_the_last_stage():
    built = small("open_clip_resnet")
    tower = resnet_of(built.model)
    seen = []
    handle = tower.stage.register_forward_hook(lambda module, args, result: seen.append(result))
    with torch.no_grad():
        result = built.model.encode_image(built.images())
        handle.remove()
        embedding = tower.pool(seen[0], seen[0].new_zeros(2, 256))
    assert seen[0].shape == (2, 256, *tower.grid(96, 96))
    torch.testing.assert_close(embedding, result, atol=1e-5, rtol=1e-6)
