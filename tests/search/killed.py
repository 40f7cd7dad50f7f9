"""Builds of an index that are killed, of IMAGES INDEX COUNT: each once it wrote one file more.

Before each build an image is drawn anew, and after it the index is copied to N.lance.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import lancedb  # noqa: F401  # once, as it takes seconds; it starts its threads anew after a fork
import torch

from captum_clip.apps.search import ImageIndex
from tests import builders
from tests.search.conftest import draw


def main(images: str, index: str, count: int) -> None:
    """Print of each build the signal that ended it."""
    clip = builders.hf_vit().load()
    torch.set_num_threads(1)
    for number, image in enumerate(sorted(Path(images).rglob("*.png"))[:count]):
        draw(image, 100 + number)
        before = set(Path(index).rglob("*"))
        if not (child := os.fork()):
            ImageIndex.build(clip, images, index, chunk_size=1)
            os._exit(0)
        written, ended = set[Path](), 0
        while not ended and len(written) <= number:
            time.sleep(0.0005)
            ended, status = os.waitpid(child, os.WNOHANG)
            written |= {*Path(index).rglob("*")} - before
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status), flush=True)
        shutil.copytree(index, Path(index).with_name(f"{number}.lance"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
