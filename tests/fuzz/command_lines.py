"""Command lines drawn at random from the declared options, with a mistake here and there."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shlex
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from captum_clip import cli
from captum_clip.attr.registry import registered
from captum_clip.cli import show_commands
from captum_clip.errors import InputError
from captum_clip.visualization import grid
from tests import folders
from tests.bench.cases import make_masks
from tests.cli.parsing import leaves
from tests.experiments import experiment
from tests.fuzz.ends import End, How, OutOfTime, time_limit

NUMBERS = ["0", "-1", "1.5", "1e9", "nan", "inf", "x", "", " 3", "9" * 5000, "0x1"]
TEXTS = ["a horse", "a dog", "a horse and a dog", "horse"]
ODD_TEXTS = [
    "",
    " ",
    "...",
    "\N{HORSE FACE}",
    "a" * 4000,
    "\ud800",
    "a\0b",
    "a\x01b",
    "--",
    "-",
    "=x",
]
ODD_PATHS = ["~nosuch/a", "a" * 300, "a\0", "\ud800", "/dev/null", "/proc/self/mem", "", "."]
URLS = ["s3://bucket/x", "memory://x", "nosuch://x", "file:///none", "https://x.invalid/a.png"]
FILES = ["broken.png", "pipe.png", "narrow.png", "none.jpg", "a.npz", "a.txt"]
FOLDERS = ["empty", "study", "vit", "none"]
MODELS = ["nonsense", "ViT-B/32", "org/name", "hf-hub:org/name", "a/b/c", "empty", *ODD_PATHS]
PROBES = ["cut.safetensors", "pipe.json", "empty.safetensors", "none.json", "list.json"]
METHODS = [
    "gradcam",
    "last-grad:start_layer=99",
    "a:b=c",
    ":",
    "",
    "cam:x",
    "cam:variant=LayerCAM,x=1",
]
OUTPUTS = ["a.gif", "none/a.png", "photos", "photo.jpg", *ODD_PATHS, *URLS]
DATA = ["coco:none", "x:", ":", "demo:1", "masks:", *ODD_PATHS]
PLACES = [*FILES, *FOLDERS, *ODD_PATHS, *URLS]
LISTED: dict[str, tuple[list[str], list[str]]] = {
    **dict.fromkeys(
        ("model", "models", "processor", "tokenizer"), (["vit", "vit", "resnet"], MODELS)
    ),
    **dict.fromkeys(
        ("method", "methods", "reference"), ([*registered(), "last-grad:heads=averaged"], METHODS)
    ),
    **dict.fromkeys(("images", "folder", "maps"), (["photos", "art"], PLACES)),
    **dict.fromkeys(("references", "words"), (["photo.jpg", "other.png", "photos"], PLACES)),
    **dict.fromkeys(("csv", "test"), (["a.txt"], PLACES)),
    "device": (["cpu"], ["cuda", "gpu", "cuda:99", "", "meta", "cpu:1", "\ud800"]),
    "emotions": (["probe.safetensors"], [*PROBES, *FILES, *ODD_PATHS]),
    "output": (["a.npz"], OUTPUTS),
    "scene": (["0", "1:horse,dog"], ["x", "", ":", "-1", "0:unicorn", "9" * 400]),
    **dict.fromkeys(("emotion", "names"), (["awe"], ["joy", "", "\ud800"])),
    "host": (["127.0.0.1"], ["", "\ud800", "no.such.host.invalid"]),
    "port": (["0"], NUMBERS),
    "data": (["masks:farm", "demo-objects", "demo"], DATA),
    "tasks": (["localization", "signs"], ["x", ""]),
    "cmap": (["viridis", "mask"], ["x", ""]),
    "scale": (["shared", "0.1"], ["x", "", "-1", "nan"]),
    "width": (["5", "400pt"], ["x", "", "0", "5ft"]),
}
"""Option -> what may rightly follow it, and what may not."""
WANTED = ("model", "models", "images", "resamples", "draws", "data", "tasks")
"""Without them a line would need a network, take long, or be refused."""


COMMANDS = dict(leaves())


class Lines:
    """Draws command lines.

    Args:
        generator: of every choice.
    """

    def __init__(self, generator: random.Random) -> None:
        self._random = generator

    def line(self) -> list[str]:
        """The words after ``captum-clip``."""
        name, command = self._random.choice([*COMMANDS.items()])
        self._figures = name[0] in ("figure", "explain")
        words: list[list[str]] = []
        for option in command.params:
            wanted = option.param_type_name == "argument" or option.name in WANTED
            if self._random.random() < (0.97 if wanted or option.required else 0.1):
                again = option.multiple and self._random.random() < 0.2
                words += [self._words(option) for _ in range(1 + again)]
        if self._random.random() < 0.3:
            self._random.shuffle(words)
        line = [word for group in words for word in group]
        return [*name, *self._spoiled(line)]

    def _words(self, option: Any) -> list[str]:
        name = self._random.choice([*option.opts, *option.secondary_opts])
        if getattr(option, "is_flag", False):
            return [name]
        value = self._value(option)
        if option.param_type_name == "argument":
            return [value]
        return [f"{name}={value}"] if self._random.random() < 0.2 else [name, value]

    def _value(self, option: Any) -> str:
        right = self._random.random() < 0.93
        values = LISTED.get(option.name, (TEXTS, ODD_TEXTS))
        if choices := getattr(option.type, "choices", None):
            values = (list(choices), ODD_TEXTS)
        elif option.name == "output" and right:
            folder = f"out/{self._random.randrange(10**6)}"
            probe = ".safetensors" in option.help
            return "a.safetensors" if probe else "a.png" if self._figures else folder
        elif option.type.name.startswith(("integer", "float")) and option.name != "port":
            values = (["1", "2"], NUMBERS)
        return self._random.choice(values[not right])

    def _spoiled(self, line: list[str]) -> list[str]:
        """Now and then a word too many, too few, or another."""
        if line and self._random.random() < 0.1:
            place = self._random.randrange(len(line))
            odd = self._random.choice(
                [*ODD_TEXTS, *FILES, "--modle", "-h", "--mo", "-x", "--quiet"]
            )
            line[place : place + self._random.randrange(2)] = [odd] * self._random.randrange(2)
        return line


def make_files(folder: Path) -> None:
    """What the lines speak of."""
    folders.make_images(folder / "photos", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    Image.fromarray(pixels).save(folder / "other.png")
    Image.new("1", (60000, 1)).save(folder / "narrow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "a.txt").write_text("text")
    (folder / "a.npz").write_bytes(b"PK\x03\x04")
    for name in ("pipe.png", "pipe.json"):
        os.mkfifo(folder / name)
    folders.make_emotions(folder / "probe.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "probe.safetensors").read_bytes()[:-9])
    (folder / "list.json").write_text("[" * 9999)
    (folder / "empty.safetensors").touch()
    for name in ("empty", "study"):
        (folder / name).mkdir()
    experiment("artemis").write_artemis(folder / "art", paintings=16)
    make_masks(folder / "farm", 2)
    (folder / "study" / "manifest.json").write_text("{}")
    folders.make_vit(folder / "vit")
    folders.make_resnet(folder / "resnet")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Have a folder as the current one."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextlib.contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """The files, and neither a network, nor a page that waits, nor Ray."""
    columns = {"demo/vit": ("direct",), "demo/resnet": ("direct",)}
    with contextlib.ExitStack() as stack:
        for change in (
            mock.patch.object(grid, "_FINE", 32),
            mock.patch.object(show_commands, "_SCENES", ((0, ("horse",)),)),
            mock.patch.object(show_commands, "_SHOWN_METHODS", columns),
            mock.patch("captum_clip.apps.page.serving"),
            mock.patch("captum_clip.apps.commands.Event"),  # which nobody waits for
            mock.patch("captum_clip.bench.run.map_on_ray", _no_ray),
            mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
            _inside(folder),
        ):
            stack.enter_context(change)
        yield


def _no_ray(*_: Any) -> None:
    raise InputError("there is no Ray in this world; it is tested elsewhere.")


def ends(folder: Path, cases: range, seed: int = 0) -> Iterator[End]:
    """Run the lines of these numbers, and tell how each ended."""
    generator = random.Random()
    lines = Lines(generator)
    with _surroundings(folder):
        for case in cases:
            if case == cases[0] or case % 200 == 0:  # what was written may be in the way afterwards
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                make_files(folder)
            generator.seed(f"{seed} {case}")
            line = lines.line()
            how, text = run(line)
            if text:
                shown = shlex.join(line).encode(errors="backslashreplace").decode()
                text = f"captum-clip {shown[:900]}\n{text}"
            yield End(case, " ".join(line[:2]), how, text)


def run(line: list[str]) -> tuple[How, str]:
    """Run one line: how it ended, and what is wrong with that, "" where nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit():
            code = cli.main(line)
    except OutOfTime:
        return "out of time", traceback.format_exc(limit=-4)
    except BaseException:
        return "foreign", traceback.format_exc(limit=-4)
    said = err.getvalue()
    wrong = _complaint(code, said)
    return ("foreign" if wrong else "refused" if code else "right"), wrong


def _complaint(code: int, said: str) -> str:
    if code not in (0, 1, 2):
        return f"it ended with {code}"
    if "Traceback" in said or "Exception" in said:
        return said[-1000:]
    if code == 0:
        return ""
    last = said.replace("\r", "\n").strip().split("\n")[-1].strip()
    message = last.removeprefix("captum-clip: error: ")
    if message == last or not 15 <= len(message) <= 700:
        return f"a message of {len(message)} characters: {last[:400]}"
    if _PYTHON.search(message):
        return f"it speaks of Python: {last}"
    return ""


_PYTHON = re.compile(r"\b[a-z_]+=(True|False|None|'|\")|object at 0x|Errno|NoneType")
