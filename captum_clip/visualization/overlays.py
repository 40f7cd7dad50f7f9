"""Maps over the images that the model saw, for targets, words, signs and methods; and mean maps."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

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

# A mean map belongs to no image, so it is drawn at the usual size of one.
_MEAN_SIZE: Final = (224, 224)


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
    """Draw heatmaps over images: a row per image (or model), a column per target, word or emotion.

    Arguments are as in :mod:`captum_clip.visualization`. More than eight targets continue in
    another row. `negative` has maps of negative evidence, drawn in blue in a second row for each
    image. Those of `heatmap` are then orange, otherwise inferno. `notes` are B times K short lines,
    after the scores.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, heatmap = torch.rand(1, 3, 32, 32), torch.rand(1, 2, 4, 4)
        >>> figure = visualization.overlay(images, heatmap, names=["a horse", "a dog"])
        >>> len(figure.axes)  # the image and two maps
        3
    """
    if negative is None:
        batches = [heatmap]
        sign_names = ["positive"]
        meanings = ["low to high"]
    else:
        batches = [heatmap, negative]
        sign_names = ["positive", "negative"]
        meanings = ["supports", "contradicts"]
    pictures, sign_maps = framed_batches(images, batches)
    count = len(sign_maps[0][0])  # of the maps (K, H, W) of the first sign and image
    titles = as_values("names", names, count)
    cosines = as_cosines(scores, (len(pictures), count))
    lines = []
    for image_notes in as_values("notes", notes, len(pictures), None):
        lines.append(as_values("notes", image_notes, count))
    models = as_values("labels", labels or None, len(pictures))
    cmaps = sign_colors(*sign_names)
    rows: list[Row] = []
    for index, image in enumerate(pictures):
        name = f"image {index + 1}" if len(pictures) > ROWS else "image"
        lead = Panel(image, name, label=models[index])
        for sign, maps, colors in zip(sign_names, sign_maps, cmaps, strict=True):
            prefix = "contradicts: " if sign == "negative" else ""
            panels = []
            for column, target in enumerate(titles):
                title = f"{prefix}{target}"
                notes_below = (cosines[index][column], lines[index][column])
                panels.append(_panel(image, maps[index][column], colors, title, *notes_below))
            # Every image has as many rows as the first, since its targets fold alike.
            rows += folded(panels, lead)
            # Only the first row of an image has its label.
            lead = Panel(image, name)
    legends = _legends(cmaps, meanings)
    return grid(rows, legends=legends, caption=caption, together=len(rows) // len(pictures))


def _legends(cmaps: Sequence[Colormap], meanings: Sequence[str]) -> list[Legend]:
    """Return a legend for each color map, with what it stands for."""
    return [Legend(ramp(cmap), meaning) for cmap, meaning in zip(cmaps, meanings, strict=True)]


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
    """Draw methods next to each other: a row per image and its target, a column per method.

    Arguments are as in :mod:`captum_clip.visualization`, for N images with one target each. An
    image may come several times. `columns` are heading -> maps (N, 1, h, w) in [0, 1], and `scores`
    are (N, M) for rows and columns. With several models, `models` names the model of each of the M
    columns. Then each model has a row, or two from nine columns on, with the headings under the
    maps.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> maps = {"Grad-CAM": torch.rand(2, 1, 4, 4)}
        >>> figure = visualization.contact_sheet(torch.rand(2, 3, 32, 32), maps, names=["a", "b"])
    """
    check_nonempty("column of maps", columns)
    pictures, column_maps = framed_batches(images, list(columns.values()), count=1)
    [colors] = sign_colors("positive")
    titles = as_values("names", names, len(pictures))
    cosines = as_cosines(scores, (len(pictures), len(columns)))
    targets = as_references(references, len(pictures))
    rows = []
    for index, image in enumerate(pictures):
        row = [Panel(image, titles[index])]
        for heading, maps, cosine in zip(columns, column_maps, cosines[index], strict=True):
            # A row per model has headings under its maps, since columns do not line up.
            title = heading if models else ""
            row.append(_panel(image, maps[index][0], colors, title, cosine))
        rows.append(row)
    legends = _legends([colors], ["low to high"])
    if not models:
        return _table(rows, targets, columns, legends=legends, caption=caption)
    model_rows: list[Row] = []
    for (lead, *panels), target in zip(rows, targets, strict=True):
        end = []
        if target is not None:
            end.append(Panel(framed(target, lead.pixels.shape), "target image"))
        # Neighboring columns of the same model make a row.
        for _, group in groupby(zip(models, panels, strict=True), itemgetter(0)):
            model_panels = [panel for _, panel in group]
            model_rows += folded(model_panels + end, lead)
    together = len(model_rows) // len(rows)
    return grid(model_rows, legends=legends, caption=caption, together=together)


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
    """Draw positive next to negative evidence: one row per image (or model) and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalize them as one
    map, or divide both by the larger maximum. The peak of the weaker one is written under it.

    Arguments are as in :mod:`captum_clip.visualization`. `positive` maps support each target,
    `negative` maps contradict it. With `labels` the rows of one target stand together. Orange and
    blue can be told apart with any kind of color vision; a `cmap` serves both signs.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> up, down = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
        >>> figure = visualization.signs(torch.rand(1, 3, 32, 32), up, down, names=["a horse"])
    """
    pictures, (supporting, contradicting) = framed_batches(images, [positive, negative])
    count = len(supporting[0])
    orange, blue = sign_colors("positive", "negative")
    titles = as_values("names", names, count)
    cosines = as_cosines(scores, (len(pictures), count))
    targets = as_references(references, count)
    models = as_values("labels", labels or None, len(pictures))
    cells = list(np.ndindex(len(pictures), count))
    together = count
    if labels:
        # The rows of one target stand together, so that its models can be compared.
        cells.sort(key=lambda cell: cell[1])
        together = 1
    rows = []
    row_targets = []
    for index, column in cells:
        image = pictures[index]
        support = supporting[index][column]
        contradiction = contradicting[index][column]
        lead = Panel(image, titles[column], cosines[index][column], models[index])
        left = _panel(image, support, orange, "", _peak(support, contradiction))
        right = _panel(image, contradiction, blue, "", _peak(contradiction, support))
        rows.append([lead, left, right])
        row_targets.append(targets[column])
    return _table(
        rows,
        row_targets,
        ["supports it", "contradicts it"],
        legends=_legends([orange, blue], ["supports", "contradicts"]),
        caption=caption,
        together=together,
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
    """Draw mean maps on one scale: a row per model or method, a column per target or emotion.

    The darkest color is the smallest value of all maps and the lightest the largest. So maps can be
    compared, and weak structure is seen. The legend gives both values.

    Args:
        rows: label -> maps (K, h, w) of any finite values; grids may differ from row to row.
        names: of the K targets, under the maps; more than eight continue in a second row.
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
        means[label] = enlarged(array, _MEAN_SIZE)
        # All later rows must have as many maps as the first.
        count = len(array)
    titles = as_values("names", names, len(array))
    [colors] = sign_colors("positive")
    if scale is None:
        values = np.concatenate([maps.ravel() for maps in means.values()])
        scale = (values.min(), values.max())
    low, high = scale
    # If all values are equal, Normalize makes zeros of them instead of dividing by zero.
    normalize = Normalize(low, high)
    panel_rows: list[Row] = []
    for label, maps in means.items():
        lines = as_values("notes", (notes or {}).get(label), len(maps))
        pixels = np.asarray(colors(normalize(maps))[..., :3], dtype=np.float32)
        panels = []
        for column, title in enumerate(titles):
            # The label stands left of the first map.
            map_label = label if column == 0 else ""
            panels.append(Panel(pixels[column], title, lines[column], map_label))
        panel_rows += folded(panels)
    legend = Legend(colors, f"{short_number(low)} to {short_number(high)}")
    return grid(panel_rows, legends=[legend], caption=caption)


def framed_batches(
    images: Batch, heatmaps: Sequence[Batch], count: int | None = None
) -> tuple[list[Array], list[list[Array]]]:
    """Return B images (H, W, 3), and for each of several batches their B maps (K, H, W).

    All are in frames of the largest height and width, with white margins around an image and zeros
    around its maps.
    """
    pictures = as_images(images)
    batches: list[list[Array]] = []
    for batch in heatmaps:
        batches.append(as_heatmaps(batch, pictures, count))
        # All later batches must have as many maps an image as the first.
        count = len(batches[0][0])
    height = max(image.shape[0] for image in pictures)
    width = max(image.shape[1] for image in pictures)
    size = (height, width)
    framed_maps = []
    for image_maps in batches:
        framed_maps.append([letterbox(maps, size, 0.0) for maps in image_maps])
    return [framed(image, size) for image in pictures], framed_maps


def _table(
    rows: Sequence[list[Panel]],
    targets: Sequence[Array | None],
    columns: Iterable[str],
    **options: Any,
) -> Figure:
    """Draw rows of an image and its maps, and at the end the target if it is an image."""
    shape = rows[0][0].pixels.shape
    headers = ["image", *columns]
    if any(target is not None for target in targets):
        headers.append("target image")
    whole_rows = []
    for row, target in zip(rows, targets, strict=True):
        end = [] if target is None else [Panel(framed(target, shape))]
        whole_rows.append(row + end)
    return grid(whole_rows, headers=headers, **options)


def _panel(image: Array, heatmap: Array, cmap: Colormap, title: str, *notes: str) -> Panel:
    """Return a map over its image, with the title and the notes under it."""
    written = [note for note in notes if note]
    # An empty map is an answer and no failure, so the figure says that it is empty.
    if not heatmap.any():
        written.append("empty map")
    return Panel(image, title, ", ".join(written), layers=[(heatmap, cmap)])


def _peak(heatmap: Array, other: Array) -> str:
    """Write the peak of a map if the other sign's is higher, which is why the map looks pale."""
    share = float(heatmap.max()) / (float(other.max()) or 1)
    if not 0 < share < 0.95:
        return ""
    return f"peak {share:.0%} of the other\u2019s"


def numbered(labels: Sequence[str]) -> list[str]:
    """Make labels different from each other: "last-grad", "last-grad (2)"."""
    counts: Counter[str] = Counter()
    different = []
    for label in labels:
        counts[label] += 1
        count = counts[label]
        different.append(label if count == 1 else f"{label} ({count})")
    return different
