"""Targets: the directions that an image's similarity is explained for."""

from .probe import EmotionProbe
from .target import Target, concatenate, embedding, emotion, image, text, word_tokens, words

__all__ = [
    "EmotionProbe",
    "Target",
    "concatenate",
    "embedding",
    "emotion",
    "image",
    "text",
    "word_tokens",
    "words",
]
