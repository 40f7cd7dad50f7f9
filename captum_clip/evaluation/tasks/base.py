"""What a task is: metrics of one method on one chunk of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ... import maps as resizing
from ...errors import InputError
from ...models import ClipAdapter
from ..bench import Bench, Shared
from ..chunk import Seen
from ..config import EvaluationConfig
from ..methods import Method, Queries, opposite
from ..metric import CurveRows, Metric, Rows


@dataclass(frozen=True, eq=False)
class Found:
    """What a task measured.

    Attributes:
        rows: name of the metric -> its rows.
        curves: name of the curve -> its rows.
        skipped: (number of the sample, reason) of what has no finite map.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    curves: dict[str, CurveRows] = field(default_factory=dict)
    skipped: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Asked:
    """Regions, each with the sample that it is of.

    Attributes:
        queries: its image and its target.
        owners: (N,) places among the chunk's samples.
        masks: (N, H, W) bool.
    """

    queries: Queries
    owners: tuple[int, ...]
    masks: Tensor


class Case:
    """One method on one chunk; maps that several tasks need are made once.

    Args:
        bench: the model and the data.
        shared: the chunk, with what all methods need of it.
        method: the method.
    """

    def __init__(self, bench: Bench, shared: Shared, method: Method) -> None:
        self.bench: Final = bench
        self.shared: Final = shared
        self.method: Final = method
        self.skipped: list[tuple[int, str]] = []

    @property
    def clip(self) -> ClipAdapter:
        """The model."""
        return self.bench.clip

    @property
    def config(self) -> EvaluationConfig:
        """The settings."""
        return self.bench.config

    @property
    def seen(self) -> tuple[Seen, ...]:
        """The samples."""
        return self.shared.chunk.seen

    @cached_property
    def asked(self) -> Asked:
        """Every region with a finite map; why the others have none goes to `skipped`."""
        everything = _asked(self.bench, self.seen)
        raw = self.maps(everything.queries)
        kept = self.finite(everything.queries, raw)
        self._raw = raw[kept]
        return Asked(
            everything.queries.part(kept),
            tuple(everything.owners[place] for place in kept),
            everything.masks[kept],
        )

    @cached_property
    def raw(self) -> Tensor:
        """Maps (N, h, w) of `asked`, as the method gives them."""
        _ = self.asked
        return self._raw

    @cached_property
    def positive(self) -> Tensor:
        """What speaks for the target: (N, h, w), not below zero."""
        return resizing.positive(self.raw)

    @cached_property
    def negative(self) -> Tensor | None:
        """What speaks against it, (N, h, w), not below zero; None where the method has none."""
        return self.opposite(self.asked.queries, self.raw)

    @cached_property
    def signed(self) -> Tensor:
        """What speaks for the target less what speaks against it."""
        return self.positive if self.negative is None else self.positive - self.negative

    def maps(self, queries: Queries, clip: ClipAdapter | None = None) -> Tensor:
        """The method's maps (N, h, w), a batch at a time; of another model where one is given."""
        parts = torch.split(torch.arange(len(queries)), self.config.batch_size)
        return torch.cat(
            [self.method.maps(clip or self.clip, queries.part(part.tolist())) for part in parts]
        )

    def opposite(self, queries: Queries, raw: Tensor) -> Tensor | None:
        """The negative maps (N, h, w) that go with finite maps; None where the method has none."""
        parts = torch.split(torch.arange(len(queries)), self.config.batch_size)
        found = [
            opposite(self.method, self.clip, queries.part(part.tolist()), raw[part])
            for part in parts
        ]
        some = [one for one in found if one is not None]
        return torch.cat(some) if some else None

    def finite(self, queries: Queries, raw: Tensor) -> list[int]:
        """Places of the finite maps; why the others are not goes to `skipped`."""
        kept = torch.isfinite(raw).flatten(1).all(1).nonzero()[:, 0].tolist()
        for place in sorted({*range(len(raw))} - {*kept}):
            reason = self.method.why_not(queries.names[place], queries.texts[place])
            self.skipped.append((queries.numbers[place], f"{self.method.name}: {reason}"))
        return kept

    def rows(self, values: Tensor | Sequence[Tensor], owners: Sequence[int]) -> Rows:
        """Rows of values (N,) or columns of them, by places in the chunk."""
        columns = [values] if isinstance(values, Tensor) else values
        return self.numbered(columns, [self.seen[owner].number for owner in owners])

    def numbered(self, columns: Sequence[Tensor], numbers: Sequence[int]) -> Rows:
        """Rows of columns (N,), by numbers of samples; what is not finite is left out."""
        table = np.stack([column.double().cpu().numpy() for column in columns], axis=1)
        finite = np.isfinite(table).all(1)
        return Rows(np.array(numbers, dtype=np.int64)[finite], table[finite])


def queries_of(seen: Sequence[Seen], rows: Tensor, texts: Sequence[str]) -> Queries:
    """Each sample with a target: rows (N, D) and what they are called."""
    return Queries(
        torch.stack([one.pixels for one in seen]),
        rows,
        tuple(one.sample.name for one in seen),
        tuple(texts),
        tuple(one.number for one in seen),
    )


def _asked(bench: Bench, seen: Sequence[Seen]) -> Asked:
    """Every region of some samples with its target."""
    owners = [place for place, one in enumerate(seen) for _ in one.regions]
    texts = [region.text for one in seen for region in one.regions]
    queries = queries_of([seen[owner] for owner in owners], _rows(bench, seen, texts), texts)
    return Asked(queries, tuple(owners), torch.cat([one.masks for one in seen]))


def _rows(bench: Bench, seen: Sequence[Seen], texts: Sequence[str]) -> Tensor:
    if bench.config.against == "text":
        return bench.encode(texts)
    pictures = [region.reference for one in seen for region in one.regions]
    known = [picture for picture in pictures if picture is not None]
    if len(known) < len(pictures):
        raise InputError(
            f"{bench.data.name} has no pictures to explain its images against; take against='text'."
        )
    parts = [
        bench.clip.encode_image(bench.clip.preprocess(known[start : start + size])).detach()
        for size in [bench.config.batch_size]
        for start in range(0, len(known), size)
    ]
    return torch.cat(parts)


class Task(ABC):
    """Metrics that belong together.

    Attributes:
        name: on the command line and in the tables.
        what: one line.
    """

    name: str
    what: str

    @abstractmethod
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """Title of a table -> its metrics."""

    @abstractmethod
    def measure(self, case: Case) -> Found:
        """Measure one method on one chunk."""
