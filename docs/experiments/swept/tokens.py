"""Changes of tokens: channel by channel, mixed with each other, moved, added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from docs.experiments.swept.entries import TOWERS, Entries, Entry, flows, without
from tests import oracles
from tests.attr import moves, running
from tests.attr.changes import Place, unchanged
from tests.attr.judged import NO_MAP, Change, Make, known
from tests.attr.moves import COUNT, SIDE, Move, after, before, blocks, inside, noise, of_patches


def attention_of(block: Any) -> Any:
    """Its attention."""
    return block.self_attn if hasattr(block, "self_attn") else block.attn


def norm_of(block: Any, index: int) -> Any:
    """One of its two norms."""
    return getattr(block, f"ln_{index}" if hasattr(block, "ln_1") else f"layer_norm{index}")


def end_of(place: Place) -> Any:
    """The norm after the last block."""
    visual = getattr(place.model, "visual", None)
    return visual.ln_post if visual is not None else place.model.vision_model.post_layernorm


WHERE: dict[str, Callable[[Place, Move], object]] = {
    "before the blocks": lambda p, f: before(blocks(p)[0], f),
    "between blocks": lambda p, f: before(blocks(p)[1], f),
    "after a block": lambda p, f: after(blocks(p)[1], f),
    "after the last block": lambda p, f: after(blocks(p)[2], f),
    "inside a block": lambda p, f: inside(blocks(p)[1], f),
    "inside the last block": lambda p, f: inside(blocks(p)[2], f),
    "after a norm": lambda p, f: after(norm_of(blocks(p)[1], 1), f),
    "after a second norm": lambda p, f: after(norm_of(blocks(p)[2], 2), f),
    "after an attention": lambda p, f: after(attention_of(blocks(p)[1]), f),
    "after the last attention": lambda p, f: after(attention_of(blocks(p)[2]), f),
    "after an MLP": lambda p, f: after(blocks(p)[1].mlp, f),
    "after the last MLP": lambda p, f: after(blocks(p)[2].mlp, f),
    "after the final norm": lambda p, f: after(end_of(p), f),
}


def width_of(x: Tensor) -> int:
    """Channels."""
    return x.shape[-1]


def grouped(x: Tensor) -> Tensor:
    """A norm of groups of channels."""
    shape = x.shape
    return F.layer_norm(x.unflatten(-1, (4, -1)), (shape[-1] // 4,)).reshape(shape)


def rounded(x: Tensor) -> Tensor:
    """Eight bits, whose gradient goes straight through."""
    return x + ((x * 64).round() / 64 - x).detach()


CHANNELS: dict[str, Move] = {
    "scaled by channel": lambda x: x * torch.linspace(0.5, 1.5, width_of(x)).to(x),
    "permuted channels": lambda x: x.roll(5, -1),
    "half of the channels dropped": lambda x: x * (torch.arange(width_of(x)) % 2).to(x),
    "a vector added": lambda x: x + 0.3 * noise(width_of(x), seed=20),
    "rotated channels": lambda x: torch.cat([-x[..., 1::2], x[..., ::2]], -1),
    "clamped": lambda x: x.clamp(-1, 1),
    "gated": lambda x: x * torch.sigmoid(x),
    "of unit length": lambda x: 3 * F.normalize(x, dim=-1),
    "norms of groups": grouped,
    "rounded": rounded,
    "noise that is always the same": lambda x: x + 0.1 * noise(*x.shape[1:], seed=21),
    "scaled by the image's mean length": lambda x: x * x.norm(dim=-1).mean(-1)[:, None, None] / 5,
}


def by_channel() -> Entries:
    """Token by token: nothing leaves its place."""
    found: Entries = {}
    for index, (name, change) in enumerate(CHANNELS.items()):
        for offset, (where, put) in enumerate(WHERE.items()):
            if (index + offset) % 3:  # a third of all pairs
                continue
            tower = TOWERS[(index + 2 * offset) % len(TOWERS)]
            if tower == "siglip" and where == "after the final norm":
                continue
            make: Make = lambda p, put=put, change=change: put(p, change)  # noqa: E731
            found[f"{tower}: {name}, {where}"] = Entry(
                Change(
                    make,
                    tower=tower,
                    # whether a gate is held or not, relevance passes it
                    truth=without(("gated",), name, "conservative"),
                    tolerance=1e-4 if name == "norms of groups" else 1e-6,
                )
            )
    return found


# Patches mixed


def on_grid(change: Move) -> Move:
    """A change of maps (B, D, 4, 4)."""
    return lambda x: change(x.mT.unflatten(2, (SIDE, SIDE))).flatten(2).mT


def shifted_groups(x: Tensor) -> Tensor:
    """ShiftViT: some channels come from the neighbors."""
    grid = x.unflatten(1, (SIDE, SIDE))
    parts = grid.chunk(4, -1)
    turns = [(1, 1), (-1, 1), (1, 2), (-1, 2)]
    rolled = [part.roll(*turn) for part, turn in zip(parts, turns, strict=True)]
    return torch.cat(rolled, -1).flatten(1, 2)


MIXED: dict[str, Move] = {
    "an average of neighbors": on_grid(lambda g: F.avg_pool2d(g, 3, 1, 1)),
    "a largest of neighbors": on_grid(lambda g: F.max_pool2d(g, 3, 1, 1)),
    "halved and enlarged again": on_grid(
        lambda g: F.interpolate(F.avg_pool2d(g, 2), scale_factor=2.0)
    ),
    "the mean subtracted": lambda x: x - x.mean(1, keepdim=True),
    "the mean added": lambda x: x + 0.5 * x.mean(1, keepdim=True),
    "channels shifted": shifted_groups,
    "a sum that runs on": lambda x: x.cumsum(1) / 4,
    "standardized over patches": lambda x: F.layer_norm(x.mT, x.shape[1:2]).mT,
    "a patch copied to another": lambda x: torch.cat([x[:, :3], x[:, 9:10], x[:, 4:]], 1),
    "rows mixed by a matrix": lambda x: torch.einsum(
        "ij,bjd->bid", torch.eye(COUNT) + 0.1 * noise(COUNT, COUNT, seed=22), x
    ),
    "the nearest averaged": lambda x: (x + torch.take_along_dim(x, _nearest(x)[..., None], 1)) / 2,
    "a mean of two thirds": lambda x: torch.cat(
        [x[:, :5], x[:, 5:].mean(1, keepdim=True).expand(-1, 11, -1)], 1
    ),
}


def _nearest(x: Tensor) -> Tensor:
    unit = F.normalize(x.detach(), dim=-1)
    return (unit @ unit.mT).masked_fill(torch.eye(x.shape[1]).bool(), -2).argmax(-1)


def mixed() -> Entries:
    """Patches that have something of other patches, besides what attention gives them."""
    found: Entries = {}
    places = ("before the blocks", "between blocks", "inside a block", "after a block")
    for index, (name, change) in enumerate(MIXED.items()):
        for offset, where in enumerate(places):
            if (index + offset) % 2:
                continue
            tower = TOWERS[(index + offset // 2) % len(TOWERS)]
            make: Make = lambda p, w=where, c=change: WHERE[w](p, of_patches(c, moves.prefix_of(p)))  # noqa: E731
            refused = flows(tower) if where != "before the blocks" else ()
            found[f"{tower}: {name}, {where}"] = Entry(
                Change(make, tower=tower, refused=refused, tolerance=1e-5)
            )
    return found


# Patches kept or dropped at their places


def faint(x: Tensor) -> Tensor:
    """The shorter half of the patches as zeros."""
    length = x.detach().norm(dim=-1, keepdim=True)
    return x * (length >= length.median(1, keepdim=True).values)


def squeezed(x: Tensor) -> Tensor:
    """Squeeze and excitation: channels weighed by the mean of all."""
    return x * torch.sigmoid(x.mean(1, keepdim=True))


KEPT: dict[str, Move] = {
    "patches hidden": lambda x: x * (torch.arange(COUNT) % 3 > 0)[:, None],
    "the fainter half hidden": faint,
    "squeeze and excitation": squeezed,
    "weighed by place": lambda x: x * torch.linspace(0.5, 1.5, COUNT).to(x)[:, None],
    "a mask token": lambda x: torch.where(
        (torch.arange(COUNT) % 4 == 1)[:, None], noise(x.shape[-1], seed=23), x
    ),
    "new positions added": lambda x: x + 0.3 * noise(COUNT, x.shape[-1], seed=24),
    "weighed by a softmax over patches": lambda x: x * COUNT * x.mean(-1, keepdim=True).softmax(1),
}


def kept() -> Entries:
    """Patches that stay where they are, of another strength."""
    found: Entries = {}
    places = ("before the blocks", "between blocks", "inside a block", "inside the last block")
    for index, (name, change) in enumerate(KEPT.items()):
        for offset, where in enumerate(places):
            tower = TOWERS[(index + offset) % len(TOWERS)]
            make: Make = lambda p, w=where, c=change: WHERE[w](p, of_patches(c, moves.prefix_of(p)))  # noqa: E731
            gates = ("squeeze and excitation", "weighed by a softmax over patches")
            truth = without(gates, name, "conservative")
            found[f"{tower}: {name}, {where}"] = Entry(Change(make, tower=tower, truth=truth))
    return found


# Patches moved


GRID = torch.arange(COUNT).view(SIDE, SIDE)
SNAKE = torch.cat([row if i % 2 == 0 else row.flip(0) for i, row in enumerate(GRID)])
WINDOWS = GRID.unflatten(0, (2, 2)).unflatten(2, (2, 2)).transpose(1, 2).flatten()
ORDERS: dict[str, list[int]] = {
    "by two columns": GRID.roll(2, 1).flatten().tolist(),
    "by a row": GRID.roll(1, 0).flatten().tolist(),
    "turned round": GRID.rot90(1).flatten().tolist(),
    "mirrored": GRID.flip(1).flatten().tolist(),
    "as windows": WINDOWS.tolist(),
    "as a snake": SNAKE.tolist(),
    "at random": torch.randperm(COUNT, generator=torch.Generator().manual_seed(3)).tolist(),
    "three in a ring": [5, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10, 0, *range(12, 16)],
    "two corners": moves.swapped(0, 15),
    "two in the middle": moves.swapped(5, 6),
}


def by_content(x: Tensor) -> Tensor:
    """Sorted by the first channel."""
    order = x[..., 0].detach().argsort(1)
    return torch.take_along_dim(x, order[..., None], 1)


def each_its_own(x: Tensor) -> Tensor:
    """Each image by another step."""
    return torch.stack([one.roll(1 + i, 0) for i, one in enumerate(x)])


def moved() -> Entries:
    """Patches in another order: no attention minds, so the maps are those of the plain model."""
    found: Entries = {}
    changes: dict[str, Move] = {name: moves.ordered(order) for name, order in ORDERS.items()}
    changes |= {"sorted by a channel": by_content, "each image its own way": each_its_own}
    places = ("before the blocks", "between blocks", "inside a block", "after a block")
    for index, (name, change) in enumerate(changes.items()):
        for offset, where in enumerate(places):
            if (index + offset) % 2:
                continue
            tower = TOWERS[(index + offset // 2) % len(TOWERS)]
            make: Make = lambda p, w=where, c=change: WHERE[w](p, of_patches(c, moves.prefix_of(p)))  # noqa: E731
            found[f"{tower}: {name}, {where}"] = Entry(
                Change(make, unchanged, tower, batch=1 + 2 * (index % 2))
            )
    for name, order in ORDERS.items():
        for tower in ("hf_vit", "siglip"):
            found[f"{tower}: {name}, in the stem"] = Entry(
                Change(moves.moving_stem(order), moves.moved_positions(order), tower)
            )
    for name, order in [*ORDERS.items()][::2]:
        back = torch.tensor(order).argsort().tolist()

        def there_and_back(p: Place, order: Any = order, back: Any = back) -> None:
            before(blocks(p)[1], of_patches(moves.ordered(order), 1))
            after(blocks(p)[1], of_patches(moves.ordered(back), 1))

        found[f"{name} and back, round a block"] = Entry(Change(there_and_back, unchanged))

        def round_attention(p: Place, order: Any = order, back: Any = back) -> None:
            own = blocks(p)[1].self_attn
            before(own, of_patches(moves.ordered(order), 1))
            after(own, of_patches(moves.ordered(back), 1))

        found[f"{name} and back, round an attention"] = Entry(Change(round_attention, unchanged))

        def round_mlp(p: Place, order: Any = order, back: Any = back) -> None:
            before(blocks(p)[1].mlp, of_patches(moves.ordered(order), 1))
            after(blocks(p)[1].mlp, of_patches(moves.ordered(back), 1))

        found[f"{name} and back, round an MLP"] = Entry(Change(round_mlp, unchanged), harmless=True)
    return found


# Tokens added


def of_span(span: slice, alone: bool) -> Any:
    """Maps of the patches among further tokens."""

    def truth(change: Change, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            if alone and method in ("rollout", "all-grad"):
                return NO_MAP
            some = ("direct", "grad-eclip", "attention-grad-cam")
            if method not in (some if alone else (*some, "last-grad", "all-grad", "rollout")):
                return None
            score = lambda e, _: oracles.cosines(e, running.rows())  # noqa: E731
            plain = running.Plain(running.shared("hf_vit"), change.pixels, span=span, score=score)
            found = plain(method)
            return [each.detach() for each in found] if isinstance(found, list) else found

        return wanted

    return truth


def relevance(change: Change, forward: Any) -> Any:
    """A gradient at the projected patches passes further tokens; other maps read a wrong row."""

    def truth(method: str) -> Any:
        conservative = method == "conservative"
        return known(change.tower, method, change.batch) if conservative else NO_MAP

    return truth


def added() -> Entries:
    """Prompts and registers, in some layers or all."""
    found: Entries = {}
    extra = noise(3, 32, seed=25)

    def put(index: int, until: int, at: str, count: int) -> Make:
        def make(p: Place) -> None:
            def enter(x: Tensor) -> Tensor:
                own = extra[:count].expand(len(x), -1, -1)
                parts = {"first": [own, x], "second": [x[:, :1], own, x[:, 1:]], "last": [x, own]}
                return torch.cat(parts[at], 1)

            def leave(x: Tensor) -> Tensor:
                if at == "first":
                    return x[:, count:]
                if at == "second":
                    return torch.cat([x[:, :1], x[:, 1 + count :]], 1)
                return x[:, :-count]

            before(blocks(p)[index], enter)
            after(blocks(p)[until], leave)

        return make

    for at in ("first", "second", "last"):
        for index, until in ((0, 2), (1, 1), (1, 2), (2, 2)):
            for count in (1, 3):
                # tokens that some layers alone have leave no flow from one layer to the next
                alone = (index, until) != (0, 2)
                span = {"first": 0, "second": 1 + count, "last": 1}[at]
                truth = of_span(slice(span, span + COUNT), alone) if at != "first" else relevance
                found[f"{count} {at}, layers {index} to {until}"] = Entry(
                    Change(put(index, until, at, count), truth=truth)
                )
    return found


def families() -> dict[str, Entries]:
    """By name."""
    return {
        "channels": by_channel(),
        "patches mixed": mixed(),
        "patches kept": kept(),
        "patches moved": moved(),
        "tokens added": added(),
    }
