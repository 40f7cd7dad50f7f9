"""Records of a forward: each attention's inputs and outputs, and what is compared."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import Attention, AttentionLayer, PooledToken
from ..models.library import has_no_foreign_hooks
from ..models.steps import ROUNDING
from ..models.towers import Tower, TransformerTower
from .hooks import Arguments

NOTHING: Final = torch.empty(0)  # until the forward has shown it


def _ignore(*call: Any) -> None:
    """Compare with nothing, of a record that no forward made."""


@dataclass(eq=False)
class LayerRecord:
    """Inputs and outputs of one attention; every tensor (B, s, D)."""

    attention: Attention
    tokens: Tensor
    context: Any = None  # what the queries and keys are rotated with
    bias: Tensor | None = None  # of the products, from a mask that a hook of the user's sets
    query: Tensor | None = None  # these three where the library shows them, in the graph, too
    key: Tensor | None = None
    value: Tensor | None = None
    heads_output: Tensor | None = None  # in the graph, where there is one
    output: Tensor | None = None  # before hooks of the user's; in the graph, where there is one
    pooled: PooledToken = field(default_factory=PooledToken)
    span: slice = field(default_factory=lambda: slice(None))  # the patches among the tokens
    compare: Callable[..., None] = _ignore  # as `Recording.compare`, without the part

    def __post_init__(self) -> None:
        self.maps = self.attention.projections()  # as they are used in this forward

    def point(self) -> tuple[Tensor, bool]:
        """The attention's tensor that lies in the graph, and whether it is the heads' output.

        A plain output map is passed backwards as W_O^T, a norm before it is not: there the
        heads' output itself is the leaf.
        """
        exposed, output = self.heads_output, self.output
        if exposed is not None and (exposed.requires_grad or not self.attention.linear):
            return exposed, True
        assert output is not None
        return output, False

    def pick(self, tokens: Tensor) -> Tensor:
        """The pooled row (B, D) of what the attention returned, the first of a pooling head's."""
        if isinstance(self.attention, AttentionLayer):
            return self.pooled.read(tokens)
        return tokens[:, 0]


def as_leaf(tensor: Tensor) -> Tensor:
    """The tensor as the beginning of the graph."""
    torch.set_grad_enabled(True)
    # the module's own tensor, since a part of it would not be upstream of what follows
    return tensor.detach().requires_grad_()


class Comparison(NamedTuple):
    """A part as a method computed it again, beside what the library returned."""

    part: str
    made: Tensor  # (B, ...)
    returned: Tensor
    within: tuple[Tensor, ...]  # (B, n) each, whose lengths together bound their difference


Visit = Callable[[int, LayerRecord], Any]


@dataclass
class Recording:
    """A recorded forward. Filled while it runs, empty of tensors once the reader lets go."""

    tower: Tower | None = None
    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    pooled: PooledToken = field(default_factory=PooledToken)
    stopped: bool = False  # the forward was left early, as intended
    input: Tensor = NOTHING  # images (B, 3, H, W), or projected patches or tokens, as the leaf
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    visited: dict[int, Any] = field(default_factory=dict)  # what a visit of each layer returned
    residual: Tensor = NOTHING  # (B, s, D), what entered the last block
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    # the pooled token of a block's stream z and of its output, each (B, D)
    stream: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    embedding: Tensor = NOTHING  # (B, E), what the tower returned, a leaf or in the graph
    other_outputs: list[Tensor] = field(default_factory=list)  # all else that it returned, leaves
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = NOTHING  # (B, C, h, w), the last stage of a ResNet
    shift: Tensor = NOTHING  # (B, C), zero, added to the features at all positions
    comparisons: list[Comparison] = field(default_factory=list)
    _versions: list[tuple[Tensor, int]] = field(default_factory=list)

    def entering(self, index: int, args: Arguments, kwargs: Any) -> LayerRecord:
        """Record the inputs of an attention."""
        attention = self.transformer.attentions[index]
        # of texts the tower itself knows the mask
        bias = None if self.transformer.kind == "text" else attention.bias(args, kwargs)
        is_layer = isinstance(attention, AttentionLayer)
        name = f"the attention of layer {index}" if is_layer else "the pooling head"
        return LayerRecord(
            attention,
            self.watched(attention.tokens(args, kwargs)),
            attention.context(args, kwargs),
            bias,
            pooled=self.pooled,
            span=self.span,
            compare=partial(self.compare, name),
        )

    def watched(self, tensor: Tensor) -> Tensor:
        """A tensor that is read later, and that nothing may change in place until then."""
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        return tensor

    def compare(self, part: str, made: Tensor, returned: Tensor, *within: Tensor) -> None:
        """Note a part that was computed again, beside what the library returned.

        They may differ by a share of the lengths of others together, by default of its own.
        """
        made, returned, within = made.detach(), returned.detach(), tuple(w.detach() for w in within)
        if made.ndim > 2:  # only how far they are apart is kept of whole layers
            length = to_float32(returned).flatten(1).norm(dim=1, keepdim=True)
            off = to_float32(made - returned).flatten(1).norm(dim=1, keepdim=True)
            made, returned, within = off, torch.zeros_like(off, dtype=returned.dtype), (length,)
        returned = returned.clone()  # a row of what the library goes on with, maybe in place
        self.comparisons.append(Comparison(part, made, returned, within or (returned,)))

    def rounding(self, tensor: Tensor) -> float:
        """The relative difference that computing a tensor of the tower once more may make."""
        kind = tensor.device.type
        if torch.is_autocast_enabled(kind):
            return max(ROUNDING[torch.get_autocast_dtype(kind)], ROUNDING[tensor.dtype])
        return ROUNDING[tensor.dtype]

    def verify(self, method: str) -> None:
        """Raise UnsupportedModelError unless all parts are what the library returned."""
        noun = "model" if self.tower is None else self.tower.noun
        if any(tensor._version != version for tensor, version in self._versions):
            raise UnsupportedModelError(
                f"{method}: the tokens that entered an attention of the {noun} were changed in "
                "place later in its forward; let what does so work on a clone."
            )
        groups: dict[Any, list[Comparison]] = defaultdict(list)
        for each in self.comparisons:
            shapes = (each.made.shape, *(tensor.shape for tensor in each.within))
            groups[shapes, each.returned.dtype].append(each)
        self.comparisons.clear()
        for group in groups.values():
            _, made, returned, within = zip(*group, strict=True)
            bound = self.rounding(returned[0])
            off = (torch.stack(made) - torch.stack(returned)).norm(dim=-1)  # (n, B)
            lengths = (
                to_float32(torch.stack(each)).norm(dim=-1) for each in zip(*within, strict=True)
            )
            size = sum(lengths, torch.zeros_like(off))
            wrong = ~(off <= bound * size) & size.isfinite()  # an overflow shows in the map
            if wrong.any():
                index = int(wrong.any(1).int().argmax())
                ratio = float((off[index] / size[index].clamp(min=1e-30)).max())
                raise UnsupportedModelError(
                    f"{method}: {group[index].part} of the {noun} does not give what its weights "
                    f"make of what entered it (off by {ratio:.1g} of its size, and rounding is at "
                    f"most {bound:g}); a hook, a patch or an adapter changes it. Remove that, or "
                    "take a method of Captum's that does not look inside, such as Occlusion."
                )

    def begin(self, args: Arguments, given: Any) -> Tensor:
        """Begin the graph, as a hook, at the first tensor that enters, or at the result."""
        if not isinstance(given, Tensor):  # keyword arguments
            given = next(v for v in (*args, *given.values()) if isinstance(v, Tensor))
        self.input = as_leaf(given)
        return self.input

    @cached_property
    def is_hooked(self) -> bool:
        """Whether somebody's hook or patch in the tower may have taken a gradient away."""
        modules = () if self.tower is None else self.tower.module.modules()
        return not all(map(has_no_foreign_hooks, modules))

    @property
    def transformer(self) -> TransformerTower:
        """The tower, which has layers."""
        assert isinstance(self.tower, TransformerTower)
        return self.tower

    @property
    def span(self) -> slice:
        """The patches or words among the tokens."""
        assert self.size is not None
        return self.transformer.span(self.size)

    def on_grid(self, values: Tensor) -> Tensor:
        """A map's values, (..., h, w) or of texts (..., T), from those of all tokens (..., s)."""
        assert self.size is not None
        return self.transformer.on_grid(values, self.size)
