"""The word-wise mosaic game: does the map of a word lie in the word's own cell?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ... import maps as resizing
from ... import metrics, targets
from ..config import EvaluationConfig
from ..methods import Queries
from ..metric import Metric, Rows
from .base import Case, Found, Task, queries_of

_MOST = 4


class Words(Task):
    """Signed maps of words, and the maps of whole captions beside them."""

    name = "words"
    what = "the word-wise mosaic game"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        share = "(positive mass in the word's own cell + negative mass outside) / all mass"
        counts = range(1, _MOST + 1)
        return {
            "Mosaic game, a signed map a word": [
                Metric(
                    f"words_{count}",
                    "mean",
                    "high",
                    f"{share}; caption of {count} of the four cells, target: what the word adds to "
                    "it; a map that is positive everywhere gets .25, a negative one .75",
                )
                for count in counts
            ],
            "Mosaic game, the positive map of the whole caption": [
                Metric(
                    f"caption_{count}",
                    "mean",
                    "high",
                    f"the same of one map for all words of the caption, at most 1/{count}",
                )
                for count in counts
            ],
            "Pointing of words": [
                Metric(
                    f"word_pointing_{count}",
                    "mean",
                    "high",
                    f"maximum of the word's positive map in its own cell; caption of {count} "
                    "of the four cells; chance is .25",
                )
                for count in counts
            ],
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; samples with a caption."""
        seen = [one for one in case.seen if one.sample.caption and len(one.regions) <= _MOST]
        if not seen:
            return Found()
        owners = [one for one in seen for _ in one.regions]
        words = [region.text for one in seen for region in one.regions]
        captions = [one.sample.caption or "" for one in owners]
        rows = [
            targets.words(case.clip, caption, [word]).bank[0]
            for caption, word in zip(captions, words, strict=True)
        ]
        queries = queries_of(owners, torch.stack(rows), words)
        raw = case.maps(queries)
        kept = case.finite(queries, raw)
        if not kept:
            return Found()
        masks = torch.cat([one.masks for one in seen])[kept]
        queries, raw = queries.part(kept), raw[kept]
        positive, negative = resizing.positive(raw), case.opposite(queries, raw)
        said = tuple(captions[place] for place in kept)
        asked = replace(queries, rows=case.bench.encode(said), texts=said)
        whole = case.maps(asked)
        fine = case.finite(asked, whole)
        signed = positive if negative is None else positive - negative
        game = metrics.word_mosaic_game(signed, masks)
        pointing = metrics.pointing_game(positive, masks)
        counts = [len(owners[place].regions) for place in kept]
        everything = list(range(len(kept)))
        found = {
            **_by_count(case, "words", game, queries, everything, counts),
            **_by_count(case, "word_pointing", pointing, queries, everything, counts),
        }
        if fine:
            caption = metrics.word_mosaic_game(resizing.positive(whole[fine]), masks[fine])
            found |= _by_count(case, "caption", caption, queries, fine, counts)
        return Found(found)


def _by_count(
    case: Case,
    name: str,
    values: Tensor,
    queries: Queries,
    places: Sequence[int],
    counts: Sequence[int],
) -> dict[str, Rows]:
    """Rows for each number of named cells; values (N,) of the queries at these N places."""
    found = {}
    for count in range(1, _MOST + 1):
        chosen = [row for row, place in enumerate(places) if counts[place] == count]
        numbers = [queries.numbers[places[row]] for row in chosen]
        if chosen:
            found[f"{name}_{count}"] = case.numbered([values[chosen]], numbers)
    return found
