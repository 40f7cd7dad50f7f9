"""Eight emotions, plain and centered, in a ViT and a ResNet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from captum_clip.bench.run import StudyConfig
from captum_clip.bench.study import emotions_study, run_study
from captum_clip.demo.catalog import EMOTIONS
from captum_clip.errors import InputError
from tests import folders

SETTINGS: dict[str, Any] = {"batch_size": 4, "chunk_size": 4, "workers": 0}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models with embeddings of 24 numbers; their rows do not sum to zero."""
    return folders.make_emotions(tmp_path_factory.mktemp("emotions") / "emotions.safetensors")


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, images: Path, vit: str, resnet: str, encodings: Path
) -> Path:
    output = tmp_path_factory.mktemp("study") / "out"
    files = [encodings, encodings]
    given = {"models": [vit, resnet], "emotions": files, "methods": "mamooler"}
    run_study(emotions_study(images, output, **given, **SETTINGS))
    return output


def test_there_is_a_row_for_each_emotion_plain_and_centered(study: Path) -> None:
    names = [*EMOTIONS, *(f"{name} (centered)" for name in EMOTIONS)]
    rows = rows_of(study / "statistics.csv")
    assert [row["target"] for row in rows] == 2 * names
    assert {row["model"] for row in rows} == {"small-vit", "small-resnet"}


def test_texts_and_emotions_go_together(
    tmp_path: Path, images: Path, vit: str, encodings: Path
) -> None:
    config = StudyConfig(
        images, tmp_path / "out", models=[vit], texts=["a dog"], emotions=[encodings], **SETTINGS
    )
    run_study(config)
    rows = rows_of(tmp_path / "out" / "statistics.csv")
    assert [row["target"] for row in rows] == ["a dog", *EMOTIONS]


def test_other_emotions_in_the_same_folder_are_refused(
    tmp_path: Path, images: Path, vit: str
) -> None:
    """By their content: the file may move, but not change."""
    output = tmp_path / "out"
    first = folders.make_emotions(tmp_path / "first.safetensors")
    run_study(StudyConfig(images, output, models=[vit], emotions=[first], **SETTINGS))
    moved = first.rename(tmp_path / "moved.safetensors")
    run_study(StudyConfig(images, output, models=[vit], emotions=[moved], **SETTINGS))
    other = folders.make_emotions(tmp_path / "other.safetensors", offset=2.0)
    with pytest.raises(InputError, match=r"jobs\.0\.emotions was"):
        run_study(StudyConfig(images, output, models=[vit], emotions=[other], **SETTINGS))
