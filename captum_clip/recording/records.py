"""What a forward showed, and what of it is computed again and compared."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.attentions import PooledToken, PostNormLayer
from ..models.library import has_no_foreign_hooks
from ..models.rounding import agree, bound_of, difference, is_rounding, size_of
from ..models.steps import run_steps
from ..models.towers import Tower, TransformerTower
from .graph import Graph, is_exact, no_graph

NOTHING: Final = torch.empty(0)  # until the forward has shown it


class ChangedInPlaceError(UnsupportedModelError):
    """The forward works in place on tokens whose rows were to be read after it."""


def channel_ramp(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A vector along which no difference cancels."""
    return torch.linspace(-1, 2, count, dtype=dtype, device=device)


class Recomputed(NamedTuple):
    """Parts as a method computed them again, beside what the library returned."""

    names: Sequence[str]  # of n parts
    recomputed: Tensor  # (n, B, ...)
    returned: Tensor
    sizes: tuple[Tensor, ...]  # (n, B, m) each, whose lengths together bound their difference


@dataclass(eq=False)
class Recording:
    """A recorded forward. Filled while it runs, empty of tensors once the reader lets go."""

    tower: Any = None  # the `Tower`; None where something is only compared
    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    count: int = 0  # tokens that entered the last block
    pooled: PooledToken = field(default_factory=PooledToken)
    autocast: torch.dtype | None = None  # what a forward ran under
    graph: Graph = field(default_factory=Graph)
    moved: bool = False  # a block got something else than what the one below it returned
    handed_on: list[Tensor] = field(default_factory=list)  # what the last block returned
    input: Tensor = NOTHING  # images (B, 3, H, W), or projected patches or tokens, as the leaf
    reads: dict[int, Any] = field(default_factory=dict)  # what is kept of attentions
    pool: Tensor = NOTHING  # (B, D), what the pooling head's attention returned
    # the pooled token of a block: as it entered, the branches of attention and MLP, as it left
    rows: dict[int, Tensor] = field(default_factory=dict)  # (4, B, D)
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    embedding: Tensor = NOTHING  # (B, E), what the tower returned, in the graph
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = NOTHING  # (B, C, h, w), the last stage of a ResNet, in the graph
    scored: Tensor = NOTHING  # (B, E), of which a `Similarity` takes the cosines
    comparisons: list[Recomputed] = field(default_factory=list)
    switched: bool = False  # the tower ran with other weights or adapters than it has afterwards

    @no_graph()
    def streams(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layers, the pooled token after the attention and as it left the block, (B, D) each."""
        branches = {index: layer.branch() for index, layer in enumerate(self.tower.layers)}
        return {
            index: (entered + run_steps(branches[index], attended), left)
            for index, (entered, attended, _, left) in self.rows.items()
        }

    @no_graph()
    def compare_sums(self) -> None:
        """Compare what enters a block plus what its branches return with what leaves it.

        For the pooled token, in all layers together.
        """
        indices = list(self.rows)
        layers = [self.transformer.layers[index] for index in indices]
        entered, attended, added, left = torch.stack(list(self.rows.values()), 1).unbind()
        plain = (not (layer.branch() or layer.added()[1]) for layer in layers)
        if all(plain) and not isinstance(layers[0], PostNormLayer):
            recomputed = entered + attended + added
        else:
            streams = (
                entered[i] + run_steps(e.branch(), attended[i]) for i, e in enumerate(layers)
            )
            sums = (e.summed(z, b) for e, z, b in zip(layers, streams, added, strict=True))
            recomputed = torch.stack(list(sums))
        # a sum is rounded as its largest part
        slack = 8 * torch.finfo(left.dtype).eps / self.rounding(left)
        names = [f"layer {index}" for index in indices]
        self.compare_all(names, recomputed, left, attended, added, slack * left)
        names = [f"what enters {name}" for name in names[1:]]
        if names:
            self.compare_all(names, entered[1:], left[:-1])

    def compare(self, name: str, recomputed: Tensor, returned: Tensor, *sizes: Tensor) -> None:
        """Note a part that was computed again, beside what the library returned.

        They may differ by a share of the lengths of others together, by default of its own.
        """
        self.compare_all([name], *(each[None] for each in (recomputed, returned, *sizes)))

    def compare_all(
        self, names: Sequence[str], recomputed: Tensor, returned: Tensor, *sizes: Tensor
    ) -> None:
        """As `compare`, of n parts of one shape, each with one more axis in front."""
        lengths = tuple(size.detach() for size in sizes)
        self.comparisons.append(Recomputed(names, recomputed.detach(), returned.detach(), lengths))

    def rounding(self, tensor: Tensor) -> float:
        """The relative difference that computing a tensor of the tower once more may make."""
        return bound_of(self.autocast, tensor.dtype)

    def let_go(self) -> None:
        """Let all tensors go."""
        for kept in (self.reads, self.outputs, self.rows):
            kept.clear()
        for each in (self.comparisons, self.handed_on):
            each.clear()
        self.embedding = self.scored = self.input = self.pool = NOTHING
        self.projected = None
        self.graph.let_go()

    def verify(self, method: str) -> None:
        """Raise UnsupportedModelError unless all parts are what the library returned."""
        noun = "model" if self.tower is None else self.tower.noun
        if self.graph.is_changed:
            raise ChangedInPlaceError(
                f"{method}: the forward of the {noun} changes the input tokens of an attention in "
                "place afterwards; change a clone of them instead."
            )
        # all of one shape together, and all in one look, since each waits for the device
        groups: dict[Any, list[Recomputed]] = defaultdict(list)
        for each in self.comparisons if is_exact() else ():
            shapes = (x.shape[1:] for x in (each.recomputed, *each.sizes))
            groups[(each.returned.dtype, *shapes)].append(each)
        self.comparisons.clear()
        names, offs, most = list[tuple[str, float]](), list[Tensor](), list[Tensor]()
        for group in groups.values():
            parts = zip(*((x.recomputed, x.returned, *x.sizes) for x in group), strict=True)
            recomputed, returned, *sizes = map(_concatenated, parts)
            off = difference(recomputed, returned, dim=-1)  # (n, B)
            whole = size_of(*(sizes or [returned]), dim=-1)
            bound = self.rounding(returned)
            offs.append(off.flatten())
            most.append((whole * bound).expand_as(off).flatten())
            of_one = off[0].numel()
            names += [(name, bound) for each in group for name in each.names for _ in range(of_one)]
        if not names:
            return
        off, size = _concatenated(offs), _concatenated(most)
        wrong = ~is_rounding(off, size, 1) & (size < torch.inf)  # an overflow shows in the map
        if wrong.any():
            index = int(wrong.int().argmax())
            name, bound = names[index]
            ratio = bound * float(off[index]) / max(float(size[index]), 1e-30)
            self.refuse_switched()
            raise UnsupportedModelError(
                f"{method}: {name} of the {noun} does not return what its weights "
                f"make of its input (off by {ratio:.1g} of its size, where rounding is at most "
                f"{bound:g}); a hook, a patch or an adapter changes it. Remove that, or use a "
                "method of Captum that does not look inside, such as Occlusion."
            )

    def refuse_switched(self) -> None:
        """Raise CaptureError where a part cannot be computed again with what ran."""
        if self.switched:
            noun = "model" if self.tower is None else self.tower.noun
            raise CaptureError(
                f"The forward function ran the {noun} with other weights or adapters "
                "than it has outside of it, as torch.func.functional_call and peft's "
                "disable_adapter() do, so its parts cannot be computed again. Make that change "
                "around the whole call of the method, such as with load_state_dict on a copy or "
                "`with model.disable_adapter():`."
            )

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

    def is_map(self, patches: Tensor) -> bool:
        """Whether projected patches are (B, D, h, w), and not with their channels last."""
        if self.size is None:
            raise CaptureError(
                f"The forward function runs parts of the {self.tower.noun}, such as its "
                "forward_features, and not the module itself, which is what hooks see; call the "
                "module."
            )
        # padded strides of a convolutional tower may round its grid up
        is_resnet = self.tower.kind == "resnet"
        return is_resnet or (patches.ndim == 4 and patches.shape[2:] == self.tower.grid(*self.size))

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


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


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
    return bool(_concatenated(alike).all())
