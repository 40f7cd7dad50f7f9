"""README, as somebody follows it with a photo and models of her own."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import load_clip
from captum_clip.cli import main
from captum_clip.demo.scenes import draw_scene
from tests import builders, samples
from tests.experiments import experiment
from tests.models.checkpoints import save_open_clip, save_transformers
from tests.test_docs import ROOT, blocks_of

README = ROOT / "README.md"
ENVIRONMENT = ".venv/bin/activate"
OFFLINE = 1
"""Which block of commands needs no network."""


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder of gray pictures; what README names -> what stands for it, saved random models."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "scene.jpg"):
        samples.picture(1, height=9, width=16).resize((640, 360)).convert("L").save(name)
    save_transformers(builders.hf_vit(), tmp_path / "vit")
    built = builders.open_clip_resnet(1)
    save_open_clip(built, tmp_path / "resnet", builders.RESNET_CONFIG)
    resnet = repr(f"local-dir:{tmp_path / 'resnet'}")
    return {
        '"demo/vit"': repr(str(tmp_path / "vit")),
        'name, pretrained="openai"': "name",
        '"RN50-quickgelu"': resnet,
    }


def colored(path: str) -> float:
    """The share of a picture of a gray photo that has a color: the map, and a small legend."""
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert min(picture.shape[:2]) > 200
    return float((np.ptp(picture, axis=2) > 30).mean())


def test_first_examples_draw_maps_on_a_photo(followed: dict[str, str]) -> None:
    """Word for word, but for the names of the checkpoints."""
    blocks = [block.code for block in blocks_of(README)][:2]
    namespace: dict[str, Any] = {}
    for code in blocks:
        for name, model in followed.items():
            code = code.replace(name, model)
        exec(code, namespace)
    written = re.findall(r'\.save\("(\S+)"\)', "".join(blocks))
    assert written == ["horse.png", "resnet.png"]
    for name in written:
        assert colored(name) > 0.02


def test_own_captum_code_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the seven lines of the first guide, which give the map of the same text."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_scene(0, objects=["horse", "dog"]).image).save("scene.jpg")
    captum = [block.code for block in blocks_of(README)][2]
    blocks = [block.code for block in blocks_of(ROOT / "docs" / "start.md")]
    (seven,) = (code for code in blocks if "visualization.overlay" in code)
    pasted: dict[str, Any] = {"scene": SimpleNamespace(image="scene.jpg")}
    exec(captum, pasted)
    *_, after = re.findall(r"^\w+.*\.attribute\(.*\)", captum, re.MULTILINE)
    own = eval(after, pasted)
    exec(seven, pasted)
    torch.testing.assert_close(own, pasted["raw"][:, :1])


def lines_of(number: int) -> list[list[str]]:
    """The arguments of each captum-clip of a block of commands, whose other lines are known."""
    block = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[number]
    lines = [shlex.split(line) for line in block.splitlines() if not line.startswith("# ")]
    assert [words for words in lines if words[0] != "captum-clip"] in ([], [[".", ENVIRONMENT]])
    return [words[1:] for words in lines if words[0] == "captum-clip"]


def test_what_is_pasted_offline_draws_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo, the line that it prints last, and then the block in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    assert re.search(r"<!-- ci: demo -->\n```bash\n.*captum-clip demo\n```", text)
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {*printed[:-1]} == {path.name for path in tmp_path.iterdir()}
    hint = shlex.split(printed[-1].rpartition("next: ")[2])
    for command in (hint[1:], *lines_of(OFFLINE)):
        assert command[command.index("-m") + 1] == "demo/vit"
        assert main(command) == 0
        figure = dict(pairwise(command)).get("-o", "scene-explained-a-horse.png")
        assert Path(figure).stat().st_size > 10_000
    steps = {step.name: step for step in experiment("measured").STEPS}
    pictures = re.findall(r"docs/images/(\w+)\.jpg", text)
    assert pictures == ["methods", "readme", "html", "against", "app"]
    for name in pictures[1:4]:  # whose commands stand in the block, word for word
        line = steps[name].commands.splitlines()[1]
        assert shlex.split(line)[1:] in lines_of(OFFLINE)
        assert f"\n{line}\n" in text
    step = steps["readme"]
    drawn = Image.open(step.image).convert("RGB")
    drawn.thumbnail((step.side, step.side), Image.Resampling.LANCZOS)
    shown = np.asarray(Image.open(ROOT / "docs" / "images" / "readme.jpg"), dtype=float)
    np.testing.assert_array_equal(shown.shape, np.asarray(drawn).shape)
    assert np.abs(shown - np.asarray(drawn)).mean() < 3  # what JPEG takes away


def test_the_same_on_the_hubs_model(
    followed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line from above without its model; here another stands for the one that the hub has."""
    command = [word for word in lines_of(OFFLINE)[0] if word not in ("-m", "demo/vit")]
    assert main([word.replace("scene.", "photo.") for word in command] + ["--model", "vit"]) == 0
    printed = capsys.readouterr().out
    assert colored("horse.png") > 0.02
    clip = load_clip("vit")
    texts = ["a horse", "a dog"]
    image, embedded = clip.encode_image(clip.preprocess("photo.jpg")), clip.encode_text(texts)
    for text, score in zip(texts, (image @ embedded.T)[0].tolist(), strict=True):
        assert re.search(rf"{score:.3f}  {text}", printed)


def test_badges_say_what_the_package_says_and_need_no_network() -> None:
    text = README.read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    badges = re.findall(r"\[!\[(\w+): ([^]]+)\]\(docs/images/(badge_\w+\.svg)\)\]", text)
    said = {}
    for topic, words, name in badges:
        drawn = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        label = ElementTree.fromstring(drawn).attrib["aria-label"]
        assert label.startswith(f"{topic.lower()}: ")
        assert re.findall(r"<text[^>]*>([^<]*)", drawn) == label.split(": ")
        assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
        said[topic] = (words, label.split(": ")[1])
    license, python = (
        re.findall(rf'^{key} = "(.*)"', project, re.MULTILINE)[0]
        for key in ("license", "requires-python")
    )
    oldest = python.removeprefix(">=")
    assert said["License"] == (license, license)
    assert said["Python"] == (f"{oldest} or later", f"{oldest}+")
    assert re.findall(r"!\[[^]]*\]\(http|src=.http", text) == []  # nor do its other pictures


def test_is_read_in_five_minutes() -> None:
    """At most 700 words, those of code too; a word has a letter or a digit."""
    words = README.read_text(encoding="utf-8").split()
    assert sum(bool(re.search(r"\w", word)) for word in words) <= 700
