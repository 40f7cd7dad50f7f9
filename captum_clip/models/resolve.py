"""Where a name leads: an embedded model, a folder, a checkpoint on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks import expand
from ..errors import InputError, UnsupportedModelError
from . import hub
from .families import transformers_class
from .names import PUBLISHED, Library, published

_NOTES = {"demo/shortcut": "embedded, wrong on purpose: demo/vit with a planted shortcut"}


@dataclass(frozen=True)
class Source:
    """Where a named model comes from: a folder, repository, ``hf-hub:`` name or architecture."""

    name: str
    library: Library
    where: str
    tag: str | None = None  # OpenCLIP's, for an architecture
    # to be switched on, as the weights were trained with it and the architecture lacks it
    quick_gelu: bool = False
    local: bool = False
    tokenizer: Callable[[], Any] | None = None  # loads another than the library's

    @property
    def open_clip_name(self) -> str:
        """What OpenCLIP calls it."""
        return f"local-dir:{self.where}" if self.local else self.where

    def loading(self) -> AbstractContextManager[Any]:
        """The context in which its files are loaded."""
        checkpoint = f"{self.where}/{self.tag}" if self.tag else self.where
        return hub.loading(self.name, None if self.local else checkpoint)


@dataclass(frozen=True)
class AvailableModel:
    """A model that can be loaded by a short name.

    Attributes:
        name: for `load_clip`.
        aliases: other spellings of it.
        kind: "vit" or "resnet".
        library: what loads it.
        checkpoint: where its weights come from.
        embedded: part of the package, so that no network is needed.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    library: Library
    checkpoint: str
    embedded: bool = False


def available() -> list[AvailableModel]:
    """The models with short names: the embedded ones, then Mamooler's.

    Example:
        >>> [model.name for model in available()][:3]
        ['demo/vit', 'demo/resnet', 'demo/siglip']
    """
    from ..demo import MODELS

    rows = []
    for name in MODELS:
        kind: str = "resnet" if name.endswith("resnet") else "vit"
        library: Library = "open_clip" if kind == "resnet" else "transformers"
        rows.append(AvailableModel(name, (), kind, library, _NOTES.get(name, "embedded"), True))
    for row in PUBLISHED:
        rows.append(AvailableModel(row.name, row.aliases, row.kind, row.library, row.checkpoint))
    return rows


def resolve(name: str) -> Source:
    """Find out where a name leads, without a network.

    Raises:
        InputError: it leads nowhere.
        UnsupportedModelError: it leads to a model of a kind that is not supported.
    """
    from ..demo import MODELS

    row = published(name)
    if row is not None:
        tag = "openai" if row.library == "open_clip" else None
        return Source(row.name, row.library, row.checkpoint, tag)
    if name in MODELS:
        return _embedded(name, MODELS[name])
    folder = expand(name)
    if folder.is_dir():
        return _folder(name, folder)
    if name.startswith("demo/"):
        raise InputError(
            f"load_clip({name!r}): no such embedded model; there are {', '.join(MODELS)}."
        )
    if name.startswith("hf-hub:"):
        return Source(name, "open_clip", name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or name.startswith("."):
        raise InputError(f"load_clip: {name!r} {_unknown(name)}")
    return _open_clip_pair(name) or Source(name, "transformers", name)


def _unknown(name: str) -> str:
    from open_clip import list_models, list_pretrained_tags_by_model

    if name not in list_models():
        return f"is neither a known name nor a folder. {hub.ACCEPTED}"
    tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
    return f"is an architecture of OpenCLIP; add one of its tags as in '{name}/TAG': {tags}."


def _embedded(name: str, folder: Path) -> Source:
    from ..demo.vocabulary import DemoTokenizer

    if not folder.is_dir():
        raise InputError(f"load_clip({name!r}): {folder} is missing; install captum-clip again.")
    return replace(_folder(name, folder), tokenizer=DemoTokenizer)


def _folder(name: str, folder: Path) -> Source:
    """A folder of transformers, or of OpenCLIP, which may hold a `config.json` as well."""
    path = folder / "config.json"
    is_open_clip = (folder / "open_clip_config.json").is_file()
    if not path.is_file() and not is_open_clip:
        raise InputError(
            f"load_clip({name!r}): the folder holds neither config.json (transformers) nor "
            "open_clip_config.json (OpenCLIP)."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        transformers_class(name, config.get("model_type"), config.get("architectures") or ())
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"load_clip({name!r}): {path} cannot be read ({error}).") from error
    except UnsupportedModelError:
        if not is_open_clip:
            raise
        return Source(name, "open_clip", str(folder), local=True)
    return Source(name, "transformers", str(folder), local=True)


def _open_clip_pair(name: str) -> Source | None:
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
    return Source(name, "open_clip", architecture, tag, quick_gelu=quick_gelu)
