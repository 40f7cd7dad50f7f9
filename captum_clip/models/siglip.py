"""SigLIP of transformers, and SigLIP 2 of fixed size, whose pooling head has one learned query."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from typing_extensions import Self, override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of, text_arguments
from .huggingface_text import SIGLIP_TEXT
from .multihead import MultiheadProbe
from .steps import Residual, Step
from .text import TextReadout

MODELS = ("SiglipModel",)
TOWERS = (*MODELS, "SiglipVisionModel", "SiglipVisionTransformer")


class SiglipTower(HuggingFaceTower):
    """The vision transformer of a `SiglipModel`: patches only, read by the head's probe.

    The head ends in the space of the texts. Without one (`vision_use_head=False`) the callable that
    uses the tower takes the patches' mean.
    """

    library = "siglip"
    classes = TOWERS

    @classmethod
    @override
    def of(cls, module: Any, **parts: Any) -> Self:
        probe = _probe_of(module)
        pooling = "mean" if probe is None else "probe"
        return super().of(module, pooling=pooling, prefix=0, probe=probe, **parts)

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


tower_of = SiglipTower.found_in


def _probe_of(vision: Any) -> MultiheadProbe | None:
    """The pooling head of a SigLIP vision model; None where it has none."""
    head = getattr(vision, "head", None)
    if head is None:
        return None
    query, norm = partial(_embedded_query, head), vision.post_layernorm
    where = f"the pooling head of the {type(vision).__name__}"
    return MultiheadProbe(where, head.attention, query, norm, [norm, head])


def _embedded_query(head: Any) -> Tensor:
    query: Tensor = head.probe[0, 0]
    return query


class SiglipAdapter(HuggingFaceAdapter):
    """A `SiglipModel` of transformers."""

    # the last position is read, so with other padding it is another embedding
    text_readout = TextReadout("last", causal=False, padding="max_length")
    text_layout = SIGLIP_TEXT

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        # it was trained without a mask, which the tokenizers of SigLIP 2 give
        return super()._text_features(text_arguments(tokens)["input_ids"])

    @override
    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, None]:
        return super().text_inputs(texts)[0], None

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))


ADAPTER = SiglipAdapter
