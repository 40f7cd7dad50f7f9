"""Modified copies of models, for checks that need the same function in another form."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..errors import InputError, UnsupportedModelError
from .families import tower_of
from .towers import AttentionLayer, ViTTower

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def renumber_heads(model: Model, layer: int, permutation: Sequence[int]) -> Model:
    """A copy of the model that computes the same function with the heads of one layer renumbered.

    Head h of the copy is head ``permutation[h]`` of the original: the rows of the query, key and
    value maps move, and the columns of the output map with them.

    Args:
        model: a CLIP model or its vision tower; it is left as it is.
        layer: layer of the vision tower, negative from the end.
        permutation: of 0 ... heads - 1.

    Returns:
        A deep copy with that layer changed.

    Raises:
        UnsupportedModelError: the vision tower is no ViT.
        InputError: there is no such layer, or it is no permutation of the heads.
    """
    changed = copy.deepcopy(model)
    tower = tower_of(changed)
    if not isinstance(tower, ViTTower):
        raise UnsupportedModelError(
            f"renumber_heads: the vision tower is a {type(tower.module).__name__}, which has no "
            "layers with heads; pass a model with a ViT."
        )
    count = len(tower.layers)
    if not -count <= layer < count:
        raise InputError(
            f"renumber_heads: layer {layer} does not exist; the tower has the layers 0 ... "
            f"{count - 1}, or -{count} ... -1 from the end."
        )
    attention = tower.layers[layer]
    if sorted(permutation) != list(range(attention.heads)):
        raise InputError(
            f"renumber_heads: expected a permutation of 0 ... {attention.heads - 1}, got "
            f"{list(permutation)}."
        )
    _permute(attention, list(permutation))
    return changed


def _permute(attention: AttentionLayer, order: list[int]) -> None:
    maps = attention.projections()
    for rows in maps[:3]:  # query, key, value
        for values in (rows.weight, rows.bias):
            if values is not None:
                heads = values.reshape(attention.heads, -1, *values.shape[1:])
                values.copy_(heads[order].flatten(0, 1))
    columns = maps.output.weight.reshape(len(maps.output.weight), attention.heads, -1)
    maps.output.weight.copy_(columns[:, order].flatten(1))
