"""Mamooler's figures that show one's own images: each a call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import maps, targets, visualization
from ..attr import LayerAttention
from ..checks import check_choice
from ..emotions import EmotionProbe
from ..errors import InputError, UnsupportedModelError
from ..models import ViTTower, load_clip
from ..models.adapter import ImageLike
from ..similarity import ClipSimilarity
from .subjects import (
    DOT,
    EACH,
    Device,
    Images,
    Methods,
    Model,
    Models,
    Question,
    Rows,
    as_list,
    ask,
    min_max,
    open_inputs,
    raw_maps,
    subjects,
)

DEFAULT_MODEL: Final = "ViT-B/32"


def layers(
    image: ImageLike,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    model: Model = DEFAULT_MODEL,
    rows: Literal["cls", "sum"] = "cls",
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    """The attention of every layer, and for each target the gradient with respect to it.

    Mamooler's Figures 2 and 3. Heads are averaged, and the gradient keeps its sign: orange where
    more attention would raise the cosine, blue where it would lower it. See
    :class:`captum_clip.LayerAttention` for the maps and :func:`captum_clip.visualization.layers`
    for the picture.

    Args:
        image: one of what ``ClipAdapter.preprocess`` takes.
        texts: targets.
        references: shown before their gradients.
        model: a name, a model or an adapter, with a vision transformer.
        rows: "cls", the row of the CLS token, or "sum" of all rows.
        scale: "each" map its own, or "shared" by all layers.
        cmap: lay all maps over the image in these colours; "mask" multiplies the image with them,
            low is dark, as Mamooler does.
        device: where a model that is loaded by name goes.

    Raises:
        UnsupportedModelError: the model has no vision transformer.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.layers(image, "a horse", model="demo/vit")
    """
    caller = "figures.layers"
    check_choice(caller, scale, ("each", "shared"), name="a scale")
    check_choice(caller, rows, ("cls", "sum"), name="rows")
    clip = load_clip(model, device=device)
    if not isinstance(clip.tower, ViTTower):
        raise UnsupportedModelError(
            f"{caller}: {clip.name} has a {clip.kind} tower, which has no layers of attention; "
            "take a model with a vision transformer."
        )
    question = ask(caller, clip, texts, references)
    pixels = clip.preprocess(image)
    method = LayerAttention(ClipSimilarity(clip, question.target))
    attention, gradients = [], []
    scores = pixels.new_empty(0)
    for index in range(len(clip.tower.layers)):
        layer: dict[str, Any] = {"index": index, "rows": rows}
        attention.append(method.attribute_targets(pixels, [0], of="attention", **layer).cpu())
        gradient, scores = method.attribute_targets(
            pixels, of="gradient", return_scores=True, **layer
        )
        gradients.append(gradient.cpu())
    row = "sum of all rows" if rows == "sum" else "row CLS"
    if rows == "cls" and clip.tower.pooling != "cls":
        row = "mean of all rows"
    said = {"each": EACH, "shared": "one scale for all layers"}[scale]
    return visualization.layers(
        clip.denormalize(pixels).cpu(),
        torch.cat(attention, dim=1),
        torch.stack(gradients, dim=2),
        names=question.target.names,
        scores=scores.cpu(),
        references=question.references,
        shared=scale == "shared",
        cmap=cmap,
        caption=DOT.join((clip.name, "heads averaged", row, said)),
    )


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
    """Methods beside each other: one row per image and target, one column per model and method.

    Mamooler's Figures 4 and 5.

    Args:
        images: one or several.
        texts: targets.
        references: shown at the end of their rows.
        models: one or several names, models or adapters.
        methods: each used with the towers that it fits; all that fit where none is given.
        scale: "each" map its own, since the values of two methods cannot be compared, or "shared"
            by the maps of a column, whose values can.
        cmap: colour map.
        device: where models that are loaded by name go.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.compare(image, "a horse", models="demo/vit")
        >>> len(figure.axes)  # the image and nine methods
        10
    """
    caller = "figures.compare"
    check_choice(caller, scale, ("each", "shared"), name="a scale")
    images, clips = open_inputs(caller, images, models, device)
    questions = [ask(caller, clip, texts, references) for clip in clips]
    names, pictures = questions[0].target.names, questions[0].references
    chosen = subjects(caller, questions, methods, every=True)
    columns = [Rows.of(images, [subject]) for subject in chosen]
    headings = _numbered([s.label if len(clips) > 1 else s.choice.name for s in chosen])
    heatmap = {}
    for heading, column in zip(headings, columns, strict=True):
        values = min_max([raw_maps(e) for e in column.explanations], shared=scale == "shared")
        heatmap[heading] = columns[0].letterboxed(values).flatten(0, 1)[:, None]
    return visualization.contact_sheet(
        columns[0].pictures.repeat_interleave(len(names), 0),
        heatmap,
        names=names * len(images),
        scores=torch.stack([column.scores.flatten() for column in columns], dim=1),
        references=[*pictures] * len(images),
        cmap=cmap,
        caption={"each": EACH, "shared": "one scale per column"}[scale],
    )


def _numbered(labels: Sequence[str]) -> list[str]:
    """Labels of which no two are the same: "last-grad", "last-grad (2)"."""
    numbers = [labels[:end].count(label) for end, label in enumerate(labels, 1)]
    return [
        label if number == 1 else f"{label} ({number})"
        for label, number in zip(labels, numbers, strict=True)
    ]


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
    """What speaks for and against each target: one row per image, model and target.

    Mamooler's Figures 7 to 10. Arguments are as in :func:`compare`, but for the methods, of which
    each tower has its own where none is given; `scale`, which is "shared" by the two signs of a
    row, so that a weak one looks weak, or that of "each" map; and `cmap`, which is of both signs,
    by default orange for and blue against.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.signs(image, "a horse", models=["demo/vit", "demo/resnet"])
    """
    caller = "figures.signs"
    check_choice(caller, scale, ("shared", "each"), name="a scale")
    images, clips = open_inputs(caller, images, models, device)
    questions = [ask(caller, clip, texts, references) for clip in clips]
    rows = Rows.of(images, subjects(caller, questions, methods), "both")
    positive, negative = (
        [
            e.heatmap("bicubic")[sign][0]
            if scale == "shared"
            else maps.normalize(raw_maps(e, sign))
            for e in rows.explanations
        ]
        for sign in ("positive", "negative")
    )
    colors: dict[str, Any] = {} if cmap is None else {"cmaps": (cmap, cmap)}
    return visualization.signs(
        rows.pictures,
        rows.letterboxed(positive),
        rows.letterboxed(negative),
        references=questions[0].references,
        **rows.texts({"shared": "for and against on one scale", "each": EACH}[scale]),
        **colors,
    )


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
    """What makes an image sad or fearful: one row per image and model, one column per emotion.

    Mamooler's Figure 11. Each model has one of the `probes`, in the same order: probes or files of
    them. `names` says which emotions, by default all eight; `centre` subtracts the mean of all nine
    rows of a probe. A `scale` is that of "each" map, with its peak under it in percent of the
    strongest of its row, or "shared" by the row, so that a weak map looks weak. All else is as in
    :func:`signs`, with one colour map.

    Raises:
        InputError: not as many probes as models, or a probe of another model.

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
    check_choice(caller, scale, ("each", "shared"), name="a scale")
    probes, models = as_list(probes), as_list(models)
    if len(probes) != len(models):
        raise InputError(
            f"{caller}: expected a probe for each of the {len(models)} models, in the same order, "
            f"got {len(probes)}."
        )
    images, clips = open_inputs(caller, images, models, device)
    questions = [
        Question(clip, targets.emotion(clip, probe, names, centre=centre))
        for clip, probe in zip(clips, probes, strict=True)
    ]
    rows = Rows.of(images, subjects(caller, questions, methods))
    raw = [raw_maps(e) for e in rows.explanations]
    peaks = f"{EACH}, peaks in % of the strongest in the row"
    return visualization.overlay(
        rows.pictures,
        rows.letterboxed([min_max([row], shared=scale == "shared")[0] for row in raw]),
        notes=[_peaks(row) for row in raw],
        cmap=cmap,
        **rows.texts({"each": peaks, "shared": "one scale per row"}[scale]),
    )


def _peaks(raw: Tensor) -> list[str]:
    """The largest value of each map (K, H, W), in percent of the largest of all."""
    peaks = raw.amax((-2, -1))
    return [f"peak {share:.0%}" for share in (peaks / peaks.max().clamp(min=1e-30)).tolist()]


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
    """The whole text, then what each of its words adds: one row per image and model.

    Mamooler's Figure 13. One `text` is taken apart; `picked` says into which words or spans, as in
    ``targets.words``, by default all words. The `scale` "norm" dims each word's map by its norm, so
    that "a" does not look as important as "horse"; "each" shows every map in full. All else is as
    in :func:`signs`, with one colour map.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.words(image, "a horse", models="demo/vit")
        >>> len(figure.axes)  # the image, the text and two words
        4
    """
    caller = "figures.words"
    check_choice(caller, scale, ("norm", "each"), name="a scale")
    images, clips = open_inputs(caller, images, models, device)
    parts = [(targets.text(clip, text), targets.words(clip, text, picked)) for clip in clips]
    questions = [Question(c, targets.concatenate(p)) for c, p in zip(clips, parts, strict=True)]
    rows = Rows.of(images, subjects(caller, questions, methods))
    return visualization.words(
        rows.pictures,
        rows.letterboxed([maps.normalize(raw_maps(e)) for e in rows.explanations]),
        norms=torch.stack([e.norms for e in rows.explanations]),
        relative=scale == "norm",
        cmap=cmap,
        **rows.texts({"norm": "words dimmed by their norms", "each": EACH}[scale]),
    )
