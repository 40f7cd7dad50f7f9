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
from ..checks import check_choice, check_nonempty
from ..errors import InputError, public
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
    model_targets: Sequence[Target],
    methods: AnyMethod | Sequence[AnyMethod] | None,
) -> list[list[Explanation]]:
    """For each model, with its target, and each method that fits it: explanations of the images.

    Where no method is given they are all that fit the model.
    """
    listed = _as_list(images)
    check_nonempty("image", listed)
    columns = []
    for clip, target in zip(clips, model_targets, strict=True):
        wanted = _as_list(methods) if methods else methods_for(clip.kind)
        for choice in fitting_methods(wanted, clip.tower, clip.name):
            options: Any = {"method": choice.method, "hints": False, **choice.options}
            columns.append([explain(image, target, model=clip, **options) for image in listed])
    return columns


def _scaled() -> str:
    """What a caption says of the scale of maps whose values are not compared."""
    own, chosen = "each map on a scale of its own", current_look.get()
    return own if chosen.scale == "own" else f"maps of a method on one scale ({chosen.scale})"


def _heatmap(explanation: Explanation, rows: Sequence[Explanation]) -> Tensor:
    """The maps of one image as they are drawn among others, (K, H, W) in [0, 1]."""
    chosen = current_look.get()
    tops = [each.scaling(chosen)[1] for each in rows if each.label == explanation.label]
    scale = chosen.scale if None in tops else max(filter(None, tops))
    return explanation.heatmap(chosen.interpolation, scale=scale)["positive"][0]
