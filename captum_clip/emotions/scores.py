"""How well a probe predicts what most annotators felt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .artemis import CLASSES, EMOTIONS

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Accuracy:
    """Shares of paintings whose single most voted class was predicted; 0 paintings give zeros.

    A painting whose most votes are shared by two classes has no single one, and counts as wrong
    whatever is predicted; so does a tie of the prediction.

    Attributes:
        paintings: how many.
        nine: argmax over the nine classes, against the most voted of the nine.
        eight: argmax over the eight emotions, against the most voted of the eight, "something
            else" left out on both sides.
        majority_nine: what always answering the class with most votes in the training split gives
            (of classes with equally many, the first of :data:`CLASSES`).
        majority_eight: the same with the emotion with most votes there.
    """

    paintings: int
    nine: float
    eight: float
    majority_nine: float
    majority_eight: float


@dataclass(frozen=True)
class ProbeScores:
    """A probe on paintings that it was not fitted on.

    Attributes:
        all: over all paintings.
        agreed: over those where one of the eight emotions has more than half of all votes.
        tied: paintings without a single most voted of the nine classes, all of them wrong.
        confusion: counts (9, 9), row = most voted class, column = predicted class, in the order of
            :data:`CLASSES`; paintings with a tie on either side are left out.
    """

    all: Accuracy
    agreed: Accuracy
    tied: int
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ProbeScores:
        """What :meth:`to_dict` gave."""
        confusion = tuple(map(tuple, facts["confusion"]))
        return cls(Accuracy(**facts["all"]), Accuracy(**facts["agreed"]), facts["tied"], confusion)


def score_predictions(predicted: _Array, votes: _Array, training_votes: _Array) -> ProbeScores:
    """Compare predictions (N, 9) with votes (N, 9).

    Args:
        predicted: any numbers that grow with the probability of a class.
        votes: counts.
        training_votes: votes (9,) of the training split, for the majority baseline.

    Example:
        >>> import numpy as np
        >>> votes = np.eye(9, dtype=int)[[0, 0, 3]] * 5
        >>> scores = score_predictions(np.eye(9)[[0, 1, 3]], votes, votes.sum(0))
        >>> round(scores.all.nine, 2), round(scores.all.majority_nine, 2)
        (0.67, 0.67)
    """
    agreed = 2 * votes[:, : len(EMOTIONS)].max(1) > votes.sum(1)
    hits, baselines = [], []
    for count in (len(CLASSES), len(EMOTIONS)):
        truth = single_argmax(votes[:, :count])
        guess = single_argmax(predicted[:, :count])
        hits.append((truth >= 0) & (guess == truth))
        baselines.append(truth == int(training_votes[:count].argmax()))

    def over(chosen: _Array) -> Accuracy:
        shares = [float(hit[chosen].mean()) if chosen.any() else 0.0 for hit in hits + baselines]
        return Accuracy(int(chosen.sum()), *shares)

    truth, guess = single_argmax(votes), single_argmax(predicted)
    clear = (truth >= 0) & (guess >= 0)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    np.add.at(confusion, (truth[clear], guess[clear]), 1)
    return ProbeScores(
        all=over(np.ones(len(votes), dtype=bool)),
        agreed=over(agreed),
        tied=int((truth < 0).sum()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def single_argmax(values: _Array) -> npt.NDArray[np.int64]:
    """For each row the place of its largest value, or -1 where several are largest.

    Example:
        >>> import numpy as np
        >>> single_argmax(np.array([[1, 3, 2], [2, 2, 0]]))
        array([ 1, -1])
    """
    largest = values == values.max(1, keepdims=True)
    return np.where(largest.sum(1) == 1, largest.argmax(1), -1).astype(np.int64)
