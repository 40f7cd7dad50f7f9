"""What the package does on one tower, job by job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, attr
from captum_clip.attr.registry import methods_for

from .timing import Run
from .towers import Tower

PLAIN = "plain forward"


# One does not depend on the target, the others repeat their backward for each.
_ONCE = (attr.AttentionRollout, attr.AllGradAttention, attr.ConservativePropagation)


def methods_of(tower: Tower) -> list[type[Any]]:
    """The methods that the tower's kind and size allow."""
    resnet = tower.clip.kind == "resnet"
    methods = [attr.METHODS[name] for name in methods_for("resnet" if resnet else "vit")]
    return [m for m in methods if not (tower.large and m is attr.AllGradAttention)]


def counted(count: int) -> str:
    """The number of targets, in words."""
    return f"{count} target{'s' * (count > 1)}"


def package_jobs(tower: Tower, images: Tensor, counts: Sequence[int], seed: int) -> dict[str, Run]:
    """The plain forward, then every method with a `ClipSimilarity` and with a user's callable."""
    jobs: dict[str, Run] = {PLAIN: tower.plain(images)}
    for count in counts:
        similarity = tower.similarity(count, seed)

        def own(pixels: Tensor, forward: ClipSimilarity = similarity) -> Tensor:
            return forward(pixels)

        for method in methods_of(tower):
            if count > 1 and method in _ONCE:
                continue
            for what, made in (
                ("", method(similarity)),
                (", own callable", method(own, tower.model)),
            ):
                name = f"{method.__name__}, {counted(count)}{what}"
                jobs[name] = partial(made.attribute_targets, images)
                if method is attr.DirectContribution and tower.reads_a_token:
                    name = f"{method.__name__}, depth='token', {counted(count)}{what}"
                    jobs[name] = partial(made.attribute_targets, images, depth="token")
    return jobs | pair_jobs(tower, images, seed)


def pair_jobs(tower: Tower, images: Tensor, seed: int) -> dict[str, Run]:
    """The images' vectors alone, and with the shares of 64 texts whose vectors are there."""
    direct = attr.DirectContribution(tower.similarity(1, seed))
    texts = tower.embeddings(64 * 77, seed).unflatten(0, (64, 77))

    def matrix() -> Tensor:
        return torch.einsum("bhwe,nte->bnthw", direct.vectors(images), texts.to(images))

    names = ("DirectContribution, vectors", "DirectContribution, vectors and 64 texts")
    return dict(zip(names, (partial(direct.vectors, images), matrix), strict=True))
