"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .. import attach

# A wrong name is refused without torch, which most of the files below load.
__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()
