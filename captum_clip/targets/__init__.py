"""Targets: what an image's similarity is explained for."""

from .base import Target, concatenate
from .embedding import embedding, image
from .emotion import emotion
from .text import text
from .words import word_tokens, words

__all__ = ["Target", "concatenate", "embedding", "emotion", "image", "text", "word_tokens", "words"]
