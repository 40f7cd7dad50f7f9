"""The attention pool of a ResNet, and the gradient of a shift of all positions."""

from __future__ import annotations

import pytest
import torch

from captum_clip.models import ResNetTower, open_clip, tower_of
from tests.models.small import small

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def resnet_of(model) -> ResNetTower:
    tower = tower_of(model)
    assert isinstance(tower, ResNetTower)
    return tower


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_pool_equals_the_librarys_attention_pool(dtype):
    built = small("open_clip_resnet", dtype)
    tower = resnet_of(built.model)
    features = torch.randn(3, 256, 3, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    own = tower.pool(features)
    expected = built.model.visual.attnpool(features)
    torch.testing.assert_close(own, expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("count", [1, 3, 17])
def test_gradient_of_the_shift_is_the_sum_over_positions(count):
    built = small("open_clip_resnet", torch.float64)
    tower = resnet_of(built.model)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 256, 3, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(count, 2, 24, generator=generator, dtype=torch.float64)
    features.requires_grad_()
    expected = []
    for direction in directions:
        direct = (built.model.visual.attnpool(features) * direction).sum()
        expected.append(torch.autograd.grad(direct, features)[0].sum((2, 3)))
    own = tower.shift_gradient(features.detach(), directions)
    torch.testing.assert_close(own, torch.stack(expected), atol=1e-11, rtol=1e-11)


def test_gradient_of_the_shift_with_the_weights_detached_goes_through_the_values_alone(monkeypatch):
    """By autograd through the pool's softmax, taken as a constant."""
    built = small("open_clip_resnet", torch.float64)
    tower = resnet_of(built.model)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 256, 3, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(3, 2, 24, generator=generator, dtype=torch.float64)
    own = tower.shift_gradient(features, directions, detached=True)
    free = tower.shift_gradient(features, directions)
    through = open_clip._pool_attention
    monkeypatch.setattr(open_clip, "_pool_attention", lambda *parts: through(*parts).detach())
    features.requires_grad_()
    embedding = tower.pool(features)
    expected = [
        torch.autograd.grad((embedding * one).sum(), features, retain_graph=True)[0].sum((2, 3))
        for one in directions
    ]
    torch.testing.assert_close(own, torch.stack(expected), atol=1e-11, rtol=1e-11)
    assert (own - free).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_pool_computes_half_precision_in_single(dtype):
    built = small("open_clip_resnet", dtype)
    tower = resnet_of(built.model)
    features = torch.randn(2, 256, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    own = tower.pool(features)
    assert own.dtype == torch.float32
    expected = built.model.visual.attnpool.float()(features.float())
    torch.testing.assert_close(own, expected)


def test_pool_sees_the_last_stage():
    built = small("open_clip_resnet")
    tower = resnet_of(built.model)
    seen = []
    handle = tower.stage.register_forward_hook(lambda module, args, result: seen.append(result))
    with torch.no_grad():
        result = built.model.encode_image(built.images())
        handle.remove()
        embedding = tower.pool(seen[0])
    assert seen[0].shape == (2, 256, *tower.grid(96, 96))
    torch.testing.assert_close(embedding, result, atol=1e-5, rtol=1e-6)
