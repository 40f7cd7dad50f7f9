"""What PyTorch's worker processes read ahead, and one clear error when one of them dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from ..errors import CaptumClipError, InputError
from .engine import default_environment

Item = TypeVar("Item")
Read = TypeVar("Read")


@contextmanager
def iterate_workers(
    read: Callable[[Item], Read], items: Sequence[Item], workers: int, *, advice: str
) -> Iterator[Iterator[Read]]:
    """What is read of each item, in their order, a few ahead; 0 workers read here.

    What `read` raises is raised here, and an InputError when a worker died, wherever this process
    is at that moment; `advice` says what to do then.
    """
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=partial(_attempt, read),  # which is called where the items are
        generator=torch.Generator(),  # it draws a seed for its workers from the caller's otherwise
    )
    results = _results(loader, advice)
    # Hugging Face's tokenizers print a warning in processes that are forked after their use.
    with default_environment(TOKENIZERS_PARALLELISM="false"):
        try:
            yield results
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise _died(advice) from error.with_traceback(None)
        finally:
            results.close()  # ends the workers


def _attempt(read: Callable[[Item], Read], item: Item) -> Read | CaptumClipError:
    """An error is a result too: raised in a worker it would arrive with a traceback for a text."""
    try:
        return read(item)
    except CaptumClipError as error:
        return error


def _results(loader: DataLoader[Any], advice: str) -> Generator[Any, None, None]:
    try:
        for item in loader:
            if isinstance(item, CaptumClipError):
                raise item
            yield item
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
