"""An explanation as one HTML page that needs no network: words show maps, and regions words."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import Colormap, to_hex
from PIL import Image
from torch import Tensor

from ..checks import check_choice, check_interval
from ..maps import Mode, check_maps
from ..visualization import HEAT, NEGATIVE, POSITIVE
from ..visualization.arrays import as_images
from ..visualization.colors import ALPHA, RISE, Array, colormap, ramp, score_note, soften
from . import photos
from .drawing import titles

SIGNS: Final = ("supports it", "contradicts it")


def page(
    explanation: Any,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
    interpolation: Mode = "bicubic",
    original: Any = None,
) -> str:
    """Write an `Explanation` as HTML; the arguments and errors are those of its method ``plot``."""
    check_interval("alpha", alpha, "[0, 1]")
    check_choice(interpolation, get_args(Mode), name="a mode")
    usual = colormap(cmap or (POSITIVE if len(explanation.maps) == 2 else HEAT))
    colors = {"positive": usual, "negative": NEGATIVE if cmap is None else usual}
    names = [f"for {name}" for name in explanation.contrast or ()] or SIGNS
    looks = {sign: (name, colors[sign]) for sign, name in zip(colors, names, strict=True)}
    looks = {sign: look for sign, look in looks.items() if sign in explanation.maps}
    files = [Path(p).name if isinstance(p, (str, Path)) else "" for p in explanation.photos]
    data = json.dumps(_data(explanation, interpolation, original), separators=(",", ":"))
    return render(
        Path(__file__).with_suffix(".html"),
        looks,
        alpha,
        explanation=explanation,
        titles=titles(explanation),
        files=files or [""] * len(explanation),
        data=data.replace("<", "\\u003c"),  # which could end the script
    )


def render(
    path: Path, looks: Mapping[str, tuple[str, Colormap]], alpha: float = ALPHA, **values: Any
) -> str:
    """Fill interactive.html, or a template that extends it; a sign has a title and colors."""
    steps = np.linspace(0, 1, 64)
    tables = {
        sign: (title, cmap(steps)[:, :3].T.round(3), map(to_hex, ramp(cmap, alpha)(steps)))
        for sign, (title, cmap) in looks.items()
    }
    # `soften` is affine: four colors give the matrix and the offset of the page's own filter
    basis = soften(np.eye(4, 3, dtype=np.float32))  # of red, green, blue and black
    soft = np.vstack([basis[:3] - basis[3], np.zeros((1, 3)), basis[3:]]).T.flatten().round(4)
    # names of texts and files come from anyone, and are escaped
    folders = FileSystemLoader([path.parent, Path(__file__).parent])
    templates = Environment(loader=folders, autoescape=True, undefined=StrictUndefined)
    values |= {"looks": tables, "soft": soft, "alpha": alpha, "rise": RISE}
    return templates.get_template(path.name).render(values)


def _data(explanation: Any, interpolation: Mode, original: Any) -> dict[str, Any]:
    """What the page's script reads."""
    for values in explanation.maps.values():
        check_maps(values)  # JSON has no NaN
    images, boxes = explanation.images, [(0, 0, 1, 1)] * len(explanation)
    if original is None:
        original = bool(explanation.photos and explanation.crops)
    if original is not False:
        originals = photos.originals(explanation, original)
        images, _ = photos.lay_on_photos(originals, explanation.crops, {}, interpolation)
        boxes = [crop.scaled((1, 1)) for crop in explanation.crops]
    raw, notes, reference = explanation.maps, explanation.notes, explanation.reference
    if explanation.words and explanation.leave_one_out is None:  # what a word adds
        raw = {sign: values * explanation.norms[:, None, None] for sign, values in raw.items()}
    elif not explanation.words and (explanation.cells == (0, 0) or reference is not None):
        notes = [[score_note(score) for score in scores] for scores in explanation.scores.tolist()]
    weights = explanation.weights.expand(len(explanation), -1).tolist()
    rows = zip(as_images(images), boxes, notes, weights, strict=True)
    return {
        "grid": next((values.shape[-2:] for values in raw.values()), (0, 0)),
        "cells": explanation.cells,
        "names": explanation.names,
        "has_whole": int(explanation.words or reference is not None),
        "mode": interpolation,
        "texts": explanation.text_maps,
        "reference": "" if reference is None else _jpeg(*as_images([reference])),
        "images": [
            {
                "source": _jpeg(pixels),
                "box": box,
                "notes": lines,
                "weights": shares,
                "hints": explanation.hints[index] if explanation.hints else (),
                "maps": {sign: list(map(_levels, values[index])) for sign, values in raw.items()},
            }
            for index, (pixels, box, lines, shares) in enumerate(rows)
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
