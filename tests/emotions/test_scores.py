"""Scores by hand, and against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip.demo.catalog import CLASSES
from captum_clip.targets.probe import _score


def votes_of(**counts):
    """One row of votes; `else_` for something else."""
    return [counts.get(name, counts.get("else_", 0) if " " in name else 0) for name in CLASSES]


VOTES = np.array(
    [
        votes_of(awe=3, fear=2),  # awe, agreed
        votes_of(awe=2, fear=2),  # a tie
        votes_of(else_=4, anger=1),  # something else of nine, anger of eight; not agreed
        votes_of(anger=3, fear=3, else_=4),  # something else of nine, a tie of eight
        votes_of(fear=2, awe=1, sadness=1),  # fear, not over half
    ]
)
TRAINING = np.array(votes_of(awe=10, fear=9, else_=11))


def certain(*names):
    """Certain predictions."""
    return np.eye(9)[[CLASSES.index(name) for name in names]]


def test_scores_by_hand():
    """Over nine and over eight, all and agreed, each beside its majority."""
    found = _score(
        certain("awe", "awe", "something else", "something else", "fear"), VOTES, TRAINING
    )
    assert found.all.paintings == 5
    assert found.all.nine == pytest.approx(4 / 5)
    assert found.all.eight == pytest.approx(2 / 5)  # a prediction of nothing in rows 2 and 3
    assert found.all.majority_nine == pytest.approx(2 / 5)  # something else
    assert found.all.majority_eight == pytest.approx(1 / 5)  # awe
    assert (found.agreed.paintings, found.agreed.nine, found.agreed.eight) == (1, 1.0, 1.0)
    assert (found.agreed.majority_nine, found.agreed.majority_eight) == (0.0, 1.0)
    assert found.tied == 1
    assert np.sum(found.confusion) == 4
    assert found.confusion[CLASSES.index("fear")][CLASSES.index("fear")] == 1


def test_argmax_over_eight_leaves_something_else_out_on_both_sides():
    """The best of the eight emotions, however likely the ninth class is."""
    predicted = certain("something else") + 0.5 * certain("anger")
    found = _score(predicted, VOTES[[2]], TRAINING)
    assert (found.all.nine, found.all.eight) == (1.0, 1.0)


def test_ties_are_wrong_on_either_side():
    """A painting with a tie, and a prediction that cannot decide."""
    found = _score(certain("fear"), VOTES[[1]], TRAINING)
    assert (found.all.nine, found.all.eight, found.tied) == (0.0, 0.0, 1)
    found = _score(np.ones((1, 9)), VOTES[[0]], TRAINING)
    assert (found.all.nine, found.all.eight, found.tied) == (0.0, 0.0, 0)
    assert np.sum(found.confusion) == 0


def test_of_equal_training_votes_the_first_class_is_the_majority():
    """So that the baseline is one answer."""
    found = _score(certain("fear"), VOTES[[0]], np.ones(9, dtype=int))
    assert found.all.majority_nine == 0.0
    found = _score(certain("fear"), np.array([votes_of(amusement=2)]), np.ones(9, dtype=int))
    assert found.all.majority_nine == 1.0


def test_scores_equal_a_plain_loop():
    """Random votes and predictions, counted one by one."""
    generator = np.random.default_rng(0)
    favorites = generator.integers(0, 20, (200, 1)) * np.eye(9, dtype=int)[np.arange(200) % 9]
    votes = generator.integers(0, 3, (200, 9)) + favorites
    predicted = generator.integers(0, 5, (200, 9)).astype(float)
    found = _score(predicted, votes, TRAINING)
    right, agreed, confusion = [], [], np.zeros((9, 9), dtype=int)
    for cast, guess in zip(votes.tolist(), predicted.tolist(), strict=True):
        truth = [c for c in range(9) if cast[c] == max(cast)]
        answer = [c for c in range(9) if guess[c] == max(guess)]
        right.append(len(truth) == len(answer) == 1 and truth == answer)
        agreed.append(any(2 * count > sum(cast) for count in cast[:8]))
        if len(truth) == len(answer) == 1:
            confusion[truth[0], answer[0]] += 1
    assert found.all.nine == pytest.approx(np.mean(right))
    assert found.agreed.paintings == sum(agreed) > 20
    assert found.agreed.nine == pytest.approx(np.mean(np.array(right)[agreed]))
    assert np.array_equal(found.confusion, confusion)
