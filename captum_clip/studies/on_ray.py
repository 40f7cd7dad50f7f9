"""The engine for several processes or machines: Ray Data gives units to actors that load once."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from ..errors import CaptumClipError, InputError
from ..runs import threads
from ..runs.on_ray import tries_of
from .storage import Storage

_TRIES: Final = 5  # of a shard, since Ray gives one that kills its worker to the next without end
_RESUME: Final = "what is done is kept, start the same command again."
_SILENT: Final = {
    "enable_progress_bars": False,
    "enable_operator_progress_bars": False,
    "print_on_execution_start": False,
}


class RayWork(ABC):
    """Units of work that can be sent to other processes and machines.

    Attributes:
        output: where each unit writes its file.
        processes: actors that compute.
        gpus: that they share.
        threads: of each actor.
    """

    output: Storage
    processes: int
    gpus: int
    threads: int

    @property
    @abstractmethod
    def files(self) -> Sequence[str]:
        """The file that each unit writes, in order."""

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """How many images each unit has."""

    @abstractmethod
    def worker(self) -> Callable[[int], None]:
        """Called once an actor: what computes a unit by its number and writes its file."""


def run_on_ray(work: RayWork, advance: Callable[[int], None]) -> None:
    """Compute and write every unit.

    Args:
        work: the units.
        advance: told how many images were done since the last call.

    Raises:
        CaptumClipError: Ray is missing or its workers die again and again, a model that a worker
            cannot load, a disk that refuses.
    """
    share = math.ceil(work.processes / work.gpus) if work.gpus else 0  # workers a GPU
    count = len(work.files)
    with _own_warnings(), _connected(work) as ray, _silent_data():
        try:
            rows = ray.data.from_items(
                [{"unit": number} for number in range(count)], override_num_blocks=count
            ).map_batches(
                ShardWorker,
                fn_constructor_args=(work,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(work.processes, count)),
                num_cpus=work.threads,
                num_gpus=1 / share if share else 0,
            )
            for row in rows.iter_rows():
                if row["error"]:
                    raise InputError(f"{row['error'].rstrip('.')}; {_RESUME}")
                advance(work.sizes[row["unit"]])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Ray could not go on ({reason}); {_RESUME}") from error


class ShardWorker:
    """An actor of Ray Data: computes one unit at a time."""

    def __init__(self, work: RayWork) -> None:
        self._work = work
        self._compute: Callable[[int], None] | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Compute the unit of a row; what went wrong travels as text."""
        number = int(rows["unit"][0])
        try:
            with threads(self._work.threads), self._counted(self._work.files[number]):
                if self._compute is None:  # here, so that its errors travel as text too
                    self._compute = self._work.worker()
                self._compute(number)
        except CaptumClipError as error:
            return {"unit": [number], "error": [str(error)]}
        return {"unit": [number], "error": [""]}

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Count the times that a unit is begun; the count stays where the process dies."""
        output = self._work.output
        count = tries_of(name)
        before = int(output.read(count) or 0)
        if before >= _TRIES:
            output.remove(count)
            raise InputError(
                f"{before} workers died over the shard {name}, perhaps for want of memory; take a "
                "smaller batch, or engine='local', which says more."
            )
        output.write(count, str(before + 1).encode())
        try:
            yield
        finally:
            output.remove(count)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "engine='ray' needs Ray Data: pip install 'captum-clip[ray]', or leave the engine out "
            "to compute on this machine."
        ) from error
    return ray


@contextmanager
def _connected(work: RayWork) -> Iterator[Any]:
    """Ray: the caller's, or a cluster that there is, or one that is started here until the end."""
    ray = _ray()
    if ray.is_initialized():
        _check_room(ray, work)
        yield ray
        return
    with _environment():
        try:
            with _silent_start():
                _join_or_start(ray, work)
            _check_room(ray, work)
            yield ray
        finally:
            ray.shutdown()


def _join_or_start(ray: Any, work: RayWork) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, work.processes * work.threads)
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
        except ValueError:  # Ray: a cluster that is there already has its CPUs
            ray.init(**quiet)
    except ConnectionError as error:
        raise InputError(f"Ray cannot be reached: {error}") from error


def _check_room(ray: Any, work: RayWork) -> None:
    """A worker that no machine has room for would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    if gpus < work.gpus:
        raise InputError(
            f"gpus={work.gpus} is more than the {gpus:.0f} of the Ray cluster; give fewer, or "
            "gpus=0 to compute on the CPU."
        )
    wanted = work.threads
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= min(work.gpus, 1)]
    largest = max((machine.get("CPU", 0) for machine in fitting), default=0)
    if largest < wanted:
        raise InputError(
            f"a worker with {wanted} threads fits on no machine of the Ray cluster, the largest "
            f"{'with a GPU ' if work.gpus else ''}has {largest:.0f} CPUs; give fewer threads."
        )


@contextmanager
def _environment() -> Iterator[None]:
    """Ray's own processes without log lines on the terminal; what the user has set stays."""
    wanted = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Without the warnings that Ray's code gives about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")
        yield


@contextmanager
def _silent_start() -> Iterator[None]:
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
def _silent_data() -> Iterator[None]:
    """Ray Data without bars and log lines of its own; its settings are put back."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in _SILENT if name in vars(context)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name in before:
        setattr(context, name, _SILENT[name])
    logger.setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        for name, value in before.items():
            stack.callback(setattr, context, name, value)
        yield
