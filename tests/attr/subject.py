"""What a law is about: a method on a tower, with one of two kinds of forward functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import targets
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders
from tests.attr import cases
from tests.attr.cases import Case


@dataclass
class Subject:
    """A method on a tower, with a forward function that is a `ClipSimilarity` or the user's."""

    name: str
    case: Case
    forward: str
    kind: Any = None  # another class than the case's own
    small: Any = None
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.kind or self.case.kind
        self.small = self.small or cases.built(self.name)
        self.options = self.case.options
        self.images = cases.images(self.name)
        self.model = self.small.model
        self.function, self.layer = self.build(self.small)

    def build(self, small: builders.Small) -> tuple[Any, Any]:
        """The forward function of a model, and the layer to pass."""
        clip = small.load()
        if self.forward == "similarity":
            return ClipSimilarity(clip, targets.embedding(cases.embeddings())), None
        model, embeddings = small.model, cases.embeddings().to(clip.dtype)

        def forward(pixels: Tensor) -> Tensor:
            features = cases.embed(model, pixels.to(embeddings.dtype))
            if features.dtype in (torch.float16, torch.bfloat16):
                features = features.float()
            return 20 * F.normalize(features, dim=-1) @ embeddings.to(features.dtype).T

        return forward, model

    @property
    def method(self) -> Any:
        """The method, made anew."""
        return self.kind(self.function, self.layer)

    def one(self, images: Any = None, target: Any = 1, method: Any = None) -> Any:
        """Maps of one target per image."""
        images = self.images if images is None else images
        return (method or self.method).attribute(images, target=target, **self.options)

    def all(self, images: Any = None, **more: Any) -> Any:
        """Maps of all targets."""
        images = self.images if images is None else images
        return self.method.attribute_targets(images, **more, **self.options)

    @property
    def middle(self) -> Any:
        """A module half-way through the tower."""
        tower = self.small.load().tower
        if tower.kind == "vit":
            block = tower.layers[1].block
            if self.case.method == "DirectContribution":  # it refuses hooks on all but the MLP
                steps = tower.layers[1].mlp_branch()
                return next(step for step in steps if isinstance(step, nn.Module))
            return block
        return list(tower.stages.values())[1]
