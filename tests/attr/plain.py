"""The maps of a small model as it computes now, by plain autograd and explicit attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import attr
from tests import explicit, oracles
from tests.attr import cases
from tests.attr import test_others_methods as others

Forward = Callable[[Tensor], Tensor]
READS = ("hf_vit", "open_clip_vit_mean", "siglip", "open_clip_resnet")
"""A tower for each way to read an embedding: CLS, a mean, a pooling head, a ResNet's pool."""
# of the attentions alone, so that any score will do
OF_ATTENTIONS = ("last-grad", "all-grad", "rollout", "attention-grad-cam")
COUNT = 16  # patches of a transformer


def model_of(name: str) -> Any:
    """The shared small model."""
    return cases.built(name, torch.float64).model


def pixels_of(name: str) -> Tensor:
    """Its images."""
    return cases.images(name).double()


@contextmanager
def detached_gates(
    name: str, marks: list[Tensor] | None = None, mlps: bool = False
) -> Iterator[None]:
    """The model with every gate a constant.

    With `marks` the pooled row of every attention is multiplied with ones, which they collect, and
    nothing else leads from a layer to the next but the stream itself, or with `mlps` also the MLPs
    of each token.
    """
    model, softmax = model_of(name), F.softmax
    width = len(cases.images(name))

    def norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 0) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        sigma = (centered.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        return centered / sigma * (1 if weight is None else weight) + (0 if bias is None else bias)

    def weighted(weights: Tensor) -> Tensor:  # (B, H, rows, s)
        weights = weights.detach()
        if marks is None:
            return weights
        ones = torch.ones_like(weights[:, :1, :1]).requires_grad_()
        marks.append(ones)
        return torch.cat([weights[:, :, :1] * ones, weights[:, :, 1:]], 2)

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        return weighted(explicit.weights(q, k, attn_mask, is_causal, scale)) @ v

    def weigh(logits: Tensor, dim: int | None = None, *a: Any, **options: Any) -> Tensor:
        weights = softmax(logits, dim, *a, **options)
        return weighted(weights.unflatten(0, (width, -1))).flatten(0, 1)

    def gate(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        return args[0] * (out / args[0]).detach()

    def cut(_: nn.Module, args: Any) -> Any:
        return tuple(a.detach() if isinstance(a, Tensor) else a for a in args)

    with ExitStack() as stack:
        stack.enter_context(explicit.without_fast_path())
        stack.enter_context(patch.object(F, "layer_norm", norm))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attend))
        stack.enter_context(patch.object(F, "softmax", weigh))
        for module in model.modules():
            if "GELU" in type(module).__name__:
                stack.callback(module.register_forward_hook(gate, prepend=True).remove)
            if type(module) is nn.SiLU:  # of SwiGLU, whose other branch is the linear one
                handle = module.register_forward_hook(lambda _, args, out: out.detach())
                stack.callback(handle.remove)
        if marks is not None:
            for block in others.blocks_of(model):
                later = () if mlps else ("layer_norm2", "ln_2", "norm2")
                names = ("layer_norm1", "ln_1", "norm1", *later)
                for part in (getattr(block, n) for n in names if hasattr(block, n)):
                    stack.callback(part.register_forward_pre_hook(cut, prepend=True).remove)
        yield


def _keep(kept: list[Tensor], _: nn.Module, args: Any, out: Any) -> Any:
    """What follows gets a copy, since it may work in place."""
    kept.append(out[0] if isinstance(out, tuple) else out)
    return (kept[-1].clone(), *out[1:]) if isinstance(out, tuple) else kept[-1].clone()


def _linear_scores(embedding: Tensor) -> Tensor:
    return embedding @ cases.embeddings().T / embedding.norm(dim=-1, keepdim=True).detach()


def _conservative(name: str) -> Tensor:
    """Maps (B, K, N)."""
    model, pixels = model_of(name), pixels_of(name)
    visual = getattr(model, "visual", None)
    conv = model.vision_model.embeddings.patch_embedding if visual is None else visual.conv1
    kept: list[Tensor] = []
    with detached_gates(name):
        handle = conv.register_forward_hook(partial(_keep, kept))
        embedding = cases.embed(model, pixels.requires_grad_())
        handle.remove()
    [patches] = kept
    maps = [
        (torch.autograd.grad(y.sum(), patches, retain_graph=True)[0] * patches).sum(1).flatten(1)
        for y in _linear_scores(embedding).T
    ]
    return torch.stack(maps, 1).detach()


def direct(name: str, mlps: bool = False) -> Tensor:
    """Maps (B, K, N)."""
    model, pixels = model_of(name), pixels_of(name)
    row, prefix = others.READ[name]
    if row == "mean":
        tokens: list[Tensor] = []
        last_block = others.blocks_of(model)[-1]
        handle = last_block.register_forward_hook(partial(_keep, tokens))
        with detached_gates(name):
            embedding = cases.embed(model, pixels.requires_grad_())
        handle.remove()
        [last] = tokens
        maps = [
            (torch.autograd.grad(y.sum(), last, retain_graph=True)[0] * last).sum(-1)[:, prefix:]
            for y in _linear_scores(embedding).T
        ]
        return torch.stack(maps, 1).detach()
    marks: list[Tensor] = []
    with detached_gates(name, marks, mlps):
        embedding = cases.embed(model, pixels)
    marks = marks[-1:] if row == "attention" else marks
    maps = []
    for y in _linear_scores(embedding).T:
        total = torch.zeros_like(marks[0])
        if y.requires_grad:
            found = torch.autograd.grad(y.sum(), marks, retain_graph=True, allow_unused=True)
            total = sum((g for g in found if g is not None), total)
        maps.append(total[:, 0, 0, prefix:])
    return torch.stack(maps, 1).detach()


def of_resnet(name: str) -> tuple[Tensor, Tensor]:
    """The last stage's features (B, N, C), and the embedding."""
    kept: list[Tensor] = []
    handle = model_of(name).visual.layer4.register_forward_hook(partial(_keep, kept))
    embedding = cases.embed(model_of(name), pixels_of(name).requires_grad_())
    handle.remove()
    return kept[0], embedding


def pooled(pool: Any, features: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, H, N + 1) and values (B, H, N + 1, d) of a ResNet's pool, asked by a mean."""
    tokens = torch.cat([mean, features], 1) + pool.positional_embedding
    query, key, value = (
        each(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for each in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return explicit.weights(query[:, :, :1], key)[:, :, 0], value


def _direct_of_resnet(name: str) -> Tensor:
    """Every position through its own value and through the mean token's, (B, K, N)."""
    pool = model_of(name).visual.attnpool
    features, embedding = of_resnet(name)
    features = features.detach().flatten(2).mT
    weights, value = pooled(pool, features, features.mean(1, keepdim=True))
    own = weights[..., 1:, None] * value[:, :, 1:]
    spread = (features @ pool.v_proj.weight.T).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    heads = own + weights[..., :1, None] * spread / features.shape[1]
    parts = torch.einsum(
        "bhsd,ehd->bse", heads, pool.c_proj.weight.unflatten(1, (len(heads[0]), -1))
    )
    rows = cases.embeddings() / embedding.norm(dim=-1)[:, None, None]
    return (rows @ parts.mT).detach()


def _grad_cam(name: str, forward: Forward | None = None) -> Tensor:
    kept: list[Tensor] = []
    handle = model_of(name).visual.layer4.register_forward_hook(partial(_keep, kept))
    pixels = pixels_of(name).requires_grad_()
    scores = scores_of(name, pixels, forward)
    handle.remove()
    return oracles.grad_cam(oracles.SeenResNet(scores, kept[0]), scores)


# What the scores lose where the reader does not see a patch


def _removed(name: str) -> Tensor:
    """(B, K, N)."""
    losses = {"cls": _of_keys, "attention": _of_keys, "mean": _of_means}.get(
        others.READ.get(name, ("", 0))[0], _of_pool
    )
    with torch.no_grad():
        return (losses(name) @ cases.embeddings().T).mT


def _of_keys(name: str) -> Tensor:
    """Of a token that does not see a key, (B, N, E)."""
    row, prefix = others.READ[name]
    embed = partial(cases.embed, model_of(name), pixels_of(name))
    clean, ids = F.normalize(embed(), dim=-1), torch.zeros(3, row == "cls").long()
    hidden = F.pad(torch.eye(COUNT, dtype=torch.bool), (prefix, 0))
    return torch.stack([clean - explicit.blinded(embed, each, ids) for each in hidden], 1)


def _of_means(name: str) -> Tensor:
    """Of a mean that leaves a patch out, (B, N, E)."""
    embed = partial(cases.embed, model_of(name), pixels_of(name))
    clean, losses, prefix = F.normalize(embed(), dim=-1), list[Tensor](), others.READ[name][1]

    def without(cell: int, _: nn.Module, args: Any, out: Tensor) -> Tensor:
        patches = out[:, prefix:].clone()
        patches[:, cell] = (patches.sum(1) - patches[:, cell]) / (COUNT - 1)
        return torch.cat([out[:, :prefix], patches], 1)

    for cell in range(COUNT):
        norm = model_of(name).visual.ln_post  # of each token, before their mean
        handle = norm.register_forward_hook(partial(without, cell))
        losses.append(clean - F.normalize(embed(), dim=-1))
        handle.remove()
    return torch.stack(losses, 1)


def _of_pool(name: str) -> Tensor:
    """Of a ResNet's pool, whose mean token asks without the region too, (B, N, E)."""
    pool = model_of(name).visual.attnpool
    features, embedding = of_resnet(name)
    features = features.flatten(2).mT
    losses = list[Tensor]()
    for cell in range(features.shape[1]):
        kept = [i for i in range(features.shape[1]) if i != cell]
        tokens = features[:, [cell, *kept]]
        mean = features[:, kept].mean(1, keepdim=True)
        positions = [0, cell + 1, *(i + 1 for i in kept)]
        tokens = torch.cat([mean, tokens], 1) + pool.positional_embedding[positions]
        query, key, value = (
            each(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
            for each in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        seen = [0, *range(2, len(positions))]
        heads = explicit.weights(query[:, :, :1], key[:, :, seen]) @ value[:, :, seen]
        losses.append(
            F.normalize(embedding, dim=-1) - F.normalize(pool.c_proj(heads.flatten(1)), dim=-1)
        )
    return torch.stack(losses, 1)


# Every method


def scores_of(name: str, pixels: Tensor, forward: Forward | None) -> Tensor:
    """Of a forward function, or the cosines."""
    if forward is not None:
        return forward(pixels)
    return oracles.cosines(cases.embed(model_of(name), pixels), cases.embeddings())


def _of_attentions(name: str, method: str, forward: Forward | None) -> Tensor:
    row, prefix = others.READ[name]
    pixels = pixels_of(name).requires_grad_()
    with explicit.explicit_attention(len(pixels)) as attention:
        scores = scores_of(name, pixels, forward)
    seen = oracles.Seen(scores, scores, scores, tuple(attention), (4, 4), row, prefix)
    own = oracles.METHODS[attr.METHODS[method].__name__]
    # of tokens behind the patches none has a cell
    maps = [own(seen, y, row)[:, prefix : prefix + COUNT] for y in scores.T]
    return torch.stack(maps, 1).detach().unflatten(-1, (4, 4))


OF_COSINES: dict[str, Callable[[str], Tensor]] = {
    "grad-eclip": others.grad_eclip,
    "legrad": partial(others.legrad, layers=2),
    "patches": partial(others.patch_similarity, how="identity"),
    "direct": direct,
    "conservative": _conservative,
    "removal": _removed,
}


def wanted(name: str, method: str, forward: Forward | None = None) -> Tensor | None:
    """The map (B, K, h, w) of the model as it computes now; None where no oracle knows it.

    Args:
        name: the shared model.
        method: the name of a method.
        forward: scores of one's own, in the place of the cosines.
    """
    if method in OF_ATTENTIONS:
        return _of_attentions(name, method, forward)
    if method == "grad-cam":
        return _grad_cam(name, forward)
    if forward is not None:
        return None
    if name == "open_clip_resnet":
        found = _direct_of_resnet(name) if method == "direct" else _removed(name)
        return found.unflatten(-1, (3, 3))
    found = OF_COSINES[method](name)
    if found.shape[-1] > COUNT and method == "grad-eclip":  # keys of no patch
        return None
    return found if found.ndim == 4 else found[..., :COUNT].unflatten(-1, (4, 4))
