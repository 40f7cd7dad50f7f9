"""What a command is made of, and the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Option:
    """An argument of a command.

    Attributes:
        usage: as it is typed and what follows it, "-o --output FILE"; of a positional one the name
            comes first, "texts TEXT". Dots behind it stand for several: an option may be repeated,
            a positional one takes words.
        help: what it is; the default is said after it.
        default: the value without it; False makes a switch, a number makes numbers.
        otherwise: what stands for the default where that is None, in words.
        type: makes a value of the typed text.
        choices: what may be typed; the first is the default where nothing stands for it.
        required: it cannot be left out.
        sets: another option and the value that this one, a switch, gives it.
    """

    usage: str
    help: str = ""
    default: Any = None
    otherwise: str = ""
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    required: bool = False
    sets: tuple[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """As it is typed; without hyphens it is positional."""
        words = self.usage.split()
        return [word for word in words if word.startswith("-")] or words[:1]

    @property
    def dest(self) -> str:
        """Where its value is in the namespace."""
        return self.names[-1].lstrip("-").replace("-", "_")

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return self.usage.endswith("...")

    def add_to(self, parser: Any) -> argparse.Action:
        """Make it an argument of a parser, or of a group of one."""
        settings: dict[str, Any]
        if self.sets is not None:
            dest, value = self.sets
            settings = {"dest": dest, "action": "store_const", "const": value}
        elif self.default is False:
            settings = {"action": "store_true"}
        else:
            number = type(self.default) if isinstance(self.default, (int, float)) else None
            follows = self.usage.removesuffix("...").split()[len(self.names) :]
            first = self.choices[0] if self.choices and not self.otherwise else self.default
            settings = {"default": first, "type": self.type or number, "choices": self.choices}
            settings["metavar"] = " ".join(follows) or None
            if self.usage.startswith("-"):
                settings["required"] = self.required
                settings["action"] = "append" if self.many else "store"
            elif self.many:
                settings["nargs"] = "+" if self.required else "*"
        action: argparse.Action = parser.add_argument(*self.names, help=self._help(), **settings)
        return action

    def _help(self) -> str:
        again = "may be repeated" if self.many and self.usage.startswith("-") else ""
        text = "; ".join(filter(None, (self.help, again)))
        silent = self.default is False or (self.default is None and not self.choices)
        shown = self.otherwise or ("" if silent else "%(default)s")
        return f"{text} (default: {shown})" if shown else text


class Command:
    """A command of ``captum-clip``, or one below it.

    Args:
        name: as it is typed.
        help: what it does, for the list of commands; its description is the same as a sentence.
        example: a line that works.
        *options: a tuple among them holds options that exclude each other.
        run: what it does.
        commands: those below it, instead of options.
        metavar: how help calls one of those.
        note: a second sentence of the description.
    """

    def __init__(
        self,
        name: str,
        help: str,
        example: str,
        *options: Option | tuple[Option, ...],
        run: Callable[[argparse.Namespace], None] | None = None,
        commands: Sequence[Command] = (),
        metavar: str = "COMMAND",
        note: str = "",
    ) -> None:
        self.name, self.help, self.example = name, help, example
        self.options, self.run = options, run
        self.commands, self.metavar = commands, metavar
        self.description = f"{help[0].upper()}{help[1:]}. {note}".rstrip()


DEFAULT_MODEL: Final = "ViT-B/32"

MODEL: Final = Option(
    "--model NAME",
    "a name of 'captum-clip models', a folder, or a model of the Hugging Face hub",
    otherwise=f"{DEFAULT_MODEL}, or the one that --emotions was fitted on",
)
MODELS: Final = replace(MODEL, usage="--model NAME...", otherwise=DEFAULT_MODEL)
METHOD: Final = Option(
    "--method NAME",
    "direct, conservative, last-grad, all-grad, attention-grad-cam, rollout, legrad, grad-eclip, "
    "patches, grad-cam (ResNets), or a class of pytorch-grad-cam as cam:LayerCAM; options after a "
    "colon, as in last-grad:heads=averaged",
    otherwise="direct; conservative for pooling heads as SigLIP's",
)
OF_REPORT: Final = "Mamooler's: last-grad for ViTs, grad-cam for ResNets"
METHODS: Final = Option(
    "--method NAME...",
    "as in 'captum-clip explain', used with the models that it fits",
    otherwise=OF_REPORT,
)
DEVICE: Final = Option("--device", "such as cpu or cuda", otherwise="CUDA if there is one")
LOADING: Final = (
    Option(
        "--processor NAME",
        "a model whose image processor to use, for a checkpoint that was saved without one",
    ),
    Option("--tokenizer NAME", "a model whose tokenizer to use, likewise"),
    DEVICE,
)
"""How one model is loaded."""
TEXT: Final = Option("--text TEXT...", "what to look for")
TEXTS: Final = (Option("texts TEXT...", "what to look for"), TEXT)
"""Texts as words of the command, or by option; both arrive in ``texts``."""
EMOTIONS: Final = Option(
    "--emotions FILE",
    "a probe that 'captum-clip emotions fit' wrote, or encodings that Mamooler published, such as "
    "ViT_ARTEMIS_EMOTIONS.json",
    type=Path,
)
PROBES: Final = Option(
    "--emotions FILE...", "as in 'captum-clip explain'; one for each model, in the same order"
)
CENTRE: Final = Option(
    "--centre", "subtract the mean of all nine rows from those of the emotions", default=False
)
WORKERS: Final = Option("--workers N", "processes that read the images", default=0)
QUIET: Final = Option(
    "--quiet", "hide the progress bars, which only a terminal shows", default=False
)
OUTPUT: Final = Option("-o --output FILE", type=Path)
RESULTS: Final = Option("-o --output OUT", "a folder of its own for the results", required=True)
RUN: Final = (
    *LOADING,
    Option(
        "--engine", "this machine, or Ray: several processes or a cluster", choices=("local", "ray")
    ),
    Option(
        "--gpus N", "GPUs that the workers share; 0 is the CPU", otherwise="by --device", type=int
    ),
    Option("--threads N", "threads of each process that computes", type=int),
    RESULTS,
)
"""How a long run is computed, and where it writes."""
