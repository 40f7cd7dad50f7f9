"""Which family a model belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from . import huggingface, open_clip, timm_vit
from .aimv2 import Aimv2Adapter
from .align import AlignAdapter
from .base import ClipAdapter, Family
from .huggingface import transformers_family
from .relatives import BlipAdapter, DualEncoderAdapter, FlavaAdapter, Tipsv2Adapter
from .siglip import NaFlexAdapter, SiglipAdapter
from .towers import Tower
from .unmodified import expect_library_parts

FAMILIES: list[Family] = [
    *huggingface.FAMILIES,
    transformers_family("align", "Align", AlignAdapter),
    transformers_family("aimv2", "Aimv2", Aimv2Adapter),
    transformers_family("blip", "Blip", BlipAdapter, model="ForImageTextRetrieval"),
    transformers_family("flava", "Flava", FlavaAdapter, vision="ImageModel"),
    transformers_family("tipsv2", "Tipsv2", Tipsv2Adapter),
    transformers_family(
        "vision_text_dual_encoder", "VisionTextDualEncoder", DualEncoderAdapter, vision="Model"
    ),
    transformers_family("siglip", "Siglip", SiglipAdapter),
    transformers_family("siglip2", "Siglip2", NaFlexAdapter),
    Family(
        library="open_clip",
        tower_of=open_clip.tower_of,
        adapter=open_clip.OpenClipAdapter,
        models=["CLIP", "CustomTextCLIP", "CoCa"],
        towers=["VisionTransformer", "ModifiedResNet", "TimmModel"],
    ),
    Family("timm.models", timm_vit.tower_of, towers=["VisionTransformer", "Eva"]),
]

_REFUSED = {
    "BlipModel": "its image embedding is normed twice; take BlipForImageTextRetrieval, as in "
    "Salesforce/blip-itm-base-coco",
    "Blip2ForImageTextRetrieval": "its score is that of the query that fits the text best, so an "
    "image has no one embedding; take a CLIP or SigLIP",
}


def transformers_class(name: str, model_type: Any, architectures: Sequence[str]) -> str:
    """The class of transformers of a checkpoint, by its `config.json`; else UnsupportedModelError.

    It may have been saved from one of several `architectures` that hold the model inside another.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base: Any = MODEL_MAPPING_NAMES.get(model_type, ())
    candidates: list[str] = [*architectures, *((base,) if isinstance(base, str) else base)]
    families = [family for family in FAMILIES if family.library.startswith("transformers.")]
    supported = [model for family in families for model in family.models]
    for candidate in candidates:
        if candidate in supported:
            return candidate
    reasons = [_REFUSED[candidate] for candidate in candidates if candidate in _REFUSED]
    advice = reasons[0] if reasons else f"supported are {', '.join(supported)}"
    raise UnsupportedModelError(
        f"load_clip({name!r}): it is a transformers model of type {model_type!r}; {advice}. For an "
        "OpenCLIP repository write 'hf-hub:ORG/NAME'."
    )


def _advice(kind: str, *, models_only: bool) -> str:
    """What would run in the place of a class, in words."""
    names: dict[str, list[str]] = {}
    for family in FAMILIES:
        classes = family.models if models_only else (*family.models, *family.towers)
        names.setdefault(family.library.partition(".")[0], []).extend(classes)
    listed = (f"{library}: {', '.join(dict.fromkeys(c))}" for library, c in names.items() if c)
    return _REFUSED.get(kind, f"supported are {'; '.join(listed)}")


def known_tower(module: nn.Module) -> Tower | None:
    """The vision tower in a user's module; None where the module is no CLIP at all.

    Raises:
        UnsupportedModelError: it is a CLIP, but built in a way that is not supported.
    """
    family = next((family for family in FAMILIES if family.holds(module)), None)
    tower: Tower | None = None
    if family is not None:
        with expect_library_parts(module):
            tower = family.tower_of(module)
    return tower


def tower_of(module: nn.Module) -> Tower:
    """The vision tower in a user's module: a CLIP model or its vision tower.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    tower = known_tower(module)
    if tower is None:
        kind = type(module).__name__
        raise UnsupportedModelError(
            f"there is no CLIP vision tower known in a {kind}; {_advice(kind, models_only=False)}."
        )
    return tower


def adapter_of(model: nn.Module, *, name: str, processor: Any, tokenizer: Any) -> ClipAdapter:
    """The adapter of a user's CLIP model, called `name` in messages; errors as :func:`tower_of`."""
    kind, tower = type(model).__name__, known_tower(model)
    if tower is None:
        advice = _advice(kind, models_only=True)
        other = "" if kind in _REFUSED else ", or the name of such a model"
        raise UnsupportedModelError(f"load_clip does not support a {kind}; {advice}{other}.")
    for family in FAMILIES:
        if family.adapter is not None and family.holds(model, family.models):
            return family.adapter(model, tower, name=name, processor=processor, tokenizer=tokenizer)
    raise UnsupportedModelError(
        f"load_clip: a {kind} has no text tower; pass the whole model, or give this one as `layer` "
        "to a method, with a forward function of your own."
    )
