"""`captum-clip figure` as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip import demo
from captum_clip.attr.registry import methods_for
from captum_clip.cli import main
from captum_clip.evaluation import run_study
from captum_clip.visualization import grid
from tests import folders

Capture = pytest.CaptureFixture[str]
VIT_METHODS, RESNET_METHODS = (len(methods_for(kind)) for kind in ("vit", "resnet"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos in another one and pictures of few pixels."""
    monkeypatch.setattr(grid, "_FINE", 32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Words that stand for files, folders and models."""
    folder = tmp_path_factory.mktemp("given")
    for name, seed in (("PHOTO", 0), ("OTHER", 1)):
        blocks = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(blocks).save(folder / f"{name.lower()}.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    vit = folders.make_vit(folder / "vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        images = folders.make_images(folder / "images", count=2)
        run_study(folders.config_of(images, folder / "study", vit))
    return {
        "PHOTO": str(folder / "photo.jpg"),
        "OTHER": str(folder / "other.jpg"),
        "BROKEN": str(folder / "broken.png"),
        "VIT": vit,
        "RESNET": folders.make_resnet(folder / "resnet"),
        "EMOTIONS": str(folders.make_emotions(folder / "emotions.json")),
        "STUDY": str(folder / "study"),
    }


def run(line: str, given: dict[str, str], capsys: Capture, code: int = 0) -> str:
    """Run ``captum-clip figure``; underscores are spaces. What it printed, or its only error."""
    arguments = [given.get(word, word.replace("_", " ")) for word in line.split()]
    assert main(["figure", *arguments]) == code
    out, err = capsys.readouterr()
    if code == 0:
        return out
    assert out == ""
    assert "Traceback" not in err
    last = err.replace("\r", "\n").strip().split("\n")[-1].strip()
    assert last.startswith("captum-clip: error: ")
    return last


@pytest.mark.parametrize(
    ("line", "pictures"),
    [
        ("layers PHOTO a_horse a_dog --model VIT --colormap mask", 3 * 4),
        ("layers PHOTO --model VIT a_horse --image OTHER --rows sum --colormap jet", 3 * 4),
        ("compare PHOTO OTHER --text a_horse --model VIT", 2 * (1 + VIT_METHODS)),
        ("compare PHOTO --text sky --model VIT --method all-grad --method last-grad", 3),
        (
            "compare PHOTO --text sky --text grass --model VIT --model RESNET --scale shared",
            2 * (1 + VIT_METHODS + RESNET_METHODS),
        ),
        ("signs PHOTO --text a_horse --image OTHER --model VIT --model RESNET", 4 * 3 + 2),
        ("signs PHOTO OTHER a_horse --text sky --model VIT", 4 * 3),
        ("words PHOTO --text a_horse --model VIT", 4),
        ("signs --text a_horse --model VIT --scale each PHOTO OTHER", 2 * 3),
        ("emotions PHOTO --emotions EMOTIONS --model VIT", 9),
        (
            "emotions PHOTO --emotions EMOTIONS --emotions EMOTIONS --model VIT --model RESNET "
            "--emotion awe --emotion fear --centre",
            2 * 3,
        ),
        ("words PHOTO a_horse --model VIT --model RESNET", 2 * 4),
        ("words PHOTO a_horse --model VIT --scale each", 4),
        ("heads PHOTO a_horse --model VIT --count 3 --sign both --scale shared", 1 + 3 + 3 + 2),
        ("heads PHOTO --image OTHER --model RESNET --sign both --colormap jet", 1 + 4 + 1),
        ("average STUDY", 2),
        ("average STUDY --target a_dog --colormap viridis", 1),
    ],
)
def test_each_figure_is_drawn(
    line: str, pictures: int, given: dict[str, str], here: Path, capsys: Capture
) -> None:
    printed = run(f"{line} -o figure.svg", given, capsys)
    assert printed == "figure.svg\n"
    assert (here / "figure.svg").read_text().count("<image") == pictures


def test_without_a_name_the_picture_is_called_after_image_and_figure(
    given: dict[str, str], here: Path, capsys: Capture
) -> None:
    assert run("words PHOTO horse --model VIT", given, capsys) == "photo-words.png\n"
    assert run("average STUDY", given, capsys) == "study-average.png\n"
    assert sorted(os.listdir(here)) == ["photo-words.png", "study-average.png"]


def test_an_existing_picture_is_replaced_but_no_image(
    given: dict[str, str], here: Path, capsys: Capture
) -> None:
    (here / "old.png").write_text("old")
    run("words PHOTO horse --model VIT -o old.png", given, capsys)
    with Image.open(here / "old.png") as picture:
        picture.verify()
    before = (here / "old.png").read_bytes()
    for line in ("words old.png horse", "signs PHOTO --image old.png"):
        said = run(f"{line} --model VIT -o old.png", given, capsys, code=2)
        assert "would replace the image old.png" in said
    assert (here / "old.png").read_bytes() == before


def test_a_scene_is_drawn_for_the_embedded_models(
    given: dict[str, str], here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.MODELS, "demo/vit", Path(given["VIT"]))
    line = "layers a_horse --scene 0:horse,dog --model demo/vit"
    assert run(line, given, capsys) == "scene-0-layers.png\n"
    run("signs --scene 1 --scene 2 --text a_horse --model demo/vit -o both.png", given, capsys)
    said = run("layers a_horse --scene 0", given, capsys, code=2)
    assert "--scene draws for the embedded models, and ViT-B/32 is none" in said
    said = run("layers a --scene x --model demo/vit", given, capsys, code=2)
    assert "expected SEED or SEED:THING,THING as in 0:horse, got 'x'" in said
    said = run("layers a --scene 0:unicorn --model demo/vit", given, capsys, code=2)
    assert "no demo scene shows 'unicorn'" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("layers", "required: IMAGE, or --scene SEED"),
        ("layers PHOTO", "required: TEXT, or --image FILE"),
        ("words PHOTO", "required: TEXT"),
        ("signs PHOTO", "required: TEXT, or --image FILE"),
        ("signs none.jpg --text a", "there is no image file none.jpg"),
        ("signs PHOTO --image none.jpg", "there is no image file none.jpg"),
        ("words PHOTO a b", "words takes one of its texts, got 2"),
        ("signs PHOTO a_horse OTHER", "signs takes images, then texts"),
        ("signs https://x.org/a.png a", "https://x.org/a.png is a URL"),
        ("words PHOTO _", "the text ' ' is empty"),
        ("words PHOTO a --device abacus", "abacus"),
        ("layers PHOTO a --model VIT --model VIT", "layers takes one of its models, got 2"),
        ("emotions PHOTO", "required: --emotions"),
        ("emotions PHOTO --emotions none.json", "none.json"),
        ("emotions PHOTO --emotions EMOTIONS --model a --model b", "for each of the 2 models"),
        ("emotions PHOTO --emotions EMOTIONS --model VIT --emotion joy", "'joy'"),
        ("words PHOTO a -o a.gif", "must end in .png, .jpg, .jpeg, .pdf, .svg"),
        ("words PHOTO a -o none/a.png", "there is no folder none"),
        ("words PHOTO a --colormap jetset", "no colour map 'jetset'"),
        ("words PHOTO a --scale shared", "invalid choice: 'shared'"),
        ("words BROKEN a --model VIT", "broken.png"),
        ("layers PHOTO a --model RESNET", "no layers of attention"),
        ("heads PHOTO", "required: TEXT, or --image FILE"),
        ("heads PHOTO a b", "heads takes one of its targets, got 2"),
        ("heads PHOTO a --image OTHER", "heads takes one of its targets, got 2"),
        ("heads PHOTO a --model VIT --model VIT", "heads takes one of its models, got 2"),
        ("heads PHOTO a --model VIT --count 0", "expected --count of 1 or more, got 0"),
        ("heads PHOTO a --sign up", "invalid choice: 'up'"),
        ("words PHOTO a --model VIT --method grad-cam", "none of the methods grad-cam fits"),
        ("words PHOTO a --model VIT --method kam", "expected one of grad-cam"),
        ("average none", "none holds no study"),
        ("average .", "holds no study"),
        ("average STUDY --target joy", "no target 'joy'"),
        ("nonsense", "invalid choice"),
        ("", "required: FIGURE"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    line: str, message: str, given: dict[str, str], here: Path, capsys: Capture
) -> None:
    assert message in run(line, given, capsys, code=2)
    assert os.listdir(here) == []


def test_wrong_files_are_said_before_a_model_is_loaded(
    given: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.models.load_clip", lambda *_, **__: pytest.fail("was loaded"))
    run("emotions PHOTO --emotions none.json", given, capsys, code=2)
    run("words PHOTO a -o a.gif", given, capsys, code=2)


def test_a_probe_of_another_size_is_refused(
    given: dict[str, str], here: Path, capsys: Capture
) -> None:
    rows = json.loads(Path(given["EMOTIONS"]).read_text())
    Path("short.json").write_text(json.dumps({name: row[:-1] for name, row in rows.items()}))
    said = run("emotions PHOTO --emotions short.json --model VIT", given, capsys, code=2)
    assert "23 numbers" in said


def test_the_default_model_is_that_of_explain(capsys: Capture) -> None:
    main(["figure", "layers", "--help"])
    assert "(default: ViT-B/32)" in " ".join(capsys.readouterr().out.split())
