"""A score as a sum of signed maps: attention heads, and what no position adds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..errors import InputError
from .arrays import ArrayLike, as_array, as_images, as_names, as_raw, as_references
from .blend import ramp
from .grid import Legend, Panel, folded, grid
from .layers import draw_overlaid, draw_signed
from .style import ALPHA, NEGATIVE, POSITIVE, colormap, score_note

REST = "rest, of no position"
"""What is left of a score when all maps are taken away."""
_DIGITS = 3  # of a cosine, as score_note writes it


def heads(
    images: ArrayLike,
    contributions: ArrayLike,
    rest: float,
    *,
    labels: Sequence[str],
    name: str = "",
    reference: ArrayLike | None = None,
    shared: bool = False,
    cmap: str | Colormap | None = None,
    caption: str = "",
) -> Figure:
    r"""Parts of a score, each a signed map over the image with its sum and its share of the score.

    .. math:: y = \sum_m \sum_p r_m(p) + \text{rest}

    Orange adds to the score and blue takes away, on a scale that ends at the largest absolute
    value. The numbers are rounded so that those under the pictures add up to the score under the
    image: each is less than one unit of its last digit away from the exact one.

    Args:
        images: the one image, (1, 3, H, W), colours in [0, 1].
        contributions: (1, M, h, w), M signed raw maps, such as those of
            :class:`captum_clip.DirectContribution` with ``per="head"``.
        rest: what no position adds; the last picture, without a map.
        labels: of the M maps, under their pictures.
        name: of the target, under the image.
        reference: picture (3, H, W) of a target that is an image, in place of the image.
        shared: one scale for all maps; by default each map on its own.
        cmap: lay all maps, min-max normalised, over the image in these colours.
        caption: below the pictures.

    Raises:
        InputError: shapes that do not fit, NaN or infinity, an unknown colour map.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> image, maps = torch.rand(1, 3, 32, 32), 0.01 * torch.randn(1, 2, 4, 4)
        >>> figure = visualization.heads(image, maps, 0.1, labels=["head 0", "head 1"])
        >>> len(figure.axes)  # the image, two heads and the rest
        4
    """
    pictures = as_images("heads", images)
    large = as_raw("heads", "contributions", contributions, "(1, M, h, w)", pictures.shape[1:3])
    if not len(pictures) == len(large) == 1:
        raise InputError(
            f"heads: expected one image, got {len(pictures)} with the maps of {len(large)}."
        )
    if not np.isfinite(rest):
        raise InputError(f"heads: expected a finite rest, got {rest!r}.")
    titles = as_names("heads, labels", labels, large.shape[1])
    [target] = as_references("heads", [reference], 1, pictures.shape[1:3])
    total, notes = sum_notes(as_array("heads", "contributions", contributions)[0], rest)
    picture, values = pictures[0], np.concatenate([large[0], np.zeros_like(large[0, :1])])
    draw = draw_signed
    legends = [
        Legend(ramp(POSITIVE, ALPHA), "adds to the cosine"),
        Legend(ramp(NEGATIVE, ALPHA), "takes away from it"),
    ]
    if cmap is not None:
        draw = partial(draw_overlaid, colormap(cmap))
        legends = [Legend(ramp(colormap(cmap), ALPHA), "low to high")]
    parts = zip(draw(picture, values, shared), [*titles, REST], notes, strict=True)
    lead = Panel(picture if target is None else target, name, total)
    return grid(folded([Panel(*part) for part in parts], lead), legends=legends, caption=caption)


def sum_notes(contributions: npt.NDArray[Any], rest: float) -> tuple[str, list[str]]:
    """How a score and its parts, raw maps (M, h, w) and a rest, are written so that they add up.

    The score comes first, then M + 1 notes: of each map's sum and of the rest, with its share of
    the score where that is not zero.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.heads import sum_notes
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
