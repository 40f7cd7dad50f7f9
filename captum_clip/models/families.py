"""Which family a model belongs to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from . import (
    aimv2,
    align,
    blip,
    dual_encoder,
    flava,
    huggingface,
    naflex,
    open_clip,
    siglip,
    timm_vit,
    tipsv2,
)
from .base import ClipAdapter
from .towers import Tower
from .unmodified import expect_library_parts

# Module that defines a family's models -> the family. An instance cannot exist where that module
# was never imported, so none is imported to look.
_TRANSFORMERS = {
    **dict.fromkeys(huggingface.LAYOUTS, huggingface),
    "align": align,
    "aimv2": aimv2,
    "blip": blip,
    "flava": flava,
    "tipsv2": tipsv2,
    "vision_text_dual_encoder": dual_encoder,
    "siglip": siglip,
    "siglip2": naflex,
}
_FAMILIES: dict[str, ModuleType] = {
    **{f"transformers.models.{n}.modeling_{n}": family for n, family in _TRANSFORMERS.items()},
    "open_clip": open_clip,
    "timm.models.vision_transformer": timm_vit,
}


_REFUSED = {
    "BlipModel": "its image embedding is normed twice; take BlipForImageTextRetrieval, as in "
    "Salesforce/blip-itm-base-coco",
    "Blip2ForImageTextRetrieval": "its score is that of the query that fits the text best, so an "
    "image has no one embedding; take a CLIP or SigLIP",
}


def refused(class_name: str) -> str:
    """Why a class is not supported and what would run instead; empty where nothing is known."""
    return _REFUSED.get(class_name, "")


def transformers_class(name: str, model_type: Any, architectures: Sequence[str]) -> str:
    """The class of transformers for a checkpoint, by its `config.json`.

    It may have been saved from one of several `architectures` that hold the model inside another.

    Raises:
        UnsupportedModelError: no family has such a class.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base: Any = MODEL_MAPPING_NAMES.get(model_type, ())
    candidates: list[str] = [*architectures, *((base,) if isinstance(base, str) else base)]
    supported = [model for family in _TRANSFORMERS.values() for model in family.MODELS]
    for candidate in candidates:
        if candidate in supported:
            return candidate
    reasons = filter(None, map(refused, candidates))
    advice = next(reasons, f"supported are {', '.join(dict.fromkeys(supported))}")
    raise UnsupportedModelError(
        f"load_clip({name!r}): it is a transformers model of type {model_type!r}; {advice}. For an "
        "OpenCLIP repository write 'hf-hub:ORG/NAME'."
    )


def _loaded() -> list[Any]:
    families = [family for module, family in _FAMILIES.items() if module in sys.modules]
    return list(dict.fromkeys(families))


def _supported(attribute: str) -> str:
    names: dict[str, list[str]] = {}
    for module, family in dict(zip(_FAMILIES.values(), _FAMILIES, strict=True)).items():
        names.setdefault(family.partition(".")[0], []).extend(getattr(module, attribute))
    return "; ".join(f"{library}: {', '.join(classes)}" for library, classes in names.items())


def known_tower(module: nn.Module) -> Tower | None:
    """The vision tower in a user's module; None where the module is no CLIP at all.

    Raises:
        UnsupportedModelError: it is a CLIP, but built in a way that is not supported.
    """
    for family in _loaded():
        tower = _tower_in(family, module)
        if tower is not None:
            return tower
    return None


def _tower_in(family: Any, module: nn.Module) -> Tower | None:
    with expect_library_parts(module):
        tower: Tower | None = family.tower_of(module)
    return tower


def tower_of(module: nn.Module) -> Tower:
    """The vision tower in a user's module: a CLIP model or its vision tower.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    tower = known_tower(module)
    if tower is not None:
        return tower
    kind, names = type(module).__name__, f"supported are {_supported('TOWERS')}"
    raise UnsupportedModelError(
        f"there is no CLIP vision tower known in a {kind}; {refused(kind) or names}."
    )


def adapter_of(model: nn.Module, *, name: str, processor: Any, tokenizer: Any) -> ClipAdapter:
    """The adapter of a user's CLIP model; `name` is what messages call it.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    names = {kind.__name__ for kind in type(model).__mro__}
    for family in _loaded():
        tower = _tower_in(family, model) if names.intersection(family.MODELS) else None
        if tower is not None:
            adapter: ClipAdapter = family.ADAPTER(
                model, tower, name=name, processor=processor, tokenizer=tokenizer
            )
            return adapter
    if known_tower(model) is not None:
        raise UnsupportedModelError(
            f"load_clip: a {type(model).__name__} has no text tower; pass the whole model, or give "
            "this one as `layer` to a method, with a forward function of your own."
        )
    kind = type(model).__name__
    advice = refused(kind) or f"supported are {_supported('MODELS')}, or the name of such a model"
    raise UnsupportedModelError(f"load_clip does not support a {kind}; {advice}.")
