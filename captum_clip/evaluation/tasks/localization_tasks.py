"""Does a map lie where it should? Against masks, human fixations and the cells of mosaics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps as resizing
from ... import metrics, targets
from ...models.geometry import resize_density, resize_points
from ..batch import Batch, MethodOnBatch, Task, View, finite_indices, queries_of
from ..config import EvaluationConfig
from ..table import Metric, Queries
from ..units import Arrays, Skipped

NEAR = 15  # pixels, of the paper of the pointing game
AREA = 0.2
_PARTS = {
    "target": "in the region that the text names",
    "others": "in the other regions",
    "background": "outside of all regions",
}
_TINY = 1e-150  # maps may be as small as gradients


def _localization_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    chance = "chance is the share of the image that the object covers"
    covered = f"share of the object inside the highest {AREA:.0%} of the map's pixels"
    mean, half = "threshold: the mean of the min-max map", "threshold: half of the min-max map"
    pixels, iou = "over all pixels of the set", "mean of object and background"
    both = (
        "mAP: average precision of the pixels of object and background ranked together, mean "
        "over regions; a constant map gets .5, one that is low nearly everywhere far more, "
        "whatever it shows: compare with 'random'"
    )
    return {
        "Localization": [
            Metric("pointing", f"maximum inside the mask; {chance}"),
            Metric(f"pointing_{NEAR}", f"maximum inside or within {NEAR} pixels"),
            Metric("energy", f"share of the positive mass inside; {chance}"),
            Metric("coverage", f"{covered}; chance is {AREA}"),
            Metric("average_precision", f"of the pixels by value, mean over regions; {chance}"),
        ],
        "Segmentation": [
            Metric("pixel_accuracy", f"{pixels}; {mean}", statistic="ratio"),
            Metric("mean_iou", f"{iou}, {pixels}; {mean}", statistic="mean_iou"),
            Metric("pixel_accuracy_half", f"the same; {half}", statistic="ratio"),
            Metric("mean_iou_half", f"the same; {half}", statistic="mean_iou"),
        ],
        "Segmentation as LeGrad has it": [
            Metric("legrad_pixel_accuracy", f"mean over regions; {half}"),
            Metric("legrad_mean_iou", f"{iou}, mean over regions; {half}"),
            Metric("legrad_map", both, constant=0.5),
        ],
    }


def _measure_localization(maps: MethodOnBatch) -> Iterator[Arrays]:
    void = {view.number: view.void for view in maps.batch.views if view.void is not None}
    numbers = maps.regions.numbers
    alone = [[index] for index, number in enumerate(numbers) if number in void]
    others = [index for index, number in enumerate(numbers) if number not in void]
    for part in [*([others] if others else []), *alone]:
        yield from _measure(maps, part, void.get(numbers[part[0]]))


LOCALIZATION: Final = Task(_localization_metrics, _measure_localization)
"""Positive maps against the masks of what they name."""


def _measure(maps: MethodOnBatch, part: Sequence[int], void: Tensor | None) -> Iterator[Arrays]:
    """Some regions, of one image where some of its pixels count for nothing."""
    queries = maps.regions.part(part)
    heatmap, masks = maps.positive[part], maps.masks[part]
    highest, inside = heatmap, masks
    if void is not None:
        heatmap = resizing.upsample(heatmap, queries.size)
        highest, inside = torch.where(void, heatmap.amin() - 1, heatmap), masks & ~void
        # what is left has no shape, which no metric but pointing asks for
        heatmap, masks = heatmap[:, None, ~void], masks[:, None, ~void]
    yield queries.rows_of("pointing", metrics.pointing_game(highest, inside))
    near = metrics.pointing_game(highest, inside, tolerance=NEAR)
    yield queries.rows_of(f"pointing_{NEAR}", near)
    share = masks.flatten(1).float().mean(1)
    yield queries.rows_of("energy", metrics.energy_inside(heatmap, masks), chance=share)
    yield queries.rows_of("coverage", metrics.coverage(heatmap, masks, area=AREA))
    yield queries.rows_of("average_precision", metrics.average_precision(heatmap, masks))
    at_half = metrics.segmentation_scores(heatmap, masks, threshold=0.5)
    for end, scores in (("", metrics.segmentation_scores(heatmap, masks)), ("_half", at_half)):
        right, pixels = scores.true_positive + scores.true_negative, torch.stack([*scores]).sum(0)
        yield queries.rows_of(f"pixel_accuracy{end}", {"numerator": right, "denominator": pixels})
        yield queries.rows_of(f"mean_iou{end}", scores._asdict())
    yield queries.rows_of("legrad_pixel_accuracy", at_half.image_accuracy)
    yield queries.rows_of("legrad_mean_iou", at_half.image_iou)
    yield queries.rows_of("legrad_map", metrics.two_class_average_precision(heatmap, masks))


def _signs_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    share = "share of the {} map's mass {}; chance: uniform"
    shares = {
        sign: [Metric(f"{sign}_{p}", share.format(sign, w), "none") for p, w in _PARTS.items()]
        for sign in ("positive", "negative")
    }
    correlation = (
        "Spearman's rank correlation of positive and negative map; below zero by construction "
        "where both are parts of one signed map"
    )
    others = "maximum of the negative map inside another region; chance: uniform"
    cosine = "cosine of positive and negative map; 0: they never meet"
    choice = (
        "share of the positive mass in all regions that lies in the one that the text names: "
        "does the map tell objects apart, wherever else it lies? Chance: uniform"
    )
    return {
        "Where the positive map lies": [
            *shares["positive"],
            Metric("target_among_regions", choice),
        ],
        "Where the negative map lies": [
            *shares["negative"],
            Metric("sign_correlation", correlation, "none"),
            Metric("sign_cosine", cosine, "none"),
            Metric("negative_pointing_others", others, "none"),
        ],
    }


def _measure_signs(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Images with one region only are left out."""
    queries = maps.regions
    if not len(queries):
        return
    views = {view.number: view for view in maps.batch.views}
    owners = [views[number] for number in queries.numbers]
    whole = torch.stack([view.masks.any(0) for view in owners])  # (N, H, W)
    known = torch.stack(
        [torch.ones_like(v.masks[0]) if v.void is None else ~v.void for v in owners]
    )
    parts = [part & known for part in (maps.masks, whole & ~maps.masks, ~whole)]
    kept = torch.stack([part.flatten(1).any(1) for part in parts]).all(0).nonzero()[:, 0].tolist()
    if not kept:
        return
    own, known, positive = queries.part(kept), known[kept], maps.positive[kept]
    masks = dict(zip(_PARTS, (part[kept] for part in parts), strict=True))
    for name, mask in masks.items():
        yield _share(f"positive_{name}", own, positive, mask, known)
    regions = masks["target"] | masks["others"]
    yield _share("target_among_regions", own, positive, masks["target"], regions)
    negative = None if maps.negative is None else maps.negative[kept]
    finite = [] if negative is None else finite_indices(negative)
    if negative is None or not finite:
        return
    own, known = own.part(finite), known[finite]
    positive, negative = positive[finite], negative[finite]
    for name, mask in masks.items():
        yield _share(f"negative_{name}", own, negative, mask[finite], known)
    correlation = metrics.rank_correlation(positive, negative)
    yield own.rows_of("sign_correlation", correlation, chance=0)
    first, second = (heatmap.flatten(1).double() for heatmap in (positive, negative))
    yield own.rows_of("sign_cosine", F.cosine_similarity(first, second, eps=_TINY))
    heatmap = torch.where(known, resizing.upsample(negative, own.size), -1)
    hits = metrics.pointing_game(heatmap, masks["others"][finite])
    yield own.rows_of("negative_pointing_others", hits)


SIGNS: Final = Task(_signs_metrics, _measure_signs)
"""Mass of both signs in the target, in other regions and in the background."""


def _share(metric: str, queries: Queries, heatmap: Tensor, masks: Tensor, known: Tensor) -> Arrays:
    """Of the mass of maps (N, h, w) in all that is known; an empty map gets the share of pixels."""
    mass = resizing.upsample(heatmap, queries.size) * known
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / known.flatten(1).sum(1)
    return queries.rows_of(metric, share, chance=chance)


def _fixation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    return {
        "Human fixations": [
            Metric("nss", "mean standardised value at fixations; chance is 0"),
            Metric("auc_judd", "AUC-Judd at fixations; chance is .5"),
            Metric("cc", "linear correlation with the density; chance is 0"),
            Metric("sim", "shared mass of map and density, 1 where equal"),
        ]
    }


def _measure_fixation(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Each metric where its kind of fixations is known, and the crop shows something of it."""
    views = [view for view in maps.batch.views if view.sample.fixated is not None]
    if not views:
        return
    texts = [view.sample.fixated or "" for view in views]
    queries = queries_of(views, maps.context.encode(texts), texts)
    kept, raw = maps.compute_finite(queries)
    for index, heatmap in zip(kept, raw.clamp(min=0), strict=True):
        query, view = queries.part([index]), views[index]
        processor, sample = maps.clip.processor, view.sample
        if sample.fixations is not None:
            points = torch.from_numpy(resize_points(processor, sample.fixations, view.size) > 0)
            if points.any() and not points.all():
                points = points.to(heatmap.device)
                yield query.rows_of("nss", metrics.nss(heatmap, points)[None], chance=0)
                yield query.rows_of("auc_judd", metrics.auc_judd(heatmap, points)[None], chance=0.5)
            else:
                reason = "the crop shows none of the fixations, or nothing else"
                maps.skipped.append(Skipped(view.number, reason))
        if sample.density is not None:
            density = torch.from_numpy(resize_density(processor, sample.density, view.size))
            if density.any():
                density = density.to(heatmap.device)
                # the SIM of a map with its mass everywhere alike; NaN for a constant density
                mass = resizing.normalize(density)
                even = (mass / mass.sum()).clamp(max=1 / mass.numel()).sum()
                yield query.rows_of("cc", metrics.cc(heatmap, density)[None], chance=0 * even)
                yield query.rows_of("sim", metrics.sim(heatmap, density)[None], chance=even)
            else:
                reason = "the crop shows nothing of the density of fixations"
                maps.skipped.append(Skipped(view.number, reason))


FIXATION: Final = Task(_fixation_metrics, _measure_fixation)
"""Positive maps against human fixations: points and densities."""


_MOST: Final = 4
_CAPTION: Final = "caption of {n} of the four cells"
_GAMES: Final = {
    "Mosaic game, a signed map per word": (
        *("words", None),
        "(positive mass in the word's own cell + negative mass outside) / all mass; "
        f"{_CAPTION}, target: what the word adds to it; a map that is positive everywhere gets "
        ".25, random signs .5, a negative one .75",
    ),
    "FIxLIP's pointing game: the positive map of a word": (
        *("word_energy", 0.25),
        f"share of the word's positive mass in its own cell, {_CAPTION}; chance is .25",
    ),
    "FIxLIP's pointing game: the positive map of the whole caption": (
        *("caption", 0.25),
        "the same of one map for all words of the caption, whose mean over its words is at most "
        "1/{n}; chance is .25",
    ),
    "Pointing of words": (
        *("word_pointing", 0.25),
        f"maximum of the word's positive map in its own cell; {_CAPTION}; chance is .25",
    ),
}
"""Title of a table -> start of its metrics' names, what a constant answer gets, protocol."""
_CONFIDENCE: Final = 0.5
_SCALE: Final = 100  # of cosines before the softmax, where CLIP's own training stops it


def _words_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    return {
        title: [
            Metric(f"{name}_{count}", protocol.format(n=count), constant=constant)
            for count in range(1, _MOST + 1)
        ]
        for title, (name, constant, protocol) in _GAMES.items()
    }


def _measure_words(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Samples with a caption."""
    views = [v for v in maps.batch.views if v.sample.caption and len(v.regions) <= _MOST]
    if not views:
        return
    owners = [view for view in views for _ in view.regions]
    words = [region.text for view in views for region in view.regions]
    captions = [view.sample.caption or "" for view in owners]
    rows = [
        targets.words(maps.clip, caption, [word]).embeddings[0]
        for caption, word in zip(captions, words, strict=True)
    ]
    everything = queries_of(owners, torch.stack(rows), words)
    kept, raw = maps.compute_finite(everything)
    if not kept:
        return
    queries, masks = everything.part(kept), torch.cat([view.masks for view in views])[kept]
    cells = masks.flatten(1).double().mean(1)  # share of the mosaic
    counts = {view.number: len(view.regions) for view in views}
    positive, negative = resizing.positive(raw), maps.compute_negative(queries, raw)
    signed = positive if negative is None else positive - negative
    own = finite_indices(signed)
    if own:
        game = metrics.word_mosaic_game(signed[own], masks[own])
        chance = cells[own] if negative is None else torch.full_like(cells[own], 0.5)
        yield from _by_count("words", queries.part(own), counts, game, chance)
    energy = metrics.energy_inside(positive, masks)
    yield from _by_count("word_energy", queries, counts, energy, cells)
    hits = metrics.pointing_game(positive, masks)
    yield from _by_count("word_pointing", queries, counts, hits, cells)

    texts = tuple(captions[i] for i in kept)
    whole = replace(queries, embeddings=maps.context.encode(texts), texts=texts)
    own, raw = maps.compute_finite(whole)
    if own:
        share = metrics.energy_inside(resizing.positive(raw), masks[own])
        yield from _by_count("caption", queries.part(own), counts, share, cells[own])


WORDS: Final = Task(_words_metrics, _measure_words)
"""Signed maps of words, and next to them the maps of whole captions."""


def _by_count(
    name: str, queries: Queries, counts: Mapping[int, int], values: Tensor, chance: Tensor
) -> Iterator[Arrays]:
    """Rows of values (N,) by the number of cells that a sample's caption names."""
    own = [counts[number] for number in queries.numbers]
    for count in sorted(set(own)):
        kept = [i for i, each in enumerate(own) if each == count]
        yield queries.part(kept).rows_of(f"{name}_{count}", values[kept], chance=chance[kept])


def _grid_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    sure = (
        f"of cells that the model, shown them alone, puts into their class with a probability "
        f"of {_CONFIDENCE:g} or more (softmax of {_SCALE} times the cosines with all classes)"
    )
    protocol = f"share of the positive mass in the cell of the class; chance is .25; {sure}"
    return {"GridPG": [Metric("grid_pg", protocol, constant=0.25)]}


def _measure_grid(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Samples whose regions have classes."""
    cells = maps.batch.remember("known cells", lambda: _known_cells(maps.batch))
    if not cells:
        return
    labels = [view.regions[place].label or 0 for view, place in cells]
    texts = [maps.context.data.classes[label] for label in labels]
    queries = queries_of([v for v, _ in cells], maps.context.classes[labels], texts)
    kept, raw = maps.compute_finite(queries)
    if kept:
        masks = torch.stack([view.masks[place] for view, place in (cells[i] for i in kept)])
        share = metrics.energy_inside(resizing.positive(raw), masks)
        chance = masks.flatten(1).double().mean(1)
        yield queries.part(kept).rows_of("grid_pg", share, chance=chance)


GRID_POINTING: Final = Task(_grid_metrics, _measure_grid)
"""GridPG: positive maps of classes in mosaics, of the cells that the model is sure of."""


def _known_cells(batch: Batch) -> list[tuple[View, int]]:
    """The regions that the model puts into their class when it is shown them alone.

    Each as its view and its place there.
    """
    cells, crops, labels = [], [], []
    for view in batch.views:
        for place, region in enumerate(view.regions):
            if region.label is not None:
                rows, columns = (np.flatnonzero(region.mask.any(axis)) for axis in (1, 0))
                box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
                cells.append((view, place))
                crops.append(view.sample.image.crop(box))
                labels.append(region.label)
    if not cells:
        return []
    scores = batch.context.scores(batch.context.clip.preprocess(crops), batch.context.classes)
    confidence, found = (_SCALE * scores.double()).softmax(1).max(1)
    sure = (found == torch.tensor(labels, device=found.device)) & (confidence >= _CONFIDENCE)
    return [cell for cell, known in zip(cells, sure.tolist(), strict=True) if known]
