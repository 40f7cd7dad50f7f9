"""What each embedded model is, and on what it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from captum_clip.demo.scenes import STANDARD, Scene, World
from shortcut.batches import draw_tagged_batch, tagged_validation_scenes

from .architectures import ARCHITECTURES, Architecture
from .banks import Batch, draw_batch
from .broad_scenes import BROAD
from .evaluate import draw_scenes

TRAINED_BIAS: Final = -5.58
"""Bias of the sigmoid loss where the training of demo/vit ended, and where its weights start."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Args:
        architecture: what is trained.
        steps: of the whole schedule.
        peak: the highest learning rate.
        draw: (banks, seed, step, size=) -> the batch of a step.
        validation: (number, world) -> scenes to validate on.
        every: steps between validations, at which a checkpoint is written.
        bias: of the sigmoid loss where fresh weights start.
        start: the embedded model whose weights the training starts from, where names and shapes
            are the same; None: fresh ones.
        trained: names of the trained parameters start with one of these.
    """

    architecture: Architecture
    steps: int
    peak: float
    draw: Callable[..., Batch] = draw_batch
    validation: Callable[[int, World], tuple[Scene, ...]] = lambda number, world: draw_scenes(
        "validation", number=number, counts=[2, 3], world=world
    )
    every: int = 250
    bias: float = -5.0
    start: str | None = None
    trained: tuple[str, ...] = ("",)


RECIPES: Final = {
    "vit": Recipe(ARCHITECTURES["vit"], steps=16000, peak=1e-3),
    "resnet": Recipe(ARCHITECTURES["resnet"], steps=6000, peak=2e-3),
    "siglip": Recipe(ARCHITECTURES["siglip"], steps=7000, peak=1e-3, start="demo/vit"),
    "shortcut": Recipe(
        ARCHITECTURES["vit"],
        steps=800,
        peak=5e-4,
        draw=draw_tagged_batch,
        validation=lambda number, _: tagged_validation_scenes(number),
        every=100,
        start="demo/vit",
        trained=("vision_model.", "visual_projection."),  # so that texts are encoded as before
    ),
}
"""Name of the embedded model, without "demo/" -> how it is trained."""

WORLDS: Final = {"standard": STANDARD, "broad": BROAD}
"""What the scenes of a training look like."""
