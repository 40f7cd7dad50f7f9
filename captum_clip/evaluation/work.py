"""The units that are not there yet, for whichever engine: it loads the model, then computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import CaptumClipError, InputError
from ..studies.jobs import Loader
from ..studies.on_ray import RayWork
from ..studies.storage import Storage
from .bench import Bench, Shared
from .chunk import read_chunk
from .config import EvaluationConfig
from .data.base import DataSet
from .made_elsewhere import MadeElsewhere
from .methods import Method, method_of
from .tasks import TASKS, Case, Found
from .units import Unit, joined, to_bytes


@dataclass(frozen=True, eq=False)
class Work(RayWork):
    """All that is to be computed; it can be sent to another process or machine.

    Attributes:
        config: the settings.
        model: what `load_clip` takes, a folder by its full path.
        fingerprint: of the model; a worker must find the same.
        device: where to compute.
        data: the data sets.
        tasks: of each data set.
        methods: names of all methods but those made elsewhere.
        units: those that are not there yet.
        output: where each unit writes its file.
        threads: of each process.
    """

    config: EvaluationConfig
    model: str
    fingerprint: str
    device: str
    data: Sequence[DataSet]
    tasks: Sequence[Sequence[str]]
    methods: Sequence[str]
    units: Sequence[Unit]
    output: Storage
    threads: int

    @property
    def processes(self) -> int:  # type: ignore[override]
        """See :class:`RayWork`."""
        return self.config.workers

    @property
    def gpus(self) -> int:  # type: ignore[override]
        """See :class:`RayWork`."""
        return self.config.gpus

    @property
    def files(self) -> Sequence[str]:
        """See :class:`RayWork`."""
        return [unit.name for unit in self.units]

    @property
    def sizes(self) -> Sequence[int]:
        """See :class:`RayWork`."""
        return [len(unit.numbers) for unit in self.units]

    def worker(self) -> Callable[[int], None]:
        """See :class:`RayWork`."""
        return Worker(self)


class Worker:
    """A model with its methods; the last chunk stays for the next method.

    Args:
        work: what to compute.
        loader: has perhaps loaded the model already.

    Raises:
        InputError: what bears the model's name here is another model.
    """

    def __init__(self, work: Work, loader: Loader | None = None) -> None:
        clip, fingerprint = (loader or Loader()).load(work.model, work.device)
        if fingerprint != work.fingerprint:
            raise InputError(
                f"the weights or the preprocessing of {work.model} are not those that the "
                "evaluation was begun with; give all machines the same, and leave them alone while "
                "it runs."
            )
        self._work = work
        self._benches = [Bench(clip, data, work.config) for data in work.data]
        self._methods: list[Method] = [
            *(method_of(name, clip, seed=work.config.seed) for name in work.methods),
            *(MadeElsewhere(folder) for folder in work.config.maps),
        ]
        self._last: tuple[tuple[int, tuple[int, ...]], Shared] | None = None

    def __call__(self, number: int) -> None:
        """Compute a unit and write its file."""
        unit = self._work.units[number]
        self._work.output.write(unit.name, to_bytes(self._found(unit)))

    def _found(self, unit: Unit) -> Found:
        bench, shared = self._benches[unit.data], self._shared(unit)
        method = self._methods[unit.method]
        if not shared.chunk.seen:
            return Found(skipped=shared.chunk.skipped)
        case = Case(bench, shared, method)
        try:
            parts = [TASKS[name].measure(case) for name in self._work.tasks[unit.data]]
        except CaptumClipError as error:
            raise InputError(f"{method.name} on {bench.data.name}: {error}") from error
        return replace(joined(parts), skipped=(*shared.chunk.skipped, *case.skipped))

    def _shared(self, unit: Unit) -> Shared:
        key = (unit.data, unit.numbers)
        if self._last is None or self._last[0] != key:
            bench = self._benches[unit.data]
            chunk = read_chunk(bench.data, unit.numbers, bench.clip)
            self._last = key, Shared(bench, chunk)
        return self._last[1]
