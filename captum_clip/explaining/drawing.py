"""Explanations as a figure, and as one HTML page that needs no network."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import visualization
from ..checks import check_nonempty, expect
from ..errors import InputError, public
from ..look import current_look, draws
from ..maps import check_maps
from ..models.adapter import ImageLike
from ..visualization.arrays import as_images
from ..visualization.charts import strip_legends
from ..visualization.colors import RISE, Array, ramp, sign_colors, signed_layers, soften
from ..visualization.grid import ROWS, Panel, grid, jpeg
from ..visualization.overlays import framed_batches
from . import regions
from .request import SIGNS

MEANINGS: Final = ("supports it", "contradicts it")
"""The meaning of either sign's maps, in the words of the page."""


class Drawable:
    """Base of what has a figure: an `Explanation`, or those of several models."""

    @public("plot")
    @draws
    def plot(
        self, *, original: bool | ImageLike | Sequence[ImageLike] | None = None, **_: Any
    ) -> Figure:
        """Draw the maps over the images, resized and min-max normalized one by one.

        There is one row per image, or per image and model, and one column per target. With words,
        there is one column per word, dimmed by its norm. With both signs, there is one row per
        image and target: positive next to negative evidence, on a scale that the two share. On the
        text side, there is one row per text: the image, or its map, next to the words in their
        colors. A contrast with both signs is one map in two colors. More than 24 rows of one model
        become a contact sheet, where images stand side by side. A pair of images shows its matches,
        the positive ones where both signs are there, in colors of their own.

        Args:
            original: whether the maps lie on the whole photos, gray where the model did not see
                them, or on what the model saw. By default they lie on the explained photos, if any
                was cropped or padded. For an explanation from a file, pass the photos themselves.
                They have at most 1024 pixels a side in the figure; the more photos, the fewer
                pixels, down to 256.
            **_: the look: each field of :class:`captum_clip.visualization.Look`.

        Raises:
            InputError: a look that cannot be, or the look of maps for a pair of images; no photos
                to lay the maps on, as where the images came as tensors.
        """
        # A `Comparison` is a tuple of explanations, and an `Explanation` stands for itself.
        explanations = self if isinstance(self, tuple) else (self,)
        return _draw_explanations(explanations, original)

    @draws
    def save(self, path: str | Path, *, original: Any = None, **_: Any) -> Path:
        """Write the figure (.png, .jpg, .pdf, .svg), in a look that :meth:`plot` takes."""
        return visualization.save_figure(self.plot(original=original), path)

    def _repr_jpeg_(self) -> bytes | None:
        """The figure, which a notebook shows."""
        return jpeg(self.plot())


def _draw_explanations(explanations: Sequence[Any], original: Any) -> Figure:
    """Draw an `Explanation`, or those of several models."""
    # What the columns and rows of a figure stand for must be the same for every model.
    contents = {(e.names, len(e), *e.maps) for e in explanations}
    expect(len(contents) == 1, "explanations of the same images and texts", [*explanations])
    first = explanations[0]
    check_nonempty("image", first.images)
    if first.reference is not None:
        return _draw_matches(first, original)
    # It may be an array of photos, which has no truth value, so it is compared by `is`.
    if original is None:
        original = _are_photos_cropped(explanations)
    images, heatmap = _lay_out(explanations, original)
    rows = _by_image([explanation.shown() for explanation in explanations])
    options: dict[str, Any] = {"caption": " | ".join(map(_caption, explanations))}
    if len(explanations) > 1:
        options["labels"] = [explanation.model for explanation in explanations] * len(first)
    has_both_signs = len(heatmap) == 2
    if first.contrast and has_both_signs:
        details = [row[0].detail for row in rows]
        return _draw_contrast(first.contrast, images, heatmap, details, **options)
    scores = torch.stack(_by_image([explanation.scores for explanation in explanations]))
    names = [shown.title for shown in rows[0]]
    shows_words = first.words or first.text_maps or first.cells != (0, 0)
    if has_both_signs and not shows_words:
        return visualization.signs(images, **heatmap, names=names, scores=scores, **options)
    if list(heatmap) == ["negative"]:
        # A single sign would be drawn in the colors of positive evidence.
        [options["cmap"]] = sign_colors("negative")
    dimmed = _dimmed(first, heatmap, rows)
    if first.text_maps:
        # The text side alone has no maps. Of both signs, the first one's map stands by the words.
        shown_maps = dimmed[0] if dimmed else None
        return visualization.sentences(
            images, first.text_maps, scores=scores, heatmap=shown_maps, **options
        )
    negative = dimmed[1] if has_both_signs else None
    notes = []
    for row in rows:
        notes.append([shown.note for shown in row])
    return visualization.overlay(
        images, dimmed[0], negative=negative, names=names, notes=notes, **options
    )


def _draw_matches(explanation: Any, original: Any) -> Figure:
    """Draw which regions of a pair of images match."""
    look_of_maps = {"cmap", "alpha", "interpolation", "scale", "vector"}
    # It may be an array of photos, which has no truth value.
    is_on_photos = not (original is None or original is False)
    if is_on_photos or look_of_maps.intersection(current_look.get().changed()):
        raise InputError(
            "each match of two images has a color of its own, on what the model "
            "saw; leave cmap, alpha, interpolation, scale, vector and original out."
        )
    sign = "positive" if "positive" in explanation.maps else "negative"
    # The first map is that of the whole reference; the others are those of its cells.
    shares = explanation.maps[sign][:, 1:]  # (B, h' w', h, w)
    count = len(explanation)
    return visualization.matches(
        explanation.images,
        [explanation.reference] * count,
        shares.reshape(count, *explanation.cells, *shares.shape[-2:]),
        scores=explanation.scores[:, 0],
        caption=_caption(explanation),
    )


def _are_photos_cropped(explanations: Sequence[Any]) -> bool:
    """Whether all photos are known, and the model did not see some of them as they are."""
    are_whole = []
    for explanation in explanations:
        if not explanation.photos or not explanation.crops:
            return False
        are_whole += [crop.is_whole for crop in explanation.crops]
    return not all(are_whole)


def _lay_out(explanations: Sequence[Any], original: Any) -> tuple[list[Any], dict[str, Any]]:
    """The images, or the photos, and sign -> their maps, those of all models for each image."""
    images = []
    maps_by_sign: dict[str, list[Any]] = {sign: [] for sign in explanations[0].maps}
    look = current_look.get()
    for explanation in explanations:
        pictures = explanation.images
        if original is False:
            heatmap = explanation.heatmap(look.interpolation, scale=look.scale)
        else:
            photos = regions.originals(explanation, original)
            scaling = explanation.scaling(look)
            pictures, heatmap = regions.lay_on_photos(
                photos, explanation.crops, explanation.maps, scaling
            )
        images.append(pictures)
        for sign, maps in heatmap.items():
            maps_by_sign[sign].append(maps)
    return _by_image(images), {sign: _by_image(maps) for sign, maps in maps_by_sign.items()}


def _by_image(members: Iterable[Iterable[Any]]) -> list[Any]:
    """The entries of all models for the first image, then those for the second, and so on."""
    return [*chain.from_iterable(zip(*members, strict=True))]


def _dimmed(
    explanation: Any, heatmap: Mapping[str, Sequence[Tensor]], rows: Sequence[Sequence[Any]]
) -> list[list[Tensor]]:
    """The maps (K, H, W) of each sign and image, the maps of weak words dimmed."""
    # The maps of a pair's words show their strength themselves where they share a scale.
    is_one_scale = explanation.leave_one_out is not None and current_look.get().scale != "own"
    weights_by_image = []
    for row in rows:
        weights = torch.tensor([shown.weight for shown in row])[:, None, None]  # (K, 1, 1)
        weights_by_image.append(torch.ones_like(weights) if is_one_scale else weights)
    dimmed = []
    for maps in heatmap.values():
        pairs = zip(weights_by_image, maps, strict=True)
        dimmed.append([weights * of_image for weights, of_image in pairs])
    return dimmed


def _draw_contrast(
    texts: Sequence[str],
    images: Any,
    heatmap: Mapping[str, Any],
    notes: Sequence[str],
    *,
    caption: str,
    labels: Sequence[str] = (),
) -> Figure:
    """Draw both signs of a difference of two texts in one map, above how their cosines differ."""
    text, other = texts
    title = f"{text} rather than {other}"
    labels = labels or [""] * len(notes)
    pictures, (positive, negative) = framed_batches(images, list(heatmap.values()))
    rows = []
    for index, image in enumerate(pictures):
        # The difference is the only target, so an image has one map of each sign.
        layers = signed_layers(positive[index][0] - negative[index][0])
        picture = Panel(image, "image", label=labels[index])
        rows.append([picture, Panel(image, title, notes[index], layers=layers)])
    return grid(rows, legends=strip_legends(f"for {text}", f"for {other}"), caption=caption)


def _caption(explanation: Any) -> str:
    """Write the model, method and scale of an `Explanation`, then its hints."""
    look = current_look.get()
    lines = [explanation.model, explanation.method]
    if explanation.leave_one_out is not None:
        lines.append("all words on one scale")
    if look.scale == "shared":
        lines.append("all maps of this figure on one scale")
    if look.top:
        lines.append(f"{look.top:g} is 1")
    if explanation.calibration:
        lines.append(explanation.calibration)
    if list(explanation.maps) == ["negative"]:
        lines.append("negative evidence")
    count = len(explanation.hints)
    if count > ROWS:
        lines.append(f"hints for {sum(map(bool, explanation.hints))} of {count} images")
    else:
        for number, sentences in enumerate(explanation.hints, 1):
            prefix = f"image {number}: " if count > 1 else ""
            lines += [prefix + sentence for sentence in sentences]
    return " \N{MIDDLE DOT} ".join(lines)


def html_page(explanation: Any, original: Any = None) -> str:
    """Write an `Explanation` as HTML; the arguments and errors are those of its method ``plot``."""
    meanings = [f"for {text}" for text in explanation.contrast] or MEANINGS
    meaning_by_sign = dict(zip(SIGNS, meanings, strict=True))
    sign_styles = {}
    for sign, cmap in zip(explanation.maps, sign_colors(*explanation.maps), strict=True):
        sign_styles[sign] = (meaning_by_sign[sign], cmap)
    check_nonempty("image", explanation.images)
    files = [""] * len(explanation)
    for index, photo in enumerate(explanation.photos):
        if isinstance(photo, (str, Path)):
            files[index] = Path(photo).name
    rows = explanation.shown()
    data = json.dumps(_data(explanation, rows, original), separators=(",", ":"))
    return _render(
        sign_styles,
        explanation=explanation,
        titles=[shown.title for shown in rows[0]],
        files=files,
        data=data.replace("<", "\\u003c"),  # A "</script>" in a name would end the script.
    )


def _render(sign_styles: Mapping[str, tuple[str, Colormap]], **values: Any) -> str:
    """Fill interactive.html; a sign has a title and colors."""
    steps = np.linspace(0, 1, 64)
    tables = {}
    for sign, (title, cmap) in sign_styles.items():
        channels = cmap(steps)[:, :3].T.round(3)
        tables[sign] = (title, channels, map(to_hex, ramp(cmap)(steps)))
    # `soften` is affine: its values at red, green, blue and black give the page's own filter, a
    # matrix (3, 5) of red, green, blue, opacity and offset, row by row.
    colors = soften(np.eye(4, 3, dtype=np.float32))
    black = colors[3:]
    soft = np.vstack([colors[:3] - black, np.zeros((1, 3)), black]).T.flatten().round(4)
    # Names of texts and files come from anyone, so they are escaped.
    folder = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    values |= {"sign_styles": tables, "soft": soft, "alpha": current_look.get().alpha, "rise": RISE}
    return templates.get_template("interactive.html").render(values)


def _data(explanation: Any, rows: Sequence[Sequence[Any]], original: Any) -> dict[str, Any]:
    """The data that the page's script reads."""
    for values in explanation.maps.values():
        check_maps(values)  # JSON has no NaN.
    images = explanation.images
    # The edges of what the model saw, in shares of the picture that the page shows.
    boxes = [(0, 0, 1, 1)] * len(explanation)
    if original is None:
        original = bool(explanation.photos and explanation.crops)
    if original is not False:
        photos = regions.originals(explanation, original)
        # The page lays the maps on the photos itself, so the photos alone are made here.
        images, _ = regions.lay_on_photos(photos, explanation.crops, {}, ("nearest", None))
        boxes = [crop.scaled((1, 1)) for crop in explanation.crops]
    raw = explanation.maps
    if explanation.words and explanation.leave_one_out is None:
        # A word's map is that of its unit direction; times the norm it is what the word adds.
        norms = explanation.norms[:, None, None]
        raw = {sign: values * norms for sign, values in raw.items()}
    grids = [values.shape[-2:] for values in raw.values()]
    reference = explanation.reference
    entries = []
    for index, pixels in enumerate(as_images(images)):
        maps = {}
        for sign, values in raw.items():
            maps[sign] = [_levels(of_target) for of_target in values[index]]
        entries.append(
            {
                "source": _jpeg(pixels),
                "box": boxes[index],
                "notes": [shown.note for shown in rows[index]],
                "weights": [shown.weight for shown in rows[index]],
                "hints": explanation.hints[index] if explanation.hints else (),
                "maps": maps,
            }
        )
    return {
        "grid": grids[0] if grids else (0, 0),
        "cells": explanation.cells,
        "names": explanation.names,
        "has_whole": int(explanation.words or reference is not None),
        "mode": current_look.get().interpolation,
        "texts": explanation.text_maps,
        "reference": "" if reference is None else _jpeg(*as_images([reference])),
        "images": entries,
    }


def _jpeg(pixels: Array) -> str:
    """Write an image (H, W, 3) in [0, 1] as the address of a picture that holds its data."""
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _levels(raw: Tensor) -> tuple[float, list[int]]:
    """The maximum of a map (h, w), and its cells row by row in thousandths of it, 0 to 999."""
    # Integers of three digits are a third of a float's length, and finer than 8-bit colors.
    peak = float(raw.max())
    levels = (999 * raw / (peak or 1)).round().int()
    return float(f"{peak:.4g}"), levels.flatten().tolist()
