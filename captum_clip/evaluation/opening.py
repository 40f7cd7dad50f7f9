"""From a config to what is to be computed: model, data, methods and tasks, tried beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ..attr.registry import default_method
from ..errors import CaptumClipError, InputError
from ..models import ClipAdapter
from ..studies.config import Subject
from ..studies.jobs import Loader
from .config import DATA, EvaluationConfig
from .data import open_data
from .data.base import DataSet
from .data.opening import options_of
from .made_elsewhere import MadeElsewhere
from .methods import Method, Queries, method_of, methods_for
from .tasks import TASKS
from .units import Unit, units_of

_OF_IMAGES: Final = ("localization", "signs")


@dataclass(frozen=True, eq=False)
class Opened:
    """An evaluation that can begin.

    Attributes:
        config: the settings.
        model: what `load_clip` takes, a folder by its full path.
        label: what results call the model.
        fingerprint: of the model.
        data: the data sets.
        tasks: of each data set.
        methods: all of them, those made elsewhere last.
        named: names of those that are not.
        reference: the method that the others are compared with.
        units: all of them.
    """

    config: EvaluationConfig
    model: str
    label: str
    fingerprint: str
    data: tuple[DataSet, ...]
    tasks: tuple[tuple[str, ...], ...]
    methods: tuple[Method, ...]
    named: tuple[str, ...]
    reference: str
    units: tuple[Unit, ...]

    def about(self) -> dict[str, Any]:
        """All that decides the results, as JSON."""
        return {
            "config": self.config.identity(),
            "model": {"name": self.label, "fingerprint": self.fingerprint},
            "data": [{"name": one.name, **one.identity()} for one in self.data],
            "methods": [one.identity() for one in self.methods],
            "tasks": [list(tasks) for tasks in self.tasks],
        }


def open_evaluation(config: EvaluationConfig, loader: Loader) -> Opened:
    """Load the model, open the data, and try every method on one black image.

    Args:
        config: the settings.
        loader: keeps the model.

    Raises:
        CaptumClipError: a model, a data set, a method or a task that cannot be worked with.
    """
    if config.gpus and config.engine == "local" and not torch.cuda.is_available():
        raise InputError(
            "a GPU was asked for, but PyTorch sees no CUDA device; leave gpus out to compute on "
            "the CPU."
        )
    given = {"template": config.template, "text": config.text}
    _check_options(config, given)
    data = tuple(
        open_data(
            name,
            number=config.images,
            seed=config.seed,
            **{option: given[option] for option in options_of(name)},
        )
        for name in config.data or DATA
    )
    tasks = _tasks(config, data)
    if not config.data:
        data = tuple(one for one, some in zip(data, tasks, strict=True) if some)
        tasks = tuple(some for some in tasks if some)
    if config.maps:
        _check_names(data)
    subject = Subject(config.model)
    model = config.model
    if subject.label != model:
        model = str(Path(model).expanduser().resolve())
    clip, fingerprint = loader.load(model, "cpu")
    _check_texts(config, data, clip)
    named = config.methods or methods_for(clip)
    methods: tuple[Method, ...] = (
        *(method_of(name, clip, seed=config.seed) for name in named),
        *(MadeElsewhere(folder) for folder in config.maps),
    )
    names = [method.name for method in methods]
    reference = _reference(config, clip, names)
    for method in methods[: len(named)]:
        _try(clip, method)
    units = tuple(units_of(data, methods, size=config.chunk_size, few=config.few))
    return Opened(
        config, model, subject.label, fingerprint, data, tasks, methods, named, reference, units
    )


def _check_options(config: EvaluationConfig, given: dict[str, str | None]) -> None:
    """Every option serves a data set; each gets its own only."""
    known = {option for name in config.data or DATA for option in options_of(name)}
    for option, value in given.items():
        if value is not None and option not in known:
            raise InputError(
                f"evaluate: none of the data {', '.join(config.data or DATA)} takes a {option}."
            )


def _check_texts(config: EvaluationConfig, data: Sequence[DataSet], clip: ClipAdapter) -> None:
    """What the model cannot read as a text is said before any long work."""
    for one in data:
        if one.classes and config.against == "text":
            try:
                clip.tokenize(list(one.classes))
            except CaptumClipError as error:
                raise InputError(f"{one.name}: {error}") from error


def _tasks(config: EvaluationConfig, data: Sequence[DataSet]) -> tuple[tuple[str, ...], ...]:
    """The tasks of each data set, each of one data set only."""
    unknown = [name for name in config.tasks if name not in TASKS]
    if unknown:
        raise InputError(
            f"evaluate: there is no task {unknown[0]!r}; there are {', '.join(TASKS)}."
        )
    wanted = _wanted(config)
    found = tuple(tuple(name for name in wanted if name in one.tasks) for one in data)
    for name in wanted:
        of = [one.name for one, tasks in zip(data, found, strict=True) if name in tasks]
        if len(of) > 1:
            raise InputError(
                f"evaluate: {' and '.join(of)} are both measured by {name}; give each its own "
                "output folder, so that one table has one data set."
            )
        if name in config.tasks and not of:
            can = ", ".join(dict.fromkeys(task for one in data for task in one.tasks))
            which = "the data" if config.data else "the demo's data"
            raise InputError(
                f"evaluate: {which} do not serve the task {name}, they serve {can}; give data that "
                "do."
            )
    for one, tasks in zip(data, found, strict=True):
        if not tasks and config.data:
            raise InputError(
                f"evaluate: {one.name} serves none of {', '.join(wanted)}; it serves "
                f"{', '.join(one.tasks)}."
            )
    return found


def _check_names(data: Sequence[DataSet]) -> None:
    """Maps made elsewhere are known by the names of their samples alone."""
    owners: dict[str, str] = {}
    for one in data:
        for name in one.names:
            other = owners.setdefault(name, one.name)
            if other != one.name:
                raise InputError(
                    f"evaluate: {other} and {one.name} both have a sample {name}, so that maps "
                    "made elsewhere cannot be told apart; name one data set, and measure the other "
                    "in an output folder of its own."
                )


def _wanted(config: EvaluationConfig) -> tuple[str, ...]:
    """The tasks that are asked for."""
    if config.against == "text":
        return config.tasks or tuple(TASKS)
    other = [name for name in config.tasks if name not in _OF_IMAGES]
    if other:
        raise InputError(
            f"evaluate: {other[0]} explains texts; against='image' serves {', '.join(_OF_IMAGES)}."
        )
    return config.tasks or _OF_IMAGES


def _reference(config: EvaluationConfig, clip: ClipAdapter, names: Sequence[str]) -> str:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(
            f"evaluate: two methods are called {twice[0]!r}; folders of maps need names of their "
            "own."
        )
    if config.reference is None:
        default = default_method(clip.tower)
        return default if default in names else names[0]
    if config.reference not in names:
        raise InputError(
            f"evaluate: the reference {config.reference!r} is not among the methods "
            f"{', '.join(names)}."
        )
    return config.reference


def _try(clip: ClipAdapter, method: Method) -> None:
    """Errors that depend on nothing but the model and the method come before any long work."""
    pixels = clip.preprocess(torch.zeros(64, 64, 3, dtype=torch.uint8))
    row = clip.encode_text([""]).detach()
    method.maps(clip, Queries(pixels, row, ("",), ("",), (0,)))
