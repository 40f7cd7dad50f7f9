"""The figures of Mamooler's *CLIP Explainability*, and heads, on your own images: each one call.

Images, texts and models go in, a matplotlib figure comes out; :mod:`captum_clip.visualization`
draws it, and :func:`captum_clip.visualization.save_figure` writes it. On the command line:
``captum-clip figure NAME``.

In all of them images are what ``ClipAdapter.preprocess`` takes, texts are targets, and references
images that are targets, after the texts; a model is a name, a model or an adapter, a method a
class of :mod:`captum_clip.attr` or its command-line name with options; `device` is where a model
goes that is loaded by name. What cannot be worked with raises a `CaptumClipError`.
"""

from .average import average
from .heads import heads
from .report import compare, emotions, layers, signs, words

__all__ = ["average", "compare", "emotions", "heads", "layers", "signs", "words"]
