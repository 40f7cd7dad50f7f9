"""The two files of docs/app.md put the page on a server."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import captum_clip

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "app.md").read_text(encoding="utf-8").partition("## Host the page")[2]


def status(port: int, host: str, seconds: float = 120) -> int:
    """The status of the start page for a name, once somebody listens."""
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/", headers={"Host": host})
            return connection.getresponse().status
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.5)
        finally:
            connection.close()


@pytest.mark.slow
def test_hosted_page_answers_to_its_name_and_ends_quietly(tmp_path: Path) -> None:
    """Started as a server starts it, from a folder that holds nothing else, and ended as by one."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "app.py").write_text(code, encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "SPACE_HOST": "clip.example.org",
        "PORT": str(port),
        "PYTHONPATH": str(Path(captum_clip.__file__).parents[1]),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "app.py"], cwd=tmp_path, env=os.environ | settings, text=True, **pipes
    ) as process:
        try:
            assert status(port, "clip.example.org") == 200
            assert status(port, "localhost") == 200
            assert status(port, "evil.example") == 400
            assert list((tmp_path / "temporary").glob("captum-clip-app-*"))
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[0] == f"http://0.0.0.0:{port} (Ctrl-C ends it)"
    assert not list((tmp_path / "temporary").glob("captum-clip-app-*"))


def test_requirements_of_a_hosted_page_are_the_package_with_its_page() -> None:
    """One line, which pip reads, with an extra that there is."""
    (lines,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    requirement = Requirement(lines.strip())
    assert requirement.name == "captum-clip"
    assert requirement.extras == {"app"}


def test_the_cell_for_colab_installs_what_the_tutorials_need_from_their_folder() -> None:
    """Run in an empty notebook, it ends where the tutorials lie, with extras that there are."""
    (cell,) = re.findall(
        r"```ipython3\n(.*?)```", (DOCS / "start.md").read_text(encoding="utf-8"), re.DOTALL
    )
    clone, change, install = map(shlex.split, cell.splitlines())
    root = Path(__file__).parents[2]
    name, _, folder = change[1].partition("/")
    assert clone[-1].endswith(f"/{name}")
    assert (root / folder / "01_first_map.ipynb").exists()
    path, extras, _ = re.split(r"[][]", install[3])
    assert (root / folder / path).resolve() == root
    assert {*extras.split(",")} <= {*metadata("captum-clip").get_all("Provides-Extra", [])}
