"""``captum-clip demo``: pictures of the embedded models on scenes they have never seen."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .progress import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

NAME = "demo"
HELP = "draw what the embedded models see, without a network"
EXAMPLE = "captum-clip demo -o pictures"

# The pairs of the report and one of phrases, in the first held-out scenes that there are.
_SCENES = (
    (0, ("horse", "dog")),
    (1, ("elephant", "zebra")),
    (2, ("cow", "sheep")),
    (3, ("red heart", "blue circle")),
)
_COLUMNS = (
    ("demo/vit", "rollout"),
    ("demo/vit", "attention-grad-cam"),
    ("demo/vit", "all-grad"),
    ("demo/vit", "last-grad"),
    ("demo/resnet", "grad-cam"),
)
_NOTE = (
    "The models are small and know {count} words ('captum-clip models --vocabulary'); "
    'for photographs: captum-clip explain photo.jpg "a horse"'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where the pictures go (default: the current folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw the pictures and say where they are.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    from ..checks import check_destination
    from ..demo.vocabulary import WORDS
    from ..models import load_clip
    from ..visualization import save_figure
    from ..visualization.saving import FORMATS

    folder = _folder(arguments.output)
    pictures: dict[str, Callable[[dict[str, ClipAdapter], Callable[[str], None]], Figure]] = {
        "captum-clip-demo.png": _sheet,
        "captum-clip-demo-words-vit.png": partial(_words, "demo/vit"),
        "captum-clip-demo-words-resnet.png": partial(_words, "demo/resnet"),
        "captum-clip-demo-signs.png": _signs,
    }
    paths = [check_destination(folder / name, FORMATS) for name in pictures]
    with steps(2 + len(_COLUMNS) + 3 + len(pictures)) as begin:
        clips = {}
        for name in dict.fromkeys(name for name, _ in _COLUMNS):
            begin(f"loading {name}")
            clips[name] = load_clip(name)
        for path, draw in zip(paths, pictures.values(), strict=True):
            figure = draw(clips, begin)
            begin(f"drawing {path.name}")
            save_figure(figure, path)
    for path, what in zip(paths, ("methods", "words", "words", "signs"), strict=True):
        print(f"{what:<8} {path}")
    print(_NOTE.format(count=len(WORDS)))


def _folder(folder: Path) -> Path:
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def _sheet(clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """One row an object, one column a method."""
    import torch

    from ..demo.scenes import draw_scene
    from ..explanation import explain
    from ..visualization import contact_sheet

    scenes = [draw_scene(seed, objects=objects) for seed, objects in _SCENES]
    columns, images = {}, []
    for name, method in _COLUMNS:
        begin(f"{name} {method}")
        found = [
            explain(scene.image, _texts(objects), model=clips[name], method=method)
            for scene, (_, objects) in zip(scenes, _SCENES, strict=True)
        ]
        columns[f"{name} \N{MIDDLE DOT} {method}"] = torch.cat(
            [f.heat()["positive"][0] for f in found]
        )[:, None]
        images = [image for f in found for image in f.images.expand(len(f.names), -1, -1, -1)]
    names = [text for _, objects in _SCENES for text in _texts(objects)]
    return contact_sheet(torch.stack(images), columns, names=names)


def _words(name: str, clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """A text and its words, as one model sees them."""
    from ..demo.scenes import draw_scene
    from ..explanation import explain

    begin(f"{name} word by word")
    seed, objects = _SCENES[0]
    text = " and ".join(_texts(objects))
    scene = draw_scene(seed, objects=objects)
    return explain(scene.image, text, model=clips[name], words=True).plot()


def _signs(clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """What speaks for a text beside what speaks against it, with both towers."""
    import torch

    from ..demo.scenes import draw_scene
    from ..explanation import explain
    from ..visualization import signs

    begin("for and against")
    seed, objects = _SCENES[0]
    image = draw_scene(seed, objects=objects).image
    found = [explain(image, _texts(objects), model=clip, sign="both") for clip in clips.values()]
    heat = [f.heat() for f in found]
    return signs(
        found[0].images,
        torch.cat([h["positive"] for h in heat], dim=1),
        torch.cat([h["negative"] for h in heat], dim=1),
        names=[f"{name} ({f.model}, {f.method})" for f in found for name in f.names],
        scores=torch.cat([f.scores for f in found], dim=1),
    )


def _texts(objects: tuple[str, ...]) -> list[str]:
    return [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objects]
