"""Emotions: the ArtEmis data set, and linear probes from image features to its emotions.

Arrays of features come in, never a model. Fitting needs scikit-learn, the extra ``emotions``.
"""

from .artemis import (
    CLASSES,
    EMOTIONS,
    SOMETHING_ELSE,
    Artemis,
    Painting,
    ReadingReport,
    find_artemis,
    read_artemis,
)
from .probe import EmotionProbe, FitSettings, fit_probe
from .scores import Accuracy, ProbeScores

__all__ = [
    "CLASSES",
    "EMOTIONS",
    "SOMETHING_ELSE",
    "Accuracy",
    "Artemis",
    "EmotionProbe",
    "FitSettings",
    "Painting",
    "ProbeScores",
    "ReadingReport",
    "find_artemis",
    "fit_probe",
    "read_artemis",
]
