"""Targets: the directions that an image's similarity is explained for."""

from .emotion import emotion
from .target import Target, concatenate, embedding, image, text, word_tokens, words

__all__ = ["Target", "concatenate", "embedding", "emotion", "image", "text", "word_tokens", "words"]
