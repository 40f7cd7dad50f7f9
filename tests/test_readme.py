"""README, as somebody follows it with a photo and models of her own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip import load_clip
from captum_clip.cli import main
from tests import builders, samples
from tests.experiments import experiment
from tests.models.checkpoints import save_open_clip, save_transformers
from tests.test_docs import ROOT, blocks_of, commands_of

README = ROOT / "README.md"


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder with a grey photo; what README names -> what stands for it, saved random models."""
    monkeypatch.chdir(tmp_path)
    samples.picture(1, height=9, width=16).resize((640, 360)).convert("L").save("photo.jpg")
    save_transformers(builders.hf_vit(), tmp_path / "vit")
    built = builders.open_clip_resnet(1)
    save_open_clip(built, tmp_path / "resnet", builders.RESNET_CONFIG)
    resnet = repr(f"local-dir:{tmp_path / 'resnet'}")
    return {
        '"openai/clip-vit-base-patch32"': repr(str(tmp_path / "vit")),
        '"RN50-quickgelu", pretrained="openai"': resnet,
        '"RN50-quickgelu"': resnet,
    }


def coloured(path: str) -> float:
    """The share of a picture of a grey photo that has a colour: the map, and a small legend."""
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
        assert coloured(name) > 0.02


def test_first_command_draws_the_same_scores(
    followed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """On the model of the first example, in place of the one that the hub has."""
    command = next(words for words in commands_of(README) if words[0] == "explain")
    main([*command, "--model", "vit"])
    printed = capsys.readouterr().out
    assert coloured("photo-explained-a-horse_a-dog.png") > 0.02
    clip = load_clip("vit")
    image, texts = clip.encode_image(clip.preprocess("photo.jpg")), clip.encode_text(command[2:])
    for text, score in zip(command[2:], (image @ texts.T)[0].tolist(), strict=True):
        assert re.search(rf"{score:.3f}  {text}", printed)


def test_pictures_are_what_the_commands_below_them_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, run here; each has two columns, so that two of them fit side by side."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    steps = {step.name: step for step in experiment("measured").STEPS}
    pictures = re.findall(r"docs/images/(\w+)\.jpg", text)
    assert len(pictures) == text.count("docs/images/") == 2
    for step in map(steps.__getitem__, pictures):
        assert f"{step.commands}\n" in text
        assert main(shlex.split(step.commands)[1:]) == 0
        drawn = Image.open(step.image).convert("RGB")
        drawn.thumbnail((step.side, step.side), Image.Resampling.LANCZOS)
        shown = np.asarray(Image.open(ROOT / "docs" / "images" / f"{step.name}.jpg"), dtype=float)
        np.testing.assert_array_equal(shown.shape, np.asarray(drawn).shape)
        assert np.abs(shown - np.asarray(drawn)).mean() < 3  # what JPEG takes away
