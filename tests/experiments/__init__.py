"""The experiments of docs/experiments: their scripts run, on a small scale."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[2] / "docs" / "experiments"


def experiment(name: str) -> Any:
    """Import a module of docs/experiments as its scripts do."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return import_module(name)
