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
    folder = checks.find_folder(folder)
    images = next((folder / n for n in _IMAGE_FOLDERS if (folder / n).is_dir()), folder)
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
    first, *rows = map(tuple, read_csv(path) or [[]])
    header = [cell.strip() for cell in first]
    if lacking := [name for name in _FIELDS if name not in header]:
        raise InputError(
            f"{path} {'has a wrong first line' if header else 'is empty'}; it lacks "
            f"{', '.join(lacking)}, expected the columns {', '.join(_FIELDS)}, in any order."
        )
    style, painting, emotion = (header.index(name) for name in _FIELDS[:3])
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
    test, train = order[:tested], np.sort(order[tested:])
    weights, bias = _minimum(unit[train], counts[train], strength)
    settings = FitSettings(seed, held_out, strength, len(train), counts[train].sum(0).tolist())
    probe = EmotionProbe(weights, bias, model, identity or {}, None, settings)
    return replace(probe, scores=probe.score(unit[test], counts[test])) if tested else probe


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
    about: Any = {"model": clip.name, "identity": clip.identity(texts=False)}
    about |= {"seed": seed, "held_out": held_out, "strength": strength}
    return fit_probe(features.embeddings, data.votes[features.indices], **about), features.skipped


def _minimum(features: Floats, votes: Votes, strength: float) -> tuple[Floats, Floats]:
    """Find the minimum of `fit_probe`, W (9, D) and b (9,)."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise InputError("this needs scikit-learn; pip install scikit-learn.") from error
    voted = np.flatnonzero(votes.sum(0))
    checks.expect(len(voted) >= 3, "votes for three classes or more in the split", len(voted))
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
    checks.check_integer("a seed", seed, least=0)
    checks.check_interval("held_out", held_out, "[0, 1)")
    checks.check_interval("a strength", strength, "(0, inf)")
