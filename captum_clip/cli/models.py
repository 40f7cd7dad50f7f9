"""``captum-clip models``: what can be loaded by name."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from typing import Final

from .command import Command, Option

_OTHERS: Final = (
    "Other models: a folder, ORG/NAME of a transformers CLIP on the Hugging Face hub, "
    "hf-hub:ORG/NAME or ARCHITECTURE/TAG of OpenCLIP."
)


def _run(arguments: Namespace) -> None:
    if arguments.vocabulary:
        _print_vocabulary()
    else:
        _print_models()


def _print_models() -> None:
    from ..models import available

    rows = [("name", "tower", "library", "checkpoint", "also called")]
    for model in available():
        tower = {"vit": "ViT", "resnet": "ResNet"}[model.kind]
        rows.append((model.name, tower, model.library, model.checkpoint, ", ".join(model.aliases)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"\n{_OTHERS}")


def _print_vocabulary() -> None:
    from ..demo.catalogue import BACKGROUNDS, COLORS, FEELINGS, NOUNS
    from ..demo.vocabulary import FUNCTION_WORDS

    groups = {
        "things": NOUNS,
        "colours": COLORS,
        "feelings of a face": tuple(FEELINGS.values()),
        "backgrounds": BACKGROUNDS,
        "small words": FUNCTION_WORDS,
    }
    for title, words in groups.items():
        print(f"{title}:")
        print(textwrap.fill(" ".join(words), 78, initial_indent="  ", subsequent_indent="  "))


COMMAND: Final = Command(
    "models",
    "list the models that load by name",
    "captum-clip models --vocabulary",
    options=(
        Option("--vocabulary", "list the words that the embedded demo models know", default=False),
    ),
    run=_run,
)
