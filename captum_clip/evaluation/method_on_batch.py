"""What a task measures, one method on one batch: its maps are made once for all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from .. import maps as resizing
from ..errors import InputError
from ..models import ClipAdapter
from .batch import Batch, Queries, queries_of
from .config import EvaluationConfig
from .methods import Method
from .table import Metric
from .units import Arrays, Skipped


class Task(ABC):
    """Metrics that belong together."""

    name: str  # on the command line and in the tables

    @abstractmethod
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """Title of a table -> its metrics."""

    @abstractmethod
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Measure one method on one batch: :func:`captum_clip.evaluation.table.rows_of` it."""


class MethodOnBatch:
    """One method on one batch; maps that several tasks need are made once."""

    def __init__(self, batch: Batch, method: Method) -> None:
        self.batch: Final = batch
        self.method: Final = method
        self.context: Final = batch.context
        self.clip: Final = batch.context.clip
        self.config: Final = batch.context.config
        self.skipped: Final[Skipped] = []  # what has no finite map

    @cached_property
    def _regions(self) -> tuple[Queries, Tensor, Tensor]:
        """Queries, masks and maps of every region with a finite map."""
        views = [view for view in self.batch.views for _ in view.regions]
        texts = [region.text for view in self.batch.views for region in view.regions]
        masks = torch.cat([view.masks for view in self.batch.views])
        queries = queries_of(views, _targets(self.batch, texts), texts)
        kept, raw = self.compute_finite(queries)
        return queries.part(kept), masks[kept], raw

    @property
    def regions(self) -> Queries:
        """Every region with a finite map (N); why the others have none goes to `skipped`."""
        return self._regions[0]

    @property
    def masks(self) -> Tensor:
        """Of `regions`, (N, H, W) bool."""
        return self._regions[1]

    @property
    def raw(self) -> Tensor:
        """Maps (N, h, w) of `regions`, as the method gives them."""
        return self._regions[2]

    @cached_property
    def positive(self) -> Tensor:
        """Positive evidence for the target: (N, h, w), not below zero."""
        return resizing.positive(self.raw)

    @cached_property
    def negative(self) -> Tensor | None:
        """Negative evidence, (N, h, w), not below zero; None where the method has none."""
        return self.compute_negative(self.regions, self.raw)

    @cached_property
    def signed(self) -> Tensor:
        """Positive less negative evidence."""
        return self.positive if self.negative is None else self.positive - self.negative

    def compute_finite(
        self, queries: Queries, clip: ClipAdapter | None = None
    ) -> tuple[list[int], Tensor]:
        """Indices of the queries with a finite map, and these maps (n, h, w).

        Computed a batch at a time, of another model where one is given; why the others have none
        goes to `skipped`.
        """
        if not len(queries):
            return [], queries.embeddings[:, None]
        parts = queries.split(self.config.batch_size)
        raw = torch.cat([self.method.maps(clip or self.clip, part) for part in parts])
        kept = self._finite(raw, queries, queries.texts)
        return kept, raw[kept]

    def compute_negative(self, queries: Queries, raw: Tensor) -> Tensor | None:
        """The negative maps (N, h, w) that go with finite maps; None where the method has none.

        NaN where there is none; why goes to `skipped`.
        """
        size = self.config.batch_size
        pairs = zip(queries.split(size), torch.split(raw, size), strict=True)
        parts = [self.method.negative_maps(self.clip, *pair) for pair in pairs]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        negative = torch.cat(known)
        self._finite(negative, queries, [f"not {text}" for text in queries.texts])
        return negative

    def _finite(self, maps: Tensor, queries: Queries, texts: Sequence[str]) -> list[int]:
        """Indices of the finite maps; why the others are not goes to `skipped`."""
        kept = finite_indices(maps)
        for index in sorted({*range(len(maps))} - {*kept}):
            reason = self.method.why_not(queries.names[index], texts[index])
            self.skipped.append((queries.numbers[index], f"{self.method.name}: {reason}"))
        return kept

    @cached_property
    def first_queries(self) -> Queries:
        """Each sample with its first region, or with its class where it has no regions.

        For what is measured once an image; samples with neither are left out.
        """
        classes = self.context.data.classes
        views = [v for v in self.batch.views if v.regions or v.sample.label is not None]
        texts = [v.regions[0].text if v.regions else classes[v.sample.label or 0] for v in views]
        if not views:
            return Queries(self.batch.pixels[:0], self.context.encode([""])[:0], (), (), ())
        return queries_of(views, self.context.encode(texts), texts)

    def options_of(self, queries: Queries) -> dict[str, Any]:
        """Options of metrics that draw: an image's draws are those of its own number."""
        seed = [self.config.seed + number for number in queries.numbers]
        return {"batch_size": self.config.batch_size, "seed": seed}

    def slow(self, queries: Queries) -> Queries:
        """Those of the images that are drawn for what takes long."""
        drawn = self.context.slow_numbers
        return queries.part([i for i, number in enumerate(queries.numbers) if number in drawn])


def finite_indices(maps: Tensor) -> list[int]:
    """Which of the maps (N, h, w) are finite."""
    indices: list[int] = torch.isfinite(maps).flatten(1).all(1).nonzero()[:, 0].tolist()
    return indices


def _targets(batch: Batch, texts: Sequence[str]) -> Tensor:
    """Unit rows (N, D) of all regions: of their texts, or of their reference images."""
    context = batch.context
    if context.config.against == "text":
        return context.encode(texts)
    references = [region.reference for view in batch.views for region in view.regions]
    known = [image for image in references if image is not None]
    if len(known) < len(references):
        raise InputError(
            f"{context.data.name} has no images to explain its images against; take against='text'."
        )
    size = context.config.batch_size
    parts = [known[start : start + size] for start in range(0, len(known), size)]
    clip = context.clip
    return torch.cat([clip.encode_image(clip.preprocess(part)).detach() for part in parts])
