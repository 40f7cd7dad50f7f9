"""The figures of Mamooler's *CLIP Explainability*, and heads, on your own images: each one call.

Images, texts and models go in, a matplotlib figure comes out; :mod:`captum_clip.visualization`
draws it, and :func:`captum_clip.visualization.save_figure` writes it. On the command line:
``captum-clip figure NAME``.
"""

from .average import average
from .heads import heads
from .report import compare, emotions, layers, signs, words

__all__ = ["average", "compare", "emotions", "heads", "layers", "signs", "words"]
