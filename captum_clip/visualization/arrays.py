"""Arguments of the figures, as NumPy arrays of known shape and range.

Each `as_...` raises InputError for other shapes, values out of range, or anything but numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import maps
from ..checks import as_list, expect
from ..errors import InputError
from ..files import as_numbers
from ..look import current_look
from .colors import Array, score_note

ArrayLike = Tensor | npt.NDArray[Any]
Batch = ArrayLike | Sequence[ArrayLike]
"""A batch, or a list of its members, which may then differ in height and width."""

# Values may leave [0, 1] by the rounding of half precision.
_SLACK: Final = 1e-3


def as_images(images: Batch) -> list[Array]:
    """Convert images (B, 3, H, W) with colors in [0, 1] to B arrays (H, W, 3)."""
    if isinstance(images, (list, tuple)) and len(images):
        arrays = [as_array("images", image, (3, "H", "W")) for image in images]
    else:
        arrays = list(as_array("images", images, ("B", 3, "H", "W")))
    converted = []
    for array in arrays:
        _check_range("images", array, "clip.denormalize(images) gives such colors")
        converted.append(np.moveaxis(array, 0, -1).clip(0, 1))
    return converted


def as_heatmaps(heatmaps: Batch, images: Sequence[Array], count: int | None = None) -> list[Array]:
    """Convert maps (B, K, h, w) in [0, 1] to B arrays (K, H, W), as large as the images (H, W, 3).

    K is `count`, or by default any number.
    """
    side: int | str = count or "K"
    if isinstance(heatmaps, (list, tuple)):
        arrays = []
        for values in as_values("maps", heatmaps, len(images)):
            array = as_array("maps", values, (side, "h", "w"))
            arrays.append(array)
            # All images of a list must have as many maps as the first.
            side = len(array)
    else:
        arrays = list(as_array("maps", heatmaps, (len(images), side, "h", "w")))
    resized: list[Array] = []
    for array, image in zip(arrays, images, strict=True):
        _check_range("maps", array, "maps.normalize(maps) stretches each to it")
        _check_aspect(array.shape[1:], image.shape)
        resized.append(enlarged(array, image.shape).clip(0, 1))
    return resized


def enlarged(array: Array, size: Sequence[int]) -> Array:
    """Upsample maps (..., h, w) to (..., H, W), each within its own range; smoothly by default."""
    height, width = size[:2]
    if array.shape[-2:] == (height, width):
        return array
    raw = torch.from_numpy(array)
    # Bicubic interpolation overshoots at edges, but a map keeps the range that its legend names.
    mode = current_look.get().interpolation
    return np.asarray(maps.upsample(raw, (height, width), mode=mode, clamp=True))


def _check_aspect(grid: Sequence[int], size: Sequence[int]) -> None:
    """Refuse a map of a crop on a whole photo, which would silently stretch it.

    A tower's cells are square, and there are as many of them as go into the image, or one more.
    """
    height, width = size[:2]
    rows, columns = grid
    # If the number of cells is rounded down, a cell's side is above height / (rows + 1) and at most
    # height / rows. The same holds for the width, so the two intervals overlap.
    rounded_down = height / (rows + 1) < width / columns and width / (columns + 1) < height / rows
    # If it is rounded up, a cell's side is at least height / rows and below height / (rows - 1).
    rounded_up = height * (columns - 1) < width * rows and width * (rows - 1) < height * columns
    if not (rounded_down or rounded_up):
        raise InputError(
            f"maps of {rows} x {columns} and images of {height} x {width} differ in "
            "shape. To draw the map of a crop on its whole photo, use "
            "explain(photo, ...).plot(original=True), or maps.uncrop for maps of your own."
        )


def as_values(what: str, values: Any, count: int, absent: Any = "") -> list[Any]:
    """Return a list of `count` values, such as names; where none are given, of `absent` ones."""
    if values is None:
        return [absent] * count
    expect(isinstance(values, Iterable), f"{count} {what}", values)
    listed = as_list(values)
    expect(len(listed) == count, f"{count} {what}", len(listed))
    return listed


def as_cosines(scores: ArrayLike | None, shape: tuple[int, int]) -> list[list[str]]:
    """Write scores (B, K) as notes under images, which are empty if no scores are given."""
    image_count, count = shape
    if scores is None:
        return [[""] * count] * image_count
    array = as_array("scores", scores, shape)
    return [list(map(score_note, row)) for row in array]


def as_references(references: Sequence[ArrayLike | None] | None, count: int) -> list[Array | None]:
    """Convert images (3, h, w) that are targets to (h, w, 3); None for the other targets."""
    converted: list[Array | None] = []
    for image in as_values("references", references, count, None):
        converted.append(None if image is None else as_images([image])[0])
    return converted


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
    own_size = np.array(planes.shape[-2:])
    scale = (frame / own_size).min()
    # A very narrow image keeps at least one pixel.
    inner_size = np.round(scale * own_size).astype(int).clip(1, frame)
    margins = frame - inner_size
    top, left = margins // 2
    bottom, right = margins - margins // 2
    raw = torch.from_numpy(planes)[None]
    # Without antialiasing, a large image that is made small shows patterns that it does not have.
    resized = F.interpolate(raw, inner_size.tolist(), mode="bilinear", antialias=True)[0]
    return F.pad(resized, (left, right, top, bottom), value=fill).numpy()


def framed(image: Array, size: Sequence[int]) -> Array:
    """Put an image (h, w, 3) between white margins, (H, W, 3)."""
    planes = letterbox(np.moveaxis(image, -1, 0), size[:2], 1.0)
    return np.moveaxis(planes, 0, -1).clip(0, 1)


def as_array(what: str, values: Any, shape: Sequence[int | str]) -> Array:
    """Return finite numbers of a shape; a letter in it is a side of any length from one on."""
    if isinstance(values, Tensor):
        reason = maps.unsupported_reason(values)
        if reason:
            raise InputError(f"expected {what} of plain numbers, got {reason}.")
        # NumPy has no bfloat16, and it refuses a tensor that requires a gradient.
        values = values.detach().cpu().float().numpy()
    # NaN is refused, since it would be drawn as black, which looks like an answer.
    return as_numbers(what, values, shape)


def _check_range(what: str, array: Array, advice: str) -> None:
    """Raise InputError unless values are in [0, 1], but for rounding."""
    low = float(array.min())
    high = float(array.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise InputError(f"expected {what} in [0, 1], got {low:.3g} to {high:.3g}; {advice}.")
