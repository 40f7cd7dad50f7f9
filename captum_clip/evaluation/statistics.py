r"""Statistics of maps over many images: measures of each map, sums over them, and the tables.

Measures are those of min-max maps at the size of the image, taken on the model's own grid where
they can. Upsampling is linear in the map, :math:`U m = R_h m R_w^T`, and a min-max map is
:math:`x = a \, U m + b`. So its sum and its sum of squares are forms of the small map. Between
neighbouring cells x is bilinear: its extremes lie on the outermost pixels there. Only the entropy
has to look at every pixel.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import maps as resizing
from .. import metrics, visualization
from ..maps import pearson
from ..targets import Target
from .run import Arrays, to_csv, to_npz

STATISTICS: Final = "statistics.csv"
VALUE_ENTROPY: Final = "value_entropy"
MEASURE: Final = "measure_"
"""Begins the names of the measures among the arrays of a unit."""
_ALWAYS: Final = ("spatial_variance", "spatial_entropy")
_DTYPE: Final = "float32"  # of the min-max maps at full size that are measured
_AT_ONCE: Final = 2**20  # pixels that are worked on together, so that they stay in the cache
_TINY: Final = torch.finfo(torch.float32).tiny  # x log x of it is nothing; not flushed to zero

Array = npt.NDArray[np.float64]


def measure(maps: Tensor, size: tuple[int, int], *, values: bool = False) -> dict[str, Tensor]:
    """Extremes of ``maps.upsample(m, size)``, and statistics of it stretched to [0, 1].

    Args:
        maps: (..., h, w), finite, float32.
        size: (H, W) of the images.
        values: whether :func:`captum_clip.metrics.value_entropy` is measured as well.

    Returns:
        name -> (...), float64: "low" and "high", then "spatial_variance", "spatial_entropy"
        and perhaps "value_entropy" as in :mod:`captum_clip.metrics`. These are NaN for a map
        that is constant as :func:`captum_clip.maps.normalize` sees it.
    """
    shape, grid = maps.shape[:-2], maps.shape[-2:]
    small = maps.reshape(-1, *grid)
    wide = small.double()
    rows, columns = (
        _interpolation(*sides).to(maps.device) for sides in zip(size, grid, strict=True)
    )
    outermost = (_outermost(rows) @ wide @ _outermost(columns).T).flatten(1)
    low, high = outermost.amin(1), outermost.amax(1)
    largest = torch.maximum(low.abs(), high.abs())
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
    span = torch.where(varies, high - low, 1)
    stretched = (wide - low[:, None, None]) / span[:, None, None]
    measured = {
        "spatial_variance": _variance(stretched, rows, columns),
        "spatial_entropy": _entropy(stretched, rows, columns),
    }
    if values:  # by its definition to the bit, since it asks which values are the same
        large = (resizing.upsample(part, size) for part in torch.split(small, 1))
        entropies = [metrics.value_entropy(resizing.normalize(part)) for part in large]
        measured[VALUE_ENTROPY] = torch.cat(entropies)
    measured = {name: torch.where(varies, value, torch.nan) for name, value in measured.items()}
    measured = {"low": low, "high": high, **measured}
    return {name: value.reshape(shape) for name, value in measured.items()}


def _variance(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean square less squared mean, of maps that were moved to a mean near zero."""
    maps = maps - maps.mean((-2, -1), keepdim=True)
    pixels = len(rows) * len(columns)
    squares = (maps * (rows.T @ rows @ maps @ columns.T @ columns)).sum((-2, -1))
    return squares / pixels - (maps @ columns.sum(0) @ rows.sum(0) / pixels).square()


def _entropy(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    r""":math:`\log_2 S - \frac{1}{S} \sum x \log_2 x`, with S the sum of x."""
    half = rows.float() @ maps.float()  # (N, H, w)
    at_once = max(1, _AT_ONCE // (len(rows) * len(columns)))
    sums = []
    for part in torch.split(half, at_once):
        values = (part @ columns.float().T).clamp_(min=_TINY)
        sums.append(torch.log2(values).mul_(values).sum((-2, -1)))
    total = maps @ columns.sum(0) @ rows.sum(0)
    return torch.log2(total) - torch.cat(sums).double() / total


def _interpolation(pixels: int, cells: int) -> Tensor:
    """R (pixels, cells), as `maps.upsample` interpolates."""
    unit = torch.eye(cells, dtype=torch.float64)[:, :, None]  # one column per cell
    return resizing.upsample(unit, (pixels, 1))[:, :, 0].T


def _outermost(axis: Tensor) -> Tensor:
    """Of the pixels between two neighbouring cells the first and the last one."""
    cell = (axis != 0).int().argmax(1)
    changes = cell[1:] != cell[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=axis.device)
    return axis[torch.cat([edge, changes]) | torch.cat([changes, edge])]


def sums_of(unit: Arrays, pairs: Sequence[tuple[int, int]] = ()) -> Arrays:
    r"""Sums over the N images of a unit, float64; those of all units are added up.

    A min-max map is :math:`a \, U m + b` with the upsampling U linear, so the mean of such maps
    needs only :math:`\sum a m` on the model's own grid and :math:`\sum b`.

    Args:
        unit: the "maps" (N, K, h, w), "scores" (N, K) and measures (N, K) of its images.
        pairs: indices of (emotion, the same emotion centred) among the K targets.

    Returns:
        "score" (K,), the cosine similarities; "raw" (K, h, w), the positive maps m; "stretched"
        (K, h, w), a m + b; each measure (K,); "correlation" (P,) of the two maps of each pair over
        the grid; and "score_count" and so on, how many images each sum is over. A map that does
        not vary is part of no sum but "score" and "raw".
    """
    maps = unit["maps"].astype(np.float64).clip(min=0)
    low, high = unit[f"{MEASURE}low"], unit[f"{MEASURE}high"]
    varies = ~np.isnan(unit[f"{MEASURE}spatial_variance"])
    scale = np.where(varies, 1 / np.where(varies, high - low, 1), np.nan)
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    flat = torch.from_numpy(maps).flatten(2)
    correlations = pearson(flat[:, first], flat[:, second]).numpy()
    values = {
        "score": unit["scores"].astype(np.float64),
        "raw": maps,
        "stretched": (maps - low[..., None, None]) * scale[..., None, None],
        "correlation": np.where(varies[:, first] & varies[:, second], correlations, np.nan),
    }
    values |= {name.removeprefix(MEASURE): unit[name] for name in unit if MEASURE in name}
    counts = {f"{name}_count": (~np.isnan(value)).sum(0) for name, value in values.items()}
    return {**{name: np.nansum(value, 0) for name, value in values.items()}, **counts}


@dataclass(frozen=True, eq=False)
class Job:
    """A model with a method and its targets, made ready."""

    key: str  # names its files
    model: str  # what results call it
    method: str  # with its options, as on the command line
    target: Target  # K directions
    centred: tuple[tuple[int, int], ...]  # of the K, indices of (emotion, the same one centred)
    size: tuple[int, int]  # (H, W) of the images that the model sees
    location: str = ""  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str] = field(default_factory=dict)  # of the model, in every worker
    kind: str = ""  # of its tower
    emotions: str = ""  # SHA-256 of the emotions' weights; "" where there are none


@dataclass(frozen=True, eq=False)
class Statistics:
    """All that was found of one model and method."""

    job: Job
    sums: Arrays  # of :func:`sums_of`, over all images that could be read
    skipped: dict[int, str]  # number of an image that was left out -> why

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the model's own maps."""
        height, width = self.sums["raw"].shape[-2:]
        return int(height), int(width)

    @property
    def images(self) -> int:
        """How many images could be read."""
        return int(self.sums["score_count"][0])

    @property
    def constant(self) -> Array:
        """How many maps of each target do not vary, (K,)."""
        return np.asarray(self.images - self.sums["spatial_variance_count"])

    def mean(self, name: str) -> Array:
        """The mean of one of the sums, over the images that are in it; NaN where there is none."""
        total, count = self.sums[name], self.sums[f"{name}_count"]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def bias(self, where: str, of: str) -> Array:
        """The corner or centre bias (K,) of each mean map; NaN where there is no mean."""
        mean = self.mean(of)
        finite = np.asarray(np.isfinite(mean).all((-2, -1)))
        maps = torch.from_numpy(np.where(finite[:, None, None], mean, 0))
        compute = {"corner": metrics.corner_bias, "centre": metrics.centre_bias}[where]
        return np.where(finite, compute(maps).numpy(), np.nan)


def result_files(results: Sequence[Statistics], centring: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; the statistics, which say that all is done, come last."""
    for one in results:
        yield f"mean_maps/{one.job.key}.npz", _mean_maps(one)
    yield "mean_maps.png", _figure(results)
    if len(results) > 1:
        yield "correlations.csv", _table(_correlations(results))
    if centring:
        yield "centring.csv", _table(row for one in results for row in _centring(one))
    yield STATISTICS, _table(row for one in results for row in _statistics(one))


def _table(rows: Iterator[dict[str, Any]]) -> bytes:
    listed = list(rows)
    return to_csv(list(listed[0]), [list(row.values()) for row in listed])


def _statistics(one: Statistics) -> Iterator[dict[str, Any]]:
    """A row for each target; results only."""
    nothing = np.full(len(one.job.target), np.nan)
    columns = {name: one.mean(name) for name in ("score", *_ALWAYS)}
    columns[VALUE_ENTROPY] = one.mean(VALUE_ENTROPY) if VALUE_ENTROPY in one.sums else nothing
    for of, suffix in (("stretched", ""), ("raw", "_raw")):
        for where in ("corner", "centre"):
            columns[f"{where}_bias{suffix}"] = one.bias(where, of)
    for index, name in enumerate(one.job.target.names):
        yield {
            "model": one.job.model,
            "method": one.job.method,
            "target": name,
            "images": one.images,
            "skipped": len(one.skipped),
            "constant": int(one.constant[index]),
            **{column: float(values[index]) for column, values in columns.items()},
            "dtype": _DTYPE,
            "height": one.job.size[0],
            "width": one.job.size[1],
            "grid_height": one.grid[0],
            "grid_width": one.grid[1],
        }


def _mean_maps(one: Statistics) -> bytes:
    """On the model's own grid; docs/studies.md describes how they get their full size."""
    return to_npz(
        {
            "label": np.array(f"{one.job.model} ({one.job.method})"),
            "names": np.array(one.job.target.names, dtype=np.str_),
            "raw": one.mean("raw"),
            "stretched": one.mean("stretched"),
            "size": np.array(one.job.size),
            "images": np.array(one.images),
            "constant": one.constant,
        }
    )


def _figure(results: Sequence[Statistics]) -> bytes:
    """Mean maps, all on one scale, as PNG: a row per model and method and a column per target."""
    labels = [f"{one.job.model} \N{MIDDLE DOT} {one.job.method}" for one in results]
    means = [np.nan_to_num(one.mean("stretched")) for one in results]
    notes = [
        [
            "no map varies" if np.isnan(corner) else f"corner {corner:.2f}, centre {centre:.2f}"
            for corner, centre in zip(
                one.bias("corner", "stretched"), one.bias("centre", "stretched"), strict=True
            )
        ]
        for one in results
    ]
    counts = sorted({one.images for one in results})
    figure = visualization.average(
        dict(zip(labels, means, strict=True)),
        names=results[0].job.target.names,
        notes=dict(zip(labels, notes, strict=True)),
        scale=(min(float(m.min()) for m in means), max(float(m.max()) for m in means)),
        caption=f"mean of min-max maps of {' and '.join(map(str, counts))} images",
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi="figure")
    return file.getvalue()


def _correlations(results: Sequence[Statistics]) -> Iterator[dict[str, Any]]:
    """Correlation of the mean maps of every two, for each target, on the finer grid."""
    for first, second in combinations(results, 2):
        height, width = (max(sides) for sides in zip(first.grid, second.grid, strict=True))
        stretched, raw = (
            pearson(*(_flat(one.mean(kind), (height, width)) for one in (first, second)))
            for kind in ("stretched", "raw")
        )
        for index, name in enumerate(first.job.target.names):
            yield {
                "model_a": first.job.model,
                "method_a": first.job.method,
                "model_b": second.job.model,
                "method_b": second.job.method,
                "target": name,
                "correlation": float(stretched[index]),
                "correlation_raw": float(raw[index]),
                "grid_height": height,
                "grid_width": width,
            }


def _flat(mean: Array, size: tuple[int, int]) -> Tensor:
    """Mean maps (K, h, w) -> (K, H * W)."""
    finite = torch.from_numpy(np.where(np.isfinite(mean), mean, 0))
    return resizing.upsample(finite, size).flatten(1)


def _centring(one: Statistics) -> Iterator[dict[str, Any]]:
    """How far each emotion and its maps move when the mean of all emotions is taken away."""
    # normalised once more, for this precision
    embeddings = F.normalize(one.job.target.embeddings.double()).numpy()
    mean, correlations = one.mean("stretched"), one.mean("correlation")
    for pair, (plain, centred) in enumerate(one.job.centred):
        means = [_flat(mean[[index]], one.grid) for index in (plain, centred)]
        yield {
            "model": one.job.model,
            "method": one.job.method,
            "emotion": one.job.target.names[plain],
            "images": int(one.sums["correlation_count"][pair]),
            "cosine": float(embeddings[plain] @ embeddings[centred]),
            "map_correlation": float(correlations[pair]),
            "mean_map_correlation": float(pearson(*means)[0]),
        }
