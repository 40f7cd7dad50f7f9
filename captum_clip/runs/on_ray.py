"""The engine for several processes or machines: Ray Data gives units to actors that load once."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic

from ..errors import CaptumClipError, InputError
from .engine import Advance, Engine, Worker, default_environment, threads
from .model_loader import ModelLoader
from .storage import Storage
from .units import U

_TRIES: Final = 5  # of a unit, since Ray gives one that kills its worker to the next without end
_RESUME: Final = "what is done is kept, start the same command again."
_BARS: Final = (
    "enable_progress_bars",
    "enable_operator_progress_bars",
    "print_on_execution_start",
)


def run_on_ray(
    make_worker: Callable[[ModelLoader], Worker[U]],
    units: Sequence[U],
    output: Storage,
    engine: Engine,
    models: ModelLoader,
    advance: Advance,
) -> None:
    """Compute every unit in the engine's processes, which write their files themselves."""
    share = math.ceil(engine.processes / engine.gpus) if engine.gpus else 0  # workers a GPU
    count = len(units)
    with _quiet_ray() as ray, connected(ray, engine):
        try:
            rows = ray.data.from_items(
                [{"unit": number} for number in range(count)], override_num_blocks=count
            ).map_batches(
                UnitWorker,
                fn_constructor_args=(make_worker, units, output, engine.threads, models),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(engine.processes, count)),
                num_cpus=engine.threads,
                num_gpus=1 / share if share else 0,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {_RESUME}")
                advance(units[row["unit"]].size)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {_RESUME}") from error


@dataclass(eq=False)
class UnitWorker(Generic[U]):
    """An actor of Ray Data: computes one unit at a time, and writes its file itself."""

    make_worker: Callable[[ModelLoader], Worker[U]]
    units: Sequence[U]
    output: Storage
    threads: int
    models: ModelLoader
    worker: Worker[U] | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Compute the unit of a row; what went wrong travels as text."""
        number = int(rows["unit"][0])
        unit = self.units[number]
        try:
            with threads(self.threads), self._counted(unit.name):
                if self.worker is None:  # here, so that its errors travel as text too
                    self.worker = self.make_worker(self.models)
                self.worker.compute([unit], self.output.write, lambda images: None)
        except CaptumClipError as error:
            return {"unit": [number], "error": [str(error)]}
        return {"unit": [number], "error": [""]}

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Count the times that a unit is begun; the count stays where the process dies."""
        counter = tries_of(name)
        before = int(self.output.read(counter) or 0)
        if before >= _TRIES:
            self.output.remove(counter)
            raise InputError(
                f"{before} workers died over the shard {name}, perhaps for want of memory; take a "
                "smaller batch, or engine='local', which says more."
            )
        self.output.write(counter, str(before + 1).encode())
        try:
            yield
        finally:
            self.output.remove(counter)


def tries_of(name: str) -> str:
    """The file that counts how often a unit was begun."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/.{file}.tries"


@contextmanager
def connected(ray: Any, engine: Engine) -> Iterator[None]:
    """To the caller's Ray, or a cluster that there is, or one that is started here for a while."""
    is_callers = ray.is_initialized()
    try:
        if not is_callers:
            _join_or_start(ray, engine)
        _check_room(ray, engine)
        yield
    finally:
        if not is_callers:
            ray.shutdown()


def _join_or_start(ray: Any, engine: Engine) -> None:
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, engine.processes * engine.threads)
    with _silent_stderr():
        try:
            try:
                ray.init(num_cpus=cpus, include_dashboard=False, **options)
            except ValueError:  # Ray: a cluster that is there already has its CPUs
                ray.init(**options)
        except ConnectionError as error:
            raise InputError(f"Ray cannot be reached: {error}") from error


def _check_room(ray: Any, engine: Engine) -> None:
    """A worker that no machine has room for would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    if gpus < engine.gpus:
        raise InputError(
            f"gpus={engine.gpus} is more than the {gpus:.0f} of the Ray cluster; give fewer, or "
            "gpus=0 to compute on the CPU."
        )
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= min(engine.gpus, 1)]
    largest = max((machine.get("CPU", 0) for machine in fitting), default=0)
    if largest < engine.threads:
        raise InputError(
            f"a worker with {engine.threads} threads fits on no machine of the Ray cluster, the "
            f"largest {'with a GPU ' if engine.gpus else ''}has {largest:.0f} CPUs; give fewer "
            "threads."
        )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native code tells the terminal that it has been told to be silent."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _quiet_ray() -> Iterator[Any]:
    """Ray without log lines, bars and warnings of its own; its settings are put back."""
    environment = default_environment(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0")
    with environment, warnings.catch_warnings(), ExitStack() as stack:
        warnings.filterwarnings("ignore", module=r"ray\.")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise InputError(
                "engine='ray' needs Ray Data: pip install 'ray[data]', or leave the engine out "
                "to compute on this machine."
            ) from error
        context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        for name in _BARS:
            if name in vars(context):  # some versions lack one
                stack.callback(setattr, context, name, getattr(context, name))
                setattr(context, name, False)
        yield ray
