"""`captum-clip explain FOLDER` and `figure ... FOLDER`: a picture an image, whatever stops it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from captum_clip.cli import main
from captum_clip.explanation import Explanation
from captum_clip.visualization import grid
from tests import folders

Capture = pytest.CaptureFixture[str]
NAMES = ["image0.png", "image2.png", "inner/image1.png"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three images in another one; few pixels."""
    monkeypatch.setattr(grid, "_FINE", 32)
    folders.make_images(tmp_path / "photos", count=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are drawn, by name."""
    names: list[str] = []
    plot = Explanation.plot

    def counted(self: Explanation, **options: Any) -> Figure:
        names.append(self.names[0])
        return plot(self, **options)

    monkeypatch.setattr(Explanation, "plot", counted)
    return names


def run(line: str, capsys: Capture, code: int = 0) -> str:
    """What was printed, or the only line on stderr."""
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def test_each_image_of_a_folder_gets_a_figure(here: Path, vit: str, capsys: Capture) -> None:
    printed = run(f"explain photos horse dog --model {vit}", capsys)
    assert printed == "3 figures in photos-explained\n"
    found = folders.content(here / "photos-explained")
    pictures = [f"{name}.png" for name in NAMES]
    assert sorted(found) == sorted(pictures)
    options = f"horse dog --model {vit}"
    run(f"explain photos {options} -o other --regions regions", capsys)
    assert sorted(os.listdir("regions/inner/image1.png"))[-1] == "regions.json"
    run(f"explain photos/image0.png {options} -o alone.png", capsys)
    assert found["image0.png.png"] == (here / "alone.png").read_bytes()


def test_figures_of_a_folder_are_those_of_its_images(here: Path, vit: str, capsys: Capture) -> None:
    folders.make_emotions(here / "emotions.json")
    options = f"--emotions emotions.json --emotion awe --model {vit}"
    printed = run(f"figure emotions photos {options} -o out", capsys)
    assert printed == "3 figures in out\n"
    run(f"figure emotions photos/inner/image1.png {options} -o alone.png", capsys)
    assert (here / "out/inner/image1.png.png").read_bytes() == (here / "alone.png").read_bytes()
    run(f"figure words photos horse --model {vit}", capsys)
    assert sorted(os.listdir("photos-words/inner")) == ["image1.png.png"]


def test_what_is_there_is_not_drawn_again(
    here: Path, vit: str, capsys: Capture, drawn: list[str]
) -> None:
    line = f"explain photos horse --model {vit} -o out"
    run(line, capsys)
    whole = folders.content(here / "out")
    assert len(drawn) == 3
    run(line, capsys)
    assert len(drawn) == 3
    (here / "out/image2.png.png").unlink()
    run(line, capsys)
    assert len(drawn) == 4
    assert folders.content(here / "out") == whole


def test_images_that_cannot_be_read_are_said_and_tried_again(
    here: Path, vit: str, capsys: Capture
) -> None:
    broken = here / "photos/image0.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"x" * len(whole))
    line = f"explain photos horse --model {vit} -o out"
    printed = run(line, capsys)
    assert printed.startswith("2 figures in out\n")
    assert "1 file left out, photos/image0.png: " in printed
    broken.write_bytes(whole)
    run(line, capsys)
    run(line.replace("-o out", "-o fresh"), capsys)
    assert folders.content(here / "out") == folders.content(here / "fresh")


def test_pictures_are_no_images_of_a_folder(here: Path, vit: str, capsys: Capture) -> None:
    """Those in the folder itself are not explained in their turn."""
    line = f"explain photos horse --model {vit} -o photos/seen"
    run(line, capsys)
    assert run(line, capsys).startswith("3 figures in photos/seen\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain none horse -o out", "there is no image file none"),
        ("explain empty horse", "there is no image file (.jpg, "),
        ("explain photos horse -o a.npz", "photos is a folder, of which each image gets a picture"),
        ("explain photos horse -o file", "-o file must name a folder"),
        ("explain photos horse -o photos", "cannot go into the folder of the images"),
        ("explain photos", "required: TEXT"),
        ("figure words photos horse -o a.png", "photos is a folder"),
        ("figure emotions photos photos --emotions e.json", "takes no texts, got 'photos'"),
        ("figure signs photos photos/image0.png", "figure signs takes one folder, then texts"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_a_model_is_loaded(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr("captum_clip.models.load_clip", lambda *_, **__: pytest.fail("was loaded"))
    (here / "empty").mkdir()
    (here / "file").touch()
    folders.make_emotions(here / "e.json")
    assert message in run(line, capsys, code=2)
    assert sorted(os.listdir()) == ["e.json", "empty", "file", "photos"]


def test_where_nothing_can_be_drawn_the_code_is_two(here: Path, vit: str, capsys: Capture) -> None:
    for name in NAMES:
        (here / "photos" / name).write_bytes(b"1")
    said = run(f"explain photos horse --model {vit}", capsys, code=2)
    assert "none of the 3 images can be drawn; photos/image0.png: " in said
