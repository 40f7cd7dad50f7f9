"""Where the maps of emotions point, on the demo's own data set, whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ... import maps, metrics, targets
from ...attr.registry import MethodChoice, report_method
from ...emotions import EMOTIONS, EmotionProbe
from ...models import ClipAdapter
from ...similarity import ClipSimilarity
from .paintings import Truth, emotion_truth


@dataclass(frozen=True)
class EmotionPointing:
    """How the maps of one emotion lie on what decides it.

    Attributes:
        emotion: its name.
        kind: "local", a face decides, or "global", the background does.
        images: paintings of this emotion.
        pointing: share of them with the map's maximum in the deciding region.
        energy: mean share of the map's positive mass in it, over the maps that have any.
        chance: mean share of the image that it covers; what a constant map gets in both.
        without_heat: maps without positive mass; they have no part in the energy, and count in
            the pointing as a constant map does.
    """

    emotion: str
    kind: str
    images: int
    pointing: float
    energy: float
    chance: float
    without_heat: int


def emotion_pointing(
    clip: ClipAdapter,
    probe: EmotionProbe | str | Path,
    folder: str | Path,
    *,
    method: str | type[Any] | None = None,
    centre: bool = False,
    progress: bool = False,
) -> tuple[EmotionPointing, ...]:
    """Compare maps with the truth of a part of the demo's data set, one entry per emotion.

    Each painting gets the map of the emotion that it was drawn for; its positive part is resized
    to the painting, and compared with the face or the background that decides that emotion.

    Args:
        clip: the adapter; square images must stay whole in its preprocessing.
        probe: fitted on features of this model, or a file of one.
        folder: what :func:`write_demo_artemis` wrote, or the ``held_out`` in it.
        method: a class of :mod:`captum_clip.attr` or a command-line name; by default Mamooler's.
        centre: as in :func:`captum_clip.targets.emotion`.
        progress: show a bar.

    Raises:
        InputError: a folder without truth, or a method that there is not.
        TargetError: a probe of another model.
        UnsupportedModelError: the method does not fit the model.
    """
    target = targets.emotion(clip, probe, centre=centre)
    choice = MethodChoice.of(method or report_method(clip.tower))
    attribution = choice.method(ClipSimilarity(clip, target))
    truths = sorted(emotion_truth(folder), key=lambda truth: EMOTIONS.index(truth.emotion))
    heatmap = []
    for truth in tqdm(truths, desc="maps", unit="image", disable=not progress, leave=False):
        [raw] = attribution.attribute_targets(
            clip.preprocess(truth.image),
            targets=[EMOTIONS.index(truth.emotion)],
            **choice.options,
        )
        heatmap.append(maps.positive(raw[0].cpu()))
    of_emotion = groupby(zip(truths, heatmap, strict=True), key=lambda pair: pair[0].emotion)
    return tuple(_compare(*zip(*pairs, strict=True)) for _, pairs in of_emotion)


def _compare(truths: Sequence[Truth], maps_of_truths: Sequence[Tensor]) -> EmotionPointing:
    """The figures of one emotion; N maps (h, w)."""
    heatmap = torch.stack(list(maps_of_truths))  # (N, h, w)
    masks = torch.from_numpy(np.stack([truth.mask for truth in truths]))  # (N, H, W)
    energy = metrics.energy_inside(heatmap, masks)
    has_heat = ~energy.isnan()
    return EmotionPointing(
        emotion=truths[0].emotion,
        kind=truths[0].kind,
        images=len(truths),
        pointing=float(metrics.pointing_game(heatmap, masks).mean()),
        energy=float(energy[has_heat].mean()),
        chance=float(masks.float().mean()),
        without_heat=int((~has_heat).sum()),
    )
