"""The figures of Mamooler's *CLIP Explainability* on your own images: each one call.

Images, texts and models go in, are explained by :func:`captum_clip.explain`, and come out as one
matplotlib figure; :func:`captum_clip.visualization.save_figure` writes it. On the command line:
``captum-clip figure NAME``. Figures 2 and 3, of layers, are a script of the gallery to copy.
Arguments of several figures:

- `images`: one or several of what ``ClipAdapter.preprocess`` takes.
- `texts`: targets; `references`: images that are targets, after the texts. Each is shown where its
  maps are.
- `models`: names, models or adapters; `device`: where those that are loaded by name go.
- `methods`: classes of :mod:`captum_clip.attr` or their command-line names with options, each used
  with the models that it fits; by default the one that :func:`captum_clip.explain` takes for a
  tower. ``methods="mamooler"`` takes the report's. Models and methods stand in labels or caption.
- how it looks: each field of :class:`captum_clip.visualization.Look`.

Errors are of type `CaptumClipError`.

Example:
    >>> from captum_clip.bench import figures
    >>> from captum_clip.demo.scenes import draw_scene
    >>> image = draw_scene(0, objects=["horse", "dog"]).image
    >>> figure = figures.compare_methods(image, "a horse", models="demo/vit")
    >>> figure = figures.draw_signs(image, "a horse", models=["demo/vit", "demo/resnet"])
    >>> figure = figures.draw_words(image, "a horse", models="demo/vit")
    >>> figure = figures.draw_emotions(image, "demo/vit", models="demo/vit")
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import maps, targets, visualization
from ..attr.registry import fitting_methods, methods_for
from ..checks import check_choice, check_nonempty, current_look, draws
from ..errors import InputError, public
from ..explaining.explain import explain
from ..explaining.explanation import Explanation
from ..explaining.request import SIGNS
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..targets import EmotionProbe, Target
from ..visualization.arrays import as_values
from ..visualization.overlays import numbered
from .study import average_figure, read_mean_maps

__all__ = ["compare_methods", "draw_average", "draw_emotions", "draw_signs", "draw_words"]

Images: TypeAlias = ImageLike | Sequence[ImageLike]
AnyModel: TypeAlias = str | Path | nn.Module | ClipAdapter
AnyMethod: TypeAlias = str | type[Any]
Device: TypeAlias = torch.device | str | None

_DOT: Final = " \N{MIDDLE DOT} "


@public("figures.compare_methods")
@draws
def compare_methods(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: AnyModel | Sequence[AnyModel] = "ViT-B/32",
    methods: AnyMethod | Sequence[AnyMethod] | None = None,
    device: Device = None,
    **_: Any,
) -> Figure:
    """Methods next to each other: one row per image, target and model, one column per method.

    Figures 4 and 5 of the report. Where no `methods` are given they are all that fit the towers.
    Each map has a scale of its own, since the values of two methods cannot be compared. A reference
    stands at the end of its row.
    """
    clips = _load(models, device)
    model_targets, pictures = _of_targets(clips, texts, references)
    columns = _explain_all(images, clips, model_targets, methods, every=True)
    first, names, several = columns[0], columns[0][0].names, len(clips) > 1
    labels = numbered([column[0].label if several else column[0].method for column in columns])
    return visualization.contact_sheet(
        [e.images[0] for e in first for _ in names],
        {
            label: [values[None] for e in column for values in _heatmap(e, column)]
            for label, column in zip(labels, columns, strict=True)
        },
        names=names * len(first),
        scores=torch.stack([torch.cat([e.scores[0] for e in c]) for c in columns], dim=1),
        references=pictures * len(first),
        models=[column[0].model for column in columns] if several else (),
        caption=_scaled() if several else f"{clips[0].name}{_DOT}{_scaled()}",
    )


@public("figures.draw_signs")
@draws
def draw_signs(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: AnyModel | Sequence[AnyModel] = "ViT-B/32",
    methods: AnyMethod | Sequence[AnyMethod] | None = None,
    device: Device = None,
    **_: Any,
) -> Figure:
    """Positive and negative evidence for each target: one row per image, model and target.

    Figures 7 to 10 of the report, drawn by ``methods="mamooler"``. The two signs of a row share a
    scale, so that a weak one looks weak. By default orange supports the target and blue contradicts
    it. A reference stands at the end of its rows.
    """
    clips = _load(models, device)
    model_targets, pictures = _of_targets(clips, texts, references)
    rows = _by_image(_explain_all(images, clips, model_targets, methods, sign="both"))
    heatmaps: Any = {sign: [_heatmap(e, rows, sign) for e in rows] for sign in SIGNS}
    about = _texts_of(rows, "both signs on one scale")
    return visualization.signs(**heatmaps, references=pictures, **about)


@public("figures.draw_emotions")
@draws
def draw_emotions(
    images: Images,
    probes: EmotionProbe | str | Path | Sequence[EmotionProbe | str | Path],
    *,
    names: str | Sequence[str] | None = None,
    models: AnyModel | Sequence[AnyModel] = "ViT-B/32",
    methods: AnyMethod | Sequence[AnyMethod] | None = None,
    center: bool = False,
    device: Device = None,
    **_: Any,
) -> Figure:
    """Emotions that a model reads in an image: one row per image and model, one column per emotion.

    Figure 11 of the report, drawn by ``methods="mamooler"``. `probes` has a probe or its file for
    each model, in the same order. `names` chooses emotions, by default all eight; `center`
    subtracts the mean of all nine weights of a probe. Each map has a scale of its own, with its
    peak under it in percent of the strongest of its row.

    Raises:
        InputError: not as many probes as models, or a probe of another model.
    """
    clips = _load(models, device)
    probes = as_values("probes, one for each model in the same order", _as_list(probes), len(clips))
    model_targets = []
    for clip, probe in zip(clips, probes, strict=True):
        loaded = EmotionProbe.load(probe) if isinstance(probe, (str, Path)) else probe
        model_targets.append(targets.emotion(clip, loaded, names, center=center))
    rows, notes = _by_image(_explain_all(images, clips, model_targets, methods)), []
    for explanation in rows:
        raw, (height, width) = explanation.maps["positive"][0], explanation.images.shape[-2:]
        large = maps.upsample(raw, (height, width), mode="bicubic", clamp=True)
        shares = large.amax((-2, -1)) / large.max().clamp(min=1e-30)
        notes.append([f"peak {share:.0%}" for share in shares.tolist()])
    about = _texts_of(rows, f"{_scaled()}, peaks in % of the strongest in the row")
    return visualization.overlay(heatmap=[_heatmap(e, rows) for e in rows], notes=notes, **about)


@public("figures.draw_words")
@draws
def draw_words(
    images: Images,
    text: str,
    *,
    picked: Sequence[str | tuple[int, int]] | None = None,
    models: AnyModel | Sequence[AnyModel] = "ViT-B/32",
    methods: AnyMethod | Sequence[AnyMethod] | None = None,
    device: Device = None,
    **_: Any,
) -> Figure:
    """The whole text, then what each of its words adds: one row per image and model.

    Figure 13 of the report, drawn by ``methods="mamooler"``. One `text` is taken apart; `picked`
    chooses words or spans, as in ``targets.words``, by default all words. Each word's map is dimmed
    by its norm, so that "a" does not look as important as "horse".
    """
    clips = _load(models, device)
    texts = [text] * len(clips)
    rows = _by_image(_explain_all(images, clips, texts, methods, words=picked or True))
    shown = [e.shown()[0] for e in rows]
    heatmap = [
        _heatmap(e, rows) * torch.tensor([s.weight for s in row])[:, None, None]
        for e, row in zip(rows, shown, strict=True)
    ]
    about = _texts_of(rows, "words dimmed by their norms")
    about |= {"scores": None, "notes": [[s.note for s in row] for row in shown]}
    return visualization.overlay(heatmap=heatmap, **about)


@public("figures.draw_average")
@draws
def draw_average(
    studies: str | Path | Sequence[str | Path],
    *,
    names: str | Sequence[str] | None = None,
    **_: Any,
) -> Figure:
    """Mean maps of finished studies on one scale: a row per model and method, a column per target.

    Figures 6 and 12 of the report; for the latter run the study with ``methods="mamooler"``.

    Args:
        studies: one or several output folders of ``captum-clip study``.
        names: which targets or emotions; by default all that every row has.

    Raises:
        InputError: no study, one that is not finished, studies without a common target, or a name
            that a row does not have.
    """
    folders = _as_list(studies)
    check_nonempty("folder of a study", folders)
    rows = [row for folder in folders for row in read_mean_maps(folder)]
    common = [name for name in rows[0].names if all(name in row.names for row in rows)]
    chosen = common if names is None else _as_list(names)
    check_nonempty("target that the studies have in common", chosen)
    for row, name in product(rows, chosen):
        check_choice(name, row.names, name="a target")
    return average_figure(rows, chosen)


def _as_list(values: Any) -> list[Any]:
    """One or several of anything, as a list; a batch of images becomes its images."""
    several = isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) == 4
    return list(values) if several else [values]


def _load(models: AnyModel | Sequence[AnyModel], device: Device) -> list[ClipAdapter]:
    listed = _as_list(models)
    check_nonempty("model", listed)
    return [load_clip(model, device=device) for model in listed]


def _of_targets(
    clips: Sequence[ClipAdapter], texts: str | Sequence[str], references: Images
) -> tuple[list[Target], list[Tensor | None]]:
    """The target of each model, which is of the texts and then of the images.

    With them come None for each text, and for each image what the first model sees of it (3, H, W).
    """
    texts, references = _as_list(texts), _as_list(references)
    if not texts and not references:
        raise InputError("expected a text or an image to explain, got neither.")
    model_targets = []
    for clip in clips:
        kinds = [targets.text(clip, texts)] if texts else []
        kinds += [targets.image(clip, references)] if references else []
        model_targets.append(targets.concatenate(kinds))
    pictures = [clips[0].denormalize(clips[0].preprocess(image))[0].cpu() for image in references]
    return model_targets, [*[None] * len(texts), *pictures]


def _explain_all(
    images: Images,
    clips: Sequence[ClipAdapter],
    model_targets: Sequence[str | Target],
    methods: AnyMethod | Sequence[AnyMethod] | None,
    *,
    every: bool = False,
    **how: Any,
) -> list[list[Explanation]]:
    """For each model, with its target, and each method that fits it: explanations of the images.

    Where no method is given it is the tower's own, or with `every` all that fit the model.
    """
    listed = _as_list(images)
    check_nonempty("image", listed)
    columns = []
    for clip, target in zip(clips, model_targets, strict=True):
        wanted = _as_list(methods) if methods else methods_for(clip.kind) if every else ()
        for choice in fitting_methods(wanted, clip.tower, clip.name):
            options: Any = {"method": choice.method, "hints": False, **how, **choice.options}
            columns.append([explain(image, target, model=clip, **options) for image in listed])
    return columns


def _by_image(columns: Sequence[Sequence[Explanation]]) -> list[Explanation]:
    """Image by image, of each the models and methods."""
    return [explanation for row in zip(*columns, strict=True) for explanation in row]


def _scaled() -> str:
    """What a caption says of the scale of maps whose values are not compared."""
    own, chosen = "each map on a scale of its own", current_look.get()
    return own if chosen.scale == "own" else f"maps of a method on one scale ({chosen.scale})"


def _heatmap(
    explanation: Explanation, rows: Sequence[Explanation], sign: str = "positive"
) -> Tensor:
    """The maps of one image as they are drawn among others, (K, H, W) in [0, 1]."""
    chosen = current_look.get()
    tops = [each.scaling(chosen)[1] for each in rows if each.label == explanation.label]
    scale = chosen.scale if None in tops else max(filter(None, tops))
    return explanation.heatmap(chosen.interpolation, scale=scale)[sign][0]


def _texts_of(rows: Sequence[Explanation], meaning: str) -> dict[str, Any]:
    """Images, names, scores, labels and caption of all rows; `meaning` is that of the colors."""
    labels = [explanation.label for explanation in rows]
    alike = len({*labels}) == 1
    return {
        "images": [explanation.images[0] for explanation in rows],
        "names": rows[0].names,
        "scores": torch.cat([explanation.scores for explanation in rows]),
        "labels": () if alike else labels,
        "caption": f"{labels[0]}{_DOT}{meaning}" if alike else meaning,
    }
