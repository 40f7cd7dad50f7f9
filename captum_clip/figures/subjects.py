"""What every figure begins with: images, models with their methods, targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from .. import maps, targets
from ..attr.registry import MethodChoice, default_method, methods_for
from ..errors import InputError
from ..explanation import Explanation, Sign, explain
from ..models import ClipAdapter, load_clip
from ..models.base import ImageLike
from ..targets import Target
from ..visualization.letterbox import letterbox

Images: TypeAlias = ImageLike | Sequence[ImageLike]
Model: TypeAlias = str | Path | nn.Module | ClipAdapter
Models: TypeAlias = Model | Sequence[Model]
Methods: TypeAlias = str | type[Any] | Sequence[str | type[Any]]
Device: TypeAlias = torch.device | str | None

DEFAULT_MODEL: Final = "ViT-B/32"
EACH: Final = "each map on a scale of its own"
"""How captions call it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with one method.

    Attributes:
        clip: the model.
        choice: the method.
    """

    clip: ClipAdapter
    choice: MethodChoice

    @property
    def label(self) -> str:
        """What pictures call it."""
        return f"{self.clip.name} ({self.choice.name})"

    def explain(self, image: ImageLike, target: Target, sign: Sign = "positive") -> Explanation:
        """Maps of one image."""
        options = self.choice.options
        return explain(
            image, target, model=self.clip, method=self.choice.method, sign=sign, **options
        )


def listed(given: Any) -> list[Any]:
    """One or several of anything, as a list; a batch of images becomes its images."""
    if isinstance(given, (list, tuple)):
        return list(given)
    return list(given) if getattr(given, "ndim", 0) == 4 else [given]


def check_images(caller: str, images: Images) -> list[ImageLike]:
    """The images, at least one.

    Raises:
        InputError: there is none.
    """
    found = listed(images)
    if not found:
        raise InputError(f"{caller}: expected at least one image, got none.")
    return found


def check_scale(caller: str, scale: str, choices: tuple[str, ...]) -> None:
    """A scale by name.

    Raises:
        InputError: another one.
    """
    if scale not in choices:
        raise InputError(f"{caller}: expected a scale of {', '.join(choices)}, got {scale!r}.")


def open_models(caller: str, models: Models, device: Device) -> list[ClipAdapter]:
    """Load what is given by name.

    Raises:
        InputError: no model.
    """
    found = [load_clip(model, device=device) for model in listed(models)]
    if not found:
        raise InputError(f"{caller}: expected at least one model, got none.")
    return found


def subjects(
    caller: str, clips: Sequence[ClipAdapter], methods: Methods | None, *, every: bool = False
) -> list[Subject]:
    """Every model with every method that fits its tower.

    Args:
        caller: named in errors.
        clips: the models.
        methods: classes or command-line names; by the tower where none is given.
        every: take all methods that fit where none is given, instead of the tower's own.

    Raises:
        InputError: no such method, or a model that none of them fits.
    """
    found = []
    for clip in clips:
        wanted = methods_for(clip.kind) if every else [default_method(clip.tower)]
        choices = [MethodChoice.of(method) for method in (listed(methods) if methods else wanted)]
        fitting = [choice for choice in choices if choice.fits(clip.kind)]
        if not fitting:
            raise InputError(
                f"{caller}: none of the methods {', '.join(choice.name for choice in choices)} "
                f"fits {clip.name}, whose tower is a {clip.kind}."
            )
        found += [Subject(clip, choice) for choice in fitting]
    return found


def titles(chosen: Sequence[Subject], images: int, said: str) -> dict[str, Any]:
    """How a picture names its rows, one a subject for every image, and what is below them."""
    if len(chosen) == 1:
        return {"caption": f"{chosen[0].label} \N{MIDDLE DOT} {said}"}
    return {"labels": [subject.label for subject in chosen] * images, "caption": said}


def open_target(
    caller: str, clip: ClipAdapter, texts: str | Sequence[str], references: Images
) -> tuple[Target, list[Tensor | None]]:
    """Texts, then images, as one target, with the pictures of the latter as the model sees them.

    Raises:
        InputError: neither a text nor an image.
    """
    words = listed(texts)
    pictures = listed(references)
    if not words and not pictures:
        raise InputError(f"{caller}: expected a text or an image to explain, got neither.")
    parts = [targets.text(clip, words)] if words else []
    shown: list[Tensor | None] = [None] * len(words)
    for number, picture in enumerate(pictures):
        name = Path(picture).stem if isinstance(picture, (str, Path)) else f"image {number}"
        pixels = clip.preprocess(picture)
        parts.append(targets.image(clip, pixels, name))
        shown.append(clip.denormalize(pixels)[0].cpu())
    return targets.concatenate(parts), shown


def stretched(found: Sequence[Tensor], *, shared: bool) -> list[Tensor]:
    """Maps (..., H, W) stretched to [0, 1]: each on its own, or all of them as one."""
    if not shared:
        return [maps.normalize(one) for one in found]
    flat = torch.cat([one.reshape(1, -1) for one in found], dim=1)
    parts = torch.split(maps.normalize(flat), [one.numel() for one in found], dim=1)
    return [part.reshape(one.shape) for part, one in zip(parts, found, strict=True)]


def large(found: Explanation, sign: str = "positive") -> Tensor:
    """The raw maps of one image, (K, H, W)."""
    height, width = found.images.shape[-2:]
    return maps.upsample(found.maps[sign][0], (height, width))


def side_by_side(images: Sequence[Tensor]) -> tuple[Tensor, tuple[int, int]]:
    """Images (3, h, w) of any sizes -> (B, 3, H, W), and (H, W), the largest of each side."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    size = (height, width)
    return torch.stack([letterbox(image, size, 1.0) for image in images]), size


def framed(found: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Stretched maps (K, h, w) -> (B, K, H, W), nothing where their images leave a margin."""
    return torch.stack([letterbox(one, size, 0.0) for one in found])
