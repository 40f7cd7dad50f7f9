"""``captum-clip demo``: pictures of the embedded models on scenes they have never seen."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .command import DEVICE, OUTPUT, Command
from .progress import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

    _Clips: TypeAlias = dict[str, ClipAdapter]
    _Begin: TypeAlias = Callable[[str], None]

# Mamooler's pairs and one of phrases, in the first held-out scenes that there are.
_SCENES: Final = (
    (0, ("horse", "dog")),
    (1, ("elephant", "zebra")),
    (2, ("cow", "sheep")),
    (3, ("red heart", "blue circle")),
)
_COLUMNS: Final = (
    ("demo/vit", "rollout"),
    ("demo/vit", "attention-grad-cam"),
    ("demo/vit", "all-grad"),
    ("demo/vit", "last-grad"),
    ("demo/vit", "direct"),
    ("demo/resnet", "grad-cam"),
    ("demo/resnet", "direct"),
    ("demo/siglip", "conservative"),
    ("demo/siglip", "direct"),
)
_NOTE: Final = (
    "The models are small and know {count} words ('captum-clip models --vocabulary'); "
    'for photographs: captum-clip explain photo.jpg "a horse"'
)


def _run(arguments: Namespace) -> None:
    """Draw the pictures and say where they are."""
    from ..checks import check_destination
    from ..demo.vocabulary import WORDS
    from ..files import make_folder
    from ..models import load_clip
    from ..visualization import save_figure
    from ..visualization.saving import FORMATS

    pictures: dict[str, tuple[str, Callable[[_Clips, _Begin], Figure]]] = {
        "captum-clip-demo.jpg": ("methods", _methods),
        "captum-clip-demo-words-vit.jpg": ("words", partial(_words, "demo/vit")),
        "captum-clip-demo-words-resnet.jpg": ("words", partial(_words, "demo/resnet")),
        "captum-clip-demo-signs.jpg": ("signs", _signs),
    }
    folder = make_folder(arguments.output)
    paths = [check_destination(folder / name, FORMATS) for name in pictures]
    with steps(arguments, len(dict(_COLUMNS)) + len(_COLUMNS) + 3 + len(pictures)) as begin:
        clips = {}
        for model in dict(_COLUMNS):
            begin(f"loading {model}")
            clips[model] = load_clip(model, device=arguments.device)
        for path, (_, draw) in zip(paths, pictures.values(), strict=True):
            figure = draw(clips, begin)
            begin(f"drawing {path.name}")
            save_figure(figure, path)
    for path, (subject, _) in zip(paths, pictures.values(), strict=True):
        print(f"{subject:<8} {path}")
    print(_NOTE.format(count=len(WORDS)))


def _methods(clips: _Clips, begin: _Begin) -> Figure:
    """One row per object, one column per method."""
    import torch

    from ..explanation import explain
    from ..visualization import contact_sheet

    texts = [_texts(objects) for _, objects in _SCENES]
    columns, scores, images = {}, [], []
    for model, method in _COLUMNS:
        begin(f"{model} {method}")
        rows = [
            explain(_scene(row), texts[row], model=clips[model], method=method)
            for row in range(len(_SCENES))
        ]
        heat = torch.cat([row.heat("bicubic")["positive"][0] for row in rows])[:, None]
        columns[f"{model} \N{MIDDLE DOT} {method}"] = heat
        images = [image for row in rows for image in row.images.expand(len(row.names), -1, -1, -1)]
        scores.append(torch.cat([row.scores[0] for row in rows]))
    return contact_sheet(
        torch.stack(images),
        columns,
        names=[name for row in texts for name in row],
        scores=torch.stack(scores, dim=1),
    )


def _words(model: str, clips: _Clips, begin: _Begin) -> Figure:
    """A text and its words, as one model sees them."""
    from ..explanation import explain

    begin(f"{model} word by word")
    text = " and ".join(_texts(_SCENES[0][1]))
    return explain(_scene(0), text, model=clips[model], words=True).plot()


def _signs(clips: _Clips, begin: _Begin) -> Figure:
    """What speaks for a text beside what speaks against it, with both towers."""
    from .. import figures

    begin("for and against")
    towers = [clips["demo/vit"], clips["demo/resnet"]]
    return figures.signs(_scene(0), _texts(_SCENES[0][1]), models=towers)


def _scene(index: int) -> Any:
    from ..demo.scenes import draw_scene

    seed, objects = _SCENES[index]
    return draw_scene(seed, objects=objects).image


def _texts(objects: tuple[str, ...]) -> list[str]:
    return [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objects]


COMMAND: Final = Command(
    "demo",
    "draw maps on the embedded models, without a network",
    "captum-clip demo -o pictures",
    options=(
        replace(
            OUTPUT,
            help="where the pictures go",
            default=Path(),
            otherwise="the current folder",
            metavar="FOLDER",
        ),
        DEVICE,
    ),
    run=_run,
)
