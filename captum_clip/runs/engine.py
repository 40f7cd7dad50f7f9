"""What computes units: how many processes of what size, and what each of them is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeVar, get_args

import torch

from ..checks import check_choice
from ..errors import InputError
from .units import Unit

EngineName = Literal["local", "ray"]
ENGINES: Final = get_args(EngineName)
U = TypeVar("U", bound=Unit, contravariant=True)

Advance = Callable[[int], None]
"""Told how many images were done since the last call."""
Save = Callable[[str, bytes], None]
"""Writes the file of a unit, by its name."""


@dataclass(frozen=True)
class Engine:
    """Where units are computed: "local", or "ray" for several processes or machines."""

    name: EngineName
    processes: int  # of Ray
    gpus: int  # 0 computes on the CPU; with Ray the number that the processes share
    threads: int  # of each process

    @property
    def device(self) -> str:
        """Where models are loaded."""
        return "cuda" if self.gpus else "cpu"

    def check_device(self) -> None:
        """Raise an InputError for a GPU that is not here."""
        if self.gpus and self.name == "local" and not torch.cuda.is_available():
            raise InputError(
                "a GPU was asked for, but PyTorch sees no CUDA device; leave gpus out to compute "
                "on the CPU."
            )


def check_engine(caller: str, name: str, workers: int, gpus: int) -> None:
    """Raise an InputError for settings that no engine has; `caller` begins the message."""
    check_choice(caller, name, ENGINES, name="an engine")
    if name == "local" and gpus > 1:
        raise InputError(
            f"{caller}: the local engine computes on one GPU; engine='ray' uses {gpus} of them."
        )
    if name == "ray" and workers == 0:
        raise InputError(f"{caller}: Ray needs one worker or more, got workers=0.")
    if name == "ray" and workers < gpus:
        raise InputError(f"{caller}: {gpus} GPUs need as many workers or more, got {workers}.")


class Worker(Protocol[U]):
    """Made once in each process; the same unit is the same bytes in every one of them."""

    def compute(self, units: Sequence[U], save: Save, advance: Advance) -> None:
        """Compute units in their order, and save each once it is computed.

        With the local engine they are all that are missing, so that images can be read ahead; with
        Ray it is one. `advance` is told how many images were done, at the latest after each unit.
        """


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_environment(**wanted: str) -> Iterator[None]:
    """Environment variables for a while; what the user has set stays."""
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
