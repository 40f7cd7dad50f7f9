"""Does an object speak for a text or a word? Against scenes redrawn with every subset."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps, metrics, targets
from ...attr import DirectInteraction
from ...metrics.faithfulness import mean_over_orders, right_signs
from ...metrics.map_statistics import spearman
from ...similarity import ClipPairSimilarity
from ..batch import Batch, Measure, MethodOnBatch, Task, View, finite_indices, queries_of
from ..table import listed, rows_of
from ..units import Arrays

_DEPTHS: Final = {"direct": "pooling", "conservative": "all"}
"""Methods that take both embeddings apart -> how deep."""


def _pairs_of(mass: Tensor, effect: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Masses (texts, objects) and their exact effects, where known, of all pairs and of others.

    The end of a metric's name comes first; of others the text names another object.
    """
    exact = effect.isfinite().to(mass.device)
    others = ~torch.eye(len(mass), dtype=torch.bool, device=mass.device)
    for end, kept in (("", exact), ("_others", exact & others)):
        if kept.any():
            yield end, mass[kept], effect.to(mass)[kept]


def _of_scene(
    metric: str, view: View, values: Mapping[str, Tensor], *, chance: float = math.nan
) -> Arrays:
    """The row of a whole scene, which has no region."""
    single = {column: value[None] for column, value in values.items()}
    return rows_of(metric, single, [view.number], [""], chance=chance)


def _ranks(metric: str, view: View, mass: Tensor, effect: Tensor) -> Iterator[Arrays]:
    """The rank correlation within a scene, which needs two pairs; 0 with a constant."""
    if len(mass) > 1:
        yield _of_scene(metric, view, {"": spearman(mass, effect)}, chance=0)


def _measure_effect(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Samples of which a map is missing are left out."""
    numbers = batch.regions.numbers
    for view in batch.samples.views:
        kept = [i for i, number in enumerate(numbers) if number == view.number]
        complete = len(kept) == len(view.regions)
        if complete and len(finite_indices(batch.signed[kept])) == len(kept):
            mass = metrics.object_mass(batch.signed[kept].double(), view.masks)
            yield from _effect_rows(batch.samples, view, mass)


def _effect_rows(samples: Batch, view: View, mass: Tensor) -> Iterator[Arrays]:
    """Compare (texts, objects) with the exact effects of a scene that is drawn with each subset."""
    scores = samples.subset_scores.get(view.number)
    if scores is None:
        return
    exact = {"removal": removals(scores)}
    if scores.isfinite().all():
        exact = {"effect": metrics.shapley_effects(scores), **exact}
    for name, effect in exact.items():
        for end, *pairs in _pairs_of(mass, effect):
            yield from _ranks(f"{name}_spearman_scene{end}", view, *pairs)
            right, rises, falls = right_signs(*pairs)
            yield _of_scene(f"{name}_agreement{end}", view, {"": right.mean()})
            counts = {"risen": right[rises].sum(), "rises": rises.sum()}
            counts |= {"fallen": right[falls].sum(), "falls": falls.sum()}
            yield _of_scene(f"{name}_balanced{end}", view, counts)


def _predict_effect(answer: Callable[[Batch, View], Tensor]) -> Measure:
    """Measure an answer (texts, objects) that looks at no map."""
    return lambda samples: chain.from_iterable(
        _effect_rows(samples, view, answer(samples, view).double())
        for view in samples.views
        if view.number in samples.subset_scores
    )


def _text_products(samples: Batch, view: View) -> Tensor:
    texts = samples.context.encode([region.text for region in view.regions])
    return texts @ texts.T


EFFECT: Final = Task(
    lambda config: listed("effect"),
    _measure_effect,
    ("scenes",),
    without_map={
        "named": _predict_effect(lambda samples, view: torch.eye(len(view.regions))),
        "score": _predict_effect(
            lambda samples, view: samples.subset_scores[view.number][:, -1:].expand(
                -1, len(view.regions)
            )
        ),
        "text-only": _predict_effect(_text_products),
        "always-negative": _predict_effect(
            lambda samples, view: -torch.ones(len(view.regions), len(view.regions))
        ),
    },
)
"""Signed mass in each object against the object's exact Shapley effect."""


def removals(scores: Tensor) -> Tensor:
    """The whole scene's scores less those of the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    without = [whole ^ (1 << place) for place in range(whole.bit_length())]
    return scores[:, whole:] - scores[:, without]


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
    return table[..., -1], mean_over_orders(table)


class _Scene(NamedTuple):
    """A view with the caption of all its n objects, and the truth."""

    view: View
    words: list[str]
    caption: str
    directions: Tensor  # (n, D), the caption's unit embedding less that without each word
    changes: Tensor  # (n,), what each word adds to the score of the whole scene
    truths: dict[str, Tensor]  # (n words, n objects)


def _scenes(samples: Batch) -> Iterator[_Scene]:
    """Scenes of two objects or more that are drawn with every subset of them.

    A word is a text of the sample's regions, article and all; the caption joins them by "and", and
    what is left without a word is the caption of the others.
    """
    for view in samples.views:
        complete = view.sample.subsets and all(view.sample.subsets)
        if complete and 2 <= len(view.regions) == len(view.sample.regions):
            yield samples.remember(f"pairs of {view.number}", partial(_scene, samples, view))


def _measure_pairs(batch: MethodOnBatch) -> Iterator[Arrays]:
    for scene in _scenes(batch.samples):
        for name, heatmap in _estimates(batch, scene):
            yield from _agreement(name, scene, heatmap.detach().double())


def _predict_pairs(answer: Callable[[Batch, _Scene], Tensor]) -> Measure:
    """Measure an answer (words, objects) that looks at no map, next to each estimator."""
    return lambda samples: chain.from_iterable(
        _pair_rows(estimator, scene, answer(samples, scene).double())
        for scene in _scenes(samples)
        for estimator in ("share", "difference", "product")
    )


PAIRS: Final = Task(
    lambda config: listed("pairs"),
    _measure_pairs,
    ("scenes",),
    by_default=False,
    without_map={
        "named": _predict_pairs(lambda samples, scene: torch.eye(len(scene.words))),
        "score": _predict_pairs(
            lambda samples, scene: scene.changes[:, None].expand(-1, len(scene.words))
        ),
        "text-only": _predict_pairs(
            lambda samples, scene: scene.directions @ samples.context.encode(scene.words).T
        ),
    },
)
"""Signed mass of each word's map in each object against their exact interaction."""


def _scene(samples: Batch, view: View) -> _Scene:
    words = [region.text for region in view.regions]
    texts = [
        " and ".join(word for bit, word in enumerate(words) if subset >> bit & 1)
        for subset in range(2 ** len(words))
    ]
    context = samples.context
    embeddings = context.encode(texts)
    images = [image for image in view.sample.subsets if image]
    scores = context.scores(context.clip.preprocess(images), embeddings).T
    truths = dict(zip(("interaction", "index"), exact_interactions(scores), strict=True))
    without = [(len(texts) - 1) ^ (1 << bit) for bit in range(len(words))]
    directions = embeddings[-1:] - embeddings[without]
    changes = scores[-1, -1] - scores[without, -1]
    return _Scene(view, words, texts[-1], directions, changes, truths)


def _estimates(batch: MethodOnBatch, scene: _Scene) -> Iterator[tuple[str, Tensor]]:
    """The maps (n, h, w) of the words by each estimator that the method has."""
    norms = scene.directions.norm(dim=1)[:, None, None]
    views = [scene.view] * len(scene.words)
    queries = queries_of(views, F.normalize(scene.directions, dim=1), scene.words)
    kept, raw = batch.compute_finite(queries)
    if len(kept) == len(queries):
        negative = batch.compute_negative(queries, raw)
        signed = maps.positive(raw) - (0 if negative is None else negative)
        if len(finite_indices(signed)) == len(queries):
            yield "difference", signed * norms
    if batch.method.name not in _DEPTHS:
        return
    ids, mask = batch.clip.text_inputs(scene.caption)
    shares, rest = DirectInteraction(ClipPairSimilarity(batch.clip)).attribute(
        (scene.view.pixels[None], ids),
        additional_forward_args=mask,
        return_rest=True,
        depth=_DEPTHS[batch.method.name],
    )
    pieces, tokens = iter(targets.word_tokens(batch.clip, scene.caption)), []
    for word in scene.words:
        tokens.append([place for _ in word.split() for place in next(pieces)[1]])
        next(pieces, None)  # "and"
    yield "share", torch.stack([shares[0, places].sum(0) for places in tokens])
    by_token = (shares.sum((-2, -1)) + rest.other)[0]  # (T,), what a TextSimilarity has
    values = torch.stack([by_token[places].sum() for places in tokens])
    yield "product", values[:, None, None] * (shares.sum(1) + rest.image)  # the caption's map


def _agreement(name: str, scene: _Scene, heatmap: Tensor) -> Iterator[Arrays]:
    """Rows of the words, and of all pairs of a word and an object together.

    Hits are ratios, so that the report draws no map of the text "a horse" in place of the word's.
    """
    hits = metrics.pointing_game(heatmap, scene.view.masks)
    parts = {"numerator": hits, "denominator": torch.ones_like(hits)}
    yield rows_of(f"{name}_pointing", parts, [scene.view.number] * len(hits), scene.words)
    yield from _pair_rows(name, scene, metrics.object_mass(heatmap, scene.view.masks))


def _pair_rows(name: str, scene: _Scene, mass: Tensor) -> Iterator[Arrays]:
    """Compare (words, objects) with the exact interactions."""
    for truth, effect in scene.truths.items():
        for end, *pairs in _pairs_of(mass, effect):
            yield from _ranks(f"{name}_{truth}_scene{end}", scene.view, *pairs)
