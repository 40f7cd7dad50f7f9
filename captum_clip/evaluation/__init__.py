"""Which map is right? Methods and metrics over a data set, with intervals: a table a run."""

import warnings
from typing import Any

from .config import EvaluationConfig
from .data import open_data
from .data.base import Region, Sample
from .methods import methods_for
from .run import Evaluation, evaluate
from .summary import Summary
from .tasks import TASKS

__all__ = [
    "TASKS",
    "Evaluation",
    "EvaluationConfig",
    "Region",
    "Sample",
    "Summary",
    "evaluate",
    "methods_for",
    "open_data",
]


def __getattr__(name: str) -> Any:
    if name == "Findings":
        message = "captum_clip.evaluation.Findings is now called Summary."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return Summary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
