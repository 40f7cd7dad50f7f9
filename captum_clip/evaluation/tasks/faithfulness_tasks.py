"""Is a map faithful? Against removed pixels, exact effects, random changes and modified models.

What has one target an image takes its first.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from torch import Tensor
from torch.nn import functional as F

from ... import metrics
from ...metrics.perturbation import TENTHS
from ..batch import MethodOnBatch, Task, finite_indices, queries_of
from ..config import EvaluationConfig
from ..table import Metric, Queries, rows_of
from ..units import Arrays, Skipped

_SHARE: Final = 0.2
_RADIUS: Final = 0.02
_DRAWS: Final = 5
STAY: Final = (30, 50, 70)
"""The chance of each cell to stay, in per cent."""


def _effect_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    shapley = "exact Shapley effect on the cosine, by drawing the scene with every subset"
    removal = "the cosine of the whole scene less that of the scene drawn without the object"
    return {
        "Effect of an object": _agreement_metrics("effect", shapley),
        "Effect of taking an object out of the scene": _agreement_metrics("removal", removal),
    }


def _measure_effect(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Samples of which a map is missing are left out.

    A row is a pair of a text and an object, whose region is "a horse / a dog".
    """
    queries = maps.regions
    for view in maps.batch.views if len(queries) else ():
        own = [i for i, number in enumerate(queries.numbers) if number == view.number]
        scores = maps.batch.subset_scores.get(view.number)
        if scores is None or len(own) != len(view.regions):
            continue
        if len(finite_indices(maps.signed[own])) < len(own):
            continue
        mass = metrics.object_mass(maps.signed[own].double(), view.masks)  # (texts, objects)
        texts = [region.text for region in view.regions]
        pairs = [(text, other) for text in texts for other in texts]
        others = [place for place, (text, other) in enumerate(pairs) if text != other]
        effects = {"effect": metrics.shapley_effects(scores), "removal": _removals(scores)}
        for name, effect in effects.items():
            for end, kept in (("", list(range(len(pairs)))), ("_others", others)):
                where = [view.number] * len(kept), [" / ".join(pairs[i]) for i in kept]
                both = {"mass": mass.flatten()[kept], "effect": effect.flatten()[kept]}
                for statistic in ("spearman", "balanced", "auc"):
                    yield rows_of(f"{name}_{statistic}{end}", both, *where)
                for sign, of in (("negative", "effect"), ("mass_negative", "mass")):
                    yield rows_of(f"{name}_{sign}{end}", (both[of] < 0).double(), *where)


EFFECT: Final = Task(_effect_metrics, _measure_effect)
"""Signed mass in each object against the object's exact Shapley effect."""


def _removals(scores: Tensor) -> Tensor:
    """The whole scene's scores less those of the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    without = [whole ^ (1 << place) for place in range(whole.bit_length())]
    return scores[:, whole:] - scores[:, without]


def _agreement_metrics(name: str, exact: str) -> list[Metric]:
    mass = "the mass (positive less negative map, both as published)"
    ranks = f"rank correlation of {mass} and {exact}"
    balanced = (
        "mean of the shares of right signs among the effects above and among those below zero, no "
        "mass counts one half; a constant answer gets .5"
    )
    area = (
        "chance that the mass of an effect above zero is above that of one below zero; masses that "
        "have nothing to do with the effects get .5"
    )
    share = "share of the effects below zero: always saying one sign is right as often"
    masses = "share of the masses below zero"
    columns = []
    for end, pairs in (
        ("", "all pairs of a region's text and an object of its scene"),
        ("_others", "pairs where the text names another object"),
    ):
        columns += [
            Metric(f"{name}_spearman{end}", f"{ranks}; {pairs}", "high", "spearman", 0),
            Metric(
                f"{name}_balanced{end}", f"{balanced}; {pairs}", "high", "balanced_accuracy", 0.5
            ),
            Metric(f"{name}_auc{end}", f"{area}; {pairs}", "high", "auc", 0.5),
            Metric(f"{name}_negative{end}", f"{share}; {pairs}", "none"),
            Metric(f"{name}_mass_negative{end}", f"{masses}; {pairs}", "none"),
        ]
    return columns


def _faithfulness_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    masks = (
        f"over {config.draws} random masks per image, each cell of the model's grid, shifted "
        f"by half a cell, becoming the mean colour with a chance of {_SHARE}"
    )
    correlation = (
        "Pearson's correlation of the map's sum over a mask with what the mask takes from the "
        f"score, {masks}; chance is 0, the map 'uniform' gets more, since larger masks change more"
    )
    infidelity = (
        "captum's infidelity with normalize=True over the mean square of the score's change, "
        f"as sums over images, {masks}: 0 is perfect and a map of zeros gets 1, but there is "
        "no intercept, so a map of one value gets far less than 1: compare with 'uniform'; "
        "blind to the sign of a map as a whole"
    )
    sensitivity = (
        "captum's sensitivity_max, the largest relative change of the map under uniform noise "
        f"of radius {_RADIUS}, {_DRAWS} draws, {config.slow_images} images drawn from all; "
        "a map that sees nothing gets 0"
    )
    return {
        "Faithfulness and sensitivity": [
            Metric("faithfulness_correlation", correlation, constant=0),
            Metric("infidelity", infidelity, "low", "ratio"),
            Metric("sensitivity", sensitivity, "low"),
        ]
    }


def _measure_faithfulness(maps: MethodOnBatch) -> Iterator[Arrays]:
    first = maps.first_queries
    kept, raw = maps.compute_finite(first)
    if not kept:
        return
    every = _masked_changes(maps, first, _SHARE)
    changes = metrics.MaskedChanges(every.masks[kept], every.changes[kept])
    queries = first.part(kept)
    correlation = metrics.faithfulness_correlation(raw, changes)
    yield queries.rows_of("faithfulness_correlation", correlation, chance=0)
    square = changes.changes.square().mean(1)
    ratio = {"numerator": metrics.infidelity(raw, changes), "denominator": square}
    yield queries.rows_of("infidelity", ratio)
    slow = maps.slow(queries)
    attribute = maps.method.attribute(maps.clip, slow.embeddings)
    if attribute is not None and len(slow):
        options = {"radius": _RADIUS, "samples": _DRAWS, **maps.options_of(slow)}
        values = metrics.sensitivity(attribute, slow.pixels, [*range(len(slow))], **options)
        yield slow.rows_of("sensitivity", values)
        for index in (~values.isfinite()).nonzero()[:, 0].tolist():
            reason = f"{maps.method.name}: a map under noise holds NaN or infinity"
            maps.skipped.append(Skipped(slow.numbers[index], reason))


FAITHFULNESS: Final = Task(_faithfulness_metrics, _measure_faithfulness)
"""Changes by random masks, predicted; Captum's sensitivity. One target an image, its first."""


def _masked_changes(
    maps: MethodOnBatch, queries: Queries, share: float, *, shifted: bool = True
) -> metrics.MaskedChanges:
    """Of all methods the same, and most of the work."""
    return maps.batch.remember(
        f"changes of {queries.numbers} by {share}",
        partial(
            metrics.masked_changes,
            maps.context.forward(queries.embeddings),
            queries.pixels,
            list(range(len(queries))),
            grid=maps.clip.grid(*queries.size),
            share=share,
            samples=maps.config.draws,
            shifted=shifted,
            **maps.options_of(queries),
        ),
    )


def _fixlip_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    cells = f"cells of the model's grid become the mean colour; {config.slow_images} images at most"
    area = "area between insertion and deletion, most relevant first, in tenths"
    aid = (
        f"{area}; cosines less that of nothing left, over that of the whole image less it, of "
        f"images that have more; chance is 0; {cells}"
    )
    blur = f"the same of the plain cosines, with insertion into a blurred image; {cells}"
    columns = [Metric("aid", aid, constant=0), Metric("aid_blur", blur)]
    for stay in STAY:
        ranks = (
            "Spearman of the map's sum over the cells that stay, each with a chance of "
            f"{stay} %, and the cosine, {config.draws} draws; random maps get 0, a constant "
            f"one what the number of cells says; the other {cells}"
        )
        columns.append(Metric(f"p_faithfulness_{stay}", ranks, constant=0))
    return {"FIxLIP: AID and p-faithfulness": columns}


def _measure_fixlip(maps: MethodOnBatch) -> Iterator[Arrays]:
    first = maps.slow(maps.first_queries)
    kept, raw = maps.compute_finite(first)
    for index, heatmap in zip(kept, raw, strict=True):
        query, one = first.part([index]), heatmap[None].to(first.pixels)
        test = partial(
            metrics.perturbation_test,
            maps.context.forward(query.embeddings),
            query.pixels,
            F.adaptive_avg_pool2d(one, maps.clip.grid(*query.size)),  # the same for all methods
            unit="patch",
            **maps.options_of(query),
        )
        deleted = test(fill=metrics.mean_fill(query.pixels)).score
        inserted = test(fill=metrics.blur_fill(query.pixels), mode="insertion").score
        yield query.rows_of("aid", metrics.area_between(deleted, normalize=True))
        yield query.rows_of("aid_blur", metrics.area_between(deleted, inserted))
        for stay in STAY:
            drawn = _masked_changes(maps, query, 1 - stay / 100, shifted=False)
            ranks = metrics.p_faithfulness(one, drawn)
            yield query.rows_of(f"p_faithfulness_{stay}", ranks, chance=0)  # of maps of one value


FIXLIP: Final = Task(_fixlip_metrics, _measure_fixlip)
"""One target an image, its first; cells of the map's grid, in the images for what is slow."""


def _sanity_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    start = "Spearman's rank correlation, "
    start += f"{config.slow_images} images drawn from all, with the map of"
    parameters = "a model with random parameters in its whole vision tower: near 0 is right"
    empty = "the empty text: near 1 means that the text hardly matters"
    other = (
        "a text that names something else, drawn from the data set's classes: near 1 means the same"
    )
    heads = "the same function with the heads of all layers but the last renumbered: 1 is right"
    return {
        "Sanity checks": [
            Metric("random_parameters", f"{start} {parameters}", "none"),
            Metric("empty_prompt", f"{start} {empty}", "none"),
            Metric("other_prompt", f"{start} {other}", "none"),
            Metric("renumbered_heads", f"{start} {heads}"),
        ]
    }


def _measure_sanity(maps: MethodOnBatch) -> Iterator[Arrays]:
    """A constant map has no ranks, and correlates with nothing."""
    context = maps.context
    if maps.method.attribute(maps.clip, context.encode([""])) is None:
        return
    first = maps.slow(maps.first_queries)
    kept, raw = maps.compute_finite(first)
    if not kept:
        return
    queries = first.part(kept)
    empty = context.encode([""]).expand_as(queries.embeddings)
    other = context.encode([_other(maps, number) for number in queries.numbers])
    changed = {
        "empty_prompt": (replace(queries, embeddings=empty), maps.clip),
        "other_prompt": (replace(queries, embeddings=other), maps.clip),
        "random_parameters": (queries, context.random_copy),
        "renumbered_heads": (queries, context.renumbered_copy),
    }
    for name, (asked, clip) in changed.items():
        if clip is not None:
            own, other_maps = maps.compute_finite(asked, clip)
            if own:
                correlation = metrics.rank_correlation(raw[own], other_maps)
                yield queries.part(own).rows_of(name, correlation, chance=0)


SANITY: Final = Task(_sanity_metrics, _measure_sanity)
"""Rank correlation with the map of another model or prompt; one target per image, its first."""


def _other(maps: MethodOnBatch, number: int) -> str:
    """A text that names nothing in the sample; the same for every method and batch.

    Where all texts name something in it, the empty text.
    """
    [view] = [view for view in maps.batch.views if view.number == number]
    classes = maps.context.data.classes
    shown = {region.text for region in view.regions}
    if view.sample.label is not None:
        shown.add(classes[view.sample.label])
    texts = [text for text in classes if text not in shown]
    if not texts:
        return ""
    digest = hashlib.sha256(
        f"{maps.config.seed} {view.sample.name}".encode("utf-8", "surrogateescape")
    ).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]


TITLES: Final[dict[str, str]] = {
    "mean": "the mean colour",
    "black": "black",
    "blur": "a blur",
    "road": "ROAD's noisy linear imputation",
}
MOST_FIRST: Final = "curve_most_"
LEAST_FIRST: Final = "curve_least_"
"""Begin the names of curves, as "curve_most_mean_predicted"; their `x` is the share removed."""
_KINDS: Final = ("predicted", "true")
_OBJECTS: Final = (1, 2, 3)
_FIFTHS: Final = tuple(fifth / 5 for fifth in range(6))


def _perturbation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    groups = {}
    for fill in config.fills:
        steps = (
            f"fifths, {config.slow_images} images drawn from all" if fill == "road" else "tenths"
        )
        protocol = f"removed pixels become {TITLES[fill]}, in {steps}"
        for kind in _KINDS:
            title = f"Perturbation: {TITLES[fill]}, map of the {kind} class"
            own = f"{protocol}; map of the {kind} class"
            gaps = _gaps(f"_{fill}_{kind}", f"the {kind} class", own)
            groups[title] = [*_areas(f"_{fill}_{kind}", own), *gaps]
        groups[f"Perturbation by number of objects: {TITLES[fill]}"] = [
            metric
            for count in _OBJECTS
            for metric in _gaps(
                f"_{fill}_{count}",
                "the named object",
                f"{protocol}; scenes of {count}, map of the text that names one of them",
            )
        ]
    return groups


def _measure_perturbation(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Only samples with a class; of classification only those that show nothing else."""
    views = [view for view in maps.batch.views if view.sample.label is not None]
    if not views:
        return
    predicted = dict(zip(maps.batch.views, maps.batch.predicted.tolist(), strict=True))
    labels = [view.sample.label or 0 for view in views]
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)  # place and class of the map
    for place, (view, label) in enumerate(zip(views, labels, strict=True)):
        count = len(view.sample.regions)
        if count < 2:
            wanted["predicted"].append((place, predicted[view]))
            wanted["true"].append((place, label))
        if count in _OBJECTS:
            wanted[str(count)].append((place, label))
    # Mostly the same class twice, and one test will do.
    pairs = list(dict.fromkeys(pair for of in wanted.values() for pair in of))
    if not pairs:
        return
    queries = queries_of(
        [views[place] for place, _ in pairs],
        maps.context.classes[[label for _, label in pairs]],
        [maps.context.data.classes[label] for _, label in pairs],
    )
    kept, raw = maps.compute_finite(queries)
    slow = maps.context.slow_numbers
    for fill in maps.config.fills:  # ROAD takes long
        seen = [i for i, k in enumerate(kept) if fill != "road" or queries.numbers[k] in slow]
        if not seen:
            continue
        part, own = queries.part([kept[i] for i in seen]), [pairs[kept[i]] for i in seen]
        filled: Any = "road" if fill == "road" else maps.clip.color((0, 0, 0))
        if fill in ("mean", "blur"):
            filled = (metrics.mean_fill if fill == "mean" else metrics.blur_fill)(part.pixels)
        test = metrics.perturbation_test(
            maps.context.forward(maps.context.classes),
            part.pixels,
            raw[seen].to(part.pixels),
            [label for _, label in own],
            fill=filled,
            labels=[labels[place] for place, _ in own],
            fractions=_FIFTHS if fill == "road" else TENTHS,
            **maps.options_of(part),
        )
        rows = {pair: row for row, pair in enumerate(own)}
        for kind, of in wanted.items():
            known = [rows[pair] for pair in of if pair in rows]
            if known:
                yield from _rows(f"{fill}_{kind}", test, known, part.part(known))


PERTURBATION: Final = Task(_perturbation_metrics, _measure_perturbation)
"""Deletion by pixels, of the predicted and of the true class, and by number of objects."""


def _areas(end: str, protocol: str) -> list[Metric]:
    area = "area under the curve of top-1 accuracy (of the true class, all classes of the data)"
    least = "the same, least relevant first; with the same fill it is also the area of insertion"
    return [
        Metric(f"most{end}", f"{area}, most relevant first; {protocol}", "low"),
        Metric(f"least{end}", f"{least}; {protocol}"),
        Metric(f"gap{end}", f"least less most; chance is 0; {protocol}", constant=0),
    ]


def _gaps(end: str, what: str, protocol: str) -> list[Metric]:
    cosine = f"area under the curve of the cosine with {what}, least relevant first less most"
    margin = (
        f"the same of the margin, the cosine with {what} less the highest of all other classes: "
        "what would change the cosine with any text drops out"
    )
    return [
        Metric(f"gap_cosine{end}", f"{cosine}; chance is 0; {protocol}", constant=0),
        Metric(f"gap_margin{end}", f"{margin}; chance is 0; {protocol}", constant=0),
    ]


def _rows(
    end: str, test: metrics.PerturbationTest, rows: Sequence[int], queries: Queries
) -> Iterator[Arrays]:
    """Of some images of a test: gaps, and where they show one thing the curves of top-1."""
    top1, margin = test.top1, test.margin
    assert top1 is not None
    assert margin is not None
    yield queries.rows_of(f"gap_cosine_{end}", test.score.gap[rows])
    yield queries.rows_of(f"gap_margin_{end}", margin.gap[rows])
    if not end.endswith(_KINDS):
        return
    yield queries.rows_of(f"most_{end}", top1.most_area[rows])
    yield queries.rows_of(f"least_{end}", top1.least_area[rows])
    yield queries.rows_of(f"gap_{end}", top1.gap[rows])
    for start, curve in ((MOST_FIRST, top1.most_first), (LEAST_FIRST, top1.least_first)):
        for x, column in zip(top1.fractions.tolist(), curve[rows].T, strict=True):
            yield queries.rows_of(f"{start}{end}", column, x=x)
