"""The vision transformers of OpenCLIP: CLIP's, those with mean pooling, and CoCa's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from . import multihead
from .multihead import Multihead, MultiheadPoolingHead
from .steps import Linear, Projections, Step
from .towers import AttentionLayer, Pooling, ViTTower, Which
from .unmodified import is_linear

_POOLINGS: dict[str, Pooling] = {"tok": "cls", "avg": "mean"}


class OpenClipLayer(AttentionLayer):
    """A residual block of OpenCLIP."""

    block: Any
    attention: Any
    mlp_parts = ("ln_2", "mlp", "ls_2")

    @override
    def projections(self) -> Projections:
        return multihead.projections(self.attention)


class MultiheadLayer(Multihead, OpenClipLayer):
    """A `ResidualAttentionBlock` with `torch.nn.MultiheadAttention`."""

    residual_argument = (0, "q_x")
    branch_parts = ("ls_1",)


class CustomLayer(OpenClipLayer):
    """A `CustomResidualAttentionBlock` with OpenCLIP's own `Attention`."""

    token_argument = (0, "x")
    branch_parts = ("ln_attn", "ls_1")
    inner_norm_part = "ln_inner"

    @property
    @override
    def plain(self) -> bool:
        return isinstance(self.attention.ln_q, nn.Identity)

    @override
    def rotated(self, which: Which, heads: Tensor, context: Any) -> Tensor:
        norm = self.attention.ln_q if which == "query" else self.attention.ln_k
        turned: Tensor = norm(heads)
        return turned


class OpenClipPoolingHead(MultiheadPoolingHead):
    """An `AttentionalPooler`, of which the first query is read."""

    @override
    def embedded_query(self) -> Tensor:
        query: Tensor = self.head.ln_q(self.head.query[0])
        return query


def native_grid(
    size: tuple[int, int], native: tuple[int, int], grid: tuple[int, int]
) -> tuple[int, int]:
    """The grid, where images have the native size; else InputError."""
    if size != native:
        raise InputError(
            f"the tower cannot take images of {size[0]} x {size[1]} pixels: OpenCLIP towers take "
            f"their native size only, here {native[0]} x {native[1]}; resize or crop them, or let "
            "the adapter's preprocess do it."
        )
    return grid


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenClipViT(ViTTower):
    """A `VisionTransformer`, whose embedding is its CLS token, a mean, or its pool's first query.

    With such a pool (CoCa) CLS is one of the keys; of the queries all but the first are captions'.
    """

    module: Any
    patch_map = "conv1"
    runner_parts = ("transformer",)

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        return native_grid((height, width), tuple(self.module.image_size), self.module.grid_size)

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        norm, projection = self.module.ln_post, self.module.proj
        return (norm,) if projection is None else (norm, Linear(projection.T, None))


def tower_of(visual: Any) -> OpenClipViT:
    """The tower in a `VisionTransformer`; UnsupportedModelError for other pools or attention."""
    pool: Any = getattr(visual, "attn_pool", None)
    pooling = _POOLINGS.get(visual.pool_type)
    if pool is not None:
        pooling = "attention" if pooling == "cls" else None  # with a mean all queries would be read
    if pooling is None:
        what = "no single pooled token" if pool is None else "an attentional pool"
        raise UnsupportedModelError(
            f"the VisionTransformer has {what} (pool_type={visual.pool_type!r}); supported are the "
            "CLS token (pool_type='tok'), the mean of the patches (pool_type='avg'), and the first "
            "query of an attentional pool (pool_type='tok')."
        )
    probe = None
    if pool is not None:
        parts, where = (pool, visual.ln_post), "the attentional pool of the VisionTransformer"
        probe = OpenClipPoolingHead(pool, pool.attn, pool.ln_k, parts, where)
    return OpenClipViT(
        module=visual,
        layers=layers_of(visual.transformer),
        pooling=pooling,
        pooling_head=probe,
        steps_before_mean=0 if visual.final_ln_after_pool else 1,
    )


def layers_of(transformer: Any) -> tuple[AttentionLayer, ...]:
    """The blocks of a transformer of OpenCLIP, of images or texts; errors as :func:`tower_of`."""
    return tuple(_layer_of(index, block) for index, block in enumerate(transformer.resblocks))


def _layer_of(index: int, block: Any) -> AttentionLayer:
    attention: Any = getattr(block, "attn", None)
    for what in _unsupported_parts(attention):
        raise UnsupportedModelError(
            f"layer {index} of the VisionTransformer has an attention with {what}; supported are "
            "torch.nn.MultiheadAttention with one stacked input weight and OpenCLIP's Attention "
            "without scaled_cosine and scale_heads."
        )
    kind = MultiheadLayer if isinstance(attention, nn.MultiheadAttention) else CustomLayer
    return kind(block, attention, attention.num_heads)


def _unsupported_parts(attention: Any) -> Iterator[str]:
    """What of an attention is not supported, in words."""
    from open_clip.transformer import Attention

    is_torchs, is_own = (isinstance(attention, kind) for kind in (nn.MultiheadAttention, Attention))
    if is_torchs:
        if attention.in_proj_weight is None:
            yield "separate query, key and value weights"
        yield from multihead.unsupported_parts(attention)
    elif is_own:
        if not is_linear(attention.out_proj):
            yield "an output map that is no torch.nn.Linear"
        yield from (name for name in ("scaled_cosine", "scale_heads") if getattr(attention, name))
    else:
        yield f"the class {type(attention).__name__}"
