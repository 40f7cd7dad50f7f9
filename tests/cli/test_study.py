"""``captum-clip study`` as a user types it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_clip import evaluation
from captum_clip.cli import main
from captum_clip.emotions import EmotionProbe
from captum_clip.evaluation import StudyConfig, StudyResult
from captum_clip.visualization import grid
from tests import folders

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folders.make_vit(tmp_path_factory.mktemp("models") / "small-vit")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a folder of images in it."""
    folders.make_images(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "_FINE", 32)
    return tmp_path


def run(*arguments: str, capsys: Capture, code: int = 0) -> tuple[list[str], str]:
    """What a command printed, and what it said on stderr."""
    assert main(["study", *arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "Warning" not in err
    return out.splitlines(), err


def test_statistics_says_where_its_results_are(here: Path, vit: str, capsys: Capture) -> None:
    arguments = ["statistics", "photos", "--text", "a", "--model", vit, "--workers", "0"]
    out, err = run(*arguments, "-o", "out", capsys=capsys)
    assert out == ["statistics  out/statistics.csv", "mean maps   out/mean_maps.png"]
    assert err == ""  # no terminal, no bar
    assert (here / "out" / "statistics.csv").is_file()


def test_skipped_images_are_said_on_one_line(here: Path, vit: str, capsys: Capture) -> None:
    (here / "photos" / "image0.png").write_bytes(b"1")
    arguments = ["statistics", "photos", "--text", "a", "--model", vit, "--workers", "0"]
    out, _ = run(*arguments, "-o", "out", capsys=capsys)
    assert out[2:] == ["1 of 3 images was skipped; the reasons are in out/manifest.json"]


def test_where_nothing_can_be_done_the_code_is_two(here: Path, vit: str, capsys: Capture) -> None:
    for path in (here / "photos").rglob("*.png"):
        path.write_bytes(b"1")
    arguments = ["statistics", "photos", "--text", "a", "--model", vit, "--workers", "0"]
    out, err = run(*arguments, "-o", "out", capsys=capsys, code=2)
    assert out == []
    last = err.replace("\r", "\n").strip().splitlines()[-1].strip()
    assert last.startswith("captum-clip: error: none of the 3 images can be read")


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[StudyConfig]:
    """The configs that the command makes, which are not run; with two files of emotions."""
    for name in ("a.json", "b.json"):
        folders.make_emotions(here / name)
    found: list[StudyConfig] = []

    def instead(config: StudyConfig, **_: Any) -> StudyResult:
        found.append(config)
        return StudyResult("out", 1, {})

    monkeypatch.setattr(evaluation, "run_study", instead)
    return found


def test_every_option_reaches_the_config(asked: list[StudyConfig], capsys: Capture) -> None:
    options = "--batch-size 4 --limit 5 --seed 6 --workers 7 --engine ray --gpus 2 --threads 3"
    parts = "--processor p --tokenizer t"
    models = "--model a --model b --emotions a.json --emotions b.json --text x --text y"
    arguments = f"statistics photos {models} {options} {parts} --value-entropy -o out"
    run(*arguments.split(), capsys=capsys)
    assert asked == [
        StudyConfig(
            "photos",
            "out",
            ("x", "y"),
            ("a", "b"),
            emotions=("a.json", "b.json"),
            batch_size=4,
            limit=5,
            seed=6,
            workers=7,
            engine="ray",
            gpus=2,
            threads=3,
            value_entropy=True,
            processor="p",
            tokenizer="t",
        )
    ]


def test_each_study_has_the_librarys_own_defaults(
    asked: list[StudyConfig], vit: str, here: Path, capsys: Capture
) -> None:
    """For published encodings, which name no model, Mamooler's."""
    run("corner-bias", "photos", "--model", vit, "-o", "out", capsys=capsys)
    folders.make_emotions(here / "a.json")
    files = ["--emotions", "a.json", "--emotions", "a.json"]
    run("emotions", "photos", *files, "-o", "out", capsys=capsys)
    assert asked == [
        evaluation.corner_bias_study("photos", "out", models=[vit]),
        evaluation.emotions_study("photos", "out", emotions=["a.json", "a.json"]),
    ]


def test_a_probe_names_its_model(asked: list[StudyConfig], here: Path, capsys: Capture) -> None:
    for model in ("demo/vit", "demo/resnet"):
        probe = EmotionProbe(np.eye(9, 24), np.zeros(9), model, "0" * 64)
        probe.save(here / f"{model[5:]}.safetensors")
    files = ["--emotions", "vit.safetensors", "--emotions", "resnet.safetensors"]
    run("emotions", "photos", *files, "-o", "out", capsys=capsys)
    assert [*asked[0].models] == ["demo/vit", "demo/resnet"]


def test_texts_are_words_or_options(asked: list[StudyConfig], capsys: Capture) -> None:
    run("statistics", "photos", "sky", "--text", "sea", "-o", "out", "sand", capsys=capsys)
    assert asked[0].texts == ("sky", "sand", "sea")


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("cpu", None, 0), ("cuda", None, 1), (None, None, 1), ("cpu", "2", 2), (None, "0", 0)],
)
def test_the_device_decides_where_no_number_of_gpus_does(
    asked: list[StudyConfig],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    gpus: str | None,
    expected: int,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    options = ["--engine", "ray", "--workers", "2"]
    options += ["--device", device] if device else []
    options += ["--gpus", gpus] if gpus else []
    run("statistics", "photos", "sky", *options, "-o", "out", capsys=capsys)
    assert asked[0].gpus == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: STUDY"),
        (["statistic", "photos"], "invalid choice: 'statistic'"),
        (["statistics", "photos", "--text", "a"], "required: -o/--output"),
        (["statistics", "photos", "-o", "out"], "nothing to explain; give texts or emotions"),
        (["statistics", "none", "--text", "a", "-o", "out"], "there is no folder"),
        (["statistics", ".", "--text", "a", "-o", "."], "cannot go into the folder of the images"),
        (["statistics", "photos", "--text", "a", "--engine", "x", "-o", "out"], "invalid choice"),
        (["statistics", "photos", "--text", "a", "--workers", "-1", "-o", "out"], "workers of 0"),
        (["statistics", "photos", "--text", "a", "--method", "x", "-o", "out"], "one of grad-cam"),
        (["emotions", "photos", "-o", "out"], "required: --emotions"),
        (["emotions", "photos", "--emotions", "a.json", "-o", "out"], "no file a.json"),
        (["statistics", "photos", "a", "--device", "cpu:0", "-o", "out"], "expected cpu or cuda"),
        (["statistics", "photos", " ", "-o", "out"], "the text ' ' is empty"),
        (["corner-bias", "photos", "--emotions", "a", "-o", "out"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_said_on_one_line(
    here: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    out, err = run(*arguments, capsys=capsys, code=2)
    assert out == []
    [*usage, last] = err.splitlines()
    assert last.startswith("captum-clip: error: ")
    assert message in last
    assert bool(usage) == ("unrecognized" in message)
    assert os.listdir(here) == ["photos"]
