"""Kernels of attention that compute the same as the library's, in other words: the same maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from captum_clip import attr
from tests import builders
from tests.attr import running

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]


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
@pytest.mark.parametrize("method", [attr.GradEclip, attr.AllGradAttention])
def test_a_kernel_in_other_words_has_the_same_maps(kernel: Kernel, method: Any) -> None:
    wanted = maps(running.double(), method)
    torch.testing.assert_close(maps(with_kernel(kernel), method), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [attr.AllGradAttention])
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
