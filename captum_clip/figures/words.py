"""A text, then one column a word (the report's Figure 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .. import maps, targets, visualization
from ..models import ClipAdapter
from ..targets import Target
from . import subjects as common
from .subjects import DEFAULT_MODEL, Device, Images, Methods, Models

_SAID: Final = {"norm": "words dimmed by their norms", "each": common.EACH}


def words(
    images: Images,
    text: str,
    *,
    picked: Sequence[str | tuple[int, int]] | None = None,
    models: Models = DEFAULT_MODEL,
    methods: Methods | None = None,
    scale: Literal["norm", "each"] = "norm",
    cmap: str | Colormap = visualization.HEAT,
    device: Device = None,
) -> Figure:
    """The whole text, then what each of its words adds: a row an image and model.

    Args:
        images: one or several of what ``ClipAdapter.preprocess`` takes.
        text: the text that is taken apart.
        picked: which words or spans, as in ``targets.words``; all words by default.
        models: one or several names, models or adapters.
        methods: classes of :mod:`captum_clip.attr` or command-line names, each used with the
            towers that it fits; by the tower where none is given.
        scale: "norm" dims each word's map by its norm, so that "a" does not look as important as
            "horse"; "each" shows every map in full.
        cmap: colour map.
        device: where models that are loaded by name go.

    Raises:
        CaptumClipError: an image, a text, a model or a method that cannot be worked with.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.words(image, "a horse", models="demo/vit")
        >>> len(figure.axes)  # the image, the text and two words
        4
    """
    caller = "figures.words"
    common.check_scale(caller, scale, ("norm", "each"))
    given = common.check_images(caller, images)
    clips = common.open_models(caller, models, device)
    chosen = common.subjects(caller, clips, methods)
    opened = {clip: _target(clip, text, picked) for clip in clips}
    found = [subject.explain(image, opened[subject.clip]) for image in given for subject in chosen]
    pictures, size = common.side_by_side([one.images[0] for one in found])
    return visualization.words(
        pictures,
        common.framed([maps.normalize(common.large(one)) for one in found], size),
        found[0].names,
        torch.stack([one.norms for one in found]),
        scores=torch.cat([one.scores for one in found]),
        relative=scale == "norm",
        cmap=cmap,
        **common.titles(chosen, len(given), _SAID[scale]),
    )


def _target(clip: ClipAdapter, text: str, picked: Sequence[str | tuple[int, int]] | None) -> Target:
    return targets.concatenate([targets.text(clip, text), targets.words(clip, text, picked)])
