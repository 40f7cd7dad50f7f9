"""From a config to a plan: every model is loaded once and tried, before anything is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image

from .. import targets
from ..attr.registry import MethodChoice, report_method
from ..emotions import EmotionProbe
from ..errors import InputError
from ..models import ClipAdapter
from ..runs import ModelLoader, Storage, full_name, slug
from ..runs.engine import Engine
from ..runs.manifest import Content, ManifestFormat, begin, changes
from ..targets import Target
from . import file_list
from .batch_explainer import BatchExplainer, Job
from .config import StudyConfig, Subject
from .file_list import FileList
from .image_loader import Batch
from .shards import Shard, shards_of

FORMAT: Final = "captum_clip study 1"
CENTRED: Final = " (centred)"
"""What follows the name of an emotion whose row had the mean of all rows taken away."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A study that can begin."""

    config: StudyConfig
    jobs: tuple[Job, ...]  # its subjects, made ready
    images: Storage  # where the images are
    files: FileList  # which they are
    shards: tuple[Shard, ...]  # all that is to be computed

    def begin_manifest(self, output: Storage, engine: Engine) -> Content:
        """The manifest of a new study, or of the one in the folder that is to go on."""
        about = {
            "config": self.config.identity(),
            "jobs": [job.describe() for job in self.jobs],
            "images": len(self.files),
        }
        content = output.read(file_list.NAME)

        def differences(before: Content, now: Content) -> list[str]:
            changed = "" if content is None else self.files.difference(FileList.from_csv(content))
            return _changes(before, now) + [f"the images changed: {changed}"] * bool(changed)

        kind = ManifestFormat("study", FORMAT, {"config": dict, "jobs": list}, differences)
        return begin(kind, about, output, engine)


def _changes(before: Content, now: Content) -> list[str]:
    """What differs but for the images: settings, or else the models and emotions behind them."""
    then, today = (
        {
            **about["config"],
            "subjects": [f"{job['model']} {job['method']}" for job in about["jobs"]],
        }
        for about in (before, now)
    )
    return changes(then, today) or [
        f"the {name} of {job['model']} changed"
        for old, job in zip(before["jobs"], now["jobs"], strict=True)
        for name in ("fingerprint", "emotions")
        if old.get(name) != job[name]
    ]


def plan_study(config: StudyConfig, images: Storage, files: FileList, models: ModelLoader) -> Plan:
    """Load every model on the CPU, make its targets, and try the method on one black image.

    Raises:
        CaptumClipError: a model, a method, a text or a file of emotions that cannot be worked with.
    """
    jobs = tuple(_plan_job(config, *numbered, models) for numbered in enumerate(config.subjects))
    seen: dict[tuple[str, str], int] = {}
    for number, job in enumerate(jobs):
        if (first := seen.setdefault((job.label, job.method), number)) != number:
            raise InputError(
                f"StudyConfig: the subjects {first + 1} and {number + 1} are both {job.method} of "
                f"{job.label}; give each model and method once, folders under different names."
            )
    sizes = {"batch_size": config.batch_size, "batches_per_shard": config.batches_per_shard}
    shards = shards_of([job.key for job in jobs], len(files), **sizes)
    return Plan(config, jobs, images, files, tuple(shards))


def _plan_job(config: StudyConfig, number: int, subject: Subject, models: ModelLoader) -> Job:
    model = full_name(subject.model)
    clip, fingerprint = models.load(model, "cpu")
    choice = MethodChoice.of(subject.method or report_method(clip.tower))
    target, centred, digest = _target(config, subject.emotions, clip)
    blank = clip.preprocess(Image.new("RGB", (64, 64)))
    job = Job(
        key=f"{number:02d}-{slug(subject.label)}-{slug(choice.name)}",
        model=model,
        label=subject.label,
        fingerprint=fingerprint,
        kind=clip.kind,
        size=(blank.shape[-2], blank.shape[-1]),
        method=choice.name,
        target=target,
        centred=centred,
        emotions=digest,
        value_entropy=config.value_entropy,
    )
    BatchExplainer(job, clip).explain(Batch(blank, (0,), {}))
    return job


def _target(
    config: StudyConfig, emotions: str | None, clip: ClipAdapter
) -> tuple[Target, tuple[tuple[int, int], ...], str]:
    """All targets of a subject: texts, then emotions, then the emotions centred."""
    parts = [targets.text(clip, config.texts)] if config.texts else []
    if emotions is None:
        return parts[0], (), ""
    probe = EmotionProbe.load(emotions)
    plain = targets.emotion(clip, probe)
    parts.append(plain)
    centred: tuple[tuple[int, int], ...] = ()
    if config.centred:
        other = targets.emotion(clip, probe, centre=True)
        parts.append(replace(other, names=tuple(f"{name}{CENTRED}" for name in other.names)))
        first, count = len(config.texts), len(plain)
        centred = tuple((first + i, first + count + i) for i in range(count))
    digest = hashlib.sha256(np.ascontiguousarray(probe.weights).tobytes()).hexdigest()
    return targets.concatenate(parts), centred, digest
