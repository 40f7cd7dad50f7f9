"""VisionTextDualEncoder of transformers: CLIP's vision tower beside any text model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from . import huggingface
from .huggingface import HuggingFaceAdapter, HuggingFaceTower
from .huggingface_text import BERTS, POOLED_BERT_TEXT, TextLayout
from .unmodified import is_librarys

MODELS = ("VisionTextDualEncoderModel",)
TOWERS = MODELS


class DualEncoderAdapter(HuggingFaceAdapter):
    """A `VisionTextDualEncoderModel`."""

    text_readout = None  # any text model with a pooled output

    @property
    @override
    def text_layout(self) -> TextLayout | None:
        kind, config = type(self.model.text_model), self.model.text_model.config
        known = kind.__name__ in BERTS and is_librarys(self.model.text_model)
        return POOLED_BERT_TEXT if known and not config.is_decoder else None


def tower_of(module: nn.Module) -> HuggingFaceTower | None:
    """The vision tower in a `VisionTextDualEncoderModel`; None where the module is something else.

    Raises:
        UnsupportedModelError: its vision model is none with CLIP's layout.
    """
    from transformers import VisionTextDualEncoderModel

    if not isinstance(module, VisionTextDualEncoderModel):
        return None
    model: Any = module
    tower = huggingface.tower_of(model.vision_model)
    if tower is None:
        raise UnsupportedModelError(
            f"the VisionTextDualEncoderModel has a {type(model.vision_model).__name__} as its "
            "vision model; supported is CLIPVisionModel."
        )
    return replace(tower, projection=model.visual_projection)


ADAPTER = DualEncoderAdapter
