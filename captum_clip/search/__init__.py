"""Images that were read once answer every later text, with score and map."""

from .index import ImageIndex
from .result import SearchResult

__all__ = ["ImageIndex", "SearchResult"]
