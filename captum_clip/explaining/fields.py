"""The fields of an `Explanation` in a file: arrays, and all else as JSON beside them."""

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..errors import InputError
from ..files import DAMAGED, replace_file
from ..models.geometry import Crop
from .request import SIGNS

_TENSORS: Final = ("scores", "norms", "images", "leave_one_out", "reference", "probabilities")
_FACTS: Final = (
    *("names", "model", "method", "words", "text_maps", "hints", "crops", "cells"),
    *("contrast", "calibration"),
)
"""Fields that a file has as JSON."""


def write_fields(explanation: Any, path: Path) -> None:
    """Write an .npz with all fields but the photos."""
    arrays = {f"maps_{sign}": values.numpy() for sign, values in explanation.maps.items()}
    tensors = {name: getattr(explanation, name) for name in _TENSORS}
    arrays |= {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    about = {name: getattr(explanation, name) for name in _FACTS}
    arrays["about"] = np.array(json.dumps(about, default=astuple))
    replace_file(path, lambda file: np.savez_compressed(file, **arrays))


def read_fields(path: Path) -> dict[str, Any]:
    """Read what :func:`write_fields` wrote; InputError where a file holds something else."""
    try:
        # NumPy would not close a damaged file that it opened itself
        # allow_pickle: unpickling would run whatever code a file holds.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        text = arrays.pop("about").astype(str).tobytes()
        about = json.loads(text.decode("utf-32"))  # NumPy checks no characters
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError("it has arrays of another type")
        if unknown := tensors.keys() - {*_TENSORS, *(f"maps_{sign}" for sign in SIGNS)}:
            raise ValueError(f"it has {', '.join(sorted(unknown))}")
        return {
            "maps": {sign: tensors[f"maps_{sign}"] for sign in SIGNS if f"maps_{sign}" in tensors},
            **{name: tensors[name] for name in _TENSORS if name in tensors},
            **{name: _frozen(about[name]) for name in _FACTS},
            "crops": tuple(Crop(size, box) for size, box in _frozen(about["crops"])),
        }
    except DAMAGED as error:
        raise InputError(f"not a file of Explanation.save ({error}).") from error


def _frozen(value: Any) -> Any:
    """A value of JSON with tuples for its lists, as a frozen dataclass has them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
