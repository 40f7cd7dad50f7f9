"""A run: its settings, its units, those that are missing computed here or on Ray, the manifest.

Each unit is one file, whole or not at all, with arrays and what was left out. A stop at any moment
loses no more than the units that were being computed, and the same command started again ends in
the same bytes.
"""

import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from .._version import environment
from ..attr.registry import check_methods
from ..checks import check_choice, expect
from ..errors import InputError, argument, parse_json, public
from ..files import DAMAGED
from ..folders.storage import Content, Skipped, Storage, differences, storage_of
from ..folders.workers import (
    ModelLoader,
    Progress,
    RunConfig,
    loader_of,
    map_on_ray,
    setting,
    threads,
)

Against = Literal["text", "image"]
Fill = Literal["mean", "black", "blur"]
FILLS: Final = get_args(Fill)
_NAMED: Final = "by name or path"
_PLACE: Final = "as a folder or a URL"
DATA: Final = ("demo-thirds", "demo-identical", "demo", "demo-objects", "demo-mosaics")


@dataclass(frozen=True)
class EvaluationConfig(RunConfig):
    """Methods and metrics over data sets, for one model.

    Attributes:
        model: a name or folder that :func:`captum_clip.load_clip` knows.
        output: a folder or URL of its own for the results.
        data: data sets, as :func:`captum_clip.bench.data.open_data` reads them; none means
            those of the demo that the tasks need.
        methods: names of :func:`captum_clip.bench.methods_for`, with options, "mamooler", or
            "all" of them; none means the registered ones that fit the tower. Drawn maps and
            predictors without a map are measured beside them.
        maps: folders of maps made elsewhere, each a method.
        reference: the method that the others are compared with; by default the report's.
        tasks: names of tasks; none means all that the data support but "pairs".
        against: explain regions by their text, or by another image of the same thing; then only
            "localization" and "signs" are measured.
        images: at most so many of each data set; None is 100, of drawn copies 300.
        slow_images: images of each data set, drawn from all of them, for what takes long:
            sensitivity, sanity, and all of Captum's own methods.
        draws: random masks per image for faithfulness and infidelity.
        fills: what takes the place of removed pixels: "mean" color (normalized zero), "black",
            "blur".
        template: text of a class with "{}" for its name, for data that have classes by name.
        resamples: of the bootstrap.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be measured.
    """

    model: str = field(metadata={"text": _NAMED})
    output: str = field(metadata={"text": _PLACE})
    data: tuple[str, ...] = setting((), text=_NAMED)
    methods: tuple[str, ...] = setting((), text=_NAMED, decides=True)
    maps: tuple[str, ...] = setting((), text=_NAMED)
    reference: str | None = None
    tasks: tuple[str, ...] = setting((), text=_NAMED, decides=True)
    against: Against = field(default="text", metadata={"decides": True})
    images: int | None = setting(None, decides=True)
    slow_images: int = setting(16, decides=True)
    draws: int = setting(32, decides=True)
    fills: tuple[Fill, ...] = field(default=("mean",), metadata={"decides": True})
    template: str | None = setting(None, decides=True)
    resamples: int = 2000

    @public("evaluate")
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fills:
            check_choice("none", FILLS, name="fills")


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """A study of saliency maps over a folder of images.

    Attributes:
        images: a folder, searched recursively, or a URL that fsspec knows.
        output: a folder or URL of its own for the results.
        texts: targets.
        models: names or folders that :func:`captum_clip.load_clip` knows; every model is studied
            with every method that fits its tower.
        methods: names of ``attr.METHODS``, with options as in "last-grad:heads=averaged"; none
            means the tower's own, as in `explain`, and "mamooler" the report's.
        emotions: a file for each model, in the same order, fitted for it, as
            :meth:`captum_clip.targets.EmotionProbe.load` reads it; or none.
        centered: for each emotion also the emotion minus the mean of all of them.
        limit: study a sample of this many images; None is all. Without it the seed decides nothing.
        value_entropy: measure this entropy too, which takes longer than all the rest.

    The settings of :class:`RunConfig` are keywords too.

    Raises:
        InputError: something that cannot be studied.
    """

    images: str | Path = field(metadata={"text": _PLACE})
    output: str | Path = field(metadata={"text": _PLACE})
    texts: Sequence[str] = setting((), text="with something in them", decides=True)
    models: Sequence[str] = setting(("ViT-B/32",), text=_NAMED)
    methods: Sequence[str] = ()
    emotions: Sequence[str | Path] = setting((), text=_NAMED, repeat=True)
    centered: bool = setting(False, decides=True)
    limit: int | None = setting(None, decides=True)
    value_entropy: bool = setting(False, decides=True)
    batch_size: int = field(default=16, kw_only=True, metadata={"most": 2**16, "decides": True})
    chunk_size: int = field(default=128, kw_only=True, metadata={"decides": True})

    @public("StudyConfig")
    def __post_init__(self) -> None:
        super().__post_init__()
        check_methods(self.methods)
        count, models = len(self.emotions), len(self.models)
        expected = f"a file of emotions for each of {', '.join(self.models)}, in the same order"
        expect(count in (0, models), expected, self.emotions)
        if not models or not (self.texts or count):
            raise InputError("there is nothing to explain; give texts or emotions.")
        if self.centered and not count:
            raise InputError("centered applies to emotions, and none are given.")

    def identity(self) -> dict[str, Any]:
        """All settings that decide the results; of them the seed only where there is a sample."""
        seed = None if self.limit is None else self.seed
        return {**super().identity(), "seed": seed, "threads": self.threads}


Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Unit:
    """A part of a run that is computed at one go and kept in one file."""

    name: str  # of its file, in the output folder
    job: int  # number of the model and method, as the plan counts them
    numbers: tuple[int, ...]  # of the images
    label: str = ""  # of the model or the data set and the method, for progress


class DamagedUnitError(InputError):
    """The file of a unit is gone or damaged, or is that of another unit."""


def write_unit(output: Storage, unit: Unit, arrays: Arrays, skipped: list[Skipped]) -> None:
    """Write the file of a unit."""
    # by its name an exchange of two files is noticed
    about = {"skipped": np.array(json.dumps(skipped)), "unit": np.array(unit.name)}
    output.write(unit.name, to_npz({**arrays, **about}))


def read_unit(storage: Storage, unit: Unit) -> tuple[Arrays, list[Skipped]]:
    """The arrays of a unit, and what was skipped.

    Raises:
        DamagedUnitError: there is no whole file of this unit.
        InputError: the storage refuses.
    """
    content = storage.read(unit.name)
    try:
        if content is None:
            raise FileNotFoundError("it is gone")
        arrays = from_npz(content)
        if (name := str(arrays.pop("unit"))) != unit.name:
            raise ValueError(f"it was written as {name}")
        return arrays, [Skipped(*entry) for entry in json.loads(str(arrays.pop("skipped")))]
    except DAMAGED as error:
        raise DamagedUnitError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and run the same "
            "command again to compute it anew."
        ) from error


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON for people and programs."""
    return f"{json.dumps(content, indent=1)}\n".encode()


def to_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi="figure")
    return file.getvalue()


def to_npz(arrays: Arrays) -> bytes:
    """Arrays as the content of an .npz file; the same arrays are the same bytes."""
    file = io.BytesIO()
    # NumPy writes no time of day into the archive, so a unit computed again is the same file.
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_npz(content: bytes) -> Arrays:
    """The arrays of an .npz file; what it raises over another content is in `DAMAGED`."""
    # A pickle in a file from elsewhere could run anything.
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


MANIFEST: Final = "manifest.json"
_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.part$")
"""Names of files that a run which was killed leaves behind."""
_MOST_TRIES: Final = 5  # of a unit whose worker dies, since Ray starts workers anew without end

Config = TypeVar("Config", EvaluationConfig, StudyConfig)
Result = TypeVar("Result")


TellShare = Callable[[float], None]
"""Called with the share of a unit that is done, for units that take minutes."""
Worker = Callable[[Unit, TellShare], tuple[Arrays, list[Skipped]]]
"""Computes a unit, and says what was left out; the same bytes in every process."""


class Plan(ABC):
    """A run that can begin; it can be sent to other processes."""

    noun: ClassVar[str]  # "study", "evaluation"
    result: ClassVar[str]  # the file that is written last
    config: EvaluationConfig | StudyConfig
    units: tuple[Unit, ...]

    @abstractmethod
    def manifest(self) -> Content:
        """All that decides the results, as JSON, the settings first."""

    @abstractmethod
    def worker(self, models: ModelLoader) -> Worker:
        """Make what computes units; called once in each process."""


def run(
    config: Config,
    make_plan: Callable[[Config, ModelLoader], Plan],
    summarize: Callable[[Any, Content, Storage, ModelLoader], Result],
    progress: Progress | None,
) -> Result:
    """Make a plan from a config, compute every unit that has no whole file, then summarize.

    `progress` is called first with what an earlier run had done. `summarize` gets the plan, the
    manifest so far, the output folder and what loads models, and writes the results.

    Raises:
        CaptumClipError: a model that cannot be loaded, a folder with another run or something
            else in it, a disk that refuses, a worker that died.
    """
    if config.gpus and config.engine == "local" and not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device; leave `gpus` out to compute on the CPU.")
    output = storage_of(config.output)
    with threads(config.thread_count), output.lock():
        models = loader_of(config)
        plan = make_plan(config, models)
        manifest = _begin(plan, output)
        _tidy_up(output)
        missing = _unfinished(output, plan.units)
        total, left = (sum(len(unit.numbers) for unit in units) for units in (plan.units, missing))
        counter = _Counter(progress or (lambda *_: None), total, total - left)
        counter.progress(counter.done, total, "")
        if missing:
            output.remove(plan.result)  # it means that all is done
            # The manifest comes first: a folder without one is taken for somebody else's.
            output.write(MANIFEST, to_json(manifest))
            if config.engine == "ray":
                write = UnitWriter(plan, missing, output, models)
                for unit in map_on_ray(config, write, len(missing)):
                    counter.add(unit)
            else:
                worker = plan.worker(models)
                for unit in missing:
                    write_unit(output, unit, *worker(unit, partial(counter.add_share, unit)))
                    counter.add(unit)
            _tidy_up(output)  # a worker of Ray that was killed leaves files, the run goes on
        return summarize(plan, manifest, output, models)


@dataclass
class _Counter:
    """Counts images for somebody who waits."""

    progress: Progress
    total: int
    done: int  # with the last whole unit
    shown: int = 0  # in the unit at work

    def add_share(self, unit: Unit, share: float) -> None:
        """Count what is done of a unit, but its last image, which counts once the file is there."""
        count = int(share * len(unit.numbers))
        if self.shown < count < len(unit.numbers):
            self.shown = count
            self.progress(self.done + count, self.total, unit.label)

    def add(self, unit: Unit) -> None:
        """Count a unit that is written."""
        self.done, self.shown = self.done + len(unit.numbers), 0
        self.progress(self.done, self.total, unit.label)


def _unfinished(storage: Storage, units: Iterable[Unit]) -> list[Unit]:
    """Units without a whole file, or with an image that may be readable now."""
    present, missing = storage.files(), []
    for unit in units:
        try:  # What the storage refuses ends the run: a file out of reach is not damaged.
            skipped = read_unit(storage, unit)[1] if unit.name in present else None
        except DamagedUnitError:
            skipped = None
        if skipped is None or any(entry.again for entry in skipped):
            missing.append(unit)
            storage.remove(unit.name)
    return missing


def _tidy_up(output: Storage) -> None:
    """Remove what a run that was killed left half-written."""
    for name in output.files():
        if _TEMPORARY.search(name):
            output.remove(name)


def _begin(plan: Plan, output: Storage) -> Content:
    """The manifest of a new run, or of the one in the folder that is to go on.

    It has "format", all of ``plan.manifest()``, "environments" (versions and threads of every run
    that took part, each once) and "state".
    """
    # As it reads after writing: a tuple that becomes a list would count as a change.
    decided: Content = json.loads(json.dumps(plan.manifest()))
    before = {"format": f"captum_clip {plan.noun} 2", **decided, "environments": list[Content]()}
    content = output.read(MANIFEST)
    if content is not None:
        before = _check_same(plan, before, content, output)
    elif other := [name for name in output.files() if not name.startswith(".")]:
        raise InputError(
            f"{output.root} holds files that do not belong to the {plan.noun}, such as {other[0]}; "
            "name a new or an empty folder."
        )
    now = environment() | {"threads": plan.config.thread_count, "device": plan.config.device}
    if now not in before["environments"]:
        before["environments"].append(now)
    return {**before, "state": "running"}


def _check_same(plan: Plan, new: Content, content: bytes, output: Storage) -> Content:
    """The manifest of the run in the folder, which must be of the same kind and settings."""
    try:
        manifest: Content = parse_json(content)
        if manifest["format"] != new["format"]:
            raise ValueError(f"its format is {manifest['format']!r}")
        environments: list[Content] = [dict(each) for each in manifest["environments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{MANIFEST} is not a manifest of the kind {new['format']!r} ({error}); "
            "name another output folder."
        ) from error
    # A resume compares what decides results; versions and threads of each run are only kept.
    before = {name: manifest.get(name) for name in new} | {"environments": environments}
    changes = differences(before, new | {"environments": environments})
    if changes:
        raise InputError(
            f"{output.root} holds another {plan.noun}: {'; '.join(changes[:3])}. Take another "
            f"output folder, or the settings of that {plan.noun} to go on with it."
        )
    return before


@dataclass
class UnitWriter:
    """Computes units by their numbers, and writes their files; sent to each worker of Ray."""

    plan: Plan
    units: Sequence[Unit]
    output: Storage
    models: ModelLoader
    _compute: Worker | None = field(default=None, init=False)

    def __call__(self, number: int) -> Unit:
        """Write a unit."""
        unit = self.units[number]
        self._count(unit.name)
        # Only here, and not where the worker starts: what fails is an error of a unit.
        self._compute = self._compute or self.plan.worker(self.models)
        write_unit(self.output, unit, *self._compute(unit, lambda share: None))
        return unit

    def _count(self, name: str) -> None:
        """Count the times that a unit is started; InputError where it has killed too many workers.

        Ray Data has a limit of its own, `max_task_retries`, which its version 2.64 takes away.
        """
        counter = str(PurePosixPath(name).with_name(f".{PurePosixPath(name).name}.tries.part"))
        before = len(self.output.read(counter) or b"")
        if before >= _MOST_TRIES:
            raise InputError(
                f"{before} workers died over {name}, perhaps for lack of memory; use a smaller "
                f"batch, or {argument('engine', 'local')}, which reports more."
            )
        self.output.write(counter, b"x" * (before + 1))
