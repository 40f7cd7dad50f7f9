"""Pools of features: the gradient of a shift of all positions, and what the pool read."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam

from captum_clip import ClipGradCam, ClipSimilarity, DirectContribution, targets
from captum_clip.attr._attention import _shift_gradient
from captum_clip.attr._call import Call, Pass, many_columns, observed
from captum_clip.models import ResNetTower
from captum_clip.recording.observe import Features, Kernels
from tests.attr import cases

BOUNDS = {torch.float32: 2e-5, torch.float64: 1e-11}


def run(name: str, dtype: torch.dtype) -> tuple[ResNetTower, Call]:
    similarity = ClipSimilarity(
        cases.built(name, dtype).load(), targets.embedding(cases.embeddings())
    )
    tower: Any = similarity.clip.tower
    select = partial(many_columns, None)
    return tower, Call(similarity, (cases.images(name, dtype),), (), select, tower, "grad-cam")


def pooled(tower: ResNetTower, call: Call) -> Pass:
    """A forward whose pool is read, with a graph from the embedding on."""
    kernels = Kernels(range(len(tower.attentions)))
    return observed(tower, call, Features(), kernels, leaf=True)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", ["open_clip_resnet", "timm_convnext"])
def test_the_gradient_of_a_shift_is_the_sum_over_positions(name: str, dtype: torch.dtype) -> None:
    """From what the pool read, and not by a backward through it for every target."""
    tower, call = run(name, dtype)
    shift = _shift_gradient(tower, pooled(tower, call), False)
    whole = observed(tower, call, Features(leaf=True))  # with a graph from them on
    wanted = whole.stacked_gradients(whole.record.features).sum((-2, -1))
    off = (shift - wanted).abs().max() / wanted.abs().max()
    assert off < BOUNDS[dtype]


def test_a_position_of_a_mean_is_taken_less_the_mean_token() -> None:
    """Each through its own norm: the deviation is that of the token, not that of the difference."""
    built = cases.built("open_clip_vit_mean", torch.float64)
    visual: Any = built.model.visual
    images, embeddings = cases.images("open_clip_vit_mean", torch.float64), cases.embeddings()
    outputs: list[torch.Tensor] = []
    handle = visual.transformer.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        embedded = visual(images)
    handle.remove()
    tokens = outputs[0][:, 1:]
    scale = (tokens.var(-1, correction=0, keepdim=True) + visual.ln_post.eps).rsqrt()
    apart = tokens - tokens.mean(1, keepdim=True)
    normed = (apart - apart.mean(-1, keepdim=True)) * scale * visual.ln_post.weight
    unit = embeddings.to(normed) / embeddings.to(normed).norm(dim=-1, keepdim=True)
    wanted = torch.einsum("bsd,de,ke->bks", normed, visual.proj, unit) / tokens.shape[1]
    wanted = wanted / embedded.norm(dim=-1)[:, None, None]
    method = DirectContribution(ClipSimilarity(built.load(), targets.embedding(embeddings)))
    maps = method.attribute_targets(images, baseline="mean")
    torch.testing.assert_close(maps.flatten(2), wanted.detach(), rtol=1e-9, atol=1e-12)


def test_features_less_their_mean_add_up_to_nothing() -> None:
    """In a network that averages them; the map itself is not zero."""
    _, call = run("timm_convnext", torch.float64)
    maps = DirectContribution(call.forward).attribute_targets(call.images[0], baseline="mean")
    assert maps.sum((-2, -1)).abs().max() < 1e-12 < 1e-4 < maps.abs().max()


def test_a_pool_with_a_temperature_of_its_own_is_explained_as_it_computes() -> None:
    """The scale of written-out attention is not shown, so the whole gradient is taken."""
    tower, call = run("open_clip_resnet", torch.float64)
    pool = tower.module.attnpool

    def warm(features: torch.Tensor) -> torch.Tensor:
        tokens = features.flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
        query, key, value = (
            linear(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        weights = (query @ key.mT * (0.3 * query.shape[-1] ** -0.5)).softmax(-1)
        heads = (weights @ value).transpose(1, 2).flatten(2)
        result: torch.Tensor = pool.c_proj(heads)[:, 0]
        return result

    pool.forward = warm
    try:
        maps = ClipGradCam(call.forward).attribute(call.images[0], target=1)
        wanted = LayerGradCam(call.forward, tower.stage).attribute(call.images[0], target=1)
    finally:
        del pool.forward
    torch.testing.assert_close(maps, wanted.detach(), rtol=1e-9, atol=1e-12)
