"""The text transformer of OpenCLIP, in a `CLIP`, where its parts are the model's, or by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from .huggingface_layers import BERTS, HuggingFaceTextTower, TextLayout
from .open_clip_vit import layers_of
from .steps import Linear
from .text import TextPooling, TextTower


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenClipTextTower(TextTower):
    """OpenCLIP's text transformer; `owner` has its parts, the model itself in a `CLIP`."""

    model: Any
    owner: Any
    takes_mask = False

    @property
    @override
    def entrance(self) -> nn.Module:
        return self.embedding_table  # a `CLIP` calls no module for the whole of it

    @override
    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        owner = self.owner
        if self.owner is self.model or not (self.suffix or owner.use_pad_mask):
            return None
        seen: Tensor = ids != owner.pad_id
        if not self.suffix:
            return seen
        own = seen.new_ones(len(ids), 1)
        # the first CoCa's mask has CLS at its start, though CLS stands at the end
        return torch.cat([seen, own] if owner.correct_cls_mask else [own, seen], 1)

    @property
    @override
    def runners(self) -> tuple[nn.Module, ...]:
        return self.model, self.owner, self.owner.transformer


class HFEncoderTower(HuggingFaceTextTower):
    """A text model of transformers in OpenCLIP's `HFTextEncoder`, which makes its mask."""

    takes_mask = False

    @override
    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        seen: Tensor = ids != self.module.config.pad_token_id
        return seen

    @property
    @override
    def runners(self) -> tuple[nn.Module, ...]:
        return *super().runners, self.module.pooler


def _hf_text_tower(model: Any, readout: TextPooling) -> HFEncoderTower | None:
    encoder = model.text
    config, pooler = encoder.config, getattr(encoder.transformer, "pooler", None)
    if type(encoder.transformer).__name__ not in BERTS or getattr(config, "is_decoder", False):
        return None
    pooled = pooler is not None and getattr(encoder.pooler, "use_pooler_output", False)
    pooler_parts = ("transformer.pooler.dense", "transformer.pooler.activation") * pooled
    layout = TextLayout(
        module="text",
        table="transformer.embeddings.word_embeddings",
        encoder="transformer.encoder",
        own_head=(*pooler_parts, "proj"),
        head=(),
    )
    sizes = {"longest": int(encoder.context_length), "vocabulary": int(encoder.vocab_size)}
    return HFEncoderTower.of(model, layout, readout, **sizes)


def open_clip_text_tower(model: Any, readout: TextPooling | None) -> TextTower | None:
    """The text tower of a model of OpenCLIP; None where it is none that is supported."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    owner = getattr(model, "text", model)
    if readout is None:
        return None
    if isinstance(owner, HFTextEncoder):
        return _hf_text_tower(model, readout)
    if owner is not model and not isinstance(owner, TextTransformer):
        return None
    projection = owner.text_projection
    if isinstance(projection, nn.Parameter):
        projection = Linear(projection.T, None)
    pool = getattr(owner, "text_pool_type", None) or owner.pool_type  # a `CLIP`'s own name
    end = getattr(owner, "text_eos_id", getattr(owner, "eos_id", None))
    return OpenClipTextTower(
        module=nn.ModuleList([owner.token_embedding, owner.transformer, owner.ln_final]),
        model=model,
        owner=owner,
        embedding_table=owner.token_embedding,
        end=end if pool == "eos" else None,
        layers=layers_of(owner.transformer),
        readout=readout,
        steps=(owner.ln_final,) if projection is None else (owner.ln_final, projection),
        suffix=int(getattr(owner, "cls_emb", None) is not None),
        longest=int(owner.context_length),
        is_fixed=owner is model,
        vocabulary=int(owner.vocab_size),
    )
