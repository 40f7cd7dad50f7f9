"""The demo's own ArtEmis: a data set of drawn scenes whose emotions have a known cause.

Its public names are those of :mod:`captum_clip.studies`.
"""

from .paintings import HELD_OUT, Truth, emotion_truth, write_demo_artemis
from .pointing import EmotionPointing, emotion_pointing

__all__ = [
    "HELD_OUT",
    "EmotionPointing",
    "Truth",
    "emotion_pointing",
    "emotion_truth",
    "write_demo_artemis",
]
