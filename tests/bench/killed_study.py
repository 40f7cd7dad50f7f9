"""A study that kills itself, of IMAGES OUT MODEL WHEN COUNT.

WHEN is "before" or "after" the COUNT-th time that a finished file takes its name.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from captum_clip.bench.study import run_study
from tests.folders import config_of

_rename = os.replace


def main(images: str, output: str, model: str, when: str, count: str) -> None:
    """Run, and die at the moment that was asked for."""
    renamed = 0

    def replace(source: str, target: str) -> None:
        nonlocal renamed
        renamed += 1
        if when == "after" or renamed < int(count):
            _rename(source, target)
        if renamed == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    run_study(config_of(Path(images), Path(output), model))


if __name__ == "__main__":
    main(*sys.argv[1:])
