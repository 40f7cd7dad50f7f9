"""EmotionProbe: one direction per emotion, fitted to votes or read from a file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..checks import check_integer, check_interval, check_positive, expand
from ..errors import InputError
from .artemis import CLASSES
from .files import JSON, WEIGHTS, is_description, read_json, read_probe, read_rows, write_probe
from .scores import ProbeScores, score_predictions

STRENGTH: Final = 1e-3
_STEPS: Final = 20_000
_TOLERANCE: Final = 1e-9  # of the largest partial derivative of the mean loss
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FitSettings:
    """How a probe was fitted.

    Attributes:
        seed: of the split.
        held_out: share of the paintings that were kept for the scores.
        strength: of the penalty, lambda in :func:`fit_probe`.
        paintings: of the training split.
        votes: of the training split, one count per class.
    """

    seed: int
    held_out: float
    strength: float
    paintings: int
    votes: tuple[int, ...]

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> FitSettings:
        """What :func:`dataclasses.asdict` gave, after JSON."""
        return cls(**{**facts, "votes": tuple(facts["votes"])})


@dataclass(frozen=True, eq=False, repr=False)
class EmotionProbe:
    r"""A linear model from image features x to emotions: :math:`p = \text{softmax}(W \hat x + b)`.

    The weights of an emotion are its encoding: the direction that
    :func:`captum_clip.targets.emotion` explains.

    Attributes:
        weights: W (9, D).
        bias: b (9,); minus infinity for a class that had no vote.
        model: the name of the CLIP whose features it was fitted on; "" where that is not known.
        fingerprint: of that CLIP; "" where it is not known.
        scores: on held-out paintings, None without any.
        settings: of the fit, None for encodings that were read from elsewhere.
        classes: names of the rows.

    Raises:
        InputError: the shapes do not belong together, or weights that are not finite.
    """

    weights: _Array
    bias: _Array
    model: str = ""
    fingerprint: str = ""
    scores: ProbeScores | None = None
    settings: FitSettings | None = None
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        count, shape = len(CLASSES), self.weights.shape
        fits = len(shape) == 2 and shape[0] == count and shape[1] > 0
        if not (fits and self.bias.shape == (count,) and self.classes == CLASSES):
            raise InputError(
                f"EmotionProbe: expected weights (9, D) and bias (9,) for {', '.join(CLASSES)}; "
                f"got {self.weights.shape}, {self.bias.shape} and {', '.join(self.classes)}."
            )
        if not np.isfinite(self.weights).all() or not (self.bias < np.inf).all():
            raise InputError("EmotionProbe: the weights or the bias hold NaN or infinity.")

    @classmethod
    def fit(cls, features: Any, votes: Any, **options: Any) -> EmotionProbe:
        """The same as :func:`fit_probe`."""
        return fit_probe(features, votes, **options)

    def predict(self, features: Any) -> _Array:
        """Probabilities (N, 9) for image features (N, D) of any length.

        Raises:
            InputError: another shape, not finite, or a row of zeros.
        """
        logits = self._logits("EmotionProbe.predict", features)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def score(self, features: Any, votes: Any) -> ProbeScores:
        """Compare with the votes (N, 9) of other paintings.

        Raises:
            InputError: features or votes that are none, or a probe that was read from elsewhere:
                it has no training votes for the majority baseline.
        """
        if self.settings is None:
            raise InputError(
                "EmotionProbe.score: these encodings were read from elsewhere, without a bias and "
                "training votes; only a fitted probe can be scored."
            )
        logits = self._logits("EmotionProbe.score", features)
        counts = _checked_votes("EmotionProbe.score", votes, len(logits))
        return score_predictions(logits, counts, np.array(self.settings.votes))

    def _logits(self, caller: str, features: Any) -> _Array:
        rows = _unit_rows(caller, features)
        if rows.shape[1] != self.weights.shape[1]:
            raise InputError(
                f"{caller}: the probe takes features of {self.weights.shape[1]} numbers, got "
                f"{rows.shape[1]}; they come from another model."
            )
        return np.asarray(rows @ self.weights.T + self.bias)

    def save(self, path: str | Path) -> Path:
        """Write ``x.safetensors``: weights and bias, and in its header all the rest.

        The file appears only when it is complete; an existing one is replaced.

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = expand(path)
        facts = {
            "classes": self.classes,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "scores": None if self.scores is None else asdict(self.scores),
            "settings": None if self.settings is None else asdict(self.settings),
        }
        write_probe(path, {"weights": self.weights, "bias": self.bias}, facts)
        return path

    @classmethod
    def load(cls, path: str | Path) -> EmotionProbe:
        """Read what :meth:`save` wrote, in this version or an earlier one, or published encodings.

        Raises:
            InputError: no such file, something else, or two files that do not belong together.
        """
        path = expand(path)
        if path.suffix.lower() not in (WEIGHTS, JSON):
            raise InputError(
                f"EmotionProbe.load: expected a file .safetensors or .json, got {path}."
            )
        if path.suffix.lower() == JSON and not is_description(content := read_json(path)):
            return cls(read_rows(path, content), np.zeros(len(CLASSES)))
        arrays, facts = read_probe(path)
        scores, settings = facts.get("scores"), facts.get("settings")
        try:
            return cls(
                weights=arrays["weights"],
                bias=arrays["bias"],
                model=str(facts["model"]),
                fingerprint=str(facts["fingerprint"]),
                scores=None if scores is None else ProbeScores.from_dict(scores),
                settings=None if settings is None else FitSettings.from_dict(settings),
                classes=tuple(facts["classes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"EmotionProbe.load: {path} is not a complete probe ({error})."
            ) from error

    @classmethod
    def read_encodings(cls, path: str | Path) -> EmotionProbe:
        """Read encodings as Mamooler published them.

        Args:
            path: JSON, the nine names -> D numbers each. They are weights without a bias, and
                nothing in the file says of which model.

        Raises:
            InputError: no such file, or something else.

        Source: CLIP Explainability (Mamooler, EPFL).
        """
        path = expand(path)
        return cls(read_rows(path, read_json(path)), np.zeros(len(CLASSES)))

    def __repr__(self) -> str:
        return f"EmotionProbe(D={self.weights.shape[1]}, model={self.model!r})"


def fit_probe(
    features: Any,
    votes: Any,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    model: str = "",
    fingerprint: str = "",
) -> EmotionProbe:
    r"""Multinomial logistic regression from image features to the distribution of votes.

    Each pair of a painting n and a class c that it has votes for is one row, weighted by its votes
    :math:`v_{nc}`; over the training split, with :math:`\hat x` the L2-normalised features,

    .. math:: \min_{W, b} \; -\frac{1}{V} \sum_{n, c} v_{nc} \log \text{softmax}(W \hat x_n + b)_c
        + \frac{\lambda}{2} |W|^2, \quad V = \sum_{n, c} v_{nc}

    The penalty makes the nine rows of W sum to zero, so that ``centre=True`` changes nothing in a
    target of a fitted probe; it does for encodings that were fitted without one.

    Args:
        features: image features (N, D), array or tensor, of any length.
        votes: counts (N, 9), columns as :data:`captum_clip.emotions.CLASSES`.
        seed: of the split by painting.
        held_out: share of the paintings that is kept for ``.scores``; 0 keeps none.
        strength: lambda; per vote, so it means the same for few and for many.
        model: the name of the CLIP that the features are of.
        fingerprint: of that CLIP, ``clip.fingerprint``; a target for another one is then refused.

    Raises:
        InputError: features or votes that are none, too few of them, an option out of range, or
            scikit-learn is not installed (``pip install scikit-learn``).

    Source: CLIP Explainability (Mamooler, EPFL), emotions; Achlioptas et al. 2021
    (arXiv:2101.07396).

    Example:
        >>> import numpy as np
        >>> features, votes = np.eye(9).repeat(4, 0), 5 * np.eye(9, dtype=int).repeat(4, 0)
        >>> probe = fit_probe(features, votes, held_out=0)
        >>> probe.weights.shape, probe.predict(features).argmax(1)[::4].tolist()
        ((9, 9), [0, 1, 2, 3, 4, 5, 6, 7, 8])
    """
    rows = _unit_rows("fit_probe", features)
    counts = _checked_votes("fit_probe", votes, len(rows))
    check_options(seed=seed, held_out=held_out, strength=strength)
    order = np.random.default_rng(seed).permutation(len(rows))
    tested = round(held_out * len(rows))
    test, train = order[:tested], np.sort(order[tested:])
    weights, bias = fit_weights(rows[train], counts[train], strength=strength)
    totals = tuple(int(count) for count in counts[train].sum(0))
    settings = FitSettings(seed, held_out, strength, len(train), totals)
    probe = EmotionProbe(weights, bias, model, fingerprint, None, settings)
    return replace(probe, scores=probe.score(rows[test], counts[test])) if tested else probe


def fit_weights(rows: _Array, votes: npt.NDArray[Any], *, strength: float) -> tuple[_Array, _Array]:
    """The minimum of `fit_probe`: W (C, D) and b (C,) that predict votes (N, C) from rows (N, D).

    The rows of W sum to zero, as the gradient does. A class without any vote gets the limit of the
    minimum: a row of zeros and the bias minus infinity.
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


def check_options(*, seed: int, held_out: float, strength: float) -> None:
    """See before any work is done whether :func:`fit_probe` takes these options."""
    check_integer("fit_probe", "a seed", seed, least=0)
    check_interval("fit_probe", "held_out", held_out, "[0, 1)")
    check_positive("fit_probe", "a strength", strength)


def _unit_rows(caller: str, features: Any) -> _Array:
    """Features as unit rows (N, D), in double precision."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"{caller}: expected features of shape (N, D), got {rows.shape}.")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        row = int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])
        raise InputError(f"{caller}: row {row} of the features is zero or not finite.")
    return np.asarray(rows / norms)


def _checked_votes(caller: str, votes: Any, count: int) -> npt.NDArray[np.int64]:
    """Votes as whole numbers (N, 9), at least one per row."""
    counts = np.asarray(votes)
    if counts.shape != (count, len(CLASSES)):
        raise InputError(
            f"{caller}: expected votes of shape ({count}, {len(CLASSES)}), a row for each row of "
            f"the features, got {counts.shape}."
        )
    whole = counts.astype(np.int64)
    if (whole != counts).any() or (whole < 0).any():
        raise InputError(f"{caller}: expected votes as counts, got numbers that are none.")
    empty = np.flatnonzero(whole.sum(1) == 0)
    if len(empty):
        raise InputError(f"{caller}: row {empty[0]} has no vote; leave it out.")
    return whole
