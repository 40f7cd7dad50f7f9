"""The house rules that can be read from the source: layers, hooks, light imports.

The layers are contracts of import-linter, in pyproject.toml, where ruff is also told what is never
imported at the top of a module. What neither can express is read here.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import captum_clip
from tests import public_names

PACKAGE = Path(captum_clip.__file__).parent
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: list(ast.walk(ast.parse(source))) for name, source in SOURCES.items()}


def test_a_public_method_without_a_docstring_overrides_one_that_has_it() -> None:
    """Bases outside of the package have their own; ruff asks for those of functions and classes."""
    nodes = [node for tree in TREES.values() for node in tree if isinstance(node, ast.ClassDef)]
    classes = {node.name: node for node in nodes}

    def told(node: ast.ClassDef, method: str) -> bool:
        functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        if any(ast.get_docstring(part) for part in functions if part.name == method):
            return True
        bases = [getattr(base, "value", base) for base in node.bases]
        names = {getattr(base, "id", "") for base in bases} - {"Generic", "Protocol", "NamedTuple"}
        return any(name not in classes or told(classes[name], method) for name in names)

    assert [
        f"{node.name}.{function.name}"
        for node in classes.values()
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name[0] != "_" != node.name[0]
        if not told(node, function.name)
    ] == []


def attributes(name: str) -> set[str]:
    """Every attribute that a file names."""
    return {node.attr for node in TREES[name] if isinstance(node, ast.Attribute)}


def called(name: str) -> set[str]:
    """Every method that a file calls."""
    functions = [node.func for node in TREES[name] if isinstance(node, ast.Call)]
    return {function.attr for function in functions if isinstance(function, ast.Attribute)}


def offenders(forbidden: dict[str, set[str]]) -> dict[str, set[str]]:
    """The files that have anything forbidden, and what."""
    return {name: names for name, names in forbidden.items() if names}


def test_imports_point_down_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """`lint-imports` keeps the contracts of pyproject.toml."""
    status = lint_imports(config_filename=str(PACKAGE.parent / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_every_folder_has_its_place_in_the_documentation() -> None:
    """In the table and in the picture of the three houses."""
    docs = PACKAGE.parent / "docs"
    entries = {path.parent.name + "/" for path in PACKAGE.glob("*/__init__.py")}
    entries |= {path.name for path in PACKAGE.glob("[a-z]*.py")}
    for file in ("contributing.md", "images/floors.svg"):
        text = (docs / file).read_text(encoding="utf-8")
        assert [entry for entry in entries if entry not in text] == [], file


def test_files_that_the_documentation_names_are_there() -> None:
    """Those of each folder in docs/contributing.md."""
    text = (PACKAGE.parent / "docs" / "contributing.md").read_text(encoding="utf-8")
    text = text[text.index("### Inside a folder") : text.index("## Publish")]
    _, *parts = re.split(r"^\*\*`(\w+)/`\*\*:", text, flags=re.MULTILINE)
    folders = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(folders) >= 6
    named = {
        f"{folder}/{n}" for folder in folders for n in re.findall(r"`(\w+\.py)`", folders[folder])
    }
    assert named - SOURCES.keys() == set()


def test_hooks_are_set_in_one_place() -> None:
    """Only one file registers hooks, and only on forwards."""
    hooks = {
        name: {attr for attr in attributes(name) if attr.startswith("register_") and "hook" in attr}
        for name in TREES
    }
    forwards = {"register_forward_pre_hook", "register_forward_hook"}
    assert offenders(hooks) == {"recording/hooks.py": forwards}


def test_gradients_are_never_accumulated() -> None:
    """`torch.autograd.grad`, never `backward`; the user's `.grad` is not touched."""
    used = {
        name: {"backward", "zero_grad", "grad_fn"} & attributes(name)
        for name in TREES
        if not name.startswith("demo/")  # whose models are trained
    }
    assert offenders(used) == {}


def test_modes_are_never_switched() -> None:
    """No method toggles training flags or freezes parameters."""
    folders = ("attr/", "targets/", "recording/", "similarity.py", "metrics/")
    switches = {"train", "eval", "cuda", "set_attn_implementation"}
    used = {name: switches & called(name) for name in TREES if name.startswith(folders)}
    assert offenders(used) == {}


def test_users_input_is_not_asserted() -> None:
    """An assertion has no message for a user: it only narrows a type or states an invariant."""
    explained = [
        f"{name}:{node.lineno}"
        for name, nodes in TREES.items()
        for node in nodes
        if isinstance(node, ast.Assert) and node.msg is not None
    ]
    assert explained == []


def test_the_package_loads_nothing_until_a_name_is_used():
    """Completion knows every public name; no library is loaded until a model needs it."""
    code = (
        "import sys, captum_clip as c\n"
        "assert not {'torch', 'matplotlib', 'IPython', 'numpy'} & sys.modules.keys()\n"
        "assert c.__all__ == dir(c) and not hasattr(c, 'nonsense')\n"
        "assert c.explain is c.explaining.explain.explain and c.ClipGradCam is c.attr.ClipGradCam\n"
        "assert not {f'captum_clip.{n}' for n in ('studies', 'figures', 'evaluation')} & "
        "sys.modules.keys()\n"
        "import captum_clip.targets, captum_clip.models\n"
        "assert not {'transformers', 'open_clip'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda path: path.parent.name)
def test_a_stub_has_one_name_a_line_and_is_shipped(stub: Path) -> None:
    """`attach` reads the lines, and an installed package has the stub only if it is listed."""
    lines = stub.read_text(encoding="utf-8").splitlines()
    form = re.compile(r"from \.\S* import (\w+) as \1")
    assert [line for line in lines if line[0] != "#" and not form.fullmatch(line)] == []
    folder = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    shipped = next(line for line in pyproject.splitlines() if re.match(f'"?{folder}"? = ', line))
    assert '"__init__.pyi"' in shipped


def test_lazy_names_of_the_library_are_not_in_the_other_houses() -> None:
    """import-linter reads no stubs; the houses themselves are public modules."""
    houses = {"bench", "apps", "metrics"}
    for folder in ("", "models/", "visualization/"):
        stub = (PACKAGE / f"{folder}__init__.pyi").read_text(encoding="utf-8")
        modules = re.findall(r"^from \.+(\w+)\S* import", stub, re.MULTILINE)
        assert modules
        assert houses.isdisjoint(modules)


def test_public_names_exist() -> None:
    """`__all__` is what there is, sorted, without private names."""
    for name in dir(captum_clip):
        assert hasattr(captum_clip, name)
    for name in ("ClipSimilarity", "Target", "LastGradAttention", "load_clip", "targets", "attr"):
        assert name in dir(captum_clip)
    assert all(n == "__version__" or not n.startswith("_") for n in dir(captum_clip))


def test_public_names_are_those_of_the_file() -> None:
    """A change is meant, and seen in a diff; the module says how to renew the file."""
    saved = json.loads(public_names.FILE.read_text(encoding="utf-8"))
    assert public_names.public_names() == saved, "python -m tests.public_names renews the file"


def test_help_has_a_line_for_each_public_name() -> None:
    """Those of the docstring, before all that they are."""
    listed = re.findall(r"^    (\w+) +\S", captum_clip.__doc__ or "", re.M)
    assert sorted([*listed, "__version__"]) == dir(captum_clip)
