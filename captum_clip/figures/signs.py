"""Positive beside negative saliency (the report's Figures 7 to 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import maps, visualization
from ..explanation import Explanation
from . import subjects as common
from .subjects import DEFAULT_MODEL, Device, Images, Methods, Models

_SAID: Final = {"shared": "for and against on one scale", "each": common.EACH}


def signs(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: Models = DEFAULT_MODEL,
    methods: Methods | None = None,
    scale: Literal["shared", "each"] = "shared",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    """What speaks for each target beside what speaks against it: a row an image, model and target.

    Args:
        images: one or several of what ``ClipAdapter.preprocess`` takes.
        texts: targets.
        references: images that are targets, after the texts; shown at the end of their rows.
        models: one or several names, models or adapters.
        methods: classes of :mod:`captum_clip.attr` or command-line names, each used with the
            towers that it fits; by the tower where none is given.
        scale: "shared" by the two signs of a row, so that a weak one looks weak, or "each" map its
            own.
        cmap: of both signs; by default orange for and blue against.
        device: where models that are loaded by name go.

    Raises:
        CaptumClipError: an image, a text, a model or a method that cannot be worked with.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.signs(image, "a horse", models=["demo/vit", "demo/resnet"])
    """
    caller = "figures.signs"
    common.check_scale(caller, scale, ("shared", "each"))
    given = common.check_images(caller, images)
    clips = common.open_models(caller, models, device)
    chosen = common.subjects(caller, clips, methods)
    opened = {clip: common.open_target(caller, clip, texts, references) for clip in clips}
    found = [
        subject.explain(image, opened[subject.clip][0], "both")
        for image in given
        for subject in chosen
    ]
    pictures, size = common.side_by_side([one.images[0] for one in found])
    heat = [one.heat() if scale == "shared" else _each(one) for one in found]
    look: dict[str, Any] = {} if cmap is None else {"cmaps": (cmap, cmap)}
    return visualization.signs(
        pictures,
        common.framed([one["positive"][0] for one in heat], size),
        common.framed([one["negative"][0] for one in heat], size),
        names=found[0].names,
        scores=torch.cat([one.scores for one in found]),
        references=opened[clips[0]][1],
        **common.titles(chosen, len(given), _SAID[scale]),
        **look,
    )


def _each(found: Explanation) -> dict[str, Tensor]:
    return {sign: maps.normalize(common.large(found, sign))[None] for sign in found.maps}
