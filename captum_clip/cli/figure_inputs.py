"""What ``captum-clip figure`` draws: images, targets and models, checked before any is loaded."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import InputError

MODEL: Final = "ViT-B/32"
_SINGLE: Final = {"layers": ("images", "models"), "words": ("texts",)}


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a figure is made of.

    Attributes:
        images: paths and drawn scenes; for *average* the folders of studies.
        texts: targets.
        references: images that are targets.
        models: names.
        probes: of emotions, one a model.
        files: all image files, which no picture may replace.
        stem: what the picture is called after.
    """

    images: list[Any]
    texts: list[str]
    references: list[Path]
    models: list[str]
    probes: list[Any]
    files: list[Path]
    stem: str

    @classmethod
    def of(cls, arguments: argparse.Namespace, *, texts_follow: bool) -> Inputs:
        """Read from the arguments; with `texts_follow` they are one IMAGE and its TEXTs.

        Raises:
            InputError: a file that is not there, something missing, or too much of something.
        """
        given: list[str] = list(arguments.given)
        if arguments.figure == "average":
            return cls(given, [], [], [], [], [], Path(given[0]).expanduser().resolve().name)
        models = arguments.model or [MODEL]
        scenes = [_scene(text, models) for text in arguments.scene]
        names, texts = given, list(getattr(arguments, "text", []))
        if texts_follow:
            names = [] if scenes else given[:1]
            texts = given[len(names) :] + texts
            files = [text for text in texts if Path(text).is_file()]
            if files:
                raise InputError(
                    f"{files[0]} is a file; figure {arguments.figure} takes one image, then texts."
                )
        paths = [_file(name) for name in names]
        others = [_file(name) for name in getattr(arguments, "image", [])]
        stem = paths[0].stem if paths else f"scene-{''.join(arguments.scene[:1]).partition(':')[0]}"
        probes = [_probe(name) for name in getattr(arguments, "emotions", [])]
        found = cls([*paths, *scenes], texts, others, models, probes, paths + others, stem)
        found._check(arguments.figure)
        return found

    def _check(self, figure: str) -> None:
        if not self.images:
            raise InputError("the following arguments are required: IMAGE, or --scene SEED.")
        if not self.texts and not self.references and figure != "emotions":
            what = {"words": "TEXT", "layers": "TEXT, or --image FILE"}
            missing = what.get(figure, "--text TEXT, or --image FILE")
            raise InputError(f"the following arguments are required: {missing}.")
        if figure == "emotions" and len(self.probes) != len(self.models):
            raise InputError(
                f"expected an --emotions FILE for each of the {len(self.models)} models ("
                f"{', '.join(self.models)}), in the same order, got {len(self.probes)}."
            )
        for part in _SINGLE.get(figure, ()):
            if (count := len(getattr(self, part))) > 1:
                raise InputError(f"figure {figure} takes one of its {part}, got {count}.")


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"there is no image file {name}")
    return path


def _probe(name: str) -> Any:
    from ..emotions import EmotionProbe

    return EmotionProbe.load(name)


def _scene(text: str, models: list[str]) -> Any:
    """An image (H, W, 3) of the embedded models' world, as SEED or SEED:THING,THING."""
    from ..demo import MODELS
    from ..demo.scenes import draw_scene

    strangers = [model for model in models if model not in MODELS]
    if strangers:
        raise InputError(
            f"--scene draws for the embedded models, and {strangers[0]} is none; add --model "
            f"{' or --model '.join(MODELS)}, or give an IMAGE."
        )
    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
