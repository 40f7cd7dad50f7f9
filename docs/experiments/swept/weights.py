"""Weights and modules of another kind: pruned, quantized, adapted, normed, exchanged."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from docs.experiments.swept.entries import Entries, Entry, unknown
from tests.attr.changes import Lora, Place
from tests.attr.judged import Change, Make
from tests.attr.moves import SIDE, after, blocks, noise
from tests.attr.own_modules import two_heads

Wrap = Callable[[Any], nn.Module]


def new(module: nn.Module, name: str, value: Tensor) -> None:
    """Another parameter."""
    setattr(module, name, nn.Parameter(value.detach().clone()))


# Weights of linear maps


def magnitude(linear: Any) -> None:
    """Small weights as zeros, by torch's own pruning."""
    prune.l1_unstructured(linear, "weight", 0.5)


def rows(linear: Any) -> None:
    """Whole outputs."""
    prune.ln_structured(linear, "weight", 0.3, n=2, dim=0)


def made_permanent(linear: Any) -> None:
    """Pruned for good."""
    new(linear, "weight", linear.weight)  # torch writes into the parameter that was pruned
    prune.random_unstructured(linear, "weight", 0.3)
    prune.remove(linear, "weight")


class Fake(nn.Module):
    """Weights of some bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2 ** (bits - 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded, with a gradient that goes straight through."""
        size = weight.detach().abs().amax() / self.levels
        return weight + ((weight / size).round() * size - weight).detach()


class LowRank(nn.Module):
    """The best matrix of a rank."""

    def forward(self, weight: Tensor) -> Tensor:
        """By its singular values."""
        u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
        kept = max(1, len(s) // 4)
        return (u[:, :kept] * s[:kept]) @ v[:kept]


class Symmetric(nn.Module):
    """A weight and its transpose."""

    def forward(self, weight: Tensor) -> Tensor:
        """Where it is square."""
        return (weight + weight.T) / 2 if weight.shape[0] == weight.shape[1] else weight


PARAMETRIZED: dict[str, Callable[[Any], object]] = {
    "pruned": magnitude,
    "pruned rows": rows,
    "pruned for good": made_permanent,
    "eight bits": lambda m: parametrize.register_parametrization(m, "weight", Fake(8)),
    "two bits": lambda m: parametrize.register_parametrization(m, "weight", Fake(2)),
    "low rank": lambda m: parametrize.register_parametrization(m, "weight", LowRank()),
    "symmetric": lambda m: parametrize.register_parametrization(m, "weight", Symmetric()),
    "spectral norm": lambda m: parametrizations.spectral_norm(m),
    "weight norm": lambda m: parametrizations.weight_norm(m),
}


class Wrapped(nn.Module):
    """A module within one of one's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the module inside."""
        return self.inner(*args, **options)


class Scaled(Wrapped):
    """IA3: outputs by a learned vector."""

    def forward(self, x: Tensor) -> Tensor:
        """Times a vector."""
        y: Tensor = self.inner(x)
        return y * torch.linspace(0.5, 1.5, y.shape[-1]).to(y)


class Dora(Wrapped):
    """Directions and lengths of weights apart."""

    def forward(self, x: Tensor) -> Tensor:
        """With a low-rank step."""
        inner: Any = self.inner
        out, into = inner.weight.shape
        step = noise(out, 2, seed=40) @ noise(2, into, seed=41) / 8
        weight = inner.weight + step
        weight = weight * inner.weight.norm(dim=1, keepdim=True) / weight.norm(dim=1, keepdim=True)
        return F.linear(x, weight, inner.bias)


class Int8(nn.Module):
    """A linear map whose weights are stored as integers."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.size = float(linear.weight.detach().abs().amax() / 127)
        self.register_buffer("stored", (linear.weight.detach() / self.size).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """As a linear map does."""
        return F.linear(x, self.stored.to(x) * self.size, self.bias)  # type: ignore[operator]


class Convolution(nn.Module):
    """A linear map as a convolution of one."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(linear.in_features, linear.out_features, 1).double()
        new(self.conv, "weight", linear.weight[..., None])
        new(self.conv, "bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Channels second."""
        out: Tensor = self.conv(x.mT).mT
        return out


class Product(nn.Module):
    """A linear map by torch.einsum."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """As written in papers."""
        return torch.einsum("...i,oi->...o", x, self.weight) + self.bias


class Split(nn.Module):
    """A linear map in two halves of its outputs."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Tensor parallel."""
        halves = zip(self.weight.chunk(2), self.bias.chunk(2), strict=True)
        return torch.cat([F.linear(x, *half) for half in halves], -1)


class Experts(Wrapped):
    """A mixture of two MLPs, chosen token by token."""

    def forward(self, x: Tensor) -> Tensor:
        """The second one gets half of the token."""
        first = (x[..., :1] > 0).detach()
        out: Tensor = torch.where(first, self.inner(x), self.inner(0.5 * x))
        return out


class Capacity(Wrapped):
    """Experts that take so many tokens of a batch and no more."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the whole batch compete."""
        strength = x.detach()[..., 0].flatten()
        taken = torch.zeros_like(strength).index_fill(
            0, strength.topk(len(strength) // 2).indices, 1
        )
        out: Tensor = self.inner(x) * taken.view(x.shape[:2])[..., None]
        return out


class Parallel(Wrapped):
    """An adapter beside a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Down, an activation, up."""
        down, up = noise(x.shape[-1], 4, seed=42) / 3, noise(4, x.shape[-1], seed=43) / 2
        out: Tensor = self.inner(x) + F.gelu(x @ down) @ up
        return out


class Serial(Wrapped):
    """An adapter behind a module."""

    def forward(self, x: Tensor) -> Tensor:
        """A residual of a small MLP."""
        y: Tensor = self.inner(x)
        return y + F.relu(y @ (noise(y.shape[-1], 4, seed=44) / 3)) @ noise(4, y.shape[-1], seed=45)


class Local(Wrapped):
    """An MLP with a depth-wise convolution among the patches."""

    def forward(self, x: Tensor) -> Tensor:
        """As in local ViTs."""
        y: Tensor = self.inner(x)
        grid = y[:, 1:].mT.unflatten(2, (SIDE, SIDE))
        weight = noise(grid.shape[1], 1, 3, 3, seed=46) / 5
        local = F.conv2d(grid, weight, padding=1, groups=len(weight)).flatten(2).mT
        return y + F.pad(local, (0, 0, 1, 0))


class Convpass(Wrapped):
    """The same inside of an activation: not linear."""

    def forward(self, x: Tensor) -> Tensor:
        """A convolution and an activation."""
        grid = x[:, 1:].mT.unflatten(2, (SIDE, SIDE))
        weight = noise(grid.shape[1], 1, 3, 3, seed=47) / 5
        local = F.gelu(F.conv2d(grid, weight, padding=1, groups=len(weight))).flatten(2).mT
        out: Tensor = self.inner(x) + F.pad(local, (0, 0, 1, 0))
        return out


class Root(nn.Module):
    """RMSNorm with a layer norm's weights."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Not centered."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


class Dynamic(nn.Module):
    """DyT: tanh in the place of a norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Channel by channel."""
        return torch.tanh(0.5 * x) * self.weight + self.bias


class Batch(nn.Module):
    """A norm with fixed statistics, as a batch norm in eval mode."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Linear."""
        return (x - 0.1) / 1.3 * self.weight + self.bias


class Statistics(nn.Module):
    """A norm with the batch's own statistics."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Over images and tokens."""
        centered = x - x.mean((0, 1))
        return centered / (centered.square().mean((0, 1)) + 1e-5).sqrt() * self.weight + self.bias


class ByHand(nn.Module):
    """A layer norm in one's own words."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Centered and divided."""
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered / (centered.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight
            + self.bias
        )


LINEAR: dict[str, Wrap] = {
    "wrapped": Wrapped, "IA3": Scaled, "DoRA": Dora, "int8": Int8, "a convolution": Convolution,
    "einsum": Product, "in two halves": Split, "LoRA": Lora,
}  # fmt: skip
NEUTRAL = ("wrapped", "a convolution", "einsum", "in two halves", "by hand")
MLPS: dict[str, Wrap] = {
    "wrapped": Wrapped, "experts": Experts, "experts of a capacity": Capacity,
    "a parallel adapter": Parallel, "a serial adapter": Serial, "a local convolution": Local,
    "a local activation": Convpass, "an identity": lambda m: nn.Identity(),
    "none": lambda m: Zero(),
    "two in a row": lambda m: nn.Sequential(m, nn.GELU(), copy.deepcopy(m)),
    "SiLU": lambda m: activated(m, nn.SiLU()), "ReLU": lambda m: activated(m, nn.ReLU()),
    "Hardswish": lambda m: activated(m, nn.Hardswish()), "ELU": lambda m: activated(m, nn.ELU()),
    "Softplus": lambda m: activated(m, nn.Softplus()), "tanh": lambda m: activated(m, nn.Tanh()),
    "sine": lambda m: activated(m, Sine()), "PReLU": lambda m: activated(m, nn.PReLU().double()),
    "RReLU": lambda m: activated(m, nn.RReLU().eval()),
    "leaky ReLU": lambda m: activated(m, nn.LeakyReLU(0.2)),
    "maxout": lambda m: activated(m, Maxout()),
}  # fmt: skip
NORMS: dict[str, Wrap] = {
    "RMSNorm": Root, "DyT": Dynamic, "fixed statistics": Batch,
    "the batch's statistics": Statistics,
    "by hand": ByHand, "none": lambda m: nn.Identity(), "wrapped": Wrapped,
    "two in a row": lambda m: nn.Sequential(m, copy.deepcopy(m)),
}  # fmt: skip


class Zero(nn.Module):
    """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


class Sine(nn.Module):
    """An activation that has no gate."""

    def forward(self, x: Tensor) -> Tensor:
        """A wave."""
        return torch.sin(x)


class Maxout(nn.Module):
    """The larger one of two channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice."""
        return torch.maximum(x, x.flip(-1))


def activated(mlp: Any, activation: nn.Module) -> nn.Module:
    """An MLP of transformers with another activation."""
    own = copy.copy(mlp)
    own._modules = {**mlp._modules, "activation_fn": activation}
    return own  # type: ignore[no-any-return]


def at_linear(path: str, index: int, change: Callable[[Any], object]) -> Make:
    """A change of a linear map in its place."""

    def make(place: Place) -> None:
        with warnings.catch_warnings(), torch.random.fork_rng():
            torch.manual_seed(0)
            warnings.simplefilter("ignore")
            change(blocks(place)[index].get_submodule(path))

    return make


def putting(path: str, index: int, wrap: Wrap) -> Make:
    """Another module in the place of one of a block."""

    def make(place: Place) -> None:
        owner, _, name = path.rpartition(".")
        module = blocks(place)[index].get_submodule(owner)
        setattr(module, name, wrap(getattr(module, name)))

    return make


# of which the oracle of relevance holds the gates
HELD = (
    "wrapped",
    "experts",
    "a local convolution",
    "an identity",
    "none",
    "two in a row",
    "ReLU",
    "leaky ReLU",
    "PReLU",
    "maxout",
    "fixed statistics",
    "a serial adapter",
)
MAPS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)


def linear_maps() -> Entries:
    """Of one of the six maps of a layer, each kind at two of them."""
    found: Entries = {}
    for number, (name, change) in enumerate(PARAMETRIZED.items()):
        for offset in (0, 1, 3):
            path = MAPS[(number + offset) % len(MAPS)]
            make = at_linear(path, 1 + (number + offset) % 2, change)
            found[f"{name}, {path}"] = Entry(Change(make))
    for number, (name, wrap) in enumerate(LINEAR.items()):
        for offset in (0, 2, 3, 5):
            path = MAPS[(number + offset) % len(MAPS)]
            make = putting(path, 1 + (number + offset) % 2, wrap)
            found[f"{name}, {path}"] = Entry(Change(make), harmless=name in NEUTRAL)
    return found


def mlps_and_norms() -> Entries:
    """Of a middle layer and the last one."""
    found: Entries = {}
    batches = ("the batch's statistics",)
    everything = (
        "direct",
        "last-grad",
        "all-grad",
        "rollout",
        "conservative",
        "grad-eclip",
        "legrad",
        "patches",
        "attention-grad-cam",
        "removal",
    )
    for index in (1, 2):
        for name, wrap in MLPS.items():
            found[f"an MLP of {name}, layer {index}"] = Entry(
                Change(
                    putting("mlp", index, wrap),
                    refused=everything if name in batches else (),
                    truth=None if name in HELD else unknown("conservative"),
                ),
                harmless=name in NEUTRAL,
            )
        for norm in ("layer_norm1", "layer_norm2"):
            for name, wrap in NORMS.items():
                if (norm == "layer_norm2") == (index == 1) and name not in (
                    "RMSNorm",
                    "the batch's statistics",
                ):
                    continue
                found[f"{norm} of {name}, layer {index}"] = Entry(
                    Change(
                        putting(norm, index, wrap),
                        refused=everything if name in batches else (),
                        truth=None if name in HELD else unknown("conservative"),
                    ),
                    harmless=name in NEUTRAL,
                )
    for name, wrap in NORMS.items():

        def final(p: Place, wrap: Wrap = wrap) -> None:
            vision = p.model.vision_model
            vision.post_layernorm = wrap(vision.post_layernorm)

        found[f"the final norm of {name}"] = Entry(
            Change(
                final,
                refused=everything if name in batches else (),
                truth=None if name in HELD else unknown("conservative"),
            ),
            harmless=name in NEUTRAL,
        )
    return found


# Heads and residuals


def hidden_head(place: Place) -> None:
    """A head's outputs as zeros, before the output map."""
    blocks(place)[1].self_attn.out_proj.register_forward_pre_hook(
        lambda m, args: (args[0] * (torch.arange(32) // 8 != 2),)
    )


def weighed_heads(place: Place) -> None:
    """Heads by factors."""
    factors = torch.tensor([0.5, 1.0, 1.5, 2.0]).repeat_interleave(8)
    for block in blocks(place):
        block.self_attn.out_proj.register_forward_pre_hook(lambda m, args: (args[0] * factors,))


def patched_head(place: Place) -> None:
    """A head's output from another image of the batch: activation patching."""

    def hook(_: Any, args: Any) -> Any:
        x = args[0].clone()
        x[..., 8:16] = args[0].flip(0)[..., 8:16]
        return (x,)

    blocks(place)[1].self_attn.out_proj.register_forward_pre_hook(hook)


def renumbered(place: Place) -> None:
    """Heads in another order in all maps: the same function."""
    own = blocks(place)[1].self_attn
    order = torch.arange(32).unflatten(0, (4, 8))[[2, 0, 3, 1]].flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        new(getattr(own, name), "weight", getattr(own, name).weight[order])
        new(getattr(own, name), "bias", getattr(own, name).bias[order])
    new(own.out_proj, "weight", own.out_proj.weight[:, order])


def rewritten(forward: Callable[[Any, Tensor], Tensor], index: int = 1) -> Make:
    """A block in one's own words."""

    def make(place: Place) -> None:
        block = blocks(place)[index]
        block.forward = lambda hidden_states, *_, **__: forward(block, hidden_states)

    return make


def attended(block: Any, x: Tensor) -> Tensor:
    """What its attention returns."""
    out: Tensor = block.self_attn(hidden_states=x, attention_mask=None)[0]
    return out


def gate(x: Tensor) -> Tensor:
    """Of a token."""
    return torch.sigmoid(x.mean(-1, keepdim=True))


def stochastic(block: Any, x: Tensor) -> Tensor:
    """A block that some images skip."""
    y = x + attended(block, block.layer_norm1(x))
    y = y + block.mlp(block.layer_norm2(y))
    kept = (torch.arange(len(x)) % 2 == 0)[:, None, None]
    return torch.where(kept, y, x)


BLOCKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "parallel branches": lambda b, x: x + attended(b, n := b.layer_norm1(x)) + b.mlp(n),
    "norms after": lambda b, x: (lambda y: b.layer_norm2(y + b.mlp(y)))(
        b.layer_norm1(x + attended(b, x))
    ),
    "the MLP first": lambda b, x: (lambda y: y + attended(b, b.layer_norm1(y)))(
        x + b.mlp(b.layer_norm2(x))
    ),
    "no MLP": lambda b, x: x + attended(b, b.layer_norm1(x)),
    "no attention": lambda b, x: x + b.mlp(b.layer_norm2(x)) + 0 * attended(b, x),
    "no residual": lambda b, x: (lambda y: y + b.mlp(b.layer_norm2(y)))(
        attended(b, b.layer_norm1(x))
    ),
    "half of the residual": lambda b, x: (lambda y: y + b.mlp(b.layer_norm2(y)))(
        0.5 * x + attended(b, b.layer_norm1(x))
    ),
    "a gated residual": lambda b, x: (lambda y: y + b.mlp(b.layer_norm2(y)))(
        x + gate(x) * attended(b, b.layer_norm1(x))
    ),
    "run twice": lambda b, x: (lambda y: b.own(b.own(y)))(x),
    "skipped by some images": stochastic,
    "attention of a detached stream": lambda b, x: (lambda y: y + b.mlp(b.layer_norm2(y)))(
        x + attended(b, b.layer_norm1(x.detach()))
    ),
    "in one's own words": lambda b, x: (lambda y: y + b.mlp(b.layer_norm2(y)))(
        x + attended(b, b.layer_norm1(x))
    ),
    "a sum in place": lambda b, x: (lambda y: y.add_(b.mlp(b.layer_norm2(y.clone()))))(
        x + attended(b, b.layer_norm1(x))
    ),
    "CLS alone through the MLP": lambda b, x: (
        lambda y: torch.cat([y[:, :1] + b.mlp(b.layer_norm2(y[:, :1])), y[:, 1:]], 1)
    )(x + attended(b, b.layer_norm1(x))),
    "a second MLP": lambda b, x: (
        lambda y: y + b.mlp(b.layer_norm2(y)) + 0.3 * b.mlp(b.layer_norm1(y))
    )(x + attended(b, b.layer_norm1(x))),
    "the mean of the patches added": lambda b, x: (
        lambda y: y + b.mlp(b.layer_norm2(y)) + 0.3 * y[:, 1:].mean(1, keepdim=True)
    )(x + attended(b, b.layer_norm1(x))),
    "CLS added to the patches": lambda b, x: (
        lambda y: torch.cat([y[:, :1], y[:, 1:] + 0.3 * y[:, :1]], 1)
    )(x + attended(b, b.layer_norm1(x))),
    "patches added to CLS": lambda b, x: (
        lambda y: torch.cat([y[:, :1] + 0.3 * y[:, 1:].mean(1, keepdim=True), y[:, 1:]], 1)
    )(x + attended(b, b.layer_norm1(x))),
}
MIXES = ("the mean of the patches added", "CLS added to the patches", "patches added to CLS")


def blocks_and_heads() -> Entries:
    """Residual streams and heads."""
    found: Entries = {}
    for name, forward in BLOCKS.items():
        for index in (1, 2):
            if name == "run twice":
                continue
            refused: tuple[str, ...] = ()
            if name in MIXES:
                refused = ("rollout", "all-grad")
                refused += ("direct", "last-grad") if name != MIXES[1] else ()
            found[f"a block with {name}, layer {index}"] = Entry(
                Change(
                    rewritten(forward, index),
                    refused=refused,
                    truth=unknown("removal")
                    if name in MIXES
                    else unknown("conservative")
                    if name == "a gated residual"
                    else None,
                ),
                harmless=name in ("in one's own words", "a sum in place"),
            )
    for name, make in {
        "a head hidden": hidden_head,
        "heads weighed": weighed_heads,
        "two heads": two_heads,
    }.items():
        found[name] = Entry(Change(make))
    found["heads renumbered"] = Entry(Change(renumbered), harmless=True)
    found["a head of another image"] = Entry(
        Change(
            patched_head,
            refused=(
                "direct",
                "last-grad",
                "all-grad",
                "conservative",
                "grad-eclip",
                "legrad",
                "attention-grad-cam",
                "removal",
            ),
        )
    )

    def skipped(place: Place) -> None:
        layer = blocks(place)
        layer[1].forward = lambda hidden_states, *_, **__: hidden_states

    def in_another_order(place: Place) -> None:
        layers = blocks(place)
        layers[0], layers[1] = layers[1], layers[0]

    def tied(place: Place) -> None:
        layers = blocks(place)
        layers[1] = layers[0]

    def deep_supervision(place: Place) -> None:
        kept: list[Tensor] = []
        after(blocks(place)[0], lambda x: kept.append(x) or x)  # type: ignore[func-returns-value]
        after(blocks(place)[2], lambda x: x + 0.5 * kept.pop())

    found["a layer skipped"] = Entry(Change(skipped))
    found["layers exchanged"] = Entry(Change(in_another_order))
    found["one layer twice"] = Entry(Change(tied))
    found["the first layer's stream added to the last's"] = Entry(
        Change(deep_supervision, refused=("direct", "rollout", "all-grad"))
    )
    return found


def families() -> dict[str, Entries]:
    """By name."""
    return {
        "linear maps": linear_maps(),
        "MLPs and norms": mlps_and_norms(),
        "blocks and heads": blocks_and_heads(),
    }
