"""Rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from captum_clip.checks import check_destination
from captum_clip.files import replace_file


def save(path: Path, rows: Sequence[Any], environment: dict[str, str]) -> None:
    """Write dataclasses of one kind, each beside the environment, and say where."""
    path = check_destination(path, (".csv",))
    lines = [{**asdict(row), **environment} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)

    def write(file: BinaryIO) -> None:
        file.write(text.getvalue().encode())

    replace_file(path, write)
    print(f"\nwritten: {path}")
