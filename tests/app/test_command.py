"""`captum-clip app`: what it says when it cannot start."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from captum_clip.app.model_cache import ModelCache
from captum_clip.app.serve import open_port, warm
from captum_clip.cli import main
from captum_clip.errors import InputError
from captum_clip.models import ClipAdapter, load_clip


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line of a command that fails, after its progress."""
    assert main(["app", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.replace("\r", "\n").strip().splitlines()[-1].strip()


def test_without_gradio_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.cli.show_commands.find_spec", lambda _: None)
    assert "pip install 'gradio>=6.17'" in failure(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port 70000: expected a number from 0"),
        (["--port", "-1"], "--port -1: expected a number from 0"),
        (["--host", "no.such.host.invalid"], "cannot listen on port 7860 of no.such.host.invalid"),
        (["--model", "nonsense"], "'nonsense' is neither a known name nor a folder"),
        (["--device", "abacus", "--port", "0"], "abacus"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("captum_clip.cli.show_commands.find_spec", lambda _: object())
    assert message in failure(capsys, *arguments)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use.*--port 0"):
            open_port("127.0.0.1", port)


def test_only_this_machine_is_listened_to() -> None:
    with open_port("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_warm_loads_the_first_and_the_embedded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another named model waits until it is chosen."""
    loaded: list[str] = []

    def load(name: str, **options: Any) -> ClipAdapter:
        loaded.append(name)
        return load_clip(name, **options)

    monkeypatch.setattr("captum_clip.app.model_cache.load_clip", load)
    warm(ModelCache(["demo/resnet", "ViT-B/32"]))
    assert loaded == ["demo/resnet", "demo/vit", "demo/siglip"]
