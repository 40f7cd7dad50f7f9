"""Calls with values drawn at random: plausible ones, with a mistake here and there.

``python -m tests.fuzz --cases 15000`` makes as many as are asked for.
"""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captum_clip import (
    ClipSimilarity,
    Explanation,
    attr,
    classify,
    explain,
    load_clip,
    maps,
    metrics,
    targets,
    visualization,
)
from captum_clip.bench.run import StudyConfig
from captum_clip.errors import CaptumClipError
from captum_clip.models import ClipAdapter
from tests.fuzz.ends import End, OutOfTime, time_limit

ACCEPTED = (CaptumClipError, IndexError)
"""What a call may end in; an IndexError of a `Target` is Python's own protocol."""


@dataclass
class World:
    """What calls are made of.

    Attributes:
        folder: empty, to write in.
        random: of every choice.
    """

    folder: Path
    random: random.Random
    clips: dict[str, ClipAdapter] = field(default_factory=dict)

    @property
    def clip(self) -> ClipAdapter:
        name = self.random.choice(["demo/vit", "demo/resnet"])
        return self.clips.setdefault(name, load_clip(name))

    @cached_property
    def explanation(self) -> Explanation:
        clip = self.clips.setdefault("demo/vit", load_clip("demo/vit"))
        return explain(np.zeros((32, 32, 3), np.uint8), ["a horse", "a dog"], model=clip)

    def pick(self, good: list[Any], bad: list[Any]) -> Any:
        """Mostly what is right."""
        value = self.random.choice(good if self.random.random() < 0.7 else bad)
        return value(self) if callable(value) else value

    def tensor(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.random.randrange(1000))
        return torch.rand(shape, generator=generator)

    def images(self) -> Any:
        good = [lambda w: -w.tensor(1, 3, 224, 224), lambda w: -w.tensor(2, 3, 224, 224)]
        return self.pick(good, [*ODD_TENSORS, *WRONG])

    def maps(self) -> Any:
        good = [lambda w: w.tensor(1, 1, 7, 7), lambda w: w.tensor(2, 2, 5, 6)]
        return self.pick(good, [*ODD_TENSORS, *WRONG])

    def picture(self) -> Any:
        good = [
            lambda w: np.zeros((32, 40, 3), np.uint8),
            lambda w: Image.new("RGB", (30, 20), "red"),
            lambda w: [np.zeros((32, 40), np.uint8), Image.new("L", (9, 9))],
        ]
        return self.pick(good, [*ODD_PICTURES, *ODD_TENSORS, *WRONG])

    def text(self) -> Any:
        return self.pick(["a horse", ["a horse", "a dog"], ("a red dog",)], [*TEXTS, *WRONG])

    def number(self) -> Any:
        return self.pick([1, 2, 7], [0, -1, 10**5000, 1.5, np.int64(2), float("nan"), True, *WRONG])


def _odd(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[World], torch.Tensor]:
    return lambda world: change(world.tensor(1, 3, 224, 224))


WRONG: list[Any] = [None, 3, "x", b"x", [], {}, object(), [None], ({},), 1j, float("inf")]
ODD_TENSORS: list[Any] = [
    _odd(lambda x: x[0]),
    _odd(lambda x: x[:, :1]),
    _odd(lambda x: x[:0]),
    _odd(lambda x: x * float("nan")),
    _odd(lambda x: x.double()),
    _odd(lambda x: x.half()),
    _odd(lambda x: x.int()),
    _odd(lambda x: x > 0.5),
    _odd(lambda x: x.to("meta")),
    _odd(lambda x: x.to_sparse()),
    _odd(lambda x: x.to(torch.float8_e4m3fn)),
    _odd(lambda x: x.to(torch.complex64)),
    _odd(lambda x: x[:, :, :100, :33]),
    _odd(lambda x: x[..., None]),
    _odd(lambda x: x[0, 0, 0, 0]),
]
ODD_PICTURES: list[Any] = [
    lambda w: Image.new("RGB", (0, 4)),
    lambda w: Image.new("L", (1, 900)),
    lambda w: Image.new("F", (5, 5)),
    lambda w: np.zeros((5, 5, 5, 5, 5), np.uint8),
    lambda w: np.zeros((4, 4), np.complex64),
    lambda w: np.array(["a"]),
    lambda w: np.zeros((2, 3, 4, 4), np.float32),
    lambda w: "a" * 5000,
    lambda w: "a\0.png",
    lambda w: "~nosuch/a.png",
    lambda w: Path("\ud800.png"),
    lambda w: w.folder,
    lambda w: [[np.zeros((4, 4), np.uint8)]],
]
TEXTS: list[Any] = [
    "",
    " ",
    "...",
    "\ud800",
    "a\0",
    "a\x01horse",
    "horse " * 500,
    "zebu",
    ["", "a"],
]

CALLS: dict[str, Callable[[World], Any]] = {
    "preprocess": lambda w: w.clip.preprocess(w.picture()),
    "denormalize": lambda w: w.clip.denormalize(w.images()),
    "encode_image": lambda w: w.clip.encode_image(w.images()),
    "encode_text": lambda w: w.clip.encode_text(w.text()),
    "color": lambda w: w.clip.color(w.pick([(0, 0.5, 1)], [*WRONG, (1, 2), ("a", 0, 0)])),
    "grid": lambda w: w.clip.grid(w.pick([224], [7, 0, -1]), w.pick([224], [7, 0, -1])),
    "targets.text": lambda w: targets.text(
        w.clip, w.text(), templates=w.pick([None, "a {}"], ["a", ["{}", 3], *WRONG])
    ),
    "targets.words": lambda w: targets.words(
        w.clip,
        w.pick(["a horse and a dog"], [*TEXTS, *WRONG]),
        w.pick([None, ["horse"], [(0, 2)]], [["cat"], [(2, 0)], [(0, 99)], *WRONG]),
    ),
    "targets.image": lambda w: targets.image(w.clip, w.picture()),
    "targets.embedding": lambda w: targets.embedding(
        w.pick([lambda w: w.tensor(2, 8)], [*ODD_TENSORS, *WRONG]), w.pick([None], [*WRONG])
    ),
    "Target[]": lambda w: targets.embedding(torch.eye(3))[w.pick([0, [1]], [w.number(), *WRONG])],
    "similarity": lambda w: ClipSimilarity(w.clip, targets.embedding(w.tensor(2, 128)))(w.images()),
    "attribute": lambda w: _attribution(w).attribute(
        w.images(), target=w.pick([0, 1, [0]], [2, -9, *WRONG])
    ),
    "attribute_targets": lambda w: _attribution(w).attribute_targets(
        w.images(), w.pick([None, [0], [1, 0]], [[2], [], *WRONG])
    ),
    "explain": lambda w: explain(
        w.picture(),
        w.text(),
        model=w.clip,
        method=w.pick([None, "direct"], ["gradcam", "", "last-grad:x=1", *WRONG]),
        sign=w.pick(["positive", "both"], ["neutral", *WRONG]),
        words=w.pick([False], [True, *WRONG]),
        batch_size=w.pick([None], [w.number()]),
    ),
    "classify": lambda w: classify(
        w.picture(),
        w.pick([["a horse", "a dog"]], [w.text(), *WRONG]),
        model=w.clip,
        templates=w.pick([None, "a {}"], ["a", [], *WRONG]),
        top=w.pick([None, 1], [w.number(), *WRONG]),
    ),
    "contrast": lambda w: explain(
        w.picture(), w.text(), against=w.pick(["a dog", None], [*WRONG]), model=w.clip
    ),
    "plot": lambda w: w.explanation.plot(
        cmap=w.pick([None, "viridis"], ["nothing", *WRONG]),
        alpha=w.pick([0.5], [2, -1, float("nan"), *WRONG]),
        interpolation=w.pick(["bilinear"], ["cubic", *WRONG]),
    ),
    "upsample": lambda w: maps.upsample(w.maps(), w.pick([(9, 9)], [(0, 9), 5, (9,), *WRONG])),
    "normalize": lambda w: maps.normalize(w.maps()),
    "expand_to_input": lambda w: maps.expand_to_input(w.maps(), w.images()),
    "overlay": lambda w: visualization.overlay(w.images(), w.maps()),
    "masked_changes": lambda w: metrics.masked_changes(
        lambda x: x.mean((1, 2, 3)), w.images(), grid=(2, 2), samples=w.number()
    ),
    "pointing_game": lambda w: metrics.pointing_game(w.maps(), w.maps()),
    "rank_correlation": lambda w: metrics.rank_correlation(w.maps(), w.maps()),
    "save": lambda w: w.explanation.save(
        w.pick([w.folder / "a.npz"], [*TEXTS, "s3://a/b.png", w.folder, *WRONG])
    ),
    "load": lambda w: Explanation.load(w.pick([w.folder / "a.npz"], [*TEXTS, w.folder, *WRONG])),
    "load_clip": lambda w: load_clip(
        w.pick([w.clip], [*TEXTS[:7], *WRONG]), device=w.pick([None], ["gpu", *WRONG])
    ),
    "StudyConfig": lambda w: StudyConfig(
        images=w.pick(["images"], WRONG),
        output=w.pick(["out"], WRONG),
        models=w.pick([("demo/vit",)], WRONG),
        texts=w.pick([("a horse",)], [*TEXTS, *WRONG]),
        batch_size=w.number(),
    ),
}


def _attribution(world: World) -> Any:
    forward = ClipSimilarity(world.clips["demo/vit"], targets.embedding(world.tensor(2, 128)))
    return world.random.choice([attr.LastGradAttention, attr.AllGradAttention])(forward)


def ends(folder: Path, cases: range, seed: int = 0) -> Iterator[End]:
    """Make the calls of these numbers, and tell how each ended."""
    world = World(folder, random.Random())
    world.explanation  # noqa: B018  (loads the model that others use)
    for case in cases:
        world.random.seed(f"{seed} {case}")
        name = world.random.choice(list(CALLS))
        yield end_of(case, name, partial(CALLS[name], world))


def end_of(case: int, name: str, call: Callable[[], Any]) -> End:
    """Make a call, and tell how it ended."""
    try:
        with warnings.catch_warnings(), time_limit():
            warnings.simplefilter("ignore")
            call()
    except ACCEPTED as error:
        long = len(str(error)) > 600
        text = f"a message of {len(str(error))} characters" if long else ""
        return End(case, name, "foreign" if long else "refused", text)
    except OutOfTime:
        return End(case, name, "out of time", traceback.format_exc(limit=-4))
    except Exception as error:
        if _at_the_door(error):
            return End(case, name, "refused")
        return End(case, name, "foreign", traceback.format_exc(limit=-4))
    return End(case, name, "right")


def _at_the_door(error: Exception) -> bool:
    """Whether it is a TypeError of the function that was called itself."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "captum_clip/" in frame.filename]
    return isinstance(error, TypeError) and len(ours) <= 1 and frames[-1] in [*ours, *frames[:2]]
