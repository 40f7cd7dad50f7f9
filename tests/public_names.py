"""The public names as data: ``python -m tests.public_names`` writes tests/public_names.json anew.

They are those of captum_clip and of each module that the reference lists: its `__all__`, or else
what it defines without an underscore. A change of them is a line in the diff, and one of the
changelog.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).with_suffix(".json")
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def names_of(module: ModuleType) -> list[str]:
    """What a module offers, in alphabetical order."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    defined = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):  # re-exported, as ``name as name``
            defined |= {alias.name for alias in node.names if alias.asname == alias.name}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(name for name in defined if not name.startswith("_"))


def public_names() -> dict[str, list[str]]:
    """Each public module with its names."""
    listed = re.findall(r"^   (captum_clip\.[\w.]+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    modules = [import_module(name) for name in sorted(["captum_clip", *listed])]
    return {module.__name__: names_of(module) for module in modules}


if __name__ == "__main__":
    FILE.write_text(json.dumps(public_names(), indent=1) + "\n", encoding="utf-8")
