"""Arguments of the figures, as NumPy arrays of known shape and range.

Each `as_...` raises InputError: other shapes, values out of range, no numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import maps
from ..checks import as_list, current_look, expect
from ..errors import InputError
from ..files import as_numbers
from .colors import Array, score_note

ArrayLike = Tensor | npt.NDArray[Any]
Batch = ArrayLike | Sequence[ArrayLike]
"""A batch, or a list of its members, which may then differ in height and width."""

_SLACK = 1e-3  # rounding of half precision


def as_images(images: Batch) -> list[Array]:
    """Images (B, 3, H, W) with colors in [0, 1] -> B of (H, W, 3)."""
    if isinstance(images, (list, tuple)) and len(images):
        arrays = [as_array("images", image, (3, "H", "W")) for image in images]
    else:
        arrays = list(as_array("images", images, ("B", 3, "H", "W")))
    for array in arrays:
        _check_range("images", array, "clip.denormalize(images) gives such colors")
    # rounding in half precision leaves values a little outside, which passed the check
    return [np.moveaxis(array, 0, -1).clip(0, 1) for array in arrays]


def as_heatmaps(heatmaps: Batch, images: Sequence[Array], count: int | None = None) -> list[Array]:
    """Maps (B, K, h, w) in [0, 1] -> B of (K, H, W), upsampled to the images (H, W, 3)."""
    if isinstance(heatmaps, (list, tuple)):
        arrays: list[Array] = []
        for values in as_values("maps", heatmaps, len(images)):
            arrays.append(as_array("maps", values, (count or "K", "h", "w")))
            count = len(arrays[0])
    else:
        arrays = [*as_array("maps", heatmaps, (len(images), count or "K", "h", "w"))]
    for array, image in zip(arrays, images, strict=True):
        _check_range("maps", array, "maps.normalize(maps) stretches each to it")
        _check_aspect(array.shape[1:], image.shape)
    return [enlarged(a, image.shape).clip(0, 1) for a, image in zip(arrays, images, strict=True)]


def enlarged(array: Array, size: Sequence[int]) -> Array:
    """Maps (..., h, w) -> (..., H, W), within the range of each; by default smoothly."""
    height, width = size[:2]
    if array.shape[-2:] == (height, width):
        return array
    raw = torch.from_numpy(array)
    # bicubic overshoots at edges; each map keeps the range that its legend names
    mode = current_look.get().interpolation
    return np.asarray(maps.upsample(raw, (height, width), mode=mode, clamp=True))


def _check_aspect(grid: Sequence[int], size: Sequence[int]) -> None:
    """Refuse a map of a crop on a whole photo, which would silently stretch it.

    A tower's cells are square, and there are as many of them as go into the image, or one more.
    """
    (height, width), (rows, columns) = size[:2], grid
    fitting = (
        height / (rows + 1) < width / columns and width / (columns + 1) < height / rows,
        height * (columns - 1) < width * rows and width * (rows - 1) < height * columns,
    )
    if not any(fitting):
        raise InputError(
            f"maps of {rows} x {columns} and images of {height} x {width} differ in "
            "shape. To draw the map of a crop on its whole photo, use "
            "explain(photo, ...).plot(original=True), or maps.uncrop for maps of your own."
        )


def as_values(what: str, values: Any, count: int, absent: Any = "") -> list[Any]:
    """A list of so many values, such as names; where none are given, of `absent` ones."""
    if values is None:
        return [absent] * count
    expect(isinstance(values, Iterable), f"{count} {what}", values)
    listed = as_list(values)
    expect(len(listed) == count, f"{count} {what}", len(listed))
    return listed


def as_cosines(scores: ArrayLike | None, shape: tuple[int, int]) -> list[list[str]]:
    """Scores (B, K) as they are written under images; empty where none are given."""
    if scores is None:
        return [[""] * shape[1]] * shape[0]
    return [[score_note(score) for score in row] for row in as_array("scores", scores, shape)]


def as_references(references: Sequence[ArrayLike | None] | None, count: int) -> list[Array | None]:
    """Images (3, h, w) that are targets -> (h, w, 3); None for the other targets."""
    listed = as_values("references", references, count, None)
    return [None if image is None else as_images([image])[0] for image in listed]


def letterbox(planes: Array, size: Sequence[int], fill: float) -> Array:
    """Resize planes (C, h, w) to fit into a frame (H, W), their shape kept, and center them in it.

    The margins have the value `fill`.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.arrays import letterbox
        >>> letterbox(np.zeros((1, 2, 4), dtype=np.float32), (4, 4), 1.0)[0, :, 0]
        array([1., 0., 0., 1.], dtype=float32)
    """
    frame = np.array(size)
    scale = (frame / planes.shape[-2:]).min()
    inner = np.round(scale * np.array(planes.shape[-2:])).astype(int).clip(1, frame)
    (top, left), (bottom, right) = (frame - inner) // 2, frame - inner - (frame - inner) // 2
    raw = torch.from_numpy(planes)[None]
    # without antialiasing a large image that is made small shows patterns of its own
    resized = F.interpolate(raw, inner.tolist(), mode="bilinear", antialias=True)[0]
    return F.pad(resized, (left, right, top, bottom), value=fill).numpy()


def framed(image: Array, size: Sequence[int]) -> Array:
    """An image (h, w, 3) with white margins, (H, W, 3)."""
    return np.moveaxis(letterbox(np.moveaxis(image, -1, 0), size[:2], 1.0), 0, -1).clip(0, 1)


def as_array(what: str, values: Any, shape: Sequence[int | str]) -> Array:
    """Finite numbers of a shape, whose letters are sides of one and up; a copy where it must be."""
    if isinstance(values, Tensor):
        if reason := maps.unsupported_reason(values):
            raise InputError(f"expected {what} of plain numbers, got {reason}.")
        # NumPy has no bfloat16, and takes no tensor that requires a gradient
        values = values.detach().cpu().float().numpy()
    # NaN would be drawn as black, which looks like an answer
    return as_numbers(what, values, shape)


def _check_range(what: str, array: Array, cure: str) -> None:
    low, high = float(array.min()), float(array.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(f"expected {what} in [0, 1], got {low:.3g} to {high:.3g}; {cure}.")
