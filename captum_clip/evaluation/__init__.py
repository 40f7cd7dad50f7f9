"""Runs over whole data sets: which map is right, statistics of many maps, and the best images."""

from .config import EvaluationConfig, StudyConfig, Subject
from .data import open_data
from .data.base import Region, Sample
from .features import ImageFeatures, find_images, fit_emotions, image_features, score_emotions
from .methods import methods_for
from .ranking import Ranking, rank
from .results import Evaluation, evaluate
from .study import StudyResult, corner_bias_study, emotions_study, run_study, statistics_study
from .summary import Summary
from .tasks import TASKS

__all__ = [
    "TASKS",
    "Evaluation",
    "EvaluationConfig",
    "ImageFeatures",
    "Ranking",
    "Region",
    "Sample",
    "StudyConfig",
    "StudyResult",
    "Subject",
    "Summary",
    "corner_bias_study",
    "emotions_study",
    "evaluate",
    "find_images",
    "fit_emotions",
    "image_features",
    "methods_for",
    "open_data",
    "rank",
    "run_study",
    "score_emotions",
    "statistics_study",
]
