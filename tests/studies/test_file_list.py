"""Which files a study looks at, in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from captum_clip.errors import InputError
from captum_clip.runs import storage_of
from captum_clip.studies.features import find_images
from captum_clip.studies.file_list import FileList, list_images


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    return folder


def names_of(folder: Path, output: Path | None = None, **sample: int) -> tuple[str, ...]:
    options = {"limit": sample.get("limit"), "seed": sample.get("seed", 0)}
    place = folder / "out" if output is None else output
    return list_images(storage_of(folder), storage_of(place), **options).names  # type: ignore[arg-type]


def test_images_are_found_by_their_ending_to_the_bottom(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/c.png", "a/b/d.webp", "notes.txt", "table.csv", "e.jpg.part")
    assert names_of(tmp_path) == ("a/b/d.webp", "a/c.png", "b.JPG")


def test_hidden_files_and_the_results_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png", ".cache/b.png", "out/mean_maps.png", "outer/c.png")
    assert names_of(tmp_path) == ("a.png", "outer/c.png")
    assert names_of(tmp_path, tmp_path / "elsewhere") == (
        "a.png",
        "out/mean_maps.png",
        "outer/c.png",
    )


def test_other_studies_and_rankings_in_the_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "old/manifest.json", "old/images.csv", "old/sub/mean_maps.png")
    touch(tmp_path, "found/ranking.csv", "found/ranking.png", "found/b.png")
    touch(tmp_path, "mine/manifest.json", "mine/c.png", "ranking.png")
    kept = ("a.png", "found/b.png", "mine/c.png", "ranking.png")
    assert names_of(tmp_path) == kept
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == list(kept)


def test_results_do_not_go_among_the_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(InputError, match="cannot go into the folder of the images"):
        names_of(tmp_path, tmp_path)


def test_a_folder_without_images_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(InputError, match="no image file"):
        names_of(tmp_path)


def test_a_sample_is_drawn_by_name_and_seed(tmp_path: Path) -> None:
    """Sorted, the same each time, growing with its size, another one for another seed."""
    touch(tmp_path, *(f"{number:03d}.png" for number in range(60)))
    small, large = names_of(tmp_path, limit=10), names_of(tmp_path, limit=20)
    assert small == tuple(sorted(small)) == names_of(tmp_path, limit=10)
    assert set(small) < set(large)
    assert len(large) == 20
    assert names_of(tmp_path, limit=10, seed=1) != small
    assert len(names_of(tmp_path, limit=99)) == 60


def test_a_list_survives_any_name(tmp_path: Path) -> None:
    """Commas, quotes, line breaks, and bytes that are no UTF-8."""
    odd = ('a,"b".png', "a\nb.png", os.fsdecode(b"\xff.png"))
    listed = FileList(tuple((name, index) for index, name in enumerate(odd)))
    assert FileList.from_csv(listed.to_csv()) == listed


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"file,bytes\nx\n", b"file,bytes\nx,many\n"])
def test_a_list_that_is_none_is_said(content: bytes) -> None:
    with pytest.raises(InputError, match=r"images\.csv is not what a study wrote"):
        FileList.from_csv(content)


def test_changes_are_told_in_words() -> None:
    before = FileList((("a", 1), ("b", 2), ("c", 3)))
    now = FileList((("a", 1), ("b", 5), ("d", 3), ("e", 3)))
    assert now.difference(before) == (
        "2 new (such as d), 1 gone (such as c), 1 of another size (such as b)"
    )
    assert now.difference(now) == ""
