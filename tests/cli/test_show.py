"""``captum-clip models`` and ``demo`` as a user types them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip.attr.registry import methods_for
from captum_clip.cli import main, show_commands
from captum_clip.demo.catalog import NOUNS, THINGS, WORDS
from captum_clip.demo.scenes import draw_scene
from captum_clip.models import available
from tests.cli.conftest import Run


def test_models_lists_every_name_with_its_checkpoint(run: Run) -> None:
    lines = run("models").splitlines()
    for known in available():
        [line] = [line for line in lines if line.split()[:1] == [known.name]]
        assert known.checkpoint in line
        assert all(alias in line for alias in known.aliases)


def test_models_lists_every_word_of_the_vocabulary(run: Run) -> None:
    printed = run("models --vocabulary")
    assert set(WORDS) <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_demo_draws_its_figures_into_a_folder_and_names_them(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"demo/vit": ("last-grad", "direct"), "demo/resnet": ("grad-cam",)}
    monkeypatch.setattr(show_commands, "_SCENES", show_commands._SCENES[:1])
    monkeypatch.setattr(show_commands, "_SHOWN_METHODS", columns)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["demo", "-o", "new"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 5
    for name in os.listdir("new"):
        assert f"new/{name}\n" in out
        with Image.open(Path("new", name)) as figure:
            figure.verify()
    assert "loading demo/resnet" in err  # while it is
    assert "Warning" not in err
    assert "oading weights" not in err
    [hint] = re.findall(r"next: captum-clip (.*)", out)
    assert shlex.split(hint) == ["explain", "new/scene.jpg", "a horse", "-m", "demo/vit"]
    Path("new/scene.jpg").write_text("the user's own")
    monkeypatch.setattr(show_commands, "_draw_figures", lambda *_: pytest.fail("drawn again"))
    assert main(["demo", "-o", "new", "--scenes", "2"]) == 0
    assert Path("new/scene.jpg").read_text() == "the user's own"
    out = capsys.readouterr().out
    assert "new/scene.jpg\n" not in out
    assert "new/scenes\n" in out
    scenes = [draw_scene(seed, split="test").image for seed in range(2)]
    for name, scene in zip(("000.jpg", "001.jpg"), scenes, strict=True):
        with Image.open(Path("new/scenes", name)) as image:
            assert abs(np.asarray(image).astype(float) - scene).mean() < 8
    assert sorted(os.listdir("new/scenes")) == ["000.jpg", "001.jpg"]


def test_demo_shows_scenes_of_known_things_with_every_kind_of_tower() -> None:
    known = {*NOUNS, *(thing.name for thing in THINGS)}
    assert {name for _, objects in show_commands._SCENES for name in objects} <= known
    shown = [method for methods in show_commands._SHOWN_METHODS.values() for method in methods]
    assert len(shown) == 5  # and the image, so that each is large enough in a README
    assert {*shown} <= {*methods_for("vit"), *methods_for("resnet")}
    assert show_commands._example(0)[1] == ["a horse", "a dog"]
