"""The families of changes that `changes_sweep.py` tries."""

from __future__ import annotations

from docs.experiments.swept import attentions, runs, scores, tokens, weights
from docs.experiments.swept.entries import Entries


def families() -> dict[str, Entries]:
    """Changes by family and name."""
    found: dict[str, Entries] = {}
    for part in (tokens, attentions, weights, runs, scores):
        found |= part.families()
    return found
