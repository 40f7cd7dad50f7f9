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
"""The poolings by the names that OpenCLIP and timm give them."""
TextRow = Literal["end", "last", "first", "mean"]


class Entry(NamedTuple):
    """What a recording has to know of a tower's input."""

    size: Size  # height and width of images; (1, T) for texts
    batch: int
    pooled: PooledToken


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower(ABC):
    """A tower of a CLIP, which makes embeddings of images or of texts."""

    kind: ClassVar[Kind]
    noun: ClassVar[str] = "vision tower"  # in messages
    embedding_index: ClassVar[int] = 0  # index of the embedding among tensors from `module`
    projection_path: ClassVar[str] = ""  # path of `projection_module` in the model around the tower
    module: Any  # the library's own, which runs exactly once in a forward
    native: Size  # height and width of the images that it was made for
    patch: Size  # height and width in pixels of one cell of its maps
    resizable: bool = False  # whether it takes any multiples of a patch, not the native size alone
    remade_by: str = ""  # for messages: how one for images of another {side} is made
    pooling: Pooling
    prefix: int = 0  # tokens before those that have a place in a map
    pooling_head: PoolingHead | None = None
    steps_before_mean: int = 0  # steps of `head` that each token takes before the mean
    layers: Sequence[AttentionLayer] = ()
    projection_module: nn.Module | None = None  # makes the embedding if the tower does not

    @property
    def unknown_projection(self) -> str:
        """A sentence if a projection should follow the tower but is not known, else ""."""
        if self.projection_module is not None or not self.projection_path:
            return ""
        return (
            f"the {self.projection_path} after the {self.noun} is not known, so maps are those "
            "before it; if your scores apply it, pass the whole model, layer=model."
        )

    def grid(self, height: int, width: int) -> Size:
        """Rows and columns of its map for an input size; InputError for a size it cannot take."""
        patch_height, patch_width = self.patch
        rows = height // patch_height
        columns = width // patch_width
        is_multiple = height % patch_height == 0 and width % patch_width == 0
        is_native = (height, width) == self.native
        fits = is_multiple and (is_native or self.resizable)
        # A patch projection drops the pixels that fill no patch, so a native size always fits. The
        # padded strides of a convolutional tower may round up instead.
        if is_native and self.kind != "resnet":
            fits = True
        if rows and columns and fits:
            return rows, columns
        native = f"{self.native[0]} x {self.native[1]}"
        reason = f"it takes its native size only, here {native}"
        if self.resizable:
            multiples = f"{patch_height} x {patch_width}"
            reason = f"it takes multiples of {multiples}, such as its native size {native}"
        advice = "resize or crop them"
        remade = self.remade(height)
        if remade and is_multiple and height == width:
            advice += f", or make a model for them {remade}"
        raise InputError(
            f"the tower cannot take images of {height} x {width} pixels: {reason}; {advice}."
        )

    def remade(self, side: int) -> str:
        """How a tower for images of another side is made, for messages."""
        return self.remade_by.format(image_size=argument("image_size", side), side=side)

    @property
    @abstractmethod
    def head(self) -> tuple[Step, ...]:
        """The steps from the pooled token to the embedding."""

    def span(self, size: Size) -> slice:
        """The slice of tokens that have a place in a map, for an input of a size."""
        rows, columns = self.grid(*size)
        return slice(self.prefix, self.prefix + rows * columns)

    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        """Arrange values of all tokens (..., s) as a map (..., h, w), or for texts (..., T)."""
        rows, columns = self.grid(*size)
        span = self.span(size)
        count = values.shape[-1]
        # Tokens may follow the patches, and are in no map.
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
        """Length of an embedding; None where only a forward shows it."""
        steps = list(self.head)
        if self.attentions:
            steps.insert(0, self.attentions[-1].output_map())
        parameters: list[Tensor] = []
        for step in steps:
            parameters += step_parameters(step)
        if not parameters:
            return None
        # A projection may be fused, transposed or an adapter's, so a token of zeros passes it.
        with torch.no_grad():
            zeros = parameters[0].new_zeros(1, parameters[0].shape[-1])
            return run_steps(steps, zeros).shape[-1]

    @property
    def input_module(self) -> Any:
        """The module that the images enter, called once in a forward."""
        return self.module

    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        """The size, number and pooled tokens of the inputs in the input module's arguments."""
        values = (*args, *kwargs.values())
        images = next(value for value in values if isinstance(value, Tensor))
        check_images(images)
        return Entry((images.shape[-2], images.shape[-1]), len(images), PooledToken())

    def embedding(self, result: Any) -> Tensor:
        """The embedding (B, E) in the tower's result, before a `projection_module`."""
        return tensor_in(result, self.embedding_index)

    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        """The tower's result with another embedding."""
        return with_tensor(result, embedding, self.embedding_index)


@dataclass(frozen=True, eq=False, kw_only=True)
class TransformerTower(Tower):
    """A transformer: `prefix` tokens, then those that have a place in its maps.

    Its embedding pools one token of the last block ("cls"), the mean of its tokens ("mean"), or all
    of them by a pooling head ("attention").
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
    """A convolutional tower, whose last stage makes features (B, C, h, w) for a pool.

    The pool is their mean, or an attention (CLIP's ResNets) with their mean as its query and its
    first token.
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
    suffix: int = 0  # tokens after the words, such as the CLS of some towers
    takes_mask: bool = True
    pad: int | None = None  # the padding token, if the library makes the mask from the ids
    native: Size = (1, 1)
    patch: Size = (1, 1)
    row: TextRow  # the pooled token: "last" is the last position, mostly padding; "first" is CLS
    causal: bool  # whether a token sees only those before it
    end: int | None  # the token that ends a text; None for the largest one
    steps: tuple[Step, ...]
    longest: int
    is_fixed: bool = False  # whether all texts are as long as the longest
    vocabulary: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        raise InputError("a text has no grid; its maps have one value per token.")

    def pooled(self, ids: Tensor, mask: Tensor | None) -> PooledToken:
        """The pooled tokens of texts (B, T), and the tokens they see; `mask` is 0 at padding."""
        length = ids.shape[1] + self.suffix
        rows: Tensor | None = None
        if self.row == "end":
            # argmax takes the first of several: CLIP's tokenizer pads with end tokens.
            ends = ids if self.end is None else ids == self.end
            rows = ends.int().argmax(-1)
        elif self.row == "last":
            rows = ids.new_full((len(ids),), length - 1).long()
        elif self.row == "first":
            rows = ids.new_zeros(len(ids)).long()
        attended = self.seen(ids, mask)
        if not self.causal and attended is None:
            return PooledToken(rows)
        visible = torch.ones_like(ids[:, :1], dtype=torch.bool).expand(-1, length)  # (B, s)
        # A mean reads every position, so a causal mask hides none from it.
        if self.causal and rows is not None:
            visible = torch.arange(length, device=ids.device) <= rows[:, None]
        if attended is not None:
            visible = visible & attended
        return PooledToken(rows, visible)

    def seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """The tokens (B, s) that are no padding, as true; None if all are seen."""
        if self.pad is not None:
            return ids != self.pad
        return None if mask is None else mask != 0

    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        ids = args[0] if args else kwargs["input_ids"]
        pooled = self.pooled(ids, kwargs.get("attention_mask"))
        return Entry((1, ids.shape[1]), len(ids), pooled)

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
    is_whole = not ids.is_floating_point() and ids.dtype != torch.bool
    expect(is_whole, "token ids (B, T) of whole numbers", ids, advice)
    count = ids.shape[1]
    fits = count == tower.longest
    lengths = str(tower.longest)
    if not tower.is_fixed:
        fits = count <= tower.longest
        lengths = f"up to {tower.longest}"
    expect(fits, f"texts of {lengths} tokens, which {name} takes", ids, advice)
    expect(ids.device == device, f"token ids on {device}", ids, "pass ids.to(clip.device)")
    expected = f"token ids from 0 to {tower.vocabulary - 1}, which {name} knows"
    advice = "make them with its own tokenizer"
    lowest = int(ids.min())
    expect(lowest >= 0, expected, lowest, advice)
    highest = int(ids.max())
    expect(highest < tower.vocabulary, expected, highest, advice)
    if mask is not None and not tower.takes_mask:
        raise InputError(
            "OpenCLIP's text tower finds padding itself, and takes no attention_mask; leave it out."
        )
    if mask is not None:
        fits = isinstance(mask, Tensor) and mask.shape == ids.shape
        expect(fits, f"an attention_mask of shape {tuple(ids.shape)} like the token ids", mask)
