"""The table in docs/appendix/verified.md: ``python -m tests.verified`` writes it.

It checks the embedded models, and small models of the libraries' own classes with random weights.
``python -m tests.verified FILE...`` takes files of ``captum-clip check -o`` instead, such as those
of reports. Each gets its row, in the place of one of the same model, tower, device and weights.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captum_clip import check, load_clip
from tests.support import TABLES, TOWERS

TABLE = TABLES / "verified.csv"
HEADER = (
    *("model", "tower", "type, device", "weights", "explained", "not explained"),
    *("adds up", "oracle", "forwards", "versions"),
)
LIBRARIES = {"torch": "torch", "transformers": "transformers", "open_clip_torch": "OpenCLIP"}
KEY = slice(0, 4)
"""The cells that tell rows apart."""
EMBEDDED = ("demo/vit", "demo/resnet", "demo/siglip")
RANDOM = (
    *("transformers CLIP", "transformers SigLIP", "transformers MetaClip2"),
    *("transformers BLIP, retrieval head", "transformers AIMv2", "OpenCLIP ViT, CLS pooling"),
    *("OpenCLIP ResNet", "OpenCLIP EVA02", "OpenCLIP PE-Core", "OpenCLIP ConvNeXt"),
)
"""Of the table of docs/appendix/support.md."""


def checked() -> Iterator[dict[str, Any]]:
    """What ``captum-clip check`` finds of each model that needs no network."""
    for name in (*EMBEDDED, *RANDOM):
        content = json.loads(check(load_clip(name if name in EMBEDDED else TOWERS[name]())).json)
        if name not in EMBEDDED:
            content["about"]["model"] = f"{name}, random weights"
        yield content


def worst(rows: dict[str, Any], column: str) -> str:
    """The largest error of a column."""
    found = [row[column] for row in rows.values() if row[column] is not None]
    return f"{max(found):.0e} ({len(found)})" if found else "–"


def line(content: dict[str, Any]) -> list[str]:
    """The row of a file."""
    about, rows = content["about"], content["methods"]
    results = [row["result"] for row in rows.values()]
    others = [
        f"`{name}` {row['result']}" for name, row in rows.items() if row["result"] != "explained"
    ]
    prices = [row["forwards"] for row in rows.values() if row["forwards"] is not None]
    return [
        about["model"],
        about["tower"],
        f"{about['dtype']}, {about['device']}",
        f"`{about['weights'][:8]}`",
        f"{results.count('explained')} of {len(results)}",
        ", ".join(others) or "–",
        worst(rows, "adds up"),
        worst(rows, "oracle"),
        f"{min(prices):.1f} to {max(prices):.1f}" if prices else "–",
        ", ".join(f"{LIBRARIES[name]} {about['versions'][name]}" for name in LIBRARIES),
    ]


def read() -> list[list[str]]:
    """The rows of the table, without its header."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [*csv.reader(file)][1:]


def table(rows: Iterable[Sequence[str]], contents: Iterable[dict[str, Any]]) -> list[list[str]]:
    """The whole table with the rows of these files: embedded models first, then by name."""
    by_key = {tuple(row[KEY]): [*row] for row in rows}
    for content in contents:
        row = line(content)
        by_key[tuple(row[KEY])] = row
    in_order = sorted(by_key.values(), key=lambda row: (row[0] not in EMBEDDED, row[0].casefold()))
    return [[*HEADER], *in_order]


def main(files: Sequence[str]) -> None:
    """Write the table in its place."""
    contents = [json.loads(Path(file).read_text("utf-8")) for file in files] or checked()
    rows = table(read(), contents)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
