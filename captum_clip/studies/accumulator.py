"""Sums over maps, from which all statistics of a study follow; sums of parts can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batch_explainer import Explained

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Accumulator:
    r"""Sums over N images, float64, whose memory does not grow with N.

    A stretched map is :math:`a \, U m + b` with the upsampling U linear, so the mean of stretched
    maps needs only :math:`\sum a m` on the model's own grid and :math:`\sum b`.

    The sums are "score" (K,), the cosine similarities; "raw" (K, h, w), the positive maps m;
    "stretched" (K, h, w), a m + b; each measure (K,); "correlation" (P,) of the two maps of each
    pair of targets over the grid.
    """

    images: int  # N
    constant: Counts  # (K,) maps that are constant, and part of no sum but "score" and "raw"
    correlated: Counts  # (P,) images whose two maps both vary
    sums: dict[str, Array]

    @classmethod
    def of(cls, part: Explained, pairs: Sequence[tuple[int, int]] = ()) -> Accumulator:
        """The sums over the images of a batch or a shard.

        Pairs are indices of (emotion, the same emotion centred) among the K targets.
        """
        maps = part.maps.astype(np.float64).clip(min=0)  # (N, K, h, w)
        low, high = part.measures["low"], part.measures["high"]
        measures = {n: v for n, v in part.measures.items() if n not in ("low", "high")}
        constant = np.isnan(measures["spatial_variance"])
        scale = np.where(constant, 0, 1 / np.where(constant, 1, high - low))
        stretched = (maps - low[..., None, None]) * scale[..., None, None]
        correlations = _correlations(maps, constant, pairs)
        return cls(
            images=len(maps),
            constant=constant.sum(0),
            correlated=(~np.isnan(correlations)).sum(0),
            sums={
                "score": part.scores.sum(0, dtype=np.float64),
                "raw": maps.sum(0),
                "stretched": stretched.sum(0),
                **{name: np.nansum(values, 0) for name, values in measures.items()},
                "correlation": np.nansum(correlations, 0),
            },
        )

    def merge(self, other: Accumulator) -> Accumulator:
        """The sums over the images of both, which have the same targets."""
        return Accumulator(
            self.images + other.images,
            self.constant + other.constant,
            self.correlated + other.correlated,
            {name: total + other.sums[name] for name, total in self.sums.items()},
        )

    @property
    def varying(self) -> Counts:
        """(K,) maps that are not constant."""
        return self.images - self.constant

    def mean(self, name: str) -> Array:
        """The mean of one of the sums, over the images that are in it; NaN where there is none."""
        every = np.array(self.images)
        counts = {"score": every, "raw": every, "correlation": self.correlated}
        total, count = self.sums[name], counts.get(name, self.varying)
        if total.ndim == 3:
            count = count.reshape(-1, 1, 1)
        return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)


def _correlations(
    maps: Array, constant: npt.NDArray[np.bool_], pairs: Sequence[tuple[int, int]]
) -> Array:
    """Of the two maps of each pair, (N, P); NaN where one of them is constant."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    flat = maps.reshape(*maps.shape[:2], maps.shape[2] * maps.shape[3])
    either = constant[:, first] | constant[:, second]
    return np.where(either, np.nan, correlation(flat[:, first], flat[:, second]))


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
