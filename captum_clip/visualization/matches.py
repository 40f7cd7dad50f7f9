"""Regions of two images that answer each other, in the same colours."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from .. import maps
from ..checks import check_integer
from ..errors import InputError, public
from .arrays import ArrayLike, Batch, as_array, as_cosines, as_images, as_values
from .colors import ALPHA, Array, soften
from .grid import Panel, grid

_COLORS: Final = ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray")
_HALF: Final = 0.5  # of a match's largest share, to belong to it
_LEAST: Final = 0.25  # of the strongest match, to be shown


@public("matches")
def matches(
    images: Batch,
    references: Batch,
    shares: ArrayLike,
    *,
    count: int = 4,
    names: tuple[str, str] = ("image", "reference"),
    scores: ArrayLike | None = None,
    caption: str = "",
) -> Figure:
    """The strongest matches of two images: one row a pair, each match in one colour on both.

    A match is around the pair of cells with the largest share: on either image the connected cells
    whose share with the other's cell is half as large or more. The next one is sought among the
    cells that belong to none yet. All colours are on one scale, so a weaker match is paler, and
    the largest share of each is written below. These are the strongest pairs, whether or not both
    images show the same there.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        references: what each is compared with, (B, 3, H, W).
        shares: (B, h', w', h, w), of each cell of the reference with each of the image; those
            below zero match nothing.
        count: how many matches, at most eight; those below a quarter of the strongest are left out.
        names: under the two images.
        scores: cosines (B,), under each image.
        caption: below all.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, shares = torch.rand(2, 3, 32, 32), torch.rand(1, 4, 4, 4, 4)
        >>> figure = visualization.matches(images[:1], images[1:], shares)
    """
    check_integer("count", count, most=len(_COLORS))
    shown, others = as_images(images), as_images(references)
    each = torch.from_numpy(as_array("shares", shares))
    if each.ndim != 5 or 0 in each.shape or not len(each) == len(shown) == len(others):
        raise InputError(
            f"expected shares (B, h', w', h, w) of {len(shown)} images and as many "
            f"references, got {tuple(each.shape)} and {len(others)} references."
        )
    if not each.isfinite().all():
        raise InputError("the shares hold NaN or infinity.")
    first, second = as_values("names", names, 2)
    cosines = None if scores is None else as_array("scores", scores)[..., None]
    rows = []
    for image, other, values, [note] in zip(
        shown, others, each, as_cosines(cosines, (len(each), 1)), strict=True
    ):
        found = list(_strongest(values, count))
        left = Panel(_painted(image, [on for _, on in found]), first, note)
        peaks = zip(_COLORS, found, strict=False)
        largest = [f"{color} {on.max():.3f}" for color, (_, on) in peaks]
        listed = f"shares: {', '.join(largest)}" if found else "no cells answer each other"
        rows.append([left, Panel(_painted(other, [on for on, _ in found]), second, listed)])
    return grid(rows, caption=caption)


def _strongest(shares: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each match the shares of the reference's cells (h', w'), and of the image's (h, w)."""
    left, first = shares.clamp(min=0), float(shares.max())
    for _ in range(count):
        largest = float(left.max())
        if largest <= 0 or largest < _LEAST * first:
            return
        place = np.unravel_index(int(left.argmax()), left.shape)
        row, column, y, x = (int(index) for index in place)
        on_other = _around(left[:, :, y, x], row, column)
        on_image = _around(left[row, column], y, x)
        yield on_other, on_image
        left = left * (on_other == 0)[..., None, None] * (on_image == 0)


def _around(values: Tensor, row: int, column: int) -> Tensor:
    """The values (h, w) of the connected cells around a place that are half as large or more."""
    from scipy import ndimage

    parts, _ = ndimage.label((values >= _HALF * values[row, column]).numpy())
    return values * torch.from_numpy(parts == parts[row, column])


def _painted(image: Array, regions: list[Tensor]) -> Array:
    """A softened image with each region in a colour of its own, the first one the strongest."""
    drawn = soften(image)
    for number, region in enumerate(regions):
        large = maps.upsample((region / regions[0].max())[None], image.shape[:2])[0].clamp(max=1)
        opacity = ALPHA * large.numpy()[..., None]
        color = np.asarray(to_rgb(f"tab:{_COLORS[number]}"), dtype=np.float32)
        drawn = np.asarray((1 - opacity) * drawn + opacity * color, dtype=np.float32)
    return drawn.clip(0, 1)
