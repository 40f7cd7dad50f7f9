"""Runs over whole folders of images: what they give is written to a folder."""

from .config import StudyConfig, Subject
from .features import ImageFeatures, find_images, fit_emotions, image_features, score_emotions
from .presets import corner_bias_study, emotions_study, statistics_study, subjects
from .rank import Ranking, rank
from .run import StudyResult, run_study

__all__ = [
    "ImageFeatures",
    "Ranking",
    "StudyConfig",
    "StudyResult",
    "Subject",
    "corner_bias_study",
    "emotions_study",
    "find_images",
    "fit_emotions",
    "image_features",
    "rank",
    "run_study",
    "score_emotions",
    "statistics_study",
    "subjects",
]
