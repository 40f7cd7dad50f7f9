"""ConservativePropagation: nothing is lost on the way, and a plain forward gives the same map."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, ConservativePropagation, DirectContribution, targets
from captum_clip.errors import UnsupportedModelError
from tests import builders, oracles
from tests.attr import cases, state
from tests.attr.cases import FORWARDS, POOLINGS, VITS

FAMILIES = [*VITS, *POOLINGS]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def explain(name: str, forward: str = "similarity", dtype: Any = torch.float64) -> Any:
    """Maps, scores and rest of a small model's images."""
    function, layer = FORWARDS[forward](name, dtype)
    method = ConservativePropagation(function, layer)
    return method.attribute_targets(cases.images(name, dtype), return_scores=True, return_rest=True)


def fixed_norm(x: Tensor, norm: Any) -> Tensor:
    """Layer norm whose deviation is a constant."""
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
    return centred / sigma * norm.weight + norm.bias


def fixed(f: Any, x: Tensor) -> Tensor:
    """An activation whose gate is a constant."""
    return x * (f(x) / x).detach()


def fixed_attention(x: Tensor, own: Any, maps: Any) -> Tensor:
    """Self-attention whose weights are constants."""
    _, weights = oracles.attend(x, maps, own.num_heads)
    values = x @ maps[2][0].T + maps[2][1]
    values = values.unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
    mixed = (weights.detach() @ values).transpose(1, 2).flatten(2)
    return mixed @ maps[3][0].T + maps[3][1]


class Block(NamedTuple):
    """The parts of a block, whichever library it is of."""

    norms: tuple[Any, Any, Any, Any]  # before and after the attention, before and inside the MLP
    attention: Any
    maps: Any
    inner: Any
    gate: Any
    outer: Any
    scales: tuple[Any, ...]


def parts_of(name: str) -> tuple[Any, list[Block], Any, Any]:
    """Stem (projection, class token, positions, norm), blocks, last norm, projection."""
    model = cases.built(name, torch.float64).model
    hf = name == "hf_vit"
    if hf:
        vision, blocks = model.vision_model, model.vision_model.encoder.layers
        own = vision.embeddings
        stem = own.patch_embedding, own.class_embedding, own.position_embedding.weight
        end = vision.post_layernorm, model.visual_projection.weight.T
    else:
        vision, blocks = model.visual, model.visual.transformer.resblocks
        stem = vision.conv1, vision.class_embedding, vision.positional_embedding
        end = vision.ln_post, vision.proj
    found = []
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
        norms = first, after_attention(block), second, getattr(mlp, "ln", nn.Identity())
        scales = tuple(getattr(getattr(block, f"ls_{i}", None), "gamma", 1) for i in (1, 2))
        found.append(Block(norms, own, maps, inner, gate, outer, scales))
    before = vision.pre_layrnorm if hf else vision.ln_pre
    return (*stem, before), found, *end


def plain_maps(name: str) -> Tensor:
    """Gradient times input of a plain forward with everything detached, (B, K, h, w)."""
    (stem, cls, positions, before), blocks, after, projection = parts_of(name)
    patches, grid = oracles.cut(cases.images(name).double(), stem.weight)
    patches = patches.detach().requires_grad_()
    x = torch.cat([cls.expand(len(patches), 1, -1), patches], 1)
    x = fixed_norm(x + positions, before)
    for block in blocks:
        first, behind, second, inside = block.norms
        added = fixed_norm(
            fixed_attention(fixed_norm(x, first), block.attention, block.maps), behind
        )
        x = x + added * block.scales[0]
        hidden = fixed(block.gate, fixed_norm(x, second) @ block.inner.weight.T + block.inner.bias)
        added = fixed_norm(hidden, inside) @ block.outer.weight.T + block.outer.bias
        x = x + added * block.scales[1]
    embedding = fixed_norm(x[:, 0], after) @ projection
    scores = embedding @ cases.embeddings().T / embedding.norm(dim=-1, keepdim=True).detach()
    columns = [
        (torch.autograd.grad(y.sum(), patches, retain_graph=True)[0] * patches).sum(-1)
        for y in scores.T
    ]
    return torch.stack(columns, 1).unflatten(-1, grid).detach()


def norm_shares(shares: Tensor, norm: Any) -> Tensor:
    """A layer norm of a sum, as a sum: each share less its mean, the bias to the last one."""
    if isinstance(norm, nn.Identity):
        return shares
    sigma = (shares.sum(0).var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return with_constant((shares - shares.mean(-1, keepdim=True)) / sigma * norm.weight, norm.bias)


def with_constant(shares: Tensor, constant: Tensor) -> Tensor:
    """A constant added to the last share."""
    return torch.cat([shares[:-1], shares[-1:] + constant])


@torch.no_grad()
def shares_of_patches(name: str) -> tuple[Tensor, Tensor]:
    """What every patch adds to the embedding through all layers, (N + 1, B, E), and the embedding.

    The tokens are carried forward as sums of one share a patch and one of all constants, so there
    is no gradient: weights, gates and deviations are those of the whole sum.
    """
    (stem, cls, positions, before), blocks, after, projection = parts_of(name)
    patches, _ = oracles.cut(cases.images(name).double(), stem.weight)
    batch, count, width = patches.shape
    shares = patches.new_zeros(count + 1, batch, count + 1, width)
    for index in range(count):
        shares[index, :, 1 + index] = patches[:, index]
    shares[-1, :, 0] = cls
    shares = norm_shares(with_constant(shares, positions), before)
    for block in blocks:
        first, behind, second, inside = block.norms
        normed = norm_shares(shares, first)
        _, weights = oracles.attend(normed.sum(0), block.maps, block.attention.num_heads)
        (value, bias), (out, out_bias) = block.maps[2:]
        values = with_constant(normed @ value.T, bias)
        values = values.unflatten(-1, (block.attention.num_heads, -1)).transpose(2, 3)
        mixed = (weights @ values).transpose(2, 3).flatten(3)
        added = norm_shares(with_constant(mixed @ out.T, out_bias), behind)
        shares = shares + added * block.scales[0]
        hidden = norm_shares(shares, second) @ block.inner.weight.T
        hidden = with_constant(hidden, block.inner.bias)
        whole = hidden.sum(0)
        hidden = norm_shares(hidden * (block.gate(whole) / whole), inside) @ block.outer.weight.T
        shares = shares + with_constant(hidden, block.outer.bias) * block.scales[1]
    shares = norm_shares(shares[:, :, 0], after) @ projection
    return shares, shares.sum(0)


@pytest.mark.parametrize("name", cases.CLS_TOWERS)
def test_direct_through_all_layers_equals_the_shares_of_patches(name: str) -> None:
    """`depth="all"` gives what tokens do that are carried forward as sums over patches."""
    shares, embedding = shares_of_patches(name)
    rows = cases.embeddings() / embedding.norm(dim=-1)[:, None, None]
    wanted = torch.einsum("nbe,bke->bkn", shares, rows)
    method = DirectContribution(cases.similarity(name, torch.float64))
    maps, scores, rest = method.attribute_targets(
        cases.images(name, torch.float64), return_scores=True, return_rest=True, depth="all"
    )
    torch.testing.assert_close(maps.flatten(2), wanted[..., :-1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rest, wanted[..., -1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wanted.sum(-1), scores, rtol=1e-12, atol=1e-12)


def test_no_attention_is_kept_for_the_backward() -> None:
    """Its memory does not grow with the square of the tokens."""
    tokens: int = 17
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    method = ConservativePropagation(cases.similarity("hf_vit"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        method.attribute(cases.images("hf_vit"), target=0)
    assert any(tokens in shape for shape in kept)
    assert not any(shape[-2:] == (tokens, tokens) for shape in kept)


def after_attention(block: Any) -> Any:
    """The norm that some blocks of OpenCLIP have behind their attention."""
    return getattr(block, "ln_attn", nn.Identity())


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
@pytest.mark.parametrize("name", cases.CLS_TOWERS)
def test_conservative_equals_a_plain_forward_with_gates_detached(name: str, forward: str) -> None:
    """Gradient times input of the patches, written out on the library's own parameters."""
    wanted = plain_maps(name) * (1 if forward == "similarity" else 20)
    assert (wanted < 0).any()
    torch.testing.assert_close(explain(name, forward)[0], wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("forward", "dtype"),
    [("similarity", torch.float32), ("callable, layer=model", torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_plain_forward(name: str, forward: str, dtype: torch.dtype) -> None:
    """Detaching gates changes no value, on every family; the negated target negates the map."""
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
    embeddings = cases.embeddings()
    method = ConservativePropagation(ClipSimilarity(small.load(), targets.embedding(embeddings)))
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
        ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    )
    with pytest.raises(UnsupportedModelError, match="turn gradient checkpointing off"):
        method.attribute(small.images(), target=0)
