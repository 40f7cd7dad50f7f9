"""Studies: mean maps and statistics of whole folders of images, such as those of the report."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import targets, visualization
from ..attr.registry import MethodChoice, fitting_methods, maps_and_scores
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
"""Prefix of the measures among the arrays of a unit."""
_MEASURES: Final = ("spatial_variance", "spatial_entropy", "value_entropy")
CENTERED: Final = " (centered)"
"""Suffix of an emotion from which the mean of all emotions was subtracted."""


def values_of(unit: Arrays) -> Arrays:
    r"""Return the values that a study averages, for the N images of a unit.

    A min-max map is :math:`a \, U m + b` with the upsampling U linear, so the mean of such maps
    needs only the mean of :math:`a m + b` on the model's own grid.

    Args:
        unit: the "maps" (N, K, h, w), "scores" (N, K) and measures (N, K) of its images.

    Returns:
        float64: "score" (N, K), the cosines; "stretched" (N, K, h, w), a m + b; and each measure
        (N, K). Values of a map that does not vary are NaN, except for its score.
    """
    # Units keep the sign of maps, but the statistics are those of positive evidence.
    positive_maps = unit["maps"].astype(np.float64).clip(min=0)
    low = unit[f"{MEASURE}low"]
    high = unit[f"{MEASURE}high"]
    varies = ~np.isnan(unit[f"{MEASURE}spatial_variance"])
    ranges = np.where(varies, high - low, 1)
    scale = np.where(varies, 1 / ranges, np.nan)
    values = {
        "score": unit["scores"].astype(np.float64),
        "stretched": (positive_maps - low[..., None, None]) * scale[..., None, None],
    }
    for name in _MEASURES:
        if f"{MEASURE}{name}" in unit:
            values[name] = unit[f"{MEASURE}{name}"]
    return values


@dataclass(frozen=True, eq=False)
class Job:
    """A model with a method and its targets, ready to compute maps."""

    key: str  # in the names of its files
    model: str  # its name in the results
    method: str  # with its options, as on the command line
    target: Target  # K directions
    size: tuple[int, int]  # (H, W) of the images that the model sees
    location: str  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str]  # of the model, the same in every worker
    emotions: str  # SHA-256 of the emotions' weights, "" without emotions


@dataclass(frozen=True, eq=False)
class StudyStatistics:
    """The statistics of one model and method, over all images that could be read."""

    images: int
    constant: Array  # (K,), number of maps of each target that do not vary
    means: Arrays  # of `values_of` over the maps that vary, (K, ...); NaN if none does
    biases: Arrays  # "corner_bias" and "center_bias" (K,) of each mean map
    skipped: Sequence[Skipped]

    @classmethod
    def over(cls, units: Iterable[tuple[Arrays, Sequence[Skipped]]]) -> "StudyStatistics":
        """Compute the statistics of a job from the content of its units."""
        sums: Arrays = {}
        counts: Arrays = {}
        skipped: list[Skipped] = []
        # Units come in a fixed order, since the same floats add up to other bytes in another one.
        for unit, unit_skipped in units:
            skipped.extend(unit_skipped)
            for name, values in values_of(unit).items():
                sums[name] = sums.get(name, 0) + np.nansum(values, 0)
                counts[name] = counts.get(name, 0) + (~np.isnan(values)).sum(0)
        means: Arrays = {}
        for name, total in sums.items():
            mean = total / np.maximum(counts[name], 1)
            means[name] = np.where(counts[name], mean, np.nan)

        mean_maps = means["stretched"]
        is_finite = np.asarray(np.isfinite(mean_maps).all((-2, -1)))
        heatmap = torch.from_numpy(np.where(is_finite[:, None, None], mean_maps, 0))
        biases: Arrays = {
            "corner_bias": np.where(is_finite, corner_bias(heatmap).numpy(), np.nan),
            "center_bias": np.where(is_finite, center_bias(heatmap).numpy(), np.nan),
        }
        # Scores are finite, so every target has as many of them as there are images.
        images = int(counts["score"][0])
        constant = np.asarray(images - counts["spatial_variance"])
        return cls(images, constant, means, biases, skipped)


def _statistics_table(job: Job, result: StudyStatistics) -> dict[str, Any]:
    """Return the columns of a job's table, with a row for each target."""
    height, width = job.size
    grid_height, grid_width = result.means["stretched"].shape[-2:]
    measures = {name: result.means.get(name, np.nan) for name in ("score", *_MEASURES)}
    return {
        "model": job.model,
        "method": job.method,
        "target": job.target.names,
        "images": result.images,
        "skipped": len(result.skipped),
        "constant": result.constant,
        **measures,
        **result.biases,
        "dtype": "float32",  # of the min-max maps that are measured
        "height": height,
        "width": width,
        "grid_height": grid_height,
        "grid_width": grid_width,
    }


def emotions_study(images: str | Path, output: str | Path, **settings: Any) -> StudyConfig:
    """Configure a study of eight emotions, plain and centered, with a ViT and a ResNet.

    With ``methods="mamooler"`` it repeats Figures 11 and 12 of the report. All sixteen targets come
    from one forward pass. Settings are those of :class:`StudyConfig`, `emotions` among them.
    """
    models = ("ViT-B/32", "RN101")
    return StudyConfig(images, output, **{"models": models, **settings, "centered": True})


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        output: its folder or URL.
        images: number of image files that it found.
        skipped: file -> why one or more of the jobs left it out.
    """

    output: str
    images: int
    skipped: dict[str, str]


@public("run_study")
def run_study(config: StudyConfig, *, progress: Progress | None = None) -> StudyResult:
    """Compute the maps that are missing in the output folder, then all statistics.

    If it is started again after a stop, it keeps the units that are there, and the folder ends up
    the same, to the byte. docs/data_sets.md describes what the folder holds.

    Args:
        config: what to compute.
        progress: called now and then with how many images are done, how many there are, and the
            current model and method. The first call counts what an earlier run did. An image counts
            once per model and method.

    Returns:
        The outcome; ``statistics.csv`` in the output folder was written last.

    Raises:
        CaptumClipError: a model, text, method or folder that cannot be used; an output folder that
            holds another study, or that another study is writing; no image that can be read.

    Example:
        >>> from captum_clip.bench import StudyConfig, run_study
        >>> config = StudyConfig("photos", "out", texts="a horse", models=["ViT-B/32", "RN101"])
        >>> run_study(config)  # doctest: +SKIP
    """
    return run.run(config, _plan_study, _write_statistics, progress)


class MeanMaps(NamedTuple):
    """The mean maps (K, h, w) of one model and method of a study; NaN if no map varies."""

    label: str
    names: tuple[str, ...]
    means: npt.NDArray[np.floating[Any]]
    images: int


def average_figure(rows: Sequence[MeanMaps], names: Sequence[str]) -> Figure:
    """Draw targets that all rows have, on one scale, with the biases of each mean map."""
    means: dict[str, Array] = {}
    notes: dict[str, list[str]] = {}
    for label, row in zip(numbered([row.label for row in rows]), rows, strict=True):
        indices = [row.names.index(name) for name in names]
        means[label] = np.nan_to_num(row.means[indices])
        heatmap = torch.from_numpy(means[label])
        corners = corner_bias(heatmap).tolist()
        centers = center_bias(heatmap).tolist()
        notes[label] = []
        for corner, center in zip(corners, centers, strict=True):
            if np.isnan(corner):
                notes[label].append("no map varies")
            else:
                notes[label].append(f"corner {corner:.2f}, center {center:.2f}")
    counts = sorted({row.images for row in rows})
    listed_counts = " and ".join(f"{count:,}" for count in counts)
    caption = f"mean of min-max maps of {listed_counts} images"
    return visualization.average(means, names=names, notes=notes, caption=caption)


def read_mean_maps(folder: str | Path) -> list[MeanMaps]:
    """Read the mean maps of a finished study; InputError if the folder holds none."""
    study = storage_of(folder)
    files: list[str] = []
    if study.read(STATISTICS) is not None:
        files = sorted(name for name in study.files() if name.startswith("mean_maps/"))
    if not files:
        photos = "FOLDER"
        output = study.root
        # The folder may be that of the photos, which the message then names. If there is no such
        # folder, the message has placeholders.
        with suppress(InputError):
            if image_names(study.files()) and study.read(MANIFEST) is None:
                photos = study.root
                output = f"{PurePosixPath(study.root).name}-study"
        raise InputError(
            f"{study.root} holds no finished study; 'captum-clip study statistics {photos} TEXT -o "
            f"{output}' makes one, or goes on with it."
        )
    rows = []
    try:
        for name in files:
            arrays = run.from_npz(study.read(name) or b"")
            rows.append(
                MeanMaps(
                    label=str(arrays["label"]),
                    names=tuple(arrays["names"].tolist()),
                    means=arrays["stretched"].astype(np.float32),
                    images=int(arrays["images"]),
                )
            )
    except DAMAGED as error:
        raise InputError(f"{study.root} holds no study that can be read ({error}).") from error
    return rows


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
        jobs = []
        for job in self.jobs:
            jobs.append(
                {
                    "model": job.model,
                    "method": job.method,
                    "identity": job.identity,
                    "emotions": job.emotions,
                    "targets": list(job.target.names),
                }
            )
        images = {"number": len(self.sizes), "names and sizes": entries_digest(self.sizes)}
        return {"config": self.config.identity(), "images": images, "jobs": jobs}

    def worker(self, models: ModelLoader) -> run.Worker:
        return partial(self._compute, models)

    def _compute(
        self, models: ModelLoader, unit: Unit, share: run.TellShare
    ) -> tuple[Arrays, list[Skipped]]:
        job = self.jobs[unit.job]
        config = self.config
        clip = models.load(job.location, config.device, job.identity)
        prepare = partial(preprocess_alone, clip.processor, job.size)
        reader = ImageReader(self.images, tuple(self.sizes), prepare)
        decoders = config.processes if config.engine == "local" else 0
        explained: list[Arrays] = []
        skipped: list[Skipped] = []
        with read_ahead(reader, unit.numbers, decoders, batch=config.batch_size) as read:
            for numbers in _split(unit.numbers, config.batch_size):
                # The reader goes on with the images of the next batch.
                images = dict(zip(numbers, read, strict=False))
                batch_arrays, batch_skipped = explain_batch(job, clip, images, config)
                explained.append(batch_arrays)
                skipped.extend(batch_skipped)
        arrays: Arrays = {}
        for name in explained[0]:
            arrays[name] = np.concatenate([batch_arrays[name] for batch_arrays in explained])
        return arrays, sorted(skipped)


def _split(numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def explain_batch(
    job: Job, clip: ClipAdapter, images: Mapping[int, Tensor | Skipped], config: StudyConfig
) -> tuple[Arrays, list[Skipped]]:
    """Explain all targets of a batch of images (3, H, W), by number, in one forward pass.

    Returns:
        For the N images with finite maps: "numbers" (N,), "maps" (N, K, h, w) with their sign,
        "scores" (N, K), cosine similarities, and measures (N, K) of the positive part of each map.
        Then the reasons for which the other images were left out.
    """
    choice = MethodChoice.of(job.method)
    forward = ClipSimilarity(clip, job.target)
    method: Any = choice.method(forward)
    # A tower rounds differently in batches of different sizes, so every batch has as many rows; the
    # last ones may be zeros.
    pixels = torch.zeros(config.batch_size, 3, *job.size)
    skipped: dict[int, Skipped] = {}
    for row, (number, image) in enumerate(images.items()):
        if isinstance(image, Skipped):
            skipped[number] = image
        else:
            pixels[row] = image
    pixels = pixels.to(clip.device, clip.dtype)
    maps, scores = maps_and_scores(method, forward, pixels, **choice.options)

    has_finite_maps = torch.isfinite(maps).flatten(1).all(1)
    is_finite = has_finite_maps & torch.isfinite(scores).all(1)
    kept = []
    for row, number in enumerate(images):
        if not is_finite[row]:
            skipped.setdefault(number, Skipped(number, "its maps or scores hold NaN or infinity"))
        if number not in skipped:
            kept.append(row)
    evidence = positive(torch.where(is_finite[:, None, None, None], maps, 0))
    measures = measure(evidence, job.size, values=config.value_entropy)

    arrays = {
        "numbers": np.array(list(images), dtype=np.int64)[kept],
        "maps": maps[kept].cpu().numpy(),
        "scores": scores[kept].cpu().numpy(),
    }
    for name, values in measures.items():
        arrays[f"{MEASURE}{name}"] = values[kept].cpu().numpy()
    return arrays, list(skipped.values())


def _plan_study(config: StudyConfig, models: ModelLoader) -> StudyPlan:
    """Load every model on the CPU, make its targets, and try each method on one black image."""
    images = storage_of(config.images)
    output = storage_of(config.output)
    sizes = list_images(images, output, limit=config.limit, seed=config.seed)
    jobs: list[Job] = []
    for model, emotions in zip_longest(config.models, config.emotions):
        label = label_of(model)
        location = full_name(model)
        clip = models.load(location)
        choices = fitting_methods(config.methods, clip.tower, model)
        target, digest = _targets_of_model(config, emotions, clip)
        identity = clip.identity()
        [black] = clip.preprocess(Image.new("RGB", (64, 64)))
        for choice in choices:
            job = Job(
                key=f"{len(jobs):02d}-{slug(label)}-{slug(choice.name)}",
                model=label,
                method=choice.name,
                target=target,
                size=(black.shape[-2], black.shape[-1]),
                location=location,
                identity=identity,
                emotions=digest,
            )
            explain_batch(job, clip, {0: black}, replace(config, batch_size=1))
            jobs.append(job)
    repeated = find_repeated([(job.model, job.method) for job in jobs])
    if repeated:
        raise InputError(
            f"{repeated[1]} of {repeated[0]} comes twice; give each model and method once, folders "
            "under different names."
        )

    batches_per_unit = math.ceil(config.chunk_size / config.batch_size)
    chunks = _split(range(len(sizes)), batches_per_unit * config.batch_size)
    units = []
    for job_number, job in enumerate(jobs):
        for chunk_number, numbers in enumerate(chunks):
            name = f"units/{job.key}/{chunk_number:06d}.npz"
            units.append(Unit(name, job_number, numbers, label=f"{job.model}, {job.method}"))
    return StudyPlan(config, tuple(jobs), images, sizes, tuple(units))


def _targets_of_model(
    config: StudyConfig, emotions: str | Path | None, clip: ClipAdapter
) -> tuple[Target, str]:
    """Make all targets of a model: texts, emotions, then the emotions centered.

    Returns:
        The targets, and the SHA-256 of the emotions' weights, "" without emotions.
    """
    parts = []
    if config.texts:
        parts.append(targets.text(clip, config.texts))
    if emotions is None:
        return parts[0], ""
    probe = EmotionProbe.load(emotions)
    parts.append(targets.emotion(clip, probe))
    if config.centered:
        centered = targets.emotion(clip, probe, center=True)
        names = tuple(f"{name}{CENTERED}" for name in centered.names)
        parts.append(replace(centered, names=names))
    digest = hashlib.sha256(np.ascontiguousarray(probe.weights).tobytes()).hexdigest()
    return targets.concatenate(parts), digest


def _write_statistics(
    plan: StudyPlan, manifest: Content, output: Storage, models: ModelLoader
) -> StudyResult:
    """Read all units once, in order, then write every file; the statistics come last."""
    results: dict[Job, StudyStatistics] = {}
    for number, job in enumerate(plan.jobs):
        # A generator, since the maps of all units may not fit into memory.
        units = (run.read_unit(output, unit) for unit in plan.units if unit.job == number)
        results[job] = StudyStatistics.over(units)

    files = tuple(plan.sizes)
    entries = {entry for result in results.values() for entry in result.skipped}
    skipped = []
    for entry in sorted(entries):
        skipped.append({"file": files[entry.number], "reason": entry.message})
    output.write(MANIFEST, run.to_json({**manifest, "state": "maps done", "skipped": skipped}))
    if not any(result.images for result in results.values()):
        raise InputError(
            f"none of the {len(files)} images can be read; the first: "
            f"{skipped[0]['reason']} All reasons are in {output.root}/{MANIFEST}."
        )
    output.write(IMAGES, to_csv({"file": files, "bytes": list(plan.sizes.values())}))

    rows: list[MeanMaps] = []
    for job, result in results.items():
        label = f"{job.model} ({job.method})"
        mean_maps = result.means["stretched"]
        rows.append(MeanMaps(label, job.target.names, mean_maps, result.images))
        # These are on the model's own grid; docs/appendix/data_sets.md says how to resize them.
        arrays = {
            "label": np.array(label),
            "names": np.array(job.target.names, dtype=np.str_),
            "stretched": mean_maps,
            "size": np.array(job.size),
            "images": np.array(result.images),
            "constant": result.constant,
        }
        output.write(f"mean_maps/{job.key}.npz", run.to_npz(arrays))
    output.write("mean_maps.png", run.to_png(average_figure(rows, rows[0].names)))
    tables = [_statistics_table(job, result) for job, result in results.items()]
    output.write(STATISTICS, to_csv(*tables))
    reasons = {skip["file"]: skip["reason"] for skip in skipped}
    return StudyResult(output.root, len(files), reasons)
