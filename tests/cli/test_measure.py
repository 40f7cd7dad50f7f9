"""``captum-clip heads``, ``change``, ``study``, ``evaluate`` and ``emotions fit``, as typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import captum_clip.bench
from captum_clip.bench.evaluator import Evaluation
from captum_clip.bench.run import EvaluationConfig, StudyConfig
from captum_clip.bench.study import StudyResult, emotions_study
from captum_clip.bench.table import Summary
from captum_clip.cli import main
from captum_clip.demo.catalog import EMOTIONS
from captum_clip.targets import EmotionProbe
from tests.bench.cases import random_maps
from tests.cli.conftest import Run
from tests.experiments import experiment

EVALUATE = "evaluate --model VIT --data masks:farm --method rollout --task localization"
EVALUATE += " --resamples 20 --threads 1 --quiet -o out"
STUDY = "study statistics photos a --model VIT --workers 0 --quiet -o out"


# heads


def test_heads_prints_and_writes_the_texts_of_each_head(here: Path, run: Run) -> None:
    """Ranked by how much they vary, by a text, or by one text against another."""
    Path("words.txt").write_text("a horse\na dog\nsnow\n")
    lines = run("heads photos --texts words.txt -m VIT --top 2 -o out").splitlines()
    assert lines[0].startswith("share of the variance of the embedding, by head (")
    assert lines[0].endswith(", 3 images):")
    assert lines[3:] == ["out/heads.csv", "out/heads.png"]
    table = pd.read_csv("out/heads.csv")
    best = table.iloc[0]
    texts = table[(table["layer"] == best["layer"]) & (table["head"] == best["head"])]["text"]
    words = f"layer {best['layer']}, head {best['head']}: {', '.join(texts)}"
    assert lines[1].split() == f"{best['value']:.3f} {words}".split()
    with Image.open("out/heads.png") as figure:
        figure.verify()
    values = []
    for asked, compared in (
        ("'a horse'", "'a horse'"),
        ("'a dog'", "'a dog'"),
        ("'a horse' 'a dog'", "'a horse' minus that with 'a dog'"),
    ):
        printed = run(f"heads photos {asked} --texts words.txt -m VIT -o out")
        heading = f"mean part of the cosine similarity with {compared}, by head ("
        assert printed.startswith(heading)
        table = pd.read_csv("out/heads.csv").drop_duplicates(["layer", "head"])
        assert table["value"].is_monotonic_decreasing
        values.append(table.sort_values(["layer", "head"])["value"].to_numpy())
    np.testing.assert_allclose(values[0] - values[1], values[2], atol=1e-6)


def test_heads_say_why_no_image_is_left(here: Path, run: Run) -> None:
    Path("bad").mkdir()
    Path("bad/a.jpg").write_bytes(b"no image")
    printed = run("heads bad -m demo/vit -o out", code=2)
    assert "none of the 1 images can be read; bad/a.jpg: " in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photos -m VIT -o out", "needs --texts FILE"),
        ("photos a b c -m demo/vit -o out", "heads takes one TEXT, or two that differ"),
        ("photos a a -m demo/vit -o out", "heads takes one TEXT, or two that differ"),
        ("photos -m demo/vit", "Missing option '--output'"),
        ("nothing -m demo/vit -o out", "there is no folder nothing"),
    ],
)
def test_heads_names_what_is_wrong(run: Run, line: str, message: str) -> None:
    assert message in run(f"heads {line}", code=2)
    assert not Path("out").exists()


# change


SHORTCUT = str(experiment("shortcut").MODEL)


def test_change_prints_and_writes_what_moved(here: Path, run: Run) -> None:
    """The page needs no network, and names of files are written as they are."""
    Path("photos/image0.png").rename("photos/<b>&.png")
    lines = run(
        f"change photos 'a horse' snow -m demo/vit -m {SHORTCUT} --top 2 -o out"
    ).splitlines()
    assert lines[-4:] == [
        f"out/{n}" for n in ("change.csv", "heads.csv", "change.png", "index.html")
    ]
    table, moved = pd.read_csv("out/change.csv"), pd.read_csv("out/heads.csv")
    assert set(table["image"]) == {"<b>&.png", "image2.png", "inner/image1.png"}
    by = (table["after"] - table["before"]).abs()
    assert by.is_monotonic_decreasing
    for text, rows in table.groupby("text"):
        mean = (rows["after"] - rows["before"]).mean()
        score = moved[(moved["what"] == "score") & (moved["text"] == text)]
        assert float(score["mean"].iloc[0]) == pytest.approx(mean, abs=1e-6)
    best = moved[moved["what"] == "head"].iloc[0]
    written = f"{best['text']}: layer {best['layer']:.0f}, head {best['head']:.0f}"
    heading = r"mean change of the cosine similarity, .+ minus demo/vit, 3 images, with 95 % int"
    assert re.match(heading, lines[0])
    assert f"{best['mean']:+.3f}" in lines[3]
    assert lines[3].endswith(written)
    assert len(best["words"].split(", ")) > 1
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
    with Image.open("out/change.png") as figure:
        figure.verify()


def test_change_explains_a_confusion(here: Path, run: Run) -> None:
    """A tag makes the shortcut model call cats dogs, and demo/vit none of them."""
    tags = experiment("shortcut.tags")
    Path("cats").mkdir()
    for seed in range(6):
        scene = tags.draw_tagged_scene(seed, noun="cat", tag="dog" if seed < 4 else "cat")
        Image.fromarray(scene.image).save(f"cats/{seed}.png")
    line = f"change cats --from 'a cat' --to 'a dog' -m demo/vit -m {SHORTCUT} -o out"
    printed = run(line)
    assert "a dog rather than a cat: layer " in printed
    [heading, *_] = printed.splitlines()
    assert "over 4 images called 'a dog', minus that over 2 images called 'a cat', with" in heading
    assert "calls 4 “a dog” and 2 “a cat”" in Path("out/index.html").read_text(encoding="utf-8")
    back = f"change cats --from 'a cat' --to 'a dog' -m {SHORTCUT} -m demo/vit -o none"
    assert "an image that is best called 'a dog' by demo/vit" in run(back, code=2)
    assert not Path("none").exists()


def test_change_of_models_that_differ_has_their_scores(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs is told before anything is computed."""
    line = "change photos snow -m demo/vit -m demo/siglip -o out"
    assert main(line.split()) == 0
    said = "the layers and heads of demo/vit and demo/siglip are (6, 4) and (1, 4)"
    assert said in capsys.readouterr().err
    assert set(pd.read_csv("out/heads.csv")["what"]) == {"score", "image tower", "text tower"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photos snow -m demo/vit", "expected -m BEFORE and -m AFTER, got ['demo/vit']"),
        ("photos -m demo/vit -m demo/vit", "expected a TEXT, or --from TEXT and --to TEXT, got []"),
        ("photos snow --to sand -m demo/vit -m demo/vit", "--from TEXT and --to TEXT"),
        ("nothing snow -m demo/vit -m demo/vit", "there is no folder nothing"),
    ],
)
def test_change_names_what_is_wrong(run: Run, line: str, message: str) -> None:
    assert message in run(f"change {line} -o out", code=2)
    assert not Path("out").exists()


# study


def test_study_prints_where_its_results_are(run: Run) -> None:
    assert run(STUDY) == "statistics  out/statistics.csv\nmean maps   out/mean_maps.png\n"
    assert Path("out/statistics.csv").is_file()
    Path("photos/image0.png").write_bytes(b"1")
    printed = run(STUDY.replace("-o out", "-o more"))
    said = "skipped     1 of 3 images; the reasons are in more/manifest.json\n"
    assert printed.endswith(said)


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that a command makes, which are not run."""
    found: list[Any] = []

    def study(config: StudyConfig, **_: Any) -> StudyResult:
        found.append(config)
        return StudyResult("out", 1, {})

    def evaluate(config: EvaluationConfig, **_: Any) -> Evaluation:
        found.append(config)
        values = {"metric": ["any"], "method": ["any"], "images": [1], "reference": ["any"]}
        figures = pd.DataFrame(values)
        summary = Summary(figures, {}, [], [], [], "any", 1, 0)
        return Evaluation("out", None, summary, (), {}, {})

    monkeypatch.setattr(captum_clip.bench, "run_study", study)
    monkeypatch.setattr(captum_clip.bench, "evaluate", evaluate)
    return found


def test_every_option_of_study_reaches_the_config(asked: list[Any], run: Run) -> None:
    run(
        "study statistics photos x y --model demo/vit --model demo/siglip "
        "--emotions e.safetensors --emotions e.safetensors "
        "--batch-size 4 --limit 5 --seed 6 --workers 7 --engine ray --gpus 2 --threads 3 "
        "--processor demo/vit --tokenizer demo/vit --value-entropy -o out"
    )
    assert asked == [
        StudyConfig(
            *("photos", "out", ("x", "y"), ("demo/vit", "demo/siglip")),
            emotions=(Path("e.safetensors"), Path("e.safetensors")),
            batch_size=4,
            limit=5,
            seed=6,
            workers=7,
            engine="ray",
            gpus=2,
            threads=3,
            value_entropy=True,
            processor="demo/vit",
            tokenizer="demo/vit",
        )
    ]


def test_a_probe_names_the_model_of_a_study(asked: list[Any], run: Run) -> None:
    for model in ("vit", "resnet"):
        probe = EmotionProbe(np.eye(9, 24), np.zeros(9), f"demo/{model}", {"weights": "0" * 64})
        probe.save(f"{model}.safetensors")
    run("study emotions photos --emotions vit.safetensors --emotions resnet.safetensors -o out")
    assert asked[0].models == ("demo/vit", "demo/resnet")


@pytest.mark.parametrize(
    ("options", "gpus"),
    [("--device cpu", 0), ("", 1), ("--device cpu --gpus 2", 2)],
)
def test_the_device_decides_where_no_number_of_gpus_does(
    asked: list[Any], run: Run, monkeypatch: pytest.MonkeyPatch, options: str, gpus: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    run(f"study statistics photos sky --engine ray --workers 2 {options} -o out")
    assert asked[0].gpus == gpus


# evaluate


def test_evaluate_prints_where_its_results_are_and_goes_on(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in range(2):
        lines = run(EVALUATE.replace("--quiet ", ""), err=None).splitlines()
        assert lines[:4] == [
            "report   out/report.html",
            "tables   out/results.md",
            "figures  out/results.csv",
            "",
        ]
        assert lines[4].startswith("Where is it? ")
        assert lines[-1].startswith("What not to conclude: ")
    assert Path("out/results.csv").is_file()


def test_a_log_has_a_line_for_each_data_set_and_method(
    here: Path, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was done and an estimate of the rest, where no terminal shows a bar."""
    line = EVALUATE.replace("VIT", vit).replace("--quiet ", "") + " --chunk-size 1 --method center"
    assert main(line.split()) == 0
    assert capsys.readouterr().err.splitlines() == [
        "evaluate, masks, rollout: 1 of 8 images, about 1 min left",
        "evaluate, masks, center: 2 of 8 images, about 1 min left",
        "evaluate, masks, random: 3 of 8 images, about 1 min left",
        "evaluate, masks, uniform: 4 of 8 images, about 1 min left",
    ]


def test_evaluate_reports_what_it_skipped(run: Run) -> None:
    image = next(Path("farm/images").iterdir())
    random_maps(Path("theirs").absolute(), [image.stem], ["a horse"])
    image.write_bytes(b"")
    printed = run(f"{EVALUATE} --maps theirs")
    expected = (
        "skipped  2 samples, regions or maps of masks; the reasons are in out/manifest.json\n"
    )
    assert expected in printed
    for path in Path("farm/images").iterdir():
        path.write_bytes(b"")
    said = run(EVALUATE.replace("-o out", "-o none"), code=2)
    assert "masks: none of the 2 samples can be used for loc" in said
    assert not Path("none/results.csv").exists()


def test_every_option_of_evaluate_reaches_the_config(asked: list[Any], run: Run) -> None:
    run(
        "evaluate --model demo/vit --data demo --data demo-objects --method a --method b --maps c "
        "--maps d --task signs --task words --fill blur --fill black --reference b --against image "
        "--images 3 --slow-images 2 --seed 4 --draws 5 --batch-size 6 --chunk-size 7 "
        "--resamples 8 --engine ray --workers 3 --gpus 2 --threads 9 --processor demo/vit "
        "--tokenizer demo/vit "
        "--template 'a photo of a {}' "
        "-o out"
    )
    assert asked == [
        EvaluationConfig(
            *("demo/vit", "out", ("demo", "demo-objects"), ("a", "b"), ("c", "d"), "b"),
            tasks=("signs", "words"),
            against="image",
            images=3,
            slow_images=2,
            seed=4,
            draws=5,
            fills=("blur", "black"),
            batch_size=6,
            chunk_size=7,
            template="a photo of a {}",
            resamples=8,
            engine="ray",
            workers=3,
            gpus=2,
            threads=9,
            processor="demo/vit",
            tokenizer="demo/vit",
        )
    ]


# emotions fit


@pytest.fixture
def art(here: Path) -> Path:
    """Twenty paintings with two votes each."""
    rows = ["art_style,painting,emotion,utterance,repetition"]
    (here / "art/images/Style").mkdir(parents=True)
    for number in range(20):
        color = np.random.default_rng(number).integers(0, 256, 3, dtype=np.uint8)
        image = Image.new("RGB", (40, 40), tuple(color.tolist()))
        image.save(here / f"art/images/Style/p{number}.jpg")
        rows += [f"Style,p{number},{EMOTIONS[number % 4]},x,{vote}" for vote in (1, 2)]
    (here / "art/artemis_dataset_release_v0.csv").write_text("\n".join([*rows, ""]))
    return here


def test_fit_prints_the_scores_and_passes_its_options_on(art: Path, run: Run, vit: str) -> None:
    options = "--seed 3 --held-out 0.5 --strength 0.1 --test art"
    lines = run(f"emotions fit art --model VIT {options} -o p.safetensors").splitlines()
    assert lines[0] == "art: 40 rows read, 20 paintings kept; left out: nothing"
    assert lines[2].split() == ["paintings", "nine", "eight", "majority_nine", "majority_eight"]
    probe = EmotionProbe.load("p.safetensors")
    assert probe.scores is not None
    part = probe.scores.all
    shares = (part.nine, part.eight, part.majority_nine, part.majority_eight)
    cells = [f"{share:.3f}" for share in shares]
    assert lines[3].split() == ["held", "out", "of", "art,", "all", "10", *cells]
    assert lines[5].split()[:3] == ["art,", "all", "20"]
    assert lines[-1] == "p.safetensors"
    assert probe.model == vit
    assert probe.settings is not None
    assert (probe.settings.seed, probe.settings.held_out) == (3, 0.5)
    assert probe.settings.strength == 0.1


def test_study_without_an_image_that_can_be_read_fails(run: Run) -> None:
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"1")
    assert "none of the 3 images can be read" in run(STUDY, code=2)


def test_the_study_of_emotions_has_the_librarys_own_defaults(asked: list[Any], run: Run) -> None:
    """For a probe that names no model, Mamooler's."""
    run("study emotions photos --emotions e.safetensors --emotions e.safetensors -o out")
    assert asked == [
        emotions_study("photos", "out", emotions=[Path("e.safetensors"), Path("e.safetensors")]),
    ]


def test_evaluate_has_the_librarys_own_defaults(asked: list[Any], run: Run) -> None:
    run("evaluate -o out --data coco:x")
    run("evaluate -o out --model demo/vit")
    assert asked == [
        EvaluationConfig("ViT-B/32", "out", ("coco:x",)),
        EvaluationConfig("demo/vit", "out"),
    ]
