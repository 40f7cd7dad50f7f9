"""Scenes of the planted shortcut as data sets: a text, and the part that may be its reason."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

from PIL import Image
from typing_extensions import override

from ...demo.captions import article
from ...demo.tags import TaggedScene, draw_tagged_scene
from .base import Mask, Region, Sample
from .demo import _DemoData


class _TaggedScenes(_DemoData):
    """Test scenes of :func:`captum_clip.demo.tags.draw_tagged_scene`: an object, its tag, another.

    Each has one region, so that a table is about one text and one part of the scenes.
    """

    tasks = ("localization",)

    @override
    def _draw(self, name: str, index: int, scene: int) -> Sample:
        drawn = draw_tagged_scene(scene)
        noun, mask = self._part(drawn)
        return Sample(name, Image.fromarray(drawn.image), (Region(article(noun), mask),))

    @abstractmethod
    def _part(self, scene: TaggedScene) -> tuple[str, Mask]:
        """The noun that is explained, and where its map is looked for."""


@final
class DemoShortcut(_TaggedScenes):
    """The tagged noun, on the tag: where a map belongs if the tag is the reason.

    Example:
        >>> [region] = DemoShortcut(1).read(0).regions
        >>> region.text, int(region.mask.sum())
        ('a horse', 676)
    """

    name = "demo-shortcut"

    @override
    def _part(self, scene: TaggedScene) -> tuple[str, Mask]:
        return scene.noun, scene.tag_mask


@final
class DemoShortcutObject(_TaggedScenes):
    """The tagged noun, on its object: where a map looks right."""

    name = "demo-shortcut-object"

    @override
    def _part(self, scene: TaggedScene) -> tuple[str, Mask]:
        return scene.noun, scene.object_mask


@final
class DemoShortcutOther(_TaggedScenes):
    """The other object's noun, on the tag, which is not its reason."""

    name = "demo-shortcut-other"

    @override
    def _part(self, scene: TaggedScene) -> tuple[str, Mask]:
        return scene.others[0].noun, scene.tag_mask
