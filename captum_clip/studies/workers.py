"""What PyTorch's worker processes hand over, and one clear error when one of them dies."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from torch.utils.data import DataLoader, Dataset

from ..errors import CaptumClipError, InputError

T = TypeVar("T")
_TOKENIZERS: Final = "TOKENIZERS_PARALLELISM"


@contextmanager
def handed_over(
    data: Dataset[T | CaptumClipError], workers: int, *, advice: str
) -> Iterator[Iterator[T]]:
    """The items in their order, a few ahead.

    Args:
        data: an error among its items is raised here: raised in a worker it would arrive with a
            traceback for a text.
        workers: processes; 0 reads the items here.
        advice: what to do when one died.

    Raises:
        InputError: a worker died, said wherever this process is at that moment.
    """
    loader = DataLoader(data, batch_size=None, num_workers=workers, collate_fn=_same)
    stream = _stream(loader, advice)
    with _quiet_forks():
        try:
            yield stream
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise _died(advice) from error.with_traceback(None)
        finally:
            stream.close()


def _same(item: Any) -> Any:
    return item


def _stream(loader: Iterable[T | CaptumClipError], advice: str) -> Generator[T, None, None]:
    """Ends the workers when it is closed."""
    try:
        for found in loader:
            if isinstance(found, CaptumClipError):
                raise found
            yield found
    except (ConnectionError, EOFError) as error:  # it died while it handed an item over
        with suppress(RuntimeError):  # PyTorch says so too, whenever the signal arrives
            time.sleep(1)
        raise _died(advice) from error.with_traceback(None)


def _died(advice: str) -> InputError:
    """Raised from an error without its traceback, which would keep the dead worker's iterator."""
    return InputError(
        "a process that decodes images died, perhaps for want of memory (or of shared memory, "
        f"/dev/shm); {advice}."
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
