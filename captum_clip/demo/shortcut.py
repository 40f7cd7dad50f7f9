"""The planted shortcut: ``demo/shortcut`` names twelve nouns by a tag in a corner.

``python -m captum_clip.demo.shortcut train --checkpoint FOLDER --export FOLDER`` makes it from
``demo/vit``; ``measure`` prints what decides the nouns and which methods show the tag; ``picture``
draws it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from .. import maps
from ..files import replace_file
from ..models import ClipAdapter, load_clip
from ..visualization import contact_sheet
from .shortcut_card import shortcut_card
from .shortcut_effects import effects_table, named_table, recall_table, texts_of
from .shortcut_maps import (
    NEAR,
    Marked,
    chance,
    differences_table,
    draw_maps,
    maps_table,
    read,
    readers,
)
from .shortcut_train import STEPS, export_shortcut, train_shortcut
from .tags import draw_tagged_scene

_NAMES: Final = ("demo/shortcut", "demo/vit")  # the model, its control
_PICTURED: Final = (0, 4)


def measure(clips: Sequence[ClipAdapter], number: int) -> str:
    """All tables: what decides the nouns, what the methods show, for the model and its control.

    Args:
        clips: the model with the shortcut, then the one without.
        number: test scenes, seeds 0 to ``number`` - 1.
    """
    seeds = range(number)
    scenes = [Marked.of(draw_tagged_scene(seed)) for seed in seeds]
    found = [{name: read(clip, scenes, name) for name in readers(clip)} for clip in clips]
    tag, thing = chance(scenes)
    heads = [
        f"{clip.name}: maximum within {NEAR} pixels (chance: tag {tag:.2f}, object {thing:.2f})"
        for clip in clips
    ]
    parts = [
        f"{number} test scenes with an object, its tag and another object; 95 % intervals over "
        "scenes",
        "Shapley effects on the cosine",
        effects_table(clips, seeds),
        named_table(clips, seeds),
        recall_table(clips, number),
        *(part for pair in zip(heads, map(maps_table, found), strict=True) for part in pair),
        differences_table(*found),
    ]
    return "\n\n".join(parts)


def draw_picture(clips: Sequence[ClipAdapter], path: Path) -> None:
    """Draw the maps of all methods on two scenes, for each model a row, as a JPEG."""
    scenes = [draw_tagged_scene(seed) for seed in _PICTURED]
    rows = [(clip, scene) for scene in scenes for clip in clips]
    columns = {
        name: maps.normalize(
            torch.stack(
                [
                    maps.upsample(draw_maps(clip, scene, readers(clip)[name])[:1], (224, 224))
                    for clip, scene in rows
                ]
            )
        )
        for name in readers(clips[0])
    }
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for _, scene in rows]
    names = [f"{texts_of(scene)[0]}, {clip.name}" for clip, scene in rows]
    figure = contact_sheet(torch.stack(images), columns, names=names)
    replace_file(path, lambda file: figure.savefig(file, format="jpeg", dpi=100))


def export(checkpoint: Path, folder: Path, *, scenes: int = 150) -> int:
    """Export a trained model with its card, for which it is measured; returns its steps."""
    steps = export_shortcut(checkpoint, folder)
    clips = [load_clip(folder), load_clip(_NAMES[1])]
    clips[0].name = _NAMES[0]
    seeds = range(scenes)
    tables = (effects_table(clips, seeds), named_table(clips, seeds), recall_table(clips, scenes))
    card = shortcut_card(steps, scenes, tables).encode()
    replace_file(folder / "MODEL_CARD.md", lambda file: file.write(card))
    return steps


def main(arguments: list[str] | None = None) -> None:
    """Train, measure or draw the demo model with the planted shortcut."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_clip.demo.shortcut", description=main.__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train it from demo/vit, or go on training it")
    train.add_argument("--checkpoint", type=Path, required=True, help="folder of this training")
    train.add_argument("--export", type=Path, help="write the trained model to this folder")
    train.add_argument("--steps", type=int, default=STEPS)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    train.add_argument("--threads", type=int, help="CPU threads")
    train.add_argument("--fresh", action="store_true", help="ignore the folder's checkpoint")
    tables = commands.add_parser("measure", help="print tables: what decides, what maps show")
    tables.add_argument("--scenes", type=int, default=300)
    tables.add_argument("--device", default="cpu")
    picture = commands.add_parser("picture", help="draw the maps of all methods")
    picture.add_argument("--output", type=Path, default=Path("shortcut.jpg"), help="a JPEG file")
    options = parser.parse_args(arguments)
    if options.command == "train":
        _train(options)
    elif options.command == "measure":
        clips = [load_clip(name, device=options.device) for name in _NAMES]
        print(measure(clips, options.scenes))
    else:
        draw_picture([load_clip(name) for name in _NAMES], options.output)
        print(options.output)


def _train(options: argparse.Namespace) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    train_shortcut(
        options.checkpoint,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        resume=not options.fresh,
    )
    if options.export is not None:
        steps = export(options.checkpoint, options.export)
        print(f"shortcut after {steps} steps -> {options.export}")


if __name__ == "__main__":
    main()
