r"""What a training changed: the difference of two models' scores by region, head and MLP, exactly.

With the unit embeddings e and t of an image and a text before, :math:`e'` and :math:`t'` after,

.. math:: e' \cdot t' - e \cdot t = (e' - e) \cdot t + e' \cdot (t' - t)

The first term is what the image tower changed. It is a sum over regions, the difference of two maps
of :class:`captum_clip.DirectContribution`, and another sum over heads and MLPs. Each head or MLP
adds an output x to the pooled token. A linear map J leads from there to the unit embedding, with
norm, gates and length as constants of the image. The head or MLP changed

.. math:: \tfrac{1}{2} (J + J') (x' - x) \cdot t

which is zero where weights and inputs are the same. The change of J itself is the scale: it comes
from the norm's deviation and the embedding's length. If their weights changed, the last norm, the
projection and a pool's MLP are in the scale as well.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import nan
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from .. import targets
from ..attr import DirectContribution, HeadVectors
from ..checks import check_integer, check_nonempty, check_texts, expect, show
from ..errors import InputError, UnsupportedModelError, public, warn
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
from ..visualization.grid import Panel, Row, grid
from .heads import Head, TextSpan, batches_of, describe_heads

_Place: TypeAlias = tuple[str, int | None, int | None]
"""A text, a layer and a head."""
_BY_HEAD: Final = (*HeadVectors._fields, "scale")
_BY_REGION: Final = ("regions", "outside")
_RULED_OUT: Final[dict[str, tuple[str, ...]]] = {
    "layers and heads": _BY_HEAD,
    "widths": _BY_HEAD,
    "grids": _BY_REGION,
    "embedding sizes": ("text", *_BY_HEAD, *_BY_REGION),
}
"""Sums that cannot be compared between two models that differ in a property."""
_UNMOVED: Final = 1e-6
"""A smaller change of a cosine is rounding, even if it has the same sign in many images."""
_MEAN: Final = "none but a mean"
"""The layers and heads of a tower that pools by a mean."""
_PIXELS: Final = 0.01
"""Pixels are different from this root mean square on; libraries differ by .001, bilinear and
bicubic by .017."""


class Moved(NamedTuple):
    """A row of a table: a part of the score of a text, and its mean over images with an interval.

    Attributes:
        what: "score"; for parts of the score "image tower" and "text tower"; for parts of the image
            tower "layer", "rest" and "scale"; for parts of a layer "head" and "mlp".
        text: the text whose score it is.
        layer: from 0; None for a part that is in no layer.
        head: of the layer; None for a part that is no head.
        mean: mean of the change, or the difference of the means of two groups of images.
        low: lower end of the 95 % interval; like `high`, NaN for a single image.
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
    """Make a property that reads the change of a sum, or raises if the models do not share it."""

    def read(change: "Change") -> Tensor:
        if name in change.refused:
            raise InputError(change.refused[name])
        before, after = change.sums[name]
        difference: Tensor = after - before
        return difference

    return property(read, doc=doc)


@dataclass(frozen=True, eq=False)
class Change:
    r"""The difference of two models' scores of N images and K texts, and the sums that make it up.

    ``scores[1] - scores[0]`` is ``text`` plus what the image tower changed, which is
    ``regions.sum((-2, -1)) + outside``, and also
    ``heads.sum((-2, -1)) + mlps.sum(-1) + rest + scale``. All of these are signed. ``change[rows]``
    is the change in some of the images. Reading a sum that the two models do not have in common
    raises InputError.

    Attributes:
        models: names of the model before and of the one after.
        names: the K texts.
        images: uint8 (N, 3, H, W), as the model before saw them.
        sums: (2, N, K, ...) by name, before and after; the other attributes are their differences.
            Regions and heads are products with the texts of the model before. The scale is the
            remainder of a score whose parts pass the mean of both models' linear maps.
        refused: name of each sum that the models do not have in common, and why.
        vectors: the change of the image embedding without the scale, on the CPU.
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
        vectors = None
        if self.vectors is not None:
            vectors = HeadVectors(*(tensor[rows] for tensor in self.vectors))
        sums = {name: values[:, rows] for name, values in self.sums.items()}
        return replace(self, images=self.images[rows], sums=sums, vectors=vectors)

    @public("table")
    def table(self, against: "Change | None" = None, *, seed: int = 0) -> list[Moved]:
        """List what moved most: texts, towers, layers, heads and MLPs, each the largest first.

        Intervals are bootstraps over images, of 2,000 resamples, or more where Holm's factor would
        hide every difference. `against` is a change in other images. With it the rows say what
        makes the scores of the model after larger in these images than in those.
        """
        changes = [self]
        if against is not None:
            changes.append(against)
        groups = []
        for change in changes:
            if len(change) > 0:
                groups.append(_parts_of_scores(change, only_after=against is not None))
        table = []
        for what in groups[0]:
            rows = []
            values = [parts[what] for parts in groups]
            for family, tests in _families(self.names, values):
                rows += _tested(what, family, tests, seed)
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

        An image is wrong if its best text to the model after is `predicted`, and right if that is
        `actual`. ``wrong.table(right)`` has the heads that the mistakes have in common.

        Raises:
            InputError: a text that was not compared, or no image with that mistake.
        """
        for name in (actual, predicted):
            expect(name in self.names, f"one of the texts {[*self.names]}", name)
        wrong_text = self.names.index(predicted)
        right_text = self.names.index(actual)
        sums = {}
        for name, values in self.sums.items():
            sums[name] = values[:, :, [wrong_text]] - values[:, :, [right_text]]
        contrast = replace(self, names=(f"{predicted} rather than {actual}",), sums=sums)
        best_text = self.scores[1].argmax(1)
        is_wrong = best_text == wrong_text
        expected = f"an image that is best called {predicted!r} by {self.models[1]}"
        expect(is_wrong.any(), expected, 0)
        return contrast[is_wrong], contrast[best_text == right_text]

    @public("plot")
    def plot(self, *, count: int = 6) -> Figure:
        """Draw the regions before, after, and their difference, in images whose scores moved most.

        Each image has the text that moved most in it, and its maps are on one scale. The numbers
        are cosines, and their difference.
        """
        check_integer("count", count)
        difference = self.regions
        regions = torch.stack([*self.sums["regions"], difference])  # (3, N, K, h, w)
        largest, texts = (self.scores[1] - self.scores[0]).abs().max(1)
        order = largest.argsort(descending=True)[:count]
        top = None
        if current_look.get().scale == "shared":
            top = float(regions[:, order, texts[order]].abs().max())
        rows: list[Row] = []
        for index in order.tolist():
            text = int(texts[index])
            before, after = self.scores[:, index, text].tolist()
            notes = [signed_number(number) for number in (before, after, after - before)]
            [pixels] = as_images(self.images[index : index + 1] / 255)
            lead = Panel(pixels, label=self.names[text])
            titles = (*self.models, "difference")
            raw = regions[:, index, text]
            rows += strip(pixels, raw, lead, titles, notes=notes, shared=True, top=top)
        legends = strip_legends("adds to the cosine", "takes away from it")
        caption = " \N{MIDDLE DOT} ".join([DirectContribution.name, *self.doubts])
        return grid(rows, legends=legends, caption=caption)


@public("compare")
def compare(
    before: Any, after: Any, images: Iterable[Any], texts: Sequence[str], *, batch_size: int = 16
) -> Change:
    """Compare what two models make of the same images and texts: a :class:`Change`.

    Three forwards per image and model. Regions need grids of one size, heads need the same number
    of heads in the same number of layers of one width, and all sums but scores need embeddings of
    one size. A warning says what is missing before anything is computed, and what differs besides
    the weights: tokens of the texts, sizes of the images, processors.

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
    clips = (load_clip(before), load_clip(after))
    batches = batches_of(images, batch_size)
    texts = check_texts(texts)
    first_batch = next(batches, [])
    check_nonempty("image", first_batch)
    refused: dict[str, str] = {}
    first_pixels = [clip.preprocess(first_batch) for clip in clips]
    for sentence, ruled_out in _differences(clips, first_pixels, texts):
        warn(sentence)
        refused |= dict.fromkeys(ruled_out, sentence)

    text_targets = [targets.text(clip, texts) for clip in clips]
    directions = list(text_targets)
    if "text" not in refused:
        # The parts of both models are products with the texts of the model before. With texts of
        # its own, a difference of parts would also contain what the text tower changed.
        directions[1] = text_targets[0]
    batch_sums: dict[str, list[Tensor]] = defaultdict(list)
    vectors: list[HeadVectors] = []
    better: list[Tensor] = []
    colors: list[Tensor] = []
    for batch in chain([first_batch], batches):
        pixels = [clip.preprocess(batch) for clip in clips]
        old = _summands(clips[0], pixels[0], text_targets[0], directions[0], refused)
        new = _summands(clips[1], pixels[1], text_targets[1], directions[1], refused)
        if "heads" not in refused:
            vectors.append(_at_mean_scale(old, new, directions[0]))
        # What the text tower changed is e'.(t' - t): the model after has the images, with the texts
        # of the model before and then with its own.
        old.sums["text"] = new.sums["text"]
        new.sums["text"] = new.sums["scores"]
        for name, old_sum in old.sums.items():
            batch_sums[name].append(torch.stack([old_sum, new.sums[name]]))
        better.append(torch.minimum(old.better, new.better))
        colors.append((255 * clips[0].denormalize(pixels[0])).round().byte().cpu())
    joined = None
    if vectors:
        joined = HeadVectors(*(torch.cat(tensors) for tensors in zip(*vectors, strict=True)))
    return Change(
        models=(clips[0].name, clips[1].name),
        names=text_targets[0].names,
        images=torch.cat(colors),
        sums={name: torch.cat(sums, 1) for name, sums in batch_sums.items()},
        refused=refused,
        vectors=joined,
        doubts=count_doubts(texts, torch.cat(better)),
    )


def _differences(
    clips: Sequence[ClipAdapter], pixels: Sequence[Tensor], texts: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield how two models differ besides their weights, and the sums that this rules out."""
    names = " and ".join(clip.name for clip in clips)
    before = _properties(clips[0], pixels[0], texts)
    after = _properties(clips[1], pixels[1], texts)
    for name, value in before.items():
        # Two towers that read a mean are alike, and still have no heads.
        if value == after[name] and value != _MEAN:
            continue
        ruled_out = _RULED_OUT.get(name, ())
        consequence = ""
        if ruled_out:
            consequence = f", so {', '.join(ruled_out)} cannot be compared; the scores can"
        values = f"{show(value)} and {show(after[name])}"
        yield f"the {name} of {names} are {values}{consequence}.", ruled_out
    first, second = pixels[0].float().cpu(), pixels[1].float().cpu()
    if first.shape == second.shape and (first - second).square().mean().sqrt() > _PIXELS:
        yield f"the processors of {names} make different pixels from the same image.", ()


def _properties(clip: ClipAdapter, pixels: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """The properties of a model that should not differ from those of another."""
    size = pixels.shape[-2:]
    pooling = clip.tower.pooling
    attentions = clip.tower.attentions
    if pooling == "attention":
        attentions = attentions[-1:]
    layers_and_heads: Any = _MEAN
    if pooling != "mean":
        layers_and_heads = (len(attentions), attentions[0].heads)
    tokens = []
    for text in texts:
        # Libraries pad in different ways, so the padding is left out.
        ids, *_ = clip.text_inputs(text)
        tokens.append(ids[0, : clip.count_tokens(text)].tolist())
    weights: list[Tensor] = []
    for step in clip.tower.head:
        weights += step_parameters(step)
    return {
        "tokens": tokens,
        "image sizes": tuple(size),
        "layers and heads": layers_and_heads,
        "widths": tuple(weights[0].shape) if weights else (),
        "grids": clip.grid(*size),
        # A size that the model does not state takes a forward, so it comes last.
        "embedding sizes": clip.embedding_dim or clip.measured_dim(),
    }


class _HeadParts(NamedTuple):
    """The pooled token as a sum of parts by layer and head, and the map of a model from there."""

    parts: Tensor  # (N, n (H + 1) + 1, D), or without MLPs (N, n H + 1, D)
    embed: Callable[[Tensor], Tensor]  # to parts of the unit embedding, (N, m, E)
    layers: int
    heads: int


@dataclass(frozen=True)
class _Summands:
    """The sums of one model for N images and K texts.

    Attributes:
        sums: (N, K, ...) by name: under "scores" the cosines with the model's own texts, under
            "text" those with the directions, and the parts that add up to the latter.
        better: the share of unrelated texts that fit an image better, (N, K).
        head_parts: None if heads are not compared.
    """

    sums: dict[str, Tensor]
    better: Tensor
    head_parts: _HeadParts | None


def _summands(
    clip: ClipAdapter,
    pixels: Tensor,
    texts: Target,
    directions: Target,
    refused: Collection[str],
) -> _Summands:
    """Compute the cosines of images with texts and with directions, and the parts of the latter."""
    # Targets of two models cannot be joined, while a target of plain rows has no model.
    rows = targets.embedding(directions.embeddings, directions.names)
    forward = ClipSimilarity(clip, targets.concatenate([texts, rows]))
    method = DirectContribution(forward)
    with torch.no_grad():
        features = clip.image_features(pixels)
        scores, cosines = forward.score(features).float().cpu().chunk(2, 1)
        units = F.normalize(features.float(), dim=-1)
        better = share_of_better(clip, units, texts.names, scores)
    sums = {"scores": scores, "text": cosines}
    head_parts = None
    totals = [cosines]
    if "regions" not in refused:
        of_positions, rest = method.vectors(pixels, return_rest=True)
        sums["regions"] = _products(of_positions, directions)
        sums["outside"] = _products(rest, directions)
        totals.append(sums["regions"].sum((-2, -1)) + sums["outside"])
    if "heads" not in refused:
        vectors, (parts, embed) = method.head_parts(pixels)
        head_parts = _HeadParts(parts, embed, *vectors.heads.shape[1:3])
        totals.append(_products(vectors.embeddings, directions))
    # Each total comes from a forward of its own, so they show whether the model repeats itself.
    if max(float((total - cosines).abs().max()) for total in totals) > ROUNDING[clip.dtype]:
        raise UnsupportedModelError(
            f"{clip.name} gives the same image a different embedding each time."
        )
    return _Summands(sums, better, head_parts)


def _products(vectors: Tensor, directions: Target) -> Tensor:
    """The products of vectors (N, ..., E) with directions, (N, K, ...)."""
    rows = directions.embeddings.float().cpu()
    return torch.einsum("b...e,ke->bk...", vectors.float().cpu(), rows)


def _at_mean_scale(old: _Summands, new: _Summands, directions: Target) -> HeadVectors:
    """Add the sums by head to those of both models, and return the change of the vectors.

    Parts pass the mean of both models' linear maps. The scale is the remainder of the scores.
    """
    old_parts = old.head_parts
    new_parts = new.head_parts
    # The caller asks only where the models have their heads in common.
    assert old_parts is not None
    assert new_parts is not None
    sides = []
    for summands, parts in ((old, old_parts.parts), (new, new_parts.parts)):
        with_old_map = old_parts.embed(parts).float().cpu()
        with_new_map = new_parts.embed(parts).float().cpu()
        vectors = (with_old_map + with_new_map) / 2  # (N, m, E), the rest last
        by_layer = vectors[:, :-1].reshape(len(vectors), old_parts.layers, -1, vectors.shape[-1])
        of_heads = HeadVectors.split(by_layer, old_parts.heads, vectors[:, -1])
        for name, tensor in of_heads._asdict().items():
            summands.sums[name] = _products(tensor, directions)
        summands.sums["scale"] = summands.sums["text"] - _products(of_heads.embeddings, directions)
        sides.append(of_heads)
    before, after = sides
    return HeadVectors(*(later - earlier for earlier, later in zip(before, after, strict=True)))


def _parts_of_scores(change: Change, only_after: bool) -> dict[str, Tensor]:
    """The parts of scores that a table lists, (N, K, ...) by name.

    They are those of the change, or of the scores of the model after.
    """
    sums = {}
    for name, (before, after) in change.sums.items():
        sums[name] = after if only_after else after - before
    parts = {"score": sums["scores"]}
    if not only_after and "text" not in change.refused:
        parts["image tower"] = sums["scores"] - sums["text"]
        parts["text tower"] = sums["text"]
    if "heads" in sums:
        heads, mlps = sums["heads"], sums["mlps"]
        layers = heads.sum(-1)
        if mlps.shape[-1] > 0:
            layers = layers + mlps
        parts["layer"] = layers
        parts["rest"] = sums["rest"]
        parts["scale"] = sums["scale"]
        parts["head"] = heads
        parts["mlp"] = mlps
    return parts


def _families(
    names: Sequence[str], values: Sequence[Tensor]
) -> Iterator[tuple[list[_Place], list[Tensor]]]:
    """Split values (N, K, ...) of one or two groups into families of m tests: places, (N, m)."""
    if values[0].ndim == 2:
        # A part without a layer has one test for each text, and these tests are one family. The
        # layers, heads or MLPs of each text are a family of their own.
        yield [(name, None, None) for name in names], list(values)
        return
    for k, name in enumerate(names):
        family = []
        # Layers and MLPs are (N, K, n), and heads (N, K, n, H).
        for layer, *head in np.ndindex(values[0].shape[2:]):
            family.append((name, layer, head[0] if head else None))
        # A pool has no MLP of its own.
        if family:
            yield family, [group[:, k].flatten(1) for group in values]


def _tested(
    what: str, family: Sequence[_Place], values: Sequence[Tensor], seed: int
) -> list[Moved]:
    """The rows of a family of m tests, from the values (N, m) of one or two groups of images."""
    # Holm multiplies the least p value by m, and more resamples keep it at .03 or below.
    count = max(2000, 80 * len(family))
    means = []
    for index, group in enumerate(values):
        # Two groups are different images, so they are drawn independently, with seeds of their own.
        moved = torch.where(group.abs() > _UNMOVED, group.double(), 0.0).numpy()
        sums = resample(moved, resamples=count, seed=seed + index)
        means.append(sums / len(moved))  # (1 + R, m)
    differences = means[0] if len(means) == 1 else means[0] - means[1]
    tests = [difference_of(column) for column in differences.T]
    fewest = min(len(group) for group in values)
    # All resamples of a single image are the same, so they say nothing.
    if fewest == 1:
        tests = [test._replace(low=nan, high=nan) for test in tests]
    # With few images the bootstrap finds differences where there are none.
    p_values = [nan] * len(tests)
    if fewest >= FEWEST:
        p_values = holm([test.p_value for test in tests]).tolist()
    rows = []
    for (text, layer, head), test, p_value in zip(family, tests, p_values, strict=True):
        rows.append(Moved(what, text, layer, head, test.mean, test.low, test.high, p_value))
    return rows
