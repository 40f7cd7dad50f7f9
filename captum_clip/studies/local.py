"""The engine for one machine: PyTorch's workers decode, this process computes."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

from ..errors import CaptumClipError, InputError
from .computing import Computer
from .decoding import Batch, Decoder
from .engine import Advance, Work, compute_unit
from .jobs import Job, Loader
from .shards import Unit

_TOKENIZERS: Final = "TOKENIZERS_PARALLELISM"


def run_local(work: Work, loader: Loader, advance: Advance) -> None:
    """Compute and write every unit.

    Raises:
        CaptumClipError: a model that cannot be loaded, a disk that refuses, a worker that died.
    """
    for number, units in groupby(work.units, key=lambda unit: unit.job):
        _run_job(work, work.jobs[number], list(units), loader, advance)


def _run_job(work: Work, job: Job, units: Sequence[Unit], loader: Loader, advance: Advance) -> None:
    computer = Computer.load(job, loader)
    decoder = work.decoder(job, computer.clip.processor)
    places = [batch for unit in units for batch in unit.batches]
    with decoded(decoder, places, work.processes) as batches:
        for unit in units:
            own = islice(batches, len(unit.batches))
            compute_unit(unit, computer, own, work.output, advance)


class _Batches(Dataset[Batch | CaptumClipError]):
    def __init__(self, decoder: Decoder, places: Sequence[Sequence[int]]) -> None:
        self.decoder = decoder
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Batch | CaptumClipError:
        try:
            return self.decoder.batch(self.places[index])
        except CaptumClipError as error:  # raised here it would arrive with a traceback for a text
            return error


def _same(item: Any) -> Any:
    return item


@contextmanager
def decoded(
    decoder: Decoder, places: Sequence[Sequence[int]], workers: int
) -> Iterator[Iterator[Batch]]:
    """Decoded batches in their order, a few ahead."""
    data = _Batches(decoder, places)
    workers = min(workers, len(places))
    loader = DataLoader(data, batch_size=None, num_workers=workers, collate_fn=_same)
    stream = _stream(loader)
    with _quiet_forks():
        try:
            yield stream
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise _died() from error.with_traceback(None)
        finally:
            stream.close()


def _stream(loader: Iterable[Batch | CaptumClipError]) -> Generator[Batch, None, None]:
    """Ends the workers when it is closed."""
    try:
        for found in loader:
            if isinstance(found, CaptumClipError):
                raise found
            yield found
    except (ConnectionError, EOFError) as error:  # it died while it handed a batch over
        with suppress(RuntimeError):  # PyTorch says so too, whenever the signal arrives
            time.sleep(1)
        raise _died() from error.with_traceback(None)


def _died() -> InputError:
    """Raised from an error without its traceback, which would keep the dead worker's iterator."""
    return InputError(
        "a process that decodes images died, perhaps for want of memory (or of shared memory, "
        "/dev/shm); take fewer workers or a smaller batch, and start the same command again: what "
        "is done is kept."
    )


@contextmanager
def _quiet_forks() -> Iterator[None]:
    """Hugging Face's tokenizers print a warning in processes that are forked after their use."""
    before = os.environ.get(_TOKENIZERS)
    os.environ.setdefault(_TOKENIZERS, "false")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TOKENIZERS]
