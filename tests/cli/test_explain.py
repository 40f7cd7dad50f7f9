"""``captum-clip explain`` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import classify, explain
from captum_clip.cli import main
from captum_clip.demo.catalog import EMOTIONS
from captum_clip.errors import InputError
from captum_clip.explaining.explanation import Explanation
from captum_clip.targets import EmotionProbe
from tests import folders
from tests.cli.conftest import Run


def test_it_draws_a_figure_into_the_current_folder_and_prints_the_scores(
    here: Path, run: Run, vit: str
) -> None:
    before = set(os.listdir())
    printed = run("explain photo.jpg 'a horse' 'a dog' --model VIT")
    assert set(os.listdir()) - before == {"photo-explained-a-horse_a-dog.png"}
    with Image.open("photo-explained-a-horse_a-dog.png") as figure:
        assert figure.width > 3 * 32
    score = explain("photo.jpg", "a horse", model=vit).scores.item()
    assert ", direct, positive):\n" in printed
    assert f"{score:6.3f}  a horse\n" in printed
    assert printed.endswith("\nphoto-explained-a-horse_a-dog.png\n")


def test_each_of_several_images_gets_its_scores_and_a_figure(run: Run) -> None:
    printed = run("explain photo.jpg other.png horse -m VIT -o out")
    assert sorted(os.listdir("out")) == ["other-explained-horse.png", "photo-explained-horse.png"]
    assert printed.count("cosine similarity to each text") == 2
    assert printed.count("  horse\n") == 2
    one = run("explain photo.jpg horse -m VIT -o out/photo-explained-horse.png")
    assert printed.startswith(one)


def test_several_models_get_a_row_each_and_lines_of_their_own(
    here: Path, run: Run, vit: str, resnet: str
) -> None:
    """As Python draws it, to the byte; where one of them fails there is no figure."""
    printed = run("explain photo.jpg other.png horse sky -m VIT -m RESNET -o out")
    assert sorted(os.listdir("out")) == [f"{n}-explained-horse_sky.png" for n in ("other", "photo")]
    found: Any = explain("photo.jpg", ["horse", "sky"], model=[vit, resnet])
    found.save("python.png")
    assert Path("out/photo-explained-horse_sky.png").read_bytes() == Path("python.png").read_bytes()
    start = 0
    for one in found:
        for line in (f"each text ({one.model}, direct", *map("{:6.3f}  {}\n".format, *lines(one))):
            start = printed.index(line, start)
    for wrong in ("--method grad-cam", "-m demo/none"):
        run(f"explain photo.jpg sea -m RESNET -m VIT {wrong} -o sea.png", code=2)
        assert not Path("sea.png").exists()


def lines(found: Explanation) -> tuple[list[float], tuple[str, ...]]:
    """The scores of an image, and their texts."""
    return found.scores[0].tolist(), found.names


def test_own_figures_are_not_taken_for_photos(
    run: Run, capsys: pytest.CaptureFixture[str], vit: str
) -> None:
    Path("set").mkdir()
    Path("photo.jpg").rename("set/photo.jpg")
    run("explain set/photo.jpg horse -m VIT -o set/drawn.png --regions set/regions")
    run("explain set/photo.jpg horse -m VIT -o set/drawn.jpg")
    printed = run("explain set dog -m VIT", err=None)
    assert printed.startswith("1 figure in set-explained\n")
    assert printed.count("photo.jpg") == 1
    assert run("index set -o set.lance -m VIT --quiet", err=None) == "1 image in set.lance\n"
    assert main(["explain", "set/drawn.png", "set/photo.jpg", "dog", "-m", vit]) == 0
    printed, said = capsys.readouterr()
    assert "drawn" not in printed
    assert said == "1 file left out, set/drawn.png: it is a figure that captum-clip drew\n"


def test_texts_come_from_a_file(run: Run) -> None:
    Path("texts.txt").write_text("a horse\n\n a dog \n", encoding="utf-8-sig")
    run("explain photo.jpg sky --texts texts.txt -m VIT -o a.npz")
    assert Explanation.load("a.npz").names == ("sky", "a horse", "a dog")
    Path("empty.txt").write_text("\n")
    assert "empty.txt holds no text" in run("explain photo.jpg --texts empty.txt", code=2)


@pytest.mark.parametrize(
    ("options", "signs"),
    [
        ("", ["positive"]),
        ("--sign negative", ["negative"]),
        ("--sign both", ["positive", "negative"]),
    ],
)
def test_it_passes_its_options_on(run: Run, options: str, signs: list[str]) -> None:
    method = "last-grad:heads=averaged"
    run(f"explain photo.jpg a --model VIT --method {method} -o found.npz {options}")
    found = Explanation.load("found.npz")
    assert (list(found.maps), found.method) == (signs, method)


def test_it_draws_the_whole_image_where_it_was_cropped(run: Run) -> None:
    def size(options: str, image: str = "photo.jpg") -> tuple[int, int]:
        run(f"explain {image} a --model VIT {options} -o drawn.png")
        with Image.open("drawn.png") as drawn:
            return drawn.size

    assert size("") == size("--original") == size("--whole")
    assert size("") != size("--no-original") == size("--no-original --whole")
    with Image.open("photo.jpg") as image:
        image.resize((40, 40)).save("square.png")
    assert size("", "square.png") == size("--no-original")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("", {}),
        ("--method rollout", {"method": "rollout"}),
        ("--words --no-hints", {"words": True, "hints": False}),
        ("--side both", {"side": "both"}),
        ("--whole --sign negative", {"whole": True, "sign": "negative"}),
    ],
)
def test_python_draws_the_same_file(
    run: Run, vit: str, options: str, asked: dict[str, Any]
) -> None:
    """On the whole photo, with the same hints, to the byte."""
    run(f"explain photo.jpg 'a horse' --model VIT {options} -o typed.png")
    found = explain("photo.jpg", "a horse", model=vit, **asked)
    found.save("python.png")
    assert Path("typed.png").read_bytes() == Path("python.png").read_bytes()
    assert bool(found.hints) == (asked.keys().isdisjoint({"sign", "hints"}))


def test_it_writes_the_regions(run: Run) -> None:
    printed = run(
        "explain photo.jpg 'a horse' --model VIT --sign both --regions out --threshold 0.5"
    )
    listed = printed.splitlines()[-4:]
    assert listed[0] == "photo-explained-a-horse.png"
    assert sorted(listed[1:]) == sorted(f"out/{name}" for name in os.listdir("out"))
    content = json.loads(Path("out/regions.json").read_text())
    assert (content["photo"], content["threshold"]) == ("photo.jpg", 0.5)
    assert len(content["regions"]) == 2
    assert {row["mask"] for row in content["regions"]} < set(os.listdir("out"))


def test_a_model_is_made_for_larger_images(run: Run, vit: str) -> None:
    run("explain photo.jpg sky --model VIT --image-size 48 -o found.npz")
    found = Explanation.load("found.npz")
    expected = explain("photo.jpg", "sky", model=vit, image_size=48)
    assert torch.equal(found.maps["positive"], expected.maps["positive"])
    said = run("explain photo.jpg sky --model VIT --image-size 50", code=2)
    assert said.endswith(
        "small-vit, --image-size 50: expected a multiple of 8, the side of a patch, "
        "such as 48 or 56, got 50."
    )
    run("explain photo.jpg sky --model RESNET --image-size 192 -o finer.npz")
    assert Explanation.load("finer.npz").maps["positive"].shape[-2:] == (6, 6)
    said = run("explain photo.jpg sky --model RESNET --processor VIT", code=2)
    assert said.endswith(
        "pass its own --processor with the model: the tower cannot take images of 32 x 32 pixels: "
        "it takes its native size only, here 96 x 96; resize or crop them, or make a model "
        "for them by name, with --image-size 32."
    )


def test_it_says_which_maps_to_doubt(run: Run) -> None:
    hint = "The map of \u201ca\u201d is almost that of unrelated texts (correlation 1.00)."
    printed = run("explain photo.jpg a --model VIT --method rollout -o a.npz")
    assert printed.endswith(f"{hint}\na.npz\n")
    assert hint in Explanation.load("a.npz").hints[0]


@pytest.mark.parametrize(("text", "norms"), [("a horse", 2), ("horse", 1)])
def test_it_prints_the_norm_of_each_word(run: Run, text: str, norms: int) -> None:
    printed = run(f"explain photo.jpg '{text}' --words --model VIT -o words.npz")
    assert printed.count("   norm ") == norms


def test_it_prints_the_share_of_each_word_and_what_is_lost_without_it(run: Run) -> None:
    printed = run("explain photo.jpg 'a horse' --side pairs -m VIT -o pairs.npz")
    found = Explanation.load("pairs.npz")
    assert found.leave_one_out is not None
    names = ("a horse (whole text)", *found.names[1:])
    for name, share, lost in zip(names, found.scores[0], found.leave_one_out[0], strict=True):
        assert f"  {share:6.3f}  {name}   lost {lost:+.3f}\n" in printed


def test_it_compares_with_an_image(run: Run) -> None:
    printed = run("explain photo.jpg --image other.png -m VIT -o one.npz")
    score = float(Explanation.load("one.npz").scores)
    assert "to each --image (" in printed
    assert f"  {score:6.3f}  other\n" in printed
    assert "  other\n" in run("explain photo.jpg --image other.png --side pairs -m VIT")
    assert Path("photo-explained-other.png").exists()
    run("explain photo.jpg --image other.png --image photo.jpg -m VIT -o two.npz")
    two = Explanation.load("two.npz")
    assert two.names == ("other", "photo")
    assert float(two.scores[0, 0]) == pytest.approx(score, abs=1e-6)
    for wrong, message in (
        ("--image none.png", "there is no file none.png"),
        ("horse --image other.png", "expected either texts or --image, got both"),
        ("horse dog --side pairs", "--side pairs takes one text apart"),
        ("--side pairs", "expected a TEXT, --emotions FILE or --image FILE, got none"),
        ("--image other.png --side text", "--image has no words"),
        ("--image other.png --words", "--image has no words"),
        (
            "horse --side pairs --words",
            "--side pairs explains whole texts word by word; leave --words",
        ),
        ("horse --threshold 0.5", "--threshold goes with --regions"),
    ):
        assert message in run(f"explain photo.jpg {wrong} -m VIT", code=2)


@pytest.mark.parametrize(("texts", "said"), [("a horse", 1), ("a_horse dog", 0), ("a", 0)])
def test_a_word_that_no_one_looks_for_alone_is_asked_about(
    here: Path, vit: str, capsys: pytest.CaptureFixture[str], texts: str, said: int
) -> None:
    words = [text.replace("_", " ") for text in texts.split()]
    assert main(["explain", "photo.jpg", *words, "-m", vit, "-o", "a.npz"]) == 0
    note = 'each TEXT is looked for by itself; to look for one text, quote it: "a horse"\n'
    assert capsys.readouterr().err == said * note


def test_a_checkpoint_without_processor_and_tokenizer_takes_others(
    here: Path, run: Run, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLIP's usual preprocessing is taken after a warning, a tokenizer is not guessed."""
    (here / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "bare" / name).write_bytes(Path(vit, name).read_bytes())
    assert main(["explain", "photo.jpg", "a", "--model", "bare"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert (warning[:21], error[:20]) == ("captum-clip: warning:", "captum-clip: error: ")
    printed = run("explain photo.jpg a --model bare --processor VIT --tokenizer VIT")
    assert printed.splitlines()[1:] == run("explain photo.jpg a --model VIT").splitlines()[1:]


@pytest.mark.parametrize(("terminal", "options"), [(False, []), (True, ["--quiet"]), (True, [])])
def test_bars_are_for_those_who_look_at_a_terminal(
    here: Path,
    vit: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    options: list[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert main(["explain", "photo.jpg", "a", "--model", vit, *options]) == 0
    said = capsys.readouterr().err
    assert ("explaining" in said) == (terminal and not options)
    assert bool(said) == (terminal and not options)


# Emotions


@pytest.mark.parametrize(("text", "names"), [("", ()), ("'a horse'", ("a horse",))])
def test_it_draws_emotions_after_texts(run: Run, text: str, names: tuple[str, ...]) -> None:
    printed = run(f"explain photo.jpg --emotions e.safetensors --model VIT {text} -o a.npz")
    assert Explanation.load("a.npz").names == (*names, *EMOTIONS)
    assert printed.startswith(f"cosine similarity to each {'text and ' if text else ''}emotion (")


def test_it_centers_emotions(run: Run) -> None:
    for name, option in (("plain.npz", ""), ("centered.npz", "--center")):
        run(f"explain photo.jpg --emotions e.safetensors --model VIT -o {name} {option}")
    plain, centered = Explanation.load("plain.npz"), Explanation.load("centered.npz")
    assert not np.allclose(plain.scores, centered.scores, atol=1e-2)


def test_a_probe_names_its_model(run: Run) -> None:
    EmotionProbe.load("demo/resnet").save("p.safetensors")
    assert "(demo/resnet, " in run("explain photo.jpg --emotions p.safetensors -o a.npz")


def test_a_probe_of_another_model_is_refused(run: Run) -> None:
    EmotionProbe(np.eye(9, 24), np.zeros(9), "other", {"weights": "0" * 64}).save("p.safetensors")
    said = run("explain photo.jpg --emotions p.safetensors --model VIT", code=2)
    assert "fitted on features of other with other weights than" in said


# Folders


def test_each_image_of_a_folder_gets_the_figure_that_it_has_alone(here: Path, run: Run) -> None:
    line = "'a horse' --model VIT --regions regions"
    printed = run(f"explain photos {line}")
    assert printed.startswith("3 figures in photos-explained\n")
    assert printed.endswith("/index.html\nregions\n")
    found = folders.content(here / "photos-explained")
    figures = [f"{name}-explained-a-horse.png" for name in ("image0", "image2", "inner/image1")]
    assert [*found] == sorted([*figures, "index.html", "manifest-a-horse.json", "scores.csv"])
    assert "regions.json" in os.listdir("regions/inner/image1.png")
    run(f"explain photos/inner/image1.png {line} -o alone.png")
    assert found["inner/image1-explained-a-horse.png"] == Path("alone.png").read_bytes()


def test_figures_of_a_folder_that_exist_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    plot = Explanation.plot

    @wraps(plot)
    def counted(self: Explanation, **options: Any) -> Any:
        drawn.append(self.names[0])
        return plot(self, **options)

    monkeypatch.setattr(Explanation, "plot", counted)
    run("explain photos horse --model VIT -o photos/seen")
    Path("photos/seen/image0-explained-horse.png").unlink()
    printed = run("explain photos horse --model VIT -o photos/seen")
    assert printed.startswith("3 figures in photos/seen (2 existed)\n")
    assert len(drawn) == 4
    Path("photos/image0.jpg").write_bytes(Path("photos/image0.png").read_bytes())
    assert "\n4 figures" in f"\n{run('explain photos horse --model VIT -o photos/seen')}"
    assert len(drawn) == 6  # of two that differ in their ending each gets a figure with its own


def test_a_folder_has_a_table_of_scores_and_a_page(
    here: Path, run: Run, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all texts that were looked for; files without a figure are counted and listed."""
    for name in ("<b>.svg", "notes.txt", ".hidden.pdf", "inner/bad.png"):
        Path("photos", name).write_bytes(b"1")
    assert main(["explain", "photos", "a horse", "sky", "-m", vit, "-o", "out"]) == 0
    printed, said = capsys.readouterr()
    assert said.splitlines() == [
        "3 files left out:",
        "  photos/inner/bad.png is not an image that Pillow can read",
        "  photos/<b>.svg: its ending is not that of an image",
        "  photos/notes.txt: its ending is not that of an image",
    ]
    run("explain photos dog -m VIT -o out", err=None)
    with open("out/scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3
    lines = printed.splitlines()
    assert re.fullmatch(r"cosine similarity \(.*small-vit, direct\):", lines[1])
    assert lines[2].split() == ["a", "horse", "sky"]
    for line, name in zip(
        lines[3:], ("image0.png", "image2.png", "inner/image1.png"), strict=False
    ):
        found = explain(f"photos/{name}", ["a horse", "sky", "dog"], model=vit)
        scores = {row["text"]: float(row["score"]) for row in rows if row["image"] == name}
        expected = dict(zip(found.names, found.scores[0].tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=2e-6)
        assert line.split() == [name, f"{scores['a horse']:.3f}", f"{scores['sky']:.3f}"]
    assert lines[-2:] == ["out/scores.csv", "out/index.html"]
    page = Path("out/index.html").read_text("utf-8")
    best = {row["figure"]: -1.0 for row in rows}
    for row in rows:
        best[row["figure"]] = max(best[row["figure"]], float(row["score"]))
    assert re.findall(r'<img src="([^"]*)"', page) == sorted(best, key=lambda name: -best[name])
    assert {row["probability"] for row in rows} == {""}
    assert "<b>" not in page
    assert "3 files left out" in page
    for address in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert (here / "out" / address).is_file()


def test_a_run_that_is_stopped_keeps_its_scores(
    run: Run, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot, count = Explanation.plot, iter(range(9))

    @wraps(plot)
    def stopping(self: Explanation, **options: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return plot(self, **options)

    monkeypatch.setattr(Explanation, "plot", stopping)
    assert main(["explain", "photos", "horse", "--model", vit, "-o", "out"]) == 130
    assert Path("out/scores.csv").read_text().count("\n") == 3
    assert "(2 existed)" in run("explain photos horse --model VIT -o out")


OTHERWISE = {
    "explain photos --emotions e.safetensors --model RESNET": "models.0.name was",
    "explain photos --emotions e.safetensors --method rollout": 'method was null and is "rollout"',
    "explain photos --emotions e.safetensors --sign both": 'sign was "positive" and is "both"',
    "explain photos --emotions e.safetensors --no-original": "original was null and is false",
    "explain photos --emotions e.safetensors --center": "center was false and is true",
    "explain photos --emotions other.safetensors": (
        'was "e.safetensors" and is "other.safetensors"; digests was'
    ),
    "explain photos Emotions": 'targets was ["emotions"] and is ["Emotions"]',
    "explain photos/inner/.. --emotions e.safetensors --whole": "(whole was false and is true);",
    "explain farm/images --emotions e.safetensors": "/farm/images",
    "figure compare photos emotions": 'figure was "explain" and is "compare"',
}


def test_a_folder_of_figures_goes_on_with_the_settings_that_made_it(here: Path, run: Run) -> None:
    """Other targets have figures of their own in it; without a manifest nothing is gone on with."""
    line = "explain photos --emotions e.safetensors --model VIT -o out"
    folders.make_emotions(Path("other.safetensors"), offset=2.0)
    run(line)
    Path("out/image0-explained-emotions.png").unlink()
    figures = folders.content(here / "out")
    for other, message in OTHERWISE.items():
        model = "" if "--model" in other else "--model VIT"
        said = run(f"{other} {model} -o out", code=2)
        assert "out holds figures made with other settings (" in said
        assert message in said
        assert said.endswith("; give another -o, or delete the folder.")
    Path("other.safetensors").replace("e.safetensors")
    assert "(digests was [" in run(line, code=2)
    assert folders.content(here / "out") == figures
    assert run("explain photos horse --model VIT -o out").startswith("3 figures in out\n")
    manifest = Path("out/manifest-emotions.json")
    for damage in ("{", "[]", "[" * 99_999, None):
        manifest.write_text(damage) if damage else manifest.unlink()
        assert "(the settings are not known);" in run(line, code=2)
    folders.make_emotions(Path("e.safetensors"))
    manifest.write_bytes(figures["manifest-emotions.json"])
    assert run(line).startswith("3 figures in out (2 existed)\n")


def test_images_of_a_folder_that_cannot_be_read_are_reported(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/image0.png").write_bytes(b"1")
    printed = run("explain photos horse --model VIT -o out", err=None)
    assert printed.startswith("2 figures in out\n")
    for name in ("image2.png", "inner/image1.png"):
        Path("photos", name).write_bytes(b"1")
    said = run("explain photos horse --model VIT -o none", code=2)
    assert "none of the 3 images could be drawn; photos/image0.png: " in said


def test_a_contrast_is_drawn_with_both_signs(run: Run) -> None:
    printed = run("explain photo.jpg 'a horse' --against 'a dog' -m VIT")
    assert printed.startswith("cosine similarity to the difference of two texts")
    assert "a horse - a dog   cosines differ by " in printed
    assert printed.endswith("\nphoto-explained-a-horse_against-a-dog.png\n")
    run("explain photo.jpg 'a horse' --against 'a dog' -m VIT --sign negative -o found.npz")
    assert list(Explanation.load("found.npz").maps) == ["negative"]


def test_classes_are_ranked_by_their_probabilities(run: Run, vit: str) -> None:
    Path("classes.txt").write_text("horse\nblack_dog\n\nsky\ngrass\n")
    printed = run("explain photo.jpg --classes classes.txt -m VIT --template 'a {}'")
    names = ["horse", "black dog", "sky", "grass"]
    found = classify("photo.jpg", names, model=vit, templates="a {}")
    first, *ranked, hint, figure = printed.splitlines()
    assert (hint,) == found.hints[0]
    assert hint.startswith("None of the 4 classes stands out")
    with_none = run("explain photo.jpg --classes classes.txt -m VIT --template 'a {}' --no-hints")
    assert with_none.splitlines() == [first, *ranked, figure]
    assert first.endswith(f", {found.calibration}):")
    assert found.probabilities is not None
    titles = [shown.title for shown in found.shown()[0]]
    assert [line.partition("  ")[2].split("  ")[-1] for line in ranked] == titles
    assert figure == "photo-explained-classes.png"
    Path("templates.txt").write_text("a {}\na photo of a {}\n")
    run("explain photo.jpg --classes classes.txt -m VIT --top 4 -o two.npz")
    both = classify("photo.jpg", names, model=vit, templates=["a {}", "a photo of a {}"], top=4)
    torch.testing.assert_close(Explanation.load("two.npz").probabilities, both.probabilities)


def test_each_image_of_a_folder_has_its_own_classes(run: Run, vit: str) -> None:
    Path("classes.txt").write_text("horse\ndog\nsky\n")
    line = "explain photos --classes classes.txt -m VIT --top 1"
    printed = run(line).splitlines()
    assert printed[0] == "3 figures in photos-explained"
    assert printed[2].split() == ["class", "cosine", "probability"]
    with open("photos-explained/scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, shown in zip(rows, printed[3:6], strict=True):
        found = classify(f"photos/{row['image']}", ["horse", "dog", "sky"], model=vit, top=1)
        assert found.probabilities is not None
        expected = found.scores[0, 0].item(), found.probabilities[0, 0].item()
        numbers = float(row["score"]), float(row["probability"])
        assert numbers == pytest.approx(expected, abs=2e-6)
        assert shown.split() == [row["image"], *found.names, *map("{:.3f}".format, numbers)]
    assert "manifest-classes.json" in os.listdir("photos-explained")
    Path("classes.txt").write_text("horse\ndog\n")
    assert "made with other settings" in run(line, code=2)


def test_texts_may_stand_among_options(run: Run) -> None:
    run("explain photo.jpg --model VIT 'a horse' -o a.npz b")
    assert Explanation.load("a.npz").names == ("a horse", "b")


def test_a_table_of_scores_runs_nothing_in_a_spreadsheet(here: Path, run: Run) -> None:
    """An apostrophe before what looks like a formula; what goes on with the table takes it off."""
    Path("photos/image0.png").rename("photos/=1+1.png")
    line = "explain photos '@sum(1)' '+1+2' --model VIT -o out"
    run(line)
    table = Path("out/scores.csv").read_bytes()
    for [image, figure, text, score, *_] in [*csv.reader(table.decode().splitlines())][1:]:
        assert text in ("'@sum(1)", "'+1+2")
        assert all(name[0] != "=" for name in (image, figure))
        float(score)  # which may have a sign
    assert b"'=1+1" in table
    Path("out/index.html").unlink()
    next(Path("out").glob("image2-*")).unlink()
    assert "(2 existed)" in run(line)
    assert Path("out/scores.csv").read_bytes() == table


def test_names_of_files_do_not_steer_the_terminal(here: Path, run: Run) -> None:
    """Neither in what is printed nor in an error, on the command line and in Python."""
    name = "a\x1b[31m\x9b\u202eb.png"
    Path("photo.jpg").rename(name)
    Path(name).with_suffix(".txt").write_text("no image")
    escaped = r"a\x1b[31m\x9b\u202eb"
    assert f"{escaped}-explained-horse.png" in run(f"explain '{name}' horse --model VIT -o out")
    assert escaped in run(f"explain '{Path(name).with_suffix('.txt')}' horse --model VIT", code=2)
    with pytest.raises(InputError) as caught:
        Explanation.load(Path(name).with_suffix(".npz"))
    assert escaped in str(caught.value)


def test_settings_that_draw_nothing_are_not_remembered(run: Run) -> None:
    run("explain photos horse --model VIT --method grad-cam -o out", code=2)
    run("explain photos horse --model VIT -o out")


def test_a_manifest_replaces_no_input(here: Path, run: Run) -> None:
    Path("out").mkdir()
    Path("e.safetensors").rename("out/manifest-emotions.json")
    line = "explain photos --emotions out/manifest-emotions.json --model VIT -o out"
    assert "would replace the input out/manifest-emotions.json" in run(line, code=2)


def test_a_limit_of_pixels_is_an_option_and_no_setting(run: Run) -> None:
    """So figures that a lower one left out can be added."""
    Image.new("RGB", (64, 64), "red").save("photos/image0.png")
    line = "explain photos horse --model VIT -o out"
    printed = run(f"{line} --max-pixels 4095", err=None)
    assert printed.startswith("2 figures in out\n")
    said = run("explain photos/image0.png horse --model VIT --max-pixels 4095", code=2)
    assert "image0.png unpacks to more than 4,095 pixels, " in said
    assert "or raise --max-pixels if you trust it." in said
    assert run(f"{line} --max-pixels 4096").startswith("3 figures in out (2 existed)\n")
    for other in ("--classes classes.txt", "--image photos/image0.png"):
        Path("classes.txt").write_text("horse\ndog")
        said = run(f"explain photos/image2.png {other} --model VIT --max-pixels 1000", code=2)
        assert "or raise --max-pixels if you trust it." in said


def test_a_folder_of_figures_that_cannot_be_made_is_a_sentence(run: Run) -> None:
    """A path below a file, and a name that is too long, of the folder or of one figure."""
    line = "explain photos horse --model VIT -o"
    assert "the folder photo.jpg/out cannot be made" in run(f"{line} photo.jpg/out", code=2)
    assert "cannot be a path: File name too long" in run(f"{line} {'a' * 300}", code=2)
    Path("photos/image0.png").rename(f"photos/{'a' * 250}.png")
    assert run(f"{line} out", err=None).startswith("2 figures in out\n")


def test_a_broken_file_among_several_is_left_out_and_fails_the_line(
    run: Run, capsys: pytest.CaptureFixture[str], vit: str
) -> None:
    """Alone it is an error, and so are a misspelled name and several that are all broken."""
    for name in ("broken.png", "worse.png"):
        Path(name).write_bytes(b"1")
    images = ["photo.jpg", "broken.png", "other.png"]
    assert main(["explain", *images, "horse", "-m", vit, "-o", "out"]) == 2
    printed, said = capsys.readouterr()
    assert printed.count("cosine similarity to each text") == 2
    assert said == "1 file left out, broken.png is not an image that Pillow can read\n"
    assert sorted(os.listdir("out")) == ["other-explained-horse.png", "photo-explained-horse.png"]
    for line in ("broken.png", "photo.jpg missing.png", "broken.png worse.png"):
        said = run(f"explain {line} horse -m VIT -o others", code=2)
        assert ("missing.png" if "missing" in line else "broken.png") in said
    assert not Path("others").exists()


def test_a_file_that_cannot_be_written_is_no_broken_image(run: Run) -> None:
    Path("out/photo-explained-horse.npy").mkdir(parents=True)
    said = run("explain photo.jpg other.png horse -m VIT --maps -o out", code=2)
    assert "cannot write out/photo-explained-horse.npy" in said
    assert sorted(os.listdir("out")) == ["photo-explained-horse.npy"]


def test_raw_maps_lie_beside_the_figures(run: Run, vit: str) -> None:
    run("explain photo.jpg other.png horse sky -m VIT --maps --scale shared -o out")
    for name, photo in (("photo", "photo.jpg"), ("other", "other.png")):
        maps = explain(photo, ["horse", "sky"], model=vit).maps["positive"].numpy()
        written = np.load(f"out/{name}-explained-horse_sky.npy")
        np.testing.assert_allclose(written, maps, atol=1e-6)
    said = run("explain photo.jpg horse -m VIT --maps -o one.npz", code=2)
    assert "--maps writes maps beside a figure" in said
