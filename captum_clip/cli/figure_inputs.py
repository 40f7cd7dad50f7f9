"""What ``captum-clip figure`` draws: images, targets and models, checked before any is loaded."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..checks import expand
from ..errors import InputError
from .command import DEFAULT_MODEL
from .inputs import is_file, is_folder, load_probe, looks_like_image, model_names, read_image

TEXTS_FOLLOW: Final = ("layers", "words", "heads")
"""Figures of one IMAGE, after which TEXTs are typed."""
_SINGLE: Final = {
    "layers": ("images", "models"),
    "words": ("texts",),
    "heads": ("images", "targets", "models"),
}


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a figure is made of.

    Attributes:
        images: paths and drawn scenes; for *average* the folders of studies.
        texts: targets.
        references: images that are targets.
        models: names.
        probes: of emotions, one per model.
        stem: what the picture is called after.
        folder: of images that get a picture each, instead of `images`.
    """

    images: list[Any]
    texts: list[str] = field(default_factory=list)
    references: list[Path] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    stem: str = ""
    folder: str | None = None

    @property
    def targets(self) -> list[Any]:
        """Texts and images to look for."""
        return [*self.texts, *self.references]

    @property
    def files(self) -> list[Path]:
        """All image files, which no picture may replace."""
        return [path for path in (*self.images, *self.references) if isinstance(path, Path)]


def read_inputs(arguments: Namespace) -> Inputs:
    """Read them from the arguments.

    Raises:
        InputError: a file that is not there, something missing, or too much of something.
    """
    figure, words = arguments.command, arguments.given
    if figure == "average":
        return Inputs(words, stem=expand(words[0]).resolve().name)
    probes = [load_probe(file) for file in getattr(arguments, "emotions", ())]
    models = model_names(arguments.model, probes, [DEFAULT_MODEL])
    seeds = arguments.scene or []
    scenes = [_draw_scene(scene, models) for scene in seeds]
    folder = words[0] if words and not scenes and is_folder(words[0]) else None
    count = len(words)  # of images, after which texts follow
    if folder is not None:
        count = 1
    elif figure in TEXTS_FOLLOW:
        count = 0 if scenes else 1
    elif figure != "emotions":
        count = next((i for i, word in enumerate(words) if not looks_like_image(word)), count)
    if files := [text for text in words[count:] if is_file(text)]:
        images = "one image" if figure in TEXTS_FOLLOW else "images"
        images = "one folder" if folder is not None else images
        raise InputError(f"{files[0]} is a file; figure {figure} takes {images}, then texts.")
    texts = words[count:] + (getattr(arguments, "text", None) or [])
    if blank := [text for text in texts if not text.strip()]:
        raise InputError(f"the text {blank[0]!r} is empty; say what to look for.")
    paths = [] if folder is not None else [read_image(name) for name in words[:count]]
    inputs = Inputs(
        [*paths, *scenes],
        texts,
        [read_image(name) for name in getattr(arguments, "image", None) or ()],
        models,
        probes,
        paths[0].stem if paths else f"scene-{''.join(seeds[:1]).partition(':')[0]}",
        folder,
    )
    _check(figure, inputs)
    return inputs


def _check(figure: str, inputs: Inputs) -> None:
    if not inputs.images and inputs.folder is None:
        raise InputError("the following arguments are required: IMAGE, or --scene SEED.")
    if figure == "emotions":
        if inputs.texts:
            raise InputError(f"figure emotions takes no texts, got {inputs.texts[0]!r}.")
        if len(inputs.probes) != len(inputs.models):
            raise InputError(
                f"expected an --emotions FILE for each of the {len(inputs.models)} models ("
                f"{', '.join(inputs.models)}), in the same order, got {len(inputs.probes)}."
            )
    elif not inputs.targets:
        missing = "TEXT" if figure == "words" else "TEXT, or --image FILE"
        raise InputError(f"the following arguments are required: {missing}.")
    for part in _SINGLE.get(figure, ()):
        if (count := len(getattr(inputs, part))) > 1:
            raise InputError(f"figure {figure} takes one of its {part}, got {count}.")


def _draw_scene(text: str, models: list[str]) -> Any:
    """An image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo import MODELS
    from ..demo.scenes import draw_scene

    others = [model for model in models if model not in MODELS]
    if others:
        raise InputError(
            f"--scene draws for the embedded models, and {others[0]} is none; add --model "
            f"{' or --model '.join(MODELS)}, or give an IMAGE."
        )
    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
