"""Records of a forward: what its attentions and blocks showed, and what is compared."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import PooledToken
from ..models.library import has_no_foreign_hooks
from ..models.steps import ROUNDING
from ..models.towers import Tower, TransformerTower
from .graph import held, is_exact, keeps_graph
from .hooks import Arguments
from .reads import AttentionRead

NOTHING: Final = torch.empty(0)  # until the forward has shown it


def as_leaf(tensor: Tensor) -> Tensor:
    """The tensor as the beginning of the graph."""
    torch.set_grad_enabled(True)
    # the module's own tensor, since a part of it would not be upstream of what follows
    return held(tensor).requires_grad_()


class Comparison(NamedTuple):
    """A part as a method computed it again, beside what the library returned."""

    name: str  # of the part
    made: Tensor  # (B, ...)
    returned: Tensor
    sizes: tuple[Tensor, ...]  # (B, n) each, whose lengths together bound their difference


Visit = Callable[[int, AttentionRead], Any]


class _Probe(torch.autograd.Function):
    """Passes a tensor on, and gives a number the size of the gradient that arrives there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, probe: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return tensor.detach()  # no view, which nothing may change in place

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        return gradient, None if gradient is None else gradient.abs().sum().float()


@dataclass
class Recording:
    """A recorded forward. Filled while it runs, empty of tensors once the reader lets go."""

    tower: Any = None  # the `Tower`; None where something is only compared
    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    count: int = 0  # tokens that entered the last block
    pooled: PooledToken = field(default_factory=PooledToken)
    autocast: torch.dtype | None = None  # what a forward ran under
    begun: bool = field(default_factory=keeps_graph)  # the graph
    moved: bool = False  # a block got something else than what the one below it returned
    input: Tensor = NOTHING  # images (B, 3, H, W), or projected patches or tokens, as the leaf
    reads: dict[int, AttentionRead] = field(default_factory=dict)  # of attentions that are kept
    visited: dict[int, Any] = field(default_factory=dict)  # what a visit of each layer returned
    returned: dict[int, Tensor] = field(default_factory=dict)  # by attentions, the pooled rows
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    residual: Tensor = NOTHING  # (B, D), the pooled token that entered the last block
    # the pooled token of a block's stream z and of its output, each (B, D)
    stream: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    apart: list[Tensor] = field(default_factory=list)  # probes in what is outside of the graph
    embedding: Tensor = NOTHING  # (B, E), what the tower returned, in the graph
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = NOTHING  # (B, C, h, w), the last stage of a ResNet, in the graph
    scored: Tensor = NOTHING  # (B, E), of which a `Similarity` takes the cosines
    comparisons: list[Comparison] = field(default_factory=list)
    _versions: list[tuple[Tensor, int]] = field(default_factory=list)

    def go_on(self) -> None:
        """Keep the graph on where it has begun, whatever context the model's code has left."""
        if self.begun:
            torch.set_grad_enabled(True)

    def probed(self, tensor: Tensor) -> Tensor:
        """A tensor below the graph, such as hidden states, where a score's gradient shows."""
        self.apart.append(torch.zeros((), device=tensor.device).requires_grad_())
        probed: Any = _Probe.apply
        with torch.enable_grad():
            return probed(tensor, self.apart[-1])  # type: ignore[no-any-return]

    def watched(self, tensor: Tensor) -> Tensor:
        """A tensor that is read later, and that nothing may change in place until then."""
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        return tensor

    def compare(self, name: str, made: Tensor, returned: Tensor, *sizes: Tensor) -> None:
        """Note a part that was computed again, beside what the library returned.

        They may differ by a share of the lengths of others together, by default of its own.
        """
        made, returned, sizes = made.detach(), returned.detach(), tuple(w.detach() for w in sizes)
        returned = returned.clone()  # a row of what the library goes on with, maybe in place
        self.comparisons.append(Comparison(name, made, returned, sizes or (returned,)))

    def rounding(self, tensor: Tensor) -> float:
        """The relative difference that computing a tensor of the tower once more may make."""
        return max(ROUNDING[self.autocast or tensor.dtype], ROUNDING[tensor.dtype])

    def let_go(self) -> None:
        """Let all tensors go."""
        for each in (self.reads, self.visited, self.returned, self.outputs, self.stream):
            each.clear()
        for kept in (self.apart, self.comparisons, self._versions):
            kept.clear()
        self.embedding = self.scored = self.input = self.residual = NOTHING
        self.projected = None

    def verify(self, method: str) -> None:
        """Raise UnsupportedModelError unless all parts are what the library returned."""
        noun = "model" if self.tower is None else self.tower.noun
        # torch counts changes in place, also those of a view
        if any(tensor._version != version for tensor, version in self._versions):
            raise UnsupportedModelError(
                f"{method}: the forward of the {noun} changes the input tokens of an attention in "
                "place afterwards; change a clone of them instead."
            )
        groups: dict[Any, list[Comparison]] = defaultdict(list)
        for each in self.comparisons if is_exact() else ():
            shapes = (each.made.shape, *(tensor.shape for tensor in each.sizes))
            groups[shapes, each.returned.dtype].append(each)
        self.comparisons.clear()
        for group in groups.values():
            _, made, returned, sizes = zip(*group, strict=True)
            bound = self.rounding(returned[0])
            # all of one shape together, since each comparison waits for the device
            off = (torch.stack(made) - torch.stack(returned)).norm(dim=-1)  # (n, B)
            lengths = (
                to_float32(torch.stack(each)).norm(dim=-1) for each in zip(*sizes, strict=True)
            )
            size = sum(lengths, torch.zeros_like(off))
            wrong = ~(off <= bound * size) & size.isfinite()  # an overflow shows in the map
            if wrong.any():
                index = int(wrong.any(1).int().argmax())
                ratio = float((off[index] / size[index].clamp(min=1e-30)).max())
                raise UnsupportedModelError(
                    f"{method}: {group[index].name} of the {noun} does not return what its weights "
                    f"make of its input (off by {ratio:.1g} of its size, where rounding is at most "
                    f"{bound:g}); a hook, a patch or an adapter changes it. Remove that, or use a "
                    "method of Captum that does not look inside, such as Occlusion."
                )

    def begin(self, args: Arguments, entered: Any) -> Tensor:
        """Begin the graph, as a hook, at the first tensor that enters, or at the result."""
        if not isinstance(entered, Tensor):  # keyword arguments
            entered = next(v for v in (*args, *entered.values()) if isinstance(v, Tensor))
        self.input, self.begun = as_leaf(entered), True
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

    @cached_property
    def span(self) -> slice:
        """The patches or words among the tokens."""
        assert self.size is not None
        tower: Tower = self.tower
        return tower.span(self.size)

    def on_grid(self, values: Tensor) -> Tensor:
        """A map's values, (..., h, w) or of texts (..., T), from those of all tokens (..., s)."""
        assert self.size is not None
        tower: Tower = self.tower
        return tower.on_grid(values, self.size)
