"""What a client that is no browser can ask of the page: nothing but its own images."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captum_clip.app import queries
from captum_clip.app.serve import open_port
from captum_clip.errors import InputError


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes to stderr."""
    return tmp_path_factory.mktemp("terminal") / "stderr"


@pytest.fixture(scope="module")
def address(terminal: Path) -> Iterator[str]:
    """The command as a user starts it, on a free port."""
    command = [sys.executable, "-m", "captum_clip", "app", "--port", "0", "--allow-host", "me.org"]
    with (
        terminal.open("w") as stderr,
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


def asked(address: str, data: list[Any], session: str, function: int = 0) -> tuple[bool, str]:
    """Whether a function of the page answered, the first one shows maps, and all that it said."""
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    headers = {"Content-Type": "application/json"}
    join = urllib.request.Request(f"{address}/gradio_api/queue/join?", body, headers)
    urllib.request.urlopen(join).read()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}") as said:
        for line in said:
            if b"process_completed" in line:
                message = json.loads(line[5:])
                return message["success"], json.dumps(message["output"])
    raise AssertionError("no answer")


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_no_client_reads_a_file_of_the_machine(address: str, tmp_path: Path, marked: bool) -> None:
    """A path that nobody uploaded is refused, with and without the mark of an upload."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    image: dict[str, Any] = {"path": str(secret)}
    if marked:
        image["meta"] = {"_type": "gradio.FileData"}
    data = [image, "a horse", "demo/vit", "last-grad", "positive", None, None]
    success, said = asked(address, data, f"secret{marked}")
    assert not success
    assert "base64" not in said


@pytest.mark.slow
def test_what_no_browser_sends_is_refused_without_a_traceback(address: str, terminal: Path) -> None:
    """To every function of the page."""
    wrong: list[list[Any]] = [[], [None] * 7, [{"path": 3}, 5, 6, 7, 8, None, None], ["x"] * 50]
    for number, data in enumerate(wrong):
        for function in range(14):
            success, said = asked(address, data, f"wrong{number}-{function}", function)
            assert "Traceback" not in said
            assert success or "needed" not in said
    assert "Traceback" not in terminal.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("ME.org", 200),
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("", 421),
    ],
)
def test_a_foreign_host_is_refused(address: str, host: str, status: int) -> None:
    """A name that somebody made to lead to this machine."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/", headers={"Host": host})
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize("seed", [float("nan"), float("inf"), -1.0, 0.5, None])
def test_a_scene_that_is_no_number_is_a_sentence(seed: float | None) -> None:
    with pytest.raises(InputError, match="whole numbers from 0"):
        queries.example(seed)


@pytest.mark.parametrize("host", ["a" * 70, ".x"])
def test_a_host_that_is_no_name_is_a_sentence(host: str) -> None:
    with pytest.raises(InputError, match=r"not the name or address|cannot listen"):
        open_port(host, 0)


def test_a_free_port_is_given_back() -> None:
    """Nothing listens any more once the socket is closed."""
    with open_port("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    with socket.create_server(("127.0.0.1", port)):
        pass
