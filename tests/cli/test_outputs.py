"""No command writes over what it reads, nor two of its results into one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captum_clip.targets import EmotionProbe
from tests import folders
from tests.cli.conftest import Run

REPLACED = {
    "explain other.png a -o other.png": "other.png",
    "explain link.png a -o photo.jpg": "link.png",
    "explain photo.jpg a -o link.png": "photo.jpg",
    "explain photo.jpg --image other.png -o other.png": "other.png",
    "explain photo.jpg --image other.png -o photos/../other.png": "other.png",
    "explain photo.jpg --image other.png --side pairs -o other.png": "other.png",
    "explain photo.jpg --emotions p.npz -o p.npz": "p.npz",
    "explain photo.jpg --texts t.png -o t.png": "t.png",
    "explain photos --texts seen/image0-explained-a.png -o seen": "seen/image0-explained-a.png",
    "explain seen/000-a-positive.png a --regions seen": "seen/000-a-positive.png",
    "explain photo.jpg --emotions seen/regions.json --regions seen": "seen/regions.json",
    "figure compare other.png a -o other.png": "other.png",
    "figure compare photo.jpg --image other.png -o other.png": "other.png",
    "figure compare photo.jpg --texts t.png -o t.png": "t.png",
    "figure compare photos --texts seen/image0-compare-a.png -o seen": "seen/image0-compare-a.png",
    "search none.lance --emotions seen/search.csv --emotion awe -o seen": "seen/search.csv",
    "emotions fit farm --csv c.safetensors --images photos -o c.safetensors": "c.safetensors",
    "emotions fit farm --csv e.safetensors --images photos -o model/a.safetensors": (
        "model/a.safetensors"
    ),
}


@pytest.fixture
def files(here: Path) -> Path:
    """More that a user may have: probes and texts under any name, a model, and a link."""
    EmotionProbe(np.eye(9, 24), np.zeros(9), "model").save("p.safetensors")
    folders.make_images(here / "seen", 1)
    for place in ("p.npz", "seen/search.csv"):
        Path(place).write_bytes(Path("p.safetensors").read_bytes())
    for place in (
        "t.png",
        "seen/image0-explained-a.png",
        "seen/image0-compare-a.png",
        "c.safetensors",
    ):
        Path(place).write_text("a\n")
    for place in ("seen/000-a-positive.png", "photos/other.png"):
        Path(place).write_bytes(Path("other.png").read_bytes())
    Path("seen/regions.json").write_bytes(Path("e.safetensors").read_bytes())
    Path("link.png").symlink_to("photo.jpg")
    Path("model").mkdir()
    Path("model/a.safetensors").write_bytes(b"weights")
    return here


@pytest.mark.parametrize(("line", "replaced"), REPLACED.items())
def test_no_output_is_an_input(files: Path, run: Run, line: str, replaced: str) -> None:
    model = "model" if line.startswith("emotions") else "VIT"
    before = folders.content(files)
    said = run(f"{line} --model {model}", code=2, err=None)
    assert f"would replace the input {replaced}; give another name." in said
    assert folders.content(files) == before


@pytest.mark.parametrize(
    "options",
    [
        "--regions ./out -o HERE/out/000-a-positive.png",
        "--regions out -o to-l.png",
    ],
)
def test_no_two_outputs_are_one(here: Path, run: Run, options: str) -> None:
    """Whether they are there yet or not."""
    Path("to-l.png").symlink_to("out/000-a-positive.png")
    Path("out").mkdir()
    before = folders.content(here)
    line = f"explain photo.jpg a --model VIT {options}".replace("HERE", str(here))
    assert "two outputs would be the file " in run(line, code=2)
    assert folders.content(here) == before


@pytest.mark.parametrize(
    "line",
    [
        "study statistics photos --texts out/t.txt --model VIT -o out",
        "evaluate --model VIT --data masks:farm --method rollout -o farm",
    ],
)
def test_no_run_takes_a_folder_with_something_else_in_it(here: Path, run: Run, line: str) -> None:
    Path("out").mkdir()
    Path("out/t.txt").write_text("a")
    before = folders.content(here)
    assert "name a new or an empty folder" in run(line, code=2)
    assert folders.content(here) == before
