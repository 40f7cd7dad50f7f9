"""The families of models that there are, by the classes of their libraries."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..checks import show
from ..errors import UnsupportedModelError, argument
from .adapter import ClipAdapter, Family
from .huggingface import HUGGING_FACE
from .library import expect_library_parts, refuse_quantized, unwrapped
from .open_clip import OPEN_CLIP, OPENAI
from .timm import TIMM
from .towers import Tower

FAMILIES: list[Family] = [OPENAI, *HUGGING_FACE, OPEN_CLIP, TIMM]

# Patterns of the names of classes -> why they are refused, and what to use instead.
_REFUSED = {
    "BlipModel": "its image embedding is normed twice; use BlipForImageTextRetrieval, as in "
    "Salesforce/blip-itm-base-coco",
    "Blip2ForImageTextRetrieval": "it scores the query that fits the text best, so an image has no "
    "single embedding; use a CLIP or SigLIP",
    "ResNet": "a classifier does not compare images with texts; use Captum's Grad-CAM, "
    "captum.attr.LayerGradCam(model, model.layer4).attribute(images, target=0)",
    "RecursiveScriptModule": "torch.jit hides the modules of a model; load it with "
    "clip.load(..., jit=False)",
    "(CLIP|MetaClip2|Siglip2?)ForImageClassification": "a classifier has no text tower, and reads "
    "the mean of the patches; use Captum's gradients of its logits, as in "
    "captum.attr.Saliency(lambda images: model(images).logits), or the CLIP that it was made from",
    "XCLIP.*": "it compares texts with videos, and a text's embedding changes with the video; use "
    "a CLIP on single frames",
    "(Clap|CLAP).*": "it compares texts with sounds, not images; use Captum's gradients of its "
    "spectrograms",
    "Vilt.*": "it reads a text and an image together, so neither has an embedding to compare; use "
    "a CLIP or SigLIP",
    "Col(Pali|Qwen|Idefics|SmolVLM|ModernVBert).*": "a page has an embedding for each patch, "
    "and each word is scored by its best patch; use captum_clip.apps.late_interaction",
}


def register_family(family: Family) -> None:
    """Add a family for `load_clip` and every method, to be asked before those that are there."""
    FAMILIES.append(family)


def transformers_class(name: str, config: Mapping[str, Any]) -> str:
    """The class of transformers of a checkpoint, by its `config.json`; else UnsupportedModelError.

    The checkpoint may have been saved from a class that holds the model inside it, so the base
    class of its type counts as well.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = config.get("model_type")
    candidates: list[str] = list(config.get("architectures") or ())
    # Some types have several base classes.
    base: Any = MODEL_MAPPING_NAMES.get(model_type, ())
    candidates += [base] if isinstance(base, str) else base
    families = [family for family in FAMILIES if family.library.startswith("transformers.")]
    supported = {model for family in families for model in family.models}
    # A class that is known to be refused stays refused, even where its base is supported.
    chosen = next((each for each in candidates if each in supported or _reason(each)), "")
    if chosen in supported:
        return chosen
    reason = _reason(chosen) or _supported(families)
    raise UnsupportedModelError(
        f"{argument('model', name)}: it is a transformers model of type {show(model_type)}; "
        f"{reason}. For an OpenCLIP repository write 'hf-hub:ORG/NAME'."
    )


def _supported(families: Sequence[Family]) -> str:
    """The classes of some families, in words; those of whole models where there are any."""
    names: dict[str, list[str]] = {}
    for family in families:
        library = family.library.partition(".")[0]
        names.setdefault(library, []).extend(family.models or family.towers)
    # A user's own family may repeat the names of one that is there.
    listed = (f"{library}: {', '.join(dict.fromkeys(each))}" for library, each in names.items())
    return f"supported are {'; '.join(listed)}"


def _reason(class_name: str) -> str | None:
    """Why a class is refused, and what to use instead; None for a class without such a note."""
    for pattern, reason in _REFUSED.items():
        if re.fullmatch(pattern, class_name):
            return reason
    return None


def _advice(module: nn.Module) -> str:
    """What to take in place of a module."""
    reason = _reason(type(module).__name__)
    if reason is not None:
        return reason
    for path, inner in module.named_modules():
        if path and _family_of(unwrapped(inner)):
            kind = type(inner).__name__
            # As Python code, blocks.0.clip is model.blocks[0].clip.
            code = re.sub(r"\.(\d+)", r"[\1]", f"model.{path}")
            return f"its part `{code}` is a {kind}: pass that, or `layer={code}` to a method"
    return f"{_supported(FAMILIES)}, and their vision towers"


def _family_of(module: nn.Module) -> Family | None:
    # A user's own family is registered later, and may stand in for one that is there.
    return next((family for family in reversed(FAMILIES) if family.holds(module)), None)


def find_tower(module: nn.Module) -> Tower | None:
    """The vision tower in a user's module; None if the module is no CLIP.

    Raises:
        UnsupportedModelError: it is a CLIP, but built in a way that is not supported.
    """
    module = unwrapped(module)
    family = _family_of(module)
    if family is None:
        return None
    with expect_library_parts(module):
        tower = family.tower_of(module)
    if tower is not None:
        refuse_quantized(tower.module)
    return tower


def tower_of(module: nn.Module) -> Tower:
    """The vision tower in a user's module: a CLIP model or its vision tower.

    Raises:
        UnsupportedModelError: it is something else, or built in a way that is not supported.
    """
    tower = find_tower(module)
    if tower is None:
        kind = type(unwrapped(module)).__name__
        raise UnsupportedModelError(
            f"captum_clip finds no CLIP vision tower in a {kind}; {_advice(unwrapped(module))}."
        )
    return tower


def adapter_of(model: nn.Module, *, name: str, processor: Any, tokenizer: Any) -> ClipAdapter:
    """The adapter of a user's CLIP model, called `name` in messages; errors as :func:`tower_of`."""
    model = unwrapped(model)
    kind = type(model).__name__
    family = _family_of(model)
    tower = find_tower(model)
    if family is None or tower is None:
        raise UnsupportedModelError(f"a {kind} is not supported; {_advice(model)}.")
    names = {base.__name__ for base in type(model).__mro__}
    if family.adapter is None or names.isdisjoint(family.models):
        raise UnsupportedModelError(
            f"a {kind} has no text tower; pass the whole model, or give this one as "
            "`layer` to a method, with a forward function of your own."
        )
    return family.adapter(model, tower, name=name, processor=processor, tokenizer=tokenizer)
