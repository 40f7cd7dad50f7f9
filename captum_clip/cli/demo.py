"""``captum-clip demo``: pictures of the embedded models on scenes they have never seen."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .command import DEVICE, OUTPUT, Command
from .output import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

    _Draw: TypeAlias = Callable[[dict[str, ClipAdapter], Callable[[str], None]], Figure]

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
    from ..visualization.grid import FORMATS

    pictures: dict[str, tuple[str, _Draw]] = {
        "captum-clip-demo.jpg": ("methods", _methods),
        "captum-clip-demo-words-vit.jpg": ("words", partial(_words, "demo/vit")),
        "captum-clip-demo-words-resnet.jpg": ("words", partial(_words, "demo/resnet")),
        "captum-clip-demo-signs.jpg": ("signs", _signs),
    }
    folder = make_folder(arguments.output)
    paths = [check_destination(folder / name, FORMATS) for name in pictures]
    models = dict(_COLUMNS)  # of which each is loaded once
    with steps(arguments, len(models) + len(_COLUMNS) + 3 + len(pictures)) as begin:
        clips = {}
        for model in models:
            begin(f"loading {model}")
            clips[model] = load_clip(model, device=arguments.device)
        for path, (_, draw) in zip(paths, pictures.values(), strict=True):
            figure = draw(clips, begin)
            begin(f"drawing {path.name}")
            save_figure(figure, path)
    for path, (subject, _) in zip(paths, pictures.values(), strict=True):
        print(f"{subject:<8} {path}")
    print(_NOTE.format(count=len(WORDS)))


def _methods(clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """One row per object, one column per method."""
    import torch

    from ..explanation import explain
    from ..visualization import contact_sheet

    scenes = [_scene(index) for index in range(len(_SCENES))]
    columns, scores, images = {}, [], []
    for model, method in _COLUMNS:
        begin(f"{model} {method}")
        rows = [explain(*scene, model=clips[model], method=method) for scene in scenes]
        heatmap = torch.cat([row.heatmap("bicubic")["positive"][0] for row in rows])[:, None]
        columns[f"{model} \N{MIDDLE DOT} {method}"] = heatmap
        images = [image for row in rows for image in row.images.expand(len(row.names), -1, -1, -1)]
        scores.append(torch.cat([row.scores[0] for row in rows]))
    names = [name for _, texts in scenes for name in texts]
    return contact_sheet(
        torch.stack(images), columns, names=names, scores=torch.stack(scores, dim=1)
    )


def _words(model: str, clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """A text and its words, as one model sees them."""
    from ..explanation import explain

    begin(f"{model} word by word")
    image, texts = _scene(0)
    return explain(image, " and ".join(texts), model=clips[model], words=True).plot()


def _signs(clips: dict[str, ClipAdapter], begin: Callable[[str], None]) -> Figure:
    """What speaks for a text beside what speaks against it, with both towers."""
    from .. import figures

    begin("for and against")
    models = [clips["demo/vit"], clips["demo/resnet"]]
    return figures.signs(*_scene(0), models=models, methods="direct")


def _scene(index: int) -> tuple[Any, list[str]]:
    """An image and the texts that are true of it."""
    from ..demo.captions import article
    from ..demo.scenes import draw_scene

    seed, objects = _SCENES[index]
    return draw_scene(seed, objects=objects).image, [article(name) for name in objects]


COMMAND: Final = Command(
    "demo",
    "draw maps on the embedded models, without a network",
    "captum-clip demo -o pictures",
    replace(
        OUTPUT,
        usage="-o --output FOLDER",
        help="where the pictures go",
        default=Path(),
        otherwise="the current folder",
    ),
    DEVICE,
    run=_run,
)
