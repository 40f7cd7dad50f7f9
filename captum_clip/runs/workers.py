"""What PyTorch's worker processes read ahead, and one clear error when one of them dies."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from ..errors import CaptumClipError, InputError
from .engine import default_environment

T = TypeVar("T")


@contextmanager
def iterate_workers(
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
    items = _items(loader, advice)
    # Hugging Face's tokenizers print a warning in processes that are forked after their use.
    with default_environment(TOKENIZERS_PARALLELISM="false"):
        try:
            yield items
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise _died(advice) from error.with_traceback(None)
        finally:
            items.close()  # ends the workers


def _same(item: Any) -> Any:
    return item


def _items(loader: Iterable[T | CaptumClipError], advice: str) -> Generator[T, None, None]:
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
