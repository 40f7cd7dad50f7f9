"""Verify checkpoints of the hub: ``python -m tests.verify OUT [MODEL ...]``.

For each model the folder OUT gets the file of ``captum-clip check`` and a picture of a photo. Then
the rows of docs/appendix/tables/verified.csv are printed. The exit code is 1 if a law is broken, or
if a model could not be loaded. Without models, it takes twelve public checkpoints, which are
downloaded. Another ``--photo`` takes the place of the drawn scene.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_clip import check, explain, load_clip
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptumClipError
from tests.verified import line

CHECKPOINTS = (
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14@336px",
    "RN50",
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-H-14/laion2b_s32b_b79k",
    "google/siglip-base-patch16-224",
    "google/siglip2-base-patch16-224",
    "ViT-B-32-quickgelu/metaclip_400m",
    "EVA02-B-16/merged2b_s8b_b131k",
    "MobileCLIP-S1/datacompdr",
    "ViT-B-16-quickgelu/dfn2b",
)
"""What people use most: OpenAI, LAION, SigLIP, MetaCLIP, EVA02, MobileCLIP and DFN."""
TEXTS = ("a horse", "a dog")


def verify(name: str, photo: Any, folder: Path) -> dict[str, Any]:
    """Check a model, draw its maps of a photo, and return what the check found."""
    clip = load_clip(name)
    checked = check(clip)
    stem = name.replace("/", "-").replace(":", "-").replace("@", "-")
    (folder / f"{stem}.json").write_bytes(checked.json)
    explain(photo, TEXTS, model=clip).save(folder / f"{stem}.jpg")
    content: dict[str, Any] = json.loads(checked.json)
    return content


def broken(content: dict[str, Any]) -> list[str]:
    """The methods whose laws do not hold on a model."""
    return [method for method, row in content["methods"].items() if row["result"] == "broken"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify all models, also if an earlier one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--photo")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    photo = args.photo or draw_scene(0, objects=["horse", "dog"]).image
    rows: list[list[str]] = []
    failures: list[str] = []
    for name in args.models or CHECKPOINTS:
        print(f"{name} ...", file=sys.stderr)
        try:
            content = verify(name, photo, args.folder)
        except (CaptumClipError, OSError) as error:
            failures.append(f"{name}: {error}")
            continue
        rows.append(line(content))
        failures += [f"{name}: {method} is broken" for method in broken(content)]
    with (args.folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
