"""Mamooler's studies as configs."""

from __future__ import annotations

from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.studies import Subject, presets
from captum_clip.studies.presets import (
    corner_bias_study,
    emotions_study,
    statistics_study,
    subjects,
)


def test_corner_bias_has_the_reports_texts_and_methods(vit: str, resnet: str) -> None:
    """Three methods for a ViT, Grad-CAM for a ResNet; both texts can be set."""
    config = corner_bias_study("images", "out", models=[vit, resnet])
    assert config.texts == ("this person is happy", "this person is sad")
    assert config.subjects == (
        Subject(vit, "all-grad"),
        Subject(vit, "attention-grad-cam"),
        Subject(vit, "last-grad"),
        Subject(resnet, "grad-cam"),
    )
    assert corner_bias_study("images", "out", texts=["a"], models=[vit]).texts == ("a",)


def test_emotions_are_studied_with_a_vit_beside_a_resnet() -> None:
    """Plain and centred, each model with its own file."""
    config = emotions_study("images", "out", emotions=["a.json", "b.json"], seed=3)
    assert config.subjects == (
        Subject("ViT-B/32", None, "a.json"),
        Subject("RN101", None, "b.json"),
    )
    assert config.centred
    assert config.seed == 3


@pytest.mark.parametrize("settings", [{"texts": ["a"]}, {"centred": False}])
def test_a_study_of_emotions_refuses_what_it_decides(settings: dict[str, Any]) -> None:
    """Its targets are the emotions, plain and centred; other ones are never ignored in silence."""
    with pytest.raises(TypeError, match=f"multiple values for .*'{next(iter(settings))}'"):
        emotions_study("images", "out", emotions=["a.json", "b.json"], **settings)


def test_statistics_take_any_texts_and_settings() -> None:
    config = statistics_study("images", "out", texts=["a", "b"], batch_size=4)
    assert (config.texts, config.batch_size) == (("a", "b"), 4)
    assert config.subjects == (Subject("ViT-B/32"),)


def test_without_methods_no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "load_clip", lambda *_, **__: pytest.fail("was loaded"))
    assert subjects(["a", "b"]) == (Subject("a"), Subject("b"))


def test_files_of_emotions_go_with_the_models() -> None:
    with pytest.raises(InputError, match=r"each of the 2 models \(a, b\), .* got 1"):
        subjects(["a", "b"], emotions=["a.json"])
    with pytest.raises(InputError, match="needs a file of emotions"):
        emotions_study("images", "out", emotions=[])


def test_a_model_that_no_method_fits_is_said(vit: str) -> None:
    with pytest.raises(InputError, match=r"none of the methods grad-cam fits .* tower is a vit"):
        subjects([vit], ["grad-cam"])
