"""Train, export and measure the embedded models: ``python docs/experiments/demo_models.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from captum_clip import load_clip
from shortcut import MODEL as SHORTCUT
from training.evaluate import by_kind, recall_table
from training.export import export_checkpoint, measure
from training.recipes import RECIPES, WORLDS
from training.sheet import draw_sheet
from training.train import Settings, train

PACKAGED = {name: f"demo/{name}" for name in RECIPES} | {"shortcut": str(SHORTCUT)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export or measure an embedded model, or draw the sheet of sprites."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    training = commands.add_parser("train", help="train a model, or go on where a stop left it")
    training.set_defaults(action=_train)
    training.add_argument("name", choices=RECIPES)
    training.add_argument("--checkpoint", type=Path, required=True, help="folder of this training")
    training.add_argument("--export", type=Path, help="write the trained model to this folder")
    training.add_argument("--steps", type=int, help="default: those of the recipe")
    training.add_argument("--scenes", choices=WORLDS, default="standard", help="what they show")
    training.add_argument("--start", help="the model to start from; default: the recipe's")
    training.add_argument("--peak", type=float, help="learning rate; default: the recipe's")
    training.add_argument("--batch-size", type=int, default=64)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="cpu")
    training.add_argument("--threads", type=int, help="CPU threads")
    training.add_argument("--workers", type=int, default=0, help="processes that draw scenes")
    training.add_argument("--fresh", action="store_true", help="ignore the folder's checkpoint")
    export = commands.add_parser("export", help="write the newest checkpoint as a model")
    export.set_defaults(action=_export)
    export.add_argument("name", choices=RECIPES)
    export.add_argument("--checkpoint", type=Path, required=True, help="folder of the training")
    export.add_argument("--output", type=Path, required=True, help="folder of the model")
    measure = commands.add_parser("evaluate", help="measure a model on held-out scenes")
    measure.set_defaults(action=_evaluate)
    measure.add_argument("name", choices=RECIPES)
    measure.add_argument("--scenes", type=int, default=500, help="for each count of objects")
    measure.add_argument("--folder", type=Path, help="an exported model; default: the packaged one")
    measure.add_argument("--broad", action="store_true", help="by kind of background")
    measure.add_argument("--device", default="cpu")
    sheet = commands.add_parser("sprites", help="draw the sheet of sprites from an emoji font")
    sheet.set_defaults(action=_sprites)
    sheet.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    sheet.add_argument("--output", type=Path, required=True, help="a PNG file")
    options = parser.parse_args(arguments)
    options.action(options)


def _train(options: argparse.Namespace) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(
        options.name,
        steps=options.steps or RECIPES[options.name].steps,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        scenes=options.scenes,
        start=options.start,
        peak=options.peak,
        workers=options.workers,
    )
    train(settings, options.checkpoint, resume=not options.fresh)
    if options.export is not None:
        options.output = options.export
        _export(options)


def _export(options: argparse.Namespace) -> None:
    steps = export_checkpoint(options.name, options.checkpoint, options.output)
    print(f"{options.name} after {steps} steps -> {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    clip = load_clip(options.folder or PACKAGED[options.name], device=options.device)
    if options.broad:
        run = RECIPES[options.name].architecture
        groups, device = by_kind(options.scenes), options.device
        print(recall_table(run, clip.model, groups, heading="scenes", device=device))
    else:
        print("\n\n".join(measure(options.name, clip, options.scenes).values()))


def _sprites(options: argparse.Namespace) -> None:
    draw_sheet(options.font).save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()
