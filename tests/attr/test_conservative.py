"""ConservativePropagation: nothing is lost on the way, and a plain forward gives the same map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, ConservativePropagation, targets
from captum_clip.errors import UnsupportedModelError
from tests import builders, oracles
from tests.attr import cases, state
from tests.attr.cases import FORWARDS, READOUTS, TOLERANCE, VITS

FAMILIES = [*VITS, *READOUTS]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def explain(name: str, forward: str = "similarity", dtype: Any = torch.float64) -> Any:
    """Maps, scores and rest of a small model's images."""
    function, layer = FORWARDS[forward](name, dtype)
    method = ConservativePropagation(function, layer)
    return method.attribute_targets(cases.images(name, dtype), return_scores=True, return_rest=True)


def held_norm(x: Tensor, norm: Any) -> Tensor:
    """Layer norm whose deviation is a constant."""
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
    return centred / sigma * norm.weight + norm.bias


def held(f: Any, x: Tensor) -> Tensor:
    """An activation whose gate is a constant."""
    return x * (f(x) / x).detach()


def held_attention(x: Tensor, own: Any, maps: Any) -> Tensor:
    """Self-attention whose weights are constants."""
    _, weights = oracles.attend(x, maps, own.num_heads)
    values = x @ maps[2][0].T + maps[2][1]
    values = values.unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
    mixed = (weights.detach() @ values).transpose(1, 2).flatten(2)
    return mixed @ maps[3][0].T + maps[3][1]


def plain_maps(name: str) -> Tensor:
    """Gradient times input of a plain forward with everything held, (B, K, h, w)."""
    model = cases.built(name, torch.float64).model
    pixels = cases.images(name).double()
    hf = name == "hf_vit"
    if hf:
        vision, blocks = model.vision_model, model.vision_model.encoder.layers
        stem, cls = vision.embeddings.patch_embedding, vision.embeddings.class_embedding
        positions, before = vision.embeddings.position_embedding.weight, vision.pre_layrnorm
        after, projection = vision.post_layernorm, model.visual_projection.weight.T
    else:
        vision, blocks = model.visual, model.visual.transformer.resblocks
        stem, cls, positions = vision.conv1, vision.class_embedding, vision.positional_embedding
        before, after, projection = vision.ln_pre, vision.ln_post, vision.proj
    patches, grid = oracles.cut(pixels, stem.weight)
    patches = patches.detach().requires_grad_()
    x = torch.cat([cls.expand(len(patches), 1, -1), patches], 1)
    x = held_norm(x + positions, before)
    for block in blocks:
        if hf:
            own, mlp, gate = block.self_attn, block.mlp, oracles.quick_gelu
            maps = [(m.weight, m.bias) for m in (own.q_proj, own.k_proj, own.v_proj, own.out_proj)]
            first, second, inner, outer = block.layer_norm1, block.layer_norm2, mlp.fc1, mlp.fc2
        else:
            own, mlp, gate = block.attn, block.mlp, oracles.exact_gelu
            pairs = zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
            maps = [*pairs, (own.out_proj.weight, own.out_proj.bias)]
            first, second, inner, outer = block.ln_1, block.ln_2, mlp.c_fc, mlp.c_proj
        added = held_norm(held_attention(held_norm(x, first), own, maps), after_attention(block))
        x = x + added * getattr(getattr(block, "ls_1", None), "gamma", 1)
        hidden = held(gate, held_norm(x, second) @ inner.weight.T + inner.bias)
        hidden = held_norm(hidden, getattr(mlp, "ln", nn.Identity()))
        added = hidden @ outer.weight.T + outer.bias
        x = x + added * getattr(getattr(block, "ls_2", None), "gamma", 1)
    embedding = held_norm(x[:, 0], after) @ projection
    scores = embedding @ cases.rows().T / embedding.norm(dim=-1, keepdim=True).detach()
    columns = [
        (torch.autograd.grad(y.sum(), patches, retain_graph=True)[0] * patches).sum(-1)
        for y in scores.T
    ]
    return torch.stack(columns, 1).unflatten(-1, grid).detach()


def after_attention(block: Any) -> Any:
    """The norm that some blocks of OpenCLIP have behind their attention."""
    return getattr(block, "ln_attn", nn.Identity())


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
@pytest.mark.parametrize("name", cases.CLS_TOWERS)
def test_conservative_equals_a_plain_forward_with_everything_held(name: str, forward: str) -> None:
    """Gradient times input of the patches, written out on the library's own parameters."""
    wanted = plain_maps(name) * (1 if forward == "similarity" else 20)
    assert (wanted < 0).any()
    torch.testing.assert_close(explain(name, forward)[0], wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_plain_forward(name: str, forward: str, dtype: torch.dtype) -> None:
    """Holding gates changes no value, on every family; the negated target negates the map."""
    maps, scores, rest = explain(name, forward, dtype)
    function, _ = FORWARDS[forward](name, dtype)
    with torch.no_grad():
        wanted = function(cases.images(name, dtype))
    bound = EXACT[dtype] * wanted.abs().max().item()
    assert (scores - wanted).abs().max().item() <= bound
    assert (maps.sum((-2, -1)) + rest - wanted).abs().max().item() <= bound
    assert (maps[:, 0] + maps[:, 1]).abs().max().item() <= 10 * bound


@torch.no_grad()
def without_constants(model: nn.Module) -> nn.Module:
    """No bias, position, class token or register: then the patches alone make the score."""
    constants = ("bias", "class_embedding", "cls_token", "reg", "position", "pos_embed")
    for name, value in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if any(word in name for word in constants[1:]) or "bias" in last:
            value.zero_()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_is_conserved_where_the_patches_are_all_there_is(name: str) -> None:
    """Without biases, positions and class tokens nothing is left over: maps add up to the score."""
    small = cases.BUILDERS[name]()
    small = small._replace(model=without_constants(small.model.double()))
    bank = cases.rows()
    method = ConservativePropagation(ClipSimilarity(small.load(), targets.embedding(bank)))
    maps, scores, rest = method.attribute_targets(
        small.images(3, torch.float64), return_scores=True, return_rest=True
    )
    assert scores.abs().max() > 0.05
    # the norms of AIMv2 compute in single precision whatever the model's
    bound = 1e-7 if name == "aimv2" else 1e-10
    assert rest.abs().max().item() < bound
    torch.testing.assert_close(maps.sum((-2, -1)), scores, rtol=10 * bound, atol=bound)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_left_on_the_model(name: str) -> None:
    """Hooks, flags, gradients and buffers are as they were, also after a failure half-way."""
    model = cases.built(name).model
    before = state.of_model(model)
    explain(name, dtype=torch.float32)

    def failing(images: Tensor) -> Tensor:
        F.normalize(cases.embed(model, images), dim=-1)
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        ConservativePropagation(failing, model).attribute(cases.images(name), target=0)
    state.assert_same(before, state.of_model(model))
    assert torch.is_grad_enabled()


def test_a_resnet_is_refused_with_what_runs_instead() -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"needs the layers of a vision transformer.*use DirectContribution",
    ):
        ConservativePropagation(cases.similarity("open_clip_resnet"))


def test_checkpointed_blocks_are_refused() -> None:
    """They would run again in the backward, without the hooks."""
    small = builders.open_clip_vit()
    small.model.set_grad_checkpointing()
    method = ConservativePropagation(
        ClipSimilarity(small.load(), targets.embedding(cases.rows().float()))
    )
    with pytest.raises(UnsupportedModelError, match="turn gradient checkpointing off"):
        method.attribute(small.images(), target=0)
