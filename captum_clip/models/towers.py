"""What a recording needs of a vision tower, whichever library the tower comes from.

A model family implements these classes in its own file; nothing above asks which family it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UnsupportedModelError

Kind = Literal["vit", "resnet"]
Pooling = Literal["cls", "mean"]


class Linear(NamedTuple):
    """The parameters of one linear map, as they are at this moment."""

    weight: Tensor  # (D_out, D_in)
    bias: Tensor | None  # (D_out,)


class Projections(NamedTuple):
    """The four linear maps of one multi-head self-attention."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear


class AttentionLayer(ABC):
    """One residual block of a ViT, seen from its self-attention.

    The block computes ``z = r + scale(attention(norm(r)))`` and ``z + mlp(z)``, where ``r`` is the
    block's input; ``norm(r)`` are the tokens that enter ``attention``.
    """

    def __init__(self, block: nn.Module, attention: nn.Module, heads: int) -> None:
        self.block = block
        self.attention = attention
        self.heads = heads

    @abstractmethod
    def projections(self) -> Projections:
        """The live query, key, value and output maps."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """What query times key is multiplied with, usually head size ** -0.5."""

    @abstractmethod
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The tokens (B, s, D) among the arguments of the attention module."""

    @abstractmethod
    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The block's input (B, s, D) among the arguments of the block."""

    @abstractmethod
    def output(self, result: Any) -> Tensor:
        """The output (B, s, D) in what the attention module returned."""

    @abstractmethod
    def replaced(self, result: Any, output: Tensor) -> Any:
        """`result` with `output` (B, s, D) in the place of its output."""

    @abstractmethod
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input and the attention's output, both (..., D)."""

    def taps(self) -> Mapping[Literal["query", "key", "value", "mixed"], tuple[nn.Module, bool]]:
        """Modules whose output (True) or input (False) is one of these, (B, s, D).

        Queries, keys and values before any scaling; mixed = the heads' outputs side by side, what
        enters the output map. What a family does not expose is left out and computed again.
        """
        return {}


@dataclass(frozen=True, eq=False)
class Tower(ABC):
    """A CLIP vision tower."""

    module: nn.Module  # runs exactly once in a forward

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What it is made of."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of its map for an input size; InputError where it cannot take it."""

    @property
    def embedding_dim(self) -> int | None:
        """Length of an image embedding; None where only a forward tells."""
        return None

    @property
    @abstractmethod
    def standard(self) -> bool:
        """Whether its last part is the library's own code, so that the rest of a forward is known.

        A subclass, a patched method or somebody's hook may make it something else.
        """

    def unsteady(self) -> str | None:
        """What in training mode makes two forwards differ or changes a buffer; None if nothing."""
        for module in self.module.modules():
            if module.training and isinstance(module, _BatchNorm):
                return "BatchNorm"
            if module.training and isinstance(module, _DropoutNd) and module.p > 0:
                return f"dropout {module.p}"
        return None


@dataclass(frozen=True, eq=False)
class ViTTower(Tower):
    """A vision transformer: token 0 is CLS, the patches follow row by row."""

    layers: Sequence[AttentionLayer]
    pooling: Pooling

    def __post_init__(self) -> None:
        for what in ("block", "attention"):
            if len({id(getattr(layer, what)) for layer in self.layers}) < len(self.layers):
                raise UnsupportedModelError(
                    f"the vision tower uses one {what} in several layers; supported are towers "
                    "whose layers have modules of their own."
                )

    @property
    def kind(self) -> Kind:
        """Always "vit"."""
        return "vit"

    @property
    def embedding_dim(self) -> int:
        """See `Tower`: of a token of zeros, which costs next to nothing."""
        weight = self.layers[-1].projections().output.weight
        with torch.no_grad():
            return self.embed(weight.new_zeros(1, len(weight))).shape[-1]

    @abstractmethod
    def embed(self, token: Tensor) -> Tensor:
        """The image embedding (..., E) from the last block's CLS output (..., D)."""

    @property
    @abstractmethod
    def checkpointing(self) -> bool:
        """Whether blocks are run again in the backward, where no hook would be left to see them."""


@dataclass(frozen=True, eq=False)
class ResNetTower(Tower):
    """A CLIP ResNet: convolutional stages and an attention pool."""

    stage: nn.Module  # the last stage, (B, C, h, w)

    @property
    def kind(self) -> Kind:
        """Always "resnet"."""
        return "resnet"

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """The image embedding (B, E) of the features (B, C, h, w), in at least float32."""

    @abstractmethod
    def shift_gradient(self, features: Tensor, gradient: Tensor) -> Tensor:
        """The gradient (K, B, C) of a shift of all positions, given the embedding's (K, B, E).

        It is the sum over all positions of the gradient with respect to the features.
        """
