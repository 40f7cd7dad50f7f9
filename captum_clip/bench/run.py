"""A run: its settings, its manifest, and its units, which are computed here or on Ray.

Each unit is one file, whole or not at all, with arrays and with the reasons for what was left out.
A stop at any moment loses no more than the units that were being computed. The same command started
again ends in the same bytes.
"""

import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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
"""How messages say in what form a setting is expected, as "data by name or path"."""
DATA: Final = ("demo-thirds", "demo-identical", "demo", "demo-objects", "demo-mosaics")
"""The data sets of an evaluation that names none."""


@dataclass(frozen=True)
class EvaluationConfig(RunConfig):
    """Methods and metrics over data sets, for one model.

    Attributes:
        model: a name or folder that :func:`captum_clip.load_clip` knows.
        output: a folder or URL that is for the results alone.
        data: data sets, as :func:`captum_clip.bench.data.open_data` reads them; none means
            those of the demo that the tasks need.
        methods: names of :func:`captum_clip.bench.methods_for`, with options, "mamooler", or
            "all"; none means the registered ones that fit the tower. Drawn maps and predictors
            without a map are measured as well.
        maps: folders of maps made elsewhere, each a method.
        reference: the method that the others are compared with; by default the report's.
        tasks: names of tasks; none means all that the data support except "pairs".
        against: whether regions are explained by their "text", or by another "image" of the same
            thing; then only "localization" and "signs" are measured.
        images: the largest number of images of each data set; None is 100, or 300 of drawn copies.
        slow_images: number of images of each data set, drawn from all of them, for what takes long:
            sensitivity, sanity, and all of Captum's own methods.
        draws: random masks per image for faithfulness and infidelity.
        fills: what replaces removed pixels: the "mean" color (normalized zero), "black", "blur".
        template: text of a class with "{}" for its name, for data that have classes by name.
        resamples: number of resamples of the bootstrap.

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
        # No fill is called "none", so this raises the message that lists the fills.
        if not self.fills:
            check_choice("none", FILLS, name="fills")


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """A study of saliency maps over a folder of images.

    Attributes:
        images: a folder, searched recursively, or a URL that fsspec knows.
        output: a folder or URL that is for the results alone.
        texts: targets.
        models: names or folders that :func:`captum_clip.load_clip` knows; every model is studied
            with every method that fits its tower.
        methods: names of ``attr.METHODS``, with options as in "last-grad:heads=averaged"; none
            means the tower's own, as in `explain`, and "mamooler" the report's.
        emotions: a file for each model, in the same order, that was fitted for the model, as
            :meth:`captum_clip.targets.EmotionProbe.load` reads it; or none.
        centered: whether each emotion minus the mean of all emotions is a target as well.
        limit: size of a sample of the images; None is all images, and the seed has no effect.
        value_entropy: whether this entropy is measured too, which takes longer than all the rest.

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
        """Return all settings that decide the results; the seed does so only with a limit."""
        seed = None if self.limit is None else self.seed
        return {**super().identity(), "seed": seed, "threads": self.threads}


Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Unit:
    """A part of a run that is computed at once and kept in one file."""

    name: str  # of its file, in the output folder
    job: int  # number of the model and method, as the plan counts them
    numbers: tuple[int, ...]  # of the images
    label: str = ""  # the model or data set, and the method, as progress shows them


class DamagedUnitError(InputError):
    """The file of a unit is missing or damaged, or belongs to another unit."""


def write_unit(output: Storage, unit: Unit, arrays: Arrays, skipped: list[Skipped]) -> None:
    """Write the file of a unit."""
    # The name shows if somebody exchanges two files.
    about = {"skipped": np.array(json.dumps(skipped)), "unit": np.array(unit.name)}
    output.write(unit.name, to_npz({**arrays, **about}))


def read_unit(storage: Storage, unit: Unit) -> tuple[Arrays, list[Skipped]]:
    """Read the arrays of a unit, and what was skipped.

    Raises:
        DamagedUnitError: there is no intact file of this unit.
        InputError: the storage refuses.
    """
    content = storage.read(unit.name)
    try:
        if content is None:
            raise FileNotFoundError("it is gone")
        arrays = from_npz(content)
        name = str(arrays.pop("unit"))
        if name != unit.name:
            raise ValueError(f"it was written as {name}")
        entries = json.loads(str(arrays.pop("skipped")))
        return arrays, [Skipped(*entry) for entry in entries]
    except DAMAGED as error:
        raise DamagedUnitError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and run the same "
            "command again to compute it anew."
        ) from error


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON that people can read as well."""
    return f"{json.dumps(content, indent=1)}\n".encode()


def to_png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi="figure")
    return file.getvalue()


def to_npz(arrays: Arrays) -> bytes:
    """Return arrays as the content of an .npz file; the same arrays are the same bytes."""
    file = io.BytesIO()
    # NumPy writes no time of day into the archive, so a unit computed again is the same file.
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_npz(content: bytes) -> Arrays:
    """Return the arrays of an .npz file; other content raises an error of `DAMAGED`."""
    # A pickle in a file from elsewhere could run anything.
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


MANIFEST: Final = "manifest.json"
_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.part$")
"""Matches the names of files that a killed run leaves behind."""
_MOST_TRIES: Final = 5
"""How often a unit is started whose worker dies; Ray itself starts workers anew without end."""

Config = TypeVar("Config", EvaluationConfig, StudyConfig)
Result = TypeVar("Result")


TellShare = Callable[[float], None]
"""Takes the share of a unit that is done, which is reported while a unit takes minutes."""
Worker = Callable[[Unit, TellShare], tuple[Arrays, list[Skipped]]]
"""Computes the arrays of a unit, the same bytes in every process, and lists what was left out."""


class Plan(ABC):
    """A run that is ready to begin; it can be sent to other processes."""

    noun: ClassVar[str]  # "study", "evaluation"
    result: ClassVar[str]  # the file that is written last
    config: EvaluationConfig | StudyConfig
    units: tuple[Unit, ...]

    @abstractmethod
    def manifest(self) -> Content:
        """Return everything that decides the results, as JSON, the settings first."""

    @abstractmethod
    def worker(self, models: ModelLoader) -> Worker:
        """Make the function that computes units; called once in each process."""


def run(
    config: Config,
    make_plan: Callable[[Config, ModelLoader], Plan],
    summarize: Callable[[Any, Content, Storage, ModelLoader], Result],
    progress: Progress | None,
) -> Result:
    """Make a plan from a config, compute every unit that has no intact file, then summarize.

    The first call of `progress` counts what an earlier run did. `summarize` gets the plan, the
    manifest so far, the output folder and the loader of models, and writes the results.

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
        counter = _Counter(progress, total=_count_images(plan.units))
        counter.begin(done=counter.total - _count_images(missing))
        if missing:
            # The file that is written last stands for a run that is finished.
            output.remove(plan.result)
            # The manifest comes before the units, since files without one belong to somebody else.
            output.write(MANIFEST, to_json(manifest))
            _compute_units(config, plan, missing, output, models, counter)
            # A killed worker of Ray leaves files behind, although the run goes on.
            _tidy_up(output)
        return summarize(plan, manifest, output, models)


def _count_images(units: Iterable[Unit]) -> int:
    return sum(len(unit.numbers) for unit in units)


def _compute_units(
    config: EvaluationConfig | StudyConfig,
    plan: Plan,
    units: Sequence[Unit],
    output: Storage,
    models: ModelLoader,
    counter: "_Counter",
) -> None:
    """Compute units with the engine of the config, and write their files."""
    if config.engine == "ray":
        write = UnitWriter(plan, units, output, models)
        for unit in map_on_ray(config, write, len(units)):
            counter.add(unit)
        return
    compute = plan.worker(models)
    for unit in units:
        arrays, skipped = compute(unit, partial(counter.add_share, unit))
        write_unit(output, unit, arrays, skipped)
        counter.add(unit)


@dataclass
class _Counter:
    """Reports the number of images that are done."""

    progress: Progress | None
    total: int
    done: int = 0  # in whole units
    done_in_unit: int = 0  # as far as it was reported

    def begin(self, done: int) -> None:
        """Report what an earlier run did."""
        self.done = done
        self._report(done, "")

    def add_share(self, unit: Unit, share: float) -> None:
        """Report the share of a unit that is done.

        The last image of a unit counts only once its file is written.
        """
        count = int(share * len(unit.numbers))
        if self.done_in_unit < count < len(unit.numbers):
            self.done_in_unit = count
            self._report(self.done + count, unit.label)

    def add(self, unit: Unit) -> None:
        """Report a unit whose file is written."""
        self.done += len(unit.numbers)
        self.done_in_unit = 0
        self._report(self.done, unit.label)

    def _report(self, done: int, label: str) -> None:
        if self.progress is not None:
            self.progress(done, self.total, label)


def _unfinished(storage: Storage, units: Iterable[Unit]) -> list[Unit]:
    """Return the units without an intact file, or with an image that may be readable now."""
    present = storage.files()
    missing = []
    for unit in units:
        is_finished = False
        if unit.name in present:
            # Other errors of the storage end the run: a file out of reach is not a damaged one.
            with suppress(DamagedUnitError):
                _, skipped = read_unit(storage, unit)
                is_finished = not any(entry.again for entry in skipped)
        if not is_finished:
            missing.append(unit)
            storage.remove(unit.name)
    return missing


def _tidy_up(output: Storage) -> None:
    """Remove the unfinished files that a killed run left behind."""
    for name in output.files():
        if _TEMPORARY.search(name):
            output.remove(name)


def _begin(plan: Plan, output: Storage) -> Content:
    """Return the manifest of a new run, or of the run in the folder that goes on.

    It has "format", everything in ``plan.manifest()``, "environments" (versions and threads of
    every run that took part, each once) and "state".
    """
    # JSON turns tuples into lists. Without this round trip they would differ from those in a file.
    decided: Content = json.loads(json.dumps(plan.manifest()))
    manifest = {"format": f"captum_clip {plan.noun} 2", **decided, "environments": list[Content]()}
    content = output.read(MANIFEST)
    if content is not None:
        manifest = _check_same(plan, manifest, content, output)
    else:
        _check_empty(plan, output)
    now = environment() | {"threads": plan.config.thread_count, "device": plan.config.device}
    if now not in manifest["environments"]:
        manifest["environments"].append(now)
    return {**manifest, "state": "running"}


def _check_empty(plan: Plan, output: Storage) -> None:
    """Raise InputError for a folder with files of somebody else."""
    files = [name for name in output.files() if not name.startswith(".")]
    if files:
        raise InputError(
            f"{output.root} holds files that do not belong to the {plan.noun}, such as {files[0]}; "
            "name a new or an empty folder."
        )


def _check_same(plan: Plan, new: Content, content: bytes, output: Storage) -> Content:
    """Return the manifest in the folder; InputError unless it has the same kind and settings."""
    try:
        manifest: Content = parse_json(content)
        if manifest["format"] != new["format"]:
            raise ValueError(f"its format is {manifest['format']!r}")
        environments: list[Content] = [dict(entry) for entry in manifest["environments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{MANIFEST} is not a manifest of the kind {new['format']!r} ({error}); "
            "name another output folder."
        ) from error
    # Versions and threads may differ between the runs that fill a folder, so they are not compared.
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
    """Computes units by their numbers and writes their files; each worker of Ray gets a copy."""

    plan: Plan
    units: Sequence[Unit]
    output: Storage
    models: ModelLoader
    _compute: Worker | None = field(default=None, init=False)

    def __call__(self, number: int) -> Unit:
        """Write a unit."""
        unit = self.units[number]
        self._count_try(unit.name)
        # The models are loaded here and not when the worker starts, so that an error belongs to a
        # unit and is reported.
        if self._compute is None:
            self._compute = self.plan.worker(self.models)
        arrays, skipped = self._compute(unit, lambda share: None)
        write_unit(self.output, unit, arrays, skipped)
        return unit

    def _count_try(self, name: str) -> None:
        """Count how often a unit is started; InputError if it has killed too many workers.

        Ray Data has a limit of its own, `max_task_retries`, but only before version 2.64.
        """
        path = PurePosixPath(name)
        counter = str(path.with_name(f".{path.name}.tries.part"))
        # The file has one byte for each time.
        before = len(self.output.read(counter) or b"")
        if before >= _MOST_TRIES:
            raise InputError(
                f"{before} workers died over {name}, perhaps for lack of memory; use a smaller "
                f"batch, or {argument('engine', 'local')}, which reports more."
            )
        self.output.write(counter, b"x" * (before + 1))
