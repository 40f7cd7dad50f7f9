"""An evaluation that kills itself: ``python -m tests.bench.killed MODEL DATA OUT COUNT``.

It dies before the COUNT-th finished file takes its name.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig

_rename = os.replace

SMALL: dict[str, Any] = {
    "methods": ("last-grad", "rollout", "random"),
    "tasks": ("localization", "signs"),
    "chunk_size": 2,
    "resamples": 20,
    "threads": 1,
}


def main(model: str, data: str, output: str, count: str) -> None:
    """Run, and die at the moment that was asked for."""
    renamed = 0

    def replace(source: str, target: str) -> None:
        nonlocal renamed
        renamed += 1
        if renamed == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        _rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    evaluate(EvaluationConfig(model, output, (data,), **SMALL))


if __name__ == "__main__":
    main(*sys.argv[1:])
