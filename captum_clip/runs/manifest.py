"""The manifest of an output folder: what was computed with what, and whether it may go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from .._version import __version__
from ..errors import InputError
from .engine import Engine
from .storage import Storage

NAME: Final = "manifest.json"
_ENVIRONMENTS: Final = "environments"
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")

Content = dict[str, Any]
Differences = Callable[[Content, Content], list[str]]
"""(about of the run in the folder, about now) -> what differs, in words."""


@dataclass(frozen=True)
class ManifestFormat:
    """How one kind of run keeps its manifest."""

    noun: str  # "study", "evaluation"
    name: str  # the value of its key "format"
    types: Mapping[str, type]  # of the keys that decide the results
    differences: Differences  # what differs between two of them


def begin(kind: ManifestFormat, about: Content, output: Storage, engine: Engine) -> Content:
    """The manifest of a new run, or of the one in the folder that is to go on.

    It has "format", all of `about` (what decides the results, as JSON, under the keys of
    ``kind.types`` and others), "environments" (versions and threads of every run that took part,
    each once) and "state", which is "running".

    Raises:
        InputError: the folder holds a run with other settings, or something else.
    """
    content, environments = output.read(NAME), []
    if content is not None:
        environments = _read_same(kind, about, content, output)[_ENVIRONMENTS]
    elif other := [name for name, _ in output.files() if not name.startswith(".")]:
        raise InputError(
            f"{output.root} holds files that are no {kind.noun}'s, such as {other[0]}; name a new "
            "or an empty folder."
        )
    now = _environment(engine)
    if now not in environments:
        environments = [*environments, now]
    return {"format": kind.name, **about, _ENVIRONMENTS: environments, "state": "running"}


def _read_same(kind: ManifestFormat, about: Content, content: bytes, output: Storage) -> Content:
    """The manifest in the folder, if it is of a run with the same settings."""
    a_run = f"{'an' if kind.noun[0] in 'aeiou' else 'a'} {kind.noun}"
    try:
        before: Content = json.loads(content)
        if before["format"] != kind.name:
            raise ValueError(f"its format is {before['format']!r}")
        for key, expected in {**kind.types, _ENVIRONMENTS: list}.items():
            if not isinstance(before[key], expected):
                raise TypeError(f"{key!r} is no {expected.__name__}")
        differences = kind.differences(before, json.loads(json.dumps(about)))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{NAME} is not a manifest of {a_run} that this version can go on with "
            f"({error}); name another output folder."
        ) from error
    if differences:
        raise InputError(
            f"{output.root} holds {a_run} with other settings: {'; '.join(differences)}. "
            f"Take another output folder, or the settings of that {kind.noun} to go on with it."
        )
    return before


def _environment(engine: Engine) -> Content:
    """Versions of what computes, and the number of threads."""
    versions: Content = {"captum_clip": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    return {**versions, "threads": engine.threads, "device": engine.device}


def to_bytes(manifest: Content) -> bytes:
    """JSON for people and programs."""
    return f"{json.dumps(manifest, indent=1)}\n".encode()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each key whose value changed, in words: "batch_size was 2 and is 4"."""
    return [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
