"""Small folders in the formats for photographs, of scenes whose masks are known."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip.demo.scenes import Scene, draw_scene
from tests.evaluation.data.writing import save, save_mask

PAIRS = (("horse", "dog"), ("cat", "car"), ("bus", "apple"), ("pizza", "duck"))
"""Things of the scenes of each folder, in order."""


def scenes(folder: Path) -> dict[str, Scene]:
    """A picture each in images/, and what it shows by its stem."""
    drawn = {f"scene{n}": draw_scene(n, objects=list(pair)) for n, pair in enumerate(PAIRS)}
    for stem, scene in drawn.items():
        save(Image.fromarray(scene.image), folder / f"images/{stem}.png")
    return drawn


def write_rows(path: Path, *rows: Iterable[object]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def make_captions(folder: Path) -> str:
    """A caption each, and the boxes of both things but in the last picture, as "captions:..."."""
    rows: list[tuple[object, ...]] = []
    for stem, scene in scenes(folder).items():
        caption = " and ".join(f"a {thing.noun}" for thing in scene.objects)
        for thing in scene.objects:
            left, top, right, bottom = Image.fromarray(thing.mask).getbbox() or (0, 0, 1, 1)
            rows.append((f"{stem}.png", caption, thing.noun, left, top, right - left, bottom - top))
    rows[-2:] = [(*rows[-1][:2], "", "", "", "", "")]
    header = ("image", "caption", "phrase", "x", "y", "width", "height")
    write_rows(folder / "captions.csv", header, *rows)
    return f"captions:{folder}"


def make_points(folder: Path) -> str:
    """Three points on each thing and three beside it, as "points:..."."""
    random, rows = np.random.default_rng(0), list[tuple[object, ...]]()
    for stem, scene in scenes(folder).items():
        for thing in scene.objects:
            for positive in (0, 1):
                places = np.argwhere(thing.mask == positive)
                for y, x in random.choice(places, 3, replace=False) + 0.5:
                    height, width = thing.mask.shape
                    rows.append((stem, f"a {thing.noun}", x / width, y / height, positive))
    write_rows(folder / "points.csv", ("image", "text", "x", "y", "positive"), *rows)
    return f"points:{folder}"


def make_counterfactuals(folder: Path) -> str:
    """Both things apart and together, but of the last picture its first thing alone."""
    for number, (stem, scene) in enumerate(scenes(folder).items()):
        nouns = [thing.noun for thing in scene.objects]
        for thing in scene.objects:
            save_mask(thing.mask, folder / f"masks/{stem}/a {thing.noun}.png")
        chosen = [[0], [1], [0, 1]] if number + 1 < len(PAIRS) else [[0]]
        for without in chosen:
            name = " + ".join(f"a {nouns[place]}" for place in without)
            drawn = draw_scene(number, objects=nouns, without=without)
            save(Image.fromarray(drawn.image), folder / f"without/{stem}/{name}.png")
    return f"counterfactuals:{folder}"
