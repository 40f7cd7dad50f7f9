"""Regions of two images that answer each other, in the same colors."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from .. import maps
from ..errors import public
from .arrays import ArrayLike, Batch, as_array, as_cosines, as_images, as_values
from .colors import ALPHA, Array, soften
from .grid import Panel, grid

_COLORS: Final = ("blue", "orange", "green", "red")  # of as many matches
_HALF: Final = 0.5  # of a match's largest share, to belong to it
_LEAST: Final = 0.25  # of the strongest match, to be shown


@public("matches")
def matches(
    images: Batch,
    references: Batch,
    shares: ArrayLike,
    *,
    scores: ArrayLike | None = None,
    caption: str = "",
) -> Figure:
    """The four strongest matches of two images: one row a pair, each in one color on both.

    A match is around the pair of cells with the largest share: on either image the connected cells
    whose share with the other's cell is half as large or more. The next one is sought among the
    cells that belong to none yet, down to a quarter of the strongest. All colors are on one scale,
    so a weaker match is paler, and the largest share of each is written below. These are the
    strongest pairs, whether or not both images show the same there.

    Args:
        images: (B, 3, H, W), colors in [0, 1].
        references: what each is compared with, (B, 3, H, W).
        shares: (B, h', w', h, w), of each cell of the reference with each of the image; those
            below zero match nothing.
        scores: cosines (B,), under each image.
        caption: below all.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, shares = torch.rand(2, 3, 32, 32), torch.rand(1, 4, 4, 4, 4)
        >>> figure = visualization.matches(images[:1], images[1:], shares)
    """
    pictures, others = as_images(images), as_images(references)
    others = as_values("references", others, len(pictures))
    each = as_array("shares", shares, (len(pictures), "h'", "w'", "h", "w"))
    cosines = None if scores is None else as_array("scores", scores, (len(each),))[..., None]
    rows = []
    for image, other, values, [note] in zip(
        pictures, others, each, as_cosines(cosines, (len(each), 1)), strict=True
    ):
        pairs = list(_strongest(values, len(_COLORS)))
        peaks = [f"{color} {on.max():.3f}" for color, (_, on) in zip(_COLORS, pairs, strict=False)]
        listed = f"shares: {', '.join(peaks)}" if peaks else "no cells match each other"
        left = Panel(_painted(image, [on for _, on in pairs]), "image", note)
        rows.append([left, Panel(_painted(other, [on for on, _ in pairs]), "reference", listed)])
    return grid(rows, caption=caption)


def _strongest(shares: Array, count: int) -> Iterator[tuple[Array, Array]]:
    """Yield the shares of each match: of the reference's cells (h', w'), of the image's (h, w)."""
    left, least = shares.clip(0), max(_LEAST * shares.max(), 0)
    for _ in range(count):
        row, column, y, x = np.unravel_index(left.argmax(), left.shape)
        if left[row, column, y, x] <= 0 or left[row, column, y, x] < least:
            return
        on_other = _around(left[:, :, y, x], row, column)
        on_image = _around(left[row, column], y, x)
        yield on_other, on_image
        # without its cells on both sides, so that two matches never share one
        left = left * (on_other == 0)[..., None, None] * (on_image == 0)


def _around(values: Array, row: np.intp, column: np.intp) -> Array:
    """The values (h, w) of the connected cells around a place that are half as large or more."""
    from scipy import ndimage

    labels, _ = ndimage.label(values >= _HALF * values[row, column])
    return np.asarray(values * (labels == labels[row, column]))


def _painted(image: Array, regions: list[Array]) -> Array:
    """A softened image with each region in a color of its own, the first one the strongest."""
    drawn, (height, width) = soften(image), image.shape[:2]
    for region, color in zip(regions, _COLORS, strict=False):
        # of the first and strongest, whose largest share is above zero
        share = torch.from_numpy(region / regions[0].max())
        opacity = ALPHA * maps.upsample(share, (height, width)).clamp(max=1).numpy()[..., None]
        mixed = (1 - opacity) * drawn + opacity * np.array(to_rgb(f"tab:{color}"))
        drawn = np.asarray(mixed, dtype=np.float32)
    return drawn.clip(0, 1)
