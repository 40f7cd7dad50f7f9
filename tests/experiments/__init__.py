"""The experiments of docs/experiments: their scripts run, on a small scale."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

FOLDER: Final = Path(__file__).parents[2] / "docs" / "experiments"


def experiment(name: str) -> Any:
    """Import a module of docs/experiments as its scripts do."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return import_module(name)


def printed(script: Path, *arguments: str) -> list[str]:
    """The lines that a script prints, run here, since to import torch again takes seconds."""
    out = io.StringIO()
    with redirect_stdout(out), patch.object(sys, "argv", [str(script), *arguments]):
        runpy.run_path(str(script), run_name="__main__")
    return out.getvalue().splitlines()
