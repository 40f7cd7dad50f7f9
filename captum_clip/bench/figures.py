"""Methods side by side and averages, as in Mamooler's *CLIP Explainability*: each one call.

Images, texts and models go in, are explained by :func:`captum_clip.explain`, and come out as one
matplotlib figure; :func:`captum_clip.visualization.save_figure` writes it. On the command line:
``captum-clip figure NAME``. docs/figures.md says what draws the other figures of the report.
Arguments of several figures:

- `images`: one or several of what ``ClipAdapter.preprocess`` takes.
- `texts`: targets; `references`: images that are targets, after the texts. Each is shown where its
  maps are.
- `models`: names, models or adapters; `device`: where those that are loaded by name go.
- `methods`: classes of :mod:`captum_clip.attr` or their command-line names with options, each used
  with the models that it fits; by default all that fit. ``methods="mamooler"`` takes the report's.
  Models and methods stand in labels or caption.
- how it looks: each field of :class:`captum_clip.visualization.Look`.

Errors are of type `CaptumClipError`.

Example:
    >>> from captum_clip.bench import figures
    >>> from captum_clip.demo.scenes import draw_scene
    >>> image = draw_scene(0, objects=["horse", "dog"]).image
    >>> figure = figures.compare_methods(image, "a horse", models="demo/vit")
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import targets, visualization
from ..attr.registry import fitting_methods, methods_for
from ..checks import check_nonempty, expect, show
from ..errors import InputError, argument, public
from ..explaining.explain import explain
from ..explaining.explanation import Explanation
from ..look import current_look, draws
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..targets import Target
from ..visualization.overlays import numbered
from .study import average_figure, read_mean_maps

__all__ = ["compare_methods", "draw_average"]

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
    columns = _explain_all(images, clips, model_targets, methods)
    several = len(clips) > 1
    first = columns[0]
    names = first[0].names
    labels = numbered([column[0].label if several else column[0].method for column in columns])
    # A row of the sheet is an image with a target; the targets of an image follow one another.
    images_of_rows = []
    for explanation in first:
        images_of_rows += [explanation.images[0]] * len(names)
    heatmaps: dict[str, list[Tensor]] = {}
    scores = []
    for label, column in zip(labels, columns, strict=True):
        heatmaps[label] = []
        for explanation in column:
            heatmaps[label].extend(torch.split(_heatmap(explanation, column), 1))
        scores.append(torch.cat([explanation.scores[0] for explanation in column]))
    caption = _scale_caption()
    if not several:
        caption = f"{clips[0].name}{_DOT}{caption}"
    return visualization.contact_sheet(
        images_of_rows,
        heatmaps,
        names=names * len(first),
        scores=torch.stack(scores, dim=1),
        references=pictures * len(first),
        models=[column[0].model for column in columns] if several else (),
        caption=caption,
    )


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
    rows = []
    for folder in folders:
        rows.extend(read_mean_maps(folder))
    common = [name for name in rows[0].names if all(name in row.names for row in rows)]
    chosen = common if names is None else _as_list(names)
    check_nonempty("target that the studies have in common", chosen)
    for row, name in product(rows, chosen):
        held = ", ".join(map(show, row.names))
        expect(name in row.names, f"{argument('names')} that the study holds ({held})", name)
    return average_figure(rows, chosen)


def _as_list(values: Any) -> list[Any]:
    """Return one value or several as a list; a batch of images becomes its images."""
    is_batch = getattr(values, "ndim", 0) == 4
    if is_batch or isinstance(values, (list, tuple)):
        return list(values)
    return [values]


def _load(models: AnyModel | Sequence[AnyModel], device: Device) -> list[ClipAdapter]:
    model_list = _as_list(models)
    check_nonempty("model", model_list)
    return [load_clip(model, device=device) for model in model_list]


def _of_targets(
    clips: Sequence[ClipAdapter], texts: str | Sequence[str], references: Images
) -> tuple[list[Target], list[Tensor | None]]:
    """Encode the texts, and then the images, as the target of each model.

    Returns:
        The targets; and None for each text, and for each image what the first model sees (3, H, W).
    """
    texts = _as_list(texts)
    references = _as_list(references)
    if not texts and not references:
        raise InputError("expected a text or an image to explain, got neither.")
    model_targets = []
    for clip in clips:
        encoded = []
        if texts:
            encoded.append(targets.text(clip, texts))
        if references:
            encoded.append(targets.image(clip, references))
        model_targets.append(targets.concatenate(encoded))
    pictures: list[Tensor | None] = [None] * len(texts)
    for image in references:
        pixels = clips[0].preprocess(image)
        pictures.append(clips[0].denormalize(pixels)[0].cpu())
    return model_targets, pictures


def _explain_all(
    images: Images,
    clips: Sequence[ClipAdapter],
    model_targets: Sequence[Target],
    methods: AnyMethod | Sequence[AnyMethod] | None,
) -> list[list[Explanation]]:
    """Explain the images by each model, with its target, and each method that fits the model.

    If no method is given, all that fit the model are used.
    """
    image_list = _as_list(images)
    check_nonempty("image", image_list)
    columns = []
    for clip, target in zip(clips, model_targets, strict=True):
        names = _as_list(methods) if methods else methods_for(clip.kind)
        for choice in fitting_methods(names, clip.tower, clip.name):
            options: Any = {"method": choice.method, "hints": False, **choice.options}
            columns.append([explain(image, target, model=clip, **options) for image in image_list])
    return columns


def _scale_caption() -> str:
    """Describe the scale of the maps, whose values are not compared between methods."""
    scale = current_look.get().scale
    if scale == "own":
        return "each map on a scale of its own"
    return f"maps of a method on one scale ({scale})"


def _heatmap(explanation: Explanation, column: Sequence[Explanation]) -> Tensor:
    """Scale the maps of an image as they are drawn in its column: (K, H, W) in [0, 1]."""
    look = current_look.get()
    tops = []
    for other in column:
        if other.label == explanation.label:
            _, top = other.scaling(look)
            tops.append(top)
    # The top is drawn as 1 in the whole column; without it each map has a scale of its own.
    scale = look.scale if None in tops else max(filter(None, tops))
    return explanation.heatmap(look.interpolation, scale=scale)["positive"][0]
