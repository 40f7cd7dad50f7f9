"""What each attention head says: the texts that it varies along, what it adds, what goes with it.

All of it is arithmetic on the vectors of :meth:`captum_clip.DirectContribution.vectors` by head,
which are direct paths to the embedding: what later layers make of a head is their share.
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
"""A layer and a head of it, from 0; a pool has layer 0 alone."""
_NEGLIGIBLE: Final = 1e-6  # share of a length below which it is rounding, in float32
_SETS: Final = 16  # of random texts


class TextSpan(NamedTuple):
    """The m texts that a head varies along, best first.

    Attributes:
        texts: their names.
        shares: m, the share of the variance of the head's outputs that the first k explain.
        random: the share that m texts drawn from the pool explain, a mean over 16 draws.
        value: of the head, by :func:`rank_heads`, where there is one.
    """

    texts: tuple[str, ...]
    shares: tuple[float, ...]
    random: float
    value: float = nan


def batches_of(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    """Images, in a list or one after the other, so many at a time."""
    check_integer("batch_size", size)
    images = pixels_of(images)
    several = isinstance(images, Iterable) and not isinstance(images, str)
    several = several and getattr(images, "ndim", 4) == 4
    expect(several, "images, in a list or one after the other", images)
    images = iter(images)
    while batch := list(islice(images, size)):
        yield batch


@public("head_vectors")
def head_vectors(
    clip: ClipAdapter, images: Iterable[ImageLike], *, batch_size: int = 16
) -> HeadVectors:
    """The vectors by head of images, a batch at a time; .3 MB an image of a ViT-B/32.

    Raises:
        InputError: no image, or a model whose embedding no attention reads.
    """
    method = DirectContribution(ClipSimilarity(clip, any_target(clip)))
    pixels = (clip.preprocess(batch) for batch in batches_of(images, batch_size))
    each = (method.vectors(batch, per="head") for batch in pixels)
    batches = [HeadVectors(*(tensor.cpu() for tensor in vectors)) for vectors in each]
    check_nonempty("image", batches)
    return concatenate(batches)


def concatenate(batches: Sequence[HeadVectors]) -> HeadVectors:
    """Join the vectors of several batches of images."""
    return HeadVectors(
        heads=torch.cat([vectors.heads for vectors in batches]),
        mlps=torch.cat([vectors.mlps for vectors in batches]),
        rest=torch.cat([vectors.rest for vectors in batches]),
    )


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
    rank = int((values > _NEGLIGIBLE * outputs.norm()).sum())  # whatever the number of images
    values, axes = values[:rank], axes[:rank]
    with expecting(f"a Target of texts in {outputs.shape[1]} dimensions", pool):
        total, texts = values.square().sum(), pool.embeddings.to(axes) @ axes.T  # (M, r)
    left, rows, chosen = values.diag(), texts, list[int]()  # C but for a rotation of the images
    for _ in range(min(count, rank)):
        variances = (rows @ left.T).square().sum(1)
        best = int(variances.argmax())
        if variances[best] <= _NEGLIGIBLE**2 * total:
            break
        unit = rows[best] / rows[best].norm()
        left, rows = (each - torch.outer(each @ unit, unit) for each in (left, rows))
        chosen.append(best)

    def share(indices: Sequence[int] | Tensor) -> float:
        span = torch.linalg.pinv(texts[indices]) @ texts[indices]  # projects on the texts
        return float((values[:, None] * span).square().sum() / total)

    m, generator = len(chosen), torch.Generator().manual_seed(seed)
    random = sum(share(torch.randperm(len(texts), generator=generator)[:m]) for _ in range(_SETS))
    shares = tuple(share(chosen[:k]) for k in range(1, m + 1))
    return TextSpan(tuple(pool.names[i] for i in chosen), shares, random / _SETS)


@public("rank_heads")
def rank_heads(vectors: HeadVectors, direction: Tensor | None = None) -> dict[Head, float]:
    """What each head adds along a direction, a mean over the images, largest first.

    The direction is (E,), or (N, E) with one for each image: a text, or the difference of two for
    their contrast. Without one it is the head's variance, as a share of the embedding's.
    """
    if direction is None:
        whole = vectors.embeddings.var(0, correction=0).sum()
        expect(whole > 0, "images that heads tell apart", len(vectors.rest))
        values = vectors.heads.var(0, correction=0).sum(-1) / whole
    else:
        with expecting("a direction (E,) or (N, E)", direction):
            along = direction.to(vectors.rest).expand_as(vectors.rest)
        values = torch.einsum("nlhe,ne->lh", vectors.heads, along) / len(along)
    order = values.flatten().argsort(descending=True, stable=True).tolist()
    return {divmod(index, values.shape[1]): float(values.flatten()[index]) for index in order}


@public("describe_heads")
def describe_heads(
    vectors: HeadVectors, pool: Target, direction: Tensor | None = None, *, count: int = 5
) -> dict[Head, TextSpan]:
    """The :func:`text_span` of every head that varies, by :func:`rank_heads` and in its order."""
    spans = {
        (i, j): text_span(vectors.heads[:, i, j], pool, count)._replace(value=value)
        for (i, j), value in rank_heads(vectors, direction).items()
    }
    varying = {head: span for head, span in spans.items() if span.texts}
    expect(varying, "images that heads tell apart", len(vectors.rest))
    return varying


@public("head_label")
def head_label(clip: ClipAdapter, head: Head, words: str = "") -> str:
    """The name of a head in a figure, with words about it if there are any.

    Raises:
        InputError: what is no pair of a layer and a head.
    """
    expect(is_kind(head, Head), "a layer and a head of it, as in (11, 3)", head)
    is_pool = getattr(clip.tower, "pooling", "") != "cls"
    name = f"head {head[1]} of the pool" if is_pool else f"layer {head[0]}, head {head[1]}"
    return f"{name}: {words}" if words else name


@public("heads_table")
def heads_table(spans: Mapping[Head, TextSpan]) -> bytes:
    """A CSV file with a row for each text of each head; shares are those of all texts up to it.

    Raises:
        InputError: no head, or what is not as :func:`describe_heads` returns it.
    """
    check_nonempty("head", spans)
    rows = (
        {"layer": layer, "head": head, "value": span.value, "random": span.random}
        | {"text": span.texts, "share": span.shares}
        for (layer, head), span in spans.items()
    )
    return to_csv(*rows)


@public("heads_figure")
def heads_figure(
    clip: ClipAdapter,
    images: Sequence[ImageLike],
    vectors: HeadVectors,
    spans: Mapping[Head, TextSpan],
    *,
    examples: int = 3,
) -> Figure:
    """Draw heads with their texts, and of the images those in which each adds most to its first.

    Next to each image is the map of that head alone (``attribute(..., per="head")``) for that text.
    """
    expect(len(images) == len(vectors.rest), f"{len(vectors.rest)} images, as in vectors", images)
    check_nonempty("head", spans)
    rows: list[Row] = []
    for (layer, head), span in spans.items():
        target, row = targets.text(clip, span.texts[0]), Row()
        added = vectors.heads[:, layer, head] @ target.embeddings[0].to(vectors.rest)
        best = added.argsort(descending=True)[:examples].tolist()
        inputs = clip.preprocess([images[index] for index in best])
        method = DirectContribution(ClipSimilarity(clip, target))
        maps = method.attribute(inputs, per="head")[:, 0, layer, head]
        label = head_label(clip, (layer, head), excerpt(", ".join(span.texts), 200))
        for index, raw, pixels in zip(best, maps, as_images(clip.denormalize(inputs)), strict=True):
            lead, note = Panel(pixels, label=label * (not row)), signed_number(float(added[index]))
            row += strip(pixels, raw[None], lead, target.names, notes=[note])[0]
        rows.append(row)
    legends = strip_legends("adds to the cosine", "takes away from it")
    return grid(rows, legends=legends, caption=f"{clip.name} ({DirectContribution.name})")
