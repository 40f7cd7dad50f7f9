"""The ArtEmis data set, and linear probes fitted on it, which needs the extra ``emotions``."""

import os
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

import numpy as np

from .. import checks
from ..demo.catalog import CLASSES
from ..errors import InputError, public
from ..files import read_csv
from ..targets.probe import EmotionProbe, FitSettings, Floats, Votes, check_votes, unit_features

if TYPE_CHECKING:
    from ..models import ClipAdapter

STRENGTH: Final = 1e-3
"""The default strength of the penalty in :func:`fit_probe`."""

_ANNOTATIONS: Final = "artemis_dataset_release_v0.csv"  # what the authors call the file
_FIELDS: Final = ("art_style", "painting", "emotion", "utterance", "repetition")
_IMAGE_FOLDERS: Final = ("images", "wikiart")
_STEPS: Final = 20_000
_TOLERANCE: Final = 1e-9  # of the largest partial derivative of the mean loss


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
    votes: Votes
    rows: int
    left_out: Counter[str]

    def __str__(self) -> str:
        counts = []
        for reason, count in sorted(self.left_out.items()):
            if count:
                counts.append(f"{reason}: {count:,}")
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
    folder = checks.find_folder(folder)
    images = folder
    for name in _IMAGE_FOLDERS:
        if (folder / name).is_dir():
            images = folder / name
            break
    files = sorted(folder.glob("*.csv"))
    if folder / _ANNOTATIONS in files:
        return folder / _ANNOTATIONS, images
    expected = f"{_ANNOTATIONS} or one other .csv in {folder}"
    checks.expect(len(files) == 1, expected, [file.name for file in files], "name the file itself")
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
    path = checks.find_file(path)
    images = checks.find_folder(images, what="folder of images")
    # Rows are tuples, so that duplicates can be found.
    first, *rows = map(tuple, read_csv(path) or [[]])
    header = [cell.strip() for cell in first]
    lacking = [name for name in _FIELDS if name not in header]
    if lacking:
        fault = "has a wrong first line" if header else "is empty"
        raise InputError(
            f"{path} {fault}; it lacks {', '.join(lacking)}, "
            f"expected the columns {', '.join(_FIELDS)}, in any order."
        )
    style_column = header.index("art_style")
    painting_column = header.index("painting")
    emotion_column = header.index("emotion")
    votes: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(CLASSES))
    earlier: set[tuple[str, ...]] = set()
    left_out: Counter[str] = Counter()
    for row in rows:
        if len(row) != len(header) or not _is_plain(row[style_column], row[painting_column]):
            left_out["bad rows"] += 1
        elif row in earlier:
            left_out["duplicate rows"] += 1
        elif row[emotion_column].strip() not in CLASSES:
            left_out["rows of unknown emotions"] += 1
        else:
            emotion = CLASSES.index(row[emotion_column].strip())
            votes[row[style_column], row[painting_column]][emotion] += 1
        earlier.add(row)
    kept: list[list[int]] = []
    files: list[Path] = []
    for (style, painting), counts in sorted(votes.items()):
        file = _find_image(images, style, painting)
        if file is not None:
            files.append(file)
            kept.append(counts)
    left_out["paintings without an image"] = len(votes) - len(files)
    data = Artemis(tuple(files), np.array(kept, dtype=np.int64), len(rows), left_out)
    if not files:
        raise InputError(f"no painting of {path} has a vote and an image in {images} ({data}).")
    return data


def _is_plain(*names: str) -> bool:
    """Whether each name is a single part of a path, which cannot lead out of its folder."""
    for name in names:
        if name.strip() in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
            return False
    return True


def _find_image(folder: Path, style: str, painting: str) -> Path | None:
    name = f"{style}/{painting}"
    # File systems and CSV files encode letters with accents in either of two ways.
    for form in (name, normalize("NFC", name), normalize("NFD", name)):
        for ending in (".jpg", ".jpeg", ".png"):
            path = folder / f"{form}{ending}"
            # Path.is_file raises an error for a name that is too long.
            if os.path.isfile(path):
                return path
    return None


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
    r"""Fit a multinomial logistic regression from image features to the distribution of votes.

    Each pair of a painting n and a class c that it has votes for is one sample, weighted by its
    votes :math:`v_{nc}`; over the training split, with :math:`\hat x` the L2-normalized features,

    .. math:: \min_{W, b} \; -\frac{1}{V} \sum_{n, c} v_{nc} \log \text{softmax}(W \hat x_n + b)_c
        + \frac{\lambda}{2} |W|^2, \quad V = \sum_{n, c} v_{nc}

    The penalty makes the nine rows of W sum to zero, so that ``center=True`` changes nothing in a
    target of a fitted probe; it does for encodings that were fitted without one. A class without
    any vote gets the limit of the minimum: weights of zero and a bias of minus infinity.

    Args:
        features: image features (N, D), array or tensor, of any length.
        votes: counts (N, 9), columns as :data:`captum_clip.bench.emotions.CLASSES`.
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
    unit = unit_features(features)
    counts = check_votes(votes, len(unit))
    check_fit(seed=seed, held_out=held_out, strength=strength)
    order = np.random.default_rng(seed).permutation(len(unit))
    tested = round(held_out * len(unit))
    test = order[:tested]
    train = np.sort(order[tested:])
    weights, bias = _minimum(unit[train], counts[train], strength)
    settings = FitSettings(seed, held_out, strength, len(train), counts[train].sum(0).tolist())
    probe = EmotionProbe(weights, bias, model, identity or {}, None, settings)
    if tested == 0:
        return probe
    return replace(probe, scores=probe.score(unit[test], counts[test]))


def fit_emotions(
    clip: "ClipAdapter",
    data: Artemis,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    **options: Any,
) -> tuple[EmotionProbe, dict[Path, str]]:
    """Fit a probe on the images of a data set, and say which of them cannot be read, and why.

    Args:
        clip: the adapter, whose name and identity the probe keeps.
        data: from :func:`read_artemis`.
        seed: as of :func:`fit_probe`, and so are the next two.
        held_out: share of the paintings kept for the scores.
        strength: of the penalty.
        **options: of :func:`captum_clip.bench.image_features`, whose errors it raises too.
    """
    from ..folders.workers import image_features

    check_fit(seed=seed, held_out=held_out, strength=strength)
    features = image_features(clip, data.images, **options)
    probe = fit_probe(
        features.embeddings,
        data.votes[features.indices],
        seed=seed,
        held_out=held_out,
        strength=strength,
        model=clip.name,
        identity=clip.identity(texts=False),
    )
    return probe, features.skipped


def _minimum(features: Floats, votes: Votes, strength: float) -> tuple[Floats, Floats]:
    """Find the minimum of `fit_probe`, W (9, D) and b (9,)."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise InputError("this needs scikit-learn; pip install scikit-learn.") from error
    voted = np.flatnonzero(votes.sum(0))
    checks.expect(len(voted) >= 3, "votes for three classes or more in the split", len(voted))
    # The bias is not penalized, so centered features have the same minimum, found in fewer steps.
    center = features.mean(0)
    painting, emotion = np.nonzero(votes)
    rows = (features - center)[painting]
    sample_weight = votes[painting, emotion]
    # C multiplies the sum of the losses; the strength multiplies the penalty beside their mean.
    model = LogisticRegression(C=1 / (strength * votes.sum()), tol=_TOLERANCE, max_iter=_STEPS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(rows, emotion, sample_weight)
    except ConvergenceWarning as error:
        raise InputError(f"no minimum found in {_STEPS} steps; give a larger strength.") from error
    weights = np.zeros((len(CLASSES), features.shape[1]))
    bias = np.full(len(CLASSES), -np.inf)
    weights[voted] = model.coef_
    bias[voted] = model.intercept_ - model.coef_ @ center
    return weights, bias


def check_fit(*, seed: int, held_out: float, strength: float) -> None:
    """Refuse options that :func:`fit_probe` does not take, before features are computed."""
    checks.check_integer("a seed", seed, least=0)
    checks.check_interval("held_out", held_out, "[0, 1)")
    checks.check_interval("a strength", strength, "(0, inf)")
