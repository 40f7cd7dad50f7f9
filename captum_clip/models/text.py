"""The pooling of texts, and the text tower as the methods see it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..checks import expect
from ..errors import InputError
from ..maps import check_shape
from .attentions import AttentionLayer, PooledToken
from .images import Size
from .steps import Residual, Step, run_steps
from .towers import Entry, Kind, Pooling, TransformerTower

Row = Literal["end", "last", "first", "mean"]


class PostNormLayer(AttentionLayer):
    """A block whose norms follow its sums, so that they lie on the stream itself.

    It computes ``z = first(r + attention(r))`` and ``second(z + mlp_branch(z))``.
    """

    @property
    @abstractmethod
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        """The first norm and the second."""

    @override
    def after_attention(self) -> tuple[Step, ...]:
        first, second = self.stream_norms
        return first, Residual(self.mlp_branch()), second

    @override
    def summed(self, stream: Tensor, added: Tensor) -> Tensor:
        first, second = self.stream_norms
        return run_steps((second,), run_steps((first,), stream) + added)


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
    row: Row  # what is pooled: "last" is the last position, mostly padding; "first" is CLS
    causal: bool  # whether a token sees only those before it
    end: int | None  # the token that ends a text; None for the largest one
    steps: tuple[Step, ...]
    longest: int
    is_fixed: bool = False  # texts are always as long as the longest
    vocabulary: int

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        raise InputError("a text has no grid; its maps have one value per token.")

    def pooled(self, ids: Tensor, mask: Tensor | None) -> PooledToken:
        """The pooled tokens of texts (B, T), and which tokens see which; `mask` is 0 at padding."""
        attended = self.seen(ids, mask)  # (B, s)
        row, length = self.row, ids.shape[1] + self.suffix
        rows: Tensor | None = None  # of a mean
        if row == "end":
            # the first of them, since CLIP's tokenizer pads with its end token
            ends = ids if self.end is None else ids == self.end
            rows = ends.int().argmax(-1)
        elif row != "mean":
            rows = ids.new_full((len(ids),), length - 1 if row == "last" else 0).long()
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

    @override
    def read_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        ids = args[0] if args else kwargs["input_ids"]
        pooled = self.pooled(ids, kwargs.get("attention_mask"))
        return Entry((1, ids.shape[1]), len(ids), pooled)

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        return self.steps

    @override
    def span(self, size: Size) -> slice:
        return slice(0, size[1])

    @override
    def on_grid(self, values: Tensor, size: Size) -> Tensor:
        return values[..., self.span(size)]


def check_ids(ids: Any, mask: Any, tower: TextTower, name: str, device: torch.device) -> None:
    """Raise InputError unless token ids (B, T) and their mask are what the tower takes."""
    made = "ids, mask = clip.text_inputs(texts) makes them"
    check_shape("token ids", ids, "(B, T)", made)
    whole = not ids.is_floating_point() and ids.dtype != torch.bool
    expect(whole, "token ids (B, T) of whole numbers", ids, made)
    count, most = ids.shape[1], "" if tower.is_fixed else "up to "
    fits = count == tower.longest or (count < tower.longest and not tower.is_fixed)
    expect(fits, f"texts of {most}{tower.longest} tokens, which {name} takes", ids, made)
    expect(ids.device == device, f"token ids on {device}", ids, "pass ids.to(clip.device)")
    low, high = int(ids.min()), int(ids.max())
    inside, wrong = 0 <= low <= high < tower.vocabulary, low if low < 0 else high
    wanted = f"token ids from 0 to {tower.vocabulary - 1}, which {name} knows"
    expect(inside, wanted, wrong, "make them with its own tokenizer")
    if mask is not None and not tower.takes_mask:
        raise InputError(
            "OpenCLIP's text tower finds padding itself, and takes no attention_mask; leave it out."
        )
    fits = mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape)
    expect(fits, f"an attention_mask of shape {tuple(ids.shape)} like the token ids", mask)
