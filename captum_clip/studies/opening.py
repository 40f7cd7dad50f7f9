"""From a config to jobs: every model is loaded once and tried, before anything is written."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from .. import targets
from ..attr.registry import MethodChoice, default_method
from ..emotions import EmotionProbe
from ..errors import InputError
from ..models import ClipAdapter
from ..targets import Target
from .computing import Computer
from .config import StudyConfig, Subject
from .decoding import Batch
from .jobs import Job, Loader

CENTRED: Final = " (centred)"
"""What follows the name of an emotion whose row had the mean of all rows taken away."""


def open_jobs(config: StudyConfig, loader: Loader) -> list[Job]:
    """Load every model on the CPU, make its targets, and try the method on one black image.

    Raises:
        CaptumClipError: a model, a method, a text or a file of emotions that cannot be worked with.
    """
    if config.gpus and config.engine == "local" and not torch.cuda.is_available():
        raise InputError(
            "a GPU was asked for, but PyTorch sees no CUDA device; leave gpus out to compute on "
            "the CPU."
        )
    jobs = [_open(config, number, loader) for number in range(len(config.subjects))]
    seen: dict[tuple[str, str], int] = {}
    for number, job in enumerate(jobs):
        if (first := seen.setdefault((job.label, job.method), number)) != number:
            raise InputError(
                f"StudyConfig: the subjects {first + 1} and {number + 1} are both {job.method} of "
                f"{job.label}; give each model and method once, folders under different names."
            )
    return jobs


def _open(config: StudyConfig, number: int, loader: Loader) -> Job:
    subject = config.subjects[number]
    where = _everywhere(subject)
    clip, fingerprint = loader.load(where, "cpu")
    choice = MethodChoice.of(subject.method or default_method(clip.kind))
    target, centred, digest = _target(config, subject, clip)
    blank = clip.preprocess(Image.new("RGB", (64, 64)))
    job = Job(
        key=f"{number:02d}-{_slug(subject.label)}-{_slug(choice.name)}",
        model=where,
        label=subject.label,
        fingerprint=fingerprint,
        kind=clip.kind,
        size=(blank.shape[-2], blank.shape[-1]),
        method=choice.name,
        names=target.names,
        rows=target.bank.cpu().numpy(),
        centred=centred,
        emotions=digest,
        batch_size=config.batch_size,
        value_entropy=config.value_entropy,
        device="cuda" if config.gpus else "cpu",
        threads=config.threads or torch.get_num_threads(),
    )
    Computer(job, clip).compute(Batch(blank, (0,), {}))
    return job


def _everywhere(subject: Subject) -> str:
    """The model's name as any process on any machine understands it."""
    if subject.label == subject.model:
        return subject.model
    return str(Path(subject.model).expanduser().resolve())


def _target(
    config: StudyConfig, subject: Subject, clip: ClipAdapter
) -> tuple[Target, tuple[tuple[int, int], ...], str]:
    """All targets of a subject: texts, then emotions, then the emotions centred."""
    parts = [targets.text(clip, config.texts)] if config.texts else []
    if subject.emotions is None:
        return parts[0], (), ""
    probe = EmotionProbe.load(subject.emotions)
    plain = targets.emotion(clip, probe)
    first = len(config.texts)
    parts.append(plain)
    centred: tuple[tuple[int, int], ...] = ()
    if config.centred:
        other = targets.emotion(clip, probe, centre=True)
        parts.append(replace(other, names=tuple(f"{name}{CENTRED}" for name in other.names)))
        count = len(plain)
        centred = tuple((first + i, first + count + i) for i in range(count))
    digest = hashlib.sha256(np.ascontiguousarray(probe.weights).tobytes()).hexdigest()
    return targets.concatenate(parts), centred, digest


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()
