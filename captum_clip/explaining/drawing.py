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
"""What the maps of either sign show, in the words of the page."""


class Drawable:
    """What has a figure: an `Explanation`, or those of several models."""

    @public("plot")
    @draws
    def plot(
        self, *, original: bool | ImageLike | Sequence[ImageLike] | None = None, **_: Any
    ) -> Figure:
        """Draw the maps over the images, resized, and min-max normalized one by one.

        One row per image, or image and model, and one column per target. With words, one column per
        word, dimmed by its norm. With both signs, one row per image and target: positive next to
        negative evidence, on a scale that the two share. With the text side one row per text: the
        image, or its map, next to the words in their colors. A contrast with both signs is one map
        in two colors. More than 24 rows of one model become a contact sheet: images stand side by
        side. A pair of images has its matches, the positive ones where both signs are there, and
        takes no look of maps.

        Args:
            original: whether the maps lie on the whole photos, gray where the model did not see
                them, or on what the model saw. By default they lie on the explained photos, if any
                was cropped or padded. Or the photos themselves, if the explanation comes from a
                file. Drawn with 1024 pixels a side at most, 256 where there are many.
            **_: how it looks: each field of :class:`captum_clip.visualization.Look`.

        Raises:
            InputError: a look that cannot be, no photos to lay the maps on, as where the images
                came as tensors, or a look of a pair.
        """
        return _draw_explanations(self if isinstance(self, tuple) else (self,), original)

    @draws
    def save(self, path: str | Path, *, original: Any = None, **_: Any) -> Path:
        """Write the figure (.png, .jpg, .pdf, .svg), in a look that :meth:`plot` takes."""
        return visualization.save_figure(self.plot(original=original), path)

    def _repr_jpeg_(self) -> bytes | None:
        """The figure, which a notebook shows."""
        return jpeg(self.plot())


def _draw_explanations(several: Sequence[Any], original: Any) -> Figure:
    """The figure of an `Explanation`, or of those of several models."""
    alike = {(e.names, len(e), *e.maps) for e in several}
    expect(len(alike) == 1, "explanations of the same images and texts", [*several])
    first, chosen = several[0], current_look.get()
    check_nonempty("image", first.images)
    if first.reference is not None:
        has_look = {"cmap", "alpha", "interpolation", "scale", "vector"} & {*chosen.changed()}
        if has_look or not (original is None or original is False):
            raise InputError(
                "each match of two images has a color of its own, on what the model "
                "saw; leave cmap, alpha, interpolation, scale, vector and original out."
            )
        shares = first.maps.get("positive", first.maps.get("negative"))
        return visualization.matches(
            first.images,
            [first.reference] * len(first),
            shares[:, 1:].reshape(len(first), *first.cells, *shares.shape[-2:]),
            scores=first.scores[:, 0],
            caption=_caption(first),
        )
    # by `is`, since photos may be an array, which is neither true nor false
    if original is None:
        has_photos = all(e.photos and e.crops for e in several)
        original = has_photos and not all(crop.is_whole for e in several for crop in e.crops)
    laid = [_laid(e, original) for e in several]
    images = _mixed(pictures for pictures, _ in laid)
    heatmap: dict[Any, Any] = {
        sign: _mixed(heatmaps[sign] for _, heatmaps in laid) for sign in first.maps
    }
    rows = _mixed(e.shown() for e in several)
    about: dict[str, Any] = {"caption": " | ".join(map(_caption, several))}
    if len(several) > 1:
        about["labels"] = [e.model for e in several] * len(first)
    if first.contrast and len(heatmap) == 2:
        details = [row[0].detail for row in rows]
        return _draw_contrast(first.contrast, images, heatmap, details, **about)
    scores = torch.stack(_mixed(e.scores for e in several))
    names = [shown.title for shown in rows[0]]
    is_whole = not first.words and first.cells == (0, 0)  # no word of a text
    if is_whole and not first.text_maps and len(heatmap) == 2:
        return visualization.signs(images, **heatmap, names=names, scores=scores, **about)
    if list(heatmap) == ["negative"]:
        [about["cmap"]] = sign_colors("negative")
    if first.leave_one_out is not None and chosen.scale != "own":  # they are on one scale already
        rows = [[shown._replace(weight=1.0) for shown in row] for row in rows]
    weights = [torch.tensor([shown.weight for shown in row])[:, None, None] for row in rows]
    dimmed = [[w * m for w, m in zip(weights, maps, strict=True)] for maps in heatmap.values()]
    upper, lower = (*dimmed, None, None)[:2]
    if first.text_maps:
        return visualization.sentences(
            images, first.text_maps, scores=scores, heatmap=upper, **about
        )
    notes = [[shown.note for shown in row] for row in rows]
    return visualization.overlay(
        images, upper or [], negative=lower, names=names, notes=notes, **about
    )


def _laid(explanation: Any, original: Any) -> tuple[Any, Mapping[str, Any]]:
    """The images of an `Explanation`, or its photos, and its maps as they lie on them."""
    chosen = current_look.get()
    if original is False:
        return explanation.images, explanation.heatmap(chosen.interpolation, scale=chosen.scale)
    photos = regions.originals(explanation, original)
    how = explanation.scaling(chosen)
    return regions.lay_on_photos(photos, explanation.crops, explanation.maps, how)


def _mixed(members: Iterable[Iterable[Any]]) -> list[Any]:
    """What the models have for each image, image by image."""
    return [*chain.from_iterable(zip(*members, strict=True))]


def _draw_contrast(
    texts: Sequence[str],
    images: Any,
    heatmap: Mapping[str, Any],
    notes: Sequence[str],
    *,
    caption: str,
    labels: Sequence[str] = (),
) -> Figure:
    """Both signs of a difference of two texts in one map, with the difference of the cosines."""
    pictures, (above, below) = framed_batches(images, list(heatmap.values()))
    text, other = texts
    rows, title = [], f"{text} rather than {other}"
    labels = labels or [""] * len(notes)
    for image, up, down, note, label in zip(pictures, above, below, notes, labels, strict=True):
        layers = signed_layers(up[0] - down[0])
        rows.append([Panel(image, "image", label=label), Panel(image, title, note, layers=layers)])
    return grid(rows, legends=strip_legends(f"for {text}", f"for {other}"), caption=caption)


def _caption(explanation: Any) -> str:
    """Model, method and scale of an `Explanation`, then its hints."""
    lines = [explanation.model, explanation.method]
    lines += ["all words on one scale"] * (explanation.leave_one_out is not None)
    lines += ["all maps on one scale"] * (current_look.get().scale == "shared")
    lines += [f"{top:g} is 1"] if (top := current_look.get().top) else []
    lines += [explanation.calibration] * bool(explanation.calibration)
    lines += ["negative evidence"] * (list(explanation.maps) == ["negative"])
    count = len(explanation.hints)
    lines += [f"hints for {sum(map(bool, explanation.hints))} of {count} images"] * (count > ROWS)
    for number, sentences in enumerate(explanation.hints if count <= ROWS else (), 1):
        which = f"image {number}: " if count > 1 else ""
        lines += [which + sentence for sentence in sentences]
    return " \N{MIDDLE DOT} ".join(lines)


def html_page(explanation: Any, original: Any = None) -> str:
    """Write an `Explanation` as HTML; the arguments and errors are those of its method ``plot``."""
    names = [f"for {name}" for name in explanation.contrast or ()] or MEANINGS
    named = dict(zip(SIGNS, names, strict=True))
    colors = zip(explanation.maps, sign_colors(*explanation.maps), strict=True)
    looks = {sign: (named[sign], cmap) for sign, cmap in colors}
    check_nonempty("image", explanation.images)
    files = [Path(p).name if isinstance(p, (str, Path)) else "" for p in explanation.photos]
    rows = explanation.shown()
    data = json.dumps(_data(explanation, rows, original), separators=(",", ":"))
    return _render(
        looks,
        explanation=explanation,
        titles=[shown.title for shown in rows[0]],
        files=files or [""] * len(explanation),
        data=data.replace("<", "\\u003c"),  # which could end the script
    )


def _render(looks: Mapping[str, tuple[str, Colormap]], **values: Any) -> str:
    """Fill interactive.html; a sign has a title and colors."""
    steps = np.linspace(0, 1, 64)
    tables = {
        sign: (title, cmap(steps)[:, :3].T.round(3), map(to_hex, ramp(cmap)(steps)))
        for sign, (title, cmap) in looks.items()
    }
    # `soften` is affine: four colors give the matrix and the offset of the page's own filter
    basis = soften(np.eye(4, 3, dtype=np.float32))  # of red, green, blue and black
    soft = np.vstack([basis[:3] - basis[3], np.zeros((1, 3)), basis[3:]]).T.flatten().round(4)
    # names of texts and files come from anyone, and are escaped
    folder = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    values |= {"looks": tables, "soft": soft, "alpha": current_look.get().alpha, "rise": RISE}
    return templates.get_template("interactive.html").render(values)


def _data(explanation: Any, rows: Sequence[Sequence[Any]], original: Any) -> dict[str, Any]:
    """What the page's script reads."""
    for values in explanation.maps.values():
        check_maps(values)  # JSON has no NaN
    images, boxes = explanation.images, [(0, 0, 1, 1)] * len(explanation)
    if original is None:
        original = bool(explanation.photos and explanation.crops)
    if original is not False:
        originals = regions.originals(explanation, original)
        images, _ = regions.lay_on_photos(originals, explanation.crops, {}, ("nearest", None))
        boxes = [crop.scaled((1, 1)) for crop in explanation.crops]
    raw, reference = explanation.maps, explanation.reference
    if explanation.words and explanation.leave_one_out is None:  # what a word adds
        raw = {sign: values * explanation.norms[:, None, None] for sign, values in raw.items()}
    seen = enumerate(zip(as_images(images), boxes, rows, strict=True))
    return {
        "grid": next((values.shape[-2:] for values in raw.values()), (0, 0)),
        "cells": explanation.cells,
        "names": explanation.names,
        "has_whole": int(explanation.words or reference is not None),
        "mode": current_look.get().interpolation,
        "texts": explanation.text_maps,
        "reference": "" if reference is None else _jpeg(*as_images([reference])),
        "images": [
            {
                "source": _jpeg(pixels),
                "box": box,
                "notes": [shown.note for shown in row],
                "weights": [shown.weight for shown in row],
                "hints": explanation.hints[index] if explanation.hints else (),
                "maps": {sign: list(map(_levels, values[index])) for sign, values in raw.items()},
            }
            for index, (pixels, box, row) in seen
        ],
    }


def _jpeg(pixels: Array) -> str:
    """An image (H, W, 3) as a file in an address."""
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _levels(raw: Tensor) -> tuple[float, list[int]]:
    """The maximum of a map (h, w), and its cells row by row in shares of it, of 999."""
    # integers of three digits are a third of a float's length, and finer than 8-bit colors
    peak = float(raw.max())
    return float(f"{peak:.4g}"), (999 * raw / (peak or 1)).round().int().flatten().tolist()
