"""The word-wise mosaic game: does the map of a word lie in the word's own cell?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from ... import maps as resizing
from ... import metrics, targets
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, finite_maps, queries_of
from ..methods import Queries
from ..metric import Metric
from ..table import rows_of
from .base import Task

_MOST = 4


class Words(Task):
    """Signed maps of words, and the maps of whole captions beside them."""

    name = "words"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        share = "(positive mass in the word's own cell + negative mass outside) / all mass"
        counts = range(1, _MOST + 1)
        return {
            "Mosaic game, a signed map per word": [
                Metric(
                    f"words_{count}",
                    f"{share}; caption of {count} of the four cells, target: what the word adds to "
                    "it; a map that is positive everywhere gets .25, random signs .5, a negative "
                    "one .75",
                )
                for count in counts
            ],
            "FIxLIP's pointing game: the positive map of a word": [
                Metric(
                    f"word_energy_{count}",
                    f"share of the word's positive mass in its own cell, caption of {count} of the "
                    "four cells; chance is .25",
                    constant=0.25,
                )
                for count in counts
            ],
            "FIxLIP's pointing game: the positive map of the whole caption": [
                Metric(
                    f"caption_{count}",
                    "the same of one map for all words of the caption, whose mean over its words "
                    f"is at most 1/{count}; chance is .25",
                    constant=0.25,
                )
                for count in counts
            ],
            "Pointing of words": [
                Metric(
                    f"word_pointing_{count}",
                    f"maximum of the word's positive map in its own cell; caption of {count} "
                    "of the four cells; chance is .25",
                    constant=0.25,
                )
                for count in counts
            ],
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Samples with a caption."""
        views = [v for v in maps.batch.views if v.sample.caption and len(v.regions) <= _MOST]
        if not views:
            return
        owners = [view for view in views for _ in view.regions]
        words = [region.text for view in views for region in view.regions]
        captions = [view.sample.caption or "" for view in owners]
        rows = [
            targets.words(maps.clip, caption, [word]).bank[0]
            for caption, word in zip(captions, words, strict=True)
        ]
        everything = queries_of(owners, torch.stack(rows), words)
        kept, raw = maps.compute_finite(everything)
        if not kept:
            return
        queries, counts = everything.part(kept), [len(owners[i].regions) for i in kept]
        masks = torch.cat([view.masks for view in views])[kept]
        positive, negative = resizing.positive(raw), maps.compute_negative(queries, raw)
        signed = positive if negative is None else positive - negative
        own = finite_maps(signed).nonzero()[:, 0].tolist()
        cells = masks.flatten(1).double().mean(1)  # share of the mosaic
        if own:
            game = metrics.word_mosaic_game(signed[own], masks[own])
            chance = cells[own] if negative is None else torch.full_like(cells[own], 0.5)
            of_own = queries.part(own), [counts[i] for i in own]
            yield from _by_count("words", game, *of_own, chance)
        energy = metrics.energy_inside(positive, masks)
        yield from _by_count("word_energy", energy, queries, counts, cells)
        hits = metrics.pointing_game(positive, masks)
        yield from _by_count("word_pointing", hits, queries, counts, cells)

        texts = tuple(captions[i] for i in kept)
        whole = replace(queries, rows=maps.context.encode(texts), texts=texts)
        known, raw = maps.compute_finite(whole)
        if known:
            share = metrics.energy_inside(resizing.positive(raw), masks[known])
            of_known = queries.part(known), [counts[i] for i in known]
            yield from _by_count("caption", share, *of_known, cells[known])


def _by_count(
    name: str, values: Tensor, queries: Queries, counts: Sequence[int], chance: Tensor
) -> Iterator[Arrays]:
    """Rows of values (N,) for each number of named cells; what empty maps get is `chance` (N,)."""
    for count in sorted(set(counts)):
        kept = [i for i, own in enumerate(counts) if own == count]
        where = [queries.numbers[i] for i in kept], [queries.texts[i] for i in kept]
        yield rows_of(f"{name}_{count}", values[kept], *where, chance=chance[kept])
