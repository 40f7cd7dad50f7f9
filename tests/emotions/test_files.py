"""Probes on disk: whole, and belonging together."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from captum_clip import load_clip, targets
from captum_clip.bench.emotions import fit_probe
from captum_clip.demo import MODELS
from captum_clip.demo.catalog import CLASSES, EMOTIONS
from captum_clip.errors import InputError
from captum_clip.models import differing_parts
from captum_clip.targets import EmotionProbe


@pytest.fixture(scope="module")
def probe():
    """A fitted one with all that can be kept."""
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 5, (40, 9))
    votes[:, 4] = 0  # a bias of minus infinity
    return fit_probe(generator.normal(size=(40, 6)), votes, model="ViT", identity={"weights": "w1"})


def same(first, second):
    """Two probes, to the bit."""
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)
    for part in ("model", "identity", "scores", "settings"):
        assert getattr(first, part) == getattr(second, part)
    return True


def test_a_probe_comes_back_as_it_was(probe, tmp_path):
    """From one file, whatever the case of its ending."""
    name = "X.SAFETENSORS"
    assert probe.save(tmp_path / name) == tmp_path / name
    assert os.listdir(tmp_path) == [name]
    assert same(EmotionProbe.load(str(tmp_path / name)), probe)


def test_the_file_is_plain(probe, tmp_path):
    """Anything else can read it."""
    probe.save(tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"weights", "bias"}
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["captum_clip.EmotionProbe/3"])
    assert facts["classes"] == list(CLASSES)
    assert facts["scores"]["all"]["paintings"] == 8


@pytest.mark.parametrize("name", MODELS)
def test_probe_of_an_embedded_model_comes_with_the_package(name):
    """Fitted on that model, so that it is a target of it, and better than guessing."""
    probe = EmotionProbe.load(name)
    clip = load_clip(name)
    assert probe.model == name
    assert not differing_parts(probe.identity, clip.identity())
    assert probe.scores is not None
    assert probe.scores.all.nine > 0.8
    assert targets.emotion(clip, probe).names == EMOTIONS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"[" * 100_000, "is not an emotion probe .* expected a file written by Emo"),
        ("x.safetensors", b"no", "is not an emotion probe"),
        ("photo.jpg", b"no", "is not an emotion probe .* expected a file written by Emo"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, message):
    """Each named."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        EmotionProbe.load(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": 3},
        {"scores": {"all": {}}},
        {"settings": {"seed": 1}},
        {"model": None},
        {"identity": 3},
    ],
)
def test_a_description_that_is_not_whole_is_refused(probe, tmp_path, change):
    """A part that is missing or something else."""
    with safe_open(probe.save(tmp_path / "x.safetensors"), framework="numpy") as file:
        [(key, text)] = file.metadata().items()
    facts = {name: fact for name, fact in {**json.loads(text), **change}.items() if fact}
    arrays = {"weights": probe.weights, "bias": probe.bias}
    save_file(arrays, tmp_path / "y.safetensors", {key: json.dumps(facts)})
    save_file(arrays, tmp_path / "z.safetensors")
    for name in ("y.safetensors", "z.safetensors"):
        with pytest.raises(InputError, match=f"{name} is not an emotion probe"):
            EmotionProbe.load(tmp_path / name)


def test_what_is_not_there_is_refused(tmp_path):
    """Or is a folder."""
    with pytest.raises(InputError, match=r"there is no file .*none\.safetensors"):
        EmotionProbe.load(tmp_path / "none.safetensors")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="there is no file"):
        EmotionProbe.load(tmp_path / "folder.json")


def test_only_safetensors_are_written(probe, tmp_path):
    """Another ending, or a folder that is not there."""
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        probe.save(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"cannot write .*there is no folder"):
        probe.save(tmp_path / "none" / "x.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_failure_half_way_leaves_the_old_files(probe, tmp_path, monkeypatch):
    """And nothing beside them."""
    probe.save(tmp_path / "x.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left on device"):
        EmotionProbe(probe.weights + 1, probe.bias).save(tmp_path / "x.safetensors")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
