"""Any library's tower with every attention as a tensor in autograd's graph.

The library's own modules run; only the two functions of torch in which an attention is hidden are
exchanged while they do. Nothing is imported from captum_clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles import Row, Seen

Inputs = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, each (B, H, rows, d)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """PyTorch's attention passes its own functions by where nothing needs a gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The attention of queries and keys as torch.nn.functional.scaled_dot_product_attention has it.

    Of the plain softmax, which a patch of F.softmax does not see.
    """
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask
    return torch.softmax(logits, dim=-1)


@contextmanager
def explicit_attention(
    batch: int,
    inputs: list[Inputs] | None = None,
    exchange: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    last: int = -1,
) -> Iterator[list[Tensor]]:
    """Collect the attentions (B, H, rows, s) of a forward of `batch` images, in their order.

    Args:
        batch: B.
        inputs: takes what every attention is made of.
        exchange: gives the outputs of heads of the attention number `last` instead.
        last: see `exchange`.
    """
    seen: list[Tensor] = []
    softmax = F.softmax

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        assert dropout_p == 0
        assert not enable_gqa
        seen.append(weights(query, key, attn_mask, is_causal, scale))
        if inputs is not None:
            inputs.append((query, key, value))
        if exchange is not None and len(seen) - 1 == last:
            return exchange(query, key, value)
        return seen[-1] @ value

    def weigh(logits: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """torch.nn.MultiheadAttention puts images and heads on one axis, (B H, rows, s)."""
        found = softmax(logits, dim, *args, **kwargs)
        if logits.ndim == 4:
            seen.append(found)
            return found
        seen.append(found.unflatten(0, (batch, -1)))
        return seen[-1].flatten(0, 1)

    with (
        without_fast_path(),
        patch.object(F, "scaled_dot_product_attention", attend),
        patch.object(F, "softmax", weigh),
    ):
        yield seen


def see(
    embed: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    heads: Sequence[int],
    grid: tuple[int, int],
    row: Row,
    prefix: int,
) -> Seen:
    """A forward through the vision tower.

    Args:
        embed: images -> the library's embeddings.
        images: preprocessed.
        heads: of each attention, the pool's last.
        grid: rows and columns of patches.
        row: what the embedding reads.
        prefix: tokens before the patches.
    """
    with explicit_attention(len(images)) as attention:
        embedding = embed(images.detach().clone().requires_grad_())
    assert [found.shape[1] for found in attention] == list(heads)
    return Seen(embedding, embedding, embedding, tuple(attention), grid, row, prefix)


def arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Any:
    """Those of torch's attention, by position or by name."""
    return query, key, value, attn_mask, is_causal


def blinded(embed: Callable[[], Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """Unit embeddings (B, E) of a forward in which some tokens do not see some keys.

    All others leave every attention as they did before, so their keys and values are what they
    were. A pooling head has one row, which does not see them either.

    Args:
        embed: the forward.
        hidden: (s,), the keys.
        ids: (B, n), where the tokens stand.
    """
    clean: list[Tensor] = []
    softmax = F.softmax

    def once(*call: Any, **more: Any) -> Tensor:
        query, key, value, mask, causal = arguments(*call, **more)
        clean.append(weights(query, key, mask, causal, more.get("scale")) @ value)
        return clean[-1]

    with without_fast_path(), patch.object(F, "scaled_dot_product_attention", once):
        embed()
    outputs = iter(clean)

    def without(logits: Tensor) -> Tensor:
        return logits.masked_fill(F.pad(hidden, (0, logits.shape[-1] - len(hidden))), -torch.inf)

    def again(*call: Any, **more: Any) -> Tensor:
        query, key, value, mask, causal = arguments(*call, **more)
        factor = query.shape[-1] ** -0.5 if more.get("scale") is None else more["scale"]
        logits, before = without(query @ key.mT * factor), next(outputs)
        if mask is not None:
            logits = (
                logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            )
        if causal:
            logits = logits + torch.full(logits.shape[2:], -torch.inf).triu(1)
        made = torch.softmax(logits, -1).nan_to_num(0) @ value
        if made.shape[2] != key.shape[2]:
            return made
        at = ids[:, None, :, None].expand(-1, made.shape[1], -1, made.shape[3])
        return before.scatter(2, at, made.gather(2, at))

    def weigh(logits: Tensor, *args: Any, **more: Any) -> Tensor:  # of a pooling head
        return softmax(without(logits), *args, **more)

    with (
        without_fast_path(),
        patch.object(F, "scaled_dot_product_attention", again),
        patch.object(F, "softmax", weigh),
    ):
        return F.normalize(embed(), dim=-1)
