"""What does an object add? Against scenes drawn with every subset of their objects.

Does an object speak for a text or a word, and which of three copies carries the score?
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps, metrics, targets
from ...attr.contributions import DirectInteraction
from ...metrics.faithfulness import mean_over_orders, right_signs
from ...metrics.map_statistics import spearman
from ...targets.similarity import ClipPairSimilarity
from ..batch import Batch, Measure, MethodOnBatch, Task, View, finite_indices, queries_of
from ..methods import around
from ..run import Arrays
from ..table import Table, listed, rows_of, table_of

_DEPTHS: Final = {"direct": "pooling", "conservative": "all"}
"""Methods that split both embeddings -> how deep."""


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


def _rank_rows(metric: str, view: View, mass: Tensor, effect: Tensor) -> Iterator[Arrays]:
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
            yield from _rank_rows(f"{name}_spearman_scene{end}", view, *pairs)
            right, rises, falls = right_signs(*pairs)
            yield _of_scene(f"{name}_agreement{end}", view, {"": right.mean()})
            counts = {"risen": right[rises].sum(), "rises": rises.sum()}
            counts |= {"fallen": right[falls].sum(), "falls": falls.sum()}
            yield _of_scene(f"{name}_balanced{end}", view, counts)


def _without_map(
    scenes: Callable[[Batch], Iterable[Any]],
    compare: Callable[[Batch, Any, Tensor], Iterator[Arrays]],
    answers: Mapping[str, Callable[[Batch, Any], Tensor]],
) -> dict[str, Measure]:
    """What measures each answer that looks at no map, a scene at a time."""

    def measure(answer: Callable[[Batch, Any], Tensor], samples: Batch) -> Iterator[Arrays]:
        for scene in scenes(samples):
            yield from compare(samples, scene, answer(samples, scene).double())

    return {name: partial(measure, answer) for name, answer in answers.items()}


EFFECT: Final = Task(
    lambda config: listed("effect"),
    _measure_effect,
    ("scenes",),
    without_map=_without_map(
        lambda samples: (view for view in samples.views if view.number in samples.subset_scores),
        _effect_rows,
        {
            "named": lambda _, view: torch.eye(len(view.regions)),
            "score": lambda samples, view: samples.subset_scores[view.number][:, -1:].expand(
                -1, len(view.regions)
            ),
            "text-only": lambda samples, view: (
                (texts := samples.context.encode([r.text for r in view.regions])) @ texts.T
            ),
            "always-negative": lambda _, view: -torch.ones(len(view.regions), len(view.regions)),
        },
    ),
)
"""Signed mass in each object against the object's exact Shapley effect."""


def removals(scores: Tensor) -> Tensor:
    """The whole scene's scores less those of the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    without = [whole ^ (1 << bit) for bit in range(whole.bit_length())]
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
            yield samples.remember(f"pairs of {view.number}", partial(_redrawn, samples, view))


def _measure_pairs(batch: MethodOnBatch) -> Iterator[Arrays]:
    for scene in _scenes(batch.samples):
        for name, heatmap in _estimates(batch, scene):
            yield from _word_rows(name, scene, heatmap.detach().double())


def _pairs_compared(samples: Batch, scene: _Scene, mass: Tensor) -> Iterator[Arrays]:
    """Compare an answer with the exact interactions next to each estimator."""
    for estimator in ("share", "difference", "product"):
        yield from _pair_rows(estimator, scene, mass)


PAIRS: Final = Task(
    lambda config: listed("pairs"),
    _measure_pairs,
    ("scenes",),
    by_default=False,
    without_map=_without_map(
        lambda samples: _scenes(samples),
        _pairs_compared,
        {
            "named": lambda _, scene: torch.eye(len(scene.words)),
            "score": lambda _, scene: scene.changes[:, None].expand(-1, len(scene.words)),
            "text-only": lambda samples, scene: (
                scene.directions @ samples.context.encode(scene.words).T
            ),
        },
    ),
)
"""Signed mass of each word's map in each object against their exact interaction."""


def _redrawn(samples: Batch, view: View) -> _Scene:
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
    return _Scene(view, words, texts[-1], directions, scores[-1, -1] - scores[without, -1], truths)


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
        tokens.append([token for _ in word.split() for token in next(pieces)[1]])
        next(pieces, None)  # "and"
    yield "share", torch.stack([shares[0, own].sum(0) for own in tokens])
    by_token = (shares.sum((-2, -1)) + rest.other)[0]  # (T,), what a TextSimilarity has
    values = torch.stack([by_token[own].sum() for own in tokens])
    yield "product", values[:, None, None] * (shares.sum(1) + rest.image)  # the caption's map


def _word_rows(name: str, scene: _Scene, heatmap: Tensor) -> Iterator[Arrays]:
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
            yield from _rank_rows(f"{name}_{truth}_scene{end}", scene.view, *pairs)


_TRUTHS: Final = ["adds", "removal"]
_FOLDS: Final = 5
_FEATURES: Final = "_features"
EFFECT_SPREAD: Final = "_spread"
"""Ends the metrics of the effects' standard deviation in a scene, with their size."""
Copies = tuple[View, Tensor, Tensor]


def _copies_of(samples: Batch) -> Iterator[Copies]:
    """Each view of all copies, the scores (2^n,) of their subsets, and both truths (2, n)."""
    for view in samples.views:
        if view.number in samples.subset_scores:
            scores = samples.subset_scores[view.number][:1].double()  # of the text of all copies
            yield view, scores[0], torch.cat([metrics.shapley_effects(scores), removals(scores)])


def copy_rows(kind: str, number: int, answers: Tensor, truths: Tensor) -> Iterator[Arrays]:
    """Compare an answer for n copies, (2, n) or (n,), with both truths (2, n)."""
    first, second = torch.triu_indices(truths.shape[1], truths.shape[1], 1)
    # Equal masses differ by rounding, of which no rank may be made.
    scale = answers.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    rounded = (answers.double() / scale).round(decimals=9).to(truths.device).expand_as(truths)
    for name, answer, effect in zip(_TRUTHS, rounded, truths, strict=True):
        gap, order = effect[first] - effect[second], answer[first] - answer[second]
        right = gap.abs() * (1 + order.sign() * gap.sign()) / 2
        share = {"numerator": right.sum()[None], "denominator": gap.abs().sum()[None]}
        rank = spearman(answer, effect)[None]
        yield rows_of(f"{kind}_{name}_rank", rank, [number], [""], chance=0)
        yield rows_of(f"{kind}_{name}_order", share, [number], [""])


def _measure_copies(kind: str, batch: MethodOnBatch) -> Iterator[Arrays]:
    scenes = [*_copies_of(batch.samples)]
    if not scenes:
        return
    texts = [view.regions[0].text for view, _, _ in scenes]
    queries = queries_of([view for view, _, _ in scenes], batch.context.encode(texts), texts)
    kept, raw = batch.compute_finite(queries)
    if not kept:
        return
    negative = batch.compute_negative(queries.select(kept), raw)
    signed = maps.positive(raw) - (0 if negative is None else negative)
    for index in finite_indices(signed):
        view, _, truths = scenes[kept[index]]
        mass = metrics.object_mass(signed[index].double(), view.masks)
        yield from copy_rows(kind, view.number, mass, truths)


def _describe_copies(
    kind: str, describe: Callable[[View], Tensor], samples: Batch
) -> Iterator[Arrays]:
    """Rows of features (n, F) with the truths, from which :func:`fitted` predicts."""
    for view, _, truths in _copies_of(samples):
        columns = {str(index): column for index, column in enumerate(describe(view).T)}
        columns |= dict(zip(_TRUTHS, truths, strict=True))
        names = [f"copy {index}" for index in range(len(view.masks))]
        yield rows_of(kind + _FEATURES, columns, [view.number] * len(names), names)
        for name, effect in zip(_TRUTHS, truths, strict=True):
            spread = {"deviation": effect.std()[None], "size": effect.abs().mean()[None]}
            yield rows_of(f"{kind}_{name}{EFFECT_SPREAD}", spread, [view.number], [""])


def _mean_colors(view: View) -> tuple[Tensor, Tensor]:
    """The mean colors (n, 3) of each copy, and of what is around it."""
    both = view.masks, around(view.masks) & ~view.masks.any(0)
    inside, outside = (torch.stack([view.pixels[:, m].mean(1) for m in each]) for each in both)
    return inside, outside


def _painted_over(samples: Batch, scene: Copies) -> Tensor:
    """What the score loses when a copy is painted over with the mean color around it."""
    view, scores, _ = scene
    pixels = torch.where(view.masks[:, None], _mean_colors(view)[1][:, :, None, None], view.pixels)
    text = samples.context.encode([view.regions[0].text])
    return scores[-1] - samples.context.scores(pixels, text)[:, 0].double()


def _contrast(view: View) -> Tensor:
    inside, around = _mean_colors(view)
    distance: Tensor = torch.linalg.vector_norm(inside - around, dim=1, keepdim=True)
    return distance


def _edges(view: View) -> Tensor:
    """The sum (n, 1) of the steps of brightness in each copy and at its rim."""
    bright = view.pixels.mean(0)
    steps = bright.diff(dim=0).abs()[:, 1:] + bright.diff(dim=1).abs()[1:]
    wide = F.max_pool2d(view.masks[:, None].float(), 3, 1, 1)[:, 0, 1:, 1:]
    sums: Tensor = torch.einsum("nij,ij->n", wide, steps)
    return sums[:, None]


def _placement(view: View) -> Tensor:
    """The center (n, 2) of each copy in [-1, 1], with both squares and the product."""
    axes = [torch.linspace(-1, 1, side, device=view.masks.device) for side in view.size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centers = torch.stack([grid[:, mask].mean(1) for mask in view.masks])
    return torch.cat([centers, centers.square(), centers.prod(1, keepdim=True)], 1)


def fitted(table: Table) -> Iterator[tuple[Arrays, Sequence[str]]]:
    """The rows of what contrast, edges and place predict, each scene by a fit to the other folds.

    Least squares of the effects on the features, both less their mean within a scene.
    """
    rows = table[table["metric"].astype(str).str.endswith(_FEATURES)]
    names = [*table["sample"].cat.categories]
    for (metric, method), chosen in rows.groupby(["metric", "method"], observed=True):
        kind, blocks = metric.removesuffix(_FEATURES), list[Arrays]()
        wide = chosen.pivot_table("value", ["sample", "region"], "part", observed=True)
        scene = wide.index.get_level_values("sample").map(names.index).to_numpy()
        centered = wide - wide.groupby("sample", observed=True).transform("mean")
        effects, features = centered[_TRUTHS].to_numpy(), centered.drop(columns=_TRUTHS).to_numpy()
        for fold in range(_FOLDS):
            held = scene % _FOLDS == fold
            weights = np.linalg.lstsq(features[~held], effects[~held])[0]
            for number in dict.fromkeys(scene[held].tolist()):
                here = scene == number
                pair = torch.from_numpy((features[here] @ weights).T), effects[here].T
                blocks += copy_rows(kind, number, pair[0], torch.from_numpy(pair[1]))
        yield table_of(method, {kind: blocks}), names


def _copies_task(kind: str, what: str) -> Task:
    answers: dict[str, Callable[[Batch, Copies], Tensor]] = {
        "named": lambda samples, scene: torch.ones(1),
        "score": lambda samples, scene: scene[1][-1:],
        "text-only": lambda samples, scene: torch.ones(1),
        "area": lambda samples, scene: torch.tensor([r.mask.sum() for r in scene[0].regions]),
        "painted": _painted_over,
        "other-truth": lambda samples, scene: scene[2].flip(0),
    }
    features = {"contrast": _contrast, "edges": _edges, "place": _placement}
    described = {name: partial(_describe_copies, kind, look) for name, look in features.items()}

    def compare(_: Batch, scene: Copies, answer: Tensor) -> Iterator[Arrays]:
        return copy_rows(kind, scene[0].number, answer, scene[2])

    predictors = _without_map(_copies_of, compare, answers) | described
    metrics = partial(listed, "copies", kind=kind, what=what)
    rivals = ("magnitude", "last-attention")
    return Task(
        lambda config: metrics(), partial(_measure_copies, kind), (kind,), True, predictors, rivals
    )


THIRDS: Final = _copies_task("thirds", "Each without another third")
"""Three copies, each without another third."""

IDENTICAL: Final = _copies_task("identical", "All pixel for pixel the same")
"""The same copy three times."""
