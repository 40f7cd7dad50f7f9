"""Describe attention heads: the texts that each varies along, and what it adds to a score.

All of it is arithmetic on the vectors of :meth:`captum_clip.DirectContribution.vectors` by head.
These are direct paths to the embedding: what later layers make of a head is their share.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import nan
from typing import Final, NamedTuple, TypeAlias

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import targets
from ..attr import DirectContribution, HeadVectors
from ..attr.contributions import any_target
from ..checks import check_integer, check_nonempty, excerpt, expect, expecting
from ..errors import is_kind, public
from ..files import to_csv
from ..models import ClipAdapter, ImageLike
from ..models.images import pixels_of
from ..targets import Target
from ..targets.similarity import ClipSimilarity
from ..visualization.arrays import as_images
from ..visualization.charts import strip, strip_legends
from ..visualization.colors import signed_number
from ..visualization.grid import Panel, Row, grid

Head: TypeAlias = tuple[int, int]
"""A layer and a head in it, both from 0; a pool has layer 0 alone."""
_NEGLIGIBLE: Final = 1e-6
"""A smaller share of a length is rounding of float32."""
_RANDOM_DRAWS: Final = 16
"""How often random texts are drawn, to compare the chosen ones with."""


class TextSpan(NamedTuple):
    """The m texts that a head varies along, best first.

    Attributes:
        texts: their names.
        shares: m; entry k is the share of the variance of the head's outputs that the texts up to
            the k-th explain.
        random: the share that m texts drawn from the pool explain, a mean over 16 draws.
        value: the head's value by :func:`rank_heads`, or NaN without one.
    """

    texts: tuple[str, ...]
    shares: tuple[float, ...]
    random: float
    value: float = nan


def batches_of(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    """Yield images, given in a list or one after the other, in batches."""
    check_integer("batch_size", size)
    images = pixels_of(images)
    are_several = False
    if isinstance(images, Iterable) and not isinstance(images, str):
        # A tensor or an array of three dimensions is a single image.
        are_several = getattr(images, "ndim", 4) == 4
    expect(are_several, "images, in a list or one after the other", images)
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        yield batch


@public("head_vectors")
def head_vectors(
    clip: ClipAdapter, images: Iterable[ImageLike], *, batch_size: int = 16
) -> HeadVectors:
    """The vectors by head of images, computed in batches; a ViT-B/32 takes .3 MB per image.

    Raises:
        InputError: no image, or a model whose embedding no attention reads.
    """
    method = DirectContribution(ClipSimilarity(clip, any_target(clip)))
    batches = []
    for batch in batches_of(images, batch_size):
        vectors = method.vectors(clip.preprocess(batch), per="head")
        batches.append(HeadVectors(*(tensor.cpu() for tensor in vectors)))
    check_nonempty("image", batches)
    return HeadVectors(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


@public("text_span")
def text_span(outputs: Tensor, pool: Target, count: int, *, seed: int = 0) -> TextSpan:
    r"""Find the texts of a pool that explain most of the variance of a head's outputs: TextSpan.

    With the centered outputs :math:`C`, and the texts :math:`R` projected on their span, repeat

    .. math:: j = \arg\max_i |C R_i|^2, \quad u = R_j / |R_j|, \quad
        C \leftarrow C - C u u^T, \quad R \leftarrow R - R u u^T

    Args:
        outputs: of one head, (N, E), as ``vectors.heads[:, layer, head]``.
        pool: M texts.
        count: how many to find; fewer where the outputs or the texts have fewer dimensions.
        seed: of the random texts.

    Source: Gandelsman et al. 2024 (arXiv:2310.05916), Algorithm 1; the control is ours.
    """
    check_integer("count", count)
    fits = outputs.ndim == 2 and len(outputs) > 1 and outputs.dtype.itemsize > 2
    expect(fits, "outputs (N, E) of two images or more, in float32 or float64", outputs)
    outputs = outputs.double()
    _, values, axes = torch.linalg.svd(outputs - outputs.mean(0), full_matrices=False)
    # The bound is relative to all outputs, so that it holds for any number of images.
    rank = int((values > _NEGLIGIBLE * outputs.norm()).sum())
    values = values[:rank]
    axes = axes[:rank]  # (r, E)
    total = values.square().sum()
    with expecting(f"a Target of texts in {outputs.shape[1]} dimensions", pool):
        texts = pool.embeddings.to(axes) @ axes.T  # (M, r)
    # On its axes C is diagonal but for a rotation of the images, which changes no variance.
    centered = values.diag()  # (r, r)
    rows = texts
    chosen: list[int] = []
    for _ in range(min(count, rank)):
        variances = (rows @ centered.T).square().sum(1)
        best = int(variances.argmax())
        # All that is left of the outputs or of the texts is rounding.
        if variances[best] <= _NEGLIGIBLE**2 * total:
            break
        unit = rows[best] / rows[best].norm()
        centered = centered - torch.outer(centered @ unit, unit)
        rows = rows - torch.outer(rows @ unit, unit)
        chosen.append(best)

    def explained_share(indices: Sequence[int] | Tensor) -> float:
        # This projects on the span of the texts, which need not be independent.
        projection = torch.linalg.pinv(texts[indices]) @ texts[indices]
        return float((values[:, None] * projection).square().sum() / total)

    generator = torch.Generator().manual_seed(seed)
    random = 0.0
    for _ in range(_RANDOM_DRAWS):
        drawn = torch.randperm(len(texts), generator=generator)[: len(chosen)]
        random += explained_share(drawn)
    return TextSpan(
        texts=tuple(pool.names[index] for index in chosen),
        shares=tuple(explained_share(chosen[: k + 1]) for k in range(len(chosen))),
        random=random / _RANDOM_DRAWS,
    )


@public("rank_heads")
def rank_heads(vectors: HeadVectors, direction: Tensor | None = None) -> dict[Head, float]:
    """Return what each head adds along a direction, a mean over the images, largest first.

    The direction is a text, or the difference of two texts for their contrast. It is (E,), or
    (N, E) with one per image. Without a direction the value is the head's variance, as a share of
    the embedding's.
    """
    if direction is None:
        whole = vectors.embeddings.var(0, correction=0).sum()
        expect(whole > 0, "images that heads tell apart", len(vectors.rest))
        values = vectors.heads.var(0, correction=0).sum(-1) / whole
    else:
        with expecting("a direction (E,) or (N, E)", direction):
            along = direction.to(vectors.rest).expand_as(vectors.rest)
        values = torch.einsum("nlhe,ne->lh", vectors.heads, along) / len(along)
    heads_per_layer = values.shape[1]
    flat = values.flatten()
    ranked = {}
    for index in flat.argsort(descending=True, stable=True).tolist():
        ranked[divmod(index, heads_per_layer)] = float(flat[index])
    return ranked


@public("describe_heads")
def describe_heads(
    vectors: HeadVectors, pool: Target, direction: Tensor | None = None, *, count: int = 5
) -> dict[Head, TextSpan]:
    """The :func:`text_span` of every head that varies, by :func:`rank_heads` and in its order."""
    spans = {}
    for (layer, head), value in rank_heads(vectors, direction).items():
        span = text_span(vectors.heads[:, layer, head], pool, count)
        if span.texts:
            spans[layer, head] = span._replace(value=value)
    expect(spans, "images that heads tell apart", len(vectors.rest))
    return spans


@public("head_label")
def head_label(clip: ClipAdapter, head: Head, words: str = "") -> str:
    """The name of a head in a figure, with words about it if there are any.

    Raises:
        InputError: anything but a pair of a layer and a head.
    """
    expect(is_kind(head, Head), "a layer and a head of it, as in (11, 3)", head)
    layer, number = head
    if getattr(clip.tower, "pooling", "") == "cls":
        name = f"layer {layer}, head {number}"
    else:
        name = f"head {number} of the pool"
    return f"{name}: {words}" if words else name


@public("heads_table")
def heads_table(spans: Mapping[Head, TextSpan]) -> bytes:
    """A CSV file with a row for each text of each head; its share is that of all texts up to it.

    Raises:
        InputError: no head, or anything but a result of :func:`describe_heads`.
    """
    check_nonempty("head", spans)
    tables = []
    for (layer, head), span in spans.items():
        # Each head is a table of its own: columns of its texts and their shares, and constants.
        table = {
            "layer": layer,
            "head": head,
            "value": span.value,
            "random": span.random,
            "text": span.texts,
            "share": span.shares,
        }
        tables.append(table)
    return to_csv(*tables)


@public("heads_figure")
def heads_figure(
    clip: ClipAdapter,
    images: Sequence[ImageLike],
    vectors: HeadVectors,
    spans: Mapping[Head, TextSpan],
    *,
    examples: int = 3,
) -> Figure:
    """Draw each head with its texts, and the images in which it adds most to the first of them.

    Next to each image is the map of that head alone (``attribute(..., per="head")``) for that text.
    """
    expect(len(images) == len(vectors.rest), f"{len(vectors.rest)} images, as in vectors", images)
    check_nonempty("head", spans)
    rows: list[Row] = []
    for (layer, head), span in spans.items():
        target = targets.text(clip, span.texts[0])
        added = vectors.heads[:, layer, head] @ target.embeddings[0].to(vectors.rest)
        best = added.argsort(descending=True)[:examples].tolist()
        inputs = clip.preprocess([images[index] for index in best])
        method = DirectContribution(ClipSimilarity(clip, target))
        maps = method.attribute(inputs, per="head")[:, 0, layer, head]
        photos = as_images(clip.denormalize(inputs))
        row = Row()
        # The label stands left of the row, so only its first image has it.
        label = head_label(clip, (layer, head), excerpt(", ".join(span.texts), 200))
        for index, raw, pixels in zip(best, maps, photos, strict=True):
            lead = Panel(pixels, label=label)
            note = signed_number(float(added[index]))
            [panels] = strip(pixels, raw[None], lead, target.names, notes=[note])
            row += panels
            label = ""
        rows.append(row)
    legends = strip_legends("adds to the cosine", "takes away from it")
    return grid(rows, legends=legends, caption=f"{clip.name} ({DirectContribution.name})")
