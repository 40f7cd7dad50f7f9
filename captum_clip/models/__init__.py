"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .. import attach

# a wrong name is refused without torch, which all but `names` loads
__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()
