"""Probes on disk: a safetensors file of numbers beside a JSON file that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import replace_file
from .artemis import CLASSES

FORMAT: Final = "captum_clip.EmotionProbe/1"
WEIGHTS, DESCRIPTION = ".safetensors", ".json"

Arrays = dict[str, npt.NDArray[np.float64]]


def write_pair(path: Path, arrays: Arrays, description: Mapping[str, Any]) -> None:
    """Write both files; each appears whole or not at all, and the JSON names its weights by hash.

    Raises:
        InputError: another ending than .safetensors, or a folder that cannot be written to.
    """
    from safetensors.numpy import save

    check_ending(path)
    contents = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    said = {"format": FORMAT, "sha256": hashlib.sha256(contents).hexdigest(), **description}
    text = json.dumps(said, indent=1, allow_nan=False)
    replace_file(path, lambda file: file.write(contents))
    replace_file(path.with_suffix(DESCRIPTION), lambda file: file.write(text.encode()))


def check_ending(path: Path) -> None:
    """See before any work is done whether a probe can have this name.

    Raises:
        InputError: another ending than .safetensors, written so: in capitals the name of the JSON
            file would not lead back to it.
    """
    if path.suffix != WEIGHTS:
        raise InputError(f"cannot write {path}: the name of a probe must end in {WEIGHTS}.")


def read_pair(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read both files, by the name of either.

    Raises:
        InputError: one is missing, or is no such file, or they do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    _read(path)  # so that a missing file is named as it was given
    said = read_json(path.with_suffix(DESCRIPTION))
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise InputError(
            f"{path.with_suffix(DESCRIPTION)} does not describe an emotion probe ({FORMAT})."
        )
    weights = path.with_suffix(WEIGHTS)
    contents = _read(weights)
    if hashlib.sha256(contents).hexdigest() != said.get("sha256"):
        raise InputError(
            f"{weights} is not the file that {weights.stem}{DESCRIPTION} beside it describes: one "
            "of the two was replaced or damaged; save the probe again."
        )
    try:
        return load(contents), said
    except SafetensorError as error:
        raise InputError(f"{weights} is no safetensors file ({error}).") from error


def read_rows(path: Path, content: Any) -> npt.NDArray[np.float64]:
    """Rows (9, D) of the JSON that the report's authors published: nine names -> D numbers each.

    Raises:
        InputError: something else.
    """
    if not isinstance(content, dict) or set(content) != set(CLASSES):
        raise InputError(
            f"{path} is no file of emotion encodings: expected JSON with the nine names "
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
    """The content of a JSON file.

    Raises:
        InputError: there is none, or it is no JSON.
    """
    contents = _read(path)
    try:
        return json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file ({error}).") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
