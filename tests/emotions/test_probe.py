"""The fit against its own definition."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from captum_clip.bench.emotions import _minimum, fit_probe
from captum_clip.demo.catalog import CLASSES
from captum_clip.errors import InputError
from captum_clip.targets import EmotionProbe
from captum_clip.targets.probe import FitSettings


def problem(count=60, size=5, seed=0):
    """Features and votes that depend on them a little."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, size)) + 1
    chances = np.exp(features @ generator.normal(size=(size, 9)))
    votes = np.stack([generator.multinomial(6, p / p.sum()) for p in chances])
    return features, votes


def softmax(logits):
    """Rows of probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_gradient_vanishes_at_the_solution():
    """Of the mean cross-entropy by votes and the penalty, written plainly."""
    features, votes = problem()
    strength = 0.003
    probe = fit_probe(features, votes, held_out=0, strength=strength)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    error = softmax(rows @ probe.weights.T + probe.bias) * votes.sum(1, keepdims=True) - votes
    gradient = error.T @ rows / votes.sum() + strength * probe.weights
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    np.testing.assert_allclose(error.sum(0) / votes.sum(), 0, atol=1e-7)


def test_votes_are_repetitions_of_rows():
    """A row with v votes for a class is v rows with one."""
    features, votes = problem(count=20)
    probe = fit_probe(features, votes, held_out=0)
    painting, emotion = np.nonzero(votes)
    times = votes[painting, emotion]
    repeated = fit_probe(
        features[np.repeat(painting, times)], np.eye(9)[np.repeat(emotion, times)], held_out=0
    )
    np.testing.assert_allclose(probe.weights, repeated.weights, atol=1e-5)
    np.testing.assert_allclose(probe.bias, repeated.bias, atol=1e-5)


def test_length_of_features_means_nothing():
    """Rows are normalized, in the fit and in what uses it."""
    features, votes = problem()
    lengths = np.random.default_rng(1).uniform(0.1, 9, (len(features), 1))
    one, other = fit_probe(features, votes), fit_probe(features * lengths, votes)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    np.testing.assert_allclose(one.predict(features), one.predict(features * lengths))


def test_split_is_by_painting_and_seeded():
    """The same seed holds the same paintings out, another one others."""
    features, votes = problem()
    first, again, other = (fit_probe(features, votes, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.scores == again.scores
    assert np.abs(first.weights - other.weights).max() > 1e-3
    assert first.settings is not None
    assert first.scores is not None
    assert (first.settings.paintings, first.scores.all.paintings) == (48, 12)
    assert sum(first.settings.votes) == 6 * 48


def test_held_out_paintings_have_no_part_in_the_fit():
    """Other votes for them give the same weights; the scores are on them alone."""
    features, votes = problem()
    test = np.random.default_rng(0).permutation(60)[:12]
    changed = votes.copy()
    changed[test] = np.roll(votes[test], 1, axis=1)
    one, other = fit_probe(features, votes), fit_probe(features, changed)
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.scores == one.score(features[test], votes[test])
    assert other.scores == one.score(features[test], changed[test])


def test_a_class_without_votes_is_never_predicted():
    """Its probability is zero, its row too; the others are fitted as if it were not there."""
    features, votes = problem()
    votes[:, CLASSES.index("fear")] = 0
    votes[:, 0] += 1
    probe = fit_probe(features, votes, held_out=0)
    assert (probe.predict(features)[:, 6] == 0).all()
    assert (probe.weights[6] == 0).all()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    others = np.delete(np.arange(9), 6)
    moved = votes[:, [*others, 6]]  # the class without votes last
    weights, bias = _minimum(unit, moved, 1e-3)
    weights, bias = weights[:8], bias[:8]
    np.testing.assert_array_equal(np.delete(probe.weights, 6, axis=0), weights)
    np.testing.assert_array_equal(np.delete(probe.bias, 6), bias)


FEATURES, VOTES = problem(count=12)


@pytest.mark.parametrize(
    ("features", "votes", "options", "message"),
    [
        (FEATURES[0], VOTES, {}, r"features of shape \(N, D\), got ndarray \(5,\)"),
        (np.zeros((0, 5)), np.zeros((0, 9)), {}, r"got ndarray \(0, 5\)"),
        (FEATURES * 0, VOTES, {}, "row 0 of the features is zero or not finite"),
        (FEATURES, VOTES[:5], {}, r"votes \(12, 9\)"),
        (FEATURES, VOTES - 6, {}, "expected counts of votes"),
        (FEATURES, VOTES + 0.5, {}, "expected counts of votes"),
        (FEATURES, VOTES * 0, {}, "one or more in row 0, got .0, 0,"),
        (FEATURES, VOTES, {"held_out": 1}, r"`held_out` in \[0, 1\), got 1"),
        (FEATURES, VOTES, {"strength": 0}, r"a strength in \(0, inf\), got 0"),
        (FEATURES, VOTES, {"seed": -1}, "a seed of 0 or more, got -1"),
        (FEATURES, np.eye(9)[[0, 1] * 6], {}, "votes for three classes or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, votes, options, message):
    """Each with its reason."""
    with pytest.raises(InputError, match=message):
        fit_probe(features, votes, **options)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    """What to install."""
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"pip install scikit-learn"):
        fit_probe(FEATURES, VOTES)


def test_features_of_another_model_are_refused():
    """By their size, which is all that an array tells."""
    probe = fit_probe(FEATURES, VOTES)
    with pytest.raises(InputError, match="features of 5 numbers, got 4"):
        probe.predict(FEATURES[:, :4])
    with pytest.raises(InputError, match="features of 5 numbers, got 4"):
        probe.score(FEATURES[:, :4], VOTES)


@pytest.mark.parametrize(
    ("weights", "bias", "message"),
    [
        (np.eye(8), np.zeros(8), r"expected weights \(9, D\)"),
        (np.zeros((9, 0)), np.zeros(9), r"got \(\(9, 0\)"),
        (np.eye(9), np.zeros(8), r"bias \(9,\)"),
        (np.eye(9) * np.nan, np.zeros(9), "NaN or infinity"),
        (np.eye(9), np.full(9, np.inf), "NaN or infinity"),
    ],
)
def test_parts_that_do_not_fit_are_refused(weights, bias, message):
    """A probe that exists is whole."""
    with pytest.raises(InputError, match=message):
        EmotionProbe(weights, bias)


def test_strength_means_the_same_for_few_and_many_votes():
    """Every vote three times changes nothing."""
    features, votes = problem(count=20)
    one, three = (fit_probe(features, k * votes, held_out=0) for k in (1, 3))
    np.testing.assert_allclose(one.weights, three.weights, atol=1e-5)


def test_rows_of_weights_sum_to_zero():
    """By the penalty; so centering a fitted probe changes nothing."""
    probe = fit_probe(*problem())
    np.testing.assert_allclose(probe.weights.sum(0), 0, atol=1e-9)


def test_known_answer():
    """Nine directions, one per class: the weights point along them, alike for all by symmetry."""
    features, votes = np.eye(9).repeat(3, 0), 4 * np.eye(9, dtype=int).repeat(3, 0)
    probe = fit_probe(features, votes, held_out=0)
    size = probe.weights[0, 0]
    np.testing.assert_allclose(probe.weights, size * (9 * np.eye(9) - 1) / 8, atol=1e-4)
    np.testing.assert_allclose(probe.bias, probe.bias.mean(), atol=1e-4)
    assert (probe.predict(features).argmax(1) == votes.argmax(1)).all()


def test_tensors_are_taken():
    """Features from a model, in single precision."""
    features, votes = problem()
    rows = features.astype(np.float32)
    probe = fit_probe(torch.from_numpy(rows), torch.from_numpy(votes))
    np.testing.assert_array_equal(probe.weights, fit_probe(rows, votes).weights)


def test_nothing_need_be_held_out():
    """Then there are no scores."""
    probe = fit_probe(*problem(), held_out=0)
    assert probe.scores is None
    assert probe.settings == FitSettings(0, 0, 1e-3, 60, problem()[1].sum(0).tolist())


def test_predictions_are_probabilities():
    """The softmax of the logits, also where these are huge."""
    probe = EmotionProbe(1e4 * np.random.default_rng(0).normal(size=(9, 4)), np.zeros(9))
    found = probe.predict(np.random.default_rng(1).normal(size=(7, 4)))
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found >= 0).all()


def test_model_and_identity_are_kept():
    """And its name is in what is printed."""
    probe = fit_probe(*problem(), model="ViT", identity={"weights": "abc"})
    assert (probe.model, probe.identity) == ("ViT", {"weights": "abc"})
    assert repr(probe) == "EmotionProbe(D=5, model='ViT')"


def test_users_arrays_stay_as_they_are():
    """Neither normalized nor reordered in place."""
    features, votes = problem()
    before = features.copy(), votes.copy()
    fit_probe(features, votes)
    np.testing.assert_array_equal(features, before[0])
    np.testing.assert_array_equal(votes, before[1])


def test_a_fit_that_does_not_converge_is_refused(monkeypatch):
    """No half-fitted probe."""
    monkeypatch.setattr("captum_clip.bench.emotions._STEPS", 1)
    with pytest.raises(InputError, match="no minimum found in 1 steps; give a larger strength"):
        fit_probe(FEATURES, VOTES)


def test_encodings_from_elsewhere_cannot_be_scored():
    """They have neither a bias nor a baseline."""
    with pytest.raises(InputError, match="only a fitted probe can be scored"):
        EmotionProbe(np.eye(9), np.zeros(9)).score(np.eye(9), VOTES)
