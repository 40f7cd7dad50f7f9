"""LeGrad, Grad-ECLIP and patch similarity equal their equations, on the library's own modules.

Every attention is a tensor in autograd's graph. What a text would make of other tokens than the
model reads is had from the library's own last steps: its last block's output is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import GradEclip, LeGrad, PatchSimilarity
from captum_clip.errors import InputError, UnsupportedModelError
from tests import explicit
from tests.attr import cases
from tests.attr.cases import FORWARDS, POOLINGS, TOLERANCE, VITS

READ: dict[str, tuple[Any, int]] = {
    **dict.fromkeys(VITS, ("cls", 1)),
    "open_clip_vit_mean": ("mean", 1),
    **POOLINGS,
}
LAYERS = 3
EAGER = ("blip", "flava")  # their queries, keys and values pass no function of torch
EACH_POOLING = ["hf_vit", "open_clip_vit_mean", "siglip", "pe_core", "timm_gap"]
# what a branch or a token before the patches changes
TOWERS = [*EACH_POOLING, "eva01", "timm_registers", "open_clip_norms"]
TWO = ["open_clip_vit_mean", "siglip"]
POOLING_HEADS = [name for name in READ if READ[name][0] == "attention"]


def blocks_of(model: Any) -> Any:
    """The blocks of a small model's vision tower."""
    if hasattr(model, "image_model"):
        return model.image_model.encoder.layer
    if not hasattr(model, "visual"):
        encoder = model.vision_model.encoder
        return encoder.layers if hasattr(encoder, "layers") else encoder.layer
    visual = model.visual
    return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks


@contextmanager
def hooked(module: Any, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Call a hook with what a module returns."""
    handle = module.register_forward_hook(lambda m, args, result: hook(result))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def fused_pool() -> Iterator[None]:
    """SigLIP's pool asks for its weights, so that its attention is no single function."""
    forward = nn.MultiheadAttention.forward

    def plain(*args: Any, **options: Any) -> Any:
        return forward(*args, **{**options, "need_weights": False})

    with patch.object(nn.MultiheadAttention, "forward", plain):
        yield


def embedding_of(name: str, tokens: Tensor, keep: list[Tensor] | None = None) -> Tensor:
    """The library's own embedding if its last block had returned these tokens (B, s, D)."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()

    def exchange(result: Any) -> Any:
        return (tokens, *result[1:]) if isinstance(result, tuple) else tokens

    with (
        explicit.explicit_attention(len(pixels)) as attention,
        hooked(blocks_of(model)[-1], exchange),
    ):
        embedding = cases.embed(model, pixels)
    if keep is not None:
        keep += attention
    return embedding


def cosine(name: str, embedding: Tensor) -> Tensor:
    """With every row, (B, K)."""
    return F.normalize(embedding, dim=-1) @ cases.embeddings().T


def see(name: str) -> tuple[list[Tensor], list[Tensor], list[explicit.Inputs], Tensor]:
    """Attentions, outputs of blocks, queries with keys and values, and the embedding."""
    model = cases.built(name, torch.float64).model
    pixels = cases.images(name).double().requires_grad_()
    outputs: list[Tensor] = []
    inputs: list[explicit.Inputs] = []

    def note(result: Any) -> None:
        outputs.append(result[0] if isinstance(result, tuple) else result)

    handles = [b.register_forward_hook(lambda m, a, r: note(r)) for b in blocks_of(model)]
    with explicit.explicit_attention(len(pixels), inputs) as attention, fused_pool():
        embedding = cases.embed(model, pixels)
    for handle in handles:
        handle.remove()
    assert len(outputs) == LAYERS
    assert len(inputs) == (0 if name in EAGER else len(attention))
    return attention, outputs, inputs, embedding


def legrad(name: str, layers: int) -> Tensor:
    """Maps (B, K, s), without the tokens before the patches."""
    attention, outputs, _, _ = see(name)
    row, prefix = READ[name]
    total: Any = 0
    for index in range(LAYERS - layers, LAYERS):
        output = outputs[index]
        pools: list[Tensor] = []
        mean = output.mean(1, keepdim=True).expand_as(output)
        scores = cosine(name, embedding_of(name, output if row == "attention" else mean, pools))
        differentiated = pools[-1] if row == "attention" else attention[index]
        maps = []
        for k in range(cases.COUNT):
            (g,) = torch.autograd.grad(scores[:, k].sum(), differentiated, retain_graph=True)
            g = g[:, :, :1] if row == "attention" else g  # of several queries the first is read
            maps.append(g.clamp(min=0).mean(1).mean(1))
        total = total + torch.stack(maps, 1)
    return total[..., prefix:].detach()


def grad_eclip(name: str) -> Tensor:
    """Maps (B, K, N)."""
    attention, _, inputs, embedding = see(name)
    row, prefix = READ[name]
    query, key, _ = inputs[-1]
    q = query[:, :, prefix:].mean(2) if row == "mean" else query[:, :, 0]
    q, k = q.flatten(1), key.transpose(1, 2).flatten(2)
    maps = []
    for y in cosine(name, embedding).T:
        (g,) = torch.autograd.grad(y.sum(), attention[-1], retain_graph=True)
        g = g[:, :, prefix:].mean(2) if row == "mean" else g[:, :, 0]
        closeness = (k @ q[..., None])[..., 0] / (k.norm(dim=-1) * q.norm(dim=-1, keepdim=True))
        closeness = closeness[:, prefix:]
        low = closeness.min(1, keepdim=True).values
        weight = (closeness - low) / (closeness - low).max(1, keepdim=True).values
        maps.append(g.sum(1)[:, prefix:].clamp(min=0) * weight)
    return torch.stack(maps, 1).detach()


def branch(block: Any, attended: Tensor) -> Tensor:
    """What the attention's output goes through before it is added."""
    if hasattr(block, "ln_attn"):
        attended = block.ln_attn(attended)
    for name in ("ls_1", "ls1", "layer_scale1"):
        if hasattr(block, name):
            attended = getattr(block, name)(attended)
    if getattr(block, "gamma_1", None) is not None:
        attended = attended * block.gamma_1
    return block.norm1(attended) if type(block).__name__ == "EvaBlockPostNorm" else attended


def mixed(query: Tensor, key: Tensor, value: Tensor, how: str) -> Tensor:
    """S V for every token."""
    if how == "identity":
        return value
    x = query if how == "qq" else key
    return torch.softmax(x @ x.mT / x.shape[-1] ** 0.5, -1) @ value


def patch_similarity(name: str, how: str, *, residual: bool = False) -> Tensor:
    """Maps (B, K, N). With a residual the patches are what the library's own block returns."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    row, prefix = READ[name]
    _, outputs, _, _ = see(name)
    count, columns = outputs[-1].shape[1], []
    if row == "attention":
        for j in range(prefix, count):

            def alone(query: Tensor, key: Tensor, value: Tensor, j: int = j) -> Tensor:
                one = mixed(query, key, value, how)[:, :, j : j + 1]
                return one.expand(-1, -1, query.shape[2], -1)

            with explicit.explicit_attention(len(pixels), None, alone, LAYERS), fused_pool():
                columns.append(cosine(name, cases.embed(model, pixels)))
        return torch.stack(columns, -1).detach()
    block, added = blocks_of(model)[-1], []
    own = next(getattr(block, n) for n in ("self_attn", "attn", "attention") if hasattr(block, n))
    own = block if residual else own

    def note(result: Any) -> None:
        added.append(result[0] if isinstance(result, tuple) else result)

    every = partial(mixed, how=how)
    with explicit.explicit_attention(len(pixels), None, every, LAYERS - 1), hooked(own, note):
        cases.embed(model, pixels)
    tokens = added[0] if residual else branch(block, added[0])
    for j in range(prefix, count):
        same = tokens[:, j : j + 1].expand_as(tokens)
        columns.append(cosine(name, embedding_of(name, same)))
    return torch.stack(columns, -1).detach()


def check(kind: Any, name: str, forward: str, wanted: Tensor, **options: Any) -> None:
    """The method's maps are those of its equation, of scores that are the cosines or 20 times."""
    function, layer = FORWARDS[forward](name, torch.float64)
    pixels = cases.images(name, torch.float64)
    found, scores = kind(function, layer).attribute_targets(pixels, return_scores=True, **options)
    grid = cases.adapter(name).grid(*pixels.shape[-2:])
    scale = 1 if forward == "similarity" else 20
    cases.assert_maps_close(found, scale * wanted.unflatten(-1, grid), TOLERANCE[torch.float64])
    with torch.no_grad():
        torch.testing.assert_close(scores, function(pixels))


# the others end before the projection
ALONE = ("open_clip_vit", "siglip")


@pytest.mark.parametrize(
    ("name", "forward", "layers"),
    [
        *((name, "similarity", "all") for name in (*TOWERS, "blip")),
        *((name, "callable, layer=model", 2) for name in TWO),
        *((name, "callable, layer=tower", 1) for name in ALONE),
    ],
)
def test_legrad_equals_its_equation(name: str, layers: Any, forward: str) -> None:
    wanted = legrad(name, LAYERS if layers == "all" else layers)
    check(LeGrad, name, forward, wanted, layers=layers)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        *((name, "similarity") for name in TOWERS),
        *((name, "callable, layer=model") for name in TWO),
    ],
)
def test_grad_eclip_equals_its_equation(name: str, forward: str) -> None:
    check(GradEclip, name, forward, grad_eclip(name))


@pytest.mark.parametrize(
    ("name", "forward", "how"),
    [
        *((name, "similarity", "identity") for name in TOWERS),
        *((name, "callable, layer=model", how) for name in TWO for how in ("qq", "kk")),
    ],
)
def test_patch_similarity_equals_its_equation(name: str, how: str, forward: str) -> None:
    if how == "qq" and name in POOLING_HEADS:
        function, layer = FORWARDS[forward](name, torch.float64)
        with pytest.raises(UnsupportedModelError, match="pooling head with a single query"):
            PatchSimilarity(function, layer).attribute(
                cases.images(name, torch.float64), target=0, attention="qq"
            )
        return
    check(PatchSimilarity, name, forward, patch_similarity(name, how), attention=how)


@pytest.mark.parametrize(
    ("name", "forward", "how"),
    [
        *((name, "similarity", "identity") for name in TOWERS if name not in POOLING_HEADS),
        ("hf_vit", "callable, layer=model", "qq"),
        ("open_clip_vit_mean", "similarity", "kk"),
    ],
)
def test_patch_similarity_with_the_residual_is_that_of_what_the_block_returns(
    name: str, how: str, forward: str
) -> None:
    wanted = patch_similarity(name, how, residual=True)
    check(PatchSimilarity, name, forward, wanted, attention=how, residual=True)


def test_patch_similarity_refuses_a_residual_that_is_none() -> None:
    method = PatchSimilarity(cases.similarity("siglip"))
    with pytest.raises(UnsupportedModelError, match="no residual runs around a pooling head"):
        method.attribute_targets(cases.images("siglip"), residual=True)
    method = PatchSimilarity(cases.similarity("hf_vit"))
    with pytest.raises(InputError, match="expected residual of True or False, got 1"):
        method.attribute_targets(cases.images("hf_vit"), residual=1)


@pytest.mark.filterwarnings("ignore:.* is not known, so maps are those before it")
def test_a_tower_alone_is_compared_at_its_own_output() -> None:
    """There t is the score's direction at e, y = t . e / |e|, and s_l = t . e_l / |e_l|."""
    model, pixels = cases.built("hf_vit", torch.float64).model, cases.images("hf_vit").double()
    function, layer = FORWARDS["callable, layer=tower"]("hf_vit", torch.float64)
    attention, outputs, _, _ = see("hf_vit")
    end, projection = model.vision_model.post_layernorm, model.visual_projection
    e = end(outputs[-1][:, 0]).detach().requires_grad_()
    found = LeGrad(function, layer).attribute_targets(pixels)
    patches = PatchSimilarity(function, layer).attribute_targets(pixels)
    own = model.vision_model.encoder.layers[-1].self_attn
    last = caught_input(own, partial(cases.embed, model, pixels))
    values = F.normalize(end(own.out_proj(own.v_proj(last)))[:, 1:], dim=-1)
    for k in range(cases.COUNT):
        y = 20 * cosine("hf_vit", projection(e))[:, k]
        (g,) = torch.autograd.grad(y.sum(), e)
        length = e.norm(dim=-1, keepdim=True)
        text = (g + (y[:, None] - (g * e).sum(-1, keepdim=True)) * e / length**2) * length
        wanted: Any = 0
        for index in (1, 2):
            mean = F.normalize(end(outputs[index].mean(1)), dim=-1)
            score = (text * mean).sum()
            (grad,) = torch.autograd.grad(score, attention[index], retain_graph=True)
            wanted = wanted + grad.clamp(min=0).mean((1, 2))[:, 1:]
        torch.testing.assert_close(found[:, k].flatten(1), wanted, rtol=1e-9, atol=1e-15)
        similar = (values @ text[..., None])[..., 0]
        torch.testing.assert_close(patches[:, k].flatten(1), similar, rtol=1e-9, atol=1e-12)


def caught_input(module: Any, run: Callable[[], Any]) -> Tensor:
    """What enters a module."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(next(iter([*args, *kwargs.values()]))),
        with_kwargs=True,
    )
    run()
    handle.remove()
    return seen[0]


def test_more_texts_than_fit_one_backward_give_the_same_maps() -> None:
    """LeGrad takes eight at a time."""
    method = LeGrad(cases.similarity("hf_vit", torch.float64, count=19))
    pixels = cases.images("hf_vit", torch.float64)
    every = method.attribute_targets(pixels)
    each = [method.attribute(pixels, target=k) for k in range(19)]
    torch.testing.assert_close(every, torch.cat(each, 1))


def test_legrad_names_a_number_of_layers_that_is_none() -> None:
    method, images = LeGrad(cases.similarity("hf_vit")), cases.images("hf_vit")
    wrong: list[Any] = [0, 4, -1, True, 1.0, "both"]
    for layers in wrong:
        with pytest.raises(InputError, match=r"expected layers of how many of the tower's 3 last"):
            method.attribute_targets(images, layers=layers)


def test_patch_similarity_names_a_mixing_that_is_none() -> None:
    method = PatchSimilarity(cases.similarity("hf_vit"))
    with pytest.raises(InputError, match="expected `attention` of identity, qq, kk, got 'vv'"):
        method.attribute_targets(cases.images("hf_vit"), attention="vv")
