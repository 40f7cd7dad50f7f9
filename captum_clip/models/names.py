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

_ADAPTER = "adapter_config.json"  # peft writes it beside an adapter's weights.

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
    where: str  # what its library calls it: a folder, a repository, an architecture of OpenCLIP
    tag: str | None = None  # OpenCLIP's published weights; with a file, their preprocessing
    quick_gelu: bool = False  # whether the weights need it and the architecture lacks it
    local: bool = False  # whether all that is loaded lies on this machine
    file: Path | None = None  # weights that take the place of the published ones
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
    published = named_model(name)
    if published is not None:
        tag = "openai" if published.library == "open_clip" else None
        return ModelSource(published.name, published.library, published.checkpoint, tag)
    path = MODELS.get(name) or expand(name)
    if path.is_dir():
        return _find_folder(name, path, is_base)
    if path.is_file():
        # Which architecture its weights fit is only known once they are read.
        return ModelSource(name, "open_clip", "", local=True, file=path)
    checkpoint = split_checkpoint(name)
    if checkpoint is not None:
        return _find_checkpoint(name, *checkpoint)
    if name.startswith("demo/"):
        raise InputError(
            f"{argument('model', name)}: no such embedded model; there are {', '.join(MODELS)}."
        )
    if name.startswith("hf-hub:"):
        return ModelSource(name, "open_clip", name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        pair = _find_open_clip_pair(name)
        if pair is not None:
            return pair
        # A misspelled name of the report is not looked up: no organization is called ViT-B.
        if not name.casefold().startswith(("vit-b/", "vit-l/")):
            return ModelSource(name, "transformers", name)
    raise _no_such_name(name)


def check_stated(name: str, file: object) -> str:
    """The name of a model that a file states, if it is embedded, of the report, or on a hub.

    A stranger may have written the file, so it must not choose what is read of this machine.

    Raises:
        InputError: the name is a path here, or none of these; the message says how to allow it.
    """
    if name in MODELS:
        return name
    published = named_model(name)
    place = name if published is None else published.checkpoint
    is_on_hub = published or re.fullmatch(r"(hf-hub:)?\w[\w.-]*/\w[\w.-]*", place)
    # Where there is a folder of a repository's name, transformers reads the folder.
    if is_on_hub and not os.path.lexists(place):
        return name
    raise InputError(
        f"{file} names the model {excerpt(name)!r}. A model that a file names is loaded from a hub "
        f"only; to use a folder or file here, name it yourself: {argument('model', name)}."
    )


def _is_architecture(name: str) -> bool:
    """Whether OpenCLIP has an architecture, without torch, which it loads."""
    library = sys.modules.get("open_clip")
    if library is not None:
        # A program may have added architectures of its own.
        return name in library.list_models()
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return False
    [folder] = spec.submodule_search_locations
    return name in {file.stem for file in Path(folder, "model_configs").glob("*.json")}


def _no_such_name(name: str) -> InputError:
    if _is_architecture(name):
        from open_clip import list_pretrained_tags_by_model

        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        return InputError(
            f"{name!r} is an architecture of OpenCLIP; add one of its tags as in '{name}/TAG': "
            f"{tags}."
        )
    names = [name for model in available() for name in (model.name, *model.aliases)]
    hint = suggestion(name, names)
    return InputError(f"{name!r} is neither a known name nor a folder{hint}. {ACCEPTED}")


def _find_folder(name: str, folder: Path, is_base: bool) -> ModelSource:
    """A folder of transformers or OpenCLIP, also one inside a folder of another library."""
    modules_file = folder / "modules.json"
    if modules_file.is_file():  # sentence-transformers keeps its models in folders below.
        inner = _read_settings(modules_file, lambda modules: folder / modules[0]["path"])
        is_inside = inner.resolve().is_relative_to(folder.resolve())
        expect(is_inside, f"a path inside of its folder in {modules_file}", str(inner))
        folder = inner
    adapter_file = folder / _ADAPTER
    if adapter_file.is_file():
        base = str(_read_settings(adapter_file, itemgetter("base_model_name_or_path")))
        expect(not is_base, "a base that is not an adapter", name)
        where = f"{excerpt(base)}, the base_model_name_or_path in {_ADAPTER}"
        about = f"an adapter of peft for {where}; for a base elsewhere write 'BASE:{name}'"
        with error_context(f"{argument('model', name)} is {about}"):
            return _find_adapter(name, base, folder)
    config_file = folder / "config.json"
    is_open_clip = (folder / "open_clip_config.json").is_file()
    if config_file.is_file():
        try:
            # An embedded model is known to be supported, and this would load torch.
            if name not in MODELS:
                from .families import transformers_class

                _read_settings(config_file, partial(transformers_class, name))
            return ModelSource(name, "transformers", str(folder), local=True)
        except UnsupportedModelError:
            # A folder of OpenCLIP may hold a `config.json` as well.
            if not is_open_clip:
                raise
    if not is_open_clip:
        raise InputError(
            f"{argument('model', name)}: the folder holds neither config.json (transformers) nor "
            "open_clip_config.json (OpenCLIP), nor adapter_config.json (peft)."
        )
    return ModelSource(name, "open_clip", f"local-dir:{folder}", local=True)


def _find_checkpoint(name: str, architecture: str, file: Path) -> ModelSource:
    """Weights in a file, for an architecture of OpenCLIP, of OpenAI or of transformers.

    The `file` may also be a folder of peft, whose base is then `architecture`.
    """
    if (file / _ADAPTER).is_file():
        return _find_adapter(name, architecture, file)
    expect(file.is_file(), "an existing ARCH:FILE, or BASE:FOLDER with adapter_config.json", name)
    published = named_model(architecture)
    if published is not None:
        architecture = openai_architecture(published)
    if _is_architecture(architecture):
        from open_clip import get_model_config, list_pretrained_tags_by_model

        settings = get_model_config(architecture)["text_cfg"]
        # Such an architecture takes its tokenizer or its text model from the hub.
        is_on_hub = any(key.startswith("hf_") for key in settings)
        tags = list_pretrained_tags_by_model(architecture)
        tag = tags[0] if tags else None
        return ModelSource(name, "open_clip", architecture, tag, local=not is_on_hub, file=file)
    if architecture.startswith("clip-vit-"):
        architecture = f"openai/{architecture}"
    return resolve(architecture)._replace(name=name, file=file)


def _find_adapter(name: str, base: str, folder: Path) -> ModelSource:
    merge = "pip install peft, or save the model merged, after merge_and_unload()"
    expect(find_spec("peft"), "the package peft", None, merge)
    return resolve(base, is_base=True)._replace(name=name, adapter=folder)


def _read_settings(path: Path, read: Callable[[Any], Any]) -> Any:
    """What is read of a file of settings; InputError where its library wrote no such file."""
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except UnsupportedModelError:
        raise
    except Exception as error:  # Settings that somebody else wrote may raise anything.
        reason = excerpt(str(error).partition("\n")[0].rstrip(".:"), 300)
        raise InputError(f"{path} cannot be read ({type(error).__name__}, {reason}).") from error


def _find_open_clip_pair(name: str) -> ModelSource | None:
    """The published weights of an ARCHITECTURE/TAG; None where OpenCLIP has none of that name."""
    architecture, _, tag = name.rpartition("/")
    if not _is_architecture(architecture):
        return None
    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    weights = get_pretrained_cfg(architecture, tag)
    if not weights:
        return None
    # OpenCLIP only warns of a mismatch, and computes other embeddings. QuickGELU is never switched
    # off, since roberta-ViT-B-32 was published with the configuration as it is.
    config = get_model_config(architecture) or {}
    trained_with_it = bool(weights.get("quick_gelu", False))
    runs_without_it = not config.get("quick_gelu", False)
    switch_on = trained_with_it and runs_without_it
    return ModelSource(name, "open_clip", architecture, tag, quick_gelu=switch_on)


def split_checkpoint(name: str) -> tuple[str, Path] | None:
    """The architecture and the file of an ``ARCH:FILE``; None for other names, and for paths."""
    architecture, _, path = name.partition(":")
    is_windows_drive = len(architecture) < 2
    if is_windows_drive or not path or architecture == "hf-hub" or expand(name).exists():
        return None
    return architecture, expand(path)
