"""Run a plan: what is missing is computed and kept, unit by unit, then everything is summarised.

A unit is one file, whole or not at all, so a stop at any moment loses no more than the units that
were being computed, and the same command started again ends in the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeVar

import torch

from .._version import __version__
from ..errors import CaptumClipError, InputError
from ..files import DAMAGED
from .config import EvaluationConfig, RunConfig, StudyConfig
from .storage import Storage, storage_of
from .units import (
    AGAIN,
    Content,
    ModelLoader,
    Plan,
    Progress,
    Unit,
    Worker,
    default_environment,
    parse_unit,
    threads,
    to_json,
    write_units,
)

MANIFEST: Final = "manifest.json"
_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.part$")
"""Names of files that a run which was killed leaves behind."""
_PACKAGES: Final = ("torch", "numpy", "transformers", "open_clip_torch", "captum", "pillow")

_TRIES: Final = 5  # lives of a worker of Ray
_RESUME: Final = "what is done is kept, start the same command again."

Result = TypeVar("Result")


def run(
    plan: Callable[[ModelLoader], Plan],
    summarise: Callable[[Any, Content, Storage, ModelLoader], Result],
    config: EvaluationConfig | StudyConfig,
    progress: Progress | None,
) -> Result:
    """Compute every unit that has no whole file, then summarise.

    `progress` is called first with what an earlier run had done. `summarise` gets the plan, the
    manifest so far, the output folder and what loads models, and writes the results.

    Raises:
        CaptumClipError: a model that cannot be loaded, a folder with another run or something
            else in it, a disk that refuses, a worker that died.
    """
    if config.gpus and config.engine == "local" and not torch.cuda.is_available():
        raise InputError(
            "a GPU was asked for, but PyTorch sees no CUDA device; leave gpus out to compute on "
            "the CPU."
        )
    output = storage_of(config.output)
    with threads(config.thread_count), output.lock():
        models = ModelLoader(config.processor, config.tokenizer)
        made = plan(models)
        manifest = _begin(made, output)
        _tidy_up(output)
        _compute_missing(made, manifest, output, models, progress)
        return summarise(made, manifest, output, models)


def _compute_missing(
    plan: Plan, manifest: Content, output: Storage, models: ModelLoader, progress: Progress | None
) -> None:
    missing = _unfinished(output, plan.units)
    total = sum(len(unit.numbers) for unit in plan.units)
    done = total - sum(len(unit.numbers) for unit in missing)
    if progress is not None:
        progress(done, total)
    if not missing:
        return
    output.remove(plan.result)  # it means that all is done
    # The manifest comes first: a folder without one is taken for somebody else's.
    for name, content in {MANIFEST: to_json(manifest), **plan.files()}.items():
        output.write(name, content)
    for unit in _computed(plan, missing, output, models):
        done += len(unit.numbers)
        if progress is not None:
            progress(done, total)
    _tidy_up(output)  # a worker of Ray that was killed leaves files, although the run goes on


def _computed(
    plan: Plan, missing: Sequence[Unit], output: Storage, models: ModelLoader
) -> Iterator[Unit]:
    """Each unit once it is computed and written."""
    if plan.config.engine == "ray":
        return run_on_ray(plan, missing, output, models)
    return write_units(plan.worker(models), missing, output)


def _unfinished(storage: Storage, units: Iterable[Unit]) -> list[Unit]:
    """Units without a whole file, or with an image that may be readable now."""
    present = storage.files()
    missing = []
    for unit in units:
        # What the storage refuses ends the run: a file that cannot be reached is not damaged.
        content = storage.read(unit.name) if unit.name in present else None
        try:
            _, skipped = parse_unit(content, unit)
        except DAMAGED:
            skipped = [(0, AGAIN)]
        if any(reason.endswith(AGAIN) for _, reason in skipped):
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

    It has "format", all of ``plan.about()``, "environments" (versions and threads of every run that
    took part, each once) and "state".
    """
    about: Content = json.loads(json.dumps(plan.about()))
    form, environments = f"captum_clip {plan.noun} 2", []
    content = output.read(MANIFEST)
    if content is not None:
        environments = _check_same(plan, form, about, content, output)
    elif other := [name for name in output.files() if not name.startswith(".")]:
        raise InputError(
            f"{output.root} holds files that are of no {plan.noun}, such as {other[0]}; name a new "
            "or an empty folder."
        )
    now: Content = {"captum_clip": __version__, **{name: _version_of(name) for name in _PACKAGES}}
    now |= {"threads": plan.config.thread_count, "device": plan.config.device}
    if now not in environments:
        environments = [*environments, now]
    return {"format": form, **about, "environments": environments, "state": "running"}


def _check_same(
    plan: Plan, form: str, about: Content, content: bytes, output: Storage
) -> list[Content]:
    """The environments of the run in the folder, if it has the same settings."""
    try:
        before: Content = json.loads(content)
        if before["format"] != form:
            raise ValueError(f"its format is {before['format']!r}")
        environments: list[Content] = list(before["environments"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{MANIFEST} is not a manifest of the kind {form!r} ({error}); name "
            "another output folder."
        ) from error
    then, now = (dict(_leaves({name: of.get(name) for name in about})) for of in (before, about))
    changes = [
        f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    for name, own in plan.files().items():
        other = output.read(name)
        if other not in (None, own):
            changes.append(_line_changes(name, (other or b"").splitlines(), own.splitlines()))
    if changes:
        raise InputError(
            f"{output.root} holds another {plan.noun}: {'; '.join(changes[:3])}. Take another "
            f"output folder, or the settings of that {plan.noun} to go on with it."
        )
    return environments


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a JSON value holds by its path, as "config.texts"; lists of plain values are whole."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def _line_changes(name: str, before: Sequence[bytes], now: Sequence[bytes]) -> str:
    """What changed in a table, in words."""
    differences = {"gone": {*before} - {*now}, "new or changed": {*now} - {*before}}
    texts = [
        f"{len(lines)} {what} (such as {min(lines).decode('utf-8', 'replace')})"
        for what, lines in differences.items()
        if lines
    ]
    return f"{name} changed: {', '.join(texts) or 'another order'}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def run_on_ray(
    plan: Plan, units: Sequence[Unit], output: Storage, models: ModelLoader
) -> Iterator[Unit]:
    """Compute units in the processes of the config; they write their files themselves."""
    config, count = plan.config, len(units)
    share = math.ceil(config.processes / config.gpus) if config.gpus else 0  # workers a GPU
    with _connected(config) as ray:
        try:
            rows = ray.data.from_items(
                [{"unit": number} for number in range(count)], override_num_blocks=count
            ).map_batches(
                UnitWorker,
                fn_constructor_args=(plan, units, output, models),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(config.processes, count)),
                num_cpus=config.thread_count,
                num_gpus=1 / share if share else 0,
                # without a limit a unit that kills its worker would be tried without end
                max_restarts=_TRIES - 1,
                max_task_retries=_TRIES - 1,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {_RESUME}")
                yield units[row["unit"]]
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {_RESUME}") from error


class UnitWorker:
    """An actor of Ray Data: computes one unit at a time, and writes its file."""

    def __init__(
        self, plan: Plan, units: Sequence[Unit], output: Storage, models: ModelLoader
    ) -> None:
        self._plan, self._units, self._output, self._models = plan, units, output, models
        self._worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Compute the unit of a row; an error travels as text."""
        number = int(rows["unit"][0])
        try:
            with threads(self._plan.config.thread_count):
                if self._worker is None:  # here, so that its errors travel as text too
                    self._worker = self._plan.worker(self._models)
                list(write_units(self._worker, [self._units[number]], self._output))
        except CaptumClipError as error:
            return {"unit": [number], "error": [str(error)]}
        return {"unit": [number], "error": [""]}


@contextmanager
def _connected(config: RunConfig) -> Iterator[Any]:
    """Ray, quiet: the caller's, a cluster that there is, or one that is started for a while."""
    quiet = default_environment(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0")
    with quiet, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise InputError(
                "engine='ray' needs Ray Data: pip install 'ray[data]', or leave the engine out "
                "to compute on this machine."
            ) from error
        is_callers = ray.is_initialized()
        context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
        bars, level = context.enable_progress_bars, logger.level
        context.enable_progress_bars = False
        logger.setLevel(logging.ERROR)
        try:
            if not is_callers:
                _join_or_start(ray, config)
            _check_room(ray, config)
            yield ray
        finally:
            context.enable_progress_bars = bars
            logger.setLevel(level)
            if not is_callers:
                ray.shutdown()


def _join_or_start(ray: Any, config: RunConfig) -> None:
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, config.processes * config.thread_count)
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **options)
        except ValueError:  # Ray: a cluster that is there already has its CPUs
            ray.init(**options)
    except ConnectionError as error:
        raise InputError(f"Ray cannot be reached: {error}") from error


def _check_room(ray: Any, config: RunConfig) -> None:
    """A worker that no machine has room for would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= min(config.gpus, 1)]
    cpus = max((machine.get("CPU", 0) for machine in fitting), default=0)
    if gpus < config.gpus or cpus < config.thread_count:
        raise InputError(
            f"a worker with threads={config.thread_count} and its share of gpus={config.gpus} fits "
            f"on no machine of the Ray cluster, which has {gpus:.0f} GPUs and at most {cpus:.0f} "
            "CPUs on one machine; give fewer."
        )
