"""Images that were read once answer every later text, with score and map."""

from .index import ImageIndex, SearchResult

__all__ = ["ImageIndex", "SearchResult"]
