"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest
from matplotlib.figure import Figure
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.files import replace_file
from captum_clip.visualization import save_figure


@pytest.fixture
def figure() -> Figure:
    made = Figure(figsize=(1, 1), dpi=50)
    made.text(0.5, 0.5, "x")
    return made


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        (".jpg", b"\xff\xd8\xff"),
        (".png", b"\x89PNG"),
        (".PNG", b"\x89PNG"),
        (".pdf", b"%PDF"),
        (".svg", b"<?xml"),
    ],
)
def test_the_ending_decides_the_format(
    figure: Figure, tmp_path: Path, ending: str, start: bytes
) -> None:
    path = save_figure(figure, str(tmp_path / f"picture{ending}"))
    assert path.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [path.name]


def test_the_figures_own_resolution_is_kept(figure: Figure, tmp_path: Path) -> None:
    with Image.open(save_figure(figure, tmp_path / "picture.png")) as picture:
        assert picture.size == (50, 50)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".pdf"])
def test_the_same_figure_is_the_same_file(figure: Figure, tmp_path: Path, ending: str) -> None:
    one = save_figure(figure, tmp_path / f"one{ending}").read_bytes()
    assert save_figure(figure, tmp_path / f"two{ending}").read_bytes() == one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture.gif", r"must end in \.png, \.jpg, \.jpeg, \.pdf, \.svg"),
        ("picture", "must end in"),
        ("none/picture.png", "there is no folder"),
        ("folder.png", "it is a folder"),
    ],
)
def test_a_destination_that_cannot_be_is_refused(
    figure: Figure, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=message):
        save_figure(figure, tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "picture.png"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_full_disk_is_said_on_one_line(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*picture\.png: No space left"):
        replace_file(tmp_path / "picture.png", fail)
    assert os.listdir(tmp_path) == []


def test_the_file_gets_the_usual_permissions(figure: Figure, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    made = save_figure(figure, tmp_path / "picture.png")
    assert made.stat().st_mode == plain.stat().st_mode


def test_reason_is_told_where_the_rest_cannot_be_removed_either(tmp_path, monkeypatch):
    """A folder that became unwritable refuses both, and the first is what matters."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.npz: Permission denied"):
        replace_file(tmp_path / "a.npz", lambda file: file.write(b"1"))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """The file that it leads to is replaced, and it stays a link."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a")
    replace_file(tmp_path / "link", lambda file: file.write(b"1"))
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    """The one that it has while it is written is not longer."""
    path = tmp_path / f"{'a' * 251}.png"
    replace_file(path, lambda file: file.write(b"1"))
    assert path.read_bytes() == b"1"
