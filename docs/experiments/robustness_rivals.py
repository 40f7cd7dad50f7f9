"""What a guess without a map reaches on the scenes of `robustness.py`, and how stable orders are.

``python docs/experiments/robustness_rivals.py`` prints the share of objects that the center of the
image, a random cell and the largest object of the scene hit. Next to it is how far the objects of
a group order the methods that read the text as all objects do (Spearman), from the tables in
``measured``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from broad_scenes import BROAD
from captum_clip.demo.scenes import draw_scene
from robustness import COVERED, SIZES, properties
from tables import markdown, short

MEASURED = Path(__file__).with_name("measured")
SCENES, CELL = 600, 32  # a cell of the grid of 7 x 7, in pixels
MODELS = {"vit": "ViT", "siglip": "SigLIP"}  # of a ResNet there are two methods only


def guesses() -> pd.DataFrame:
    """The share of objects that each guess hits, a row for each group."""
    backgrounds = list(dict.fromkeys((*BROAD.backgrounds, *BROAD.held_out)))
    scenes = []
    for seed in range(SCENES):
        turn, kind = divmod(seed, len(backgrounds))
        options: dict[str, Any] = {"world": BROAD, "background": backgrounds[kind]}
        scene = draw_scene(seed, count=1 + turn % BROAD.objects, **options)
        masks = [thing.mask for thing in scene.objects]
        cells = [mask[CELL // 2 :: CELL, CELL // 2 :: CELL] for mask in masks]
        largest = max(mask.sum() for mask in masks)
        hits = {
            "center": [float(each[3, 3]) for each in cells],
            "random": [each.mean() for each in cells],
            "area": [float(mask.sum() == largest) for mask in masks],
        }
        scenes.append(pd.DataFrame([*properties(scene, seed, **options)]).assign(**hits))
    rows = pd.concat(scenes, ignore_index=True)
    for column, ends in (("size", SIZES), ("covered", COVERED)):
        labels = [f"up to {end:g}" for end in ends[1:]]
        rows[column] = pd.cut(rows[column], ends, labels=labels, include_lowest=True)
    groups = {"all": rows}
    for column in ("background", "objects", "size", "covered"):
        by_value = rows.groupby(column, observed=True)
        groups |= {f"{column}: {value}": group for value, group in by_value}
    return pd.DataFrame({name: group[[*hits]].mean() for name, group in groups.items()}).T


def orders(model: str) -> pd.Series:
    """The rank correlation of each group's order of methods with that of all objects."""
    text = (MEASURED / f"robustness_{model}" / "printed.txt").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    shares = pd.DataFrame(lines[2:], columns=lines[0]).set_index(lines[0][0])
    shares = shares.drop(columns=["noun found", "rollout", "n"]).astype(float)
    return shares.rank(axis=1).T.corr()["all"]


def main() -> None:
    """Print the table."""
    rivals = guesses()
    by_model = {title: orders(model) for model, title in MODELS.items()}
    rows = [
        [name, *(short(hit) for hit in hits), *(short(order[name]) for order in by_model.values())]
        for name, *hits in rivals.itertuples()
    ]
    markdown(("scenes", *rivals.columns, *(f"order, {title}" for title in by_model)), rows)


if __name__ == "__main__":
    main()
