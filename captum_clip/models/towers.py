"""The protocol between towers and recordings, whichever library a tower comes from.

A model family implements these classes in its own file; nothing above asks which family it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import expect
from ..errors import InputError, UnsupportedModelError, argument
from ..maps import check_shape
from .attentions import Attention, AttentionLayer, PooledToken, PoolingHead, tensor_in, with_tensor
from .images import Size, check_images
from .steps import Step, run_steps, step_parameters

Kind = Literal["vit", "resnet", "text"]
Pooling = Literal["cls", "mean", "attention"]
POOLINGS: dict[str, Pooling] = {"tok": "cls", "token": "cls", "avg": "mean", "map": "attention"}
"""By the names of OpenCLIP and timm."""
TextRow = Literal["end", "last", "first", "mean"]


class Entry(NamedTuple):
    """The input of a tower."""

    size: Size  # height and width of images; (1, T) for texts
    batch: int
    pooled: PooledToken


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower(ABC):
    """A tower of a CLIP: images, or texts, become embeddings."""

    kind: ClassVar[Kind]
    noun: ClassVar[str] = "vision tower"  # in messages
    embedding_index: ClassVar[int] = 0  # of the embedding, where `module` returns several tensors
    projection_path: ClassVar[str] = ""  # of `projection_module`, in the model around it
    module: Any  # the library's own, which runs exactly once in a forward
    native: Size  # height and width of the images that it was made for
    patch: Size  # height and width in pixels of one cell of its maps
    resizable: bool = False  # whether it takes any multiples of a patch, not the native size alone
    remade_by: str = ""  # for messages: how one for images of another {side} is made
    pooling: Pooling
    prefix: int = 0  # tokens before those that have a place in a map
    pooling_head: PoolingHead | None = None
    steps_before_mean: int = 0  # of `head`, for every token before their mean
    layers: Sequence[AttentionLayer] = ()
    projection_module: nn.Module | None = None  # makes the embedding, where the tower does not

    @property
    def unknown_projection(self) -> str:
        """A sentence where its model has a projection that is not known, else ""."""
        if self.projection_module is not None or not self.projection_path:
            return ""
        return (
            f"the {self.projection_path} after the {self.noun} is not known, so maps are those "
            "before it; pass the whole model, layer=model."
        )

    def grid(self, height: int, width: int) -> Size:
        """Rows and columns of its map for an input size; InputError where it cannot take it."""
        tall, wide = self.patch
        rows, columns = height // tall, width // wide
        whole = (rows * tall, columns * wide) == (height, width)
        # A patch projection drops the pixels that fill no patch. Padded strides may round up.
        native_fits = (height, width) == self.native and (whole or self.kind != "resnet")
        if rows and columns and (native_fits or (self.resizable and whole)):
            return rows, columns
        native = f"{self.native[0]} x {self.native[1]}"
        reason = f"it takes its native size only, here {native}"
        if self.resizable:
            reason = f"it takes multiples of {tall} x {wide}, such as its native size {native}"
        remade = self.remade(height) if whole and height == width else ""
        raise InputError(
            f"the tower cannot take images of {height} x {width} pixels: {reason}; resize or crop "
            f"them{remade and f', or make a model for them {remade}'}."
        )

    def remade(self, side: int) -> str:
        """How a tower for images of another side is made, for messages."""
        return self.remade_by.format(image_size=argument("image_size", side), side=side)

    @property
    @abstractmethod
    def head(self) -> tuple[Step, ...]:
        """The steps from the pooled token to the embedding."""

    def span(self, size: Size) -> slice:
        """The tokens that have a place in a map, among those of an input of a size."""
        rows, columns = self.grid(*size)
        return slice(self.prefix, self.prefix + rows * columns)

    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        """A map's values, (..., h, w) or of texts (..., T), from those of all tokens (..., s)."""
        rows, columns = self.grid(*size)
        span, count = self.span(size), values.shape[-1]
        # Tokens that follow the patches are allowed: they are in no map.
        if count < span.stop:
            raise UnsupportedModelError(
                f"the {self.noun} ran on {count} tokens, expected {span.stop}: {self.prefix} "
                f"before the patches and a grid of {rows} x {columns}; remove what adds or drops "
                "tokens, such as prompts."
            )
        return values[..., span].reshape(*values.shape[:-1], rows, columns)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The self-attention of every layer, then the pooling head if there is one."""
        if self.pooling_head is None:
            return tuple(self.layers)
        return (*self.layers, self.pooling_head)

    @property
    def embedding_dim(self) -> int | None:
        """Length of an embedding, of a token of zeros; None where only a forward shows it."""
        # It is computed, since a projection may be fused, transposed or an adapter's.
        output_maps = [attention.output_map() for attention in self.attentions[-1:]]
        steps = (*output_maps, *self.head)
        parameters = [parameter for step in steps for parameter in step_parameters(step)]
        if not parameters:
            return None
        with torch.no_grad():
            zeros = parameters[0].new_zeros(1, parameters[0].shape[-1])
            return run_steps(steps, zeros).shape[-1]

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
        return tensor_in(result, self.embedding_index)

    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        """`result` with `embedding` in the place of its own."""
        return with_tensor(result, embedding, self.embedding_index)


@dataclass(frozen=True, eq=False, kw_only=True)
class TransformerTower(Tower):
    """A transformer: `prefix` tokens, then those that have a place in its maps.

    Its embedding pools one token of the last block's ("cls"), their mean ("mean"), or all tokens by
    a pooling head ("attention").
    """

    stem: nn.Module  # makes the tokens, before positions are added

    def __post_init__(self) -> None:
        # A hook belongs to a module, so it cannot tell two layers apart that share one.
        for part in ("block", "attention"):
            modules = {id(getattr(layer, part)) for layer in self.layers}
            if len(modules) < len(self.layers):
                raise UnsupportedModelError(
                    f"the {self.noun} uses one {part} in several layers; give each layer a copy, "
                    "such as copy.deepcopy makes."
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class ViTTower(TransformerTower):
    """A vision transformer: `prefix` tokens, the first of them CLS, then the patches row by row."""

    kind: ClassVar[Kind] = "vit"
    prefix: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class ResNetTower(Tower):
    """A convolutional tower: stages, whose last features (B, C, h, w) are the tokens of a pool.

    That is their mean, or an attention pool (CLIP's ResNets), before whose tokens their mean is put
    as its query.
    """

    kind: ClassVar[Kind] = "resnet"
    pooling: Pooling = "mean"
    stages: Mapping[str, nn.Module]  # by name, from the last to the first

    @property
    def stage(self) -> nn.Module:
        """The last stage, whose output is (B, C, h, w)."""
        return next(iter(self.stages.values()))

    @property
    def head(self) -> tuple[Step, ...]:
        return ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTower(TransformerTower):
    """A text transformer, whose embedding pools one token of every text, or their mean.

    The pooled token differs from text to text, and a token may not see every other one.
    """

    kind: ClassVar[Kind] = "text"
    noun: ClassVar[str] = "text tower"
    pooling: Pooling = "cls"
    suffix: int = 0  # tokens after the words, as CLS of some towers
    takes_mask: bool = True
    pad: int | None = None  # the padding token, where the library makes the mask of it
    native: Size = (1, 1)
    patch: Size = (1, 1)
    row: TextRow  # what is pooled: "last" is the last position, mostly padding; "first" is CLS
    causal: bool  # whether a token sees only those before it
    end: int | None  # the token that ends a text; None for the largest one
    steps: tuple[Step, ...]
    longest: int
    is_fixed: bool = False  # texts are always as long as the longest
    vocabulary: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        raise InputError("a text has no grid; its maps have one value per token.")

    def pooled(self, ids: Tensor, mask: Tensor | None) -> PooledToken:
        """The pooled tokens of texts (B, T), and which tokens see which; `mask` is 0 at padding."""
        attended = self.seen(ids, mask)  # (B, s)
        length = ids.shape[1] + self.suffix
        rows: Tensor | None = None
        if self.row == "end":
            # argmax takes the first end token, since CLIP's tokenizer pads with them.
            ends = ids if self.end is None else ids == self.end
            rows = ends.int().argmax(-1)
        elif self.row == "last":
            rows = ids.new_full((len(ids),), length - 1).long()
        elif self.row == "first":
            rows = ids.new_zeros(len(ids)).long()
        if not self.causal and attended is None:
            return PooledToken(rows)
        visible = torch.ones_like(ids[:, :1], dtype=torch.bool).expand(-1, length)
        if self.causal and rows is not None:
            visible = torch.arange(length, device=ids.device) <= rows[:, None]
        return PooledToken(rows, visible if attended is None else visible & attended)

    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """Tokens (B, s) that may be attended to at all; None for all of them."""
        if self.pad is not None:
            return ids != self.pad
        return None if mask is None else mask != 0

    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        ids = args[0] if args else kwargs["input_ids"]
        return Entry((1, ids.shape[1]), len(ids), self.pooled(ids, kwargs.get("attention_mask")))

    @property
    def head(self) -> tuple[Step, ...]:
        return self.steps

    def span(self, size: Size) -> slice:
        return slice(0, size[1])

    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        return values[..., self.span(size)]


def check_ids(ids: Any, mask: Any, tower: TextTower, name: str, device: torch.device) -> None:
    """Raise InputError unless token ids (B, T) and their mask are what the tower takes."""
    advice = "ids, mask = clip.text_inputs(texts) makes them"
    check_shape("token ids", ids, "(B, T)", advice)
    whole = not ids.is_floating_point() and ids.dtype != torch.bool
    expect(whole, "token ids (B, T) of whole numbers", ids, advice)
    count, most = ids.shape[1], "" if tower.is_fixed else "up to "
    fits = count == tower.longest or (count < tower.longest and not tower.is_fixed)
    expect(fits, f"texts of {most}{tower.longest} tokens, which {name} takes", ids, advice)
    expect(ids.device == device, f"token ids on {device}", ids, "pass ids.to(clip.device)")
    low, high = int(ids.min()), int(ids.max())
    inside, wrong = 0 <= low <= high < tower.vocabulary, low if low < 0 else high
    expected = f"token ids from 0 to {tower.vocabulary - 1}, which {name} knows"
    expect(inside, expected, wrong, "make them with its own tokenizer")
    if mask is not None and not tower.takes_mask:
        raise InputError(
            "OpenCLIP's text tower finds padding itself, and takes no attention_mask; leave it out."
        )
    fits = mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape)
    expect(fits, f"an attention_mask of shape {tuple(ids.shape)} like the token ids", mask)
