"""The tagged scenes as data sets of an evaluation: a text, and the part that may be its reason.

A data set of one's own is a class with samples by name; an entry in ``DATA_SETS`` makes it known
under its name to ``captum-clip evaluate``, as `evaluate_shortcut.py` next to this folder does.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from captum_clip.bench.data.base import DataSet, NamedRegion, Sample
from captum_clip.demo.catalog import NOUNS, article

from .tags import TaggedScene, draw_tagged_scene


class Shortcut(DataSet):
    """The tagged noun, on the tag: where a map belongs if the tag is the reason.

    Each scene has one region, so that a table is about one text and one part of the scenes.

    Args:
        number: how many scenes.
        seed: another seed gives other scenes.
    """

    name = "shortcut"
    truth = ("masks",)

    def __init__(self, number: int = 500, seed: int = 0) -> None:
        self.number, self.seed = number, seed
        self.names = tuple(f"{index:05d}" for index in range(number))
        self.classes = tuple(article(noun) for noun in NOUNS)

    def read(self, index: int) -> Sample:
        """Draw one scene, with the region that this data set asks for."""
        scene = draw_tagged_scene(100_000 * self.seed + index)
        return Sample(self.names[index], Image.fromarray(scene.image), (self.region(scene),))

    def identity(self) -> dict[str, Any]:
        """All that decides the scenes; a run that goes on with others is refused."""
        return {"data": self.name, "number": self.number, "seed": self.seed}

    def region(self, scene: TaggedScene) -> NamedRegion:
        """The text that is explained, with the part that its map is looked for on."""
        return NamedRegion(article(scene.noun), scene.tag_mask)


class ShortcutObject(Shortcut):
    """The tagged noun, on its object: where a map looks right."""

    name = "shortcut-object"

    def region(self, scene: TaggedScene) -> NamedRegion:
        """The tagged noun and its object."""
        return NamedRegion(article(scene.noun), scene.object_mask)


class ShortcutOther(Shortcut):
    """The other object's noun, on the tag, which is not its reason."""

    name = "shortcut-other"

    def region(self, scene: TaggedScene) -> NamedRegion:
        """The noun of the other object and the tag."""
        return NamedRegion(article(scene.others[0].noun), scene.tag_mask)


SETS = (Shortcut, ShortcutObject, ShortcutOther)
"""All of them; `evaluate_shortcut.py` registers them."""
