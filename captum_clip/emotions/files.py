"""Probes on disk: safetensors whose header says what the numbers are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import replace_file
from .artemis import CLASSES

WEIGHTS, JSON = ".safetensors", ".json"
_FORMAT: Final = "captum_clip.EmotionProbe/2"
_PAIR: Final = "captum_clip.EmotionProbe/1"  # of earlier versions: the facts in a JSON file beside

Arrays = dict[str, npt.NDArray[np.float64]]


def write_probe(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write arrays with their facts as JSON in the header; the file appears whole or not at all."""
    from safetensors.numpy import save

    if path.suffix.lower() != WEIGHTS:
        raise InputError(f"cannot write {path}: the name of a probe must end in {WEIGHTS}.")
    facts = {**facts, "sha256": _digest(arrays)}
    # one key only: safetensors writes several in any order
    header = {_FORMAT: json.dumps(facts, allow_nan=False)}
    contents = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, header)
    replace_file(path, lambda file: file.write(contents))


def read_probe(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read what :func:`write_probe` wrote, or by either name the two files of earlier versions."""
    from safetensors import SafetensorError, safe_open

    weights = path.with_suffix(WEIGHTS) if path.suffix.lower() == JSON else path
    contents = _read(weights)
    try:
        with safe_open(weights, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{weights} is not a safetensors file ({error}).") from error
    if path == weights and _FORMAT in header:
        facts = json.loads(header[_FORMAT])
        if facts["sha256"] != _digest(arrays):
            raise InputError(f"{path} was damaged; save the probe again.")
        return arrays, facts
    beside = path.with_suffix(JSON)
    description = read_json(beside) if beside.is_file() else None
    if not is_description(description):
        raise InputError(f"{path} does not describe an emotion probe ({_FORMAT}).")
    if hashlib.sha256(contents).hexdigest() != description.get("sha256"):
        raise InputError(
            f"{weights} is not the file that {beside.name} beside it describes: one of the two was "
            "replaced or damaged; save the probe again."
        )
    return arrays, description


def _digest(arrays: Arrays) -> str:
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def is_description(content: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the content of a JSON file is the facts of a probe of an earlier version."""
    return isinstance(content, dict) and content.get("format") == _PAIR


def read_rows(path: Path, content: Any) -> npt.NDArray[np.float64]:
    """Rows (9, D) of the JSON that Mamooler published: nine names -> D numbers each."""
    if not isinstance(content, dict) or set(content) != set(CLASSES):
        raise InputError(
            f"{path} is not a file of emotion encodings: expected JSON with the nine names "
            f"{', '.join(CLASSES)} and a list of numbers for each."
        )
    try:
        rows = np.array([content[name] for name in CLASSES], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected equally many numbers for each of the nine names ({error})."
        ) from error
    if rows.ndim != 2 or 0 in rows.shape or not np.isfinite(rows).all():
        raise InputError(
            f"{path}: expected a list of finite numbers for each of the nine names, got an array "
            f"of shape {rows.shape}."
        )
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    contents = _read(path)
    try:
        return json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error}).") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
