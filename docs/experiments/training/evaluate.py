"""How much of a scene a demo model reads off it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from captum_clip.demo.catalog import ADJECTIVES, BACKGROUNDS, CONCEPTS, NOUNS, DemoTokenizer
from captum_clip.demo.scenes import MAX_OBJECTS, STANDARD, Scene, Split, World, draw_scene

from .architectures import Architecture, normalize_pixels, unit
from .broad_scenes import BROAD
from .captions import concept_prompts


@dataclass(frozen=True)
class Figures:
    """Shares from 0 to 1 over some scenes.

    Args:
        nouns: the nouns of a scene with n objects among its n best-scored of all nouns.
        colors: colored things ("red heart") whose own color scores best of the nine words
            for it; NaN if there are none.
        feelings: faces ("sad face") whose own feeling scores best of all eight; NaN without faces.
        backgrounds: scenes whose own background scores best of all six; NaN where none has a name.
    """

    nouns: float
    colors: float
    feelings: float
    backgrounds: float


def draw_scenes(
    split: Split,
    *,
    number: int,
    counts: Sequence[int],
    world: World = STANDARD,
    background: str | None = None,
) -> tuple[Scene, ...]:
    """Draw the scenes of seeds 0, 1, ... with each count of objects in turn."""
    options: dict[str, Any] = {"split": split, "world": world, "background": background}
    return tuple(
        draw_scene(seed, count=counts[seed % len(counts)], **options) for seed in range(number)
    )


def concept_scores(
    architecture: Architecture,
    model: nn.Module,
    scenes: Sequence[Scene],
    *,
    device: str = "cpu",
    batch_size: int = 64,
) -> torch.Tensor:
    """Cosines (N, len(CONCEPTS)) of scenes with "a horse", ..., "a red heart", ..., "grass".

    Args:
        architecture: how to run the model.
        model: in eval mode.
        scenes: N, at least one.
        device: the model's.
        batch_size: scenes at a time.
    """
    rows = []
    with torch.no_grad():
        prompts = DemoTokenizer()(list(concept_prompts())).to(device)
        texts = unit(architecture.encode_text(model, prompts))  # (K, D)
        for start in range(0, len(scenes), batch_size):
            images = np.stack([scene.image for scene in scenes[start : start + batch_size]])
            pixels = normalize_pixels(images, device, architecture.memory_format)
            rows.append((unit(architecture.encode_image(model, pixels)) @ texts.T).cpu())
    return torch.cat(rows)


def figures(scores: torch.Tensor, scenes: Sequence[Scene]) -> Figures:
    """Sum up the scores (N, len(CONCEPTS)) of N scenes."""
    nouns: list[bool] = []
    colors: list[bool] = []
    feelings: list[bool] = []
    backgrounds: list[bool] = []
    for scene, row in zip(scenes, scores, strict=True):
        shown = {thing.noun for thing in scene.objects}
        best = _best(row, NOUNS, len(shown))
        nouns += [noun in best for noun in shown]
        for thing in scene.objects:
            if thing.adjective is not None:
                hits = feelings if thing.noun == "face" else colors
                names = [f"{word} {thing.noun}" for word in ADJECTIVES]
                known = [name for name in names if name in CONCEPTS]
                hits.append(_best(row, known) == {thing.name})
        if scene.background in BACKGROUNDS:
            backgrounds.append(_best(row, BACKGROUNDS) == {scene.background})
    lists = (nouns, colors, feelings, backgrounds)
    return Figures(*(float(np.mean(hits)) if hits else np.nan for hits in lists))


def _best(row: torch.Tensor, names: Sequence[str], number: int = 1) -> set[str]:
    columns = [CONCEPTS.index(name) for name in names]
    return {names[int(i)] for i in row[columns].topk(number).indices}


def by_objects(number: int) -> Iterator[tuple[str, tuple[Scene, ...]]]:
    """Test scenes with one, two and three objects, so many of each, seeds from 0."""
    for count in range(1, MAX_OBJECTS + 1):
        yield str(count), draw_scenes("test", number=number, counts=[count])


def by_kind(number: int) -> Iterator[tuple[str, tuple[Scene, ...]]]:
    """Test scenes with two and three objects: standard ones, then broad ones by background."""
    yield "standard", draw_scenes("test", number=number, counts=[2, 3])
    for name in dict.fromkeys((*BROAD.backgrounds, *BROAD.held_out)):
        title = f"{name} (held out)" if name in BROAD.held_out else name
        options: dict[str, Any] = {"world": BROAD, "background": name}
        yield title, draw_scenes("test", number=number, counts=[2, 3], **options)


def recall_table(
    architecture: Architecture,
    model: nn.Module,
    groups: Iterable[tuple[str, Sequence[Scene]]],
    *,
    heading: str,
    device: str = "cpu",
) -> str:
    """Markdown: the figures of a model, in eval mode, on each of some named groups of scenes."""
    rows = []
    for title, scenes in tqdm(groups, desc="scenes", disable=None):
        measured = figures(concept_scores(architecture, model, scenes, device=device), scenes)
        rows.append((title, *(f"{figure:.3f}" for figure in astuple(measured))))
    return markdown((heading, "nouns", "colors", "feelings", "backgrounds"), rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")
