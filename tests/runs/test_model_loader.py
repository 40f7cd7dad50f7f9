"""Models by name, in several processes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captum_clip import load_clip
from captum_clip.errors import InputError
from captum_clip.evaluation import EvaluationConfig
from captum_clip.runs import ModelLoader, full_name, label_of
from captum_clip.studies import StudyConfig, Subject, run_study
from tests.studies import folders


@pytest.fixture
def bare(tmp_path: Path, vit: str) -> str:
    """The model of `vit`, saved without its processor and its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(Path(vit, name).read_bytes())
    return str(folder)


def test_a_loader_takes_its_processor_and_tokenizer_to_other_processes(vit: str, bare: str) -> None:
    """And not the model that it has loaded."""
    loader = ModelLoader(vit, vit)
    clip, fingerprint = loader.load(bare, "cpu")
    assert fingerprint == load_clip(vit).fingerprint
    assert loader.load(bare, "cpu")[0] is clip
    sent = pickle.dumps(loader)
    assert len(sent) < 1000
    other, again = pickle.loads(sent).load(bare, "cpu")
    assert again == fingerprint
    assert other.encode_text(["a horse"]).shape == (1, 24)


def test_names_of_folders_are_known_from_anywhere(
    tmp_path: Path, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_name("bare") == full_name("./bare/") == bare
    assert label_of("./bare/") == label_of("bare") == "bare"
    assert full_name("demo/vit") == label_of("demo/vit") == "demo/vit"
    assert full_name("org/name") == label_of("org/name") == "org/name"


def test_a_study_of_a_bare_checkpoint_is_that_of_the_whole_one(
    tmp_path: Path, vit: str, bare: str
) -> None:
    images = folders.make_images(tmp_path / "images", 2)
    parts: dict[str, Any] = {"processor": vit, "tokenizer": vit}
    whole = StudyConfig(str(images), str(tmp_path / "whole"), (Subject(vit),), ("a",), workers=0)
    lent = replace(whole, output=str(tmp_path / "lent"), subjects=(Subject(bare),), **parts)
    assert "processor" not in whole.identity()
    assert lent.identity()["tokenizer"] == "small-vit"
    for config in (whole, lent):
        run_study(config)
    rows = [(tmp_path / n / "statistics.csv").read_text() for n in ("whole", "lent")]
    assert rows[0].replace("small-vit", "bare") == rows[1]


def test_a_processor_goes_by_name() -> None:
    with pytest.raises(InputError, match="StudyConfig: expected processor by name or folder"):
        StudyConfig("a", "b", (Subject("m"),), ("a",), processor=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate: expected tokenizer by name or folder"):
        EvaluationConfig("m", "out", tokenizer="")
    assert EvaluationConfig("m", "out", tokenizer="t").identity()["tokenizer"] == "t"
