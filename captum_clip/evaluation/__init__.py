"""Runs over whole data sets: which map is right, and statistics of many maps."""

from .batch import MethodOnBatch
from .config import EvaluationConfig, StudyConfig
from .data import DATA_SETS, DataSet, FileData, Region, Sample, open_data
from .evaluator import Evaluation, evaluate
from .features import ImageFeatures, fit_emotions, image_features
from .methods import Method, methods_for
from .study import StudyResult, corner_bias_study, emotions_study, run_study
from .suite import compare_suites, run_suite
from .summary import Summary
from .table import Metric
from .tasks import TASKS, Task

__all__ = [
    "DATA_SETS",
    "TASKS",
    "DataSet",
    "Evaluation",
    "EvaluationConfig",
    "FileData",
    "ImageFeatures",
    "Method",
    "MethodOnBatch",
    "Metric",
    "Region",
    "Sample",
    "StudyConfig",
    "StudyResult",
    "Summary",
    "Task",
    "compare_suites",
    "corner_bias_study",
    "emotions_study",
    "evaluate",
    "fit_emotions",
    "image_features",
    "methods_for",
    "open_data",
    "run_study",
    "run_suite",
]
