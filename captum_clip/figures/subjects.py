"""What every figure begins with: images, models with their methods, targets, explanations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from .. import maps, targets
from ..attr.registry import MethodChoice, methods_for, report_method
from ..checks import check_nonempty
from ..errors import InputError
from ..explanation import Explanation, Sign, explain
from ..models import ClipAdapter, load_clip
from ..models.adapter import ImageLike
from ..targets import Target
from ..visualization.arrays import letterbox

Images: TypeAlias = ImageLike | Sequence[ImageLike]
Model: TypeAlias = str | Path | nn.Module | ClipAdapter
Models: TypeAlias = Model | Sequence[Model]
Methods: TypeAlias = str | type[Any] | Sequence[str | type[Any]]
Device: TypeAlias = torch.device | str | None

EACH: Final = "each map on a scale of its own"
"""How captions call it."""
DOT: Final = " \N{MIDDLE DOT} "


@dataclass(frozen=True, eq=False)
class Question:
    """What a model is asked: a target, with the pictures of those of its rows that are images."""

    clip: ClipAdapter
    target: Target
    references: Sequence[Tensor | None] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with one method, and what it is asked."""

    question: Question
    choice: MethodChoice

    @property
    def label(self) -> str:
        """What pictures call it."""
        return f"{self.question.clip.name} ({self.choice.name})"


@dataclass(frozen=True, eq=False)
class Rows:
    """Explanations that are drawn as the rows of a picture: of each image, by each subject."""

    subjects: tuple[Subject, ...]
    explanations: tuple[Explanation, ...]

    @classmethod
    def of(
        cls, images: Sequence[ImageLike], subjects: Sequence[Subject], sign: Sign = "positive"
    ) -> Rows:
        """Explain every image by every subject."""
        explanations = [
            explain(
                image,
                subject.question.target,
                model=subject.question.clip,
                method=subject.choice.method,
                sign=sign,
                **subject.choice.options,
            )
            for image in images
            for subject in subjects
        ]
        return cls((*subjects,) * len(images), tuple(explanations))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that all images fit into."""
        height, width = (max(e.images.shape[side] for e in self.explanations) for side in (-2, -1))
        return height, width

    @property
    def pictures(self) -> Tensor:
        """The images, of one size with white margins, (B, 3, H, W)."""
        return torch.stack([letterbox(e.images[0], self.size, 1.0) for e in self.explanations])

    @property
    def scores(self) -> Tensor:
        """Cosines (B, K)."""
        return torch.cat([e.scores for e in self.explanations])

    def letterboxed(self, heatmap: Iterable[Tensor]) -> Tensor:
        """Maps (K, h, w) of each image -> (B, K, H, W), zero where the pictures have margins."""
        return torch.stack([letterbox(values, self.size, 0.0) for values in heatmap])

    def texts(self, scale: str) -> dict[str, Any]:
        """Names, scores, labels and caption; `scale` says what the colours mean."""
        texts: dict[str, Any] = {"names": self.explanations[0].names, "scores": self.scores}
        labels = [subject.label for subject in self.subjects]
        if len({*self.subjects}) == 1:
            return {**texts, "caption": f"{labels[0]}{DOT}{scale}"}
        return {**texts, "labels": labels, "caption": scale}


def as_list(values: Any) -> list[Any]:
    """One or several of anything, as a list; a batch of images becomes its images."""
    if isinstance(values, (list, tuple)):
        return list(values)
    return list(values) if getattr(values, "ndim", 0) == 4 else [values]


def open_inputs(
    caller: str, images: Images, models: Models, device: Device
) -> tuple[list[ImageLike], list[ClipAdapter]]:
    """The images and the models, at least one of each."""
    images, models = as_list(images), as_list(models)
    check_nonempty(caller, "image", images)
    check_nonempty(caller, "model", models)
    return images, [load_clip(model, device=device) for model in models]


def subjects(
    caller: str, questions: Sequence[Question], methods: Methods | None, *, every: bool = False
) -> list[Subject]:
    """Every question with every method that fits the model's tower.

    Where no method is given it is Mamooler's; with `every` all that fit.
    """
    chosen = []
    for question in questions:
        clip = question.clip
        offered = methods_for(clip.kind) if every else [report_method(clip.tower)]
        choices = [MethodChoice.of(method) for method in (as_list(methods) if methods else offered)]
        fitting = [choice for choice in choices if choice.fits(clip.kind)]
        if not fitting:
            raise InputError(
                f"{caller}: none of the methods {', '.join(choice.name for choice in choices)} "
                f"fits {clip.name}, whose tower is a {clip.kind}."
            )
        chosen += [Subject(question, choice) for choice in fitting]
    return chosen


def ask(caller: str, clip: ClipAdapter, texts: str | Sequence[str], references: Images) -> Question:
    """Texts, then images, with the pictures of the latter as the model sees them."""
    texts, references = as_list(texts), as_list(references)
    if not texts and not references:
        raise InputError(f"{caller}: expected a text or an image to explain, got neither.")
    parts = [targets.text(clip, texts)] if texts else []
    pictures: list[Tensor | None] = [None] * len(texts)
    for number, reference in enumerate(references):
        path = isinstance(reference, (str, Path))
        pixels = clip.preprocess(reference)
        parts.append(
            targets.image(clip, pixels, Path(reference).stem if path else f"image {number}")
        )
        pictures.append(clip.denormalize(pixels)[0].cpu())
    return Question(clip, targets.concatenate(parts), pictures)


def min_max(raw: Sequence[Tensor], *, shared: bool) -> list[Tensor]:
    """Maps (..., H, W) min-max normalised to [0, 1]: each on its own, or all of them as one."""
    if not shared:
        return [maps.normalize(values) for values in raw]
    flat = torch.cat([values.reshape(1, -1) for values in raw], dim=1)
    parts = torch.split(maps.normalize(flat), [values.numel() for values in raw], dim=1)
    return [part.reshape(values.shape) for part, values in zip(parts, raw, strict=True)]


def raw_maps(explanation: Explanation, sign: str = "positive") -> Tensor:
    """The raw maps of one image at its size, (K, H, W)."""
    height, width = explanation.images.shape[-2:]
    return maps.upsample(explanation.maps[sign][0], (height, width), mode="bicubic", clamp=True)
