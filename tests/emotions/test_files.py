"""Probes on disk: whole, and belonging together."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

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
    """A small file as Mamooler published theirs."""
    rows = np.random.default_rng(1).normal(size=(9, 6))
    content = {**dict(zip(reversed(CLASSES), rows.tolist(), strict=True)), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path, rows[::-1]


def earlier(probe, path):
    """The two files that earlier versions wrote: numbers, and facts that name them by hash."""
    contents = save({"weights": probe.weights, "bias": probe.bias})
    facts: dict[str, Any] = {
        "format": "captum_clip.EmotionProbe/1",
        "sha256": hashlib.sha256(contents).hexdigest(),
    }
    for part in ("classes", "model", "fingerprint"):
        facts[part] = getattr(probe, part)
    for part in ("scores", "settings"):
        facts[part] = None if getattr(probe, part) is None else asdict(getattr(probe, part))
    path.write_bytes(contents)
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1))


def same(first, second):
    """Two probes, to the bit."""
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)
    for part in ("model", "fingerprint", "scores", "settings", "classes"):
        assert getattr(first, part) == getattr(second, part)
    return True


@pytest.mark.parametrize("name", ["x.safetensors", "X.SAFETENSORS"])
def test_a_probe_comes_back_as_it_was(probe, tmp_path, name):
    """From one file, whatever the case of its ending."""
    assert probe.save(tmp_path / name) == tmp_path / name
    assert os.listdir(tmp_path) == [name]
    assert same(EmotionProbe.load(str(tmp_path / name)), probe)


@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_a_probe_of_an_earlier_version_is_read(probe, tmp_path, name):
    """By the name of either file."""
    earlier(probe, tmp_path / "x.safetensors")
    assert same(EmotionProbe.load(tmp_path / name), probe)


def test_the_same_probe_gives_the_same_bytes(probe, tmp_path):
    """In every process."""
    saved = probe.save(tmp_path / "x.safetensors").read_bytes()
    code = (
        "import sys; from captum_clip.emotions import EmotionProbe; "
        "EmotionProbe.load(sys.argv[1]).save(sys.argv[2])"
    )
    paths = [str(tmp_path / name) for name in ("x.safetensors", "y.safetensors")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=120)
    assert (tmp_path / "y.safetensors").read_bytes() == saved


def test_the_file_is_plain(probe, tmp_path):
    """Anything else can read it."""
    probe.save(tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"weights", "bias"}
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["captum_clip.EmotionProbe/2"])
    assert facts["classes"] == list(CLASSES)
    assert facts["scores"]["all"]["paintings"] == 8


def test_encodings_without_a_fit_come_back(tmp_path):
    """No scores, no settings."""
    path, rows = published(tmp_path / "p.json")
    EmotionProbe.read_encodings(path).save(tmp_path / "q.safetensors")
    found = EmotionProbe.load(tmp_path / "q.safetensors")
    np.testing.assert_array_equal(found.weights, rows)
    assert (found.scores, found.settings) == (None, None)


@pytest.mark.parametrize("name", ["p.json", "P.JSON"])
@pytest.mark.parametrize("read", [EmotionProbe.read_encodings, EmotionProbe.load])
def test_published_encodings_are_rows_in_the_order_of_the_classes(tmp_path, read, name):
    """Whichever order the file has; without a bias, of an unknown model."""
    path, rows = published(tmp_path / name)
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
        ("x.json", b"{", "is not a JSON file"),
        ("x.json", b"\xff\xfe", "is not a JSON file"),
        ("x.json", b"[" * 100_000, "is not a JSON file"),
        ("x.json", b"[1]", "expected JSON with the nine names"),
        ("x.safetensors", b"no", "is not a safetensors file"),
    ],
)
def test_damaged_files_are_refused(probe, tmp_path, name, content, message):
    """Each named."""
    earlier(probe, tmp_path / "x.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        EmotionProbe.load(tmp_path / name)


def test_a_bit_that_is_another_is_noticed(probe, tmp_path):
    """Which would else give other maps without a word."""
    path = probe.save(tmp_path / "x.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors was damaged"):
        EmotionProbe.load(path)


def test_files_of_two_probes_are_refused(probe, tmp_path):
    """Weights beside the description of others, as in earlier versions."""
    earlier(probe, tmp_path / "x.safetensors")
    earlier(EmotionProbe(probe.weights + 1, probe.bias), tmp_path / "y.safetensors")
    os.replace(tmp_path / "y.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"is not the file that x\.json beside it describes"):
        EmotionProbe.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"settings": 3}, {"scores": {"all": {}}}, {"settings": {"seed": 1}}, {"model": None}],
)
def test_a_description_that_is_not_whole_is_refused(probe, tmp_path, change):
    """A part that is missing or something else."""
    earlier(probe, tmp_path / "x.safetensors")
    facts = {**json.loads((tmp_path / "x.json").read_text()), **change}
    facts = {name: fact for name, fact in facts.items() if name != "model" or fact}
    (tmp_path / "x.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="is not a complete probe"):
        EmotionProbe.load(tmp_path / "x.json")
    arrays = {"weights": probe.weights, "bias": probe.bias}
    files.write_probe(tmp_path / "y.safetensors", arrays, facts)
    with pytest.raises(InputError, match="is not a complete probe"):
        EmotionProbe.load(tmp_path / "y.safetensors")


def test_safetensors_of_something_else_are_refused(tmp_path):
    """Other arrays under our format, and arrays without one."""
    files.write_probe(tmp_path / "x.safetensors", {"other": np.eye(2)}, {})
    with pytest.raises(InputError, match="is not a complete probe"):
        EmotionProbe.load(tmp_path / "x.safetensors")
    save_file({"weights": np.eye(9)}, tmp_path / "y.safetensors")
    for text in (None, "{}"):
        if text is not None:
            (tmp_path / "y.json").write_text(text)
        with pytest.raises(InputError, match=r"y\.safetensors does not describe an emotion probe"):
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
