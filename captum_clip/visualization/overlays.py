"""Maps over the images that the model saw: of targets, words, signs and methods; and mean maps."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from ..checks import check_nonempty
from ..errors import public
from ..look import draws
from .arrays import (
    ArrayLike,
    Batch,
    as_array,
    as_cosines,
    as_heatmaps,
    as_images,
    as_references,
    as_values,
    enlarged,
    framed,
    letterbox,
)
from .colors import Array, ramp, short_number, sign_colors
from .grid import ROWS, Legend, Panel, Row, folded, grid

_MEAN_SIZE = (224, 224)  # of a mean map


@public("overlay")
@draws
def overlay(
    images: Batch,
    heatmap: Batch,
    *,
    negative: Batch | None = None,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] = (),
    caption: str = "",
    **_: Any,
) -> Figure:
    """Heatmaps over images: one row per image (or model), one column per target, word or emotion.

    Arguments are as in :mod:`captum_clip.visualization`; more than eight targets go on in another
    row. `negative` has maps of negative evidence, drawn in blue in a second row for each image;
    those of `heatmap` are orange then, otherwise inferno. `notes` are B times K short lines, after
    the scores.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, heatmap = torch.rand(1, 3, 32, 32), torch.rand(1, 2, 4, 4)
        >>> figure = visualization.overlay(images, heatmap, names=["a horse", "a dog"])
        >>> len(figure.axes)  # the image and two maps
        3
    """
    batches = [heatmap] if negative is None else [heatmap, negative]
    pictures, signs = framed_batches(images, batches)
    shape = (len(pictures), len(signs[0][0]))
    titles = as_values("names", names, shape[1])
    cosines = as_cosines(scores, shape)
    lines = [as_values("notes", row, shape[1]) for row in as_values("notes", notes, shape[0], None)]
    models = as_values("labels", labels or None, shape[0])
    meanings = ["low to high"] if negative is None else ["supports", "contradicts"]
    cmaps = sign_colors(*("positive", "negative")[: len(signs)])
    rows: list[Row] = []
    for index, image in enumerate(pictures):
        name = f"image {index + 1}" if len(pictures) > ROWS else "image"
        lead = Panel(image, name, label=models[index])
        for maps, colors, prefix in zip(signs, cmaps, ("", "contradicts: "), strict=False):
            written = zip(maps[index], titles, cosines[index], lines[index], strict=True)
            cells = [
                _panel(image, values, colors, f"{prefix}{title}", *notes)
                for values, title, *notes in written
            ]
            rows += folded(cells, lead)
            # The label stands at the first row of an image alone.
            lead = Panel(image, name)
    legends = [Legend(ramp(c), meaning) for c, meaning in zip(cmaps, meanings, strict=True)]
    return grid(rows, legends=legends, caption=caption, together=len(rows) // len(pictures))


@public("contact_sheet")
@draws
def contact_sheet(
    images: Batch,
    columns: Mapping[str, Batch],
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    models: Sequence[str] = (),
    caption: str = "",
    **_: Any,
) -> Figure:
    """Methods next to each other: one row per image and its target, one column per method.

    Arguments are as in :mod:`captum_clip.visualization`, of N images with one target each; an image
    may come several times. `columns` are heading -> maps (N, 1, h, w) in [0, 1]; `scores` (N, M)
    are those of rows and columns. With several models, `models` are those of the M columns. Then
    each model has a row, or two from nine columns on, with the headings under the maps.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> maps = {"Grad-CAM": torch.rand(2, 1, 4, 4)}
        >>> figure = visualization.contact_sheet(torch.rand(2, 3, 32, 32), maps, names=["a", "b"])
    """
    check_nonempty("column of maps", columns)
    pictures, maps = framed_batches(images, list(columns.values()), count=1)
    [colors], shape = sign_colors("positive"), (len(pictures), len(maps))
    titles = as_values("names", names, shape[0])
    cosines = as_cosines(scores, shape)
    targets = as_references(references, shape[0])
    rows = []
    for index, image in enumerate(pictures):
        panels = [
            _panel(image, column[index][0], colors, heading * bool(models), note)
            for heading, column, note in zip(columns, maps, cosines[index], strict=True)
        ]
        rows.append([Panel(image, titles[index]), *panels])
    below: dict[str, Any] = {"legends": [Legend(ramp(colors), "low to high")], "caption": caption}
    if not models:
        return _table(rows, targets, columns, **below)
    wrapped: list[Row] = []
    for (lead, *panels), target in zip(rows, targets, strict=True):
        ends = [] if target is None else [Panel(framed(target, lead.pixels.shape), "target image")]
        for _, group in groupby(zip(models, panels, strict=True), itemgetter(0)):
            wrapped += folded([*(panel for _, panel in group), *ends], lead)
    return grid(wrapped, together=len(wrapped) // len(rows), **below)


@public("signs")
@draws
def signs(
    images: Batch,
    positive: Batch,
    negative: Batch,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    labels: Sequence[str] = (),
    caption: str = "",
    **_: Any,
) -> Figure:
    """Positive next to negative evidence: one row per image (or model) and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalize them as one
    map, or divide both by the larger maximum. The peak of the weaker one is under its image.

    Arguments are as in :mod:`captum_clip.visualization`; `positive` maps support each target,
    `negative` ones contradict it. With `labels` the rows of one target stand together. Orange and
    blue can be told apart with any kind of color vision; a `cmap` serves both signs.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> up, down = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
        >>> figure = visualization.signs(torch.rand(1, 3, 32, 32), up, down, names=["a horse"])
    """
    pictures, (supporting, contradicting) = framed_batches(images, [positive, negative])
    shape = (len(pictures), len(supporting[0]))
    colors = sign_colors("positive", "negative")
    titles = as_values("names", names, shape[1])
    cosines = as_cosines(scores, shape)
    targets = as_references(references, shape[1])
    models = as_values("labels", labels or None, shape[0])
    cells = list(np.ndindex(shape))
    if labels:
        # The rows of one target stand together, so that its models can be compared.
        cells.sort(key=lambda cell: cell[1])
    rows = []
    for index, column in cells:
        image = pictures[index]
        support, contradiction = supporting[index][column], contradicting[index][column]
        lead = Panel(image, titles[column], cosines[index][column], models[index])
        left = _panel(image, support, colors[0], "", _peak(support, contradiction))
        right = _panel(image, contradiction, colors[1], "", _peak(contradiction, support))
        rows.append([lead, left, right])
    meanings = ("supports", "contradicts")
    return _table(
        rows,
        [targets[column] for _, column in cells],
        [f"{meaning} it" for meaning in meanings],
        legends=[Legend(ramp(c), m) for c, m in zip(colors, meanings, strict=True)],
        caption=caption,
        together=1 if labels else shape[1],
    )


@public("average")
@draws
def average(
    rows: Mapping[str, ArrayLike],
    *,
    names: Sequence[str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    scale: tuple[float, float] | None = None,
    caption: str = "",
    **_: Any,
) -> Figure:
    """Mean maps: one row per model or method, one column per target or emotion, all on one scale.

    The darkest color is the smallest value of all maps and the lightest the largest, so that maps
    can be compared and weak structure is seen; the legend gives both.

    Args:
        rows: label -> maps (K, h, w) of any finite values; grids may differ from row to row.
        names: of the K targets, under the maps; more than eight go on in a second row.
        notes: label -> K short lines, under the names.
        scale: smallest and largest value, where several figures are to be compared.
        caption: below the maps.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> means = {"ViT": torch.rand(2, 7, 7), "ResNet": torch.rand(2, 9, 9)}
        >>> figure = visualization.average(means, names=["awe", "fear"])
        >>> len(figure.axes)  # four maps
        4
    """
    check_nonempty("row of maps", rows)
    means: dict[str, Array] = {}
    count: int | str = "K"
    for label, maps in rows.items():
        array = as_array(f"maps for {label!r}", maps, (count, "h", "w"))
        means[label], count = enlarged(array, _MEAN_SIZE), len(array)
    titles, [colors] = as_values("names", names, len(array)), sign_colors("positive")
    values = np.concatenate([maps.ravel() for maps in means.values()])
    low, high = scale or (values.min(), values.max())
    panels: list[Row] = []
    for label, maps in means.items():
        lines = as_values("notes", (notes or {}).get(label), len(maps))
        # of maps that are all alike Normalize makes zeros, and does not divide by zero
        pixels = np.asarray(colors(Normalize(low, high)(maps))[..., :3], dtype=np.float32)
        once = [label, *[""] * (len(maps) - 1)]
        panels += folded([Panel(*cell) for cell in zip(pixels, titles, lines, once, strict=True)])
    legend = Legend(colors, f"{short_number(low)} to {short_number(high)}")
    return grid(panels, legends=[legend], caption=caption)


def framed_batches(
    images: Batch, heatmaps: Sequence[Batch], count: int | None = None
) -> tuple[list[Array], list[list[Array]]]:
    """B images (H, W, 3) and for each of several batches their B maps (K, H, W).

    All are in frames of the largest height and width, with white margins around an image and zeros
    around its maps.
    """
    pictures = as_images(images)
    batches: list[list[Array]] = []
    for batch in heatmaps:
        batches.append(as_heatmaps(batch, pictures, count))
        count = len(batches[0][0])
    size = np.max([image.shape[:2] for image in pictures], axis=0).tolist()
    framed_maps = [[letterbox(maps, size, 0.0) for maps in batch] for batch in batches]
    return [framed(image, size) for image in pictures], framed_maps


def _table(
    rows: Sequence[list[Panel]],
    targets: Sequence[Array | None],
    columns: Iterable[str],
    **look: Any,
) -> Figure:
    """Rows of an image, its maps, and at the end the target where that is an image."""
    shape = rows[0][0].pixels.shape
    ends = [[] if target is None else [Panel(framed(target, shape))] for target in targets]
    headers = ["image", *columns, *["target image"] * any(ends)]
    return grid([row + end for row, end in zip(rows, ends, strict=True)], headers=headers, **look)


def _panel(image: Array, heatmap: Array, cmap: Colormap, title: str, *notes: str) -> Panel:
    """A map over its image, with the title and the notes under it."""
    written = [note for note in notes if note]
    # An empty map is an answer and no failure, so the figure says that it is empty.
    if not heatmap.any():
        written.append("empty map")
    return Panel(image, title, ", ".join(written), layers=[(heatmap, cmap)])


def _peak(heatmap: Array, other: Array) -> str:
    """The peak of a map where the other sign's is higher, which is why it looks pale."""
    share = float(heatmap.max()) / (float(other.max()) or 1)
    return f"peak {share:.0%} of the other\u2019s" if 0 < share < 0.95 else ""


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels of which no two are the same: "last-grad", "last-grad (2)"."""
    counts = [labels[:end].count(label) for end, label in enumerate(labels)]
    return [f"{label} ({n + 1})" if n else label for label, n in zip(labels, counts, strict=True)]
