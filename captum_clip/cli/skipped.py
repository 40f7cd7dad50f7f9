"""Files that could not be read, said on one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def say_skipped(skipped: Mapping[Path, str]) -> None:
    """Say how many, and why the first one; nothing where there is none."""
    if not skipped:
        return
    path, reason = next(iter(skipped.items()))
    files = "1 file" if len(skipped) == 1 else f"{len(skipped):,} files"
    said = " ".join(f"{files} left out, {path}: {reason}".split())
    print(said, file=sys.stderr)
