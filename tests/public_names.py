"""The public names as data: ``python -m tests.public_names`` writes tests/public_names.json anew.

They are the `__all__` of captum_clip and of each module that the reference lists. A change of them
is a line in the diff, and one of the changelog.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def public_names() -> dict[str, list[str]]:
    """Each public module that states its names, with them."""
    listed = re.findall(r"^   (captum_clip\.[\w.]+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    modules = [import_module(name) for name in sorted(["captum_clip", *listed])]
    return {m.__name__: sorted(m.__all__) for m in modules if hasattr(m, "__all__")}


if __name__ == "__main__":
    FILE.write_text(json.dumps(public_names(), indent=1) + "\n", encoding="utf-8")
