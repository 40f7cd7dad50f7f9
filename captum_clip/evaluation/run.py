"""A run: the plan of its units, those that are missing computed here or on Ray, the manifest."""

import json
import logging
import math
import os
import pickle
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, TypeVar

import torch

from .._version import __version__
from ..checks import excerpt, expect, limit_pixels, max_pixels
from ..errors import CaptumClipError, InputError, argument
from ..kinds import parse_json
from ..models import ClipAdapter, differing_parts, load_clip
from ..models.identity import agree
from ..models.loading import load_parts
from .config import EvaluationConfig, RunConfig, StudyConfig, full_name
from .storage import Storage, storage_of
from .units import Arrays, DamagedUnitError, Skipped, Unit, read_unit, to_json, write_unit

MANIFEST: Final = "manifest.json"
_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.part$")
"""Names of files that a run which was killed leaves behind."""
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")

_TRIES: Final = 5  # of a unit whose worker dies, since Ray starts workers anew without end
RESUME: Final = "what is done is kept, start the same command again."

Config = TypeVar("Config", EvaluationConfig, StudyConfig)
Result = TypeVar("Result")
Content = dict[str, Any]
Progress = Callable[[int, int, str], None]
"""Called with how many images were done, how many there are, and the label of the unit done last.

An image counts once a method; the label is empty at the first call."""


@dataclass
class ModelLoader:
    """Loads models by name, and keeps the last one for as long as it is asked for again.

    Sent to another process it loads there for itself. Where `processor` names another model, the
    models get its image processor in place of their own, and so for the tokenizer.
    """

    processor: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    _loaded: tuple[tuple[str, str], ClipAdapter] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def load(self, model: str, device: str = "cpu", identity: Content | None = None) -> ClipAdapter:
        """Load a model, which must have the identity of the run's beginning where one is given."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            parts = load_parts(self.processor, self.tokenizer)
            clip = load_clip(model, **parts, device=device, image_size=self.image_size)
            if identity and (changed := differing_parts(identity, clip.identity())):
                raise InputError(
                    f"{model} has other {' and '.join(changed)} than when the run began; give all "
                    "machines the same files, and do not change them during the run."
                )
            self._loaded = ((model, device), clip)
        return self._loaded[1]


Share = Callable[[float], None]
"""Called with the share of a unit that is done, for units that take minutes."""
Worker = Callable[[Unit, Share], tuple[Arrays, list[Skipped]]]
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

    def files(self) -> dict[str, bytes]:
        """Further CSV files that must be the same when a run goes on."""
        return {}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, then with as many as before."""
    # Sums are split among threads, so their number decides the last digits.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    kind: type[Config],
    config: Config,
    plan: Callable[[Config, ModelLoader], Plan],
    summarize: Callable[[Any, Content, Storage, ModelLoader], Result],
    progress: Progress | None,
) -> Result:
    """Plan with a config of a kind, compute every unit that has no whole file, then summarize.

    `progress` is called first with what an earlier run had done. `summarize` gets the plan, the
    manifest so far, the output folder and what loads models, and writes the results.

    Raises:
        CaptumClipError: a model that cannot be loaded, a folder with another run or something
            else in it, a disk that refuses, a worker that died.
    """
    expect(isinstance(config, kind), f"settings as {kind.__name__}(...)", config)
    if config.gpus and config.engine == "local" and not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device; leave `gpus` out to compute on the CPU.")
    output = storage_of(config.output)
    with threads(config.thread_count), output.lock():
        lent = (config.processor, config.tokenizer)
        processor, tokenizer = (name and full_name(name) for name in lent)
        models = ModelLoader(processor, tokenizer, config.image_size)
        made = plan(config, models)
        manifest = _begin(made, output)
        _tidy_up(output)
        _compute_missing(made, manifest, output, models, progress)
        return summarize(made, manifest, output, models)


@dataclass
class _Counter:
    """Counts images for somebody who waits."""

    progress: Progress
    total: int
    done: int  # with the last whole unit
    told: int = 0  # in the unit at work

    def add_share(self, unit: Unit, share: float) -> None:
        """Count what is done of a unit, but its last image, which counts once the file is there."""
        count = int(share * len(unit.numbers))
        if self.told < count < len(unit.numbers):
            self.told = count
            self.progress(self.done + count, self.total, unit.label)

    def add(self, unit: Unit) -> None:
        """Count a unit that is written."""
        self.done, self.told = self.done + len(unit.numbers), 0
        self.progress(self.done, self.total, unit.label)


def _compute_missing(
    plan: Plan, manifest: Content, output: Storage, models: ModelLoader, progress: Progress | None
) -> None:
    missing = _unfinished(output, plan.units)
    total, left = (sum(len(unit.numbers) for unit in units) for units in (plan.units, missing))
    counter = _Counter(progress or (lambda *_: None), total, total - left)
    counter.progress(counter.done, total, "")
    if not missing:
        return
    output.remove(plan.result)  # it means that all is done
    # The manifest comes first: a folder without one is taken for somebody else's.
    for name, content in {MANIFEST: to_json(manifest), **plan.files()}.items():
        output.write(name, content)
    if plan.config.engine == "ray":
        for unit in run_on_ray(plan, missing, output, models):
            counter.add(unit)
    else:
        worker = plan.worker(models)
        for unit in missing:
            write_unit(output, unit, *worker(unit, partial(counter.add_share, unit)))
            counter.add(unit)
    _tidy_up(output)  # a worker of Ray that was killed leaves files, although the run goes on


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
    now: Content = {"captum_clip": __version__, **{name: version(name) for name in _PACKAGES}}
    now |= {"threads": plan.config.thread_count, "device": plan.config.device}
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
    for name, expected in plan.files().items():
        present = output.read(name)
        if present not in (None, expected):
            lines = {*expected.splitlines()} ^ {*(present or b"").splitlines()}
            example = min(lines, default=b"the order").decode("utf-8", "replace")
            changes.append(f"{name} changed, such as {example}")
    if changes:
        raise InputError(
            f"{output.root} holds another {plan.noun}: {'; '.join(changes[:3])}. Take another "
            f"output folder, or the settings of that {plan.noun} to go on with it."
        )
    return before


def differences(before: Content, after: Content) -> list[str]:
    """Say which settings, as JSON, are not those of before."""
    then, now = dict(_leaves(before)), dict(_leaves(after))
    return [
        f"{name} was {_shown(then.get(name))} and is {_shown(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)  # embeddings of another machine differ by rounding
        and not (".identity." in name and agree(str(then.get(name)), str(now.get(name))))
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by path, as "config.texts"; lists of plain values are whole."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False), 200)


def run_on_ray(
    plan: Plan, units: Sequence[Unit], output: Storage, models: ModelLoader
) -> Iterator[Unit]:
    """Compute units in the processes of the config; they write their files themselves."""
    write = UnitWriter(plan, units, output, models)
    yield from map_on_ray(plan.config, write, len(units))


def map_on_ray(config: RunConfig, work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Results of `work` for each number below a count, in any order, from Ray's processes."""
    share = math.ceil(config.processes / config.gpus) if config.gpus else 0  # workers a GPU
    with _connected(config) as ray:
        try:
            # A block for each unit: a worker that dies loses the whole block.
            rows = ray.data.from_items(
                [{"unit": number} for number in range(count)], override_num_blocks=count
            ).map_batches(
                UnitWorker,
                fn_constructor_args=(work, config.thread_count, max_pixels.get()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(config.processes, count)),
                num_cpus=config.thread_count,
                num_gpus=1 / share if share else 0,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {RESUME}")
                yield pickle.loads(row["result"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {RESUME}") from error


class UnitWorker:
    """An actor of Ray Data: works at one number at a time."""

    def __init__(
        self, work: Callable[[int], Any], thread_count: int, most: int | None = None
    ) -> None:
        self._work, self._threads, self._most = work, thread_count, most

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """The result for the number of a row, or the reason why there is none."""
        result, reason = None, ""
        try:
            with threads(self._threads), limit_pixels(self._most):
                result = self._work(int(rows["unit"][0]))
        # An error travels as text: raised here, Ray would start the worker anew.
        except CaptumClipError as error:
            reason = error.reason
        # As bytes, every block has one schema, whatever the result is.
        return {"error": [reason], "result": [pickle.dumps(result)]}


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
        """Count the times that a unit is begun; InputError where it has killed too many workers.

        Ray Data has a limit of its own, `max_task_retries`, which its version 2.64 takes away.
        """
        counter = str(PurePosixPath(name).with_name(f".{PurePosixPath(name).name}.tries.part"))
        before = len(self.output.read(counter) or b"")
        if before >= _TRIES:
            raise InputError(
                f"{before} workers died over {name}, perhaps for lack of memory; use a smaller "
                f"batch, or {argument('engine', 'local')}, which reports more."
            )
        self.output.write(counter, b"x" * (before + 1))


@contextmanager
def _connected(config: RunConfig) -> Iterator[Any]:
    """Ray, quiet: the caller's, a cluster that there is, or one that is started for a while."""
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    quiet |= {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    with ExitStack() as undo:
        for name in quiet.keys() - os.environ.keys():  # what the user has set stays
            os.environ[name] = quiet[name]
            undo.callback(os.environ.pop, name)
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"ray\.")
        warnings.filterwarnings("ignore", "lancedb fork")  # what Ray starts does not use it
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise InputError(
                f"{argument('engine', 'ray')} needs Ray Data: pip install 'ray[data]', or "
                "leave the engine out to compute on this machine."
            ) from error
        logger = logging.getLogger("ray.data")
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if not ray.is_initialized():
            undo.callback(ray.shutdown)
            with _muted():
                _join_or_start(ray, config)
        _check_room(ray, config)
        yield ray


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing on stderr, where Ray's C++ announces the log level that it was given."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _join_or_start(ray: Any, config: RunConfig) -> None:
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, config.processes * config.thread_count)
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **options)
        except ValueError:  # Ray: a cluster that is there already has its CPUs
            ray.init(**options)
    except Exception as error:  # a start that takes too long is no other class of Ray's
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"Ray cannot be started or reached ({reason}); {RESUME}") from error


def _check_room(ray: Any, config: RunConfig) -> None:
    """A worker that no machine has room for would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= min(config.gpus, 1)]
    cpus = max((machine.get("CPU", 0) for machine in fitting), default=0)
    if gpus < config.gpus or cpus < config.thread_count:
        raise InputError(
            f"no machine of the Ray cluster can run a worker with "
            f"{argument('threads', config.thread_count)} and its share of "
            f"{argument('gpus', config.gpus)}. The cluster has {gpus:.0f} GPUs, and at most "
            f"{cpus:.0f} CPUs on one machine; give fewer."
        )
