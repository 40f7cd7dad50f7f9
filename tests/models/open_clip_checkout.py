"""Run the tests of OpenCLIP's families with another OpenCLIP than the one that is installed.

``python -m tests.models.open_clip_checkout PATH`` takes a checkout of its repository, and options
of pytest after it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = (
    *("tests/models", "tests/attr", "tests/targets"),
    *("tests/test_recording.py", "tests/test_similarity.py"),
)


def main(checkout: str, *options: str) -> int:
    """The exit code of pytest."""
    source = Path(checkout).resolve() / "src"
    if not (source / "open_clip").is_dir():
        sys.exit(f"there is no src/open_clip in {checkout}; expected a checkout of OpenCLIP.")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *FILES, *options]
    found = {**os.environ, "PYTHONPATH": str(source)}
    return subprocess.run(command, env=found, cwd=Path(__file__).parents[2], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
