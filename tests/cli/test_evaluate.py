"""``captum-clip evaluate`` as a user types it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import captum_clip.evaluation
from captum_clip.cli import evaluate as command
from captum_clip.cli import main
from captum_clip.evaluation import TASKS, Evaluation, EvaluationConfig
from captum_clip.evaluation.data import forms
from tests import folders
from tests.evaluation.cases import make_classes, make_masks, random_maps
from tests.evaluation.data.writing import JPEG_OF_NOTHING, save_bytes

Capture = pytest.CaptureFixture[str]
QUICK = ["--method", "rollout", "--task", "localization", "--resamples", "20", "--threads", "1"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folders.make_vit(tmp_path_factory.mktemp("models") / "small-vit")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images and masks in it."""
    make_masks(tmp_path / "farm", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, capsys: Capture, code: int = 0) -> tuple[list[str], str]:
    """What the command printed, and what it said on stderr."""
    assert main(["evaluate", *arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "Warning" not in err
    return out.splitlines(), err


def test_it_says_where_its_results_are(
    here: Path, vit: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stdout; on a terminal with a bar. Once more, nothing is to be done."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for start in ("0/2", "2/2"):
        out, err = run("--model", vit, "--data", "masks:farm", *QUICK, "-o", "out", capsys=capsys)
        assert out == [
            "report   out/report.html",
            "tables   out/results.md",
            "figures  out/results.csv",
        ]
        lines = [line.strip() for line in err.replace("\r", "\n").splitlines() if line.strip()]
        assert all(line.startswith("evaluate:") and "image/s" in line for line in lines)
        assert start in lines[0]
    assert (here / "out" / "results.csv").is_file()


def test_curves_are_said_too(here: Path, vit: str, capsys: Capture) -> None:
    data = make_classes(here / "classes")
    options = ["--method", "centre", "--task", "perturbation", "--fill", "black", "--threads", "1"]
    out, _ = run("--model", vit, "--data", data, *options, "-o", "out", capsys=capsys)
    assert out[3:] == [
        "curves   out/curves_black_predicted.png",
        "curves   out/curves_black_true.png",
    ]
    assert all((here / line.split()[1]).is_file() for line in out)


def test_what_was_skipped_is_said_on_one_line(here: Path, vit: str, capsys: Capture) -> None:
    save_bytes(JPEG_OF_NOTHING, here / "farm/images/image0.png")
    random_maps(here / "theirs", ["image0"], ["a horse"])
    arguments = ["--model", vit, "--data", "masks:farm", "--maps", "theirs", *QUICK]
    out, _ = run(*arguments, "-o", "out", capsys=capsys)
    assert out[3:] == [
        "masks: 2 entries were skipped; the reasons are in out/manifest.json",
    ]


def test_where_nothing_can_be_read_the_code_is_two(here: Path, vit: str, capsys: Capture) -> None:
    for path in (here / "farm/images").iterdir():
        path.write_bytes(b"")
    arguments = ["--model", vit, "--data", "masks:farm", *QUICK, "-o", "out"]
    out, err = run(*arguments, capsys=capsys, code=2)
    assert out == []
    last = err.replace("\r", "\n").strip().splitlines()[-1].strip()
    assert last.startswith("captum-clip: error: masks: none of the 2 samples can be used for loc")
    assert not (here / "out/results.csv").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvaluationConfig]:
    """The configs that the command makes, which are not run."""
    found: list[EvaluationConfig] = []

    def instead(config: EvaluationConfig, **_: Any) -> Evaluation:
        found.append(config)
        return Evaluation("out", None, None, (), {})  # type: ignore[arg-type]

    monkeypatch.setattr(captum_clip.evaluation, "evaluate", instead)
    return found


def test_every_option_reaches_the_config(asked: list[EvaluationConfig], capsys: Capture) -> None:
    lists = "--data demo --data demo-singles --method a --method b --maps c --maps d"
    choices = "--task signs --task words --fill blur --fill road --reference b --against image"
    numbers = (
        "--images 3 --slow-images 2 --seed 4 --draws 5 --batch-size 6 --chunk-size 7 --resamples 8"
    )
    engine = "--engine ray --workers 3 --gpus 2 --threads 9 --processor p --tokenizer t"
    texts = ["--template", "a photo of a {}", "--text", "a face", "--void", "background"]
    arguments = f"--model m {lists} {choices} {numbers} {engine} -o out".split()
    run(*arguments, *texts, capsys=capsys)
    assert asked == [
        EvaluationConfig(
            *("m", "out", ("demo", "demo-singles"), ("a", "b"), ("c", "d"), "b"),
            tasks=("signs", "words"),
            against="image",
            images=3,
            slow_images=2,
            seed=4,
            draws=5,
            fills=("blur", "road"),
            batch_size=6,
            chunk_size=7,
            template="a photo of a {}",
            text="a face",
            void="background",
            resamples=8,
            engine="ray",
            workers=3,
            gpus=2,
            threads=9,
            processor="p",
            tokenizer="t",
        )
    ]


def test_the_command_has_the_librarys_own_defaults(
    asked: list[EvaluationConfig], capsys: Capture
) -> None:
    run("-o", "out", "--data", "voc:x", capsys=capsys)
    run("-o", "out", "--model", "demo/vit", capsys=capsys)
    assert asked == [
        EvaluationConfig("ViT-B/32", "out", ("voc:x",)),
        EvaluationConfig("demo/vit", "out"),
    ]


def test_a_real_clip_is_not_measured_on_drawn_scenes_unasked(capsys: Capture) -> None:
    _, err = run("-o", "out", capsys=capsys, code=2)
    assert "scenes drawn for the embedded models, and ViT-B/32 is none of demo/vit" in err
    assert "give --data, such as voc:FOLDER" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: -o/--output"),
        (["-o", "out", "farm"], "unrecognized arguments: farm"),
        (["-o", "out", "--fill", "grey"], "--fill: invalid choice: 'grey'"),
        (["-o", "out", "--against", "texts"], "--against: invalid choice: 'texts'"),
        (["-o", "out", "--engine", "x"], "--engine: invalid choice: 'x'"),
        (["-o", "out", "--images", "many"], "--images: invalid int value: 'many'"),
        (["-o", "out", "--images", "0"], "expected images of 1 or more, got 0"),
        (["-o", "out", "--task", "x"], "there is no task 'x'; there are localization, signs"),
        (["-o", "out", "--method", "x"], "there is no method 'x'; there are grad-cam"),
        (["-o", "out", "--method", "lastgrad"], "method 'lastgrad' (did you mean last-grad?)"),
        (["-o", "out", "--method", "center"], "method 'center' (did you mean centre?)"),
        (["-o", "out", "--data", "farm"], "there is no data set 'farm'; expected one of demo,"),
        (["-o", "out", "--data", "masks:no"], "there is no folder"),
        (["-o", "out", "--model", "no"], "no"),
        (["-o", "out", "--maps", "no", "--data", "demo"], "--maps no: there is no such folder"),
        (["-o", "out", "--reference", "x", "--images", "1"], "there is no method 'x'"),
        (["-o", "farm", "--images", "1"], "holds files that are no evaluation's"),
    ],
)
def test_mistakes_are_said_on_one_line(
    here: Path, vit: str, capsys: Capture, arguments: list[str], message: str
) -> None:
    """Before any work, and without a folder."""
    model = [] if "--model" in arguments else ["--model", vit]
    model += [] if "--data" in arguments else ["--data", "demo"]
    method = [] if "--method" in arguments else ["--method", "rollout"]
    out, err = run(*model, *method, *arguments, capsys=capsys, code=2)
    assert out == []
    [*usage, last] = err.splitlines()
    assert last.startswith("captum-clip: error: ")
    assert message in last
    assert bool(usage) == ("unrecognized" in message)
    assert os.listdir(here) == ["farm"]


def test_help_names_every_task_every_data_set_and_an_example(capsys: Capture) -> None:
    out, _ = run("--help", capsys=capsys)
    assert any(command.COMMAND.example in line for line in out)
    printed = "".join("".join(out).split())  # lines break at hyphens
    for name in (*TASKS, *forms()):
        assert name in printed
