"""The memory of the page's process: what an answer no longer needs goes back to the system."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_M_TRIM_THRESHOLD: Final = -1


def trim() -> None:
    """Give back what is free; fast within :func:`lean`."""
    gc.collect()  # figures refer to themselves, so they would stay for a while
    _glibc("malloc_trim", 0)


@contextmanager
def lean() -> Iterator[None]:
    """Give back free memory within the block, and have collections pass over what is loaded.

    Otherwise glibc keeps up to 64 MB of each heap for later, and threads have heaps of their own.
    """
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2**20)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _glibc("mallopt", _M_TRIM_THRESHOLD, 2**26)


def _glibc(name: str, *values: int) -> None:
    """Call a function of the C library, if it has it: others than glibc do not."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), name, lambda *_: None)(*values)
