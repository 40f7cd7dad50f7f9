"""Strips: many maps of one image behind each other, such as those of its layers or heads."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from torch import Tensor

from .. import maps
from .arrays import enlarged
from .colors import (
    NEGATIVE,
    POSITIVE,
    Array,
    blend,
    blend_signed,
    colormap,
    ramp,
    score_note,
    short_number,
)
from .grid import Legend, Panel, Row, folded

MASK: Final = "mask"
"""In place of a color map: multiply the image with the map, as the report does."""
REST: Final = "rest, of no position"
"""The label of a score less the maps of all heads."""
_BLACK_TO_WHITE: Final = LinearSegmentedColormap.from_list("captum_clip.mask", ["black", "white"])
_DIGITS: Final = 3  # of a cosine, as score_note writes it


def strip(
    image: Array,
    raw: Tensor,
    lead: Panel,
    cmap: str | Colormap | None,
    titles: Sequence[str],
    *,
    notes: Sequence[str] = (),
    shared: bool,
) -> list[Row]:
    """Draw raw maps (L, h, w) over one image (H, W, 3), behind a lead.

    Without a color map they are signed: orange above zero and blue below, on a scale that ends at
    the largest absolute value, of each map or shared by all. With one they are min-max normalized.
    By default the notes below them are their ranges.
    """
    large = enlarged(raw.float().cpu().numpy(), image.shape[:2])
    if cmap is None:
        largest = np.abs(large).max(axis=None if shared else (-2, -1), keepdims=True)
        # a map of zeros stays one
        signed = large / np.where(largest > 0, largest, 1)  # (L, H, W) in [-1, 1]
        drawn = [blend_signed(image, values) for values in signed]
    else:
        [heatmap] = min_max([torch.from_numpy(large)], shared=shared)
        drawn = [
            image * values[..., None] if cmap == MASK else blend(image, values, colormap(cmap))
            for values in heatmap.numpy()
        ]
    notes = notes or [f"{short_number(m.min())} to {short_number(m.max())}" for m in large]
    panels = [Panel(*panel) for panel in zip(drawn, titles, notes, strict=True)]
    return folded(panels, lead)


def strip_legends(cmap: str | Colormap | None, above: str, below: str) -> list[Legend]:
    """The legends of signed maps, or of one color map."""
    if cmap is None:
        return [Legend(ramp(POSITIVE), above), Legend(ramp(NEGATIVE), below)]
    return [Legend(_BLACK_TO_WHITE if cmap == MASK else ramp(colormap(cmap)), "low to high")]


def min_max(raw: Sequence[Tensor], *, shared: bool) -> list[Tensor]:
    """Maps (..., H, W) min-max normalized to [0, 1]: each on its own, or all of them as one."""
    if not shared:
        return [maps.normalize(values) for values in raw]
    # one long row, since maps of two models differ in size
    flat = maps.normalize(torch.cat([values.flatten() for values in raw])[None])[0]
    pieces = torch.split(flat, [values.numel() for values in raw])
    return [piece.view_as(values) for piece, values in zip(pieces, raw, strict=True)]


def sum_notes(contributions: npt.NDArray[Any], rest: float) -> tuple[str, list[str]]:
    """Write a score and its parts, raw maps (M, h, w) and a rest, with numbers that add up.

    The score comes first, then M + 1 notes: of each map's sum and of the rest, with its share of
    the score where that is not zero.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.strips import sum_notes
        >>> sum_notes(np.array([[[0.0304, 0.1]], [[0.0, -0.0102]]]), 0.0804)
        ('cosine 0.201', ['+0.131, 65%', '−0.010, −5%', '+0.080, 40%'])
    """
    sums = [*contributions.sum((-2, -1), dtype=np.float64), rest]
    values = _rounded_to_add_up(sums, _DIGITS)
    score = round(sum(values), _DIGITS)
    notes = [f"{value:{'+' * (value != 0)}.{_DIGITS}f}" for value in values]
    if score:
        shares = _rounded_to_add_up([value / sum(sums) for value in sums], 2)
        notes = [f"{note}, {share:.0%}" for note, share in zip(notes, shares, strict=True)]
    return score_note(score), [note.replace("-", "\N{MINUS SIGN}") for note in notes]


def _rounded_to_add_up(values: Sequence[float], digits: int) -> list[float]:
    """Values rounded up or down so that they add up to their rounded sum, by largest remainder."""
    units = np.array(values) * 10.0**digits
    rounded = np.floor(units)
    missing = round(float(units.sum())) - int(rounded.sum())
    rounded[np.argsort(rounded - units, kind="stable")[:missing]] += 1
    return [float(value) / 10.0**digits + 0.0 for value in rounded]  # + 0.0: no minus zero
