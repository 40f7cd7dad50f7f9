"""What does an object add? Against scenes drawn with every subset of their objects.

Does an object speak for a text or a word, and which of three copies carries the score?
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

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
from ..table import Queries, Table, listed, rows_of, table_of

Scene = TypeVar("Scene")


def _predictors(
    scenes_of: Callable[[Batch], Iterable[Scene]],
    compare: Callable[[Batch, Scene, Tensor], Iterator[Arrays]],
    answers: Mapping[str, Callable[[Batch, Scene], Tensor]],
) -> dict[str, Measure]:
    """Measure each answer that looks at no map, one scene at a time."""

    def measure(answer: Callable[[Batch, Scene], Tensor], samples: Batch) -> Iterator[Arrays]:
        for scene in scenes_of(samples):
            mass = answer(samples, scene).double()
            yield from compare(samples, scene, mass)

    return {name: partial(measure, answer) for name, answer in answers.items()}


def _signed_maps(on_batch: MethodOnBatch, queries: Queries, raw: Tensor) -> Tensor:
    """Compute the positive minus the negative maps (N, h, w) of queries with finite maps."""
    positive = maps.positive(raw)
    negative = on_batch.compute_negative(queries, raw)
    if negative is None:
        return positive
    return positive - negative


def _known_pairs(mass: Tensor, effect: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Select the pairs of a text and an object whose exact effect is known.

    Args:
        mass: (texts, objects); text i names object i.
        effect: the same shape, NaN where it is not known.

    Yields:
        The end of a metric's name, masses (P,) and effects (P,): of all pairs first, and then of
        those whose text names another object. A selection without pairs is left out.
    """
    is_known = effect.isfinite().to(mass.device)
    names_another = ~torch.eye(len(mass), dtype=torch.bool, device=mass.device)
    for end, selected in (("", is_known), ("_others", is_known & names_another)):
        if selected.any():
            yield end, mass[selected], effect.to(mass)[selected]


def _scene_row(
    metric: str, view: View, values: Mapping[str, Tensor], *, chance: float = math.nan
) -> Arrays:
    """Make the row of a whole scene, which has no region, from the number () of each part."""
    columns = {part: value[None] for part, value in values.items()}
    return rows_of(metric, columns, [view.number], [""], chance=chance)


def _rank_rows(metric: str, view: View, mass: Tensor, effect: Tensor) -> Iterator[Arrays]:
    """Yield the rank correlation within a scene of two pairs or more; 0 with a constant."""
    if len(mass) > 1:
        yield _scene_row(metric, view, {"": spearman(mass, effect)}, chance=0)


# Objects: what each adds to the score of a text.


def _redrawn_views(samples: Batch) -> list[View]:
    """Return the views of scenes that are drawn with the subsets of their objects."""
    return [view for view in samples.views if view.number in samples.subset_scores]


def _measure_effect(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Leave out a scene if the map of any of its regions is missing or not finite."""
    numbers = on_batch.regions.numbers
    for view in _redrawn_views(on_batch.samples):
        rows = [row for row, number in enumerate(numbers) if number == view.number]
        if len(rows) < len(view.regions):
            continue
        signed = on_batch.signed[rows]
        if len(finite_indices(signed)) < len(rows):
            continue
        mass = metrics.object_mass(signed.double(), view.masks)
        yield from _effect_rows(on_batch.samples, view, mass)


def _effect_rows(samples: Batch, view: View, mass: Tensor) -> Iterator[Arrays]:
    """Compare masses (texts, objects) with the exact effects of the objects on the texts."""
    scores = samples.subset_scores[view.number]
    truths = {}
    # The Shapley effect needs every subset; a removal needs the subsets that lack one object.
    if scores.isfinite().all():
        truths["effect"] = metrics.shapley_effects(scores)
    truths["removal"] = removals(scores)
    for name, effect in truths.items():
        for end, pair_mass, pair_effect in _known_pairs(mass, effect):
            yield from _rank_rows(f"{name}_spearman_scene{end}", view, pair_mass, pair_effect)
            right, rises, falls = right_signs(pair_mass, pair_effect)
            yield _scene_row(f"{name}_agreement{end}", view, {"": right.mean()})
            counts = {
                "risen": right[rises].sum(),
                "rises": rises.sum(),
                "fallen": right[falls].sum(),
                "falls": falls.sum(),
            }
            yield _scene_row(f"{name}_balanced{end}", view, counts)


def _named_object(samples: Batch, view: View) -> Tensor:
    return torch.eye(len(view.regions))


def _whole_score(samples: Batch, view: View) -> Tensor:
    whole_scene = samples.subset_scores[view.number][:, -1:]
    return whole_scene.expand(-1, len(view.regions))


def _text_similarity(samples: Batch, view: View) -> Tensor:
    embeddings = samples.context.encode([region.text for region in view.regions])
    return embeddings @ embeddings.T


def _always_negative(samples: Batch, view: View) -> Tensor:
    return -torch.ones(len(view.regions), len(view.regions))


EFFECT: Final = Task(
    lambda config: listed("effect"),
    _measure_effect,
    ("scenes",),
    without_map=_predictors(
        _redrawn_views,
        _effect_rows,
        {
            "named": _named_object,
            "score": _whole_score,
            "text-only": _text_similarity,
            "always-negative": _always_negative,
        },
    ),
)
"""Signed mass in each object against the object's exact Shapley effect."""


def _subsets_without_one(count: int) -> list[int]:
    """Return the index of the subset of n objects that lacks each of them."""
    whole = 2**count - 1
    return [whole ^ (1 << bit) for bit in range(count)]


def removals(scores: Tensor) -> Tensor:
    """Return what the score of the whole scene loses without each object: (K, 2^n) -> (K, n)."""
    count = scores.shape[1].bit_length() - 1
    return scores[:, -1:] - scores[:, _subsets_without_one(count)]


# Pairs of a word and an object.


def exact_interactions(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""The exact interaction of each word and object, and their Shapley interaction index.

    With :math:`\Delta_{wo}(T) = y(T \cup wo) - y(T \cup w) - y(T \cup o) + y(T)`, the interaction
    is that of all N - 2 others, and the index the mean over all orders of the N players,

    .. math:: I_{wo} = \sum_{T \not\ni w, o} \frac{|T|! \, (N - |T| - 2)!}{(N - 1)!} \,
                       \Delta_{wo}(T)

    Args:
        scores: (2^n, 2^m), the cosine of every subset of the words with every subset of the
            objects. A word or object is in a subset where its bit of the index is set.

    Returns:
        Both (n, m), in double precision.

    Source: Grabisch and Roubens 1999.
    """
    word_count = scores.shape[0].bit_length() - 1
    object_count = scores.shape[1].bit_length() - 1
    player_count = word_count + object_count
    # The cube has a dimension of size 2 for each bit; the highest bit of each side comes first.
    cube = scores.double().reshape([2] * player_count)
    gains = []
    for word in range(word_count):
        for thing in range(object_count):
            with_word = cube.diff(dim=word_count - 1 - word)
            with_both = with_word.diff(dim=player_count - 1 - thing)
            gains.append(with_both.flatten())
    table = torch.stack(gains).view(word_count, object_count, -1)  # (n, m, subsets of the others)
    # The last subset is that of all others.
    return table[..., -1], mean_over_orders(table)


class _CaptionedScene(NamedTuple):
    """A view with the caption of all its n objects, and the exact interactions."""

    view: View
    words: list[str]
    caption: str
    directions: Tensor  # (n, D), the caption's unit embedding less that without each word
    changes: Tensor  # (n,), what each word adds to the score of the whole scene
    truths: dict[str, Tensor]  # (n words, n objects)


def _captioned_scenes(samples: Batch) -> Iterator[_CaptionedScene]:
    """Caption the scenes of two objects or more that are drawn with every subset of them.

    The scenes must show all their objects in the crop. They are remembered for the next method.
    """
    for view in samples.views:
        subsets = view.sample.subsets
        has_all_subsets = len(subsets) > 0 and all(subsets)
        shows_all_regions = len(view.regions) == len(view.sample.regions)
        if has_all_subsets and shows_all_regions and len(view.regions) >= 2:
            key = f"pairs of {view.number}"
            yield samples.remember(key, partial(_caption_scene, samples, view))


def _caption_scene(samples: Batch, view: View) -> _CaptionedScene:
    """Score every subset of the words with every subset of the objects.

    A word is the text of a region with its article. The caption joins all words by "and", and
    without a word it is the caption of the others.
    """
    words = [region.text for region in view.regions]
    captions = []
    for subset in range(2 ** len(words)):
        in_subset = [word for bit, word in enumerate(words) if subset >> bit & 1]
        captions.append(" and ".join(in_subset))
    context = samples.context
    embeddings = context.encode(captions)
    images = [image for image in view.sample.subsets if image]
    scores = context.scores(context.clip.preprocess(images), embeddings).T  # (captions, images)
    interaction, index = exact_interactions(scores)
    without = _subsets_without_one(len(words))
    return _CaptionedScene(
        view=view,
        words=words,
        caption=captions[-1],
        directions=embeddings[-1:] - embeddings[without],
        changes=scores[-1, -1] - scores[without, -1],
        truths={"interaction": interaction, "index": index},
    )


def _measure_pairs(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    for scene in _captioned_scenes(on_batch.samples):
        for estimator, heatmap in _word_maps(on_batch, scene):
            yield from _word_rows(estimator, scene, heatmap.detach().double())


def _word_maps(on_batch: MethodOnBatch, scene: _CaptionedScene) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the maps (n, h, w) of the words by each estimator that the method has."""
    signed = _maps_of_directions(on_batch, scene)
    if signed is not None:
        yield "difference", signed
    if on_batch.method.name in _SPLIT_DEPTHS:
        yield from _split_maps(on_batch, scene)


def _maps_of_directions(on_batch: MethodOnBatch, scene: _CaptionedScene) -> Tensor | None:
    """Explain what each word adds to the caption's embedding; None without a finite map of each."""
    directions = F.normalize(scene.directions, dim=1)
    queries = queries_of([scene.view] * len(scene.words), directions, scene.words)
    kept, raw = on_batch.compute_finite(queries)
    if len(kept) < len(queries):
        return None
    signed = _signed_maps(on_batch, queries, raw)
    if len(finite_indices(signed)) < len(queries):
        return None
    norms = scene.directions.norm(dim=1)
    scaled: Tensor = signed * norms[:, None, None]
    return scaled


_SPLIT_DEPTHS: Final = {"direct": "pooling", "conservative": "all"}
"""The methods that split both embeddings into vectors of positions, and how deep they do."""


def _split_maps(on_batch: MethodOnBatch, scene: _CaptionedScene) -> Iterator[tuple[str, Tensor]]:
    """Split the score of the caption into shares (T, h, w) of its tokens and cells."""
    ids, mask = on_batch.clip.text_inputs(scene.caption)
    method = DirectInteraction(ClipPairSimilarity(on_batch.clip))
    shares, rest = method.attribute(
        (scene.view.pixels[None], ids),
        additional_forward_args=mask,
        return_rest=True,
        depth=_SPLIT_DEPTHS[on_batch.method.name],
    )
    tokens_of_words = _tokens_of_words(on_batch, scene)
    share_maps = [shares[0, tokens].sum(0) for tokens in tokens_of_words]
    yield "share", torch.stack(share_maps)
    # The product of a word's value, as a TextSimilarity has it, and the map of the whole caption.
    token_values = (shares.sum((-2, -1)) + rest.other)[0]  # (T,)
    word_values = torch.stack([token_values[tokens].sum() for tokens in tokens_of_words])
    caption_map = shares.sum(1) + rest.image  # (1, h, w)
    yield "product", word_values[:, None, None] * caption_map


def _tokens_of_words(on_batch: MethodOnBatch, scene: _CaptionedScene) -> list[list[int]]:
    """Return the positions of each word's tokens in the caption."""
    pieces = targets.word_tokens(on_batch.clip, scene.caption)
    tokens_of_words = []
    start = 0
    for word in scene.words:
        end = start + len(word.split())
        tokens: list[int] = []
        for _, positions in pieces[start:end]:
            tokens.extend(positions)
        tokens_of_words.append(tokens)
        start = end + 1  # An "and" follows.
    return tokens_of_words


def _word_rows(estimator: str, scene: _CaptionedScene, heatmap: Tensor) -> Iterator[Arrays]:
    """Yield a row for each word, and one for all pairs of a word and an object together."""
    hits = metrics.pointing_game(heatmap, scene.view.masks)
    # Hits are ratios, or the report would draw the map of the text "a horse" for the word.
    ratios = {"numerator": hits, "denominator": torch.ones_like(hits)}
    numbers = [scene.view.number] * len(hits)
    yield rows_of(f"{estimator}_pointing", ratios, numbers, scene.words)
    mass = metrics.object_mass(heatmap, scene.view.masks)
    yield from _pair_rows(estimator, scene, mass)


def _pair_rows(estimator: str, scene: _CaptionedScene, mass: Tensor) -> Iterator[Arrays]:
    """Compare masses (words, objects) with the exact interactions."""
    for truth, effect in scene.truths.items():
        for end, pair_mass, pair_effect in _known_pairs(mass, effect):
            metric = f"{estimator}_{truth}_scene{end}"
            yield from _rank_rows(metric, scene.view, pair_mass, pair_effect)


def _answer_rows(samples: Batch, scene: _CaptionedScene, mass: Tensor) -> Iterator[Arrays]:
    """Repeat the figures of an answer without a map beside those of each estimator."""
    for estimator in ("share", "difference", "product"):
        yield from _pair_rows(estimator, scene, mass)


def _object_of_word(samples: Batch, scene: _CaptionedScene) -> Tensor:
    return torch.eye(len(scene.words))


def _change_by_word(samples: Batch, scene: _CaptionedScene) -> Tensor:
    return scene.changes[:, None].expand(-1, len(scene.words))


def _direction_similarity(samples: Batch, scene: _CaptionedScene) -> Tensor:
    return scene.directions @ samples.context.encode(scene.words).T


PAIRS: Final = Task(
    lambda config: listed("pairs"),
    _measure_pairs,
    ("scenes",),
    by_default=False,
    without_map=_predictors(
        _captioned_scenes,
        _answer_rows,
        {
            "named": _object_of_word,
            "score": _change_by_word,
            "text-only": _direction_similarity,
        },
    ),
)
"""Signed mass of each word's map in each object against their exact interaction."""


# Copies of one thing, which only the model tells apart.

_TRUTHS: Final = ["adds", "removal"]
"""What each copy adds to the score (Shapley), and what the whole scene loses without it."""
_FOLDS: Final = 5
_FEATURES: Final = "_features"
EFFECT_SPREAD: Final = "_spread"
"""The end of metrics that give the standard deviation of the effects in a scene, and their size."""


class _Copies(NamedTuple):
    """A view of n copies of one thing."""

    view: View
    scores: Tensor  # (2^n,), of every subset of the copies
    truths: Tensor  # (2, n), in the order of _TRUTHS


def _views_of_copies(samples: Batch) -> Iterator[_Copies]:
    for view in _redrawn_views(samples):
        # All copies have one text, so the scores of the first text are those of all.
        scores = samples.subset_scores[view.number][:1].double()
        truths = torch.cat([metrics.shapley_effects(scores), removals(scores)])
        yield _Copies(view, scores[0], truths)


def copy_rows(kind: str, number: int, answers: Tensor, truths: Tensor) -> Iterator[Arrays]:
    """Compare an answer for n copies, (2, n), (n,) or (1,) for all, with both truths (2, n)."""
    first, second = torch.triu_indices(truths.shape[1], truths.shape[1], 1)
    # Equal masses differ by rounding, which must not decide a rank.
    largest = answers.abs().amax(-1, keepdim=True)
    scale = largest.clamp(min=torch.finfo(torch.double).tiny)
    rounded = (answers.double() / scale).round(decimals=9)
    rounded = rounded.to(truths.device).expand_as(truths)
    for name, answer, effect in zip(_TRUTHS, rounded, truths, strict=True):
        rank = spearman(answer, effect)
        yield rows_of(f"{kind}_{name}_rank", rank[None], [number], [""], chance=0)
        # The share of pairs in the right order, each weighted by the gap of its effects.
        gap = effect[first] - effect[second]
        order = answer[first] - answer[second]
        right = gap.abs() * (1 + order.sign() * gap.sign()) / 2
        share = {"numerator": right.sum()[None], "denominator": gap.abs().sum()[None]}
        yield rows_of(f"{kind}_{name}_order", share, [number], [""])


def _measure_copies(kind: str, on_batch: MethodOnBatch) -> Iterator[Arrays]:
    scenes = list(_views_of_copies(on_batch.samples))
    if not scenes:
        return
    views = [copies.view for copies in scenes]
    texts = [view.regions[0].text for view in views]
    queries = queries_of(views, on_batch.context.encode(texts), texts)
    kept, raw = on_batch.compute_finite(queries)
    if not kept:
        return
    signed = _signed_maps(on_batch, queries.select(kept), raw)
    for row in finite_indices(signed):
        copies = scenes[kept[row]]
        mass = metrics.object_mass(signed[row].double(), copies.view.masks)
        yield from copy_rows(kind, copies.view.number, mass, copies.truths)


def _feature_rows(
    kind: str, describe: Callable[[View], Tensor], samples: Batch
) -> Iterator[Arrays]:
    """Yield rows of the copies' features (n, F) and truths, from which :func:`fitted` predicts."""
    for view, _, truths in _views_of_copies(samples):
        columns = {str(index): column for index, column in enumerate(describe(view).T)}
        columns |= dict(zip(_TRUTHS, truths, strict=True))
        names = [f"copy {index}" for index in range(len(view.masks))]
        yield rows_of(kind + _FEATURES, columns, [view.number] * len(names), names)
        for name, effect in zip(_TRUTHS, truths, strict=True):
            spread = {"deviation": effect.std()[None], "size": effect.abs().mean()[None]}
            yield rows_of(f"{kind}_{name}{EFFECT_SPREAD}", spread, [view.number], [""])


def _mean_colors(pixels: Tensor, masks: Tensor) -> Tensor:
    """Return the mean color (n, 3) of the pixels (3, H, W) in each mask (n, H, W)."""
    return torch.stack([pixels[:, mask].mean(1) for mask in masks])


def _surroundings(view: View) -> Tensor:
    """Return the masks (n, H, W) of the ring around each copy, without the pixels of any copy."""
    return around(view.masks) & ~view.masks.any(0)


def _contrast(view: View) -> Tensor:
    """Return the distance (n, 1) of each copy's mean color to that around it."""
    inside = _mean_colors(view.pixels, view.masks)
    outside = _mean_colors(view.pixels, _surroundings(view))
    distance: Tensor = torch.linalg.vector_norm(inside - outside, dim=1, keepdim=True)
    return distance


def _edges(view: View) -> Tensor:
    """Sum the steps of brightness (n, 1) in each copy and at its rim."""
    brightness = view.pixels.mean(0)
    # A pixel's steps are those from above and from the left, which the first row and column lack.
    steps = brightness.diff(dim=0).abs()[:, 1:] + brightness.diff(dim=1).abs()[1:]  # (H-1, W-1)
    masks = view.masks[:, None].float()
    with_rim = F.max_pool2d(masks, kernel_size=3, stride=1, padding=1)[:, 0, 1:, 1:]
    sums: Tensor = torch.einsum("nij,ij->n", with_rim, steps)
    return sums[:, None]


def _placement(view: View) -> Tensor:
    """Return the center (n, 2) of each copy in [-1, 1], with both squares and the product."""
    axes = [torch.linspace(-1, 1, side, device=view.masks.device) for side in view.size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centers = torch.stack([grid[:, mask].mean(1) for mask in view.masks])
    return torch.cat([centers, centers.square(), centers.prod(1, keepdim=True)], 1)


def fitted(table: Table) -> Iterator[tuple[Arrays, Sequence[str]]]:
    """Predict the effects of copies from their contrast, edges or place.

    The scenes are split into folds. Those of a fold are predicted by least squares of the effects
    on the features in all other folds, both less their mean within a scene.

    Args:
        table: all measured values; rows without features are ignored.

    Yields:
        The rows of each predictor, and the names of the samples that they number.
    """
    rows = table[table["metric"].astype(str).str.endswith(_FEATURES)]
    names = list(table["sample"].cat.categories)
    for (metric, method), chosen in rows.groupby(["metric", "method"], observed=True):
        kind = metric.removesuffix(_FEATURES)
        wide = chosen.pivot_table("value", ["sample", "region"], "part", observed=True)
        scene_of_row = wide.index.get_level_values("sample").map(names.index).to_numpy()
        centered = wide - wide.groupby("sample", observed=True).transform("mean")
        effects = centered[_TRUTHS].to_numpy()
        features = centered.drop(columns=_TRUTHS).to_numpy()
        blocks: list[Arrays] = []
        for fold in range(_FOLDS):
            in_fold = scene_of_row % _FOLDS == fold
            weights = np.linalg.lstsq(features[~in_fold], effects[~in_fold])[0]
            for scene in dict.fromkeys(scene_of_row[in_fold].tolist()):
                of_scene = scene_of_row == scene
                predicted = torch.from_numpy((features[of_scene] @ weights).T)
                exact = torch.from_numpy(effects[of_scene].T)
                blocks.extend(copy_rows(kind, scene, predicted, exact))
        yield table_of(method, {kind: blocks}), names


def _equal_copies(samples: Batch, copies: _Copies) -> Tensor:
    return torch.ones(1)


def _score_of_copies(samples: Batch, copies: _Copies) -> Tensor:
    return copies.scores[-1:]


def _areas(samples: Batch, copies: _Copies) -> Tensor:
    return torch.tensor([region.mask.sum() for region in copies.view.regions])


def _losses_painted_over(samples: Batch, copies: _Copies) -> Tensor:
    """Return what the score loses if a copy is painted over with the mean color around it."""
    view = copies.view
    outside = _mean_colors(view.pixels, _surroundings(view))
    painted = torch.where(view.masks[:, None], outside[:, :, None, None], view.pixels)
    text = samples.context.encode([view.regions[0].text])
    return copies.scores[-1] - samples.context.scores(painted, text)[:, 0].double()


def _other_truth(samples: Batch, copies: _Copies) -> Tensor:
    return copies.truths.flip(0)


_ANSWERS_FOR_COPIES: Final = {
    "named": _equal_copies,
    "score": _score_of_copies,
    "text-only": _equal_copies,
    "area": _areas,
    "painted": _losses_painted_over,
    "other-truth": _other_truth,
}
_FEATURES_OF_COPIES: Final = {"contrast": _contrast, "edges": _edges, "place": _placement}


def _copies_task(kind: str, what: str) -> Task:
    def compare(samples: Batch, copies: _Copies, answer: Tensor) -> Iterator[Arrays]:
        return copy_rows(kind, copies.view.number, answer, copies.truths)

    without_map = _predictors(_views_of_copies, compare, _ANSWERS_FOR_COPIES)
    for name, describe in _FEATURES_OF_COPIES.items():
        without_map[name] = partial(_feature_rows, kind, describe)
    return Task(
        lambda config: listed("copies", kind=kind, what=what),
        partial(_measure_copies, kind),
        (kind,),
        without_map=without_map,
        rivals=("magnitude", "last-attention"),
    )


THIRDS: Final = _copies_task("thirds", "Each without another third")
"""Three copies, each without another third."""

IDENTICAL: Final = _copies_task("identical", "All pixel for pixel the same")
"""The same copy three times."""
