"""The text transformer of OpenCLIP, in a `CLIP`, where its parts are the model's, or by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError
from .open_clip_vit import layer_of, runs_blocks
from .steps import Linear
from .text import TextReadout, TextTower
from .unmodified import has_no_foreign_hooks, is_unmodified


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenClipTextTower(TextTower):
    """OpenCLIP's text transformer; `owner` has its parts, the model itself in a `CLIP`."""

    model: Any
    owner: Any

    @property
    @override
    def embedding_table(self) -> nn.Module:
        table: nn.Module = self.owner.token_embedding
        return table

    @property
    @override
    def entrance(self) -> nn.Module:
        return self.embedding_table  # a `CLIP` calls no module for the whole of it

    @override
    def end_rows(self, ids: Tensor) -> Tensor:
        if self._pool == "argmax":
            return ids.argmax(-1)
        end = self.owner.text_eos_id if self.owner is self.model else self.owner.eos_id
        rows: Tensor = (ids == end).int().argmax(-1)
        return rows

    @property
    def _pool(self) -> str:
        own = self.owner is self.model
        pool: str = self.owner.text_pool_type if own else self.owner.pool_type
        return pool

    @override
    def check(self, ids: Tensor, mask: Tensor | None) -> None:
        if mask is not None:
            raise InputError(
                "TextSimilarity: OpenCLIP's text tower takes no attention_mask, since padding "
                "follows the token that is read; leave it out."
            )
        if self.owner is self.model and ids.shape[1] != self.longest:
            raise InputError(
                f"TextSimilarity: the texts have {ids.shape[1]} tokens, and OpenCLIP's CLIP takes "
                f"{self.longest} exactly; ids, mask = clip.text_inputs(texts) pads them."
            )

    @property
    @override
    def is_unmodified(self) -> bool:
        from open_clip import CLIP, CustomTextCLIP
        from open_clip.transformer import TextTransformer, Transformer

        owners = {} if self.owner is self.model else {self.owner: (TextTransformer,)}
        return (
            is_unmodified(self.model, (CLIP, CustomTextCLIP), "encode_text")
            and has_no_foreign_hooks(self.norm)
            and runs_blocks(
                {**owners, self.owner.transformer: (Transformer,)}, self.layers[-1].block
            )
        )

    @property
    @override
    def checkpointing(self) -> bool:
        return bool(self.owner.transformer.grad_checkpointing)


def text_tower_of(model: Any, readout: TextReadout | None) -> OpenClipTextTower | None:
    """The text tower of a `CLIP` or `CustomTextCLIP`; None where it is none of OpenCLIP's own.

    Raises:
        UnsupportedModelError: an attention that is not supported.
    """
    from open_clip.transformer import TextTransformer

    owner = getattr(model, "text", model)
    if owner is not model and (
        not isinstance(owner, TextTransformer)
        or owner.cls_emb is not None
        or owner.use_pad_mask
        or owner.output_tokens
    ):
        return None
    if readout is None or readout.row == "mean":
        return None
    projection = owner.text_projection
    if isinstance(projection, nn.Parameter):
        projection = Linear(projection.T, None)
    return OpenClipTextTower(
        module=nn.ModuleList([owner.token_embedding, owner.transformer, owner.ln_final]),
        model=model,
        owner=owner,
        layers=tuple(layer_of(i, block) for i, block in enumerate(owner.transformer.resblocks)),
        readout=readout,
        norm=owner.ln_final,
        projection=projection,
        longest=int(owner.context_length),
        vocabulary=int(owner.vocab_size),
    )
