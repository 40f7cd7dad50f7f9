"""What a forward showed, and what of it is computed again and compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import CaptureError
from ..models.attentions import PooledToken, PostNormLayer
from ..models.library import has_no_foreign_hooks
from ..models.rounding import agree, bound_of
from ..models.steps import run_steps
from ..models.towers import Tower, TransformerTower
from .graph import Graph, no_graph

# It stands for a tensor that the forward has not shown yet.
NOTHING: Final = torch.empty(0)


def channel_ramp(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights from -1 to 2 for channels, along which differences do not cancel as in their sum."""
    return torch.linspace(-1, 2, count, dtype=dtype, device=device)


class Claim(NamedTuple):
    """That parts which a method computed again are what the library returned, within rounding."""

    names: Sequence[str]  # of n parts
    recomputed: Tensor  # (n, B, ...)
    returned: Tensor
    # (n, B, m) each. They may differ by a share of the lengths of these, or of `returned`.
    sizes: tuple[Tensor, ...]

    @classmethod
    def of(cls, name: str, recomputed: Tensor, returned: Tensor, *sizes: Tensor) -> "Claim":
        """The claim of a single part, without a graph."""
        wide = [tensor.detach()[None] for tensor in (recomputed, returned, *sizes)]
        return cls([name], wide[0], wide[1], tuple(wide[2:]))


@dataclass(eq=False)
class Recording:
    """A recorded forward: filled while it runs, and emptied of tensors by :meth:`let_go`."""

    tower: Any = None  # the `Tower`; None where something is only compared
    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    count: int = 0  # tokens that entered the block that ran last
    pooled: PooledToken = field(default_factory=PooledToken)
    autocast: torch.dtype | None = None  # the type of the autocast that was on
    graph: Graph = field(default_factory=Graph)
    moved: bool = False  # a block got other tokens than those that the block below it returned
    # What the block that ran last returned, and the copies of it that observers passed on.
    handed_on: list[Tensor] = field(default_factory=list)
    input: Tensor = NOTHING  # images (B, 3, H, W), or projected patches or tokens, as the leaf
    reads: dict[int, Any] = field(default_factory=dict)  # what is kept of attentions
    pool: Tensor = NOTHING  # (B, D), what the pooling head's attention returned
    # The pooled token of a block, (4, B, D): as it entered, what attention and MLP returned for it,
    # and as it left.
    rows: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    embedding: Tensor = NOTHING  # (B, E), what the tower returned, in the graph
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = NOTHING  # (B, C, h, w), the last stage of a ResNet, in the graph
    scored: Tensor = NOTHING  # (B, E), of which a `Similarity` takes the cosines
    claims: list[Claim] = field(default_factory=list)
    switched: bool = False  # the tower ran with other weights or adapters than it has afterwards

    @no_graph()
    def streams(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layers, the pooled token after the attention and as it left the block, (B, D) each."""
        streams = dict[int, tuple[Tensor, Tensor]]()
        for index, (entered, attended, _, left) in self.rows.items():
            branch = self.transformer.layers[index].branch()
            streams[index] = (entered + run_steps(branch, attended), left)
        return streams

    @no_graph()
    def compare_sums(self) -> None:
        """Compare what enters a block plus what its branches return with what leaves it.

        For the pooled token, in all layers together.
        """
        indices = list(self.rows)
        layers = [self.transformer.layers[index] for index in indices]
        rows = torch.stack(list(self.rows.values()), 1)  # (4, n, B, D) of n layers
        entered, attended, added, left = rows.unbind()
        are_plain = not any(layer.branch() or layer.added()[1] for layer in layers)
        if are_plain and not isinstance(layers[0], PostNormLayer):
            recomputed = entered + attended + added
        else:
            sums = list[Tensor]()
            for index, layer in enumerate(layers):
                stream = entered[index] + run_steps(layer.branch(), attended[index])
                sums.append(layer.summed(stream, added[index]))
            recomputed = torch.stack(sums)
        # A sum is rounded as its largest part is, so it may differ by some eps of what leaves as
        # well. Sizes are multiplied by the bound when claims are compared, so it is divided out.
        slack = 8 * torch.finfo(left.dtype).eps / self.rounding(left)
        names = [f"layer {index}" for index in indices]
        self.compare_all(names, recomputed, left, attended, added, slack * left)
        if len(names) > 1:
            entering = [f"what enters {name}" for name in names[1:]]
            self.compare_all(entering, entered[1:], left[:-1])

    def compare(self, name: str, recomputed: Tensor, returned: Tensor, *sizes: Tensor) -> None:
        """Claim that a part which was computed again is the one that the library returned.

        They may differ by a share of the part's own length, or of the lengths of `sizes` together.
        """
        self.claims.append(Claim.of(name, recomputed, returned, *sizes))

    def compare_all(
        self, names: Sequence[str], recomputed: Tensor, returned: Tensor, *sizes: Tensor
    ) -> None:
        """Claim the same of n named parts of one shape, stacked along a first axis."""
        lengths = tuple(size.detach() for size in sizes)
        self.claims.append(Claim(names, recomputed.detach(), returned.detach(), lengths))

    def rounding(self, tensor: Tensor) -> float:
        """The relative difference that computing a tensor of the tower once more may make."""
        return bound_of(self.autocast, tensor.dtype)

    def let_go(self) -> None:
        """Let all tensors go."""
        self.reads.clear()
        self.outputs.clear()
        self.rows.clear()
        self.claims.clear()
        self.handed_on.clear()
        self.embedding = self.scored = self.input = self.pool = self.features = NOTHING
        self.projected = None
        self.graph.let_go()

    @cached_property
    def is_hooked(self) -> bool:
        """Whether somebody's hook or patch in the tower may have taken a gradient away."""
        if self.tower is None:
            return False
        return not all(map(has_no_foreign_hooks, self.tower.module.modules()))

    @property
    def noun(self) -> str:
        """What the tower is called in messages."""
        return "model" if self.tower is None else str(self.tower.noun)

    @property
    def transformer(self) -> TransformerTower:
        """The tower, which has layers."""
        assert isinstance(self.tower, TransformerTower)
        return self.tower

    def is_map(self, patches: Tensor) -> bool:
        """Whether projected patches are (B, D, h, w), and not with their channels last.

        CaptureError where the size of the images is not known.
        """
        if self.size is None:
            raise CaptureError(
                f"The forward function runs parts of the {self.tower.noun}, such as its "
                "forward_features, and not the module itself, which is what hooks see; call the "
                "module."
            )
        if self.tower.kind == "resnet":
            # Its grid may be larger than the tower's, since padded strides round it up.
            return True
        return patches.ndim == 4 and patches.shape[2:] == self.tower.grid(*self.size)

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


@torch.no_grad()
def ran_alike(record: Recording, *pairs: tuple[Tensor, Tensor]) -> bool:
    """Whether parts (..., D) were computed again as they ran, pairs of recomputed and returned."""
    if any(recomputed.shape != returned.shape for recomputed, returned in pairs):
        return False
    alike = list[Tensor]()
    for recomputed, returned in pairs:
        bound = record.rounding(returned)
        alike.append(agree(recomputed, returned, bound=bound, dim=-1).flatten())
    # All pairs are read together, since each read waits for the device.
    return bool(torch.cat(alike).all())
