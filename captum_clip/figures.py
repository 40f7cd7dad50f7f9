"""The figures of Mamooler's *CLIP Explainability*, and heads, on your own images: each one call.

Images, texts and models go in, are explained by :func:`captum_clip.explain`, and come out as one
matplotlib figure; :func:`captum_clip.visualization.save_figure` writes it. On the command line:
``captum-clip figure NAME``. Arguments of several figures:

- `image`, `images`: one or several of what ``ClipAdapter.preprocess`` takes.
- `texts`: targets; `references`: images that are targets, after the texts. Each is shown where its
  maps are.
- `model`, `models`: names, models or adapters; `device`: where those that are loaded by name go.
- `methods`: classes of :mod:`captum_clip.attr` or their command-line names with options, each used
  with the models that it fits; by default the one that :func:`captum_clip.explain` takes for a
  tower. ``methods="mamooler"`` takes the report's. Models and methods stand in labels or caption.
- `scale`: "each" map its own, or "shared" by maps that can be compared.
- `cmap`: a color map, by name or as it is.

Errors are of type `CaptumClipError`.

Example:
    >>> from captum_clip import figures
    >>> from captum_clip.demo.scenes import draw_scene
    >>> image = draw_scene(0, objects=["horse", "dog"]).image
    >>> figure = figures.compare(image, "a horse", models="demo/vit")
    >>> figure = figures.signs(image, "a horse", models=["demo/vit", "demo/resnet"])
    >>> figure = figures.words(image, "a horse", models="demo/vit")
    >>> figure = figures.emotions(image, "demo/vit", models="demo/vit")
    >>> figure = figures.layers(image, ["a horse", "a dog"], model="demo/vit")
    >>> figure = figures.heads(image, "a horse", model="demo/vit")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from . import maps, targets, visualization
from .attr import DirectContribution, LayerAttention
from .attr.registry import fitting_methods, methods_for
from .checks import check_choice, check_integer, check_nonempty
from .emotions import EmotionProbe
from .errors import InputError, UnsupportedModelError, public
from .evaluation.study import read_mean_maps
from .explaining.explain import explain
from .explaining.explanation import Explanation
from .explaining.request import SIGNS, Sign
from .heads import Head, head_label
from .models import ClipAdapter, ViTTower, load_clip
from .models.adapter import ImageLike
from .similarity import ClipSimilarity
from .targets import Target
from .visualization.arrays import as_images, as_values, framed
from .visualization.colors import HEAT, Array, colormap, ramp, score_note
from .visualization.grid import Legend, Panel, grid
from .visualization.overlays import numbered
from .visualization.strips import REST, min_max, strip, strip_legends, sum_notes

__all__ = ["average", "compare", "emotions", "heads", "layers", "signs", "words"]

Images: TypeAlias = ImageLike | Sequence[ImageLike]
Model: TypeAlias = str | Path | nn.Module | ClipAdapter
Models: TypeAlias = Model | Sequence[Model]
Methods: TypeAlias = str | type[Any] | Sequence[str | type[Any]]
Device: TypeAlias = torch.device | str | None
Asked: TypeAlias = tuple[ClipAdapter, Target]

EACH: Final = "each map on a scale of its own"
_DOT: Final = " \N{MIDDLE DOT} "


@public("figures.layers")
def layers(
    image: ImageLike,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    model: Model = "ViT-B/32",
    rows: Literal["cls", "sum"] = "cls",
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    r"""The attention of every layer, and for each target the gradient with respect to it.

    Figures 2 and 3 of the report. Heads are averaged (:class:`captum_clip.LayerAttention`). A
    gradient
    keeps its sign: orange where more attention would raise the cosine, blue where it would lower
    it, on a scale that ends at the largest absolute value. The range of each map is below it.

    The `rows` are "cls", the row of the CLS token, or "sum" of all rows, and the `scale` is that of
    "each" map, or "shared" by all layers. A `cmap` lays all maps, min-max normalized, over the
    image in these colors; "mask" multiplies the image :math:`I` with each map :math:`m`, as
    the report does, so that low is dark: :math:`I (m - \min m) / (\max m - \min m)`.

    Raises:
        UnsupportedModelError: the model has no vision transformer.
    """
    meaning = _meaning(scale, each=EACH, shared="one scale for all layers")
    [(clip, target)], pictures = _ask([model], device, texts, references)
    if not isinstance(clip.tower, ViTTower):
        raise UnsupportedModelError(
            f"{clip.name} has a convolutional tower, which has no layers of attention; "
            "take a model with a vision transformer."
        )
    inputs, pixels = _one_image(clip, image)
    method = LayerAttention(ClipSimilarity(clip, target))
    indices = range(len(clip.tower.layers))

    def over_layers(**options: Any) -> Tensor:  # (K, L, h, w)
        return torch.cat(
            [method.attribute_targets(inputs, index=i, rows=rows, **options) for i in indices]
        ).transpose(0, 1)

    titles, shared = [f"layer {index}" for index in indices], scale == "shared"
    attention = over_layers(of="attention")[0]  # the same for all targets
    lead = Panel(pixels, "image", label="attention")
    drawn = strip(pixels, attention, lead, cmap or HEAT, titles, shared=shared)
    scores = method.forward_func(inputs)[0].tolist()
    gradients = over_layers(of="gradient")
    for name, score, picture, raw in zip(target.names, scores, pictures, gradients, strict=True):
        lead = Panel(_lead(pixels, picture), name, score_note(score), "gradient")
        drawn += strip(pixels, raw, lead, cmap, titles, shared=shared)
    legends = strip_legends(cmap, "raises the cosine", "lowers it")
    if cmap is None:
        legends.insert(0, Legend(ramp(colormap(HEAT)), "attention, low to high"))
    row = "row CLS" if clip.tower.pooling == "cls" else "mean of all rows"
    row = "sum of all rows" if rows == "sum" else row
    about = (f"{clip.name} ({LayerAttention.name})", "heads averaged", row, meaning)
    return grid(drawn, legends=legends, caption=_DOT.join(about))


@public("figures.compare")
def compare(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: Models = "ViT-B/32",
    methods: Methods | None = None,
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap = HEAT,
    device: Device = None,
) -> Figure:
    """Methods next to each other: one row per image, target and model, one column per method.

    Figures 4 and 5 of the report. Where no `methods` are given they are all that fit the towers.
    The `scale` is that of "each" map, since the values of two methods cannot be compared, or
    "shared" by the maps of a column, whose values can. A reference stands at the end of its row.
    """
    meaning = _meaning(scale, each=EACH, shared="one scale per column")
    asked, pictures = _ask(models, device, texts, references)
    rows = _explained(images, asked, methods, every=True)
    names, count = rows[0].names, len(_as_list(images))
    columns = [rows[start :: len(rows) // count] for start in range(len(rows) // count)]
    clips = [clip.name for clip, _ in asked]
    labels = [column[0].label if len(clips) > 1 else column[0].method for column in columns]
    scaled = [min_max([_raw(e) for e in column], shared=scale == "shared") for column in columns]
    return visualization.contact_sheet(
        [e.images[0] for e in columns[0] for _ in names],
        {
            label: [values[None] for maps in column for values in maps]
            for label, column in zip(numbered(labels), scaled, strict=True)
        },
        names=names * count,
        scores=torch.stack([torch.cat([e.scores[0] for e in c]) for c in columns], dim=1),
        references=pictures * count,
        models=[column[0].model for column in columns] if len(clips) > 1 else (),
        cmap=cmap,
        caption=meaning if len(clips) > 1 else f"{clips[0]}{_DOT}{meaning}",
    )


@public("figures.signs")
def signs(
    images: Images,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    models: Models = "ViT-B/32",
    methods: Methods | None = None,
    scale: Literal["shared", "each"] = "shared",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    """Positive and negative evidence for each target: one row per image, model and target.

    Figures 7 to 10 of the report, drawn by ``methods="mamooler"``. The `scale` is "shared" by the
    two signs of a row, so that a weak one looks weak, or that of "each" map. By default orange
    supports the target and blue contradicts it; a `cmap` serves both signs. A reference stands at
    the end of its rows.
    """
    meaning = _meaning(scale, shared="both signs on one scale", each=EACH)
    asked, pictures = _ask(models, device, texts, references)
    rows = _explained(images, asked, methods, sign="both")
    heatmaps: dict[str, Any] = {
        sign: [
            e.heatmap("bicubic")[sign][0] if scale == "shared" else maps.normalize(_raw(e, sign))
            for e in rows
        ]
        for sign in SIGNS
    }
    if cmap is not None:
        heatmaps["cmaps"] = (cmap, cmap)
    return visualization.signs(**heatmaps, references=pictures, **_written(rows, meaning))


@public("figures.emotions")
def emotions(
    images: Images,
    probes: EmotionProbe | str | Path | Sequence[EmotionProbe | str | Path],
    *,
    names: str | Sequence[str] | None = None,
    models: Models = "ViT-B/32",
    methods: Methods | None = None,
    center: bool = False,
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap = HEAT,
    device: Device = None,
) -> Figure:
    """Emotions that a model reads in an image: one row per image and model, one column per emotion.

    Figure 11 of the report, drawn by ``methods="mamooler"``. `probes` has a probe or its file for
    each model, in the same order. `names` chooses emotions, by default all eight; `center`
    subtracts the mean of all nine weights of a probe. The `scale` is that of "each" map, with its
    peak under it in percent of the strongest of its row, or "shared" by the row, so that a weak map
    looks weak.

    Raises:
        InputError: not as many probes as models, or a probe of another model.
    """
    peaks = f"{EACH}, peaks in % of the strongest in the row"
    meaning = _meaning(scale, each=peaks, shared="one scale per row")
    clips = _load(models, device)
    probes = as_values("probes, one for each model in the same order", _as_list(probes), len(clips))
    asked = []
    for clip, probe in zip(clips, probes, strict=True):
        loaded = EmotionProbe.load(probe) if isinstance(probe, (str, Path)) else probe
        asked.append((clip, targets.emotion(clip, loaded, names, center=center)))
    rows = _explained(images, asked, methods)
    raw = [_raw(e) for e in rows]
    return visualization.overlay(
        heatmap=[min_max([row], shared=scale == "shared")[0] for row in raw],
        notes=[_peaks(row) for row in raw],
        cmap=cmap,
        **_written(rows, meaning),
    )


@public("figures.words")
def words(
    images: Images,
    text: str,
    *,
    picked: Sequence[str | tuple[int, int]] | None = None,
    models: Models = "ViT-B/32",
    methods: Methods | None = None,
    scale: Literal["norm", "each"] = "norm",
    cmap: str | Colormap = HEAT,
    device: Device = None,
) -> Figure:
    """The whole text, then what each of its words adds: one row per image and model.

    Figure 13 of the report, drawn by ``methods="mamooler"``. One `text` is taken apart; `picked`
    chooses words or spans, as in ``targets.words``, by default all words. The `scale` "norm" dims
    each word's map by its norm, so that "a" does not look as important as "horse"; "each" shows
    every map in full.
    """
    meaning = _meaning(scale, norm="words dimmed by their norms", each=EACH)
    asked = [
        (clip, targets.concatenate([targets.text(clip, text), targets.words(clip, text, picked)]))
        for clip in _load(models, device)
    ]
    rows = [replace(e, words=True) for e in _explained(images, asked, methods)]
    return visualization.overlay(
        heatmap=[
            maps.normalize(_raw(e)) * (e.weights[:, None, None] if scale == "norm" else 1)
            for e in rows
        ],
        notes=[e.notes[0] for e in rows],
        cmap=cmap,
        **{**_written(rows, meaning), "scores": None},
    )


@public("figures.heads")
def heads(
    image: ImageLike,
    text: str | Sequence[str] = (),
    *,
    references: Images = (),
    model: Model = "ViT-B/32",
    words: Mapping[Head, str] | None = None,
    count: int = 8,
    sign: Sign = "positive",
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    r"""The heads that add most to a score, each with its map, and all that is left of the sum.

    .. math:: y = \sum_m \sum_p r_m(p) + \text{rest}

    The maps are those of :class:`captum_clip.DirectContribution`, so they add up: under each is
    its sum and the share of the cosine, rounded so that the printed numbers add up too; all other
    heads are one map, and the rest is what no position adds. A tower that reads CLS has the heads
    of every layer, a pooling head and the attention pool of a ResNet their own.

    The target is one text or one reference, then shown in place of the image. `words` of a (layer,
    head) stand with its name. `count` is the most heads to show, `sign` "positive" for those that
    add most, "negative" for those that take most away, "both" for `count` of each. By default
    orange adds to the cosine and blue takes away; `cmap` is that of :func:`layers`.

    Raises:
        InputError: not one image and one target, an invalid argument, or a tower whose
            embedding no attention reads: a mean of patches, or average pooling.

    Source: after Gandelsman et al. 2024 (arXiv:2310.05916), who split the CLS token of a ViT.
    """
    meaning = _meaning(scale, each=EACH, shared="one scale for all maps")
    check_choice(sign, get_args(Sign), name="a sign")
    check_integer("count", count)
    [(clip, target)], pictures = _ask([model], device, text, references)
    [picture] = as_values("target", pictures, 1)
    inputs, pixels = _one_image(clip, image)
    method = DirectContribution(ClipSimilarity(clip, target))
    by_layer, rest = method.attribute(inputs, target=0, per="head", return_rest=True)
    raw, labels = _strongest(clip, by_layer[0, 0].cpu(), count, sign, words or {})
    total, notes = sum_notes(raw.numpy(), rest.item())
    lead = Panel(_lead(pixels, picture), target.names[0], total)
    raw = torch.cat([raw, torch.zeros_like(raw[:1])])  # of the rest: the pale image alone
    titles, shared = [*labels, REST], scale == "shared"
    return grid(
        strip(pixels, raw, lead, cmap, titles, notes=notes, shared=shared),
        legends=strip_legends(cmap, "adds to the cosine", "takes away from it"),
        caption=f"{clip.name} ({DirectContribution.name}){_DOT}{meaning}",
    )


def _strongest(
    clip: ClipAdapter, by_layer: Tensor, count: int, sign: Sign, words: Mapping[Head, str]
) -> tuple[Tensor, list[str]]:
    """Maps (M, h, w) of the strongest of all heads (n, H, h, w), then of the others; and labels."""
    every = by_layer.flatten(0, 1)
    sums = every.sum((-2, -1))
    order = sums.argsort(descending=True, stable=True).tolist()
    adding = [head for head in order if sums[head] > 0][:count]
    taking = [head for head in reversed(order) if sums[head] < 0][:count]
    chosen = {"positive": adding, "negative": taking, "both": adding + taking}[sign]
    others = sorted({*order} - {*chosen})
    heads = [divmod(head, by_layer.shape[1]) for head in chosen]
    labels = [head_label(clip, head, words.get(head, "")) for head in heads]
    if not others:
        return every[chosen], labels
    raw = torch.cat([every[chosen], every[others].sum(0, keepdim=True)])
    return raw, [*labels, f"{len(others)} other head{'s' * (len(others) > 1)}"]


@public("figures.average")
def average(
    studies: str | Path | Sequence[str | Path],
    *,
    names: str | Sequence[str] | None = None,
    cmap: str | Colormap = HEAT,
) -> Figure:
    """Mean maps of finished studies on one scale: a row per model and method, a column per target.

    Figures 6 and 12 of the report; for the latter run the study with ``methods="mamooler"``.

    Args:
        studies: one or several output folders of ``captum-clip study``.
        names: which targets or emotions; by default all that every row has.
        cmap: color map.

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
    labels = numbered([row.label for row in rows])
    means = [row.means[[row.names.index(name) for name in chosen]] for row in rows]
    notes = [["" if np.isfinite(m).all() else "no map varies" for m in mean] for mean in means]
    counts = " and ".join(f"{count:,}" for count in sorted({row.images for row in rows}))
    return visualization.average(
        {label: np.nan_to_num(mean) for label, mean in zip(labels, means, strict=True)},
        names=chosen,
        notes=dict(zip(labels, notes, strict=True)),
        cmap=cmap,
        caption=f"mean of min-max maps of {counts} images",
    )


def _meaning(scale: str, **meanings: str) -> str:
    """Choose what the colors mean on a scale, which must be one of those that a figure has."""
    check_choice(scale, meanings, name="a scale")
    return meanings[scale]


def _as_list(values: Any) -> list[Any]:
    """One or several of anything, as a list; a batch of images becomes its images."""
    several = isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) == 4
    return list(values) if several else [values]


def _load(models: Models, device: Device) -> list[ClipAdapter]:
    listed = _as_list(models)
    check_nonempty("model", listed)
    return [load_clip(model, device=device) for model in listed]


def _one_image(clip: ClipAdapter, image: ImageLike) -> tuple[Tensor, Array]:
    """One image as the model takes it, (1, 3, H, W), and as it is drawn, (H, W, 3)."""
    inputs = clip.preprocess(image)
    [pixels] = as_values("image", as_images(clip.denormalize(inputs)), 1)
    return inputs, pixels


def _lead(image: Array, picture: Tensor | None) -> Array:
    """The target where it is an image, in the frame of the image that is explained; else this."""
    return image if picture is None else framed(as_images([picture])[0], image.shape)


def _ask(
    models: Models, device: Device, texts: str | Sequence[str], references: Images
) -> tuple[list[Asked], list[Tensor | None]]:
    """Pair each model with its target, which is of the texts and then of the images.

    With them come None for each text, and for each image what the first model sees of it (3, H, W).
    """
    clips, texts, references = _load(models, device), _as_list(texts), _as_list(references)
    if not texts and not references:
        raise InputError("expected a text or an image to explain, got neither.")
    asked = []
    for clip in clips:
        kinds = [targets.text(clip, texts)] if texts else []
        kinds += [targets.image(clip, references)] if references else []
        asked.append((clip, targets.concatenate(kinds)))
    pictures = [clips[0].denormalize(clips[0].preprocess(image))[0].cpu() for image in references]
    return asked, [*[None] * len(texts), *pictures]


def _explained(
    images: Images,
    asked: Sequence[Asked],
    methods: Methods | None,
    *,
    sign: Sign = "positive",
    every: bool = False,
) -> list[Explanation]:
    """Explanations of each image by each model, with its target, and each method that fits it.

    Where no method is given it is the tower's own, or with `every` all that fit the model.
    """
    listed = _as_list(images)
    check_nonempty("image", listed)
    subjects: list[Callable[[Any], Explanation]] = []
    for clip, target in asked:
        wanted = _as_list(methods) if methods else methods_for(clip.kind) if every else ()
        for choice in fitting_methods(wanted, clip.tower, clip.name):
            options = {"model": clip, "method": choice.method, **choice.options}
            subjects.append(partial(explain, texts=target, sign=sign, **options))
    return [explained_by(image) for image in listed for explained_by in subjects]


def _written(rows: Sequence[Explanation], meaning: str) -> dict[str, Any]:
    """Images, names, scores, labels and caption of all rows; `meaning` is that of the colors."""
    labels = [e.label for e in rows]
    alike = len({*labels}) == 1
    return {
        "images": [e.images[0] for e in rows],
        "names": rows[0].names,
        "scores": torch.cat([e.scores for e in rows]),
        "labels": () if alike else labels,
        "caption": f"{labels[0]}{_DOT}{meaning}" if alike else meaning,
    }


def _raw(explanation: Explanation, sign: str = "positive") -> Tensor:
    """The raw maps of one image at its size, (K, H, W)."""
    height, width = explanation.images.shape[-2:]
    return maps.upsample(explanation.maps[sign][0], (height, width), mode="bicubic", clamp=True)


def _peaks(raw: Tensor) -> list[str]:
    """The largest value of each map (K, H, W), in percent of the largest of all."""
    peaks = raw.amax((-2, -1))
    return [f"peak {share:.0%}" for share in (peaks / peaks.max().clamp(min=1e-30)).tolist()]
