"""The models that there are: their families by class, and their names."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import error_context, excerpt, expand, expect, show, suggestion
from ..demo import MODELS
from ..errors import InputError, UnsupportedModelError, argument
from .adapter import ClipAdapter, Family
from .huggingface import HUGGING_FACE
from .library import (
    expect_library_parts,
    fit_weights,
    read_weights,
    reason_of,
    refuse_quantized,
    unwrapped,
)
from .open_clip import OPEN_CLIP, OPENAI
from .timm import TIMM
from .towers import Tower

FAMILIES: list[Family] = [OPENAI, *HUGGING_FACE, OPEN_CLIP, TIMM]

# patterns of classes -> what to take in their place
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

    It may have been saved from any of the architectures that hold the model inside another.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type, saved_from = config.get("model_type"), config.get("architectures") or ()
    base: Any = MODEL_MAPPING_NAMES.get(model_type, ())
    candidates: list[str] = [*saved_from, *((base,) if isinstance(base, str) else base)]
    families = [family for family in FAMILIES if family.library.startswith("transformers.")]
    supported = {model for family in families for model in family.models}
    # what is known to be refused is so though its base may be supported
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
        classes = family.models or family.towers
        names.setdefault(family.library.partition(".")[0], []).extend(classes)
    listed = (f"{library}: {', '.join(dict.fromkeys(c))}" for library, c in names.items())
    return f"supported are {'; '.join(listed)}"


def _reason(kind: str) -> str | None:
    """Why a class is not supported, and what is, if it is one that many try."""
    return next((_REFUSED[name] for name in _REFUSED if re.fullmatch(name, kind)), None)


def _advice(module: nn.Module) -> str:
    """What to take in place of a module."""
    reason = _reason(type(module).__name__)
    for path, inner in module.named_modules():
        if path and not reason and _family_of(unwrapped(inner)):
            kind, path = type(inner).__name__, re.sub(r"\.(\d+)", r"[\1]", f"model.{path}")
            reason = f"its part `{path}` is a {kind}: pass that, or `layer={path}` to a method"
    return reason or f"{_supported(FAMILIES)}, and their vision towers"


def _family_of(module: nn.Module) -> Family | None:
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
    kind, family, tower = type(model).__name__, _family_of(model), find_tower(model)
    if family is None or tower is None:
        raise UnsupportedModelError(f"a {kind} is not supported; {_advice(model)}.")
    names = {base.__name__ for base in type(model).__mro__}
    if family.adapter is None or names.isdisjoint(family.models):
        raise UnsupportedModelError(
            f"a {kind} has no text tower; pass the whole model, or give this one as "
            "`layer` to a method, with a forward function of your own."
        )
    return family.adapter(model, tower, name=name, processor=processor, tokenizer=tokenizer)


Library = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class AvailableModel:
    """A model that can be loaded by a short name.

    Attributes:
        name: for `load_clip`.
        aliases: other spellings of it.
        kind: "vit" or "resnet".
        library: what loads it.
        checkpoint: where its weights come from: a repository on the Hugging Face hub, or OpenCLIP's
            architecture (tag `openai`); "embedded" in the package, so that no network is needed.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Literal["vit", "resnet"]
    library: Library
    checkpoint: str


def _resnet(suffix: str) -> AvailableModel:
    architecture = f"RN{suffix}-quickgelu"  # without it OpenCLIP runs these weights with GELU
    aliases = (f"ResNet{suffix}", f"{architecture}/openai")
    return AvailableModel(f"RN{suffix}", aliases, "resnet", "open_clip", architecture)


def _vit(name: str, checkpoint: str, *aliases: str) -> AvailableModel:
    return AvailableModel(name, aliases, "vit", "transformers", f"openai/clip-vit-{checkpoint}")


_EMBEDDED = (
    AvailableModel("demo/vit", (), "vit", "transformers", "embedded"),
    AvailableModel("demo/resnet", (), "resnet", "open_clip", "embedded"),
    AvailableModel("demo/siglip", (), "vit", "transformers", "embedded"),
)
# the nine CLIPs of Mamooler's report, by OpenAI's names
_PUBLISHED = (
    *map(_resnet, ("50", "101", "50x4", "50x16", "50x64")),
    _vit("ViT-B/32", "base-patch32"),
    _vit("ViT-B/16", "base-patch16"),
    _vit("ViT-L/14", "large-patch14"),
    _vit("ViT-L/14@336px", "large-patch14-336", "ViT-L/14-336px"),
)
_BY_SPELLING = {name.casefold(): row for row in _PUBLISHED for name in (row.name, *row.aliases)}


NO_NETWORK = "the model demo/vit is embedded and needs no network"
ACCEPTED = (
    "A name is a short name ('captum-clip models' lists them), a folder, 'hf-hub:ORG/NAME' or "
    "'ARCHITECTURE/TAG' of OpenCLIP, 'ORG/NAME' of a transformers model on the hub, or 'ARCH:FILE' "
    "of a checkpoint; "
    f"{NO_NETWORK}."
)


class ModelSource(NamedTuple):
    """The origin of a named model."""

    name: str
    library: Library
    where: str  # as its library has it: a folder, a repository, a name of OpenCLIP
    tag: str | None = None  # OpenCLIP's, for an architecture; of a file, for its preprocessing
    # to be switched on, as the weights were trained with it and the architecture lacks it
    quick_gelu: bool = False
    local: bool = False
    file: Path | None = None  # the weights, in the place of the published ones
    adapter: Path | None = None  # a folder of peft


def resolve(name: str, *, is_base: bool = False) -> ModelSource:
    """Find the model that a name stands for, without a network.

    Args:
        name: for `load_clip`.
        is_base: whether an adapter of peft names it, which cannot be based on another adapter.

    Raises:
        InputError: there is none of this name.
        UnsupportedModelError: its kind is not supported.
    """
    row = named_model(name)
    if row is not None:
        tag = "openai" if row.library == "open_clip" else None
        return ModelSource(row.name, row.library, row.checkpoint, tag)
    folder = MODELS.get(name) or expand(name)
    if folder.is_dir():
        return _folder(name, folder, is_base)
    if folder.is_file():  # its architecture is asked for when it is loaded
        return ModelSource(name, "open_clip", "", local=True, file=folder)
    if checkpoint := split_checkpoint(name):
        return _checkpoint(name, *checkpoint)
    if name.startswith("demo/"):
        raise InputError(
            f"{argument('model', name)}: no such embedded model; there are {', '.join(MODELS)}."
        )
    if name.startswith("hf-hub:"):
        return ModelSource(name, "open_clip", name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        pair = _open_clip_pair(name)
        # no organization on the hub is called as the models are
        if pair or not name.casefold().startswith(("vit-b/", "vit-l/")):
            return pair or ModelSource(name, "transformers", name)
    raise _no_such_name(name)


def check_stated(name: str, file: object, option: str = "model") -> str:
    """The name of a model that a file states, if it is embedded, of the report, or on a hub.

    A stranger may have written the file, so it must not choose what is read of this machine.

    Raises:
        InputError: it does, or is no name; the `option` is where the user may name it.
    """
    row = named_model(name)
    place = row.checkpoint if row else name  # of which transformers reads a folder first
    is_on_hub = row or re.fullmatch(r"(hf-hub:)?\w[\w.-]*/\w[\w.-]*", place)
    if name in MODELS or (is_on_hub and not os.path.lexists(place)):
        return name
    raise InputError(
        f"{file} names the model {excerpt(name)!r}. A model that a file names is loaded from a hub "
        f"only; to use a folder or file here, name it yourself: {argument(option, name)}."
    )


def _no_such_name(name: str) -> InputError:
    from open_clip import list_models, list_pretrained_tags_by_model

    names = [name for row in available() for name in (row.name, *row.aliases)]
    reason = f"is neither a known name nor a folder{suggestion(name, names)}. {ACCEPTED}"
    if name in list_models():
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        reason = f"is an architecture of OpenCLIP; add one of its tags as in '{name}/TAG': {tags}."
    return InputError(f"{name!r} {reason}")


def _checkpoint(name: str, architecture: str, file: Path) -> ModelSource:
    """Weights in a file, for an architecture of OpenCLIP, of OpenAI or of transformers."""
    from open_clip import get_model_config, list_models, list_pretrained_tags_by_model

    expect(file.is_file(), "a file after the ':' of a model, as in ARCH:FILE", str(file))
    if row := named_model(architecture):
        architecture = openai_architecture(row)
    if architecture in list_models():
        settings = get_model_config(architecture)["text_cfg"]
        on_hub = any(key.startswith("hf_") for key in settings)  # its tokenizer or text model
        tags = [*list_pretrained_tags_by_model(architecture), None]
        return ModelSource(name, "open_clip", architecture, tags[0], local=not on_hub, file=file)
    owner = "openai/" * architecture.startswith("clip-vit-")
    return resolve(owner + architecture)._replace(name=name, file=file)


def _folder(name: str, folder: Path, is_base: bool) -> ModelSource:
    """A folder of transformers or OpenCLIP, or of what wraps a model of theirs."""
    if (path := folder / "modules.json").is_file():  # sentence-transformers
        inner = _read_settings(path, lambda modules: folder / modules[0]["path"])
        inside = inner.resolve().is_relative_to(folder.resolve())
        expect(inside, f"a path inside of its folder in {path}", str(inner))
        folder = inner
    if (path := folder / "adapter_config.json").is_file():  # peft
        base = str(_read_settings(path, itemgetter("base_model_name_or_path")))
        where = f"{excerpt(base)}, the base_model_name_or_path in adapter_config.json"
        expect(not is_base, "a base that is not an adapter", name)
        with error_context(f"{argument('model', name)} is an adapter of peft for {where}"):
            merge = "pip install peft, or save the model merged, after merge_and_unload()"
            expect(find_spec("peft"), "the package peft", None, merge)
            return resolve(base, is_base=True)._replace(name=name, adapter=folder)
    # OpenCLIP's folder may hold a `config.json` as well
    path, is_open_clip = folder / "config.json", (folder / "open_clip_config.json").is_file()
    if not path.is_file() and not is_open_clip:
        raise InputError(
            f"{argument('model', name)}: the folder holds neither config.json (transformers) nor "
            "open_clip_config.json (OpenCLIP), nor adapter_config.json (peft)."
        )
    try:
        if path.is_file():
            _read_settings(path, partial(transformers_class, name))
            return ModelSource(name, "transformers", str(folder), local=True)
    except UnsupportedModelError:
        if not is_open_clip:
            raise
    return ModelSource(name, "open_clip", f"local-dir:{folder}", local=True)


def _read_settings(path: Path, read: Callable[[Any], Any]) -> Any:
    """What a file of settings says; InputError where it is not as its library writes it."""
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the settings are that somebody else wrote
        reason = f"{type(error).__name__}, {reason_of(error)}"
        raise InputError(f"{path} cannot be read ({reason}).") from error


def _open_clip_pair(name: str) -> ModelSource | None:
    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    architecture, _, tag = name.rpartition("/")
    weights = get_pretrained_cfg(architecture, tag)
    if not weights:
        return None
    # OpenCLIP only warns of a mismatch, and computes other embeddings. Never switched off:
    # roberta-ViT-B-32 was published with the configuration as it is.
    runs_with = (get_model_config(architecture) or {}).get("quick_gelu", False)
    quick_gelu = bool(weights.get("quick_gelu", False)) and not runs_with
    return ModelSource(name, "open_clip", architecture, tag, quick_gelu=quick_gelu)


def named_model(name: str) -> AvailableModel | None:
    """The model of a name of the report in any of its spellings; None for other names.

    Example:
        >>> named_model("ResNet50x4").checkpoint
        'RN50x4-quickgelu'
    """
    return _BY_SPELLING.get(name.casefold())


def openai_architecture(row: AvailableModel) -> str:
    """OpenCLIP's architecture for the weights of a published model in OpenAI's own layout."""
    if row.library == "open_clip":
        return row.checkpoint
    return row.name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def split_checkpoint(name: str) -> tuple[str, Path] | None:
    """The architecture and the file of an ``ARCH:FILE``; None for other names, and for paths."""
    architecture, _, path = name.partition(":")
    is_drive = len(architecture) < 2  # of Windows
    if is_drive or not path or architecture == "hf-hub" or expand(name).exists():
        return None
    return architecture, expand(path)


def available() -> list[AvailableModel]:
    """The models with short names: the embedded ones, then the report's.

    Example:
        >>> [model.name for model in available()][:3]
        ['demo/vit', 'demo/resnet', 'demo/siglip']
    """
    return [*_EMBEDDED, *_PUBLISHED]


class OnHub(NamedTuple):
    """A name for `load_clip` of a model on a hub."""

    family: str
    name: str
    library: Library = "transformers"


_OC: Library = "open_clip"
EXAMPLES: tuple[OnHub, ...] = (
    OnHub("SigLIP 2", "google/siglip2-base-patch16-224"),
    OnHub("SigLIP 2 NaFlex", "google/siglip2-base-patch16-naflex"),
    OnHub("SigLIP", "google/siglip-base-patch16-224"),
    OnHub("SigLIP 2", "ViT-B-16-SigLIP2/webli", _OC),
    OnHub("LAION's CLIP", "ViT-B-32/laion2b_s34b_b79k", _OC),
    OnHub("DFN", "ViT-B-16/dfn2b", _OC),
    OnHub("MetaCLIP", "ViT-B-16/metaclip_fullcc", _OC),
    OnHub("MetaCLIP 2", "facebook/metaclip-2-worldwide-huge-quickgelu"),
    OnHub("EVA-02", "EVA02-B-16/merged2b_s8b_b131k", _OC),
    OnHub("ViTamin", "ViTamin-S/datacomp1b", _OC),
    OnHub("PE-Core", "PE-Core-B-16/meta", _OC),
    OnHub("CoCa", "coca_ViT-B-32/laion2b_s13b_b90k", _OC),
    OnHub("MobileCLIP", "MobileCLIP2-S0/dfndr2b", _OC),
    OnHub("ConvNeXt", "convnext_base_w/laion2b_s13b_b82k", _OC),
    OnHub("BiomedCLIP", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", _OC),
    OnHub("many languages", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", _OC),
    OnHub("AltCLIP", "BAAI/AltCLIP"),
    OnHub("Chinese CLIP", "OFA-Sys/chinese-clip-vit-base-patch16"),
    OnHub("TIPSv2", "google/tipsv2-b14"),
    OnHub("BLIP", "Salesforce/blip-itm-base-coco"),
    OnHub("AIMv2", "apple/aimv2-large-patch14-224-lit"),
    OnHub("CLIPSeg", "CIDAS/clipseg-rd64-refined"),
    OnHub("OWL-ViT", "google/owlvit-base-patch32"),
    OnHub("OWLv2", "google/owlv2-base-patch16-ensemble"),
)
"""In the order of how much they are used."""


def ask_for_architecture(name: str, file: Path) -> InputError:
    """The question which architecture the weights in a file are of."""
    kinds = "ARCH is one of OpenCLIP's, or the folder or name of the transformers model"
    way = f"Write 'ARCH:{name}'; {fitting_names(read_weights(file)) or kinds}"
    return InputError(f"{argument('model', name)}: which architecture? {way}.")


def fitting_names(weights: dict[str, Tensor]) -> str:
    """The names of up to three architectures that weights fit, for messages; "" for none."""
    names = ", ".join(architectures_of(weights)[:3])
    quick = ", quickgelu if the training began with OpenAI's weights" * ("quickgelu" in names)
    return f"its shapes fit {names}{quick}" * bool(names)


def architectures_of(weights: dict[str, Tensor]) -> list[str]:
    """Names of OpenCLIP's architectures that weights fit, and of OpenAI's in transformers."""
    import open_clip

    shapes = {tuple(value.shape) for value in weights.values()}
    names, is_timm = list[str](), any(".trunk." in key for key in weights)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text, vision = config["text_cfg"], config["vision_cfg"]
        words = (text.get("vocab_size", 49408), text.get("width", 512))
        kinds = ("timm_model_name" in vision, "hf_model_name" in text)
        if words not in shapes or kinds != (is_timm, False):
            continue  # to make them all takes half a minute, and needs the hub
        with suppress(Exception), torch.device("meta"):
            model = open_clip.create_model(name, load_weights=False, device="meta")
            names += [] if fit_weights(model, weights)[1] else [name]
    for row in available():
        if row.checkpoint.startswith("openai/") and any("vision_model." in key for key in weights):
            vision = open_clip.get_model_config(openai_architecture(row))["vision_cfg"]
            size, width, patch = map(vision.get, ("image_size", "width", "patch_size"))
            if {(width, 3, patch, patch), (1 + (size // patch) ** 2, width)} <= shapes:
                names.append(row.checkpoint.removeprefix("openai/"))
    return names
