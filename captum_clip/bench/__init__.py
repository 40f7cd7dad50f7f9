"""Runs over whole data sets: which map is right, and statistics of many maps."""

from .. import attach

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()
