"""The engine for several processes or machines: Ray Data gives units to actors that load once."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from ..errors import CaptumClipError, InputError
from .config import RunConfig
from .storage import Storage
from .units import ModelLoader, Plan, Unit, Worker, default_environment, threads, write_units

_TRIES: Final = 5  # lives of a worker
_RESUME: Final = "what is done is kept, start the same command again."


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
