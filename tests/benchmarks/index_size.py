"""What a search in an index of so many images costs, with made-up vectors.

``python -m tests.benchmarks.index_size 1000 40000 100000`` writes them in a folder that goes again,
for the sizes of a ViT-B/32 (49 positions, 512 numbers), and prints for each count: seconds to write
it, kB an image on the disk, milliseconds to find the best twelve and to make their maps (medians of
eleven texts after one), and by how much the memory of the searching process grew.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from captum_clip.apps.search_table import IndexTable, checksum, schema, vectors_of

POSITIONS, NUMBERS, CHUNK = 49, 512, 512


def write(table: IndexTable, count: int, draw: np.random.Generator, about: Any) -> None:
    """Rows of unit vectors, in chunks as a build writes them."""
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        vectors = draw.standard_normal((rows, NUMBERS), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        numbers = draw.integers(-127, 128, (rows, POSITIONS * NUMBERS), dtype=np.int8)
        blobs = [row.tobytes() for row in numbers]
        columns = [
            [f"{start + row:08d}.jpg" for row in range(rows)],
            [100_000] * rows,
            [0] * rows,
            pa.FixedSizeListArray.from_arrays(vectors.ravel(), NUMBERS),
            blobs,
            np.full(rows, 1e-3, np.float32),
            [*map(partial(checksum, scale=1e-3, about=about), vectors, blobs)],
        ]
        table.add(pa.table(columns, schema=schema(NUMBERS)))
    table.compact()


def search(table: IndexTable, draw: np.random.Generator) -> tuple[float, float]:
    """Milliseconds to find the best twelve, and to make their maps."""
    found, made = list[float](), list[float]()
    for _ in range(12):
        text = draw.standard_normal(NUMBERS, dtype=np.float32)
        text /= np.linalg.norm(text)
        start = time.perf_counter()
        rows = table.nearest(text, 12)
        middle = time.perf_counter()
        blob = b"".join(rows["contributions"].to_pylist())
        numbers = np.frombuffer(blob, np.int8).reshape(12, POSITIONS, NUMBERS)
        _ = (numbers * np.float32(1e-3)) @ text, vectors_of(rows) @ text
        found.append(middle - start)
        made.append(time.perf_counter() - middle)
    return 1000 * statistics.median(found[1:]), 1000 * statistics.median(made[1:])


def main(task: str, place: str, count: int) -> None:
    """A row of the table of the documentation, or a part of it in a process of its own."""
    draw, table = np.random.default_rng(0), IndexTable(place)
    if task == "write":
        names = ("weights", "image_embeddings", "text_embeddings", "preprocessing")
        about: dict[str, Any] = dict.fromkeys(("model", "method", "folder"), "")
        about |= {"image_size": None, "precision": "int8", "grid": [7, 7, NUMBERS]}
        about["identity"] = dict.fromkeys(names, "")
        table.make(about)
        write(table, count, draw, about)
        return
    import resource  # Windows has none

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, made = search(table.open(), draw)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{found:.1f} ms | {made:.1f} ms | {grown / 1000:.0f} MB |")


if __name__ == "__main__":
    if sys.argv[1] in ("write", "search"):
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
        sys.exit()
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            call = [sys.executable, __file__]
            arguments = [f"{folder}/made-up.lance", str(count)]
            start = time.perf_counter()
            subprocess.run([*call, "write", *arguments], check=True)
            written = time.perf_counter() - start
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            print(
                f"| {count:,} | {written:.0f} s | {size / count / 1000:.1f} kB |",
                end=" ",
                flush=True,
            )
            subprocess.run([*call, "search", *arguments], check=True)
