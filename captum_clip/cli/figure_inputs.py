"""What ``captum-clip figure`` draws: images, targets and models, checked before any is loaded."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..checks import expand
from ..errors import InputError
from .inputs import check_text, is_file, is_folder, read_image, read_probes

_TEXTS_FOLLOW: Final = ("layers", "words", "heads")
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
        stem: what the picture is called after.
        texts: targets.
        references: images that are targets.
        models: names.
        probes: of emotions, one per model.
        folder: of images that get a picture each, instead of `images`.
    """

    images: list[Any]
    stem: str
    texts: list[str] = field(default_factory=list)
    references: list[Path] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    folder: str | None = None

    @property
    def targets(self) -> list[Any]:
        """Texts and images to look for."""
        return [*self.texts, *self.references]


def read_inputs(arguments: Namespace) -> Inputs:
    """Read them from the arguments; InputError where one is not there, missing or too many."""
    figure, words = arguments.command, arguments.given
    if figure == "average":
        return Inputs(words, expand(words[0]).resolve().name)
    probes, fitted = read_probes(getattr(arguments, "emotions", ()))
    models = arguments.model or fitted
    seeds = arguments.scene or []
    scenes = [_draw_scene(scene, models) for scene in seeds]
    folder = words[0] if words and not scenes and is_folder(words[0]) else None
    count = 1 if folder else _count_images(figure, words, with_scene=bool(scenes))
    if files := [text for text in words[count:] if is_file(text)]:
        images = "one image" if figure in _TEXTS_FOLLOW else "images"
        images = "one folder" if folder else images
        raise InputError(f"{files[0]} is a file; figure {figure} takes {images}, then texts.")
    texts = words[count:] + (getattr(arguments, "text", None) or [])
    for text in texts:
        check_text(text)
    paths = [] if folder else [read_image(name) for name in words[:count]]
    inputs = Inputs(
        [*paths, *scenes],
        paths[0].stem if paths else f"scene-{''.join(seeds[:1]).partition(':')[0]}",
        texts,
        [read_image(name) for name in getattr(arguments, "image", None) or ()],
        models,
        probes,
        folder,
    )
    _check(figure, inputs)
    return inputs


def _count_images(figure: str, words: list[str], *, with_scene: bool) -> int:
    """How many of the words are images, after which texts follow."""
    from PIL import Image

    if figure in _TEXTS_FOLLOW:
        return 0 if with_scene else 1
    if figure == "emotions":
        return len(words)
    endings = Image.registered_extensions()
    for index, word in enumerate(words):  # a file that is not there is an image too
        if not ("://" in word or is_file(word) or Path(word).suffix.lower() in endings):
            return index
    return len(words)


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
