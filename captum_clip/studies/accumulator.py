"""Sums over maps, from which all statistics of a study follow; sums of parts can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .batch_explainer import Explained

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Accumulator:
    r"""Sums over N images, float64, whose memory does not grow with N.

    A stretched map is :math:`a \, U m + b` with the upsampling U linear, so the mean of stretched
    maps needs only :math:`\sum a m` on the model's own grid and :math:`\sum b`.

    Attributes:
        images: N.
        constant: (K,) maps that are constant, and part of nothing below but `scores` and `raw`.
        scores: (K,) sum of the cosine similarities.
        raw: (K, h, w) sum of the positive maps m.
        stretched: (K, h, w) sum of a m + b.
        measures: name -> (K,) sum.
        centred: indices of (emotion, the same emotion centred) among the K.
        correlated: (P,) images whose two maps both vary, a number for each pair.
        correlation: (P,) sum of the correlations of the two maps over the grid.
    """

    images: int
    constant: npt.NDArray[np.int64]
    scores: Array
    raw: Array
    stretched: Array
    measures: dict[str, Array]
    centred: tuple[tuple[int, int], ...]
    correlated: npt.NDArray[np.int64]
    correlation: Array

    @classmethod
    def of(cls, part: Explained, centred: Sequence[tuple[int, int]] = ()) -> Accumulator:
        """The sums over the images of a batch or a shard."""
        maps = part.maps.astype(np.float64).clip(min=0)  # (N, K, h, w)
        low, high = part.measures["low"], part.measures["high"]
        measures = {n: v for n, v in part.measures.items() if n not in ("low", "high")}
        constant = np.isnan(measures["spatial_variance"])
        scale = np.where(constant, 0, 1 / np.where(constant, 1, high - low))
        stretched = (maps - low[..., None, None]) * scale[..., None, None]
        pairs = tuple(centred)
        found = _correlations(maps, constant, pairs)
        return cls(
            images=len(maps),
            constant=constant.sum(0),
            scores=part.scores.sum(0, dtype=np.float64),
            raw=maps.sum(0),
            stretched=stretched.sum(0),
            measures={name: np.nansum(values, 0) for name, values in measures.items()},
            centred=pairs,
            correlated=(~np.isnan(found)).sum(0),
            correlation=np.nansum(found, 0),
        )

    def merge(self, other: Accumulator) -> Accumulator:
        """The sums over the images of both.

        Raises:
            InputError: they are of different targets or maps.
        """
        if self.raw.shape != other.raw.shape or self.measures.keys() != other.measures.keys():
            raise InputError(
                f"Accumulator.merge: expected sums of the same targets and maps, got "
                f"{self.raw.shape} and {other.raw.shape}."
            )
        added = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("measures", "centred")
        }
        measures = {name: self.measures[name] + other.measures[name] for name in self.measures}
        return Accumulator(**added, measures=measures, centred=self.centred)

    @property
    def varying(self) -> npt.NDArray[np.int64]:
        """(K,) maps that are not constant."""
        return self.images - self.constant

    @property
    def mean_raw(self) -> Array:
        """(K, h, w) mean of the positive maps."""
        return self.raw / self.images if self.images else np.full_like(self.raw, np.nan)

    @property
    def mean_stretched(self) -> Array:
        """(K, h, w) mean of the stretched maps; upsampled it is their mean at full size."""
        return _over(self.stretched, self.varying[:, None, None])

    @property
    def mean_score(self) -> Array:
        """(K,) mean cosine similarity."""
        return _over(self.scores, np.array(self.images))

    def mean_of(self, measure: str) -> Array:
        """(K,) mean of a measure over the maps that vary."""
        return _over(self.measures[measure], self.varying)

    @property
    def mean_correlation(self) -> Array:
        """(P,) mean correlation of each pair."""
        return _over(self.correlation, self.correlated)


def _over(sums: Array, counts: npt.NDArray[np.int64]) -> Array:
    """A mean; NaN where there is nothing."""
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


def _correlations(
    maps: Array, constant: npt.NDArray[np.bool_], pairs: Sequence[tuple[int, int]]
) -> Array:
    """Of the two maps of each pair, (N, P); NaN where one of them is constant."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    flat = maps.reshape(*maps.shape[:2], maps.shape[2] * maps.shape[3])
    found = correlation(flat[:, first], flat[:, second])
    return np.where(constant[:, first] | constant[:, second], np.nan, found)


def correlation(first: Array, second: Array) -> Array:
    r"""Pearson's correlation over the last axis; NaN where one side does not vary.

    .. math:: r = \frac{\sum (x - \bar x)(y - \bar y)}
                       {\sqrt{\sum (x - \bar x)^2 \sum (y - \bar y)^2}}
    """
    varies = _varies(first) & _varies(second)
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    lengths = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    varies &= lengths > 0
    return np.asarray(
        np.where(varies, (first * second).sum(-1) / np.where(varies, lengths, 1), np.nan)
    )


def _varies(values: Array) -> npt.NDArray[np.bool_]:
    """Whether more than the rounding of the values tells them apart."""
    rounding = 8 * np.finfo(np.float64).eps * np.abs(values).max(-1)
    return np.asarray(values.max(-1) - values.min(-1) > rounding)
