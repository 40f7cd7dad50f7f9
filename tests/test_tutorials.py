"""The tutorials: they run, what is saved is what they print, and it is fit to be published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests import tutorials
from tests.test_docs import anchors_of

LARGEST = 1.5 * 2**20  # bytes of a notebook
ALL_TOGETHER = 4.5 * 2**20
LONGEST = 12  # lines of a code cell
FEWER = {
    'int(os.environ.get("TUTORIAL_IMAGES", 40))': "4",
    "images=32": "images=8",
    "samples=200": "samples=20",
}  # of what is measured

notebooks = pytest.mark.parametrize("path", tutorials.NOTEBOOKS, ids=lambda path: path.stem)


def kinds(cell: Any) -> list[str]:
    """What a cell puts out, without its content: "stdout", "text", "picture"."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.name)
        elif output.output_type == "error":
            found.append("error")
        else:
            pictures = any(mime.startswith("image/") for mime in output.data)
            found.append("picture" if pictures else "text")
    return found


def text_of(notebook: Any) -> str:
    """All that a reader sees but pictures."""
    parts = [cell.source for cell in notebook.cells]
    for cell in tutorials.code_of(notebook):
        for output in cell.outputs:
            shown = {m: v for m, v in output.get("data", {}).items() if not m.startswith("image/")}
            parts += [output.get("text", ""), json.dumps(shown)]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all tutorials, which are read with less: importing the libraries takes seconds."""
    folder = tmp_path_factory.mktemp("kernel")
    few = tutorials.environment(folder, TUTORIAL_IMAGES="24")
    with tutorials.started(folder, few) as manager:
        yield manager


@pytest.mark.slow
@notebooks
def test_tutorial_runs_and_puts_out_what_is_saved(path, tmp_path, kernel):
    """From top to bottom, no error, nothing on stderr, the same kinds of outputs as committed."""
    saved, fresh = tutorials.read(path), tutorials.read(path)
    for cell in tutorials.code_of(fresh):
        cell.outputs, cell.execution_count = [], None
        for many, few in FEWER.items():
            cell.source = cell.source.replace(many, few)
    tutorials.move(kernel, tmp_path)
    tutorials.execute(fresh, kernel)
    assert not tutorials.errors(fresh)
    now, then = (tutorials.code_of(notebook) for notebook in (fresh, saved))
    assert [kinds(cell) for cell in now] == [kinds(cell) for cell in then]


@notebooks
def test_outputs_are_of_the_code_that_stands_there(path):
    """Executed in order, and not changed since; `python -m tests.tutorials` writes them anew."""
    notebook = tutorials.read(path)
    counts = [cell.execution_count for cell in tutorials.code_of(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.get(tutorials.MARK) == tutorials.sources(notebook)


@notebooks
def test_what_is_saved_is_fit_to_be_published(path):
    """Small, one idea a cell, no path of a machine, no color codes, no time, any Python 3."""
    notebook = tutorials.read(path)
    for cell in tutorials.code_of(notebook):
        assert len(cell.source.splitlines()) <= LONGEST, cell.source
    assert path.stat().st_size < LARGEST
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert not any(cell.metadata for cell in notebook.cells)
    found = re.search(
        r"(?<![\w.])/(tmp|work|home|root|usr|var|Users)\b|\x1b|site-packages", text_of(notebook)
    )
    assert found is None, found


@notebooks
def test_links_of_a_tutorial_lead_somewhere(path):
    """Files, and headings in them, seen from where the tutorial lies."""
    for cell in tutorials.read(path).cells:
        for link in re.findall(
            r"\]\(([^)\s]+)\)", cell.source if cell.cell_type == "markdown" else ""
        ):
            if "://" not in link:
                name, _, anchor = link.partition("#")
                target = path.parent / name
                assert target.exists(), link
                assert not anchor or anchor in anchors_of(target), link


def test_tutorials_are_eleven_and_light():
    """A clone should not be heavy."""
    assert [path.name[:2] for path in tutorials.NOTEBOOKS] == [f"{n:02}" for n in range(1, 12)]
    assert sum(path.stat().st_size for path in tutorials.NOTEBOOKS) < ALL_TOGETHER


def test_a_failing_cell_is_told(kernel):
    """What the first test relies on: an error is raised, a warning lands on stderr."""
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell, new_notebook

    warns = new_notebook(cells=[new_code_cell("import warnings\nwarnings.warn('old')")])
    tutorials.execute(warns, kernel)
    assert "UserWarning: old" in tutorials.errors(warns)
    fails = new_notebook(cells=[new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tutorials.execute(fails, kernel)
