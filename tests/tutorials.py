"""Runs the tutorials. `python -m tests.tutorials [NAME ...]` writes them anew with their outputs.

Each is executed from top to bottom in a folder of its own that is thrown away.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from captum_clip.demo.scenes import draw_scene

ROOT: Final = Path(__file__).parents[1]
NOTEBOOKS: Final = sorted((ROOT / "tutorials").glob("*.ipynb"))
MARK: Final = "executed_sources"
"""Key of a notebook's metadata: what its outputs were made of."""

_LIMIT: Final = 600  # seconds a cell
_WIDEST: Final = 1000  # pixels of a picture
_QUALITY: Final = 80


def read(path: Path) -> Any:
    """A notebook as it lies on the disk, checked against its format."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(notebook: Any) -> list[Any]:
    """The cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def sources(notebook: Any) -> str:
    """A fingerprint of all code; it tells outputs of older code."""
    joined = "\0".join(cell.source for cell in code_of(notebook))
    return hashlib.sha256(joined.encode()).hexdigest()


def errors(notebook: Any) -> str:
    """What the cells wrote to stderr."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


@contextmanager
def started(folder: Path, environment: Mapping[str, str]) -> Iterator[KernelManager]:
    """A kernel in a folder, which runs until the context ends."""
    manager = KernelManager(kernel_name="python3")
    # no word about local sockets without encryption
    options: Any = {"cwd": str(folder), "extra_arguments": ["--log-level=40"]}
    manager.start_kernel(env={**os.environ, **environment}, **options)
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def execute(notebook: Any, kernel: KernelManager) -> None:
    """Run all cells; the notebook gets the outputs.

    Raises:
        CellExecutionError: a cell fails.
    """
    options: Any = {"timeout": _LIMIT, "record_timing": False, "coalesce_streams": True}
    client: Any = NotebookClient(notebook, km=kernel, **options)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()


def move(kernel: KernelManager, folder: Path) -> None:
    """Let a kernel forget its names, and go on in another folder."""
    code = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\ndel os"
    execute(new_notebook(cells=[new_code_cell(code)]), kernel)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What a kernel is started with: this package first, and caches that are thrown away."""
    own = [str(ROOT), str(ROOT / "docs" / "experiments")]  # 5 and 7 draw their paintings there
    path = [*own, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "CAPTUM_CLIP_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # small tensors: more threads only wait for each other
        "IPYTHONDIR": str(folder / "ipython"),
        # 11 is about a checkpoint and a photo that need a network
        "TUTORIAL_MODEL": "demo/vit",
        "TUTORIAL_PHOTO": str(_scene(folder)),
        **more,
    }


def _scene(folder: Path) -> Path:
    """Draw a scene into a file."""
    file = folder / "scene.jpg"
    Image.fromarray(draw_scene(0, objects=["horse", "dog"]).image).save(file)
    return file


def rewrite(path: Path) -> None:
    """Execute a notebook and save it, its pictures as JPEG, without what changes every time.

    Raises:
        RuntimeError: something was written to stderr, such as a warning.
    """
    notebook = read(path)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with started(folder, environment(folder)) as kernel:
            execute(notebook, kernel)
    if said := errors(notebook):
        raise RuntimeError(f"{path.name} writes to stderr: {said}")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        MARK: sources(notebook),
    }
    for cell in notebook.cells:
        cell.metadata = {}
    for cell in code_of(notebook):
        for output in cell.outputs:
            _shrink(output)
    nbformat.write(notebook, path)


def _shrink(output: Any) -> None:
    """A picture as JPEG of a moderate size; what Python would print of it is left out."""
    data = output.get("data", {})
    encoded = data.pop("image/png", None) or data.pop("image/jpeg", None)
    if encoded is None:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    picture.thumbnail((_WIDEST, 10 * _WIDEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_QUALITY, optimize=True)
    data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
    data["text/plain"] = f"a picture of {picture.width} x {picture.height} pixels"
    output.get("metadata", {}).pop("image/png", None)


def main(names: list[str]) -> None:
    """Write the named notebooks anew, or all."""
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            rewrite(path)
            print(f"{path.stem}: {path.stat().st_size / 2**20:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
