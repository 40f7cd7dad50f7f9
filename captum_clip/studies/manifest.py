"""Of the runs to come only what evaluations still ask for here."""

from __future__ import annotations

from typing import Any

from ..runs import Engine, manifest


def environment(threads: int, device: str) -> dict[str, Any]:
    """Versions of what computes, and the number of threads."""
    return manifest.environment(Engine("local", 1, int(device == "cuda"), threads))
