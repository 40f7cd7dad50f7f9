"""The two files of docs/hosting.md put the page on a server."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import captum_clip

PAGE = (Path(__file__).parents[2] / "docs" / "hosting.md").read_text(encoding="utf-8")


def answer(port: int, host: str, seconds: float = 120) -> tuple[int, str]:
    """Status and policy of the start page for a name, once somebody listens."""
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/", headers={"Host": host})
            got = connection.getresponse()
            return got.status, got.headers.get("content-security-policy", "")
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.5)
        finally:
            connection.close()


@pytest.mark.slow
def test_hosted_page_answers_to_its_name_and_to_no_other(tmp_path: Path) -> None:
    """Started as a server starts it, from a folder that holds nothing else."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "app.py").write_text(code, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = str(Path(captum_clip.__file__).parents[1])
    settings = {"SPACE_HOST": "clip.example.org", "PORT": str(port), "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=os.environ | settings, stdout=subprocess.PIPE
    ) as process:
        try:
            status, policy = answer(port, "clip.example.org")
            assert status == 200
            assert policy.endswith("'self' https://clip.example.org https://huggingface.co")
            assert answer(port, "evil.example")[0] == 421
        finally:
            process.terminate()


def test_requirements_of_a_hosted_page_are_the_package_with_its_page() -> None:
    """One line, which pip reads, with an extra that there is."""
    (lines,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    requirement = Requirement(lines.strip())
    assert requirement.name == "captum-clip"
    assert requirement.extras == {"app"}
