"""A build of an index that kills itself, of IMAGES INDEX: once its second chunk is written."""

from __future__ import annotations

import os
import signal
import sys

from captum_clip import load_clip
from captum_clip.search import ImageIndex


def progress(done: int, total: int, _: str) -> None:
    """Die in the middle."""
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    ImageIndex.build(
        load_clip("demo/vit"), sys.argv[1], sys.argv[2], chunk_size=2, progress=progress
    )
