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
from ..batch import MethodOnBatch, ModelContext, Task, View, finite_indices, queries_of
from ..config import EvaluationConfig
from ..run import Arrays
from ..table import Metric, rows_of

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

    A word is a text of the sample's regions, article and all; the caption joins all of them by
    "and", and what is left without a word is the caption of the others. A row is a pair of a word
    and an object, "a horse / a dog". A ratio has the mean over rows, so that the report does not
    draw the map of the text "a horse" as that of the word in its caption.
    """
    views = [v for v in maps.batch.views if 2 <= len(v.regions) == len(v.sample.regions)]
    views = [view for view in views if view.sample.subsets]
    scenes = maps.batch.remember(
        "scenes with captions", lambda: [_scene(maps.context, view) for view in views]
    )
    if not scenes:
        return
    estimates = {"difference": _differences(maps, scenes)}
    if maps.method.name in _DEPTHS:
        estimates |= _shares(maps, scenes)
    for name, of_scenes in estimates.items():
        for scene, heatmap in zip(scenes, of_scenes, strict=True):
            if len(finite_indices(heatmap)) == len(heatmap):
                yield from _agreement(name, scene, heatmap.double())


PAIRS: Final = Task(_pairs_metrics, _measure_pairs, by_default=False)
"""Signed mass of each word's map in each object against their exact interaction."""


def _scene(context: ModelContext, view: View) -> _Scene:
    words = [region.text for region in view.regions]
    texts = [
        " and ".join(word for bit, word in enumerate(words) if subset >> bit & 1)
        for subset in range(2 ** len(words))
    ]
    embeddings = context.encode(texts)
    scores = context.scores(context.clip.preprocess(list(view.sample.subsets)), embeddings).T
    truths = dict(zip(_TRUTHS, exact_interactions(scores), strict=True))
    without = [(len(texts) - 1) ^ (1 << bit) for bit in range(len(words))]
    return _Scene(view, texts[-1], embeddings[-1:] - embeddings[without], truths)


def _differences(maps: MethodOnBatch, scenes: Sequence[_Scene]) -> list[Tensor]:
    """The method's signed map (n, h, w) of what each word adds; NaN where it has none."""
    owners = [scene.view for scene in scenes for _ in scene.directions]
    texts = [region.text for scene in scenes for region in scene.view.regions]
    directions = torch.cat([scene.directions for scene in scenes])
    queries = queries_of(owners, F.normalize(directions, dim=1), texts)
    kept, raw = maps.compute_finite(queries)
    signed = resizing.positive(raw) if kept else raw
    if kept and (negative := maps.compute_negative(queries.part(kept), raw)) is not None:
        signed = signed - negative
    whole = signed.new_full((len(texts), *signed.shape[1:]), torch.nan)
    whole[kept] = signed * directions.norm(dim=1)[kept, None, None]
    return list(torch.split(whole, [len(scene.directions) for scene in scenes]))


def _shares(maps: MethodOnBatch, scenes: Sequence[_Scene]) -> dict[str, list[Tensor]]:
    """The rows (n, h, w) of the words among all shares, and the products of both sides' sums."""
    clip, method = maps.clip, DirectInteraction(ClipPairSimilarity(maps.clip))
    found: dict[str, list[Tensor]] = {"share": [], "product": []}
    size = maps.config.batch_size
    for part in (scenes[start : start + size] for start in range(0, len(scenes), size)):
        pixels = torch.stack([scene.view.pixels for scene in part])
        ids, mask = clip.text_inputs([scene.caption for scene in part])
        attribute = partial(method.attribute, additional_forward_args=mask, return_rest=True)
        shares, rest = attribute((pixels, ids), depth=_DEPTHS[maps.method.name])
        by_token = shares.sum((-2, -1)) + rest.other  # (B, T), what a TextSimilarity has
        by_place = shares.sum(1) + rest.image  # (B, h, w), the map of the caption
        for index, scene in enumerate(part):
            tokens = _tokens(maps, scene)
            rows = torch.stack([shares[index, own].sum(0) for own in tokens])
            values = torch.stack([by_token[index, own].sum() for own in tokens])
            found["share"].append(rows.detach())
            found["product"].append((values[:, None, None] * by_place[index]).detach())
    return found


def _tokens(maps: MethodOnBatch, scene: _Scene) -> list[list[int]]:
    """The positions of the tokens of each word, which may be several with blanks between them."""
    pieces, tokens = iter(targets.word_tokens(maps.clip, scene.caption)), []
    for region in scene.view.regions:
        tokens.append([place for _ in region.text.split() for place in next(pieces)[1]])
        next(pieces, None)  # "and"
    return tokens


def _agreement(name: str, scene: _Scene, heatmap: Tensor) -> Iterator[Arrays]:
    view = scene.view
    texts = [region.text for region in view.regions]
    hits = metrics.pointing_game(heatmap, view.masks)
    yield _mean_rows(f"{name}_pointing", hits, view, texts)
    mass = metrics.object_mass(heatmap, view.masks)  # (n words, n objects)
    pairs = [(word, thing) for word in texts for thing in texts]
    others = [place for place, (word, thing) in enumerate(pairs) if word != thing]
    for truth, effect in scene.truths.items():
        for end, kept in (("", list(range(len(pairs)))), ("_others", others)):
            both = {"mass": mass.flatten()[kept], "effect": effect.to(mass).flatten()[kept]}
            regions = [" / ".join(pairs[place]) for place in kept]
            yield rows_of(f"{name}_{truth}{end}", both, [view.number] * len(kept), regions)
            ranks = spearman(both["mass"], both["effect"]).nan_to_num()[None]
            yield _mean_rows(f"{name}_{truth}_scene{end}", ranks, view, [scene.caption])


def _mean_rows(metric: str, values: Tensor, view: View, regions: Sequence[str]) -> Arrays:
    parts = {"numerator": values, "denominator": torch.ones_like(values)}
    return rows_of(metric, parts, [view.number] * len(regions), regions)
