"""Linear probes from image features to the emotions of ArtEmis, and targets made of them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .. import checks
from ..demo import PROBES
from ..demo.catalog import CLASSES, EMOTIONS
from ..errors import InputError, public
from ..files import DAMAGED, replace_file

_PROBE_FORMAT: Final = "captum_clip.EmotionProbe/3"
Floats = npt.NDArray[np.float64]
Votes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Shares of paintings whose single most voted class was predicted; 0 paintings give zeros.

    A painting whose most votes are shared by two classes has no such class, and counts as wrong
    whatever is predicted; so does a tie of the prediction.

    Attributes:
        paintings: their number.
        nine: the share for the nine classes.
        eight: the share for the eight emotions, "something else" left out of votes and predictions.
        majority_nine: the share for always answering the class with most votes in the training
            split, the first of them in a tie.
        majority_eight: the same for the emotion with most votes there.
    """

    paintings: int
    nine: float
    eight: float
    majority_nine: float
    majority_eight: float


@dataclass(frozen=True)
class ProbeScores:
    """The scores of a probe on paintings that it was not fitted on.

    Attributes:
        all: over all paintings.
        agreed: over those where a single emotion of the eight has more than half of all votes.
        tied: the number of paintings without a single most voted class, all of them wrong.
        confusion: counts (9, 9), row = most voted class, column = predicted class; paintings with a
            tie on either side are left out.
    """

    all: Accuracy
    agreed: Accuracy
    tied: int
    confusion: list[list[int]]


def _score(predicted: Floats, votes: Votes, training_votes: Votes) -> ProbeScores:
    """Compare logits (N, 9) with votes (N, 9); training_votes (9,) decide the majority."""
    hits = []
    baseline_hits = []
    for count in (len(CLASSES), len(EMOTIONS)):
        truth = _single_argmax(votes[:, :count])
        guess = _single_argmax(predicted[:, :count])
        hits.append((truth >= 0) & (guess == truth))
        baseline_hits.append(truth == int(training_votes[:count].argmax()))

    def accuracy(chosen: npt.NDArray[np.bool_]) -> Accuracy:
        shares = []
        for is_hit in hits + baseline_hits:
            shares.append(float(is_hit[chosen].mean()) if chosen.any() else 0.0)
        # The order is that of the fields: nine and eight classes, then their baselines.
        return Accuracy(int(chosen.sum()), *shares)

    all_paintings = np.ones(len(votes), dtype=bool)
    has_majority = 2 * votes[:, : len(EMOTIONS)].max(1) > votes.sum(1)
    truth = _single_argmax(votes)
    guess = _single_argmax(predicted)
    is_clear = (truth >= 0) & (guess >= 0)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    np.add.at(confusion, (truth[is_clear], guess[is_clear]), 1)
    return ProbeScores(
        all=accuracy(all_paintings),
        agreed=accuracy(has_majority),
        tied=int((truth < 0).sum()),
        confusion=confusion.tolist(),
    )


def _single_argmax(values: npt.NDArray[Any]) -> Votes:
    """Argmax of each row, or -1 where several values are largest."""
    largest = values == values.max(1, keepdims=True)
    return np.where(largest.sum(1) == 1, largest.argmax(1), -1).astype(np.int64)


@dataclass(frozen=True)
class FitSettings:
    """The arguments of ``bench.emotions.fit_probe``; paintings and votes per class of its split."""

    seed: int
    held_out: float
    strength: float
    paintings: int
    votes: list[int]


@dataclass(frozen=True, eq=False, repr=False)
class EmotionProbe:
    r"""A linear model from image features x to emotions: :math:`p = \text{softmax}(W \hat x + b)`.

    The weights of an emotion are its encoding: the direction that
    :func:`captum_clip.targets.emotion` explains.

    Attributes:
        weights: W (9, D).
        bias: b (9,); minus infinity for a class that had no vote.
        model: the name of the CLIP whose features it was fitted on; "" if that is unknown.
        identity: the ``clip.identity()`` of that CLIP; empty if that is unknown.
        scores: on held-out paintings; None if there are none.
        settings: those of the fit; None for weights that were not fitted here.

    Raises:
        InputError: the shapes do not belong together, or the weights are not finite.
    """

    classes: ClassVar = CLASSES
    emotions: ClassVar = EMOTIONS
    weights: Floats
    bias: Floats
    model: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    scores: ProbeScores | None = None
    settings: FitSettings | None = None

    @public("EmotionProbe")
    def __post_init__(self) -> None:
        shape = self.weights.shape
        is_matrix = len(shape) == 2 and shape[0] == len(CLASSES) and shape[1] > 0
        fits = is_matrix and self.bias.shape == (len(CLASSES),)
        expected = f"weights (9, D) and bias (9,) for {', '.join(CLASSES)}"
        checks.expect(fits, expected, (shape, self.bias.shape))
        if not np.isfinite(self.weights).all() or not (self.bias < np.inf).all():
            raise InputError("the weights or the bias hold NaN or infinity.")

    def __repr__(self) -> str:
        return f"EmotionProbe(D={self.weights.shape[1]}, model={self.model!r})"

    @public("EmotionProbe.predict")
    def predict(self, features: Any) -> Floats:
        """Probabilities (N, 9) for image features (N, D) of any length.

        Raises:
            InputError: another shape, not finite, or a row of zeros.
        """
        from scipy.special import softmax

        return np.asarray(softmax(self._logits(features), axis=1))

    @public("EmotionProbe.score")
    def score(self, features: Any, votes: Any) -> ProbeScores:
        """Compare predictions with the votes (N, 9) of other paintings.

        Raises:
            InputError: invalid features or votes, or a probe that was not fitted here, since it has
                no training votes for the majority baseline.
        """
        if self.settings is None:
            raise InputError("only a fitted probe can be scored.")
        logits = self._logits(features)
        counts = check_votes(votes, len(logits))
        return _score(logits, counts, np.array(self.settings.votes))

    def _logits(self, features: Any) -> Floats:
        unit = unit_features(features)
        width = self.weights.shape[1]
        other = "they come from another model"
        checks.expect(unit.shape[1] == width, f"features of {width} numbers", unit.shape[1], other)
        return np.asarray(unit @ self.weights.T + self.bias)

    @public("EmotionProbe.save")
    def save(self, path: str | Path) -> Path:
        """Write ``x.safetensors``: weights and bias, and the rest as JSON in its header.

        The file appears only when it is complete; an existing one is replaced.

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = checks.check_destination(path, (".safetensors",))
        facts = asdict(self)
        arrays = {name: np.ascontiguousarray(facts.pop(name)) for name in ("weights", "bias")}
        # The header has a single key, since safetensors writes several in any order, and the file
        # of a probe is to have the same bytes each time.
        header = {_PROBE_FORMAT: json.dumps({"classes": CLASSES, **facts}, allow_nan=False)}
        contents = save(arrays, header)
        replace_file(path, lambda file: file.write(contents))
        return path

    @classmethod
    @public("EmotionProbe.load")
    def load(cls, path: str | Path) -> "EmotionProbe":
        """Read a probe.

        Args:
            path: a file that :meth:`save` wrote; or the name of an embedded model, such as
                "demo/vit", whose probe comes with the package.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        path = PROBES.get(str(path)) or checks.find_file(path)
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()[_PROBE_FORMAT])
                arrays = {name: file.get_tensor(name) for name in ("weights", "bias")}
            scores = facts["scores"]
            if scores is not None:
                splits = {split: Accuracy(**scores[split]) for split in ("all", "agreed")}
                scores = ProbeScores(**{**scores, **splits})
            settings = facts["settings"]
            if settings is not None:
                settings = FitSettings(**settings)
            return cls(
                **arrays,
                model=facts["model"],
                identity=dict(facts["identity"]),
                scores=scores,
                settings=settings,
            )
        except (*DAMAGED, SafetensorError) as error:
            raise InputError(
                f"{path} is not an emotion probe ({error!r}); expected a file written by "
                "EmotionProbe.save or 'captum-clip emotions fit'."
            ) from error


def unit_features(features: Any) -> Floats:
    """Normalize features (N, D) in double precision; InputError for other shapes or values."""
    with checks.expecting("features of shape (N, D)", features):
        rows = np.asarray(features, dtype=np.float64)
    checks.expect(rows.ndim == 2 and 0 not in rows.shape, "features of shape (N, D)", rows)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        raise InputError(f"row {usable.argmin()} of the features is zero or not finite.")
    return np.asarray(rows / norms)


def check_votes(votes: Any, count: int) -> Votes:
    """The votes as whole numbers (N, 9), at least one vote in each row."""
    shape = (count, len(CLASSES))
    with checks.expecting(f"votes {shape}", votes):
        counts = np.asarray(votes)
    checks.expect(counts.shape == shape, f"votes {shape}, a row for each of the features", counts)
    whole = counts.astype(np.int64)
    are_counts = (whole == counts) & (whole >= 0)
    is_usable = are_counts.all(1) & whole.any(1)
    row = is_usable.argmin()  # the first that is not, if there is any
    expected = f"counts of votes, one or more in row {row}"
    checks.expect(is_usable.all(), expected, counts[row].tolist())
    return whole
