"""What decides the twelve nouns, tag or object? Scenes drawn with and without either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from captum_clip import targets
from captum_clip.demo.catalog import NOUNS, article
from captum_clip.demo.scenes import MAX_OBJECTS
from captum_clip.metrics import Interval, bootstrap_mean, shapley_effects
from captum_clip.models import ClipAdapter
from captum_clip.targets.similarity import ClipSimilarity
from training.architectures import ARCHITECTURES
from training.evaluate import concept_scores, draw_scenes, figures, markdown

from .tags import TAGGED, Part, TaggedScene, draw_tagged_scene

PARTS: Final[tuple[Part, Part]] = ("tag", "object")
_BATCH: Final = 16  # scenes at a time

Models = Mapping[str, ClipAdapter]
"""Name -> model; each gets a row or a column of a table."""


class Drawing(NamedTuple):
    """How the scenes of one row are drawn, and whose noun is looked for in the scores.

    Attributes:
        title: of the row.
        own: the tag is the object's own, not another noun's.
        without: what is left out.
        of_tag: the noun looked for is the tag's, not the object's.
    """

    title: str
    own: bool
    without: tuple[Part, ...]
    of_tag: bool


DRAWINGS: Final = (
    Drawing("object and its tag: its noun", True, (), False),
    Drawing("object without a tag: its noun", True, ("tag",), False),
    Drawing("tag without the object: its noun", True, ("object",), True),
    Drawing("object and another tag: the tag's noun", False, (), True),
    Drawing("object and another tag: the object's noun", False, (), False),
)


def part_effects(clip: ClipAdapter, seeds: Sequence[int]) -> Tensor:
    """The exact Shapley effects (N, 2, 2) of tag and object on the cosines of two texts.

    Args:
        clip: a demo model.
        seeds: N test scenes, drawn with both, with either and with neither.

    Returns:
        Scenes, texts (of the tagged noun, of the first other object), tag and object.
    """
    effects = []
    for seed in tqdm(seeds, desc="effects", leave=False, disable=None):
        subsets = [[part for i, part in enumerate(PARTS) if not s >> i & 1] for s in range(4)]
        scenes = [draw_tagged_scene(seed, without=left_out) for left_out in subsets]
        texts = [article(scenes[-1].noun), article(scenes[-1].others[0].noun)]
        forward = ClipSimilarity(clip, targets.text(clip, texts))
        with torch.no_grad():
            scores = forward(clip.preprocess([scene.image for scene in scenes]))  # (4, 2)
        effects.append(shapley_effects(scores.T.cpu()))
    return torch.stack(effects)


def draw(drawing: Drawing, seed: int) -> TaggedScene:
    """Draw the test scene of a seed in one of the :data:`DRAWINGS`; all nouns come in turn."""
    count = len(TAGGED)
    shift = 0 if drawing.own else 1 + seed // count % (count - 1)
    noun, tag = TAGGED[seed % count], TAGGED[(seed + shift) % count]
    return draw_tagged_scene(seed, noun=noun, tag=tag, without=drawing.without)


def named(clip: ClipAdapter, drawing: Drawing, seeds: Sequence[int]) -> Interval:
    """The share of scenes whose noun is among the two best-scored of all 119."""
    forward = ClipSimilarity(clip, targets.text(clip, [article(noun) for noun in NOUNS]))
    hits: list[float] = []
    for start in range(0, len(seeds), _BATCH):
        scenes = [draw(drawing, seed) for seed in seeds[start : start + _BATCH]]
        with torch.no_grad():
            best = forward(clip.preprocess([scene.image for scene in scenes])).topk(2).indices
        nouns = [scene.tag if drawing.of_tag else scene.noun for scene in scenes]
        rows = zip(nouns, best.tolist(), strict=True)
        hits += [float(NOUNS.index(noun) in row) for noun, row in rows]
    return bootstrap_mean(hits)


def shortcut_tables(models: Models, number: int) -> dict[str, str]:
    """Measure what decides the nouns, in Markdown, with 95 % intervals over scenes.

    Args:
        models: demo ViTs.
        number: test scenes, seeds from 0.

    Returns:
        "effects": of tag and object on the cosine with both texts; "named": how often a noun is
        named, by :data:`DRAWINGS`; "recall": of nouns in scenes without a tag and without any noun
        that has one, which are taken from ``number`` scenes for each count of objects.
    """
    seeds = range(number)
    drawings = tqdm(DRAWINGS, desc="named", leave=False, disable=None)
    counts = range(1, MAX_OBJECTS + 1)
    return {
        "effects": markdown(
            ("model", "text", "effect of the tag", "effect of the object"),
            [row for name, clip in models.items() for row in _effect_rows(name, clip, seeds)],
        ),
        "named": markdown(
            ("among the two best nouns", *models),
            [
                (drawing.title, *(str(named(clip, drawing, seeds)) for clip in models.values()))
                for drawing in drawings
            ],
        ),
        "recall": markdown(
            ("recall of other nouns", *(f"{n} object{'s' * (n > 1)}" for n in counts)),
            [
                (name, *(f"{recall_of_others(clip, number, n):.3f}" for n in counts))
                for name, clip in models.items()
            ],
        ),
    }


def recall_of_others(clip: ClipAdapter, number: int, count: int) -> float:
    """Recall of nouns in the untagged of ``number`` scenes of so many objects, none in TAGGED."""
    drawn = draw_scenes("test", number=number, counts=[count])
    scenes = [s for s in drawn if not {thing.noun for thing in s.objects} & set(TAGGED)]
    scores = concept_scores(ARCHITECTURES["vit"], clip.model, scenes, device=str(clip.device))
    return figures(scores, scenes).nouns


def _effect_rows(name: str, clip: ClipAdapter, seeds: Sequence[int]) -> list[tuple[str, ...]]:
    effects = part_effects(clip, seeds).permute(1, 2, 0).tolist()  # texts, parts, scenes
    return [
        (name, text, *(_signed(bootstrap_mean(part)) for part in parts))
        for text, parts in zip(("the tagged noun", "another object"), effects, strict=True)
    ]


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
