"""Which map is right? Methods and metrics over a data set, with intervals: a table a run."""

from .config import EvaluationConfig
from .data import open_data
from .findings import Findings
from .methods import methods_for
from .run import Evaluation, evaluate
from .sample import Region, Sample
from .tasks import TASKS

__all__ = [
    "TASKS",
    "Evaluation",
    "EvaluationConfig",
    "Findings",
    "Region",
    "Sample",
    "evaluate",
    "methods_for",
    "open_data",
]
