"""Targets of emotions: rows of a probe that belongs to the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import explain, targets
from captum_clip.demo.catalog import CLASSES, EMOTIONS
from captum_clip.errors import TargetError
from captum_clip.targets import EmotionProbe
from tests.attr import cases

SIZE = 24  # of the small models' embeddings
ROWS = np.random.default_rng(0).normal(size=(9, SIZE)) + 0.5


@pytest.fixture
def clip():
    """An adapter of a small model."""
    return cases.adapter("hf_vit")


def unit(rows):
    """Rows of length 1, single precision."""
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


def test_rows_are_the_weights_of_the_eight_emotions(clip):
    """In the order of the data set, with their lengths kept beside."""
    target = targets.emotion(clip, EmotionProbe(ROWS, np.zeros(9)))
    torch.testing.assert_close(target.embeddings, unit(ROWS[:8]))
    norms = torch.from_numpy(np.linalg.norm(ROWS[:8], axis=1)).float()
    torch.testing.assert_close(target.norms, norms)
    assert target.names == EMOTIONS


def test_names_choose_rows(clip):
    """In the order of the names; one may be a string; the ninth only on request."""
    probe = EmotionProbe(ROWS, np.zeros(9))
    target = targets.emotion(clip, probe, ["something else", "awe"])
    torch.testing.assert_close(target.embeddings, unit(ROWS[[8, 1]]))
    assert target.names == ("something else", "awe")
    assert targets.emotion(clip, probe, "fear").names == ("fear",)


@pytest.mark.parametrize("names", [None, ["awe", "something else"]])
def test_center_subtracts_the_mean_of_all_nine_rows(clip, names):
    """Whichever rows are chosen."""
    target = targets.emotion(clip, EmotionProbe(ROWS, np.zeros(9)), names, center=True)
    chosen = [CLASSES.index(name) for name in names or EMOTIONS]
    torch.testing.assert_close(target.embeddings, unit((ROWS - ROWS.mean(0))[chosen]))


def test_probe_of_another_model_is_refused(clip):
    """By its identity, also where the sizes are the same."""
    own = EmotionProbe(ROWS, np.zeros(9), "small", clip.identity())
    assert len(targets.emotion(clip, own)) == 8
    other = EmotionProbe(ROWS, np.zeros(9), "ViT-B/32", {"weights": "0" * 64})
    with pytest.raises(TargetError, match=r"features of ViT-B/32 with other weights than"):
        targets.emotion(clip, other)


def test_probe_of_other_preprocessing_is_refused_and_of_another_tokenizer_not(clip):
    """Since it reads images alone."""
    built = cases.BUILDERS["hf_vit"]()
    tokenless, other = built.load(tokenizer=None), built.load(processor=None)
    assert tokenless.identity()["text_embeddings"] != clip.identity()["text_embeddings"]
    probe = EmotionProbe(ROWS, np.zeros(9), "small", clip.identity())
    assert len(targets.emotion(tokenless, probe)) == 8
    with pytest.raises(TargetError, match="features of small with other image embeddings than"):
        targets.emotion(other, probe)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("joy", "expected names among amusement, .*, got \\['joy'\\]"),
        (["awe", "Fear"], r"got \['Fear'\]"),
        ([], r"got \[\]"),
    ],
)
def test_unknown_names_are_refused(clip, names, message):
    """With those that there are."""
    with pytest.raises(TargetError, match=message):
        targets.emotion(clip, EmotionProbe(ROWS, np.zeros(9)), names)


def test_what_is_no_probe_is_refused(clip):
    """The type is named, and what reads a file."""
    others: list[Any] = [ROWS, "demo/vit"]
    for other in others:
        message = r"expected an EmotionProbe, got (ndarray|'demo/vit').*; EmotionProbe.load\(file\)"
        with pytest.raises(TargetError, match=message):
            targets.emotion(clip, other)


def test_emotions_can_be_explained(clip):
    """In `explain`, beside texts."""
    probe = EmotionProbe(ROWS, np.zeros(9))
    target = targets.concatenate([targets.text(clip, "a horse"), targets.emotion(clip, probe)])
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    found = explain(image, target, model=clip)
    assert found.names == ("a horse", *EMOTIONS)
    wanted = explain(image, targets.emotion(clip, probe, "awe"), model=clip)
    torch.testing.assert_close(found.maps["positive"][:, 2:3], wanted.maps["positive"])


def test_centered_rows_do_not_see_a_shift(clip):
    """As the softmax; the plain rows do."""
    shift = np.random.default_rng(1).normal(size=SIZE)
    one, other = EmotionProbe(ROWS, np.zeros(9)), EmotionProbe(ROWS + shift, np.zeros(9))
    np.testing.assert_allclose(one.predict(ROWS), other.predict(ROWS))
    plain = [targets.emotion(clip, probe).embeddings for probe in (one, other)]
    centered = [targets.emotion(clip, probe, center=True).embeddings for probe in (one, other)]
    assert not torch.allclose(plain[0], plain[1], atol=0.1)
    torch.testing.assert_close(*centered)


def test_any_probe_with_the_parts_of_one_is_taken(clip):
    """Whoever made it."""
    given = {"weights": ROWS[:2], "classes": ("calm", "other"), "emotions": ("calm",)}
    target = targets.emotion(clip, SimpleNamespace(**given, model="", identity={}))
    torch.testing.assert_close(target.embeddings, unit(ROWS[:1]))
    assert target.names == ("calm",)


def test_probe_of_another_size_is_refused(clip):
    """Where no identity says of which model it is."""
    with pytest.raises(TargetError, match=r"a probe of 24 dimensions, as .* has, got 512"):
        targets.emotion(clip, EmotionProbe(np.ones((9, 512)), np.zeros(9)))


def test_a_row_of_zeros_has_no_direction(clip):
    """A class without votes cannot be explained."""
    rows = ROWS.copy()
    rows[6] = 0
    with pytest.raises(TargetError, match="'fear' has no direction"):
        targets.emotion(clip, EmotionProbe(rows, np.zeros(9)))
