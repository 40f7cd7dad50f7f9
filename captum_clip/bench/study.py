"""Studies: mean maps and statistics of whole folders of images, among them the report's three."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, starmap, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import targets, visualization
from ..attr.registry import MethodChoice, fitting_methods
from ..checks import find_repeated
from ..errors import InputError, public
from ..files import DAMAGED, image_names, slug, to_csv
from ..folders.bootstrap import Array
from ..folders.storage import (
    Content,
    ImageReader,
    Skipped,
    Storage,
    list_images,
    read_ahead,
    storage_of,
)
from ..folders.workers import ModelLoader, Progress, full_name, label_of, preprocess_alone
from ..maps import positive
from ..metrics.map_statistics import center_bias, corner_bias, measure
from ..models.adapter import ClipAdapter
from ..targets.probe import EmotionProbe
from ..targets.similarity import ClipSimilarity
from ..targets.target import Target
from ..visualization.overlays import numbered
from . import run
from .data import entries_digest
from .run import MANIFEST, Arrays, StudyConfig, Unit

IMAGES: Final = "images.csv"
STATISTICS: Final = "statistics.csv"
MEASURE: Final = "measure_"
"""Begins the names of the measures among the arrays of a unit."""
_MEASURES: Final = ("spatial_variance", "spatial_entropy", "value_entropy")
CENTERED: Final = " (centered)"
"""Follows the name of an emotion from which the mean of all emotions was subtracted."""


def values_of(unit: Arrays) -> Arrays:
    r"""What a study averages, of the N images of a unit; NaN where a map does not vary.

    A min-max map is :math:`a \, U m + b` with the upsampling U linear, so the mean of such maps
    needs only the mean of :math:`a m + b` on the model's own grid.

    Args:
        unit: the "maps" (N, K, h, w), "scores" (N, K) and measures (N, K) of its images.

    Returns:
        float64: "score" (N, K), the cosines; "stretched" (N, K, h, w), a m + b; and each measure
        (N, K). A map that does not vary has a score alone.
    """
    # Units keep the sign of maps; the statistics are those of positive evidence.
    maps = unit["maps"].astype(np.float64).clip(min=0)
    low, high = unit[f"{MEASURE}low"], unit[f"{MEASURE}high"]
    varies = ~np.isnan(unit[f"{MEASURE}spatial_variance"])
    scale = np.where(varies, 1 / np.where(varies, high - low, 1), np.nan)
    return {
        "score": unit["scores"].astype(np.float64),
        "stretched": (maps - low[..., None, None]) * scale[..., None, None],
        **{name: unit[f"{MEASURE}{name}"] for name in _MEASURES if f"{MEASURE}{name}" in unit},
    }


@dataclass(frozen=True, eq=False)
class Job:
    """A model with a method and its targets, made ready."""

    key: str  # names its files
    model: str  # what results call it
    method: str  # with its options, as on the command line
    target: Target  # K directions
    size: tuple[int, int]  # (H, W) of the images that the model sees
    location: str  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str]  # of the model, in every worker
    emotions: str  # SHA-256 of the emotions' weights; "" where there are none


@dataclass(frozen=True, eq=False)
class StudyStatistics:
    """Everything measured of one model and method, over all images that could be read."""

    images: int
    constant: Array  # (K,), maps of each target that do not vary
    means: Arrays  # of `values_of`, over the maps that vary, (K, ...); NaN where none does
    biases: Arrays  # "corner_bias" and "center_bias" (K,) of each mean map
    skipped: Sequence[Skipped]

    @classmethod
    def over(cls, units: Iterable[tuple[Arrays, Sequence[Skipped]]]) -> "StudyStatistics":
        """The statistics of a job, from the content of its units."""
        sums, counts, skipped = Arrays(), Arrays(), list[Skipped]()
        for unit, left_out in units:
            skipped += left_out
            # In the order of the units: a sum of floats in another order has other bytes.
            for name, values in values_of(unit).items():
                sums[name] = sums.get(name, 0) + np.nansum(values, 0)
                counts[name] = counts.get(name, 0) + (~np.isnan(values)).sum(0)
        means = {n: np.where(counts[n], sums[n] / np.maximum(counts[n], 1), np.nan) for n in sums}
        finite = np.asarray(np.isfinite(means["stretched"]).all((-2, -1)))
        heatmap = torch.from_numpy(np.where(finite[:, None, None], means["stretched"], 0))
        biases = {
            f"{where}_bias": np.where(finite, bias(heatmap).numpy(), np.nan)
            for where, bias in {"corner": corner_bias, "center": center_bias}.items()
        }
        images = int(counts["score"][0])
        return cls(images, np.asarray(images - counts["spatial_variance"]), means, biases, skipped)


def _statistics(job: Job, result: StudyStatistics) -> dict[str, Any]:
    """A row for each target; results only."""
    rows: dict[str, Any] = {"model": job.model, "method": job.method, "target": job.target.names}
    rows |= {"images": result.images, "skipped": len(result.skipped), "constant": result.constant}
    rows |= {name: result.means.get(name, np.nan) for name in ("score", *_MEASURES)}
    rows |= {**result.biases, "dtype": "float32"}  # of the min-max maps that are measured
    sides = (*job.size, *result.means["stretched"].shape[-2:])
    return rows | dict(zip(("height", "width", "grid_height", "grid_width"), sides, strict=True))


def emotions_study(images: str | Path, output: str | Path, **settings: Any) -> StudyConfig:
    """Eight emotions, plain and centered, ViT next to ResNet (Figures 11 and 12 of the report).

    With ``methods="mamooler"`` it repeats the report. All sixteen come from one forward pass.
    Settings are those of :class:`StudyConfig`, `emotions` among them.
    """
    models = ("ViT-B/32", "RN101")
    return StudyConfig(images, output, **{"models": models, **settings, "centered": True})


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        output: its folder or URL.
        images: number of image files that it looked at.
        skipped: file -> why it was left out, by one model and method or by all.
    """

    output: str
    images: int
    skipped: dict[str, str]


@public("run_study")
def run_study(config: StudyConfig, *, progress: Progress | None = None) -> StudyResult:
    """Compute what is not there yet, then all statistics.

    Started again after a stop, it goes on with the units that are there, and the folder ends up
    the same, to the byte. docs/data_sets.md describes what the folder holds.

    Args:
        config: what to compute.
        progress: called now and then with how many images were done, how many there are, and the
            current model and method. The first call has what an earlier run did. An image counts
            once per model and method.

    Returns:
        The outcome; ``statistics.csv`` in the output folder was written last.

    Raises:
        CaptumClipError: a model, text, method or folder that cannot be worked with; an output
            folder that holds another study, or in which one is at work; no image that can be
            read.

    Example:
        >>> from captum_clip.bench import StudyConfig, run_study
        >>> config = StudyConfig("photos", "out", texts="a horse", models=["ViT-B/32", "RN101"])
        >>> run_study(config)  # doctest: +SKIP
    """
    return run.run(config, _plan_study, _write_statistics, progress)


class MeanMaps(NamedTuple):
    """The mean maps (K, h, w) of one model and method of a study, NaN where no map varies."""

    label: str
    names: tuple[str, ...]
    means: npt.NDArray[np.floating[Any]]
    images: int


def average_figure(rows: Sequence[MeanMaps], names: Sequence[str], **look: Any) -> Figure:
    """Draw targets that all rows have, on one scale, with the biases of each mean map."""
    means, notes = dict[str, Array](), dict[str, list[str]]()
    for label, row in zip(numbered([row.label for row in rows]), rows, strict=True):
        means[label] = np.nan_to_num(row.means[[row.names.index(name) for name in names]])
        heatmap = torch.from_numpy(means[label])
        biases = zip(corner_bias(heatmap).tolist(), center_bias(heatmap).tolist(), strict=True)
        notes[label] = [
            "no map varies" if np.isnan(corner) else f"corner {corner:.2f}, center {center:.2f}"
            for corner, center in biases
        ]
    counts = " and ".join(f"{count:,}" for count in sorted({row.images for row in rows}))
    caption = f"mean of min-max maps of {counts} images"
    return visualization.average(means, names=names, notes=notes, caption=caption, **look)


def read_mean_maps(folder: str | Path) -> list[MeanMaps]:
    """The mean maps of a finished study; InputError where the folder holds none."""
    study = storage_of(folder)
    is_done = study.read(STATISTICS) is not None
    files = sorted(n for n in study.files() if n.startswith("mean_maps/")) if is_done else []
    if not files:
        photos, output = "FOLDER", study.root
        with suppress(InputError):  # there is no such folder
            if image_names(study.files()) and study.read(MANIFEST) is None:
                photos, output = study.root, f"{PurePosixPath(study.root).name}-study"
        raise InputError(
            f"{study.root} holds no finished study; 'captum-clip study statistics {photos} TEXT -o "
            f"{output}' makes one, or goes on with it."
        )
    try:
        return [
            MeanMaps(
                str(arrays["label"]),
                tuple(arrays["names"].tolist()),
                arrays["stretched"].astype(np.float32),
                int(arrays["images"]),
            )
            for arrays in (run.from_npz(study.read(name) or b"") for name in files)
        ]
    except DAMAGED as error:
        raise InputError(f"{study.root} holds no study that can be read ({error}).") from error


@dataclass(frozen=True, eq=False)
class StudyPlan(run.Plan):
    """A study that can begin."""

    noun = "study"
    result = STATISTICS

    config: StudyConfig
    jobs: tuple[Job, ...]
    images: Storage
    sizes: dict[str, int]  # of the image files by name
    units: tuple[Unit, ...]

    def manifest(self) -> Content:
        names = ("model", "method", "identity", "emotions")
        jobs = [
            {name: getattr(job, name) for name in names} | {"targets": list(job.target.names)}
            for job in self.jobs
        ]
        images = {"number": len(self.sizes), "names and sizes": entries_digest(self.sizes)}
        return {"config": self.config.identity(), "images": images, "jobs": jobs}

    def worker(self, models: ModelLoader) -> run.Worker:
        return partial(self._compute, models)

    def _compute(
        self, models: ModelLoader, unit: Unit, share: run.TellShare
    ) -> tuple[Arrays, list[Skipped]]:
        job, config, size = self.jobs[unit.job], self.config, self.config.batch_size
        clip = models.load(job.location, config.device, job.identity)
        prepare = partial(preprocess_alone, clip.processor, job.size)
        reader = ImageReader(self.images, tuple(self.sizes), prepare)
        decoders = config.processes if config.engine == "local" else 0
        with read_ahead(reader, unit.numbers, decoders, batch=size) as read:
            batches = [
                explain_batch(job, clip, dict(zip(numbers, read, strict=False)), config)
                for numbers in _split(unit.numbers, size)
            ]
        explained, skipped = zip(*batches, strict=True)
        arrays = {n: np.concatenate([arrays[n] for arrays in explained]) for n in explained[0]}
        return arrays, sorted(chain.from_iterable(skipped))


def _split(numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def explain_batch(
    job: Job, clip: ClipAdapter, images: Mapping[int, Tensor | Skipped], config: StudyConfig
) -> tuple[Arrays, list[Skipped]]:
    """Explain all targets of a batch of images (3, H, W), by number, in one forward pass.

    Returns:
        Of the N images with finite maps: "numbers" (N,), "maps" (N, K, h, w) with their sign,
        "scores" (N, K), cosine similarities, and measures (N, K) of the positive part of each map;
        and why each other image was left out.
    """
    choice = MethodChoice.of(job.method)
    method: Any = choice.method(ClipSimilarity(clip, job.target))
    # Always so many rows, the others of zeros: a tower rounds otherwise in a batch of another size.
    pixels, skipped = torch.zeros(config.batch_size, 3, *job.size), dict[int, Skipped]()
    for row, (number, image) in enumerate(images.items()):
        if isinstance(image, Skipped):
            skipped[number] = image
        else:
            pixels[row] = image
    pixels = pixels.to(clip.device, clip.dtype)
    raw, scores = method.attribute_targets(pixels, return_scores=True, **choice.options)
    finite = torch.isfinite(raw).flatten(1).all(1) & torch.isfinite(scores).all(1)
    for row, number in enumerate(images):
        if not finite[row]:
            skipped.setdefault(number, Skipped(number, "its maps or scores hold NaN or infinity"))
    evidence = positive(torch.where(finite[:, None, None, None], raw, 0))
    arrays = {"maps": raw, "scores": scores} | {
        f"{MEASURE}{name}": values
        for name, values in measure(evidence, job.size, values=config.value_entropy).items()
    }
    kept = [row for row, number in enumerate(images) if number not in skipped]
    numbers = {"numbers": np.array([*images], dtype=np.int64)[kept]}
    return numbers | {n: v[kept].cpu().numpy() for n, v in arrays.items()}, [*skipped.values()]


def _plan_study(config: StudyConfig, models: ModelLoader) -> StudyPlan:
    """Load every model on the CPU, make its targets, and try the method on one black image."""
    images, jobs = storage_of(config.images), list[Job]()
    sizes = list_images(images, storage_of(config.output), limit=config.limit, seed=config.seed)
    for model, emotions in zip_longest(config.models, config.emotions):
        location, label = full_name(model), label_of(model)
        clip = models.load(location)
        fitting = fitting_methods(config.methods, clip.tower, model)
        target, digest = _targets_of_model(config, emotions, clip)
        [blank], identity = clip.preprocess(Image.new("RGB", (64, 64))), clip.identity()
        size = (blank.shape[-2], blank.shape[-1])
        for choice in fitting:
            key = f"{len(jobs):02d}-{slug(label)}-{slug(choice.name)}"
            job = Job(key, label, choice.name, target, size, location, identity, digest)
            explain_batch(job, clip, {0: blank}, replace(config, batch_size=1))
            jobs.append(job)
    if repeated := find_repeated([(job.model, job.method) for job in jobs]):
        raise InputError(
            f"{repeated[1]} of {repeated[0]} comes twice; give each model and method once, folders "
            "under different names."
        )
    whole_batches = -(-config.chunk_size // config.batch_size) * config.batch_size
    units = [
        Unit(f"units/{job.key}/{chunk:06d}.npz", number, numbers, f"{job.model}, {job.method}")
        for number, job in enumerate(jobs)
        for chunk, numbers in enumerate(_split(range(len(sizes)), whole_batches))
    ]
    return StudyPlan(config, tuple(jobs), images, sizes, tuple(units))


def _targets_of_model(
    config: StudyConfig, emotions: str | Path | None, clip: ClipAdapter
) -> tuple[Target, str]:
    """All targets of a model: texts, then emotions, then the emotions centered."""
    parts = [targets.text(clip, config.texts)] if config.texts else []
    if emotions is None:
        return parts[0], ""
    probe = EmotionProbe.load(emotions)
    parts.append(targets.emotion(clip, probe))
    if config.centered:
        other = targets.emotion(clip, probe, center=True)
        parts.append(replace(other, names=tuple(f"{name}{CENTERED}" for name in other.names)))
    digest = hashlib.sha256(np.ascontiguousarray(probe.weights).tobytes()).hexdigest()
    return targets.concatenate(parts), digest


def _write_statistics(
    plan: StudyPlan, manifest: Content, output: Storage, models: ModelLoader
) -> StudyResult:
    """One pass over all units in order, then every file; the statistics come last."""
    results = {
        job: StudyStatistics.over(
            run.read_unit(output, unit) for unit in plan.units if unit.job == number
        )
        for number, job in enumerate(plan.jobs)
    }
    names = tuple(plan.sizes)
    entries = sorted({entry for result in results.values() for entry in result.skipped})
    skipped = [{"file": names[entry.number], "reason": entry.message} for entry in entries]
    output.write(MANIFEST, run.to_json({**manifest, "state": "maps done", "skipped": skipped}))
    if not any(result.images for result in results.values()):
        raise InputError(
            f"none of the {len(names)} images can be read; the first: "
            f"{skipped[0]['reason']} All reasons are in {output.root}/{MANIFEST}."
        )
    output.write(IMAGES, to_csv({"file": names, "bytes": [*plan.sizes.values()]}))
    rows = list[MeanMaps]()
    for job, result in results.items():
        means, label = result.means["stretched"], f"{job.model} ({job.method})"
        rows.append(MeanMaps(label, job.target.names, means, result.images))
        # On the model's own grid; docs/appendix/data_sets.md says how they get their full size.
        arrays = {
            "label": np.array(label),
            "names": np.array(job.target.names, dtype=np.str_),
            "stretched": means,
            "size": np.array(job.size),
            "images": np.array(result.images),
            "constant": result.constant,
        }
        output.write(f"mean_maps/{job.key}.npz", run.to_npz(arrays))
    output.write("mean_maps.png", run.to_png(average_figure(rows, rows[0].names)))
    output.write(STATISTICS, to_csv(*starmap(_statistics, results.items())))
    return StudyResult(output.root, len(names), {e["file"]: e["reason"] for e in skipped})
