"""A small model of a type."""

from __future__ import annotations

import torch

from tests import builders


def small(name, dtype=torch.float32, **vision):
    """A small model by its builder's name."""
    built = builders.BUILDERS[name](**vision)
    built.model.to(dtype)
    return built
