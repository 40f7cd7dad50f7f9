r"""Statistics of maps over many images: measures of each map, sums over them, and the tables.

Measures are those of min-max maps at the size of the image, taken on the model's own grid where
they can. Upsampling is linear in the map, :math:`U m = R_h m R_w^T`, and a min-max map is
:math:`x = a \, U m + b`. So its sum and its sum of squares are forms of the small map. Between
neighboring cells x is bilinear: its extremes lie on the outermost pixels there. Only the entropy
has to look at every pixel.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import metrics, visualization
from ..maps import normalize, upsample
from ..metrics.map_statistics import entropy, interpolations, variance
from ..targets import Target
from .units import Arrays, Skipped, to_csv, to_npz

STATISTICS: Final = "statistics.csv"
VALUE_ENTROPY: Final = "value_entropy"
MEASURE: Final = "measure_"
"""Begins the names of the measures among the arrays of a unit."""
_MEASURES: Final = ("spatial_variance", "spatial_entropy", VALUE_ENTROPY)
_DTYPE: Final = "float32"  # of the min-max maps at full size that are measured

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
    axes = interpolations(maps.shape[-2:], size, maps.device)
    rows, columns = map(_outermost, axes)
    wide = maps.double()
    outermost = (rows @ wide @ columns.T).flatten(-2)
    low, high = outermost.amin(-1), outermost.amax(-1)
    largest = torch.maximum(low.abs(), high.abs())
    # The tolerance of maps.normalize: what it takes for constant has no statistics here.
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
    span = torch.where(varies, high - low, 1)
    stretched = (wide - low[..., None, None]) / span[..., None, None]
    measured = {
        "spatial_variance": variance(stretched, axes),
        "spatial_entropy": entropy(stretched, axes),
    }
    if values:  # by its definition to the bit, since it asks which values are the same
        large = (upsample(heatmap, size) for heatmap in maps.reshape(-1, 1, *maps.shape[-2:]))
        entropies = [metrics.value_entropy(normalize(heatmap)) for heatmap in large]
        measured[VALUE_ENTROPY] = torch.cat(entropies).reshape(varies.shape)
    measured = {name: torch.where(varies, value, torch.nan) for name, value in measured.items()}
    return {"low": low, "high": high, **measured}


def _outermost(axis: Tensor) -> Tensor:
    """The first and the last pixel between two neighboring cells."""
    cell = (axis != 0).int().argmax(1)
    changes = cell[1:] != cell[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=axis.device)
    return axis[torch.cat([edge, changes]) | torch.cat([changes, edge])]


def sums_of(unit: Arrays) -> Arrays:
    r"""Sums over the N images of a unit, float64; those of all units are added up.

    A min-max map is :math:`a \, U m + b` with the upsampling U linear, so the mean of such maps
    needs only :math:`\sum a m` on the model's own grid and :math:`\sum b`.

    Args:
        unit: the "maps" (N, K, h, w), "scores" (N, K) and measures (N, K) of its images.

    Returns:
        "score" (K,), the cosine similarities; "stretched" (K, h, w), a m + b; each measure (K,);
        and "score_count" and so on, how many images each sum is over. A map that does not vary
        counts in "score" alone.
    """
    # Units keep the sign of maps; the statistics are those of positive evidence.
    maps = unit["maps"].astype(np.float64).clip(min=0)
    low, high = unit[f"{MEASURE}low"], unit[f"{MEASURE}high"]
    varies = ~np.isnan(unit[f"{MEASURE}spatial_variance"])
    scale = np.where(varies, 1 / np.where(varies, high - low, 1), np.nan)
    values = {
        "score": unit["scores"].astype(np.float64),
        "stretched": (maps - low[..., None, None]) * scale[..., None, None],
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
    size: tuple[int, int]  # (H, W) of the images that the model sees
    location: str = ""  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str] = field(default_factory=dict)  # of the model, in every worker
    tower: str = ""  # its kind
    emotions: str = ""  # SHA-256 of the emotions' weights; "" where there are none


@dataclass(frozen=True, eq=False)
class Statistics:
    """Everything measured of one model and method."""

    job: Job
    sums: Arrays  # of :func:`sums_of`, over all images that could be read
    skipped: Sequence[Skipped]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the model's own maps."""
        height, width = self.sums["stretched"].shape[-2:]
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
        """The mean of a sum, over the images that are in it; NaN where there is none."""
        total, count = self.sums.get(name, np.nan), self.sums.get(f"{name}_count", 0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def biases(self) -> dict[str, Array]:
        """The corner and the center bias (K,) of each mean map; NaN where there is no mean."""
        mean = self.mean("stretched")
        finite = np.asarray(np.isfinite(mean).all((-2, -1)))
        heatmap = torch.from_numpy(np.where(finite[:, None, None], mean, 0))
        both = {"corner": metrics.corner_bias, "center": metrics.center_bias}
        return {
            f"{where}_bias": np.where(finite, bias(heatmap).numpy(), np.nan)
            for where, bias in both.items()
        }


def result_files(results: Sequence[Statistics]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; the statistics, which say that all is done, come last."""
    for result in results:
        yield f"mean_maps/{result.job.key}.npz", _mean_maps(result)
    yield "mean_maps.png", _figure(results)
    yield STATISTICS, to_csv(*map(_statistics, results))


def _statistics(result: Statistics) -> dict[str, Any]:
    """A row for each target; results only."""
    job = result.job
    named = {"model": job.model, "method": job.method, "target": job.target.names}
    counts = {"images": result.images, "skipped": len(result.skipped), "constant": result.constant}
    means = {name: result.mean(name) for name in ("score", *_MEASURES)}
    size = {"dtype": _DTYPE, "height": job.size[0], "width": job.size[1]}
    grid = {"grid_height": result.grid[0], "grid_width": result.grid[1]}
    return {**named, **counts, **means, **result.biases(), **size, **grid}


def _mean_maps(result: Statistics) -> bytes:
    """On the model's own grid; docs/appendix/data_sets.md says how they get their full size."""
    arrays = {
        "label": f"{result.job.model} ({result.job.method})",
        "names": np.array(result.job.target.names, dtype=np.str_),
        "stretched": result.mean("stretched"),
        "size": result.job.size,
        "images": result.images,
        "constant": result.constant,
    }
    return to_npz({name: np.array(value) for name, value in arrays.items()})


def _figure(results: Sequence[Statistics]) -> bytes:
    """Mean maps, all on one scale, as PNG: a row per model and method and a column per target."""
    means, notes = dict[str, Array](), dict[str, list[str]]()
    for result in results:
        label = f"{result.job.model} \N{MIDDLE DOT} {result.job.method}"
        means[label] = np.nan_to_num(result.mean("stretched"))
        notes[label] = [
            "no map varies" if np.isnan(corner) else f"corner {corner:.2f}, center {center:.2f}"
            for corner, center in zip(*result.biases().values(), strict=True)
        ]
    values = np.concatenate([mean.ravel() for mean in means.values()])
    counts = sorted({result.images for result in results})
    figure = visualization.average(
        means,
        names=results[0].job.target.names,
        notes=notes,
        scale=(float(values.min()), float(values.max())),
        caption=f"mean of min-max maps of {' and '.join(map(str, counts))} images",
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi="figure")
    return file.getvalue()
