"""What decides the twelve nouns, tag or object? Scenes drawn with and without either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .. import targets
from ..metrics import Interval, bootstrap_mean, shapley_effects
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from .architectures import ARCHITECTURES
from .captions import article
from .catalogue import NOUNS
from .evaluate import concept_scores, draw_scenes, figures
from .scenes import MAX_OBJECTS
from .tags import TAGGED, Part, TaggedScene, draw_tagged_scene

PARTS: Final[tuple[Part, Part]] = ("tag", "object")
_BATCH: Final = 16  # scenes at a time


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


def texts_of(scene: TaggedScene) -> list[str]:
    """Two texts about a scene: of the tagged noun, of the first other object.

    Example:
        >>> from captum_clip.demo.tags import draw_tagged_scene
        >>> texts_of(draw_tagged_scene(0))
        ['a horse', 'a coffee']
    """
    return [article(scene.noun), article(scene.others[0].noun)]


def part_effects(clips: Sequence[ClipAdapter], seeds: Sequence[int]) -> Tensor:
    """The exact Shapley effects of tag and object on the cosines with :func:`texts_of`.

    Args:
        clips: M demo models.
        seeds: N test scenes, drawn with both, with either and with neither.

    Returns:
        (M, N, 2, 2): models, scenes, texts, tag and object.
    """
    found: list[list[Tensor]] = [[] for _ in clips]
    for seed in tqdm(seeds, desc="effects", leave=False, disable=None):
        subsets = [[part for i, part in enumerate(PARTS) if not s >> i & 1] for s in range(4)]
        scenes = [draw_tagged_scene(seed, without=left_out) for left_out in subsets]
        for clip, effects in zip(clips, found, strict=True):
            forward = ClipSimilarity(clip, targets.text(clip, texts_of(scenes[-1])))
            with torch.no_grad():
                scores = forward(clip.preprocess([scene.image for scene in scenes]))  # (4, 2)
            effects.append(shapley_effects(scores.T.cpu()))
    return torch.stack([torch.stack(effects) for effects in found])


def draw(drawing: Drawing, seed: int) -> TaggedScene:
    """Draw the test scene of a seed in one of the :data:`DRAWINGS`; all nouns come in turn."""
    count = len(TAGGED)
    shift = 0 if drawing.own else 1 + seed // count % (count - 1)
    noun, tag = TAGGED[seed % count], TAGGED[(seed + shift) % count]
    return draw_tagged_scene(seed, noun=noun, tag=tag, without=drawing.without)


def named(
    clips: Sequence[ClipAdapter], drawing: Drawing, seeds: Sequence[int]
) -> tuple[Interval, ...]:
    """For each model the share of scenes whose noun is among the two best-scored of all 119."""
    texts = [article(noun) for noun in NOUNS]
    forwards = [ClipSimilarity(clip, targets.text(clip, texts)) for clip in clips]
    hits: list[list[float]] = [[] for _ in clips]
    for start in range(0, len(seeds), _BATCH):
        scenes = [draw(drawing, seed) for seed in seeds[start : start + _BATCH]]
        wanted = [NOUNS.index(s.tag if drawing.of_tag else s.noun) for s in scenes]
        for forward, own in zip(forwards, hits, strict=True):
            images = forward.clip.preprocess([scene.image for scene in scenes])
            with torch.no_grad():
                best = forward(images).topk(2).indices.tolist()
            own += [float(noun in row) for noun, row in zip(wanted, best, strict=True)]
    return tuple(bootstrap_mean(own) for own in hits)


def recall_of_others(clips: Sequence[ClipAdapter], number: int) -> tuple[tuple[float, ...], ...]:
    """Recall of nouns in scenes without a tag and without any noun that has one.

    Args:
        clips: M demo ViTs.
        number: test scenes with one, with two and with three objects, from which those without
            such a noun are taken.

    Returns:
        For each number of objects the recall of each model.
    """
    found = []
    for count in range(1, MAX_OBJECTS + 1):
        drawn = draw_scenes("test", number=number, counts=[count])
        scenes = [s for s in drawn if not {thing.noun for thing in s.objects} & set(TAGGED)]
        run = ARCHITECTURES["vit"]
        scores = [
            concept_scores(run, clip.model, scenes, device=str(clip.device)) for clip in clips
        ]
        found.append(tuple(figures(one, scenes).nouns for one in scores))
    return tuple(found)


def effects_table(clips: Sequence[ClipAdapter], seeds: Sequence[int]) -> str:
    """Markdown: mean effects of tag and object, for both texts, one row a model and text."""
    lines = ["| model | text | effect of the tag | effect of the object |", "|---|---|---|---|"]
    for clip, effects in zip(clips, part_effects(clips, seeds), strict=True):
        for text, label in enumerate(("the tagged noun", "another object")):
            tag, thing = (bootstrap_mean(effects[:, text, part].tolist()) for part in range(2))
            lines.append(f"| {clip.name} | {label} | {_signed(tag)} | {_signed(thing)} |")
    return "\n".join(lines)


def named_table(clips: Sequence[ClipAdapter], seeds: Sequence[int]) -> str:
    """Markdown: how often a noun is named, one row a drawing, one column a model."""
    lines = [f"| among the two best nouns | {' | '.join(clip.name for clip in clips)} |"]
    lines.append("|---" * (1 + len(clips)) + "|")
    for drawing in tqdm(DRAWINGS, desc="named", leave=False, disable=None):
        cells = " | ".join(map(str, named(clips, drawing, seeds)))
        lines.append(f"| {drawing.title} | {cells} |")
    return "\n".join(lines)


def recall_table(clips: Sequence[ClipAdapter], number: int) -> str:
    """Markdown: recall of the nouns without a tag, one row a model."""
    heads = (f"{count} object{'s' * (count > 1)}" for count in range(1, MAX_OBJECTS + 1))
    lines = [f"| recall of other nouns | {' | '.join(heads)} |", "|---" * (1 + MAX_OBJECTS) + "|"]
    shares = zip(*recall_of_others(clips, number), strict=True)
    for clip, row in zip(clips, shares, strict=True):
        cells = (f"{share:.3f}" for share in row)
        lines.append(f"| {clip.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _signed(found: Interval) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
