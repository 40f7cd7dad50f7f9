r"""What a training changed: the difference of two models' scores by region, head and MLP, exactly.

With the unit embeddings e and t of an image and a text before, :math:`e'` and :math:`t'` after,

.. math:: e' \cdot t' - e \cdot t = (e' - e) \cdot t + e' \cdot (t' - t)

The first term is what the image tower changed. It is a sum over regions, the difference of two maps
of :class:`captum_clip.DirectContribution`, and another over heads and MLPs. Each of these adds an
output x to the pooled token, from where a linear map J leads to the unit embedding, with norm,
gates and length as constants of the image. The head or MLP changed

.. math:: \tfrac{1}{2} (J + J') (x' - x) \cdot t

which is zero where weights and inputs are the same. What J changed is the scale: the norm's
deviation and the embedding's length. If their weights changed, it has the last norm, the
projection and a pool's MLP as well.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import nan
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from .. import targets
from ..attr import DirectContribution, HeadVectors
from ..checks import check_integer, check_nonempty, check_texts, expect, show
from ..errors import InputError, UnsupportedModelError, public
from ..explaining.hints import count_doubts, share_of_better
from ..folders.bootstrap import FEWEST, difference_of, holm, resample
from ..look import current_look
from ..models import ClipAdapter, load_clip
from ..models.rounding import ROUNDING
from ..models.steps import step_parameters
from ..targets import Target
from ..targets.similarity import ClipSimilarity
from ..visualization.arrays import as_images
from ..visualization.charts import strip, strip_legends
from ..visualization.colors import signed_number
from ..visualization.grid import Panel, grid
from .heads import Head, TextSpan, batches_of, describe_heads

_BY_HEAD: Final = (*HeadVectors._fields, "scale")
_NEEDS: Final = {"layers and heads": _BY_HEAD, "widths": _BY_HEAD, "grids": ("regions", "outside")}
"""What cannot be compared without the same of each; without embeddings of one size nothing can."""
_UNMOVED: Final = 1e-6  # of a cosine; no change, however often it has one sign
_MEAN: Final = "none but a mean"
_PIXELS: Final = 0.01  # root mean square; libraries differ by .001, bilinear and bicubic by .017


class Moved(NamedTuple):
    """What adds to the score of a text, and how much: a mean over images with its interval.

    Attributes:
        what: "score"; of the score "image tower" and "text tower"; of the image tower "layer",
            "rest" and "scale"; of a layer "head" and "mlp".
        text: whose score.
        layer: from 0; None of what is in no layer.
        head: of the layer; None of what is no head.
        mean: of the change, or the difference of two groups of images.
        low: lower end of the 95 % interval; like `high`, NaN of a single image.
        high: upper end.
        p_value: two-sided, adjusted by Holm for all texts, or for all layers, heads or MLPs of the
            text; NaN below 30 images.
    """

    what: str
    text: str
    layer: int | None
    head: int | None
    mean: float
    low: float
    high: float
    p_value: float


def _change_of(name: str, doc: str) -> Any:
    def read(change: "Change") -> Tensor:
        if name in change.refused:
            raise InputError(change.refused[name])
        return change.sums[name][1] - change.sums[name][0]

    return property(read, doc=doc)


@dataclass(frozen=True, eq=False)
class Change:
    r"""The difference of two models' scores of N images and K texts, and the sums that it is.

    ``scores[1] - scores[0]`` is ``text`` plus what the image tower changed, which is
    ``regions.sum((-2, -1)) + outside``, and also
    ``heads.sum((-2, -1)) + mlps.sum(-1) + rest + scale``. All of it is signed. ``change[rows]`` is
    that of some of the images. What two models do not have in common raises InputError when it is
    read.

    Attributes:
        models: names of the model before and of the one after.
        names: the K texts.
        images: uint8 (N, 3, H, W), as the model before saw them.
        sums: (2, N, K, ...) by name, before and after: what the other attributes are the
            differences of. Regions and heads are products with the texts of the model before.
            The scale is what is left of a score whose parts pass the mean of both models' ways.
        refused: what the models do not have in common, by name, and why.
        vectors: the change of the image embedding but for the scale, on the CPU.
        doubts: sentences on texts that fit the images no better than unrelated texts do, before
            and after.
    """

    models: tuple[str, str]
    names: tuple[str, ...]
    images: Tensor
    sums: Mapping[str, Tensor]
    refused: Mapping[str, str]
    vectors: HeadVectors | None
    doubts: tuple[str, ...] = ()

    regions = _change_of("regions", "What each position changed, (N, K, h, w).")
    outside = _change_of("outside", "What changed in no position, (N, K): MLPs, biases, CLS.")
    heads = _change_of("heads", "What each head changed, (N, K, n, H); a pool has one layer.")
    mlps = _change_of("mlps", "What each MLP changed, (N, K, n), or (N, K, 0) of a pool.")
    rest = _change_of("rest", "What changed in no head and no MLP, (N, K): biases, CLS itself.")
    scale = _change_of("scale", "What norm and length changed in all parts; a pool's MLP as well.")
    text = _change_of("text", "What the text tower changed, e'.(t' - t), (N, K).")

    @property
    def scores(self) -> Tensor:
        """The cosines, (2, N, K), before and after."""
        return self.sums["scores"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> "Change":
        vectors = self.vectors and HeadVectors(*(tensor[rows] for tensor in self.vectors))
        sums = {name: values[:, rows] for name, values in self.sums.items()}
        return replace(self, images=self.images[rows], sums=sums, vectors=vectors)

    @public("table")
    def table(self, against: "Change | None" = None, *, seed: int = 0) -> list[Moved]:
        """What moved most: of texts, towers, layers, heads and MLPs each the largest first.

        Intervals are bootstraps over images, of 2,000 resamples, or more where Holm's factor would
        hide every difference. With `against`, which is of other images, the rows say what makes the
        scores of the model after larger in these images than in those.
        """
        others = [] if against is None else [against]
        groups = [_columns(each, bool(others)) for each in (self, *others) if len(each)]
        table = []
        for what in groups[0]:
            values, rows = [group[what] for group in groups], list[Moved]()  # (N, K, ...)
            places = [*np.ndindex(values[0].shape[2:])]
            families = [[(name, *place, None, None)[:3] for place in places] for name in self.names]
            if values[0].ndim == 2:  # texts are compared with each other, places in a text
                families, values = [[*chain(*families)]], [each[:, None] for each in values]
            for k, family in enumerate(filter(None, families)):
                rows += _tested(what, family, [each[:, k].flatten(1) for each in values], seed)
            table += sorted(rows, key=lambda row: -abs(row.mean))
        return table

    @public("describe")
    def describe(self, pool: Target, *, count: int = 5) -> dict[Head, TextSpan]:
        """The texts of a pool along which the change of each head varies, by how much it varies.

        Errors are those of :func:`captum_clip.apps.heads.describe_heads`.
        """
        if self.vectors is None:
            raise InputError(self.refused["heads"])
        return describe_heads(self.vectors, pool, count=count)

    @public("confusion")
    def confusion(self, actual: str, predicted: str) -> "tuple[Change, Change]":
        """The contrast of a wrong text with the right one, in images that are wrong or right.

        Wrong are those whose best text to the model after is `predicted`, right those where it is
        `actual`. ``wrong.table(right)`` has the heads that the mistakes have in common.

        Raises:
            InputError: a text that was not compared, or no image with that mistake.
        """
        for name in (actual, predicted):
            expect(name in self.names, f"one of the texts {[*self.names]}", name)
        columns = [self.names.index(name) for name in (predicted, actual)]
        sums = {name: v[:, :, columns[:1]] - v[:, :, columns[1:]] for name, v in self.sums.items()}
        contrast = replace(self, names=(f"{predicted} rather than {actual}",), sums=sums)
        wrong, right = (self.scores[1].argmax(1) == column for column in columns)
        expect(wrong.any(), f"an image that is best called {predicted!r} by {self.models[1]}", 0)
        return contrast[wrong], contrast[right]

    @public("plot")
    def plot(self, *, count: int = 6) -> Figure:
        """Draw the regions before, after, and their difference, in images whose scores moved most.

        Each image has the text that moved most in it, and its maps are on one scale. The numbers
        are cosines, and their difference.
        """
        check_integer("count", count)
        scores, regions = self.scores, [*self.sums.get("regions", ()), self.regions]
        largest, texts = (scores[1] - scores[0]).abs().max(1)
        rows, order, top = [], largest.argsort(descending=True)[:count], None
        if current_look.get().scale == "shared":
            top = max(float(each[order, texts[order]].abs().max()) for each in regions)
        for index in order.tolist():
            text = int(texts[index])
            before, after = scores[:, index, text].tolist()
            [pixels] = as_images(self.images[index : index + 1] / 255)
            raw = torch.stack([each[index, text] for each in regions])
            notes = [*map(signed_number, (before, after, after - before))]
            lead, titles = Panel(pixels, label=self.names[text]), (*self.models, "difference")
            rows += strip(pixels, raw, lead, titles, notes=notes, shared=True, top=top)
        legends = strip_legends("adds to the cosine", "takes away from it")
        caption = " \N{MIDDLE DOT} ".join([DirectContribution.name, *self.doubts])
        return grid(rows, legends=legends, caption=caption)


@public("compare")
def compare(
    before: Any, after: Any, images: Iterable[Any], texts: Sequence[str], *, batch_size: int = 16
) -> Change:
    """Compare what two models make of the same images and texts: a :class:`Change`.

    Three forwards per image and model. Regions need grids of one size, heads as many heads in as
    many layers of one width, and all but scores embeddings of one size. A warning says what is
    missing before anything is computed, and what differs besides the weights: tokens of the texts,
    sizes of the images, processors.

    Args:
        before: a model, or what ``load_clip`` takes.
        after: the model after it.
        images: N images, in a list or one after the other.
        texts: K texts.
        batch_size: images in a forward.

    Raises:
        InputError: no image, or one that cannot be read.
        TargetError: no text, or one that a model cannot take.
        UnsupportedModelError: a model that cannot be taken apart.

    Example:
        >>> from captum_clip import load_clip
        >>> from captum_clip.apps.change import compare
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> change = compare(clip, clip, [draw_scene(0).image], ["a horse", "a dog"])
        >>> change.regions.shape, float(change.heads.abs().max())
        (torch.Size([1, 2, 7, 7]), 0.0)
    """
    clips = [load_clip(each) for each in (before, after)]
    batches, texts = batches_of(images, batch_size), check_texts(texts)
    check_nonempty("image", first := next(batches, []))
    prepared = [clip.preprocess(first) for clip in clips]
    differences = _differences(clips, prepared, texts)
    refused = {entry: why for why, entries in differences.items() for entry in entries}
    for sentence in differences:
        warnings.warn(sentence, stacklevel=3)
    own = [targets.text(clip, texts) for clip in clips]
    along = own if "text" in refused else own[:1] * 2
    seen, rows, moved = list[Tensor](), list[dict[str, Tensor]](), list[HeadVectors]()
    better = list[Tensor]()
    for batch in chain([first], batches):
        prepared = [clip.preprocess(batch) for clip in clips]
        arguments = zip(clips, prepared, own, along, strict=True)
        old, new = (_summands(*each, refused) for each in arguments)
        if "heads" not in refused:
            moved.append(_at_mean_scale(old, new, along[0]))
        better.append(torch.minimum(old.pop("better"), new.pop("better")))
        # the embeddings after, with the texts before and after
        old["text"], new["text"] = new["text"], new["scores"]
        rows.append({name: torch.stack([old[name], new[name]]) for name in old})
        seen.append((255 * clips[0].denormalize(prepared[0])).round().byte().cpu())
    sums = {name: torch.cat([row[name] for row in rows], 1) for name in rows[0]}
    vectors = HeadVectors(*map(torch.cat, zip(*moved, strict=True))) if moved else None
    models = (clips[0].name, clips[1].name)
    doubts = count_doubts(texts, torch.cat(better))
    return Change(models, own[0].names, torch.cat(seen), sums, refused, vectors, doubts)


def _differences(clips: Sequence[ClipAdapter], prepared: Any, texts: Any) -> dict[str, Any]:
    """What two models do not have in common besides weights, and what this leaves out."""
    names, notes = " and ".join(clip.name for clip in clips), dict[str, Any]()
    before, after = (_facts(clip, prepared[i], texts) for i, clip in enumerate(clips))
    for what in before:
        if before[what] != after[what] or before[what] == _MEAN:
            entries = _NEEDS.get(what, ())
            if what == "embedding sizes":
                entries = (*dict.fromkeys(chain(["text"], *_NEEDS.values())),)
            so = f", so {', '.join(entries)} cannot be compared; the scores can" * bool(entries)
            values = f"{show(before[what])} and {show(after[what])}"
            notes[f"the {what} of {names} are {values}{so}."] = entries
    first, second = (pixels.float().cpu() for pixels in prepared)
    if first.shape == second.shape and (first - second).square().mean().sqrt() > _PIXELS:
        notes[f"the processors of {names} make different pixels from the same image."] = ()
    return notes


def _facts(clip: ClipAdapter, pixels: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """What should not differ between two models."""
    pooling, read, size = clip.tower.pooling, clip.tower.attentions, pixels.shape[-2:]
    read = read[-1:] if pooling == "attention" else read
    # without padding, which libraries write otherwise
    ids = [clip.text_inputs(text)[0][0, : clip.count_tokens(text)].tolist() for text in texts]
    shapes = (weight.shape for step in clip.tower.head for weight in step_parameters(step))
    return {
        "tokens": ids,
        "image sizes": tuple(size),
        "layers and heads": _MEAN if pooling == "mean" else (len(read), read[0].heads),
        "widths": next(map(tuple, shapes), ()),
        "grids": clip.grid(*size),
        "embedding sizes": clip.embedding_dim or clip.measured_dim(),  # refuses what the others do
    }


def _summands(
    clip: ClipAdapter, pixels: Tensor, own: Target, along: Target, refused: Collection[str]
) -> dict[str, Any]:
    """The cosines with both kinds of texts, what adds up to those `along`, and parts by head."""
    # The directions of the other model are plain numbers to this one.
    others = targets.embedding(along.embeddings, along.names)
    forward = ClipSimilarity(clip, targets.concatenate([own, others]))
    method = DirectContribution(forward)
    with torch.no_grad():
        features = clip.image_features(pixels)
        scores, cosines = forward.score(features).float().cpu().chunk(2, 1)
        better = share_of_better(clip, F.normalize(features.float(), dim=-1), own.names, scores)
    sums: dict[str, Any] = {"scores": scores, "text": cosines, "better": better}
    totals = [cosines]
    if "regions" not in refused:
        vectors = method.vectors(pixels, return_rest=True)
        sums |= _projected(vectors, _NEEDS["grids"], along)
        totals.append(sums["regions"].sum((-2, -1)) + sums["outside"])
    if "heads" not in refused:
        vectors, parts = method.head_parts(pixels)
        sums["parts"] = (*parts, vectors.heads.shape[1:3])
        totals += _projected([vectors.embeddings], ["whole"], along).values()
    # each is of a forward of its own
    if max(float((total - cosines).abs().max()) for total in totals) > ROUNDING[clip.dtype]:
        raise UnsupportedModelError(
            f"{clip.name} gives the same image a different embedding each time."
        )
    return sums


def _projected(vectors: Any, names: Iterable[str], target: Target) -> dict[str, Tensor]:
    """The products of some vectors (N, ..., E) with texts, (N, K, ...) by name."""
    directions = target.embeddings.float().cpu()
    pairs = zip(names, vectors, strict=True)
    return {k: torch.einsum("b...e,ke->bk...", v.float().cpu(), directions) for k, v in pairs}


def _at_mean_scale(old: dict[str, Any], new: dict[str, Any], along: Target) -> HeadVectors:
    """Add the sums by head, of which either model's way to the embedding makes a half; the change.

    What is left of the scores is the scale.
    """
    (before, embed, shape), (after, other, _) = old.pop("parts"), new.pop("parts")
    sides = []
    for sums, parts in ((old, before), (new, after)):
        vectors = (embed(parts).float().cpu() + other(parts).float().cpu()) / 2
        by_layer = vectors[:, :-1].reshape(len(vectors), shape[0], -1, vectors.shape[-1])
        sides.append(HeadVectors.split(by_layer, shape[1], vectors[:, -1]))
        sums |= _projected((*sides[-1], sides[-1].embeddings), _BY_HEAD, along)
        sums["scale"] = sums["text"] - sums["scale"]
    return HeadVectors(*(b - a for a, b in zip(*sides, strict=True)))


def _columns(change: Change, is_after: bool) -> dict[str, Tensor]:
    """What a table has of a change, or of its model after, (N, K, ...) by name."""
    sums = {name: v[1] if is_after else v[1] - v[0] for name, v in change.sums.items()}
    columns = {"score": sums["scores"]}
    if not is_after and "text" not in change.refused:
        columns |= {"image tower": sums["scores"] - sums["text"], "text tower": sums["text"]}
    if "heads" in sums:
        heads, mlps = sums["heads"], sums["mlps"]
        layers = heads.sum(-1) + (mlps if mlps.shape[-1] else 0)
        columns |= {"layer": layers, "rest": sums["rest"], "scale": sums["scale"]}
        columns |= {"head": heads, "mlp": mlps}
    return columns


def _tested(what: str, family: Sequence[Any], values: Sequence[Tensor], seed: int) -> list[Moved]:
    """The rows of m tests (text, layer, head) from one or two groups of values (N, m)."""
    groups = [np.where(each.abs() > _UNMOVED, each.double(), 0.0) for each in values]
    count = max(2000, 80 * len(family))  # so that the least p value is .03 after Holm
    means = [resample(g, resamples=count, seed=seed + i) / len(g) for i, g in enumerate(groups)]
    cells = [difference_of(column) for column in (means[0] - sum(means[1:])).T]
    if (fewest := min(map(len, values))) == 1:
        cells = [cell._replace(low=nan, high=nan) for cell in cells]
    p_values = holm([cell.p_value for cell in cells]) if fewest >= FEWEST else [nan] * len(cells)
    rows = zip(family, cells, p_values, strict=True)
    return [Moved._make((what, *place, *cell[:3], float(p))) for place, cell, p in rows]
