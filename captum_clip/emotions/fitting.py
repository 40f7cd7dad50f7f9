"""Multinomial logistic regression on votes, by scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

_Array = npt.NDArray[np.float64]
_STEPS = 20_000
_TOLERANCE = 1e-9  # of the largest partial derivative of the mean loss


def fit_weights(rows: _Array, votes: npt.NDArray[Any], *, strength: float) -> tuple[_Array, _Array]:
    r"""Weights W (C, D) and biases b (C,) that predict votes v (N, C) from rows x (N, D).

    .. math:: \min_{W, b} \; -\frac{1}{V} \sum_{n, c} v_{nc} \log p_{nc}
        + \frac{\lambda}{2} |W|^2, \quad p_n = \text{softmax}(W x_n + b), \; V = \sum_{n, c} v_{nc}

    A row of W sums with the others to zero, as the gradient does. A class without any vote gets
    the limit of the minimum: a row of zeros and the bias minus infinity.

    Args:
        rows: finite.
        votes: not negative.
        strength: lambda, above 0.

    Raises:
        InputError: scikit-learn is not installed, votes for fewer than three classes, or no
            minimum was found.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise InputError(
            "fit_probe: fitting needs scikit-learn, which is not installed; "
            "pip install scikit-learn."
        ) from error
    voted = np.flatnonzero(votes.sum(0))
    if len(voted) < 3:
        raise InputError(
            f"fit_probe: expected votes for three classes or more in the training split, got "
            f"{len(voted)}; give more paintings."
        )
    # The bias is not penalised, so centred rows have the same minimum, found in fewer steps.
    centre = rows.mean(0)
    painting, emotion = np.nonzero(votes)
    model = LogisticRegression(
        C=1 / (strength * votes.sum()), solver="lbfgs", tol=_TOLERANCE, max_iter=_STEPS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit((rows - centre)[painting], emotion, sample_weight=votes[painting, emotion])
        except ConvergenceWarning as error:
            raise InputError(
                f"fit_probe: no minimum was found in {_STEPS} steps; give a larger strength than "
                f"{strength}."
            ) from error
    weights = np.zeros((votes.shape[1], rows.shape[1]))
    bias = np.full(votes.shape[1], -np.inf)
    weights[voted] = model.coef_
    bias[voted] = model.intercept_ - model.coef_ @ centre
    return weights, bias
