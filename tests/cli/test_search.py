"""``captum-clip index`` and ``search`` as a user types them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from captum_clip.apps.search import ImageIndex
from captum_clip.cli import main
from captum_clip.targets import EmotionProbe
from tests.cli.conftest import Run

INDEX = "index photos -o photos.lance --model VIT --workers 0 --quiet"


@pytest.fixture
def index(here: Path, run: Run) -> Path:
    """Of the three images of a folder."""
    assert run(INDEX) == "3 images in photos.lance\n"
    return here / "photos.lance"


def test_search_prints_and_writes_the_best_images_for_a_text(
    index: Path, run: Run, vit: str
) -> None:
    lines = run("search photos.lance -m VIT 'a horse' --top 2 -o out").splitlines()
    assert lines[0] == f"'a horse', best of 3 images ({vit}, direct):"
    with open("out/search.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for line, row in zip(lines[1:3], rows, strict=True):
        assert line.split() == [row["rank"], f"{float(row['score']):.3f}", row["file"]]
        assert Path("photos", row["file"]).is_file()
    with Image.open("out/search.png") as figure:
        figure.verify()
    assert lines[3].startswith("“a horse” fits 2 of these 2 images no better")
    assert lines[4:] == ["out/search.csv", "out/search.png"]


def test_search_without_an_output_writes_nothing(index: Path, here: Path, run: Run) -> None:
    before = sorted(here.rglob("*"))
    printed = run("search photos.lance -m VIT a b --top 2 --against c", code=2)
    assert "--against contrasts one TEXT" in printed
    hint = 'each TEXT is looked for by itself; to look for one text, quote it: "a horse"\n'
    assert run("search photos.lance -m VIT a horse", err=hint).startswith("'a', 'horse', best of")
    [_, first, second] = run("search photos.lance -m VIT cat dog --top 2").splitlines()
    for line in (first, second):  # the mean, and that of each text
        _, total, *each, _ = line.split()
        assert float(total) == pytest.approx(sum(map(float, each)) / 2, abs=1.001e-3)
    assert sorted(here.rglob("*")) == before


def test_search_contrasts_two_texts(index: Path, run: Run) -> None:
    lines = run("search photos.lance -m VIT a --against b --top 1").splitlines()
    assert lines[0].startswith("'a - b', best of 3 images")


def test_search_finds_images_for_an_emotion_with_a_text(index: Path, run: Run) -> None:
    emotion = "--emotions e.safetensors --emotion awe"
    assert run(f"search photos.lance -m VIT {emotion}").startswith("'awe', best of 3 images")
    lines = run(f"search photos.lance -m VIT a {emotion} --weight 0.25").splitlines()
    assert lines[0].startswith("'a', 'awe', best of 3 images")
    for line in lines[1:]:
        _, total, text, feeling, _ = line.split()
        wanted = 0.75 * float(text) + 0.25 * float(feeling)
        assert float(total) == pytest.approx(wanted, abs=1.001e-3)  # all are printed to .001


def test_index_reports_what_it_left_out(
    here: Path, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/bad.jpg").write_bytes(b"no image")
    Path("photos/notes.txt").touch()
    assert main(["index", "photos", "-o", "photos/mine.lance", "-m", vit, "--quiet"]) == 0
    printed, said = capsys.readouterr()
    assert printed == "3 images in photos/mine.lance\n"
    assert said.startswith("2 files left out:")
    assert "bad.jpg is not an image" in said
    assert "notes.txt: its ending is not that" in said


def test_a_model_in_a_folder_is_named_by_the_user(
    index: Path, here: Path, run: Run, vit: str
) -> None:
    """Not by an index or a probe, whoever wrote them."""
    fitted = replace(EmotionProbe.load("e.safetensors"), model=vit).save(here / "f.safetensors")
    for line, option, file in (
        ("search photos.lance a", "--model", "photos.lance"),
        ("explain photo.jpg --emotions f.safetensors", "--model", fitted.name),
        ("study emotions photos --emotions f.safetensors -o out", "--model", fitted.name),
    ):
        said = run(line, code=2)
        assert f"{file} names the model '{vit}'. A model that a file names" in said
        assert said.endswith(f"name it yourself: {option} {vit}.")
    assert run("explain photo.jpg --emotions f.safetensors -m VIT")


def test_what_cannot_be_searched_or_indexed_is_said(index: Path, run: Run) -> None:
    for line, said in {
        "search photos.lance -m VIT": "expected a TEXT or an --emotion to look for, got none",
        "search photos.lance -m VIT a --emotion awe": "--emotion goes with --emotions",
        "search photos.lance -m VIT --emotions e.safetensors --emotion joy": "an emotion of",
        "search photos.lance -m VIT --emotions none --emotion awe": "there is no file none",
        "search photos.lance -m VIT --emotions demo/vit --emotion awe": "fitted on features of",
        "search none.lance a": "expected an index, got",
        "search photos a": "an index that ends in .lance",
        "search photos.lance a --model demo/vit": "embeds texts differently",
        "search photos.lance -m VIT a --top 0": "--top",
        "search photos.lance -m VIT a --against ''": "is empty",
        "index photos -o photos.lance -m demo/vit": "is another index (the model has other weights",
        "index photos -o new -m VIT": "an index that ends in .lance",
        "index photos -o new.lance -m VIT --method rollout": "expected direct without `per`",
        "index none -o new.lance -m VIT": "there is no folder",
    }.items():
        assert said in run(line, code=2)
    assert not Path("new.lance").exists()


def test_a_limit_of_pixels_holds_for_the_threads_that_read(here: Path, run: Run) -> None:
    line = f"{INDEX} --max-pixels 1919".replace("--workers 0", "--workers 2")  # of 48 x 40
    said = run(line, code=2)
    assert "unpacks to more than 1,919 pixels, " in said
    assert "or raise --max-pixels if you trust it." in said
    assert run(line.replace("1919", "1920")) == "3 images in photos.lance\n"


def test_names_that_lead_out_of_the_folder_are_refused(index: Path, run: Run, vit: str) -> None:
    ImageIndex.open(index, vit).table.update("true", {"file": "../../away/x.png"})
    assert "of the names lead out of it" in run("search photos.lance -m VIT a", code=2)
