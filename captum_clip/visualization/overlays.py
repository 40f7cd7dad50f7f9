"""Maps over the images that the model saw: of targets, words, signs and methods; and mean maps."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval, check_nonempty
from ..errors import InputError, public
from .arrays import (
    ArrayLike,
    Batch,
    as_array,
    as_heatmaps,
    as_images,
    as_names,
    as_notes,
    as_references,
    enlarged,
    framed,
    letterbox,
)
from .colors import ALPHA, HEAT, NEGATIVE, POSITIVE, Array, blend, colormap, ramp, short_number
from .grid import ROWS, Legend, Panel, Row, folded, grid

_SIDE = 224  # pixels of a mean map


@public("overlay")
def overlay(
    images: Batch,
    heatmap: Batch,
    *,
    negative: Batch | None = None,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] = (),
    alpha: float = ALPHA,
    cmap: str | Colormap | None = None,
    original: bool = True,
    caption: str = "",
) -> Figure:
    """Heatmaps over images: one row per image (or model), one column per target, word or emotion.

    Arguments are as in :mod:`captum_clip.visualization`; more than eight targets go on in another
    row. `negative` has maps of negative evidence, in a second blue row for each image, and those of
    `heatmap` are orange then, otherwise inferno. `notes` are B times K short lines, after the
    scores; `original` is whether the image without a map comes first.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, heatmap = torch.rand(1, 3, 32, 32), torch.rand(1, 2, 4, 4)
        >>> figure = visualization.overlay(images, heatmap, names=["a horse", "a dog"])
        >>> len(figure.axes)  # the image and two maps
        3
    """
    check_interval("alpha", alpha, "[0, 1]")
    shown, signs = _read(images, [heatmap] if negative is None else [heatmap, negative])
    shape = (len(shown), len(signs[0][0]))
    titles = as_names(names, shape[1])
    lines = as_notes(scores, shape, notes)
    models = as_names(labels or None, shape[0], what="labels")
    looks = [(colormap(HEAT if cmap is None else cmap), "", "low to high")]
    if negative is not None:
        looks = [
            (colormap(POSITIVE if cmap is None else cmap), "", "supports"),
            (NEGATIVE, "contradicts: ", "contradicts"),
        ]
    rows: list[Row] = []
    at: dict[int, str] = {}
    for index, image in enumerate(shown):
        at[len(rows)] = models[index]
        for maps, (colors, prefix, _) in zip(signs, looks, strict=True):
            cells = [
                Panel(blend(image, values, colors, alpha), prefix + title, note_of(values, line))
                for values, title, line in zip(maps[index], titles, lines[index], strict=True)
            ]
            name = f"image {index + 1}" if len(shown) > ROWS else "image"
            rows += folded(cells, Panel(image, name) if original else None)
    legends = [Legend(ramp(colors, alpha), meaning) for colors, _, meaning in looks]
    together = len(rows) // len(shown)
    return grid(rows, labels=at, legends=legends, caption=caption, together=together)


@public("contact_sheet")
def contact_sheet(
    images: Batch,
    columns: Mapping[str, Batch],
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """Methods next to each other: one row per image and its target, one column per method.

    Arguments are as in :mod:`captum_clip.visualization`, of N images with one target each; an image
    may come several times. `columns` are heading -> maps (N, 1, h, w) in [0, 1], `scores` (N, M) of
    the rows and columns.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> maps = {"Grad-CAM": torch.rand(2, 1, 4, 4)}
        >>> figure = visualization.contact_sheet(torch.rand(2, 3, 32, 32), maps, names=["a", "b"])
    """
    check_nonempty("column of maps", columns)
    shown, maps = _read(images, list(columns.values()), count=1)
    colors, shape = colormap(cmap), (len(shown), len(maps))
    titles = as_names(names, shape[0])
    cosines = as_notes(scores, shape)
    targets = as_references(references, shape[0])
    rows = []
    for index, (image, *row) in enumerate(zip(shown, *maps, strict=True)):
        panels = [Panel(image, titles[index])] + [
            Panel(blend(image, values, colors), note=note_of(values, cosine))
            for [values], cosine in zip(row, cosines[index], strict=True)
        ]
        rows.append((panels, targets[index]))
    return _table(rows, columns, [Legend(ramp(colors), "low to high")], {}, caption)


@public("signs")
def signs(
    images: Batch,
    positive: Batch,
    negative: Batch,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    labels: Sequence[str] = (),
    alpha: float = ALPHA,
    cmaps: tuple[str | Colormap, str | Colormap] = (POSITIVE, NEGATIVE),
    caption: str = "",
) -> Figure:
    """Positive next to negative evidence: one row per image (or model) and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalise them as one
    map, or divide both by the larger maximum. The peak of the weaker one is under its image.

    Arguments are as in :mod:`captum_clip.visualization`; `positive` maps support each target,
    `negative` ones contradict it. With `labels` the rows of one target stand together. The `cmaps`
    of both are orange and blue, which people with any kind of colour vision can tell apart.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> up, down = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
        >>> figure = visualization.signs(torch.rand(1, 3, 32, 32), up, down, names=["a horse"])
    """
    check_interval("alpha", alpha, "[0, 1]")
    shown, maps = _read(images, [positive, negative])
    batch, count = len(shown), len(maps[0][0])
    colors = [colormap(cmap) for cmap in cmaps]
    titles = as_names(names, count)
    cosines = as_notes(scores, (batch, count))
    targets = as_references(references, count)
    models = as_names(labels or None, batch, what="labels")
    order = list(product(range(batch), range(count)))
    if labels:  # models side by side, target by target
        order.sort(key=lambda row: row[1])
    rows = []
    for index, column in order:
        image, pair = shown[index], [sign[index][column] for sign in maps]
        panels = [Panel(image, titles[column], cosines[index][column])] + [
            Panel(blend(image, values, cmap, alpha), note=_peak(values, other))
            for values, other, cmap in zip(pair, reversed(pair), colors, strict=True)
        ]
        rows.append((panels, targets[column]))
    legends = [
        Legend(ramp(cmap, alpha), meaning)
        for cmap, meaning in zip(colors, ("supports", "contradicts"), strict=True)
    ]
    labels_of_rows = {row: models[index] for row, (index, _) in enumerate(order)}
    together = 1 if labels else count
    headers = ["supports it", "contradicts it"]
    return _table(rows, headers, legends, labels_of_rows, caption, together)


@public("average")
def average(
    rows: Mapping[str, ArrayLike],
    *,
    names: Sequence[str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    scale: tuple[float, float] | None = None,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """Mean maps: one row per model or method, one column per target or emotion, all on one scale.

    The darkest colour is the smallest value of all maps and the lightest the largest, so that maps
    can be compared and weak structure is seen; the legend gives both.

    Args:
        rows: label -> maps (K, h, w) of any finite values; grids may differ from row to row.
        names: of the K targets, under the maps; more than eight go on in a second row.
        notes: label -> K short lines, under the names.
        scale: smallest and largest value, where several figures are to be compared.
        cmap: colour map; should be perceptually uniform.
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
    means = {label: _as_means(label, given) for label, given in rows.items()}
    counts = sorted({len(given) for given in means.values()})
    if len(counts) > 1:
        raise InputError(f"expected as many maps in every row, got {counts}.")
    [count] = counts
    titles = as_names(names, count)
    colors = colormap(cmap)
    low, high = scale or (
        min(float(given.min()) for given in means.values()),
        max(float(given.max()) for given in means.values()),
    )
    panels: list[Row] = []
    labels: dict[int, str] = {}
    for label, given in means.items():
        lines = as_names(None if notes is None else notes[label], count)
        shares = (given - low) / (high - low) if high > low else np.zeros_like(given)
        pixels = np.asarray(colors(shares)[..., :3], dtype=np.float32)
        labels[len(panels)] = label
        panels += folded([Panel(*parts) for parts in zip(pixels, titles, lines, strict=True)])
    legend = Legend(colors, f"{short_number(low)} to {short_number(high)}")
    return grid(panels, labels=labels, legends=[legend], caption=caption)


def _as_means(label: str, given: ArrayLike) -> Array:
    """Maps (K, h, w) -> (K, 224, 224)."""
    array = as_array(f"maps (K, h, w) for {label!r}", given)
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"expected maps of shape (K, h, w) for {label!r}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"the maps of {label!r} hold NaN or infinity.")
    return enlarged(array, (_SIDE, _SIDE))


def _read(
    images: Batch, heatmaps: Sequence[Batch], count: int | None = None
) -> tuple[list[Array], list[list[Array]]]:
    """B images (H, W, 3) and for each of several batches their B maps (K, H, W).

    All are in frames of the largest height and width, with white margins around an image and zeros
    around its maps.
    """
    shown = as_images(images)
    batches: list[list[Array]] = []
    for given in heatmaps:
        batches.append(as_heatmaps(given, shown, count))
        count = len(batches[0][0])
    size = [max(image.shape[side] for image in shown) for side in (0, 1)]
    framed_maps = [[letterbox(maps, size, 0.0) for maps in batch] for batch in batches]
    return [framed(image, size) for image in shown], framed_maps


def _table(
    rows: Sequence[tuple[list[Panel], Array | None]],
    columns: Iterable[str],
    legends: Sequence[Legend],
    labels: Mapping[int, str],
    caption: str,
    together: int = 1,
) -> Figure:
    """Rows of an image, its maps, and at the end the target where that is an image."""
    headers = ["image", *columns]
    if any(target is not None for _, target in rows):
        headers.append("target image")
    shown = [
        panels if target is None else [*panels, Panel(framed(target, panels[0].pixels.shape))]
        for panels, target in rows
    ]
    look: dict[str, Any] = {"labels": labels, "legends": legends, "caption": caption}
    return grid(shown, headers=headers, together=together, **look)


def note_of(heatmap: Array, *parts: str) -> str:
    """The line under a map; an empty map is an answer and no failure, so it is named."""
    return ", ".join(filter(None, (*parts, "" if heatmap.any() else "empty map")))


def _peak(heatmap: Array, other: Array) -> str:
    """The peak of a map where the other sign's is higher, which is why it looks pale."""
    share = float(heatmap.max()) / (float(other.max()) or 1)
    return note_of(heatmap) or (f"peak {share:.0%} of the other\u2019s" if share < 0.95 else "")


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels of which no two are the same: "last-grad", "last-grad (2)"."""
    numbers = [labels[:end].count(label) for end, label in enumerate(labels, 1)]
    return [
        label if number == 1 else f"{label} ({number})"
        for label, number in zip(labels, numbers, strict=True)
    ]
