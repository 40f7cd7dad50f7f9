"""``captum-clip models``: what can be loaded by name."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from typing import Final

from .command import Command, Option

_OTHERS: Final = (
    "Other models: a folder, ORG/NAME of transformers on the Hugging Face hub, "
    "hf-hub:ORG/NAME\nor ARCHITECTURE/TAG of OpenCLIP. One name of each family:"
)


def _run(arguments: Namespace) -> None:
    if arguments.vocabulary:
        _print_vocabulary()
    else:
        _print_models()


def _print_models() -> None:
    from ..models import available
    from ..models.loading import EXAMPLES

    rows = [("name", "tower", "library", "checkpoint", "also called")]
    for model in available():
        tower = {"vit": "ViT", "resnet": "ResNet"}[model.kind]
        rows.append((model.name, tower, model.library, model.checkpoint, ", ".join(model.aliases)))
    _print_table(rows)
    print(f"\n{_OTHERS}\n")
    _print_table([("family", "name", "library"), *EXAMPLES])


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


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
    Option("--vocabulary", "list the words that the embedded demo models know", default=False),
    run=_run,
)
