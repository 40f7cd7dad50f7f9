"""What a map marks: masks and boxes, as segmenters, detectors and labelling tools take them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from . import maps
from .files import make_folder, replace_file
from .maps import Box
from .metrics.localization import Threshold, threshold_level

_SAMPLE = 2**20  # pixels that a threshold is computed from, at most


@dataclass(frozen=True, eq=False)
class Region:
    """What one map marks.

    Attributes:
        image: its position among the images.
        target: its name.
        sign: "positive" or "negative".
        mask: (H, W) bool; a ``torchvision.tv_tensors.Mask`` where there is torchvision.
        boxes: (N, 4) left, top, right and bottom edge in pixels of each part of the mask, the
            largest part first; parts touch by a side or a corner. ``tv_tensors.BoundingBoxes``
            where there is torchvision. (0, 4) of a map without heat.
        peak: x and y of the map's maximum, the centre of its pixel; None of a map without heat.
    """

    image: int
    target: str
    sign: str
    mask: Tensor
    boxes: Tensor
    peak: tuple[float, float] | None


def region(
    heatmap: Tensor, box: Box, threshold: Threshold, *, image: int, target: str, sign: str
) -> Region:
    """What a map marks.

    Args:
        heatmap: (H, W) in [0, 1], zero outside of the box.
        box: what the model saw, over which the threshold is computed.
        threshold: "otsu", "mean" or a number in [0, 1).
        image: for the region, as the following.
        target: its name.
        sign: "positive" or "negative".

    Raises:
        InputError: an unknown threshold.
    """
    rows, columns = maps.inside(box, (heatmap.shape[0], heatmap.shape[1]))
    seen = heatmap[rows, columns]
    step = max(1, int((seen.numel() / _SAMPLE) ** 0.5))
    mask = heatmap > threshold_level("regions", seen[None, ::step, ::step], threshold)
    mask &= heatmap > 0
    boxes = torch.from_numpy(_boxes(mask.numpy())).float()
    y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
    peak = (x + 0.5, y + 0.5) if bool(heatmap.any()) else None
    return Region(image, target, sign, *_tv_tensors(mask, boxes), peak)


def _tv_tensors(mask: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The same tensors, known to torchvision's transforms where it is installed."""
    try:
        from torchvision import tv_tensors
    except ImportError:
        return mask, boxes
    size = (mask.shape[0], mask.shape[1])
    known = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    return tv_tensors.Mask(mask), known


def _boxes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The boxes (N, 4) of the parts of a mask (H, W), the largest part first.

    Example:
        >>> import numpy as np
        >>> from captum_clip.regions import _boxes
        >>> _boxes(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)).tolist()
        [[0, 0, 2, 2], [3, 0, 4, 2]]
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)  # runs of marked pixels, row by row
    stops = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    width = mask.shape[1] + 1
    below = (rows + 1) * width  # where the next row begins, if rows stood one after another
    first = np.searchsorted(below + stops, rows * width + starts)
    last = np.searchsorted(below + starts, rows * width + stops, side="right")
    for run in range(len(rows)):
        for above in range(first[run], last[run]):  # those of the row above that touch it
            one, other = sorted((root(above), root(run)))
            parent[other] = one
    part = np.array([root(run) for run in range(len(rows))], dtype=np.int64)
    sizes = np.bincount(part, stops - starts, minlength=1)
    roots = sorted(set(part.tolist()), key=lambda run: (-sizes[run], run))
    boxes = [
        (starts[part == r].min(), rows[r], stops[part == r].max(), rows[part == r].max() + 1)
        for r in roots
    ]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def save_regions(
    found: Sequence[Region], folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write regions into a folder: the masks as PNG, white on black, all else as ``regions.json``.

    Args:
        found: of one or several images.
        folder: made where there is none; files of the same names are replaced.
        about: what else the JSON says at its top, such as model and method.

    Returns:
        The path of the JSON: {..., "regions": [{"image", "target", "sign", "size": [H, W],
        "boxes": [[left, top, right, bottom], ...], "peak": [x, y] or null, "mask"}, ...]}.

    Raises:
        InputError: a folder that cannot be written to.
    """
    path = make_folder(folder)
    rows = []
    for number, one in enumerate(found):
        slug = re.sub(r"\W+", "-", one.target.lower()).strip("-")[:60]
        name = f"{number:03}-{slug}-{one.sign}.png"
        picture = io.BytesIO()
        Image.fromarray(one.mask.numpy()).save(picture, "PNG")
        _write(path / name, picture.getvalue())
        rows.append(
            {
                "image": one.image,
                "target": one.target,
                "sign": one.sign,
                "size": list(one.mask.shape),
                "boxes": one.boxes.long().tolist(),
                "peak": one.peak,
                "mask": name,
            }
        )
    text = json.dumps({**(about or {}), "regions": rows}, indent=1, ensure_ascii=False)
    _write(path / "regions.json", text.encode())
    return path / "regions.json"


def _write(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))
