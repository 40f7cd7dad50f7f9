"""The input, then one column a method (the report's Figures 4 and 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import visualization
from ..models.base import ImageLike
from ..targets import Target
from . import subjects as common
from .subjects import DEFAULT_MODEL, Device, Images, Methods, Models, Subject

_SAID: Final = {"each": common.EACH, "shared": "one scale a column"}


def compare(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: Models = DEFAULT_MODEL,
    methods: Methods | None = None,
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap = visualization.HEAT,
    device: Device = None,
) -> Figure:
    """Methods beside each other: a row an image and target, a column a model and method.

    Args:
        images: one or several of what ``ClipAdapter.preprocess`` takes.
        texts: targets.
        references: images that are targets, after the texts; shown at the end of their rows.
        models: one or several names, models or adapters.
        methods: classes of :mod:`captum_clip.attr` or command-line names, each used with the
            towers that it fits; all that fit where none is given.
        scale: "each" map its own, since the values of two methods cannot be compared, or "shared"
            by the maps of a column, whose values can.
        cmap: colour map.
        device: where models that are loaded by name go.

    Raises:
        CaptumClipError: an image, a text, a model or a method that cannot be worked with.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.compare(image, "a horse", models="demo/vit")
        >>> len(figure.axes)  # the image and four methods
        5
    """
    caller = "figures.compare"
    common.check_scale(caller, scale, ("each", "shared"))
    given = common.check_images(caller, images)
    clips = common.open_models(caller, models, device)
    chosen = common.subjects(caller, clips, methods, every=True)
    opened = {clip: common.open_target(caller, clip, texts, references) for clip in clips}
    first, others = opened[clips[0]]
    seen: list[Tensor] = []
    columns, scores = [], []
    for subject in chosen:
        pictures, heat, cosines = _column(subject, given, opened[subject.clip][0], scale)
        seen = seen or pictures
        columns.append(heat)
        scores.append(cosines)
    shown, size = common.side_by_side(seen)
    count = len(first)
    return visualization.contact_sheet(
        shown.repeat_interleave(count, 0),
        {
            name: common.framed(heat, size).flatten(0, 1)[:, None]
            for name, heat in zip(_headings(chosen), columns, strict=True)
        },
        names=first.names * len(given),
        scores=torch.stack(scores, dim=1),
        references=others * len(given),
        cmap=cmap,
        caption=_SAID[scale],
    )


def _column(
    subject: Subject, images: Sequence[ImageLike], target: Target, scale: str
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """One method's pictures, maps (K, H, W) of each, and cosines (B * K,)."""
    found = [subject.explain(image, target) for image in images]
    raw = [common.large(one) for one in found]
    heat = common.stretched(raw, shared=scale == "shared")
    return [one.images[0] for one in found], heat, torch.cat([one.scores[0] for one in found])


def _headings(chosen: Sequence[Subject]) -> list[str]:
    """A heading a column, no two the same; the model is named where there are several."""
    several = len({subject.clip for subject in chosen}) > 1
    names = [subject.label if several else subject.choice.name for subject in chosen]
    seen: Counter[str] = Counter()
    headings = []
    for name in names:
        seen[name] += 1
        headings.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return headings
