"""Which family a model belongs to."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from . import align, huggingface, open_clip, siglip
from .base import ClipAdapter
from .towers import Tower

# Module that defines a family's models -> the family. An instance cannot exist where that module
# was never imported, so none is imported to look.
_FAMILIES: dict[str, ModuleType] = {
    "transformers.models.clip.modeling_clip": huggingface,
    "transformers.models.align.modeling_align": align,
    "transformers.models.siglip.modeling_siglip": siglip,
    "open_clip": open_clip,
}


def _loaded() -> list[Any]:
    return [family for module, family in _FAMILIES.items() if module in sys.modules]


def _supported(attribute: str) -> str:
    return "; ".join(
        f"{module.partition('.')[0]}: {', '.join(getattr(family, attribute))}"
        for module, family in _FAMILIES.items()
    )


def known_tower(module: nn.Module) -> Tower | None:
    """The vision tower in a user's module; None where the module is no CLIP at all.

    Raises:
        UnsupportedModelError: it is a CLIP, but built in a way that is not supported.
    """
    for family in _loaded():
        tower: Tower | None = family.tower_of(module)
        if tower is not None:
            return tower
    return None


def tower_of(module: nn.Module) -> Tower:
    """The vision tower in a user's module.

    Args:
        module: a CLIP model or its vision tower, of transformers or OpenCLIP.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    tower = known_tower(module)
    if tower is not None:
        return tower
    raise UnsupportedModelError(
        f"there is no CLIP vision tower known in a {type(module).__name__}; "
        f"supported are {_supported('TOWERS')}."
    )


def adapter_of(model: nn.Module, *, name: str, processor: Any, tokenizer: Any) -> ClipAdapter:
    """The adapter of a user's CLIP model.

    Args:
        model: a CLIP model of transformers or OpenCLIP.
        name: what to call it in messages.
        processor: makes tensors of pictures; may be None.
        tokenizer: makes tokens of texts; may be None.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    for family in _loaded():
        adapter: ClipAdapter | None = family.adapter_of(
            model, name=name, processor=processor, tokenizer=tokenizer
        )
        if adapter is not None:
            return adapter
    raise UnsupportedModelError(
        f"load_clip does not support a {type(model).__name__}; "
        f"supported are {_supported('MODELS')}, or the name of such a model."
    )
