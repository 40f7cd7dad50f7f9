"""One column an emotion, one row a tower (the report's Figure 11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import targets, visualization
from ..emotions import EmotionProbe
from ..errors import InputError
from . import subjects as common
from .subjects import DEFAULT_MODEL, Device, Images, Methods, Models

_SAID: Final = {
    "each": f"{common.EACH}, peaks in % of the strongest in the row",
    "shared": "one scale a row",
}


def emotions(
    images: Images,
    probes: EmotionProbe | str | Path | Sequence[EmotionProbe | str | Path],
    *,
    names: str | Sequence[str] | None = None,
    models: Models = DEFAULT_MODEL,
    methods: Methods | None = None,
    centre: bool = False,
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap = visualization.HEAT,
    device: Device = None,
) -> Figure:
    """What makes an image amusing, sad or fearful: a row an image and model, a column an emotion.

    Args:
        images: one or several of what ``ClipAdapter.preprocess`` takes.
        probes: one for each model, in the same order: probes or files of them.
        names: which emotions; all eight by default.
        models: one or several names, models or adapters.
        methods: classes of :mod:`captum_clip.attr` or command-line names, each used with the
            towers that it fits; by the tower where none is given.
        centre: subtract the mean of all nine rows of a probe.
        scale: "each" map its own, its peak under it in percent of the strongest of its row, or
            "shared" by the row, so that a weak map looks weak.
        cmap: colour map.
        device: where models that are loaded by name go.

    Raises:
        InputError: not as many probes as models, or an image or a method that is not one.
        CaptumClipError: a probe of another model, or a model that cannot be worked with.

    Example:
        >>> import numpy as np
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> from captum_clip.emotions import EmotionProbe
        >>> probe = EmotionProbe(np.random.default_rng(0).normal(size=(9, 128)), np.zeros(9))
        >>> figure = figures.emotions(draw_scene(0).image, probe, models="demo/vit")
        >>> len(figure.axes)  # the image and eight emotions
        9
    """
    caller = "figures.emotions"
    common.check_scale(caller, scale, ("each", "shared"))
    given = common.check_images(caller, images)
    opened, wanted = common.listed(probes), common.listed(models)
    if len(opened) != len(wanted):
        raise InputError(
            f"{caller}: expected a probe for each of the {len(wanted)} models, in the same order, "
            f"got {len(opened)}."
        )
    pairs = [
        (subject, targets.emotion(clip, probe, names, centre=centre))
        for clip, probe in zip(common.open_models(caller, wanted, device), opened, strict=True)
        for subject in common.subjects(caller, [clip], methods)
    ]
    found = [subject.explain(image, target) for image in given for subject, target in pairs]
    pictures, size = common.side_by_side([one.images[0] for one in found])
    raw = [common.large(one) for one in found]
    heat = [common.stretched([one], shared=scale == "shared")[0] for one in raw]
    chosen = [subject for subject, _ in pairs]
    return visualization.overlay(
        pictures,
        common.framed(heat, size),
        names=found[0].names,
        scores=torch.cat([one.scores for one in found]),
        notes=[_peaks(one) for one in raw],
        cmap=cmap,
        **common.titles(chosen, len(given), _SAID[scale]),
    )


def _peaks(raw: Tensor) -> list[str]:
    """The largest value of each map (K, H, W), in percent of the largest of all."""
    peaks = raw.amax((-2, -1))
    return [f"peak {share:.0%}" for share in (peaks / peaks.max().clamp(min=1e-30)).tolist()]
