"""The vision transformers of OpenCLIP: CLIP's, those with mean pooling, and CoCa's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from . import multihead
from .multihead import MultiheadProbe
from .steps import Linear, Step
from .towers import AttentionLayer, Exposed, Pooling, Projections, ViTTower, Which
from .unmodified import has_no_foreign_hooks, is_linear, is_unmodified

_POOLINGS: dict[str, Pooling] = {"tok": "cls", "avg": "mean"}


class _OpenClipLayer(AttentionLayer):
    """What the two kinds of blocks have in common: one stacked weight for query, key and value."""

    block: Any
    attention: Any

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)

    @override
    def projections(self) -> Projections:
        return multihead.projections(self.attention)

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.head_dim**-0.5)


class MultiheadLayer(_OpenClipLayer):
    """A `ResidualAttentionBlock` with `torch.nn.MultiheadAttention`."""

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens if self.attention.batch_first else tokens.transpose(0, 1)

    @override
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return self._batch_first(args[0] if args else kwargs["query"])

    @override
    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return self._batch_first(args[0] if args else kwargs["q_x"])

    @override
    def output(self, result: Any) -> Tensor:
        return self._batch_first(result[0])  # (output, weights or None)

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return (self._batch_first(output), *result[1:])

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        block = self.block
        hidden = residual + block.ls_1(attended)
        out: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return out

    @override
    def branch(self) -> tuple[Step, ...]:
        return (self.block.ls_1,)

    @override
    def leaving(self, result: Any) -> Tensor:
        return self._batch_first(result)

    @override
    def left(self, result: Any, output: Tensor) -> Any:
        return self._batch_first(output)


class CustomLayer(_OpenClipLayer):
    """A `CustomResidualAttentionBlock` with OpenCLIP's own `Attention`."""

    @override
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tokens: Tensor = args[0] if args else kwargs["x"]
        return tokens

    residual = tokens

    @override
    def output(self, result: Any) -> Tensor:
        output: Tensor = result
        return output

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return output

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        block = self.block
        hidden = residual + block.ls_1(block.ln_attn(attended))
        out: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return out

    @override
    def branch(self) -> tuple[Step, ...]:
        return (self.block.ln_attn, self.block.ls_1)

    @property
    @override
    def plain(self) -> bool:
        return isinstance(self.attention.ln_q, nn.Identity)

    @override
    def turned(self, which: Which, heads: Tensor, context: Any) -> Tensor:
        norm = self.attention.ln_q if which == "query" else self.attention.ln_k
        turned: Tensor = norm(heads)
        return turned

    @property
    @override
    def linear(self) -> bool:
        return isinstance(self.attention.ln_inner, nn.Identity)

    @override
    def merge(self, heads_output: Tensor) -> Tensor:
        output: Tensor = self.attention.out_proj(self.attention.ln_inner(heads_output))
        return output

    @override
    def merge_steps(self) -> tuple[Step, ...]:
        return (self.attention.ln_inner, *super().merge_steps())

    @override
    def head_parameters(self) -> Sequence[Tensor]:
        return tuple(self.attention.ln_inner.parameters())

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        return {"heads_output": (self.attention.ln_inner, False)}  # it always runs


def native_grid(
    size: tuple[int, int], native: tuple[int, int], grid: tuple[int, int]
) -> tuple[int, int]:
    """The grid, where images have the native size.

    Raises:
        InputError: they have another.
    """
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

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        return native_grid((height, width), tuple(self.module.image_size), self.module.grid_size)

    @override
    def embed(self, readout: Tensor) -> Tensor:
        # for one token the order of norm and pooling makes no difference
        normed: Tensor = self.module.ln_post(readout)
        return normed if self.module.proj is None else normed @ self.module.proj

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        norm, projection = self.module.ln_post, self.module.proj
        return (norm,) if projection is None else (norm, Linear(projection.T, None))

    @property
    @override
    def steps_before_mean(self) -> int:
        return 0 if self.module.final_ln_after_pool else 1

    @property
    @override
    def is_unmodified(self) -> bool:
        from open_clip import transformer as library

        read: Any = self.layers[-1].block if self.probe is None else self.module.attn_pool
        readers = (
            library.ResidualAttentionBlock,
            library.CustomResidualAttentionBlock,
            library.AttentionalPooler,
        )
        return (
            is_unmodified(self.module, (library.VisionTransformer,))
            and is_unmodified(self.module.transformer, (library.Transformer,))
            and is_unmodified(read, readers)
            and is_unmodified(read.attn, (nn.MultiheadAttention, library.Attention))
            and all(has_no_foreign_hooks(module) for module in read.modules())
        )

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.module.conv1
        return module

    @property
    @override
    def checkpointing(self) -> bool:
        return bool(self.module.transformer.grad_checkpointing)

    @override
    def nondeterminism(self) -> str | None:
        # dropout of patches or attention is a number here, not a `Dropout`
        patches = self.module.patch_dropout
        if patches.training and getattr(patches, "prob", 0) > 0:
            return f"patch dropout {patches.prob}"
        for each in self.attentions:
            attention: Any = each.outlet
            if attention.training and getattr(attention, "dropout", 0) > 0:
                return f"attention dropout {attention.dropout}"
        return super().nondeterminism()


def tower_of(visual: Any) -> OpenClipViT:
    """The tower in a `VisionTransformer`.

    Raises:
        UnsupportedModelError: a pooling or an attention that is not supported.
    """
    pool = getattr(visual, "attn_pool", None)
    pooling = _POOLINGS.get(visual.pool_type)
    if pool is not None:
        pooling = "probe" if pooling == "cls" else None  # with a mean all queries would be read
    if pooling is None:
        what = "no single pooled token" if pool is None else "an attentional pool"
        raise UnsupportedModelError(
            f"the VisionTransformer has {what} (pool_type={visual.pool_type!r}); supported are the "
            "CLS token (pool_type='tok'), the mean of the patches (pool_type='avg'), and the first "
            "query of an attentional pool (pool_type='tok')."
        )
    return OpenClipViT(
        module=visual,
        layers=tuple(layer_of(i, block) for i, block in enumerate(visual.transformer.resblocks)),
        pooling=pooling,
        probe=None if pool is None else _probe(visual, pool),
    )


def _probe(visual: Any, pool: Any) -> MultiheadProbe:
    for what in multihead.unsupported_parts(pool.attn):
        raise UnsupportedModelError(
            f"the attentional pool of the VisionTransformer has an attention with {what}; expected "
            "the library's own. Merge adapters such as LoRA into the weights first, load the model "
            "without quantisation, and remove hooks from it."
        )
    query, modules = partial(_embedded_query, pool), [pool, visual.ln_post]
    return MultiheadProbe(pool.attn, query, pool.ln_k, modules)


def _embedded_query(pool: Any) -> Tensor:
    query: Tensor = pool.ln_q(pool.query[0])
    return query


def layer_of(index: int, block: Any) -> AttentionLayer:
    """One block of OpenCLIP, of an image or a text tower.

    Raises:
        UnsupportedModelError: an attention that is not supported.
    """
    from open_clip.transformer import Attention

    attention = getattr(block, "attn", None)
    if isinstance(attention, nn.MultiheadAttention):
        refused = {"separate query, key and value weights": attention.in_proj_weight is None}
        refused |= dict.fromkeys(multihead.unsupported_parts(attention), True)
    elif isinstance(attention, Attention):
        refused = {
            "an output map that is no torch.nn.Linear": not is_linear(attention.out_proj),
            "scaled_cosine": bool(attention.scaled_cosine),
            "scale_heads": bool(attention.scale_heads),
        }
    else:
        refused = {f"the class {type(attention).__name__}": True}
    for what, found in refused.items():
        if found:
            raise UnsupportedModelError(
                f"layer {index} of the VisionTransformer has an attention with {what}; supported "
                "are torch.nn.MultiheadAttention with one stacked input weight and OpenCLIP's "
                "Attention without scaled_cosine and scale_heads."
            )
    plain = isinstance(attention, nn.MultiheadAttention)
    return MultiheadLayer(block) if plain else CustomLayer(block)
