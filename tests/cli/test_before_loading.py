"""What needs no model is said before one is loaded, in every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from captum_clip.cli import main
from tests import folders
from tests.experiments import experiment

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, a data set of emotions, and a file of encodings."""
    folder = tmp_path_factory.mktemp("files")
    folders.make_images(folder / "photos", 2)
    folders.make_emotions(folder / "e.json")
    experiment("artemis").write_artemis(folder / "art", paintings=16)
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain photos/image0.png a --device abacus", "abacus"),
        ("explain photos/image0.png a --method kam", "expected one of"),
        ("rank photos a --workers -1 -o out", "expected --workers of 0 or more, got -1"),
        ("rank photos a --top 0 -o out", "expected --top of 1 or more, got 0"),
        ("rank photos --emotions e.json --emotion joy -o out", "'joy'"),
        ("rank photos a -o e.json", "the folder e.json cannot be made"),
        ("figure emotions photos --emotions e.json --emotion joy", "'joy'"),
        ("figure heads photos/image0.png a --count 0", "expected --count of 1 or more, got 0"),
        ("figure words photos/image0.png a --method kam", "expected one of"),
        ("figure words photos/image0.png a --colormap x", "no colour map 'x'"),
        ("study statistics none a --method last-grad -o out", "there is no folder"),
        ("study statistics photos a --method rollout --batch-size 0 -o out", "--batch-size of 1"),
        ("study statistics photos a --method rollout --limit 0 -o out", "limit of 1 or more"),
        ("study statistics photos --method rollout -o out", "nothing to explain"),
        ("study statistics photos a a --method rollout -o out", "'a' is given twice"),
        ("study statistics photos a --emotions e.json --emotions e.json -o out", "got 2"),
        ("study emotions photos --model a --emotions none.json -o out", "none.json"),
        ("study corner-bias photos --engine ray --workers 0 -o out", "Ray needs one worker"),
        ("study corner-bias photos -o photos", "cannot go into the folder of the images"),
        ("emotions fit art --model m --strength 0 -o a.safetensors", "a strength above 0, got 0"),
        ("emotions fit art --model m --held-out 2 -o a.safetensors", "--held-out in [0, 1)"),
        ("emotions fit art --model m --seed -1 -o a.safetensors", "seed of 0 or more, got -1"),
        ("emotions fit art --model m --workers -1 -o a.safetensors", "workers of 0 or more"),
        ("evaluate --model demo/vit --task x -o out", "'x'"),
        ("evaluate --model demo/vit --method kam -o out", "kam"),
        ("evaluate --model demo/vit --reference kam -o out", "kam"),
        ("evaluate --data voc:none -o out", "none"),
        ("evaluate --data masks:photos -o out", "photos"),
        ("evaluate --model demo/vit --data demo --maps none -o out", "none"),
        ("evaluate --model demo/vit --template a -o out", "template"),
        ("app --port 70000", "--port 70000"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(
    files: Path, line: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_clip.models.loading._load", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr("captum_clip.cli.app.find_spec", lambda _: object())
    monkeypatch.chdir(files)
    before = sorted(os.listdir())
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == "" or line.startswith("emotions fit")
    assert sorted(os.listdir()) == before
