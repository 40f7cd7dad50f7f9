"""What a command is made of, and the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Option:
    """An argument of a command.

    Attributes:
        name: as it is typed, of which the last word counts; without hyphens it is positional.
        help: what it is; the default is said after it.
        default: the value without it; False makes a switch, a number makes numbers.
        otherwise: what stands for the default where that is None, in words.
        type: makes a value of the typed text.
        choices: what may be typed.
        metavar: how help calls the value.
        many: several values: an option may be repeated, a positional one takes words.
        required: it cannot be left out.
        sets: another option and the value that this one, a switch, gives it.
    """

    name: str
    help: str = ""
    default: Any = None
    otherwise: str = ""
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    many: bool = False
    required: bool = False
    sets: tuple[str, Any] | None = None

    @property
    def dest(self) -> str:
        """Where its value is in the namespace."""
        return self.name.split()[-1].lstrip("-").replace("-", "_")

    def add_to(self, parser: Any) -> argparse.Action:
        """Make it an argument of a parser, or of a group of one."""
        settings: dict[str, Any] = {"help": self._help(), "default": self.default}
        if self.sets is not None:
            dest, value = self.sets
            settings = {"help": self.help, "dest": dest, "action": "store_const", "const": value}
        elif self.default is False:
            settings["action"] = "store_true"
        else:
            number = type(self.default) if isinstance(self.default, (int, float)) else None
            kind = self.type or number
            metavar = self.metavar or ("N" if kind is int else "FILE" if kind is Path else None)
            settings |= {"type": kind, "choices": self.choices, "metavar": metavar}
            if self.name.startswith("-"):
                settings["required"] = self.required
                settings |= {"action": "append"} if self.many else {}
            elif self.many:
                settings["nargs"] = "+" if self.required else "*"
        action: argparse.Action = parser.add_argument(*self.name.split(), **settings)
        return action

    def _help(self) -> str:
        again = "may be repeated" if self.many and self.name.startswith("-") else ""
        text = "; ".join(part for part in (self.help, again) if part)
        silent = self.default is None or self.default is False
        shown = self.otherwise or ("" if silent else "%(default)s")
        return f"{text} (default: {shown})" if shown else text


@dataclass(frozen=True)
class Command:
    """A command of ``captum-clip``, or one below it.

    Attributes:
        name: as it is typed.
        help: what it does, for the list of commands; its description is the same as a sentence.
        example: a line that works.
        options: a tuple among them holds options that exclude each other.
        run: what it does.
        commands: those below it, instead of options.
        metavar: how help calls one of those.
        note: a second sentence of the description.
    """

    name: str
    help: str
    example: str
    options: tuple[Option | tuple[Option, ...], ...] = ()
    run: Callable[[argparse.Namespace], None] | None = None
    commands: tuple[Command, ...] = ()
    metavar: str = "COMMAND"
    note: str = ""

    @property
    def description(self) -> str:
        """What it does, in sentences."""
        return f"{self.help[0].upper()}{self.help[1:]}. {self.note}".rstrip()


DEFAULT_MODEL: Final = "ViT-B/32"

MODEL: Final = Option(
    "--model",
    "a name of 'captum-clip models', a folder, or a model of the Hugging Face hub",
    otherwise=f"{DEFAULT_MODEL}, or the one that --emotions was fitted on",
    metavar="NAME",
)
MODELS: Final = Option("--model", MODEL.help, otherwise=DEFAULT_MODEL, metavar="NAME", many=True)
METHOD: Final = Option(
    "--method",
    "last-grad (default for ViTs), all-grad, attention-grad-cam, rollout, direct, conservative, "
    "legrad, grad-eclip, patches, grad-cam (default for ResNets), or a class of pytorch-grad-cam "
    "as cam:LayerCAM; options after a colon, as in last-grad:heads=averaged",
    metavar="NAME",
)
METHODS: Final = Option(
    "--method",
    "as in 'captum-clip explain', used with the models that it fits",
    otherwise="last-grad for ViTs, grad-cam for ResNets",
    metavar="NAME",
    many=True,
)
PROCESSOR: Final = Option(
    "--processor",
    "a model whose image processor to use, for a checkpoint that was saved without one",
    metavar="NAME",
)
TOKENIZER: Final = Option("--tokenizer", "a model whose tokenizer to use, likewise", metavar="NAME")
DEVICE: Final = Option("--device", "such as cpu or cuda", otherwise="CUDA if there is one")
LOADING: Final = (PROCESSOR, TOKENIZER, DEVICE)
"""How one model is loaded."""
TEXT: Final = Option("--text", "what to look for", metavar="TEXT", many=True)
TEXTS: Final = (Option("texts", "what to look for", metavar="TEXT", many=True), TEXT)
"""Texts as words of the command, or by option; both arrive in ``texts``."""
EMOTIONS: Final = Option(
    "--emotions",
    "a probe that 'captum-clip emotions fit' wrote, or encodings that Mamooler published, such as "
    "ViT_ARTEMIS_EMOTIONS.json",
    type=Path,
)
PROBES: Final = Option(
    "--emotions",
    "as in 'captum-clip explain'; one for each model, in the same order",
    metavar="FILE",
    many=True,
)
CENTRE: Final = Option(
    "--centre", "subtract the mean of all nine rows from those of the emotions", default=False
)
BATCH_SIZE: Final = Option("--batch-size", "images per forward pass", default=16)
SEED: Final = Option("--seed", "seed of every random choice", default=0, metavar="S")
WORKERS: Final = Option("--workers", "processes that read the images", default=0)
ENGINE: Final = Option(
    "--engine",
    "this machine, or Ray: several processes or a cluster",
    default="local",
    choices=("local", "ray"),
)
GPUS: Final = Option(
    "--gpus", "GPUs that the workers share; 0 is the CPU", otherwise="by --device", type=int
)
THREADS: Final = Option("--threads", "threads of each process that computes", type=int)
QUIET: Final = Option(
    "--quiet", "hide the progress bars, which only a terminal shows", default=False
)
OUTPUT: Final = Option("-o --output", type=Path)
RESULTS: Final = Option(
    "-o --output", "a folder of its own for the results", metavar="OUT", required=True
)
RUN: Final = (*LOADING, ENGINE, GPUS, THREADS, RESULTS)
"""How a long run is computed, and where it writes."""
