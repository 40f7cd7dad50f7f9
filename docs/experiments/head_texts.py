"""What is left of a model whose heads are their texts, and of a shortcut whose heads are ablated.

``python docs/experiments/head_texts.py spans`` replaces every head of ``demo/vit`` by its mean and
the span of m texts (:func:`captum_clip.apps.heads.text_span`, or random ones), over 240 scenes, and
counts how often the first of 119 nouns stays. ``ablation`` ablates those heads of the shortcut
model that add most to the tag's noun against the object's, where the two disagree. ``draw FOLDER``
writes the scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from captum_clip import load_clip, targets
from captum_clip.apps import heads
from captum_clip.attr import HeadVectors
from captum_clip.demo.catalog import NOUNS, article, concept_texts
from captum_clip.demo.scenes import draw_scene
from captum_clip.metrics import bootstrap_mean
from shortcut import MODEL
from shortcut.measures import DRAWINGS, draw

DRAWS = 10
"""Random choices, of texts or of heads, that a control is the mean of."""
ANOTHER_TAG = next(drawing for drawing in DRAWINGS if not drawing.own and drawing.of_tag)


def explained(outputs: Tensor, texts: Tensor) -> tuple[Tensor, float]:
    """A head's outputs (N, E) in the span of texts, and the share of the variance that stays."""
    centered = outputs.double() - outputs.double().mean(0)
    projected = texts.double() @ torch.linalg.pinv(centered, rtol=1e-5) @ centered
    kept = centered @ torch.linalg.pinv(projected, rtol=1e-9) @ projected
    return kept - centered, float(kept.square().sum() / centered.square().sum())


def spans(number: int) -> None:
    """Print the table of heads that are replaced by texts."""
    clip = load_clip("demo/vit")
    vectors = heads.head_vectors(clip, (draw_scene(seed).image for seed in range(number)))
    nouns = targets.text(clip, [article(noun) for noun in NOUNS]).embeddings
    pool = targets.text(clip, concept_texts())
    first = (vectors.embeddings @ nouns.T).argmax(1)
    generator = torch.Generator().manual_seed(0)
    print("| texts a head | variance kept | by random texts | first noun kept | by random texts |")
    print("|---|---|---|---|---|")
    for count in (5, 10, 20, 30):
        shares: dict[bool, list[float]] = {False: [], True: []}
        kept: dict[bool, list[float]] = {False: [], True: []}
        for draw_number in range(1 + DRAWS):
            is_random, replaced = draw_number > 0, vectors.embeddings.double()
            for layer, head in heads.rank_heads(vectors):
                outputs = vectors.heads[:, layer, head]
                if is_random:
                    chosen = torch.randperm(len(pool), generator=generator)[:count].tolist()
                else:
                    names = heads.text_span(outputs, pool, count).texts
                    chosen = [pool.names.index(name) for name in names]
                change, share = explained(outputs, pool.embeddings[chosen])
                shares[is_random].append(share)
                replaced = replaced + change
            same = (replaced @ nouns.double().T).argmax(1) == first
            kept[is_random].append(float(same.double().mean()))
        cells = [
            sum(values[k]) / len(values[k]) for values in (shares, kept) for k in (False, True)
        ]
        print(f"| {count} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")


def disagreeing(number: int) -> tuple[HeadVectors, Tensor, Tensor, Tensor]:
    """Scenes with an object and another's tag: vectors, nouns (119, E), numbers of both (N,)."""
    clip = load_clip(str(MODEL))
    scenes = [draw(ANOTHER_TAG, seed) for seed in range(number)]
    nouns = targets.text(clip, [article(noun) for noun in NOUNS]).embeddings
    tag, thing = ([NOUNS.index(getattr(s, part)) for s in scenes] for part in ("tag", "noun"))
    vectors = heads.head_vectors(clip, (scene.image for scene in scenes))
    return vectors, nouns, torch.tensor(tag), torch.tensor(thing)


def in_top_two(embeddings: Tensor, nouns: Tensor, wanted: Tensor) -> Tensor:
    """Whether one noun for each image is among the two best."""
    return ((embeddings @ nouns.T).topk(2).indices == wanted[:, None]).any(1).double()


def mean_ablation(vectors: HeadVectors, ablated: Sequence[heads.Head]) -> Tensor:
    """The unit embeddings (N, E) with some heads at their mean over the images."""
    layers, columns = zip(*ablated, strict=True)
    chosen = vectors.heads[:, layers, columns]  # (N, m, E)
    return vectors.embeddings - (chosen - chosen.mean(0)).sum(1)


def ablation(number: int) -> None:
    """Print the table of the shortcut's ablated heads."""
    vectors, nouns, tag, thing = disagreeing(number)
    ranked = [*heads.rank_heads(vectors, nouns[tag] - nouns[thing])]
    generator = torch.Generator().manual_seed(0)
    print("| heads ablated | the tag's noun | the object's noun | the tag's, random heads |")
    print("|---|---|---|---|")
    for count in (0, 1, 2, 4, 8, 12, 24):
        left = mean_ablation(vectors, ranked[:count]) if count else vectors.embeddings
        cells = [str(bootstrap_mean(in_top_two(left, nouns, one))) for one in (tag, thing)]
        controls = []
        for _ in range(DRAWS * (count > 0)):
            order = torch.randperm(len(ranked), generator=generator)[:count].tolist()
            left = mean_ablation(vectors, [ranked[index] for index in order])
            controls.append(in_top_two(left, nouns, tag).mean())
        cells.append(f"{torch.stack(controls).mean():.2f}" if controls else "")
        print(f"| {count} | {' | '.join(cells)} |")


def main() -> None:
    """Print a table, or write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["spans", "ablation", "draw"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("scenes"))
    parser.add_argument("--scenes", type=int, default=240)
    options = parser.parse_args()
    if options.what != "draw":
        {"spans": spans, "ablation": ablation}[options.what](options.scenes)
        return
    options.folder.mkdir(exist_ok=True)
    for seed in range(options.scenes):
        Image.fromarray(draw_scene(seed).image).save(options.folder / f"{seed:03d}.png")


if __name__ == "__main__":
    main()
