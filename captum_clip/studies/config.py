"""What a study is to compute, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ..attr.registry import MethodChoice
from ..checks import check_integer, find_repeated, show
from ..errors import InputError
from ..runs import Engine, EngineName, check_engine, given_parts, label_of

_LEAST: Final = {
    **{"batch_size": 1, "shard_size": 1, "seed": 0, "gpus": 0},
    **{"limit": 1, "workers": 0, "threads": 1},
}
_OPTIONAL: Final = ("limit", "workers", "threads")


@dataclass(frozen=True)
class Subject:
    """A model with a method, and with the emotions of this model where a study asks for them.

    Attributes:
        model: a name or a folder that :func:`captum_clip.load_clip` knows, so that any worker can
            load it.
        method: a name of ``attr.METHODS``, with options as in "last-grad:heads=averaged"; None is
            Mamooler's, "last-grad" or "grad-cam".
        emotions: a file that :func:`captum_clip.targets.emotion` reads, fitted for this model.

    Raises:
        InputError: a model that is not a name, a method that is none.
    """

    model: str
    method: str | None = None
    emotions: str | None = None

    def __post_init__(self) -> None:
        for field in ("model", "emotions"):
            value = getattr(self, field)
            if isinstance(value, Path):
                object.__setattr__(self, field, str(value))
            elif not (isinstance(value, str) and value) and (field, value) != ("emotions", None):
                raise InputError(
                    f"Subject: expected {field} by name or path, so that any worker can load it, "
                    f"got {type(value).__name__}."
                )
        if self.method is not None:
            MethodChoice.of(self.method)

    @property
    def label(self) -> str:
        """How results call the model: its name; of a folder the last part, without the path."""
        return label_of(self.model)


@dataclass(frozen=True)
class StudyConfig:
    """A study of saliency maps over a folder of images.

    Attributes:
        images: a folder, searched recursively, or a URL that fsspec knows.
        output: a folder or URL of its own for the results.
        subjects: models with their methods, one or several.
        texts: targets of all of them.
        centred: beside each emotion also the emotion minus the mean of all rows.
        batch_size: images per forward pass.
        shard_size: images per shard, rounded up to whole batches; a stop loses one per worker.
        seed: of the sample; without a limit it decides nothing.
        limit: study a sample of this many images; None is all.
        value_entropy: measure this entropy too, which takes longer than all the rest.
        engine: "local", or "ray" for several processes or machines.
        workers: processes that decode images (local, 0 is none; default 2) or that compute (ray,
            default 1).
        gpus: 0 computes on the CPU; 1 on a GPU; with Ray the number that the workers share.
        threads: of each process that computes; None is PyTorch's own number. The same results to
            the bit need the same number.
        processor: whose image processor all models get, by name or folder, for checkpoints that
            were saved without one.
        tokenizer: the same for the tokenizer.

    Raises:
        InputError: something that cannot be studied, said in one sentence.
    """

    images: str
    output: str
    subjects: tuple[Subject, ...]
    texts: tuple[str, ...] = ()
    centred: bool = False
    batch_size: int = 16
    shard_size: int = 128
    seed: int = 0
    limit: int | None = None
    value_entropy: bool = False
    engine: EngineName = "local"
    workers: int | None = None
    gpus: int = 0
    threads: int | None = None
    processor: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("images", "output"):
            place = getattr(self, name)
            if not isinstance(place, (str, Path)) or not str(place):
                raise InputError(
                    f"StudyConfig: expected {name} as a folder or a URL, got {show(place)}."
                )
            object.__setattr__(self, name, str(place))
        given_parts("StudyConfig", processor=self.processor, tokenizer=self.tokenizer)
        for name in ("subjects", "texts"):
            object.__setattr__(self, name, tuple(_listed(name, getattr(self, name))))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL):
                check_integer("StudyConfig", name, value, least=least)
        self._check_targets()
        check_engine("StudyConfig", self.engine, self._processes, self.gpus)

    def _check_targets(self) -> None:
        if not self.subjects or not all(isinstance(subject, Subject) for subject in self.subjects):
            raise InputError(
                f"StudyConfig: expected one or more Subjects (model, method), got {self.subjects}."
            )
        blank = [text for text in self.texts if not isinstance(text, str) or not text.strip()]
        if blank:
            raise InputError(
                f"StudyConfig: expected texts with something in them, got {blank[0]!r}."
            )
        _refuse_repeated("the text", self.texts)
        subjects = [f"{s.label}, {s.method or 'its default'}" for s in self.subjects]
        _refuse_repeated("the model and method", subjects)
        with_emotions = [subject.emotions is not None for subject in self.subjects]
        if any(with_emotions) and not all(with_emotions):
            raise InputError(
                "StudyConfig: some models have a file of emotions and some have none; give each "
                "its own, or none, so that their targets can be compared."
            )
        if not self.texts and not any(with_emotions):
            raise InputError("StudyConfig: there is nothing to explain; give texts or emotions.")
        if self.centred and not any(with_emotions):
            raise InputError("StudyConfig: centred means emotions, and there are none.")

    @property
    def _processes(self) -> int:
        """Workers, with the engine's default in place of None."""
        default = 2 if self.engine == "local" else max(1, self.gpus)
        return default if self.workers is None else self.workers

    def choose_engine(self) -> Engine:
        """Where the study is computed, with PyTorch's number of threads in place of None."""
        count = self.threads or torch.get_num_threads()
        return Engine(self.engine, self._processes, self.gpus, count)

    @property
    def batches_per_shard(self) -> int:
        """Whole batches that hold `shard_size` images."""
        return math.ceil(self.shard_size / self.batch_size)

    def identity(self) -> dict[str, Any]:
        """All that decides the results, as JSON; neither places nor the engine do."""
        return {
            "subjects": [
                {"model": s.label, "method": s.method, "emotions": s.emotions is not None}
                for s in self.subjects
            ],
            "texts": list(self.texts),
            **{name: getattr(self, name) for name in ("centred", "batch_size", "shard_size")},
            "seed": None if self.limit is None else self.seed,
            **{name: getattr(self, name) for name in ("limit", "value_entropy", "threads")},
            **given_parts("", processor=self.processor, tokenizer=self.tokenizer),
        }


def _listed(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, (str, Subject)):
        return [values]
    if not isinstance(values, Sequence):
        raise InputError(f"StudyConfig: expected {name} as a tuple, got {type(values).__name__}.")
    return values


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    if (repeated := find_repeated(names)) is not None:
        raise InputError(f"StudyConfig: {what} {repeated!r} is given twice; once will do.")
