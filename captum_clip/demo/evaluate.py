"""How much of a scene a demo model reads off it.

``python -m captum_clip.demo.evaluate vit`` prints the figures on held-out scenes, one line for
each number of objects.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from captum_clip.demo.architectures import ARCHITECTURES, Architecture, normalize_pixels, trim, unit
from captum_clip.demo.captions import concept_prompts
from captum_clip.demo.catalogue import ADJECTIVES, BACKGROUNDS, CONCEPTS, NOUNS
from captum_clip.demo.scenes import MAX_OBJECTS, Scene, Split, draw_scene
from captum_clip.demo.vocabulary import DemoTokenizer


@dataclass(frozen=True)
class Figures:
    """Shares from 0 to 1 over some scenes.

    Args:
        nouns: the nouns of a scene with n objects among its n best-scored of all nouns.
        colors: coloured things ("red heart") whose own colour scores best of the nine words
            for it; NaN if there are none.
        feelings: faces ("sad face") whose own feeling scores best of all eight; NaN without faces.
        backgrounds: scenes whose own background scores best of all six.
    """

    nouns: float
    colors: float
    feelings: float
    backgrounds: float


def draw_scenes(
    split: Split, *, number: int, counts: Sequence[int], size: int = 224
) -> tuple[Scene, ...]:
    """Draw the scenes of seeds 0, 1, ... with each count of objects in turn."""
    return tuple(
        draw_scene(seed, split=split, count=counts[seed % len(counts)], size=size)
        for seed in range(number)
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
        texts = unit(architecture.encode_text(model, trim(prompts)))  # (K, D)
        for start in range(0, len(scenes), batch_size):
            chunk = scenes[start : start + batch_size]
            images = np.stack([scene.image for scene in chunk])  # (b, H, W, 3)
            pixels = normalize_pixels(images, device, architecture.memory_format)
            rows.append((unit(architecture.encode_image(model, pixels)) @ texts.T).cpu())
    return torch.cat(rows)


def _best(row: torch.Tensor, names: Sequence[str], number: int = 1) -> set[str]:
    columns = [CONCEPTS.index(name) for name in names]
    return {names[int(i)] for i in row[columns].topk(number).indices}


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
                found = feelings if thing.noun == "face" else colors
                names = [f"{word} {thing.noun}" for word in ADJECTIVES]
                known = [name for name in names if name in CONCEPTS]
                found.append(_best(row, known) == {thing.name})
        backgrounds.append(_best(row, BACKGROUNDS) == {scene.background})
    lists = (nouns, colors, feelings, backgrounds)
    return Figures(*(float(np.mean(x)) if x else np.nan for x in lists))


def evaluate(
    name: str, model: nn.Module, *, number: int = 500, device: str = "cpu"
) -> tuple[Figures, ...]:
    """Measure a model, in eval mode, on ``number`` test scenes with one, two, three objects."""
    measured = []
    for count in tqdm(range(1, MAX_OBJECTS + 1), desc="objects", disable=None):
        scenes = draw_scenes("test", number=number, counts=[count])
        scores = concept_scores(ARCHITECTURES[name], model, scenes, device=device)
        measured.append(figures(scores, scenes))
    return tuple(measured)


def load_exported(name: str, folder: Path) -> Any:
    """Load an exported demo model in single precision, in eval mode."""
    if name == "vit":
        from transformers import CLIPModel

        return CLIPModel.from_pretrained(folder).float().eval()
    import open_clip

    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False)
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Print how well an exported demo model reads held-out test scenes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--scenes", type=int, default=500, help="scenes for each count of objects")
    parser.add_argument("--folder", type=Path, help="an exported model; default: the packaged one")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(__file__).with_name(options.name)
    model = load_exported(options.name, folder).to(options.device)
    measured = evaluate(options.name, model, number=options.scenes, device=options.device)
    for count, found in enumerate(measured, start=1):
        print(
            f"{options.name}, {options.scenes} test scenes with {count} object(s): "
            f"nouns {found.nouns:.3f}, colours {found.colors:.3f}, "
            f"feelings {found.feelings:.3f}, backgrounds {found.backgrounds:.3f}"
        )


if __name__ == "__main__":
    main()
