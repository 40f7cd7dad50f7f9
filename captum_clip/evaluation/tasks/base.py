"""What a task is: metrics of one method on one batch of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..metric import Metric


class Task(ABC):
    """Metrics that belong together.

    Attributes:
        name: on the command line and in the tables.
    """

    name: str

    @abstractmethod
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """Title of a table -> its metrics."""

    @abstractmethod
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Measure one method on one batch: :func:`captum_clip.evaluation.table.rows_of` it."""
