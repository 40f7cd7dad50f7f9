"""`emotions`, `rank` and `explain --emotions`, as a user types them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip.cli import main
from captum_clip.emotions import CLASSES, EMOTIONS, STRENGTH, EmotionProbe
from captum_clip.explanation import Explanation
from tests import builders
from tests.experiments import experiment


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model in a folder, which is a name for `--model`."""
    folder = tmp_path_factory.mktemp("models") / "small"
    for part in builders.hf_vit():
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTUM_CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small data set."""
    folder = tmp_path_factory.mktemp("written") / "data"
    return str(experiment("artemis").write_artemis(folder, paintings=40))


@pytest.fixture(scope="module")
def encodings(tmp_path_factory):
    """A file as Mamooler published theirs, for the small model."""
    path = tmp_path_factory.mktemp("published") / "published.json"
    rows = np.random.default_rng(0).normal(size=(9, 24)) + 0.5
    path.write_text(json.dumps(dict(zip(CLASSES, rows.tolist(), strict=True))))
    return str(path)


@pytest.fixture
def photo(written):
    """One image of the data set."""
    return f"{written}/images/Emoji_Scenes/noto_scene-00000.jpg"


def run(*arguments, capsys, code=0):
    """Run a command; what it printed, or its only line on stderr."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "Warning" not in err
    if code == 0:
        return out
    last = err.replace("\r", "\n").strip().split("\n")[-1].strip()
    assert last.startswith("captum-clip: error: ")
    return last


# emotions


def test_fit_prints_the_report_and_the_scores(here, written, model, capsys):
    """Of what was held out, and of a second data set; the file is a probe of this model."""
    arguments = [written, "--model", model, "-o", "p.safetensors", "--test", f"{written}/held_out"]
    lines = run("emotions", "fit", *arguments, capsys=capsys).splitlines()
    assert "40 paintings kept; left out: nothing" in lines[0]
    assert "20 paintings kept; left out: nothing" in lines[1]
    assert lines[3].split() == ["paintings", "of", "nine", "majority", "of", "eight", "majority"]
    probe = EmotionProbe.load("p.safetensors")
    assert probe.scores is not None
    found = probe.scores.all
    figures = (found.nine, found.majority_nine, found.eight, found.majority_eight)
    assert lines[5].split() == ["all", "8", *(f"{figure:.3f}" for figure in figures)]
    assert lines[8].split()[:2] == ["all", "20"]
    assert lines[-1] == "p.safetensors"
    assert probe.model == model
    assert probe.settings is not None
    assert (probe.settings.strength, probe.settings.seed) == (STRENGTH, 0)


def test_fit_takes_files_from_elsewhere(here, written, model, capsys):
    """The CSV and the images, of which some are missing or broken: said in one line each."""
    shutil.copytree(f"{written}/images", "pictures")
    (here / "pictures/Emoji_Scenes/broken.jpg").write_bytes(b"no image")
    rows = Path(written, "artemis_dataset_release_v0.csv").read_text()
    more = "Emoji_Scenes,gone,awe,x,1\nEmoji_Scenes,broken,awe,x,1\n"
    (here / "rows.csv").write_text(rows + more)
    arguments = ["none", "--csv", "rows.csv", "--images", "pictures", "--model", model]
    capsys.readouterr()
    assert main(["emotions", "fit", *arguments, "--held-out", "0", "-o", "p.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "paintings without an image: 1" in out
    assert "1 file left out, pictures/Emoji_Scenes/broken.jpg: " in err
    assert out.splitlines()[-1] == "p.safetensors"
    assert "majority" not in out


def test_fit_passes_its_options_on(here, written, model, capsys):
    """Seed, share and strength are in the file."""
    options = ["--seed", "3", "--held-out", "0.5", "--strength", "0.1", "-o", "p.safetensors"]
    run("emotions", "fit", written, "--model", model, *options, capsys=capsys)
    settings = EmotionProbe.load("p.safetensors").settings
    assert settings is not None
    assert (settings.seed, settings.held_out, settings.strength) == (3, 0.5, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "none", "--model", "MODEL", "-o", "p.safetensors"], "there is no folder none"),
        (["fit", "DATA", "--model", "MODEL", "-o", "p.pt"], "must end in .safetensors"),
        (["fit", "DATA", "--model", "MODEL", "-o", "no/p.safetensors"], "there is no folder no"),
        (["fit", "DATA", "-o", "p.safetensors"], "required: --model"),
        (["fit", "DATA", "--model", "nonsense", "-o", "p.safetensors"], "'nonsense' is neither"),
        (["fit", "DATA", "--csv", "x.csv", "--model", "M", "-o", "p.safetensors"], "no file x.csv"),
        (["fit", "DATA", "--test", "x", "--model", "M", "-o", "p.safetensors"], "no folder x"),
        (
            ["fit", "DATA", "--held-out", "2", "--model", "MODEL", "-o", "p.safetensors"],
            "--held-out in [0, 1), got 2.0",
        ),
        ([], "required: COMMAND"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_emotions_says_on_one_line_what_is_wrong(
    here, written, model, encodings, capsys, arguments, message
):
    """And leaves nothing behind."""
    names = {"DATA": written, "MODEL": model, "FILE": encodings}
    given = [names.get(one, one) for one in arguments]
    assert message in run("emotions", *given, capsys=capsys, code=2)
    assert set(os.listdir(here)) <= {"cache"}


# rank


def test_rank_finds_images_for_a_text(here, written, model, capsys):
    """A list and a picture in a new folder; the best are printed."""
    arguments = [f"{written}/images", "--model", model, "a horse", "--top", "3", "-o", "out"]
    lines = run("rank", *arguments, capsys=capsys).splitlines()
    assert lines[0] == f"'a horse', best of 40 images ({model}, direct):"
    with open("out/ranking.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for line, row in zip(lines[1:4], rows, strict=True):
        assert line.split() == [row["rank"], f"{float(row['score']):.3f}", row["file"]]
        assert os.path.isfile(f"{written}/images/{row['file']}")
    with Image.open("out/ranking.png") as picture:
        picture.verify()
    assert lines[4:] == ["out/ranking.csv", "out/ranking.png"]


def test_rank_finds_images_for_an_emotion(here, written, model, encodings, capsys):
    """By its name in a file."""
    arguments = [written, "--emotions", encodings, "--emotion", "awe", "--model", model]
    printed = run("rank", *arguments, "--top", "1", "-o", "out", capsys=capsys)
    assert printed.startswith("'awe', best of 60 images")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("utf-8", "d\u00e9j\u00e0 \\udcff.jpg"), ("ascii", r"d\xe9j\xe0 \udcff.jpg")],
)
def test_rank_prints_names_that_stdout_has_no_letters_for(
    here, photo, model, monkeypatch, encoding, printed
):
    """With escapes; stdout is as it was afterwards."""
    (here / "images").mkdir()
    os.symlink(photo, "images/d\u00e9j\u00e0 \udcff.jpg")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["rank", "images", "a horse", "--model", model, "-o", "out"]) == 0
    assert out.errors == "strict"
    assert printed in out.buffer.getvalue().decode(encoding)


def test_rank_says_what_it_left_out(here, photo, model, capsys):
    """In one line; the exit code is 0."""
    (here / "images").mkdir()
    os.symlink(photo, "images/good.jpg")
    (here / "images/bad.jpg").write_bytes(b"no image")
    (here / "images/worse.jpg").write_bytes(b"")
    capsys.readouterr()
    assert main(["rank", "images", "a horse", "--model", model, "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert "best of 1 images" in out
    [line] = [line for line in err.replace("\r", "\n").split("\n") if "left out" in line]
    assert line.strip().startswith("2 files left out, images/bad.jpg: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA", "--model", "MODEL", "-o", "out"], "required: TEXT"),
        (["DATA", "a", "b", "--model", "MODEL", "-o", "out"], "to look for, got 2"),
        (["DATA", "a", "--emotion", "awe", "-o", "out"], "go together"),
        (["DATA", "--emotions", "FILE", "-o", "out"], "go together"),
        (["DATA", "a", "--emotions", "FILE", "--emotion", "awe", "-o", "out"], "got 2"),
        (["DATA", "--emotions", "x.json", "--emotion", "awe", "-o", "out"], "no file x.json"),
        (["none", "a", "--model", "MODEL", "-o", "out"], "there is no folder none"),
        (["DATA", "a", "--model", "MODEL", "-o", "file"], "the folder file cannot be made"),
        (["DATA", "a", "--model", "MODEL"], "required: -o/--output"),
        (["DATA", "a", "--modle", "MODEL", "-o", "out"], "unrecognized arguments: --modle"),
    ],
)
def test_rank_says_on_one_line_what_is_wrong(
    here, written, model, encodings, capsys, arguments, message
):
    """Before a model is loaded."""
    (here / "file").touch()
    names = {"DATA": written, "MODEL": model, "FILE": encodings}
    given = [names.get(one, one) for one in arguments]
    assert message in run("rank", *given, capsys=capsys, code=2)
    assert os.listdir(here) == ["file"]


def test_rank_fails_where_nothing_can_be_read(here, model, encodings, capsys):
    """Or where the emotion is none."""
    (here / "images").mkdir()
    (here / "images/bad.jpg").write_bytes(b"no image")
    said = run("rank", "images", "a", "--model", model, "-o", "out", capsys=capsys, code=2)
    assert "none of the 1 images can be read; images/bad.jpg" in said
    wanted = ["--emotions", encodings, "--emotion", "joy"]
    said = run("rank", "images", *wanted, "--model", model, "-o", "out", capsys=capsys, code=2)
    assert "got 'joy'" in said


# explain


@pytest.mark.parametrize(
    ("texts", "names"), [([], EMOTIONS), (["a horse"], ("a horse", *EMOTIONS))]
)
def test_explain_draws_emotions(here, photo, model, encodings, capsys, texts, names):
    """Alone, or after the texts."""
    arguments = [photo, "--emotions", encodings, "--model", model, *texts, "-o", "found.npz"]
    printed = run("explain", *arguments, capsys=capsys)
    assert Explanation.load("found.npz").names == names
    what = "to each text and emotion" if texts else "to each emotion"
    assert printed.startswith(f"cosine similarity {what} (")


def test_explain_centres_emotions(here, photo, model, encodings, capsys):
    """Other maps, other scores."""
    for name, options in (("plain.npz", []), ("centred.npz", ["--centre"])):
        arguments = [photo, "--emotions", encodings, "--model", model, "-o", name]
        run("explain", *arguments, *options, capsys=capsys)
    plain, centred = Explanation.load("plain.npz"), Explanation.load("centred.npz")
    assert not np.allclose(plain.scores, centred.scores, atol=1e-2)


@pytest.mark.parametrize("position", [1, 2, 3])
def test_texts_may_stand_among_options(here, photo, model, capsys, position):
    """A list that may be empty is still read to its end."""
    arguments = [["--model", model], ["-o", "found.npz"]]
    arguments.insert(position - 1, ["a horse", "a dog"])
    flat = [word for part in arguments for word in part]
    run("explain", photo, *flat, capsys=capsys)
    assert Explanation.load("found.npz").names == ("a horse", "a dog")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--centre", "a"], "--centre goes with --emotions"),
        (["--emotions", "FILE", "--words", "a"], "--words takes a TEXT apart"),
        (["--emotions", "none.json"], "there is no file none.json"),
        (["--emotions", "PHOTO"], "expected a file of EmotionProbe.save"),
        (["a", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_explain_says_what_is_wrong_with_emotions(
    here, photo, model, encodings, capsys, arguments, message
):
    """On one line."""
    names = {"PHOTO": photo, "FILE": encodings}
    given = [names.get(one, one) for one in arguments]
    assert message in run("explain", photo, "--model", model, *given, capsys=capsys, code=2)
    assert os.listdir(here) == []


def test_a_probe_names_its_model(here, written, photo, model, capsys):
    """No --model is needed with it, in any command that takes one."""
    run("emotions", "fit", written, "--model", model, "-o", "p.safetensors", capsys=capsys)
    probe = ["--emotions", "p.safetensors"]
    assert f"({model}, " in run("explain", photo, *probe, "-o", "a.npz", capsys=capsys)
    ranking = [f"{written}/images", *probe, "--emotion", "awe", "-o", "out"]
    assert f"({model}, " in run("rank", *ranking, capsys=capsys)
    run("figure", "emotions", photo, *probe, "--emotion", "awe", "-o", "a.png", capsys=capsys)
    said = run("figure", "emotions", photo, *probe, *probe, "--model", model, capsys=capsys, code=2)
    assert "for each of the 1 models" in said


def test_explain_refuses_a_probe_of_another_model(here, photo, model, capsys):
    """By its fingerprint."""
    EmotionProbe(np.eye(9, 24), np.zeros(9), "other", "0" * 64).save("p.safetensors")
    arguments = [photo, "--emotions", "p.safetensors", "--model", model]
    said = run("explain", *arguments, capsys=capsys, code=2)
    assert "fitted on features of other with another fingerprint" in said
