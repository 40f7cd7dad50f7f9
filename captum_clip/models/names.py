"""The origin of a model that is named: a folder, a file, a library's own name. Loads no torch."""

import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..checks import error_context, excerpt, expand, expect, suggestion
from ..demo import MODELS
from ..errors import InputError, UnsupportedModelError, argument
from .published import Library, available, named_model, openai_architecture

_ADAPTER = "adapter_config.json"  # of peft


NO_NETWORK = "the model demo/vit is embedded and needs no network"
ACCEPTED = (
    "A name is a short name ('captum-clip models' lists them), a folder, 'hf-hub:ORG/NAME' or "
    "'ARCHITECTURE/TAG' of OpenCLIP, 'ORG/NAME' of a transformers model on the hub, 'ARCH:FILE' "
    "of a checkpoint, or 'BASE:FOLDER' of an adapter of peft; "
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

    @property
    def is_embedded(self) -> bool:
        """Whether its files are those of this package, in which nothing needs to be checked."""
        folder = Path(self.where.removeprefix("local-dir:"))
        return folder in MODELS.values()


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


def check_stated(name: str, file: object) -> str:
    """The name of a model that a file states, if it is embedded, of the report, or on a hub.

    A stranger may have written the file, so it must not choose what is read of this machine.

    Raises:
        InputError: it does, or is no name; `model` is where the user may name it.
    """
    row = named_model(name)
    place = row.checkpoint if row else name  # of which transformers reads a folder first
    is_on_hub = row or re.fullmatch(r"(hf-hub:)?\w[\w.-]*/\w[\w.-]*", place)
    if name in MODELS or (is_on_hub and not os.path.lexists(place)):
        return name
    raise InputError(
        f"{file} names the model {excerpt(name)!r}. A model that a file names is loaded from a hub "
        f"only; to use a folder or file here, name it yourself: {argument('model', name)}."
    )


def _is_architecture(name: str) -> bool:
    """Whether OpenCLIP has an architecture, without torch, which it loads."""
    if library := sys.modules.get("open_clip"):  # which a program may have told of others
        return name in library.list_models()
    spec = find_spec("open_clip")
    [folder] = (spec and spec.submodule_search_locations) or [""]
    return name in {file.stem for file in Path(folder, "model_configs").glob("*.json")}


def _no_such_name(name: str) -> InputError:
    names = [name for row in available() for name in (row.name, *row.aliases)]
    reason = f"is neither a known name nor a folder{suggestion(name, names)}. {ACCEPTED}"
    if _is_architecture(name):
        from open_clip import list_pretrained_tags_by_model

        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        reason = f"is an architecture of OpenCLIP; add one of its tags as in '{name}/TAG': {tags}."
    return InputError(f"{name!r} {reason}")


def _checkpoint(name: str, architecture: str, file: Path) -> ModelSource:
    """Weights in a file, for an architecture of OpenCLIP, of OpenAI or of transformers.

    Or a folder of peft, for another base than that which it names.
    """
    if (file / _ADAPTER).is_file():
        return _adapter(name, architecture, file)
    expect(file.is_file(), "an existing ARCH:FILE, or BASE:FOLDER with adapter_config.json", name)
    if row := named_model(architecture):
        architecture = openai_architecture(row)
    if _is_architecture(architecture):
        from open_clip import get_model_config, list_pretrained_tags_by_model

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
    if (path := folder / _ADAPTER).is_file():
        base = str(_read_settings(path, itemgetter("base_model_name_or_path")))
        where = f"{excerpt(base)}, the base_model_name_or_path in {_ADAPTER}"
        expect(not is_base, "a base that is not an adapter", name)
        about = f"an adapter of peft for {where}; for a base elsewhere write 'BASE:{name}'"
        with error_context(f"{argument('model', name)} is {about}"):
            return _adapter(name, base, folder)
    # OpenCLIP's folder may hold a `config.json` as well
    path, is_open_clip = folder / "config.json", (folder / "open_clip_config.json").is_file()
    if not path.is_file() and not is_open_clip:
        raise InputError(
            f"{argument('model', name)}: the folder holds neither config.json (transformers) nor "
            "open_clip_config.json (OpenCLIP), nor adapter_config.json (peft)."
        )
    try:
        if path.is_file():
            if name not in MODELS:
                from .families import transformers_class

                _read_settings(path, partial(transformers_class, name))
            return ModelSource(name, "transformers", str(folder), local=True)
    except UnsupportedModelError:
        if not is_open_clip:
            raise
    return ModelSource(name, "open_clip", f"local-dir:{folder}", local=True)


def _adapter(name: str, base: str, folder: Path) -> ModelSource:
    merge = "pip install peft, or save the model merged, after merge_and_unload()"
    expect(find_spec("peft"), "the package peft", None, merge)
    return resolve(base, is_base=True)._replace(name=name, adapter=folder)


def _read_settings(path: Path, read: Callable[[Any], Any]) -> Any:
    """What a file of settings says; InputError where it is not as its library writes it."""
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the settings are that somebody else wrote
        reason = excerpt(str(error).partition("\n")[0].rstrip(".:"), 300)
        raise InputError(f"{path} cannot be read ({type(error).__name__}, {reason}).") from error


def _open_clip_pair(name: str) -> ModelSource | None:
    architecture, _, tag = name.rpartition("/")
    if not _is_architecture(architecture):
        return None
    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    if not (weights := get_pretrained_cfg(architecture, tag)):
        return None
    # OpenCLIP only warns of a mismatch, and computes other embeddings. Never switched off:
    # roberta-ViT-B-32 was published with the configuration as it is.
    runs_with = (get_model_config(architecture) or {}).get("quick_gelu", False)
    quick_gelu = bool(weights.get("quick_gelu", False)) and not runs_with
    return ModelSource(name, "open_clip", architecture, tag, quick_gelu=quick_gelu)


def split_checkpoint(name: str) -> tuple[str, Path] | None:
    """The architecture and the file of an ``ARCH:FILE``; None for other names, and for paths."""
    architecture, _, path = name.partition(":")
    is_drive = len(architecture) < 2  # of Windows
    if is_drive or not path or architecture == "hf-hub" or expand(name).exists():
        return None
    return architecture, expand(path)
