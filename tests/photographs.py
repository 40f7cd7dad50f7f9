"""Small lists of samples, of scenes whose masks are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip.demo.scenes import Scene, draw_scene
from tests.bench.data.writing import save, save_mask

PAIRS = (("horse", "dog"), ("cat", "car"), ("bus", "apple"), ("pizza", "duck"))
"""Things of the scenes of each folder, in order."""


def scenes(folder: Path) -> dict[str, Scene]:
    """A picture each in images/, and what it shows by its stem."""
    drawn = {f"scene{n}": draw_scene(n, objects=list(pair)) for n, pair in enumerate(PAIRS)}
    for stem, scene in drawn.items():
        save(Image.fromarray(scene.image), folder / f"images/{stem}.png")
    return drawn


def write_samples(folder: Path, *records: Any) -> str:
    """A list of samples, as "samples:FILE"."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return f"samples:{path}"


def _of_scenes(folder: Path, groups: Sequence[str]) -> list[tuple[Scene, dict[str, Any]]]:
    """Scenes, each with the record of its image and of its group, which take turns."""
    found = []
    for number, (stem, scene) in enumerate(scenes(folder).items()):
        group = {"group": groups[number % len(groups)]} if groups else {}
        found.append((scene, {"image": f"images/{stem}.png", **group}))
    return found


def make_captions(folder: Path, groups: Sequence[str] = ()) -> str:
    """A caption each, and the boxes of both things but in the last picture."""
    records = []
    for scene, record in _of_scenes(folder, groups):
        regions = []
        for thing in scene.objects:
            left, top, right, bottom = Image.fromarray(thing.mask).getbbox() or (0, 0, 1, 1)
            regions.append({"text": thing.noun, "box": [left, top, right - left, bottom - top]})
        caption = " and ".join(f"a {thing.noun}" for thing in scene.objects)
        records.append({**record, "caption": caption, "regions": regions})
    records[-1]["regions"] = []
    return write_samples(folder, *records)


def make_points(folder: Path, groups: Sequence[str] = ()) -> str:
    """Three points on each thing and three beside it."""
    random, records = np.random.default_rng(0), []
    for scene, record in _of_scenes(folder, groups):
        for thing in scene.objects:
            points = []
            for positive in (0, 1):
                places = np.argwhere(thing.mask == positive)
                for y, x in random.choice(places, 3, replace=False) + 0.5:
                    height, width = thing.mask.shape
                    points.append([x / width, y / height, positive])
            region = {"text": f"a {thing.noun}", "point": points}
            name = f"{Path(record['image']).stem}/a {thing.noun}"
            records.append({**record, "name": name, "regions": [region]})
    return write_samples(folder, {"truth": ["masks", "points"]}, *records)


def make_counterfactuals(folder: Path, groups: Sequence[str] = ()) -> str:
    """Both things apart and together, but of the last picture its first thing alone."""
    records = []
    for number, (scene, record) in enumerate(_of_scenes(folder, groups)):
        nouns = [thing.noun for thing in scene.objects]
        order = [nouns.index(noun) for noun in sorted(nouns)]
        regions = []
        subsets: list[str | None] = []
        for place in order:
            path = save_mask(scene.objects[place].mask, folder / f"masks/{number}/{place}.png")
            mask = str(path.relative_to(folder))
            regions.append({"text": f"a {nouns[place]}", "mask": mask})
        for without in (order, order[1:], order[:1]):
            drawn = draw_scene(number, objects=nouns, without=without)
            path = save(Image.fromarray(drawn.image), folder / f"without/{number}/{without}.png")
            is_there = number + 1 < len(PAIRS) or without == [0]
            subsets.append(str(path.relative_to(folder)) if is_there else None)
        records.append({**record, "regions": regions, "subsets": [*subsets, record["image"]]})
    return write_samples(folder, *records)
