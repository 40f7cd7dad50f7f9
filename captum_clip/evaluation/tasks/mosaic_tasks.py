"""Does the map of a word, or of a class, lie in its own cell of a mosaic?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ... import maps as resizing
from ... import metrics, targets
from ..batch import Batch, MethodOnBatch, Task, View, finite_indices, queries_of
from ..config import EvaluationConfig
from ..run import Arrays
from ..table import Metric, Queries

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
