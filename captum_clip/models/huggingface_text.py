"""The text towers of transformers that have CLIP's layout, SigLIP's among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from typing_extensions import override

from .huggingface_layers import HuggingFaceLayer, is_librarys, layers_of
from .text import TextReadout, TextTower
from .unmodified import has_no_foreign_hooks

LAYOUTS: Final = ("CLIP", "CLIPSeg", "MetaClip2", "OwlViT", "Owlv2", "Siglip", "Siglip2")
"""What the classes of models are called whose text tower has this layout."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceTextTower(TextTower):
    """The text transformer of a `CLIPModel` or `SiglipModel`."""

    model: Any
    module: Any

    @property
    @override
    def embedding_table(self) -> nn.Module:
        table: nn.Module = self.module.embeddings.token_embedding
        return table

    @override
    def end_rows(self, ids: Tensor) -> Tensor:
        name, end = type(self.model).__name__, self.module.config.eos_token_id
        # configurations made before the end token was written down say 2
        if name.startswith("Owl") or (name.startswith("CLIP") and end == 2):
            return ids.to(torch.int).argmax(-1)
        rows: Tensor = (ids == end).int().argmax(-1)
        return rows

    @property
    @override
    def is_unmodified(self) -> bool:
        block: Any = self.layers[-1].block
        own = (self.module, self.module.encoder, block, block.self_attn, self.norm)
        return (
            is_librarys(self.model, "get_text_features")
            and all(map(is_librarys, own[:-1]))
            and all(map(has_no_foreign_hooks, (self.norm, *block.modules())))
        )

    @property
    @override
    def checkpointing(self) -> bool:
        blocks = self.module.encoder.layers
        return any(block.gradient_checkpointing and block.training for block in blocks)


def text_tower_of(model: Any, readout: TextReadout | None) -> HuggingFaceTextTower | None:
    """The text tower of a model of `LAYOUTS`; None where the model is something else.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    names = {kind.__name__ for kind in type(model).__mro__}
    if readout is None or not names & {f"{layout}Model" for layout in LAYOUTS}:
        return None
    module = model.text_model
    while not hasattr(module, "encoder"):
        module = module.text_model
    config = module.config
    return HuggingFaceTextTower(
        module=module,
        model=model,
        layers=layers_of(HuggingFaceLayer, module.encoder.layers, "text tower"),
        readout=readout,
        norm=module.final_layer_norm,
        projection=module.head if hasattr(module, "head") else model.text_projection,
        longest=int(config.max_position_embeddings),
        vocabulary=int(config.vocab_size),
    )
