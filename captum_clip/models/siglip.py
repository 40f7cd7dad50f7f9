"""SigLIP of transformers, and SigLIP 2 of fixed size, whose pooling head has one learned query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of
from .huggingface_layers import HuggingFaceLayer, check_attention
from .multihead import MultiheadProbe, unsupported_parts
from .steps import Residual, Step
from .text import TextReadout
from .unmodified import has_no_foreign_hooks, is_unmodified

MODELS = ("SiglipModel",)
TOWERS = ("SiglipModel", "SiglipVisionModel")


@dataclass(frozen=True, eq=False, kw_only=True)
class SiglipTower(HuggingFaceTower):
    """The vision transformer of a `SiglipModel`: patches only, read by the head's probe.

    Without a head (`vision_use_head=False`) the callable that uses it takes the patches' mean.
    """

    projection: nn.Module | None = None  # the head ends in the space of the texts

    @override
    def embed(self, readout: Tensor) -> Tensor:
        if self.probe is None:
            normed: Tensor = self.module.post_layernorm(readout)
            return normed
        head = self.module.head
        pooled: Tensor = readout + head.mlp(head.layernorm(readout))
        return pooled

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        if self.probe is None:
            return (self.module.post_layernorm,)
        head, mlp = self.module.head, self.module.head.mlp
        return (Residual((head.layernorm, mlp.fc1, mlp.activation_fn, mlp.fc2)),)

    @property
    @override
    def steps_before_mean(self) -> int:
        return 1  # transformers norms every patch

    @property
    @override
    def is_unmodified(self) -> bool:
        from transformers.models.siglip import modeling_siglip as siglip

        plain = getattr(siglip, "SiglipVisionTransformer", siglip.SiglipVisionModel)
        head: Any = getattr(self.module, "head", None)
        return (
            self.probe is not None
            and is_unmodified(self.module, (plain,))
            and is_unmodified(self.module.encoder, (siglip.SiglipEncoder,))
            and is_unmodified(head, (siglip.SiglipMultiheadAttentionPoolingHead,))
            and is_unmodified(head.attention, (nn.MultiheadAttention,))
            and all(has_no_foreign_hooks(module) for module in head.modules())
        )

    @override
    def nondeterminism(self) -> str | None:
        head: Any = getattr(self.module, "head", None)
        if head is not None and head.attention.training and head.attention.dropout > 0:
            return f"attention dropout {head.attention.dropout}"
        return super().nondeterminism()


def tower_of(module: nn.Module) -> SiglipTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers.models.siglip import modeling_siglip as siglip

    plain = getattr(siglip, "SiglipVisionTransformer", siglip.SiglipVisionModel)
    if not isinstance(module, (plain, siglip.SiglipModel, siglip.SiglipVisionModel)):
        return None
    inner: Any = module
    while not isinstance(getattr(inner, "encoder", None), siglip.SiglipEncoder):
        inner = inner.vision_model
    for index, block in enumerate(inner.encoder.layers):
        check_attention(index, block.self_attn)
    probe = probe_of(inner)
    return SiglipTower(
        module=inner,
        layers=tuple(HuggingFaceLayer(block) for block in inner.encoder.layers),
        pooling="mean" if probe is None else "probe",
        prefix=0,
        probe=probe,
    )


def probe_of(vision: Any) -> MultiheadProbe | None:
    """The pooling head of a SigLIP vision model; None where it has none.

    Raises:
        UnsupportedModelError: its attention is more than the library's own.
    """
    head = getattr(vision, "head", None)
    if head is None:
        return None
    for what in unsupported_parts(head.attention):
        raise UnsupportedModelError(
            f"the pooling head of the {type(vision).__name__} has an attention with {what}; "
            "expected the library's own. Merge adapters such as LoRA into the weights first, load "
            "the model without quantisation, and remove hooks from it."
        )
    query, norm = partial(_embedded_query, head), vision.post_layernorm
    return MultiheadProbe(head.attention, query, norm, [norm, head])


def _embedded_query(head: Any) -> Tensor:
    query: Tensor = head.probe[0, 0]
    return query


class SiglipAdapter(HuggingFaceAdapter):
    """A `SiglipModel` of transformers."""

    tower: SiglipTower

    @property
    @override
    def is_unmodified(self) -> bool:
        from transformers import SiglipModel

        own = is_unmodified(self.model, (SiglipModel,), "get_image_features")
        return own and self.tower.is_unmodified

    @property
    @override
    def text_readout(self) -> TextReadout:
        # the last position is read, so with other padding it is another embedding
        return TextReadout("last", causal=False, padding="max_length")

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        # it was trained without a mask, which the tokenizers of SigLIP 2 give
        ids = tokens if isinstance(tokens, torch.Tensor) else tokens["input_ids"]
        return super()._text_features(ids)

    @override
    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, None]:
        return super().text_inputs(texts)[0], None

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def adapter_of(model: nn.Module, *, name: str, **parts: Any) -> SiglipAdapter | None:
    """The adapter of a `SiglipModel`; None where the model is something else."""
    from transformers import SiglipModel

    if not isinstance(model, SiglipModel):
        return None
    tower = tower_of(model)
    return None if tower is None else SiglipAdapter(model, tower, name=name, **parts)
