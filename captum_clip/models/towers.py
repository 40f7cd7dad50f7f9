"""The protocol between towers and recordings, whichever library a tower comes from.

A model family implements these classes in its own file; nothing above asks which family it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError, argument
from .attentions import Attention, AttentionLayer, PooledToken, PoolingHead, part_of, with_part
from .images import Size, check_images
from .steps import Linear, Step, call_steps, run_steps

Kind = Literal["vit", "resnet", "text"]
Pooling = Literal["cls", "mean", "attention"]


class Entry(NamedTuple):
    """The input of a tower."""

    size: Size  # height and width of images; (1, T) for texts
    batch: int
    pooled: PooledToken


def wrong_size(height: int, width: int, reason: str, larger: str = "") -> InputError:
    """The error for images of a size that a tower cannot take; `larger` makes one that can."""
    instead = f", or make a model for them {larger}" if larger else ""
    return InputError(
        f"the tower cannot take images of {height} x {width} pixels: {reason}; resize or crop "
        f"them{instead}."
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower(ABC):
    """A tower of a CLIP: images, or texts, become embeddings."""

    kind: ClassVar[Kind]
    noun: ClassVar[str] = "vision tower"  # in messages
    embedding_index: ClassVar[int] = 0  # of the embedding, where `module` returns several tensors
    remade_by: ClassVar[str] = ""  # the call that makes one for images of another side, {}
    module: Any  # the library's own, which runs exactly once in a forward
    native: Size  # height and width of the images that it was made for
    patch: Size  # height and width in pixels of one cell of its maps
    resizable: bool = False  # whether it takes any multiples of a patch, not the native size alone
    pooling: Pooling
    prefix: int = 0  # tokens before those that have a place in a map
    pooling_head: PoolingHead | None = None
    steps_before_mean: int = 0  # of `head`, for every token before their mean
    layers: Sequence[AttentionLayer] = ()
    projection_module: nn.Module | None = None  # makes the embedding, where the tower does not

    def grid(self, height: int, width: int) -> Size:
        """Rows and columns of its map for an input size; InputError where it cannot take it."""
        tall, wide = self.patch
        rows, columns = height // tall, width // wide
        whole = (rows * tall, columns * wide) == (height, width)
        # patches leave the rest of a native size out, but padded strides may round it up
        native_fits = (height, width) == self.native and (whole or self.kind != "resnet")
        if rows and columns and (native_fits or (self.resizable and whole)):
            return rows, columns
        native = f"{self.native[0]} x {self.native[1]}"
        if self.resizable:
            reason = f"it takes multiples of {tall} x {wide}, such as its native size {native}"
            raise wrong_size(height, width, reason)
        larger = self.larger(height) if whole and height == width else ""
        raise wrong_size(height, width, f"it takes its native size only, here {native}", larger)

    def larger(self, side: int) -> str:
        """The call that makes one for images of another side, for messages; "" where none does."""
        return self.remade_by.format(argument("image_size", side))

    @property
    @abstractmethod
    def head(self) -> tuple[Step, ...]:
        """The steps from the pooled token to the embedding."""

    @abstractmethod
    def span(self, size: Size) -> slice:
        """The tokens that have a place in a map, among those of an input of a size."""

    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        """A map's values, (..., h, w) or of texts (..., T), from those of all tokens (..., s)."""
        return values[..., self.span(size)]

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The self-attention of every layer, then the pooling head if there is one."""
        return (*self.layers, *(() if self.pooling_head is None else (self.pooling_head,)))

    @property
    def embedding_dim(self) -> int | None:
        """Length of an embedding, of a token of zeros; None where only a forward shows it."""
        if not self.attentions:
            return None
        weight: Any = self.attentions[-1].output_map()
        weight = weight.weight if isinstance(weight, Linear) else next(weight.parameters())
        with torch.no_grad():
            return run_steps(self.head, weight.new_zeros(1, len(weight))).shape[-1]

    @property
    def input_module(self) -> Any:
        """The module that the images enter, called once in a forward."""
        return self.module

    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        """The size, number and pooled tokens of what its input module got as arguments."""
        images = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        check_images(images)
        return Entry((images.shape[-2], images.shape[-1]), len(images), PooledToken())

    def embedding(self, result: Any) -> Tensor:
        """The image embedding (B, E), before the projection if any, in what the tower returned."""
        return part_of(result, self.embedding_index)

    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        """`result` with `embedding` in the place of its own."""
        return with_part(result, embedding, self.embedding_index)


@dataclass(frozen=True, eq=False, kw_only=True)
class TransformerTower(Tower):
    """A transformer: `prefix` tokens, then those that have a place in its maps.

    Its embedding pools one token of the last block's ("cls"), their mean ("mean"), or all tokens by
    a pooling head ("attention").
    """

    def __post_init__(self) -> None:
        for what in ("block", "attention"):
            if len({id(getattr(layer, what)) for layer in self.layers}) < len(self.layers):
                raise UnsupportedModelError(
                    f"the {self.noun} uses one {what} in several layers; supported are towers "
                    "whose layers have modules of their own."
                )

    @property
    @abstractmethod
    def stem(self) -> nn.Module:
        """The module that makes tokens, before positions are added."""

    def embed(self, token: Tensor) -> Tensor:
        """The image embedding (..., E) of the last block's or pooling head's token (..., D)."""
        # for one token the order of norm and pooling makes no difference
        return call_steps(self.head, token)


class _OnGrid(Tower):
    """A tower of images: `prefix` tokens, then those of a grid row by row."""

    @override
    def span(self, size: Size) -> slice:
        rows, columns = self.grid(*size)
        return slice(self.prefix, self.prefix + rows * columns)

    @override
    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        rows, columns = self.grid(*size)
        expected, count = self.span(size).stop, values.shape[-1]
        if count < expected:  # what follows the patches is no patch
            raise UnsupportedModelError(
                f"the {self.noun} ran on {count} tokens, but {self.prefix} before the patches and "
                f"a grid of {rows} x {columns} make {expected}; remove what adds or drops tokens, "
                "such as prompts."
            )
        return super().on_grid(values, size).reshape(*values.shape[:-1], rows, columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class ViTTower(_OnGrid, TransformerTower):
    """A vision transformer: `prefix` tokens, the first of them CLS, then the patches row by row."""

    kind: ClassVar[Kind] = "vit"
    patches: nn.Module  # projects the patches
    prefix: int = 1

    @property
    @override
    def stem(self) -> nn.Module:
        return self.patches


@dataclass(frozen=True, eq=False, kw_only=True)
class ResNetTower(_OnGrid):
    """A convolutional tower: stages, whose last features (B, C, h, w) are the tokens of a pool.

    That is their mean, or an attention pool (CLIP's ResNets), before whose tokens their mean is put
    as its query.
    """

    kind: ClassVar[Kind] = "resnet"
    pooling: Pooling = "mean"
    stages: Mapping[str, nn.Module]  # by name, from the last to the first
    head_modules: Sequence[nn.Module] = ()  # between the last stage and the image embedding

    @property
    def stage(self) -> nn.Module:
        """The last stage, whose output is (B, C, h, w)."""
        return next(iter(self.stages.values()))

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        return ()
