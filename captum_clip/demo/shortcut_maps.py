"""Which methods show the tag? Maps of tagged scenes, held against tag and object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, Occlusion, Saliency
from torch import Tensor
from tqdm import tqdm

from .. import maps, targets
from ..attr import LayerAttention
from ..attr.registry import MethodChoice
from ..metrics import bootstrap_mean, energy_inside, holm, paired_difference, pointing_game
from ..metrics.localization import dilate
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from .pointing import methods_for
from .shortcut_effects import texts_of
from .tags import TaggedScene

NEAR: Final = 15  # pixels, the tolerance of the paper of the pointing game
SLOW: Final = "Captum's "  # methods of this prefix read a third of the scenes
_WINDOW: Final = 32  # pixels of Occlusion, a patch of the models
_STEPS: Final = 20  # of IntegratedGradients

Reader = Callable[[ClipSimilarity, Tensor], Tensor]
"""(forward, one image (1, 3, H, W)) -> maps (K, h, w) of all targets."""


class Reading(NamedTuple):
    """What the maps of one method show, scene by scene.

    Attributes:
        tag_hits: (N,) is the maximum of the tagged noun's map on the tag, within 15 pixels?
        object_hits: (N,) is it on the object?
        tag_lift: (N,) share of its positive mass on the tag over the tag's share of the image;
            NaN for a map without positive mass.
        object_lift: (N,) the same for the object.
        tag_hits_other: (N,) is the maximum of the other object's map on the tag?
    """

    tag_hits: Tensor
    object_hits: Tensor
    tag_lift: Tensor
    object_lift: Tensor
    tag_hits_other: Tensor


def readers(clip: ClipAdapter) -> dict[str, Reader]:
    """All methods by name: this package's, Captum's own for reference, baselines."""
    last = MethodChoice.of(LayerAttention, {"index": -1})
    return {
        **{name: partial(_ours, MethodChoice.of(name)) for name in methods_for(clip)},
        f"{SLOW}IntegratedGradients": partial(_captums, IntegratedGradients, n_steps=_STEPS),
        f"{SLOW}Saliency": partial(_captums, Saliency),
        f"{SLOW}Occlusion": partial(
            _captums,
            Occlusion,
            sliding_window_shapes=(3, _WINDOW, _WINDOW),
            strides=(3, _WINDOW, _WINDOW),
            perturbations_per_eval=49,
        ),
        "last layer's attention": partial(_ours, last),
        "random": partial(_random, torch.Generator().manual_seed(0)),
    }


def _ours(choice: MethodChoice, forward: ClipSimilarity, image: Tensor) -> Tensor:
    found: Tensor = choice.method(forward).attribute_targets(image, **choice.options)
    return found[0]


def _captums(method: type[Any], forward: ClipSimilarity, image: Tensor, **options: Any) -> Tensor:
    """One map a target; the channels are added up."""
    attribution = method(forward)
    image = image.clone().requires_grad_()
    rows = range(len(forward.target.names))
    found = [attribution.attribute(image, target=row, **options)[0].sum(0) for row in rows]
    return torch.stack(found).detach()


def _random(generator: torch.Generator, forward: ClipSimilarity, image: Tensor) -> Tensor:
    grid = forward.clip.grid(image.shape[-2], image.shape[-1])
    return torch.rand(len(forward.target.names), *grid, generator=generator)


def draw_maps(clip: ClipAdapter, scene: TaggedScene, reader: Reader) -> Tensor:
    """The positive maps (2, h, w) of the tagged noun and of the other object."""
    forward = ClipSimilarity(clip, targets.text(clip, texts_of(scene)))
    return maps.positive(reader(forward, clip.preprocess(scene.image)).float().cpu())


class Marked(NamedTuple):
    """A scene with what counts as on its tag and on its object.

    Attributes:
        scene: with tag, object and at least one other object.
        masks: (2, H, W) bool, tag and object.
        near: (2, H, W) bool, the same with all that is within 15 pixels.
    """

    scene: TaggedScene
    masks: Tensor
    near: Tensor

    @classmethod
    def of(cls, scene: TaggedScene) -> Marked:
        """Mark a scene, once for all methods: it takes longer than most maps."""
        masks = torch.from_numpy(np.stack([scene.tag_mask, scene.object_mask]))
        return cls(scene, masks, dilate(masks, NEAR))


def read(clip: ClipAdapter, scenes: Sequence[Marked], name: str) -> Reading:
    """Draw the maps of one method by its name in :func:`readers`, and hold them against the masks.

    Args:
        clip: a demo ViT.
        scenes: at least one.
        name: of the method; Captum's own take so long that they read the first third.
    """
    reader = readers(clip)[name]
    scenes = scenes[: -(-len(scenes) // 3)] if name.startswith(SLOW) else scenes
    rows = []
    for marked in tqdm(scenes, desc=f"{clip.name}, {name}", leave=False, disable=None):
        named, other = draw_maps(clip, marked.scene, reader)  # (h, w) each
        hits = pointing_game(named.expand(2, -1, -1), marked.near)
        lift = energy_inside(named.expand(2, -1, -1), marked.masks) / _share(marked.masks)
        rows.append([*hits, *lift, pointing_game(other, marked.near[0])])
    return Reading(*torch.tensor(rows).T)


def chance(scenes: Sequence[Marked]) -> tuple[float, float]:
    """How often a random pixel lies on the tag, and on the object, within 15 pixels."""
    tag, thing = torch.stack([_share(marked.near) for marked in scenes]).mean(0).tolist()
    return tag, thing


def _share(masks: Tensor) -> Tensor:
    return masks.float().mean((-2, -1))


def maps_table(found: dict[str, Reading]) -> str:
    """Markdown: one row a method of one model."""
    lines = [
        "| method | maximum on the tag | on the object | tag lift | object lift "
        "| text of another object: on the tag | scenes | empty maps |",
        "|---" * 8 + "|",
    ]
    for name, reading in found.items():
        empty = int(reading.tag_lift.isnan().sum())
        cells = (*map(_mean, reading), str(len(reading.tag_lift)), str(empty))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Tensor) -> str:
    some = values[~values.isnan()]
    return str(bootstrap_mean(some)) if len(some) else "-"


def differences_table(shortcut: dict[str, Reading], control: dict[str, Reading]) -> str:
    """Markdown: how much more often the maximum is on the tag than in the other model's maps.

    Paired over scenes; p values with Holm's correction over the methods.
    """
    pairs = {name: (shortcut[name].tag_hits, control[name].tag_hits) for name in shortcut}
    differences = {name: paired_difference(*both) for name, both in pairs.items()}
    adjusted = holm([difference.p_value for difference in differences.values()])
    lines = ["| method | shortcut - control, maximum on the tag | p (Holm) |", "|---|---|---|"]
    for (name, difference), p_value in zip(differences.items(), adjusted, strict=True):
        lines.append(f"| {name} | {difference} | {p_value:.3f} |")
    return "\n".join(lines)
