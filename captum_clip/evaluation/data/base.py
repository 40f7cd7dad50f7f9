"""What every data set of an evaluation is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ..sample import Sample


class DataSet(ABC):
    """Images with their truth, read one by one; it can be sent to another process or machine.

    Attributes:
        name: how results call it, as "demo" or "voc".
        names: of all samples, unique, in order.
        classes: texts of the classes that labels count, for zero-shot classification; may be empty.
        tasks: what its truth serves, names of :data:`captum_clip.evaluation.tasks.TASKS`.
        place: what follows its name and a colon where it is read, "FOLDER" or "FILE".
        options: its own among those of :func:`captum_clip.evaluation.open_data`.
    """

    name: str
    names: Sequence[str]
    classes: Sequence[str]
    tasks: Sequence[str]
    place: str = ""
    options: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            InputError: why it cannot be used; the evaluation counts it as skipped.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides its samples, as JSON: the same data give the same, wherever they lie."""
