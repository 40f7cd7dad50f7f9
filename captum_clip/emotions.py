"""Emotions: the ArtEmis data set, and linear probes from image features to its emotions.

Arrays of features come in, never a model. Fitting needs scikit-learn, the extra ``emotions``.
"""

import json
import os
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .checks import (
    check_destination,
    check_integer,
    check_interval,
    expect,
    expecting,
    find_file,
    find_folder,
)
from .demo import PROBES
from .demo.catalog import FEELINGS
from .errors import InputError, public
from .files import DAMAGED, read_csv, replace_file

EMOTIONS: Final = tuple(FEELINGS)
"""The eight emotions, positive ones first."""
SOMETHING_ELSE: Final = "something else"
CLASSES: Final = (*EMOTIONS, SOMETHING_ELSE)
"""The choices of an annotator: the columns of all votes."""
STRENGTH: Final = 1e-3
"""The default strength of the penalty in :func:`fit_probe`."""

_ANNOTATIONS: Final = "artemis_dataset_release_v0.csv"  # what the authors call the file
_COLUMNS: Final = ("art_style", "painting", "emotion", "utterance", "repetition")
_IMAGE_FOLDERS: Final = ("images", "wikiart")
_FORMAT: Final = "captum_clip.EmotionProbe/3"
_STEPS: Final = 20_000
_TOLERANCE: Final = 1e-9  # of the largest partial derivative of the mean loss
_Array = npt.NDArray[np.float64]
_Votes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Artemis:
    """The paintings that have an image and a vote, sorted by art style and name.

    Attributes:
        images: the N image files.
        votes: (N, 9), how many annotators chose each of :data:`CLASSES`.
        rows: all rows of the file below its header.
        left_out: what could not be used -> how often, such as "duplicate rows".
    """

    images: tuple[Path, ...]
    votes: _Votes
    rows: int
    left_out: Counter[str]

    def __str__(self) -> str:
        counts = (f"{what}: {count:,}" for what, count in sorted(self.left_out.items()) if count)
        left_out = ", ".join(counts) or "nothing"
        return f"{self.rows:,} rows read, {len(self.images):,} paintings kept; left out: {left_out}"


@public("find_artemis")
def find_artemis(folder: str | Path) -> tuple[Path, Path]:
    """Find the CSV file and the folder of images of a data set in one folder.

    The file is that of the official name, or else the only .csv; the folder is ``images``,
    ``wikiart`` or the one that was given.

    Raises:
        InputError: there is no folder, no such file, or several.
    """
    folder = find_folder(folder)
    images = next((folder / n for n in _IMAGE_FOLDERS if (folder / n).is_dir()), folder)
    files = sorted(folder.glob("*.csv"))
    if folder / _ANNOTATIONS in files:
        return folder / _ANNOTATIONS, images
    expected = f"{_ANNOTATIONS} or one other .csv in {folder}"
    expect(len(files) == 1, expected, [file.name for file in files], "name the file itself")
    return files[0], images


@public("read_artemis")
def read_artemis(path: str | Path, images: str | Path) -> Artemis:
    """Read the data set as its authors publish it: one row per utterance, one image per painting.

    Args:
        path: the CSV file, UTF-8, whose rows are votes, with a header that names art_style,
            painting, emotion, utterance and repetition, in any order and among others.
        images: the folder that holds ``art_style/painting.jpg`` (or .jpeg, .png).

    Returns:
        The images with their votes, and what was left out: paintings without an image, rows of
        unknown emotions, duplicate rows (each counts once) and bad rows (another number of cells
        than the header, no art style or painting, or names that would leave the folder).

    Raises:
        InputError: no such file or folder, a file that cannot be read or is no such CSV, or no
            usable painting.

    Source: Achlioptas et al. 2021, ArtEmis (arXiv:2101.07396).
    """
    path = find_file(path)
    images = find_folder(images, what="folder of images")
    first, *rows = map(tuple, read_csv(path) or [[]])
    header = [cell.strip() for cell in first]
    if lacking := [name for name in _COLUMNS if name not in header]:
        raise InputError(
            f"{path} {'has a wrong first line' if header else 'is empty'}; it lacks "
            f"{', '.join(lacking)}, expected the columns {', '.join(_COLUMNS)}, in any order."
        )
    style, painting, emotion = (header.index(name) for name in _COLUMNS[:3])
    votes: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(CLASSES))
    earlier: set[tuple[str, ...]] = set()
    left_out: Counter[str] = Counter()
    for row in rows:
        if len(row) != len(header) or not (_is_plain(row[style]) and _is_plain(row[painting])):
            left_out["bad rows"] += 1
        elif row in earlier:
            left_out["duplicate rows"] += 1
        elif row[emotion].strip() not in CLASSES:
            left_out["rows of unknown emotions"] += 1
        else:
            votes[row[style], row[painting]][CLASSES.index(row[emotion].strip())] += 1
        earlier.add(row)
    files = {names: _find_image(images, *names) for names in sorted(votes)}
    kept = {names: file for names, file in files.items() if file is not None}
    left_out["paintings without an image"] = len(files) - len(kept)
    counts = np.array([votes[names] for names in kept], dtype=np.int64)
    data = Artemis(tuple(kept.values()), counts, len(rows), left_out)
    if not kept:
        raise InputError(f"no painting of {path} has a vote and an image in {images} ({data}).")
    return data


def _is_plain(name: str) -> bool:
    """Whether a name is one part of a path, which cannot lead out of its folder."""
    return name.strip() not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _find_image(folder: Path, style: str, painting: str) -> Path | None:
    # file systems and CSV files encode letters with accents in one of two ways
    names = f"{style}/{painting}"
    forms = (names, normalize("NFC", names), normalize("NFD", names))
    paths = (folder / f"{form}{end}" for form in forms for end in (".jpg", ".jpeg", ".png"))
    # Path.is_file raises for names that are too long
    return next((path for path in paths if os.path.isfile(path)), None)


@dataclass(frozen=True)
class Accuracy:
    """Shares of paintings whose single most voted class was predicted; 0 paintings give zeros.

    A painting whose most votes are shared by two classes has no single one, and counts as wrong
    whatever is predicted; so does a tie of the prediction.

    Attributes:
        paintings: how many.
        nine: of the nine classes.
        eight: of the eight emotions, "something else" left out of votes and predictions.
        majority_nine: of always answering the first class with most votes in the training split.
        majority_eight: of always answering the first emotion with most votes there.
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
        agreed: over those where a single emotion of the eight has more than half of all votes.
        tied: paintings without a single most voted of the nine classes, all of them wrong.
        confusion: counts (9, 9), row = most voted class, column = predicted class; paintings with a
            tie on either side are left out.
    """

    all: Accuracy
    agreed: Accuracy
    tied: int
    confusion: list[list[int]]


def _score(predicted: _Array, votes: _Votes, training_votes: _Votes) -> ProbeScores:
    """Compare logits (N, 9) with votes (N, 9); training_votes (9,) decide the majority."""
    hits, baselines = [], []
    for count in (len(CLASSES), len(EMOTIONS)):
        truth, guess = _single_argmax(votes[:, :count]), _single_argmax(predicted[:, :count])
        hits.append((truth >= 0) & (guess == truth))
        baselines.append(truth == int(training_votes[:count].argmax()))

    def over(chosen: npt.NDArray[np.bool_]) -> Accuracy:
        shares = [float(hit[chosen].mean()) if chosen.any() else 0.0 for hit in hits + baselines]
        return Accuracy(int(chosen.sum()), *shares)

    truth, guess = _single_argmax(votes), _single_argmax(predicted)
    clear = (truth >= 0) & (guess >= 0)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    np.add.at(confusion, (truth[clear], guess[clear]), 1)
    return ProbeScores(
        all=over(np.ones(len(votes), dtype=bool)),
        agreed=over(2 * votes[:, : len(EMOTIONS)].max(1) > votes.sum(1)),
        tied=int((truth < 0).sum()),
        confusion=confusion.tolist(),
    )


def _single_argmax(values: npt.NDArray[Any]) -> _Votes:
    """Argmax of each row, or -1 where several values are largest."""
    largest = values == values.max(1, keepdims=True)
    return np.where(largest.sum(1) == 1, largest.argmax(1), -1).astype(np.int64)


@dataclass(frozen=True)
class FitSettings:
    """The arguments of :func:`fit_probe`, and the paintings and votes per class of its split."""

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
        model: the name of the CLIP whose features it was fitted on; "" where that is not known.
        identity: of that CLIP, ``clip.identity()``; empty where it is not known.
        scores: on held-out paintings, None without any.
        settings: of the fit, None for weights that were not fitted here.

    Raises:
        InputError: the shapes do not belong together, or weights that are not finite.
    """

    classes: ClassVar = CLASSES
    emotions: ClassVar = EMOTIONS
    weights: _Array
    bias: _Array
    model: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    scores: ProbeScores | None = None
    settings: FitSettings | None = None

    @public("EmotionProbe")
    def __post_init__(self) -> None:
        shape, count = self.weights.shape, len(CLASSES)
        fits = len(shape) == 2 and shape[0] == count and shape[1] and self.bias.shape == (count,)
        expected = f"weights (9, D) and bias (9,) for {', '.join(CLASSES)}"
        expect(fits, expected, (shape, self.bias.shape))
        if not np.isfinite(self.weights).all() or not (self.bias < np.inf).all():
            raise InputError("the weights or the bias hold NaN or infinity.")

    def __repr__(self) -> str:
        return f"EmotionProbe(D={self.weights.shape[1]}, model={self.model!r})"

    @public("EmotionProbe.predict")
    def predict(self, features: Any) -> _Array:
        """Probabilities (N, 9) for image features (N, D) of any length.

        Raises:
            InputError: another shape, not finite, or a row of zeros.
        """
        from scipy.special import softmax

        return np.asarray(softmax(self._logits(features), axis=1))

    @public("EmotionProbe.score")
    def score(self, features: Any, votes: Any) -> ProbeScores:
        """Compare with the votes (N, 9) of other paintings.

        Raises:
            InputError: invalid features or votes, or a probe that was not fitted here, which has no
                training votes for the majority baseline.
        """
        if self.settings is None:
            raise InputError("only a fitted probe can be scored.")
        logits = self._logits(features)
        counts = _check_votes(votes, len(logits))
        return _score(logits, counts, np.array(self.settings.votes))

    def _logits(self, features: Any) -> _Array:
        unit = _unit_features(features)
        width = self.weights.shape[1]
        other = "they come from another model"
        expect(unit.shape[1] == width, f"features of {width} numbers", unit.shape[1], other)
        return np.asarray(unit @ self.weights.T + self.bias)

    @public("EmotionProbe.save")
    def save(self, path: str | Path) -> Path:
        """Write ``x.safetensors``: weights and bias, and in its header all the rest as JSON.

        The file appears only when it is complete; an existing one is replaced.

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = check_destination(path, (".safetensors",))
        facts = asdict(self)
        arrays = {name: np.ascontiguousarray(facts.pop(name)) for name in ("weights", "bias")}
        # one key: safetensors writes several in any order, and the same probe is the same bytes
        header = {_FORMAT: json.dumps({"classes": CLASSES, **facts}, allow_nan=False)}
        contents = save(arrays, header)
        replace_file(path, lambda file: file.write(contents))
        return path

    @classmethod
    @public("EmotionProbe.load")
    def load(cls, path: str | Path) -> "EmotionProbe":
        """Read a probe.

        Args:
            path: what :meth:`save` wrote; or the name of an embedded model, such as "demo/vit",
                whose probe comes with the package.

        Raises:
            InputError: no such file, or something else.
        """
        path = PROBES.get(str(path)) or find_file(path)
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()[_FORMAT])
                arrays = {name: file.get_tensor(name) for name in ("weights", "bias")}
            scores, settings = facts["scores"], facts["settings"]
            if scores is not None:
                scores |= {split: Accuracy(**scores[split]) for split in ("all", "agreed")}
            return cls(
                **arrays,
                model=facts["model"],
                identity=dict(facts["identity"]),
                scores=None if scores is None else ProbeScores(**scores),
                settings=None if settings is None else FitSettings(**settings),
            )
        except (*DAMAGED, SafetensorError) as error:
            raise InputError(
                f"{path} is not an emotion probe ({error!r}); expected a file written by "
                "EmotionProbe.save or 'captum-clip emotions fit'."
            ) from error


@public("fit_probe")
def fit_probe(
    features: Any,
    votes: Any,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    model: str = "",
    identity: dict[str, str] | None = None,
) -> EmotionProbe:
    r"""Multinomial logistic regression from image features to the distribution of votes.

    Each pair of a painting n and a class c that it has votes for is one sample, weighted by its
    votes :math:`v_{nc}`; over the training split, with :math:`\hat x` the L2-normalized features,

    .. math:: \min_{W, b} \; -\frac{1}{V} \sum_{n, c} v_{nc} \log \text{softmax}(W \hat x_n + b)_c
        + \frac{\lambda}{2} |W|^2, \quad V = \sum_{n, c} v_{nc}

    The penalty makes the nine rows of W sum to zero, so that ``center=True`` changes nothing in a
    target of a fitted probe; it does for encodings that were fitted without one. A class without
    any vote gets the limit of the minimum: weights of zero and a bias of minus infinity.

    Args:
        features: image features (N, D), array or tensor, of any length.
        votes: counts (N, 9), columns as :data:`captum_clip.emotions.CLASSES`.
        seed: of the split by painting.
        held_out: share of the paintings that is kept for ``.scores``; 0 keeps none.
        strength: lambda; per vote, so it means the same for few and for many.
        model: the name of the CLIP that the features are of.
        identity: of that CLIP, ``clip.identity()``; a target for another one is then refused.

    Raises:
        InputError: invalid features or votes, too few of them, an option out of range, or no
            scikit-learn (``pip install scikit-learn``).

    Source: CLIP Explainability (Mamooler, EPFL); Achlioptas et al. 2021 (arXiv:2101.07396).

    Example:
        >>> import numpy as np
        >>> features, votes = np.eye(9).repeat(4, 0), 5 * np.eye(9, dtype=int).repeat(4, 0)
        >>> probe = fit_probe(features, votes, held_out=0)
        >>> probe.weights.shape, probe.predict(features).argmax(1)[::4].tolist()
        ((9, 9), [0, 1, 2, 3, 4, 5, 6, 7, 8])
    """
    unit = _unit_features(features)
    counts = _check_votes(votes, len(unit))
    check_fit(seed=seed, held_out=held_out, strength=strength)
    order = np.random.default_rng(seed).permutation(len(unit))
    tested = round(held_out * len(unit))
    test, train = order[:tested], np.sort(order[tested:])
    weights, bias = _minimum(unit[train], counts[train], strength)
    settings = FitSettings(seed, held_out, strength, len(train), counts[train].sum(0).tolist())
    probe = EmotionProbe(weights, bias, model, identity or {}, None, settings)
    return replace(probe, scores=probe.score(unit[test], counts[test])) if tested else probe


def _minimum(features: _Array, votes: _Votes, strength: float) -> tuple[_Array, _Array]:
    """Find the minimum of `fit_probe`, W (9, D) and b (9,)."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise InputError("this needs scikit-learn; pip install scikit-learn.") from error
    voted = np.flatnonzero(votes.sum(0))
    expect(len(voted) >= 3, "votes for three classes or more in the split", len(voted))
    # the bias is not penalized, so centered features have the same minimum, found in fewer steps
    center = features.mean(0)
    painting, emotion = np.nonzero(votes)
    rows, sample_weight = (features - center)[painting], votes[painting, emotion]
    model = LogisticRegression(C=1 / (strength * votes.sum()), tol=_TOLERANCE, max_iter=_STEPS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(rows, emotion, sample_weight)
    except ConvergenceWarning as error:
        raise InputError(f"no minimum found in {_STEPS} steps; give a larger strength.") from error
    weights, bias = np.zeros((len(CLASSES), features.shape[1])), np.full(len(CLASSES), -np.inf)
    weights[voted] = model.coef_
    bias[voted] = model.intercept_ - model.coef_ @ center
    return weights, bias


def check_fit(*, seed: int, held_out: float, strength: float) -> None:
    """Refuse options that :func:`fit_probe` does not take, before features are computed."""
    check_integer("a seed", seed, least=0)
    check_interval("held_out", held_out, "[0, 1)")
    check_interval("a strength", strength, "(0, inf)")


def _unit_features(features: Any) -> _Array:
    """Normalize features (N, D), in double precision."""
    with expecting("features of shape (N, D)", features):
        rows = np.asarray(features, dtype=np.float64)
    expect(rows.ndim == 2 and 0 not in rows.shape, "features of shape (N, D)", rows)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        raise InputError(f"row {usable.argmin()} of the features is zero or not finite.")
    return np.asarray(rows / norms)


def _check_votes(votes: Any, count: int) -> _Votes:
    """Votes as whole numbers (N, 9), at least one per row."""
    shape = (count, len(CLASSES))
    with expecting(f"votes {shape}", votes):
        counts = np.asarray(votes)
    expect(counts.shape == shape, f"votes {shape}, a row for each of the features", counts)
    whole = counts.astype(np.int64)
    usable = ((whole == counts) & (whole >= 0)).all(1) & whole.any(1)
    row = usable.argmin()
    expected = f"counts of votes, one or more in row {row}"
    expect(usable.all(), expected, counts[row].tolist())
    return whole
