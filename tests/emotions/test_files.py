"""Probes on disk: whole, and belonging together."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from captum_clip.emotions import CLASSES, EmotionProbe, files, fit_probe
from captum_clip.errors import InputError


@pytest.fixture(scope="module")
def probe():
    """A fitted one with all that can be kept."""
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 5, (40, 9))
    votes[:, 4] = 0  # a bias of minus infinity
    return fit_probe(generator.normal(size=(40, 6)), votes, model="ViT", fingerprint="f1")


def published(path, **changes):
    """A small file as the report's authors published theirs."""
    rows = np.random.default_rng(1).normal(size=(9, 6))
    content = {**dict(zip(reversed(CLASSES), rows.tolist(), strict=True)), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path, rows[::-1]


@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_a_probe_comes_back_as_it_was(probe, tmp_path, name):
    """To the bit, by the name of either file."""
    assert probe.save(tmp_path / "x.safetensors") == tmp_path / "x.safetensors"
    assert sorted(os.listdir(tmp_path)) == ["x.json", "x.safetensors"]
    found = EmotionProbe.load(str(tmp_path / name))
    np.testing.assert_array_equal(found.weights, probe.weights)
    np.testing.assert_array_equal(found.bias, probe.bias)
    for part in ("model", "fingerprint", "scores", "settings", "classes"):
        assert getattr(found, part) == getattr(probe, part)


def test_the_files_are_plain(probe, tmp_path):
    """Anything else can read them."""
    probe.save(tmp_path / "x.safetensors")
    arrays = load_file(tmp_path / "x.safetensors")
    assert set(arrays) == {"weights", "bias"}
    said = json.loads((tmp_path / "x.json").read_text())
    assert said["classes"] == list(CLASSES)
    assert said["scores"]["all"]["paintings"] == 8


def test_encodings_without_a_fit_come_back(tmp_path):
    """No scores, no settings."""
    path, rows = published(tmp_path / "p.json")
    EmotionProbe.read_encodings(path).save(tmp_path / "q.safetensors")
    found = EmotionProbe.load(tmp_path / "q.safetensors")
    np.testing.assert_array_equal(found.weights, rows)
    assert (found.scores, found.settings) == (None, None)


@pytest.mark.parametrize("read", [EmotionProbe.read_encodings, EmotionProbe.load])
def test_published_encodings_are_rows_in_the_order_of_the_classes(tmp_path, read):
    """Whichever order the file has; without a bias, of an unknown model."""
    path, rows = published(tmp_path / "p.json")
    found = read(path)
    np.testing.assert_array_equal(found.weights, rows)
    assert (found.bias == 0).all()
    assert (found.model, found.fingerprint, found.classes) == ("", "", CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"awe": None}, "expected JSON with the nine names"),
        ({"joy": [1.0] * 6}, "expected JSON with the nine names"),
        ({"awe": [1.0] * 5}, "expected equally many numbers"),
        ({"awe": "text"}, "expected equally many numbers"),
        ({"awe": [1.0] * 5 + [float("nan")]}, "a list of finite numbers"),
        (dict.fromkeys(CLASSES, 1.0), r"an array of shape \(9,\)"),
        ({name: [] for name in CLASSES}, r"an array of shape \(9, 0\)"),
    ],
)
def test_other_json_is_refused(tmp_path, changes, message):
    """With what was expected."""
    path, _ = published(tmp_path / "p.json", **changes)
    with pytest.raises(InputError, match=message):
        EmotionProbe.load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"{", "is no JSON file"),
        ("x.json", b"\xff\xfe", "is no JSON file"),
        ("x.json", b"[" * 100_000, "is no JSON file"),
        ("x.json", b"[1]", "expected JSON with the nine names"),
        ("x.safetensors", b"no", "was replaced or damaged"),
    ],
)
def test_damaged_files_are_refused(probe, tmp_path, name, content, message):
    """Each named."""
    probe.save(tmp_path / "x.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        EmotionProbe.load(tmp_path / name)


def test_files_of_two_probes_are_refused(probe, tmp_path):
    """Weights beside the description of others."""
    probe.save(tmp_path / "x.safetensors")
    EmotionProbe(probe.weights + 1, probe.bias).save(tmp_path / "y.safetensors")
    os.replace(tmp_path / "y.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"is not the file that x\.json beside it describes"):
        EmotionProbe.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"settings": 3}, {"scores": {"all": {}}}, {"settings": {"seed": 1}}, {"model": None}],
)
def test_a_description_that_is_not_whole_is_refused(probe, tmp_path, change):
    """A part that is missing or something else."""
    probe.save(tmp_path / "x.safetensors")
    said = {**json.loads((tmp_path / "x.json").read_text()), **change}
    (tmp_path / "x.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    with pytest.raises(InputError, match="is no whole probe"):
        EmotionProbe.load(tmp_path / "x.json")


def test_safetensors_of_something_else_are_refused(tmp_path):
    """Other arrays, or none, under a true hash."""
    files.write_pair(tmp_path / "x.safetensors", {"other": np.eye(2)}, {})
    with pytest.raises(InputError, match="is no whole probe"):
        EmotionProbe.load(tmp_path / "x.json")
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes())
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(InputError, match=r"y\.json does not describe an emotion probe"):
        EmotionProbe.load(tmp_path / "y.safetensors")


def test_what_is_not_there_is_refused(tmp_path):
    """Either file, or another ending."""
    with pytest.raises(InputError, match=r"there is no file .*none\.safetensors"):
        EmotionProbe.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"expected a file \.safetensors or \.json, got"):
        EmotionProbe.load(tmp_path / "probe.pkl")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        EmotionProbe.load(tmp_path / "folder.json")


def test_only_safetensors_are_written(probe, tmp_path):
    """Another ending, or a folder that is not there."""
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        probe.save(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"cannot write .*No such file"):
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
