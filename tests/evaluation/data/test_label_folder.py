"""Folders of label images: which number is which class, and what is wrong in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.evaluation.data import open_data
from captum_clip.evaluation.data.labels import LabelFolder
from tests.evaluation.data.writing import LEFT, RIGHT, SIZE, noise, same, save, save_bytes

NAMES = "[background]\na horse, a pony\n[ignored]\ntwo dogs\n"


def write(folder: Path, names: str = NAMES, label: int = 3) -> Path:
    """Two photos, one in a folder of its own; number 1 on the left, another one on the right."""
    numbers = np.zeros(SIZE, dtype=np.uint8)
    numbers[LEFT], numbers[RIGHT], numbers[0] = 1, label, 255
    for number, stem in enumerate(("one", "street/two")):
        save(noise(seed=number), folder / f"images/{stem}.jpg")
        save(Image.fromarray(numbers), folder / f"labels/{stem}.png")
    (folder / "names.txt").write_text(names)
    return folder


def test_a_label_folder_is_lawful(tmp_path, lawful):
    """Numbers count lines; background comes after the classes, what is ignored is -1."""
    data = LabelFolder(write(tmp_path))
    one, _ = lawful(data)
    assert (data.names, data.classes) == (("one", "street/two"), ("a horse", "two dogs"))
    assert data.background
    expected = np.full(SIZE, 2)
    expected[LEFT], expected[RIGHT], expected[0] = 0, 1, -1
    assert np.array_equal(one.labels, expected)
    [other] = LabelFolder(write(tmp_path, label=2), limit=1).names
    sample = LabelFolder(tmp_path).read(data.names.index(other))
    assert sample.labels is not None
    assert set(np.unique(sample.labels)) == {-1, 0, 2}
    assert (sample.labels[RIGHT] == -1).all()


def test_prompts_are_the_names_in_the_templates(tmp_path):
    """Of the option, else of templates.txt, else one that is usual; a palette counts by index."""
    data = LabelFolder(write(tmp_path, "[ignored]\nhorse, pony\ncat\ndog"))
    assert data.prompts["horse"] == ["a photo of a horse", "a photo of a pony"]
    assert not data.background
    (tmp_path / "templates.txt").write_text("a {}\n\nthe {}\n")
    again = LabelFolder(tmp_path)
    assert again.prompts["horse"] == ["a horse", "the horse", "a pony", "the pony"]
    assert again.identity() != data.identity()
    given = open_data(f"labels:{tmp_path}", template="{}")
    assert given.prompts["cat"] == ["cat"]
    with Image.open(tmp_path / "labels/one.png") as image:
        palette = image.convert("L")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    save(palette, tmp_path / "labels/one.png")
    assert same(LabelFolder(tmp_path).read(0).labels, data.read(0).labels)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("\n \n", "[ignored]; got 0 lines."),
        ("a\n" * 256, "expected 1 to 255 lines, each with names of one class"),
        ("horse\n\ndog\ncat", "got the line ''."),
        ("horse\na,,b\ndog\ncat", "got the line 'a, , b'."),
        ("[ignore]\na\nb\nc", "got the line '[ignore]'."),
        ("horse\ndog, cur\ncat\ndog", "two classes are called 'dog'"),
        ("[background]\nbackground\na\nb", "two classes are called 'background'"),
        ("[background]\n[ignored]\n[ignored]\n[ignored]", "no line names a class"),
        ("horse\ndog\ncat", "one.png with numbers of the 3 lines of names.txt, from 0 on, got 3"),
    ],
)
def test_names_that_do_not_match_are_refused(tmp_path, names, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LabelFolder(write(tmp_path, names))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/one.png": None}, "labels/one.png"),
        ({"names.txt": None}, "names.txt"),
        ({"labels/one.png": noise()}, "one.png with numbers of classes in a palette or gray"),
        (
            {"labels/one.png": Image.new("L", (8, 9))},
            "one.png has 9 x 8 pixels, its image 20 x 30",
        ),
        ({"templates.txt": b"a photo"}, "expected a template with one"),
        ({"templates.txt": b""}, "expected a template with one"),
        ({"names.txt": b"\xff\xfe\xff"}, "names.txt cannot be read"),
    ],
)
def test_files_that_do_not_match_are_refused(
    tmp_path: Path, files: Mapping[str, Image.Image | bytes | None], message: str
) -> None:
    """Before any model is loaded."""
    write(tmp_path)
    for name, content in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if isinstance(content, bytes):
            save_bytes(content, tmp_path / name)
        elif content is not None:
            save(content, tmp_path / name)
    with pytest.raises(InputError, match=re.escape(message)):
        LabelFolder(tmp_path)
