"""Which word answers which region? Against the exact interaction of word and object."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import comb
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps as resizing
from ... import metrics, targets
from ...attr import DirectInteraction
from ...metrics.map_statistics import spearman
from ...similarity import ClipPairSimilarity
from ..batch import MethodOnBatch, Task, View, finite_indices, queries_of
from ..config import EvaluationConfig
from ..table import Metric, rows_of
from ..units import Arrays

_DEPTHS: Final = {"direct": "pooling", "conservative": "all"}
"""Methods that take both embeddings apart -> how deep."""
_ESTIMATORS: Final = {
    "share": "the sum over the object of what the word's tokens share with each position, as "
    "DirectInteraction gives it",
    "difference": "the signed mass in the object of the map of what the word adds to the caption "
    "(targets.words), times that direction's length",
    "product": "the word's own value times the caption's mass in the object, both summed from the "
    "same shares: two maps of one side, which know nothing of pairs",
}
_TRUTHS: Final = {
    "interaction": "the exact interaction of word and object in the whole scene and caption",
    "index": "the Shapley interaction index of word and object, over all words and objects",
}
_PAIRS: Final = {"": "all pairs", "_others": "pairs where the word names another object"}


class _Scene(NamedTuple):
    """A view with the caption of all its n objects, and the truth."""

    view: View
    words: list[str]
    caption: str
    directions: Tensor  # (n, D), the caption's unit embedding less that without each word
    truths: dict[str, Tensor]  # (n words, n objects)


def exact_interactions(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""The exact interaction of each word and object, and their Shapley interaction index.

    With :math:`\Delta_{wo}(T) = y(T \cup wo) - y(T \cup w) - y(T \cup o) + y(T)`, the interaction
    is that of all N - 2 others, and the index the mean over all orders of the N players,

    .. math:: I_{wo} = \sum_{T \not\ni w, o} \frac{|T|! \, (N - |T| - 2)!}{(N - 1)!} \,
                       \Delta_{wo}(T)

    Args:
        scores: (2^n, 2^m), the cosine of every subset of the words with every subset of the
            objects; one is there where its bit of the index is set.

    Returns:
        Both (n, m), in double precision.

    Source: Grabisch and Roubens 1999.
    """
    words, objects = (size.bit_length() - 1 for size in scores.shape)
    players = words + objects
    cube = scores.double().reshape([2] * players)  # the highest bit of each side comes first
    gains = [
        cube.diff(dim=words - 1 - word).diff(dim=players - 1 - thing).flatten()
        for word in range(words)
        for thing in range(objects)
    ]
    table = torch.stack(gains).view(words, objects, -1)  # by the subset of the others
    sizes = [others.bit_count() for others in range(2 ** (players - 2))]
    orders = [(players - 1) * comb(players - 2, size) for size in sizes]
    return table[..., -1], (table / torch.tensor(orders).to(table)).sum(-1)


def _pairs_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    groups = {}
    for name, what in _ESTIMATORS.items():
        columns = [
            Metric(f"{name}_pointing", "maximum of the word's map in its object", "high", "ratio")
        ]
        for truth, exact in _TRUTHS.items():
            ranks = f"rank correlation of {what}, and {exact}"
            for end, pairs in _PAIRS.items():
                pooled = f"{ranks}; {pairs} of all scenes together"
                each = f"{ranks}; {pairs} of a scene, mean over scenes"
                columns += [
                    Metric(f"{name}_{truth}{end}", pooled, "high", "spearman", 0),
                    Metric(f"{name}_{truth}_scene{end}", each, "high", "ratio", 0),
                ]
        groups[f"Word and region: {name}"] = columns
    return groups


def _measure_pairs(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Scenes of two objects or more that are drawn with every subset of them.

    A word is a text of the sample's regions, article and all; the caption joins them by "and", and
    what is left without a word is the caption of the others.
    """
    for view in maps.batch.views:
        if view.sample.subsets and 2 <= len(view.regions) == len(view.sample.regions):
            scene = maps.batch.remember(f"pairs of {view.number}", partial(_scene, maps, view))
            for name, heatmap in _estimates(maps, scene):
                yield from _agreement(name, scene, heatmap.detach().double())


PAIRS: Final = Task(_pairs_metrics, _measure_pairs, by_default=False)
"""Signed mass of each word's map in each object against their exact interaction."""


def _scene(maps: MethodOnBatch, view: View) -> _Scene:
    words = [region.text for region in view.regions]
    texts = [
        " and ".join(word for bit, word in enumerate(words) if subset >> bit & 1)
        for subset in range(2 ** len(words))
    ]
    embeddings = maps.context.encode(texts)
    scores = maps.context.scores(maps.clip.preprocess(list(view.sample.subsets)), embeddings).T
    truths = dict(zip(_TRUTHS, exact_interactions(scores), strict=True))
    without = [(len(texts) - 1) ^ (1 << bit) for bit in range(len(words))]
    return _Scene(view, words, texts[-1], embeddings[-1:] - embeddings[without], truths)


def _estimates(maps: MethodOnBatch, scene: _Scene) -> Iterator[tuple[str, Tensor]]:
    """The maps (n, h, w) of the words by each estimator that the method has."""
    norms = scene.directions.norm(dim=1)[:, None, None]
    owners = [scene.view] * len(scene.words)
    queries = queries_of(owners, F.normalize(scene.directions, dim=1), scene.words)
    kept, raw = maps.compute_finite(queries)
    if len(kept) == len(queries):
        negative = maps.compute_negative(queries, raw)
        signed = resizing.positive(raw) - (0 if negative is None else negative)
        if len(finite_indices(signed)) == len(queries):
            yield "difference", signed * norms
    if maps.method.name not in _DEPTHS:
        return
    ids, mask = maps.clip.text_inputs(scene.caption)
    shares, rest = DirectInteraction(ClipPairSimilarity(maps.clip)).attribute(
        (scene.view.pixels[None], ids),
        additional_forward_args=mask,
        return_rest=True,
        depth=_DEPTHS[maps.method.name],
    )
    pieces, tokens = iter(targets.word_tokens(maps.clip, scene.caption)), []
    for word in scene.words:
        tokens.append([place for _ in word.split() for place in next(pieces)[1]])
        next(pieces, None)  # "and"
    yield "share", torch.stack([shares[0, own].sum(0) for own in tokens])
    by_token = (shares.sum((-2, -1)) + rest.other)[0]  # (T,), what a TextSimilarity has
    values = torch.stack([by_token[own].sum() for own in tokens])
    yield "product", values[:, None, None] * (shares.sum(1) + rest.image)  # the caption's map


def _agreement(name: str, scene: _Scene, heatmap: Tensor) -> Iterator[Arrays]:
    """A row of a pair is called "a horse / a dog", the word and the object.

    Means are ratios, so that the report draws no map of the text "a horse" in place of the word's.
    """

    def rows(metric: str, regions: Sequence[str], **parts: Tensor) -> Arrays:
        return rows_of(f"{name}_{metric}", parts, [scene.view.number] * len(regions), regions)

    hits = metrics.pointing_game(heatmap, scene.view.masks)
    yield rows("pointing", scene.words, numerator=hits, denominator=torch.ones_like(hits))
    mass = metrics.object_mass(heatmap, scene.view.masks)  # (n words, n objects)
    pairs = [f"{word} / {thing}" for word in scene.words for thing in scene.words]
    others = (~torch.eye(len(mass), dtype=torch.bool)).flatten().nonzero()[:, 0].tolist()
    for truth, effects in scene.truths.items():
        for end, kept in (("", list(range(len(pairs)))), ("_others", others)):
            m, effect = mass.flatten()[kept], effects.to(mass).flatten()[kept]
            yield rows(f"{truth}{end}", [pairs[i] for i in kept], mass=m, effect=effect)
            ranks = spearman(m, effect).nan_to_num()[None]
            parts = {"numerator": ranks, "denominator": torch.ones_like(ranks)}
            yield rows(f"{truth}_scene{end}", [scene.caption], **parts)
