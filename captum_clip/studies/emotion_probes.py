"""From files of ArtEmis to a probe: image features, then the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..emotions import Artemis, EmotionProbe, ProbeScores, fit_probe
from ..emotions.probe import STRENGTH, check_options
from ..models import ClipAdapter
from .features import image_features


def fit_emotions(
    clip: ClipAdapter,
    data: Artemis,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    **options: Any,
) -> tuple[EmotionProbe, dict[Path, str]]:
    """Fit a probe on the images of a data set.

    Args:
        clip: the adapter; the probe keeps its name and its fingerprint.
        data: from :func:`captum_clip.emotions.read_artemis`.
        seed: of the split by painting.
        held_out: share of the paintings kept for the scores.
        strength: of the penalty.
        **options: of :func:`image_features`.

    Returns:
        The probe, and the images that could not be read with the reason.

    Raises:
        InputError: no image could be read, or what :func:`captum_clip.emotions.fit_probe` says.
    """
    settings: Any = {"seed": seed, "held_out": held_out, "strength": strength}
    check_options(**settings)
    features = image_features(clip, data.images, **options).check_any()
    votes = data.votes[list(features.indices)]
    settings |= {"model": clip.name, "fingerprint": clip.fingerprint}
    return fit_probe(features.rows, votes, **settings), features.skipped


def score_emotions(
    clip: ClipAdapter, probe: EmotionProbe, data: Artemis, **options: Any
) -> tuple[ProbeScores, dict[Path, str]]:
    """Score a probe on the images of another data set.

    Args:
        clip: the adapter.
        probe: fitted on features of the same model.
        data: paintings that the probe was not fitted on.
        **options: of :func:`image_features`.

    Returns:
        The scores, and the images that could not be read with the reason.

    Raises:
        InputError: no image could be read, or the probe takes other features.
    """
    features = image_features(clip, data.images, **options).check_any()
    return probe.score(features.rows, data.votes[list(features.indices)]), features.skipped
