"""A model with a data set, and some samples as the model sees them, for all methods alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import targets
from ..errors import InputError
from ..files import draw_order
from ..models import ClipAdapter, load_clip
from ..models.geometry import resize_masks
from ..models.images import is_away
from ..models.towers import ViTTower
from ..models.variants import randomize_parameters, renumber_heads
from ..similarity import ClipSimilarity
from .config import EvaluationConfig
from .data.base import DataSet, Region, Sample
from .table import rows_of
from .units import AGAIN, Arrays, Skipped

Remembered = TypeVar("Remembered")


class ModelContext:
    """A model with a data set and the settings; encodings and copies are made once and kept."""

    def __init__(self, clip: ClipAdapter, data: DataSet, config: EvaluationConfig) -> None:
        self.clip: Final = clip
        self.data: Final = data
        self.config: Final = config
        self._texts: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            embeddings = targets.text(self.clip, new, allow_empty=True).embeddings
            self._texts |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def forward(self, embeddings: Tensor) -> Callable[[Tensor], Tensor]:
        """Images -> their cosines with embeddings."""
        return ClipSimilarity(self.clip, targets.embedding(embeddings))

    @torch.no_grad()
    def scores(self, pixels: Tensor, embeddings: Tensor) -> Tensor:
        """Cosines (N, K) of images, a batch at a time."""
        forward = self.forward(embeddings)
        return torch.cat([forward(part) for part in torch.split(pixels, self.config.batch_size)])

    @cached_property
    def slow_numbers(self) -> frozenset[int]:
        """The samples that see what takes long, drawn from all."""
        return frozenset(draw_order(self.data.names, self.config.seed)[: self.config.slow_images])

    @cached_property
    def classes(self) -> Tensor:
        """Embeddings (C, D) of the data set's classes, two or more."""
        if len(self.data.classes) < 2:
            raise InputError(
                f"{self.data.name}: zero-shot classification needs two classes or more, there are "
                f"{len(self.data.classes)}."
            )
        return self.encode(list(self.data.classes))

    @cached_property
    def random_copy(self) -> ClipAdapter:
        """The model with random parameters in its whole vision tower."""
        return randomize_parameters(self.clip, seed=self.config.seed)

    @cached_property
    def renumbered_copy(self) -> ClipAdapter | None:
        """The same function with the heads of all layers but the last permuted; only of a ViT."""
        tower = self.clip.tower
        if not isinstance(tower, ViTTower):
            return None
        generator = torch.Generator().manual_seed(self.config.seed)
        changed = self.clip.model
        for layer, attention in enumerate(tower.layers[:-1]):
            order = torch.randperm(attention.heads, generator=generator).tolist()
            changed = renumber_heads(changed, layer, order)
        parts = {"processor": self.clip.processor, "tokenizer": self.clip.tokenizer}
        return load_clip(changed, **parts)


@dataclass(frozen=True, eq=False)
class View:
    """One sample as the model sees it."""

    number: int  # in its data set
    sample: Sample  # as it was read
    pixels: Tensor  # (3, H, W), preprocessed
    regions: tuple[Region, ...]  # of which the crop shows something, and something else
    masks: Tensor  # (n, H, W) bool, one a region
    void: Tensor | None = None  # (H, W) bool, pixels that count for nothing; None where all count

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True, eq=False)
class Queries:
    """N images with one target each."""

    pixels: Tensor  # (N, 3, H, W), preprocessed
    embeddings: Tensor  # (N, D), the targets
    names: tuple[str, ...]  # of the samples
    texts: tuple[str, ...]  # what the targets are called
    numbers: tuple[int, ...]  # of the samples, which random baselines draw from

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, indices: Sequence[int]) -> Queries:
        """Some of them, in the given order."""
        kept = list(indices)
        return Queries(
            self.pixels[kept],
            self.embeddings[kept],
            tuple(self.names[i] for i in kept),
            tuple(self.texts[i] for i in kept),
            tuple(self.numbers[i] for i in kept),
        )

    def split(self, size: int) -> list[Queries]:
        """All of them in parts of at most `size`."""
        indices = range(len(self))
        return [self.part(indices[start : start + size]) for start in indices[::size]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def rows_of(
        self,
        metric: str,
        values: Tensor | Mapping[str, Tensor],
        *,
        x: float = math.nan,
        chance: Tensor | float = math.nan,
    ) -> Arrays:
        """:func:`captum_clip.evaluation.table.rows_of` what was measured of them."""
        return rows_of(metric, values, self.numbers, self.texts, x=x, chance=chance)


def queries_of(views: Sequence[View], embeddings: Tensor, texts: Sequence[str]) -> Queries:
    """Each sample with a target: embeddings (N, D) and their texts."""
    return Queries(
        torch.stack([view.pixels for view in views]),
        embeddings,
        tuple(view.sample.name for view in views),
        tuple(texts),
        tuple(view.number for view in views),
    )


class Batch:
    """Several samples of a data set, read and preprocessed one after the other."""

    def __init__(self, context: ModelContext, numbers: Sequence[int]) -> None:
        self.context: Final = context
        self.views: Final[list[View]] = []  # of the samples that could be read
        self.skipped: Final[Skipped] = []  # the other samples, and regions that were left out
        self._remembered: dict[str, Any] = {}
        for number in numbers:
            try:
                sample = context.data.read(number)
                view, left_out = _view(number, sample, context.clip)
            except InputError as error:
                self.skipped.append((number, f"{error}{AGAIN if is_away(error) else ''}"))
                continue
            self.views.append(view)
            self.skipped.extend((number, reason) for reason in (*sample.dropped, *left_out))

    @property
    def pixels(self) -> Tensor:
        """All images (S, 3, H, W)."""
        return torch.stack([view.pixels for view in self.views])

    def remember(self, name: str, compute: Callable[[], Remembered]) -> Remembered:
        """What `compute` gave when a method first asked for it."""
        if name not in self._remembered:
            self._remembered[name] = compute()
        remembered: Remembered = self._remembered[name]
        return remembered

    @cached_property
    def predicted(self) -> Tensor:
        """The class (S,) that the model finds in each image."""
        return self.context.scores(self.pixels, self.context.classes).argmax(1)

    @cached_property
    def subset_scores(self) -> dict[int, Tensor]:
        """Cosines (n, 2^n) of the regions' texts with every subset, by number of the sample."""
        scores = {}
        for view in self.views:
            if view.sample.subsets and len(view.regions) == len(view.sample.regions):
                texts = self.context.encode([region.text for region in view.regions])
                pixels = self.context.clip.preprocess(list(view.sample.subsets))
                scores[view.number] = self.context.scores(pixels, texts).T
        return scores


def _view(number: int, sample: Sample, clip: ClipAdapter) -> tuple[View, list[str]]:
    """A sample in the model's eyes, and the regions that its crop leaves nothing of."""
    [pixels] = clip.preprocess([sample.image])
    size = (pixels.shape[-2], pixels.shape[-1])
    if not sample.regions:
        return View(number, sample, pixels, (), torch.zeros(0, *size, dtype=torch.bool)), []
    own = [region.mask for region in sample.regions]
    stacked = np.stack(own if sample.void is None else [*own, sample.void])
    resized = torch.from_numpy(resize_masks(clip.processor, stacked, size)).to(pixels.device)
    masks, void = resized[: len(own)], None if sample.void is None else resized[-1]
    known = masks.flatten(1) if void is None else masks[:, ~void]
    kept, left_out = [], []
    for index, share in enumerate(known.float().mean(1).tolist()):
        if 0 < share < 1:
            kept.append(index)
        else:
            text = sample.regions[index].text
            left_out.append(f"the crop shows {'all' if share else 'nothing'} of {text!r}")
    if not kept:
        raise InputError(f"{sample.name}: {'; '.join(left_out)}")
    regions = tuple(sample.regions[index] for index in kept)
    return View(number, sample, pixels, regions, masks[kept], void), left_out
