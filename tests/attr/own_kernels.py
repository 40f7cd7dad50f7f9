"""Kernels of attention of one's own, in the place of those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from tests.attr import cases, running
from tests.attr.changes import Place
from tests.attr.judged import Change, Make, known
from tests.attr.moves import COUNT, SIDE, TOKENS, blocks, noise

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Heads' outputs of q, k and v, each (B, H, s, d), and a scale."""


def kernel(run: Kernel, layers: Sequence[int] = (0, 1, 2)) -> Make:
    """An attention function of transformers, in some layers, of q, k, v (B, H, s, d), scale."""

    def make(place: Place) -> None:
        own = [blocks(place)[index].self_attn for index in layers]

        def function(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
        ) -> Any:
            if any(module is each for each in own):
                out = run(query, key, value, module.scale)
            else:
                out = F.scaled_dot_product_attention(query, key, value, mask, scale=module.scale)
            return out.transpose(1, 2).contiguous(), None

        place.stack.enter_context(patch.dict(AttentionInterface._global_mapping))
        AttentionInterface.register("ones_own", function)
        place.model.set_attn_implementation("ones_own")
        place.stack.callback(place.model.set_attn_implementation, "sdpa")

    return make


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Torch's own, by the name that it has when it is called."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention whose weights are no softmax of torch's."""
    powers = (q @ k.mT * scale).exp()
    return powers / powers.sum(-1, keepdim=True) @ v


def turned_queries(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Queries in another order, whose outputs are put back."""
    return fused(q.roll(3, 2), k, v, scale).roll(-3, 2)


SUM = noise(1, 4, TOKENS, TOKENS) / 4
LOWER = SUM * torch.ones(TOKENS, 1, dtype=torch.float64).index_fill(0, torch.tensor([0]), 0)


def summed(part: Tensor) -> Kernel:
    """Weights that are added after the softmax."""
    return lambda q, k, v, scale: fused(q, k, v, scale) + part @ v


def of_sum(part: Tensor) -> running.Form:
    """The same as a matrix."""
    return running.Form(lambda m, q, k: running.usual(m, q, k) + part, lambda *_: _[-1])


def logged(decoy: Kernel, real: Kernel = by_hand) -> Kernel:
    """A kernel whose result is thrown away."""

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        decoy(q, k, v, scale)
        return real(q, k, v, scale)

    return run


def of_others(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention whose patches ask for something else, and CLS for the same."""
    return fused(torch.cat([q[:, :, :1], 0.2 * q[:, :, 1:]], 2), k, v, scale)


def top(count: int) -> Kernel:
    """Attention to the keys that fit best."""

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        logits = (q @ k.mT * scale).detach()
        least = logits.topk(min(count, logits.shape[-1]), -1).values[..., -1:]
        return F.scaled_dot_product_attention(q, k, v, logits >= least, scale=scale)

    return run


def removed_of(run: Kernel, layers: Sequence[int] = (0, 1, 2)) -> Any:
    """For removal, what the kernel itself gives on fewer keys; for others the model as it runs."""
    runs = [run if index in layers else fused for index in range(3)]

    def truth(change: Change, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            if method == "removal":
                return removed_anew(change, runs)
            return known(change.tower, method, change.batch)

        return wanted

    return truth


def removed_anew(change: Change, runs: Sequence[Kernel]) -> Tensor:
    """What the scores of `hf_vit` lose (B, K, 4, 4) where CLS asks without one patch's key."""
    model: Any = running.shared(change.tower)
    clean: list[Tensor] = []
    without: list[int] = []

    def attend(run: Kernel, module: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        q, k, v = running.split(module, hidden_states)
        if not without:
            clean.append(run(q, k, v, module.scale))
            return running.merged(module, clean[-1])
        kept = [i for i in range(TOKENS) if i != without[0]]
        first = run(q[:, :, :1], k[:, :, kept], v[:, :, kept], module.scale)
        return running.merged(module, torch.cat([first, next(outputs)[:, :, 1:]], 2))

    with ExitStack() as stack, torch.no_grad():
        for layer, run in zip(running.layers_of(model), runs, strict=True):
            own = layer.self_attn
            stack.enter_context(patch.object(own, "forward", partial(attend, run, own)))
        embed = partial(cases.embed, model, change.pixels)
        whole, losses = F.normalize(embed(), dim=-1), list[Tensor]()
        for cell in range(COUNT):
            without[:], outputs = [1 + cell], iter(clean)
            losses.append((whole - F.normalize(embed(), dim=-1)) @ running.rows().T)
    return torch.stack(losses, -1).unflatten(-1, (4, 4))


class Flash(torch.autograd.Function):
    """Attention as flash-attn has it: nothing inside of it has a gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Heads' outputs (B, H, s, d)."""
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """By running it again."""
        q, k, v = (each.detach().requires_grad_() for each in ctx.saved_tensors)
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(q, k, v, scale=ctx.scale)
        return (*torch.autograd.grad(out, (q, k, v), gradients[0]), None)


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same as a function."""
    out: Tensor = Flash.apply(q, k, v, scale)
    return out


def without_graph(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A kernel under no_grad."""
    with torch.no_grad():
        return fused(q, k, v, scale)


def in_bfloat16(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A kernel of half precision."""
    return fused(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale).to(q)


def with_local(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """LePE: a convolution of the values, by channel, beside the attention."""
    heads = v[:, :, 1:].transpose(2, 3).flatten(1, 2).unflatten(2, (SIDE, SIDE))
    weight = noise(heads.shape[1], 1, 3, 3, seed=3) / 4
    local = F.conv2d(heads, weight, padding=1, groups=heads.shape[1]).flatten(2)
    local = local.unflatten(1, (v.shape[1], -1)).transpose(2, 3)
    return fused(q, k, v, scale) + F.pad(local, (0, 0, 1, 0))


def with_logged_product(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Weights times values for a look at them, before the kernel."""
    _ = (q @ k.mT * scale).softmax(-1) @ v
    return fused(q, k, v, scale)


def with_dots(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """einsum with an ellipsis."""
    weights = (torch.einsum("...id,...jd->...ij", q, k) * scale).softmax(-1)
    return torch.einsum("...ij,...jd->...id", weights, v)


def with_prefix(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Prefix tuning: two keys and values of no token."""
    extra = noise(2, 1, k.shape[1], 2, k.shape[3], seed=12).expand(2, len(k), -1, -1, -1)
    return fused(q, torch.cat([k, extra[0]], 2), torch.cat([v, extra[1]], 2), scale)


def padded_keys(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Masked keys before those of the tokens."""
    k, v = (F.pad(x, (0, 0, 7, 0)) for x in (k, v))
    mask = torch.arange(TOKENS + 7) >= 7
    return F.scaled_dot_product_attention(q, k, v, mask.expand(q.shape[2], -1), scale=scale)


def padded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """To a multiple of eight, with the further keys masked."""
    q, k, v = (F.pad(x, (0, 0, 0, 7)) for x in (q, k, v))
    mask = torch.arange(TOKENS + 7) < TOKENS
    out = F.scaled_dot_product_attention(q, k, v, mask.expand(TOKENS + 7, -1), scale=scale)
    return out[:, :, :TOKENS]
