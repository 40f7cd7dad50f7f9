"""Mamooler's three studies as configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..attr.registry import MethodChoice
from ..errors import InputError
from ..models import load_clip
from .config import StudyConfig, Subject

CORNER_TEXTS: Final = ("this person is happy", "this person is sad")
CORNER_METHODS: Final = ("all-grad", "attention-grad-cam", "last-grad", "grad-cam")
"""Mamooler's three for vision transformers, Grad-CAM for ResNets."""
MODELS: Final = ("ViT-B/32",)
TOWERS: Final = ("ViT-B/32", "RN101")


def statistics_study(
    images: str | Path,
    output: str | Path,
    *,
    texts: Sequence[str] = (),
    models: Sequence[str] = MODELS,
    methods: Sequence[str] = (),
    emotions: Sequence[str | Path] = (),
    **settings: Any,
) -> StudyConfig:
    """Saliency statistics (Mamooler, Tables III and IV): any texts and emotions.

    Args:
        images: a folder.
        output: a folder for the results.
        texts: targets.
        models: by name; every model with every method that fits its tower.
        methods: by name; Mamooler's where none is given.
        emotions: a file for each model, in the same order; or none.
        **settings: of :class:`StudyConfig`.

    Raises:
        InputError: something that cannot be studied.
    """
    # which methods fit is seen from the models, and all the rest before they are loaded
    config = StudyConfig(
        str(images), str(output), subjects(models, (), emotions), tuple(texts), **settings
    )
    return replace(config, subjects=subjects(models, methods, emotions))


def corner_bias_study(
    images: str | Path,
    output: str | Path,
    *,
    texts: Sequence[str] = CORNER_TEXTS,
    models: Sequence[str] = MODELS,
    methods: Sequence[str] = CORNER_METHODS,
    **settings: Any,
) -> StudyConfig:
    """Do methods favour the corners (Mamooler, Figure 6)? Arguments as :func:`statistics_study`."""
    return statistics_study(images, output, texts=texts, models=models, methods=methods, **settings)


def emotions_study(
    images: str | Path,
    output: str | Path,
    *,
    emotions: Sequence[str | Path],
    models: Sequence[str] = TOWERS,
    methods: Sequence[str] = (),
    **settings: Any,
) -> StudyConfig:
    """Eight emotions, plain and centred, ViT beside ResNet (Mamooler, Figures 11 and 12).

    All sixteen come from one forward pass. Arguments as :func:`statistics_study`.
    """
    if not emotions:
        raise InputError("the study of emotions needs a file of emotions for each model.")
    return statistics_study(
        images,
        output,
        texts=(),
        models=models,
        methods=methods,
        emotions=emotions,
        centred=True,
        **settings,
    )


def subjects(
    models: Sequence[str], methods: Sequence[str] = (), emotions: Sequence[str | Path] = ()
) -> tuple[Subject, ...]:
    """Every model with every method that fits its tower.

    Args:
        models: by name.
        methods: by name; Mamooler's where none is given.
        emotions: a file for each model, in the same order; or none.

    Raises:
        InputError: not as many files as models, or a model that no method fits.
    """
    if emotions and len(emotions) != len(models):
        raise InputError(
            f"expected a file of emotions for each of the {len(models)} models ("
            f"{', '.join(models)}), in the same order, got {len(emotions)}."
        )
    files = [str(file) for file in emotions] if emotions else [None] * len(models)
    if not methods:
        return tuple(Subject(model, None, file) for model, file in zip(models, files, strict=True))
    choices = [(method, MethodChoice.of(method)) for method in methods]
    chosen = []
    for model, file in zip(models, files, strict=True):
        kind = load_clip(model, device="cpu").kind
        fitting = [method for method, choice in choices if choice.fits(kind)]
        if not fitting:
            raise InputError(
                f"none of the methods {', '.join(methods)} fits {model}, whose tower is a {kind}."
            )
        chosen += [Subject(model, method, file) for method in fitting]
    return tuple(chosen)
