"""Maps that another method made and wrote to a folder."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from .. import maps as resizing
from ..checks import expand, find_repeated
from ..errors import InputError
from ..files import DAMAGED
from ..models import ClipAdapter
from .data import digest
from .methods import Method
from .table import Queries


class PrecomputedMaps(Method):
    """The maps in a folder: ``SAMPLE.npz`` with `maps` (K, h, w) and `names` (K,), on any grid.

    A map is found by the name of its sample and the text of its target, and resized to the image
    (bilinear). What is below zero in any of a folder's maps is negative evidence. A map that
    holds NaN or infinity counts as missing.

    Args:
        folder: with the files; its name is the method's. A sample in a folder of its data set,
            "cats/one", has its file in a folder of the same name.

    Raises:
        InputError: no such folder, no .npz file in it, or one that holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = expand(folder)
        files = sorted(self.folder.rglob("*.npz"))
        if not files:
            raise InputError(
                f"--maps {folder}: there is no such folder, or no .npz file in it; expected a file "
                "IMAGE_STEM.npz with maps (K, h, w) and names (K,) for each image."
            )
        self.name = self.folder.resolve().name
        self.what = f"maps read from files, {len(files)} of them, resized to the image"
        digests: dict[str, str] = {}
        for path in files:  # every file, so that all of them are checked
            for heatmap in _read(path).values():
                if np.isfinite(heatmap).any() and np.nanmin(heatmap) < 0:
                    self.signed = True
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[path.relative_to(self.folder).as_posix()] = sha
        self._digest = digest(digests)

    @override
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        maps = torch.full((len(queries), *queries.size), torch.nan)
        for index, (sample, text) in enumerate(zip(queries.names, queries.texts, strict=True)):
            path = self.folder / f"{sample}.npz"
            heatmap = _read(path).get(text) if path.is_file() else None
            if heatmap is not None and np.isfinite(heatmap).all():
                maps[index] = resizing.upsample(torch.from_numpy(heatmap), queries.size)
        return maps.to(queries.pixels.device)

    @override
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": self._digest}

    @override
    def why_not(self, sample: str, text: str) -> str:
        path = self.folder / f"{sample}.npz"
        if not path.is_file():
            return f"there is no file {sample}.npz"
        if text not in _read(path):
            return f"{sample}.npz has no map of {text!r}"
        return super().why_not(sample, text)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Text -> map (h, w), float32."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            names, heatmap = np.asarray(file["names"]), np.asarray(file["maps"])
    except DAMAGED as error:
        raise InputError(
            f"{path}: expected an .npz file with maps (K, h, w) and names (K,), it cannot be read "
            f"so ({error})."
        ) from error
    numbers = heatmap.ndim == 3 and 0 not in heatmap.shape and heatmap.dtype.kind in "fiu"
    if not numbers or names.shape != heatmap.shape[:1] or names.dtype.kind not in "US":
        raise InputError(
            f"{path}: expected maps (K, h, w) of numbers and names (K,) of text, got maps "
            f"{heatmap.shape} {heatmap.dtype} and names {names.shape} {names.dtype}."
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    texts = names.tolist()
    if find_repeated(texts) is not None:
        raise InputError(f"{path}: expected each name once, got {texts}.")
    with np.errstate(over="ignore"):  # what does not fit becomes infinity
        return dict(zip(texts, heatmap.astype(np.float32), strict=True))
