"""The house rules that can be read from the source: floors, hooks, sizes, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captum_clip

PACKAGE = Path(captum_clip.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

# Lowest first; a module imports from lower floors and its own folder only. Errors are the ground.
FLOORS = [
    {"_version", "errors"},
    {"checks"},
    {"files", "maps", "demo"},
    {"models", "metrics", "visualization", "emotions"},
    {"targets", "recording"},
    {"similarity"},
    {"attr"},
    {"explanation", "studies"},
    {"evaluation", "figures"},
    {"app"},
    {"cli"},
    {"__main__"},
]
SCRIPTS = len(FLOORS) - 2
ROOF = len(FLOORS)  # the package itself, which exports what there is
DEMO_SCRIPTS = {
    "architectures",
    "banks",
    "card",
    "checkpoints",
    "evaluate",
    "export",
    "objective",
    "pointing",
    "shortcut",
    "shortcut_card",
    "shortcut_effects",
    "shortcut_maps",
    "shortcut_train",
    "train",
    "word_norms",
}


def module_of(name: str) -> tuple[str, ...]:
    """A file's dotted path inside the package, its own folder for `__init__`."""
    parts = name.removesuffix(".py").split("/")
    return tuple(parts[:-1]) if parts[-1] == "__init__" else tuple(parts)


def floor_of(module: tuple[str, ...]) -> int:
    """The floor of a module; the demo's training and its other scripts live at the top."""
    if not module:
        return ROOF
    if module[0] == "demo" and len(module) > 1 and module[1] in DEMO_SCRIPTS:
        return SCRIPTS
    found = [floor for floor, names in enumerate(FLOORS) if module[0] in names]
    assert found, f"{'.'.join(module)} has no floor; add it to FLOORS"
    return found[0]


def imports_of(name: str) -> list[tuple[str, ...]]:
    """Modules of the package that a file imports, inside functions as well."""
    package = module_of(name) if name.endswith("__init__.py") else module_of(name)[:-1]
    found = []
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ["captum_clip", *base] if node.level else []
            stem += node.module.split(".") if node.module else []
            targets = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        found += [existing(target[1:]) for target in targets if target[0] == "captum_clip"]
    return found


def existing(parts: list[str]) -> tuple[str, ...]:
    """The longest part of a path that is a module; the rest is a name in it."""
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or _file(parts).exists()):
        parts = parts[:-1]
    return tuple(parts)


def _file(parts: list[str]) -> Path:
    return PACKAGE.joinpath(*parts[:-1], f"{parts[-1]}.py")


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name):
    """A module imports only from lower floors, and freely inside its own folder."""
    module = module_of(name)
    for target in imports_of(name):
        same_folder = bool(module and target) and module[0] == target[0]
        if same_folder and module[0] != "demo":
            continue
        if same_folder and floor_of(module) >= floor_of(target):
            continue
        assert floor_of(target) < floor_of(module), (
            f"{name} imports {'.'.join(('captum_clip', *target))}, which is not below it"
        )


@pytest.mark.parametrize("folder", ["metrics", "visualization", "maps", "emotions"])
def test_pure_folders_know_no_model(folder):
    """Metrics and pictures are made of arrays: neither models nor methods."""
    for name in NAMES:
        if module_of(name)[:1] == (folder,):
            for target in imports_of(name):
                assert target[:1] not in (("models",), ("attr",)), name


def test_folders_have_no_circles():
    """Inside a folder, too, imports have a direction."""
    graph = {module_of(name): set(imports_of(name)) - {module_of(name)} for name in NAMES}
    done: set[tuple[str, ...]] = set()

    def walk(module: tuple[str, ...], path: tuple[tuple[str, ...], ...]) -> None:
        assert module not in path, f"circle: {path[path.index(module) :]}"
        if module in done:
            return
        for target in graph.get(module, ()):
            if target and target != module[: len(target)]:  # a folder's __init__ imports its files
                walk(target, (*path, module))
        done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short(name):
    """None past 400 lines."""
    assert len((PACKAGE / name).read_text().splitlines()) <= 400


def attributes(name: str) -> set[str]:
    """Every attribute that a file names."""
    tree = ast.parse((PACKAGE / name).read_text())
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_set_in_one_place(name):
    """Only recording.py registers hooks, and only on forwards."""
    hooks = {a for a in attributes(name) if a.startswith("register_") and "hook" in a}
    allowed = {"register_forward_pre_hook", "register_forward_hook"}
    assert hooks <= (allowed if name == "recording.py" else set())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if module_of(n)[:1] not in {("demo",), ("studies",)}]
)
def test_gradients_are_never_accumulated(name):
    """`torch.autograd.grad`, never `backward`; the user's `.grad` is not touched."""
    assert not {"backward", "zero_grad", "grad_fn"} & attributes(name)


@pytest.mark.parametrize("folder", ["attr", "targets", "recording", "similarity", "metrics"])
def test_modes_are_never_switched(folder):
    """No method toggles training flags or freezes parameters."""
    for name in NAMES:
        if module_of(name)[:1] == (folder,):
            tree = ast.parse((PACKAGE / name).read_text())
            calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
            assert not {"train", "eval", "cuda", "set_attn_implementation"} & called, name


@pytest.mark.parametrize("name", NAMES)
def test_users_input_is_not_asserted(name):
    """An assertion has no message for a user: it only narrows a type or states an invariant."""
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.Assert):
            assert node.msg is None, f"{name}:{node.lineno} explains itself; raise an error instead"


@pytest.mark.parametrize("module", ["captum_clip", "captum_clip.attr", "captum_clip.targets"])
def test_import_is_light(module):
    """Neither transformers nor open_clip is loaded until a model needs it."""
    code = f"import sys, {module}; print({{'transformers', 'open_clip'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"


def test_the_package_loads_nothing_until_a_name_is_used():
    """Completion knows every public name all the same, and a name that is none is refused."""
    code = (
        "import sys, captum_clip as c\n"
        "assert not {'torch', 'matplotlib', 'IPython', 'numpy'} & sys.modules.keys()\n"
        "assert set(c.__all__) <= set(dir(c)) and not hasattr(c, 'nonsense')\n"
        "assert c.explain is c.explanation.explain and c.ClipGradCam is c.attr.ClipGradCam\n"
        "assert not {f'captum_clip.{n}' for n in ('studies', 'figures', 'evaluation')} & "
        "sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_public_names_exist():
    """`__all__` is what there is, sorted, without private names."""
    for name in captum_clip.__all__:
        assert hasattr(captum_clip, name)
    for name in ("ClipSimilarity", "Target", "LastGradAttention", "load_clip", "targets", "attr"):
        assert name in captum_clip.__all__
    assert all(n == "__version__" or not n.startswith("_") for n in captum_clip.__all__)
