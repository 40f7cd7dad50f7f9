"""Kernels of attention that compute the same as the library's, in other words: the same maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from captum_clip import attr
from captum_clip.errors import UnsupportedModelError
from tests import builders
from tests.attr import running

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
HEADS = 4


def with_kernel(kernel: Kernel) -> builders.Small:
    """A small model whose attention is a kernel of queries, keys, values (B, H, s, d), a scale."""

    def function(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        return kernel(query, key, value, module.scale).transpose(1, 2).contiguous(), None

    small = running.double()
    AttentionInterface.register("a_kernel", function)
    small.model.set_attn_implementation("a_kernel")
    return small


def maps(small: builders.Small, method: Any, batch: int = 2) -> Tensor:
    similarity = running.similarity_of(small.load())
    found: Tensor = method(similarity).attribute_targets(small.images(batch, torch.float64))
    return found


def keys_first(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return ((k @ q.mT).mT * scale).softmax(-1) @ v


def masked_alike(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    products = q @ k.mT * scale
    return (products + torch.zeros(17, 17).type_as(products)).softmax(-1) @ v


@pytest.mark.parametrize("kernel", [keys_first, masked_alike])
@pytest.mark.parametrize("method", [attr.GradEclip, attr.LastGradAttention, attr.AllGradAttention])
def test_a_kernel_in_other_words_has_the_same_maps(kernel: Kernel, method: Any) -> None:
    wanted = maps(running.double(), method)
    torch.testing.assert_close(maps(with_kernel(kernel), method), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [attr.LastGradAttention, attr.AttentionRollout])
def test_heads_before_images_are_refused_after_a_batch_of_one(method: Any) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (q, k, v))  # (H B, s, d)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.unflatten(0, (HEADS, -1)).transpose(0, 1)

    small = with_kernel(kernel)
    explainer = method(running.similarity_of(small.load()))
    explainer.attribute_targets(small.images(1, torch.float64))
    with pytest.raises(UnsupportedModelError, match="at its own place"):
        explainer.attribute_targets(small.images(3, torch.float64))


@pytest.mark.parametrize("method", [attr.GradEclip, attr.ConservativePropagation])
def test_queries_that_are_changed_in_place_later_are_refused(method: Any) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q = q.clone()
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        with torch.no_grad():
            q.zero_()
        return out

    with pytest.raises(UnsupportedModelError, match=r"works in place|of an attention in place"):
        maps(with_kernel(kernel), method)


@pytest.mark.parametrize("method", [attr.AllGradAttention, attr.ConservativePropagation])
def test_a_row_that_sees_nothing_has_weights_of_zero(method: Any) -> None:
    shown = torch.ones(17, 17, dtype=torch.bool)
    shown[5] = False

    def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, shown, scale=scale)

    def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        weights = (q @ k.mT * scale).masked_fill(~shown, -torch.inf).softmax(-1)
        return weights.nan_to_num(0) @ v

    torch.testing.assert_close(
        maps(with_kernel(fused), method), maps(with_kernel(plain), method), rtol=1e-9, atol=1e-12
    )


def test_gates_are_held_in_the_tower_alone() -> None:
    """A forward function may differentiate a network of its own before."""
    small = running.double()
    own = nn.Sequential(nn.Flatten(), nn.LayerNorm(3 * 32 * 32), nn.GELU(), nn.Linear(3072, 1))
    own.double()
    similarity = running.similarity_of(small.load())

    def forward(images: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            [slope] = torch.autograd.grad(own(leaf).sum(), leaf)
        scores: Tensor = similarity(images * torch.sigmoid(50 * slope))
        return scores

    pixels = small.images(2, torch.float64)
    method = attr.ConservativePropagation(forward, small.model)
    _, scores = method.attribute_targets(pixels, return_scores=True)
    torch.testing.assert_close(scores, forward(pixels).detach())


@pytest.mark.parametrize("method", [attr.LastGradAttention, attr.AttentionRollout, attr.LeGrad])
def test_patches_that_move_between_blocks_are_seen_after_the_first_call(method: Any) -> None:
    """A block does not get what the one below it returned, with no hook that would show."""
    small = running.double()
    explainer = method(running.similarity_of(small.load()))
    explainer.attribute_targets(small.images(2, torch.float64))
    block = running.layers_of(small.model)[2]

    def rolled(self: Any, tokens: Tensor, *args: Any, **options: Any) -> Any:
        moved = torch.cat([tokens[:, :1], tokens[:, 1:].roll(1, 1)], 1)
        return nn.Module.__call__(self, moved, *args, **options)

    block.__class__ = type("Rolled", (type(block),), {"__call__": rolled})
    with pytest.raises(UnsupportedModelError, match="at its own place"):
        explainer.attribute_targets(small.images(2, torch.float64))
