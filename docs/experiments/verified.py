"""The table of verified models, from the files of ``captum-clip check -o``.

``python docs/experiments/verified.py make``, with the root of the repository on the path, checks
the embedded models, and small models of the libraries' own classes with random weights, into the
folder ``verified`` next to it; those that are there stay. Without ``make``
it writes the table of docs/appendix/verified.md from all files of that folder, those of reports
among them.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from captum_clip import check, load_clip
from captum_clip.files import slug
from tests.support import TOWERS

FOLDER = Path(__file__).with_name("verified")
TABLE = FOLDER.parents[1] / "appendix" / "tables" / "verified.csv"
HEADER = (
    *("model", "tower", "type, device", "weights", "explained", "not explained"),
    *("adds up", "oracle", "forwards"),
)
EMBEDDED = ("demo/vit", "demo/resnet", "demo/siglip")
RANDOM = (
    *("transformers CLIP", "transformers SigLIP", "transformers MetaClip2"),
    *("transformers BLIP, retrieval head", "transformers AIMv2", "OpenCLIP ViT, CLS pooling"),
    *("OpenCLIP ResNet", "OpenCLIP EVA02", "OpenCLIP PE-Core", "OpenCLIP ConvNeXt"),
)
"""Of the table of docs/appendix/support.md."""


def make() -> None:
    """Check what is not in the folder yet."""
    FOLDER.mkdir(exist_ok=True)
    for name in (*EMBEDDED, *RANDOM):
        file = FOLDER / f"{slug(name)}.json"
        if file.exists():
            continue
        clip = load_clip(name if name in EMBEDDED else TOWERS[name]())
        content = json.loads(check(clip).json)
        if name not in EMBEDDED:
            content["about"]["model"] = f"{name}, random weights"
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(file.name, flush=True)


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
    ]


def table() -> list[list[str]]:
    """All files of the folder, below the header."""
    files = sorted(FOLDER.glob("*.json"), key=lambda file: ("demo" not in file.name, file.name))
    return [[*HEADER], *(line(json.loads(file.read_text("utf-8"))) for file in files)]


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        make()
    with TABLE.open("w", encoding="utf-8", newline="") as written:
        csv.writer(written, lineterminator="\n").writerows(table())
