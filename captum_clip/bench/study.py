"""Studies: mean maps and statistics of whole folders of images, among them the report's three."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .. import metrics, targets, visualization
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
    preprocess_alone,
    read_ahead,
    storage_of,
)
from ..folders.workers import ModelLoader, Progress, full_name, label_of
from ..maps import positive
from ..metrics.map_statistics import measure
from ..models.adapter import ClipAdapter
from ..targets.probe import EmotionProbe
from ..targets.similarity import ClipSimilarity
from ..targets.target import Target
from . import run
from .run import MANIFEST, Arrays, StudyConfig, Unit

STATISTICS: Final = "statistics.csv"
MEASURE: Final = "measure_"
"""Begins the names of the measures among the arrays of a unit."""
_MEASURES: Final = ("spatial_variance", "spatial_entropy", "value_entropy")
_DTYPE: Final = "float32"  # of the min-max maps at full size that are measured


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
class StudyStatistics:
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


def result_files(results: Sequence[StudyStatistics]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; the statistics, which say that all is done, come last."""
    for result in results:
        # On the model's own grid; docs/appendix/data_sets.md says how they get their full size.
        arrays = {
            "label": f"{result.job.model} ({result.job.method})",
            "names": np.array(result.job.target.names, dtype=np.str_),
            "stretched": result.mean("stretched"),
            "size": result.job.size,
            "images": result.images,
            "constant": result.constant,
        }
        content = run.to_npz({name: np.array(value) for name, value in arrays.items()})
        yield f"mean_maps/{result.job.key}.npz", content
    yield "mean_maps.png", _figure(results)
    yield STATISTICS, to_csv(*map(_statistics, results))


def _statistics(result: StudyStatistics) -> dict[str, Any]:
    """A row for each target; results only."""
    job = result.job
    named = {"model": job.model, "method": job.method, "target": job.target.names}
    counts = {"images": result.images, "skipped": len(result.skipped), "constant": result.constant}
    means = {name: result.mean(name) for name in ("score", *_MEASURES)}
    size = {"dtype": _DTYPE, "height": job.size[0], "width": job.size[1]}
    grid = {"grid_height": result.grid[0], "grid_width": result.grid[1]}
    return {**named, **counts, **means, **result.biases(), **size, **grid}


def _figure(results: Sequence[StudyStatistics]) -> bytes:
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


IMAGES: Final = "images.csv"
CENTERED: Final = " (centered)"
"""Follows the name of an emotion from which the mean of all emotions was subtracted."""


def corner_bias_study(images: str | Path, output: str | Path, **settings: Any) -> StudyConfig:
    """Do methods favor the corners (Figure 6 of the report)? Settings are those of `StudyConfig`.

    By default a happy and a sad text, the report's three methods for vision transformers and
    Grad-CAM for ResNets.
    """
    usual: Any = {
        "texts": ("this person is happy", "this person is sad"),
        "methods": ("all-grad", "attention-grad-cam", "last-grad", "grad-cam"),
    }
    return StudyConfig(images, output, **usual | settings)


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
    """The mean maps (K, h, w) of one model and method of a study."""

    label: str
    names: tuple[str, ...]
    means: npt.NDArray[np.float32]
    images: int


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
        # of the list of images too, which may be deleted
        digests = {n: hashlib.sha256(text).hexdigest()[:12] for n, text in self.files().items()}
        names = ("model", "method", "identity", "emotions", "tower")
        jobs = [
            {name: getattr(job, name) for name in names} | {"targets": list(job.target.names)}
            for job in self.jobs
        ]
        return {"config": self.config.identity(), "jobs": jobs, "digests": digests}

    def files(self) -> dict[str, bytes]:
        return {IMAGES: to_csv({"file": [*self.sizes], "bytes": [*self.sizes.values()]})}

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
            broken = Skipped(number, "its maps or scores hold NaN or infinity")
            skipped.setdefault(number, broken)
    evidence = positive(torch.where(finite[:, None, None, None], raw, 0))
    measured = measure(evidence, job.size, values=config.value_entropy)
    kept = [row for row, number in enumerate(images) if number not in skipped]
    explained = {
        "numbers": np.array([*images], dtype=np.int64)[kept],
        "maps": raw[kept].cpu().numpy(),
        "scores": scores[kept].cpu().numpy(),
        **{f"{MEASURE}{name}": values[kept].cpu().numpy() for name, values in measured.items()},
    }
    return explained, [*skipped.values()]


def _plan_study(config: StudyConfig, models: ModelLoader) -> StudyPlan:
    """Load every model on the CPU, make its targets, and try the method on one black image."""
    images, output = storage_of(config.images), storage_of(config.output)
    sizes = list_images(images, output, limit=config.limit, seed=config.seed)
    jobs = list[Job]()
    for model, emotions in zip_longest(config.models, config.emotions):
        jobs += _jobs_of(config, model, emotions, len(jobs), models)
    if repeated := find_repeated([(job.model, job.method) for job in jobs]):
        raise InputError(
            f"{repeated[1]} of {repeated[0]} comes twice; give each model and method once, folders "
            "under different names."
        )
    size = -(-config.chunk_size // config.batch_size) * config.batch_size  # whole batches
    units = [
        Unit(f"units/{job.key}/{chunk:06d}.npz", number, numbers, f"{job.model}, {job.method}")
        for number, job in enumerate(jobs)
        for chunk, numbers in enumerate(_split(range(len(sizes)), size))
    ]
    return StudyPlan(config, tuple(jobs), images, sizes, tuple(units))


def _jobs_of(
    config: StudyConfig, model: str, emotions: str | Path | None, first: int, models: ModelLoader
) -> Iterator[Job]:
    """A model with every method that fits its tower; `first` is the number of the first job."""
    location, label = full_name(model), label_of(model)
    clip = models.load(location)
    fitting = fitting_methods(config.methods, clip.tower, model)
    target, digest = _targets_of_model(config, emotions, clip)
    [blank], identity = clip.preprocess(Image.new("RGB", (64, 64))), clip.identity()
    for number, choice in enumerate(fitting, first):
        job = Job(
            key=f"{number:02d}-{slug(label)}-{slug(choice.name)}",
            model=label,
            method=choice.name,
            target=target,
            size=(blank.shape[-2], blank.shape[-1]),
            location=location,
            identity=identity,
            tower=clip.kind,
            emotions=digest,
        )
        explain_batch(job, clip, {0: blank}, replace(config, batch_size=1))
        yield job


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
    results = [_sum_up(plan, number, output) for number in range(len(plan.jobs))]
    names = tuple(plan.sizes)
    entries = sorted({entry for result in results for entry in result.skipped})
    skipped = [{"file": names[entry.number], "reason": entry.message} for entry in entries]
    counts = [{"images": r.images, "skipped": len(r.skipped)} for r in results]
    done = {**manifest, "state": "maps done", "images": len(names)}
    output.write(MANIFEST, run.to_json({**done, "counts": counts, "skipped": skipped}))
    if output.read(IMAGES) is None:  # a study that was done may have lost it since
        output.write(IMAGES, plan.files()[IMAGES])
    if not any(result.images for result in results):
        raise InputError(
            f"none of the {len(names)} images can be read; the first: "
            f"{skipped[0]['reason']} All reasons are in {output.root}/{MANIFEST}."
        )
    for name, content in result_files(results):
        output.write(name, content)
    return StudyResult(output.root, len(names), {e["file"]: e["reason"] for e in skipped})


def _sum_up(plan: StudyPlan, number: int, output: Storage) -> StudyStatistics:
    """The sums over all units of a job, in float64 and in order; and what was left out."""
    job, sums, skipped = plan.jobs[number], Arrays(), list[Skipped]()
    for unit in plan.units:
        if unit.job == number:
            arrays, left_out = run.read_unit(output, unit)
            skipped += left_out
            # In the order of the units: a sum of floats in another order has other bytes.
            sums = {n: sums.get(n, 0) + values for n, values in sums_of(arrays).items()}
    return StudyStatistics(job, sums, skipped)
