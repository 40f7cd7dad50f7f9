"""`captum-clip explain FOLDER` and `figure ... FOLDER`: a picture an image, whatever stops it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from captum_clip.cli import main
from captum_clip.explanation import Explanation
from captum_clip.studies import picture_folder
from captum_clip.visualization import grid
from tests.studies import folders

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


def test_each_image_of_a_folder_gets_a_picture_and_all_a_sheet(
    here: Path, vit: str, capsys: Capture
) -> None:
    printed = run(f"explain photos horse dog --model {vit}", capsys)
    assert printed == "3 pictures in photos-explained\nphotos-explained/contact_sheet.jpg\n"
    found = folders.content(here / "photos-explained")
    pictures = [f"{name}.png" for name in NAMES]
    assert sorted(found) == sorted([*pictures, "contact_sheet.jpg", "images.csv", "manifest.json"])
    with Image.open(here / "photos-explained/contact_sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > sheet.height  # three beside each other
    options = f"horse dog --model {vit}"
    run(f"explain photos {options} -o other --regions regions", capsys)
    assert sorted(os.listdir("regions/inner/image1.png"))[-1] == "regions.json"
    run(f"explain photos/image0.png {options} -o alone.png", capsys)
    assert found["image0.png.png"] == (here / "alone.png").read_bytes()


def test_figures_of_a_folder_are_those_of_its_images(here: Path, vit: str, capsys: Capture) -> None:
    folders.make_emotions(here / "emotions.json")
    options = f"--emotions emotions.json --emotion awe --model {vit}"
    printed = run(f"figure emotions photos {options} -o out", capsys)
    assert printed == "3 pictures in out\nout/contact_sheet.jpg\n"
    run(f"figure emotions photos/inner/image1.png {options} -o alone.png", capsys)
    assert (here / "out/inner/image1.png.png").read_bytes() == (here / "alone.png").read_bytes()
    run(f"figure words photos horse --model {vit}", capsys)
    assert sorted(os.listdir("photos-words/inner")) == ["image1.png.png"]


def test_what_is_there_and_whole_is_not_drawn_again(
    here: Path, vit: str, capsys: Capture, drawn: list[str]
) -> None:
    line = f"explain photos horse --model {vit} -o out"
    run(line, capsys)
    whole = folders.content(here / "out")
    assert len(drawn) == 3
    run(line, capsys)
    assert len(drawn) == 3
    cut = here / "out/image2.png.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    (here / "out/.image0.png.png.01234567.part").touch()
    run(line, capsys)
    assert len(drawn) == 4
    assert folders.content(here / "out") == whole


@pytest.mark.parametrize("moment", ["picture", "sheet", "manifest"])
def test_a_stop_takes_nothing(
    here: Path, vit: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Nor does an image that came meanwhile leave an old sheet."""
    line = f"explain photos horse --model {vit} -o out"
    run(line.replace("-o out", "-o whole"), capsys)
    run(line, capsys)
    folders.make_images(here / "photos", count=4)
    run(line.replace("-o out", "-o whole"), capsys)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    functions = {"picture": "save_figure", "sheet": "_draw_sheet", "manifest": "_draw_sheets"}
    with monkeypatch.context() as patch:
        patch.setattr(picture_folder, functions[moment], stop)
        said = run(line, capsys, code=130)
    assert "the same command goes on from here" in said
    run(line, capsys)
    assert folders.content(here / "out") == folders.content(here / "whole")


def test_changed_images_are_drawn_again_and_gone_ones_forgotten(
    here: Path, vit: str, capsys: Capture, drawn: list[str]
) -> None:
    line = f"explain photos horse --model {vit} -o out"
    run(line, capsys)
    (here / "photos/image0.png").unlink()
    Image.new("RGB", (9, 9), "red").save(here / "photos/image2.png")
    run(line, capsys)
    assert len(drawn) == 4
    run(line.replace("-o out", "-o fresh"), capsys)
    assert folders.content(here / "out") == folders.content(here / "fresh")


def test_images_that_cannot_be_read_are_said_and_tried_again(
    here: Path, vit: str, capsys: Capture
) -> None:
    broken = here / "photos/image0.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"x" * len(whole))
    line = f"explain photos horse --model {vit} -o out"
    printed = run(line, capsys)
    assert printed.startswith("2 pictures in out\n")
    assert "1 file left out, photos/image0.png: " in printed
    [entry] = json.loads((here / "out/manifest.json").read_bytes())["skipped"]
    assert entry["file"] == "image0.png"
    broken.write_bytes(whole)
    run(line, capsys)
    run(line.replace("-o out", "-o fresh"), capsys)
    assert folders.content(here / "out") == folders.content(here / "fresh")


def test_pictures_with_other_settings_are_refused(here: Path, vit: str, capsys: Capture) -> None:
    run(f"explain photos horse --model {vit} -o out", capsys)
    before = folders.content(here / "out")
    for change, said in (
        ("dog", 'texts was ["horse"] and is ["dog"]'),
        ("horse --negative", 'sign was "positive" and is "negative"'),
        ("horse --method all-grad", 'method was null and is "all-grad"'),
    ):
        line = f"explain photos {change} --model {vit} -o out"
        assert f"other settings: {said}. " in run(line, capsys, code=2)
    assert folders.content(here / "out") == before


def test_pictures_are_no_images_of_a_folder(here: Path, vit: str, capsys: Capture) -> None:
    """Those in the folder itself are not explained in their turn."""
    line = f"explain photos horse --model {vit} -o photos/seen"
    run(line, capsys)
    assert run(line, capsys).startswith("3 pictures in photos/seen\n")
    assert run(f"explain photos dog --model {vit} -o out", capsys).startswith("3 pictures")


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
    assert "none of the 3 images can be drawn; image0.png: " in said
