"""A model with a data set: its encodings and its modified copies, each made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from .. import targets
from ..errors import InputError
from ..files import draw_order
from ..models import ClipAdapter, load_clip
from ..models.towers import ViTTower
from ..models.variants import randomize_parameters, renumber_heads
from ..similarity import ClipSimilarity
from .config import EvaluationConfig
from .data.base import DataSet

Forward = Callable[[Tensor], Tensor]


class ModelContext:
    """A model with a data set and the settings of an evaluation."""

    def __init__(self, clip: ClipAdapter, data: DataSet, config: EvaluationConfig) -> None:
        self.clip: Final = clip
        self.data: Final = data
        self.config: Final = config
        self._texts: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (N, D) of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            rows = targets.text(self.clip, new, allow_empty=True).bank
            self._texts |= dict(zip(new, rows, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def forward(self, rows: Tensor) -> Forward:
        """Images -> their cosines with unit rows."""
        return ClipSimilarity(self.clip, targets.embedding(rows))

    @torch.no_grad()
    def scores(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Cosines (N, K) of images, a batch at a time."""
        forward = self.forward(rows)
        return torch.cat([forward(part) for part in torch.split(pixels, self.config.batch_size)])

    @cached_property
    def slow_numbers(self) -> frozenset[int]:
        """The samples that see what takes long, drawn from all."""
        return frozenset(draw_order(self.data.names, self.config.seed)[: self.config.few])

    @cached_property
    def classes(self) -> Tensor:
        """Rows (C, D) of the data set's classes.

        Raises:
            InputError: fewer than two classes.
        """
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
