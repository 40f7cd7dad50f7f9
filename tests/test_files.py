"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from captum_clip import files
from captum_clip.errors import InputError
from captum_clip.files import as_pil, replace_file


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt()])
def test_replace_file_leaves_the_old_file_after_a_failure(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_replace_file_reports_a_full_disk_on_one_line(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*a\.png: No space left"):
        replace_file(tmp_path / "a.png", fail)
    assert os.listdir(tmp_path) == []


def test_heic_is_an_image_that_pillow_cannot_read(tmp_path: Path) -> None:
    """The sentence says what to do; AVIF is read by Pillow itself."""
    assert files.image_names(["a.avif", "b.HEIC", "c.svg"]) == ["a.avif", "b.HEIC"]
    path = tmp_path / "b.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match="that Pillow can read; save HEIC as JPEG or PNG first"):
        as_pil(path)


def test_replace_file_writes_through_a_link(tmp_path: Path) -> None:
    """The file that it leads to is replaced, and it stays a link."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a")
    replace_file(tmp_path / "link", lambda file: file.write(b"1"))
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"
