"""How a model runs: hooks, caches, threads, precision, graphs, batches, and between two calls."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from docs.experiments.swept.entries import Entries, Entry, unknown
from docs.experiments.swept.tokens import ORDERS, by_content
from docs.experiments.swept.weights import Dynamic, Wrapped, putting
from tests.attr import moves
from tests.attr import own_kernels as kernels
from tests.attr.changes import Place, unchanged
from tests.attr.judged import METHODS, Change, Make, known, of_plain
from tests.attr.moves import after, before, blocks, noise, of_patches

Where = Callable[[Place], Any]
PARTS: dict[str, Where] = {
    "the tower": lambda p: p.model.vision_model,
    "the stem": lambda p: p.model.vision_model.embeddings,
    "a block": lambda p: blocks(p)[1],
    "the last block": lambda p: blocks(p)[2],
    "an attention": lambda p: blocks(p)[1].self_attn,
    "an MLP": lambda p: blocks(p)[1].mlp,
    "the final norm": lambda p: p.model.vision_model.post_layernorm,
    "the projection": lambda p: p.model.visual_projection,
}


def forward_of(wrap: Callable[[Any], Any]) -> Callable[[Where], Make]:
    """A forward within a wrapper."""

    def at(where: Where) -> Make:
        def make(place: Place) -> None:
            module = where(place)
            module.forward = wrap(module.forward)

        return make

    return at


def in_thread(function: Any) -> Any:
    """It runs in another thread."""

    def call(*args: Any, **options: Any) -> Any:
        out: list[Any] = []
        graph = torch.is_grad_enabled()

        def work() -> None:
            with torch.set_grad_enabled(graph):
                out.append(function(*args, **options))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return out[0]

    return call


def remembered(function: Any) -> Any:
    """It gives what it gave for the same tensor."""
    kept: dict[Any, Any] = {}

    def call(*args: Any, **options: Any) -> Any:
        first = next(x for x in (*args, *options.values()) if isinstance(x, Tensor))
        key = (tuple(first.shape), float(first.detach().sum()))
        if key not in kept:
            kept[key] = function(*args, **options)
        return kept[key]

    return call


def by_image(function: Any) -> Any:
    """One image at a time."""

    def call(x: Tensor, *args: Any, **options: Any) -> Any:
        return torch.cat([function(one, *args, **options) for one in x.split(1)])

    return call


def last_first(function: Any) -> Any:
    """Images from the last to the first, and back."""

    def call(x: Tensor, *args: Any, **options: Any) -> Any:
        return function(x.flip(0), *args, **options).flip(0)

    return call


def with_another(function: Any) -> Any:
    """With an image of zeros that is taken away again."""

    def call(x: Tensor, *args: Any, **options: Any) -> Any:
        return function(torch.cat([x, 0 * x[:1]]), *args, **options)[:-1]

    return call


def detaching(function: Any) -> Any:
    """What it takes has no gradient."""
    return lambda x, *args, **options: function(x.detach(), *args, **options)


def in_float32(function: Any) -> Any:
    """In single precision."""

    def call(x: Tensor, *args: Any, **options: Any) -> Any:
        return function(x.float().double(), *args, **options)

    return call


def twice(function: Any) -> Any:
    """It runs once before."""

    def call(*args: Any, **options: Any) -> Any:
        function(*args, **options)
        return function(*args, **options)

    return call


def of_copies(function: Any) -> Any:
    """What it takes is copied."""
    return lambda x, *args, **options: function(x.clone(), *args, **options)


def in_place(function: Any) -> Any:
    """What it takes is changed behind it."""

    def call(x: Tensor, *args: Any, **options: Any) -> Any:
        out = function(x.clone(), *args, **options)
        with torch.no_grad():
            x.detach().mul_(0)
        return out

    return call


WRAPS: dict[str, Any] = {
    "in a thread": in_thread, "remembered": remembered, "by image": by_image,
    "last image first": last_first, "with another image": with_another,
    "in single precision": in_float32, "twice": twice, "of copies": of_copies,
    "checkpointed": lambda f: functools.partial(checkpoint, f, use_reentrant=False),
    "with a graph always": torch.enable_grad(),
    "under autocast that is off": torch.autocast("cpu", enabled=False),
    "hidden from dynamo": torch.compiler.disable,
    "a partial function": functools.partial,
    "input changed behind it": in_place,
}  # fmt: skip
TENSORS = ("a block", "the last block", "an MLP", "the final norm", "the projection")
SINGLE = (
    "by image",
    "last image first",
    "with another image",
    "of copies",
    "input changed behind it",
    "in single precision",
    "checkpointed",
)


def wrapped() -> Entries:
    """Each wrapper at some parts."""
    found: Entries = {}
    for number, (name, wrap) in enumerate(WRAPS.items()):
        names = [n for n in PARTS if n in TENSORS or name not in SINGLE]
        for offset in range(0, len(names), 2):
            part = names[(number + offset) % len(names)]
            if name == "input changed behind it" and part in ("the final norm", "the projection"):
                continue
            tolerance = 1e-4 if name == "in single precision" else 1e-6
            make = forward_of(wrap)(PARTS[part])
            # what was kept without its graph is a constant
            truth = either(make) if name == "remembered" else None
            found[f"{part} {name}"] = Entry(
                Change(make, unchanged, tolerance=tolerance, truth=truth), harmless=True
            )
    return found


# Hooks


def hook(kind: str, run: Any, **options: Any) -> Callable[[Where], Make]:
    """A hook of a module."""
    return lambda where: lambda p: getattr(where(p), f"register_{kind}")(run, **options)


HOOKS: dict[str, Any] = {
    "a hook that looks": hook("forward_hook", lambda *_: None),
    "a hook that returns the output": hook("forward_hook", lambda m, args, out: out),
    "a hook that always runs": hook("forward_hook", lambda *_: None, always_call=True),
    "a hook with names": hook("forward_hook", lambda m, a, k, out: None, with_kwargs=True),
    "a pre-hook that looks": hook("forward_pre_hook", lambda *_: None),
    "a pre-hook with names": hook(
        "forward_pre_hook", lambda m, a, k: (a, dict(k)), with_kwargs=True
    ),
    "a full backward hook": hook("full_backward_hook", lambda *_: None),
    "a full backward pre-hook": hook("full_backward_pre_hook", lambda *_: None),
    "a hook that counts": hook(
        "forward_hook", functools.partial(lambda kept, *_: kept.append(1), [])
    ),
}


def hooked() -> Entries:
    """Each hook at some parts: none changes anything."""
    found: Entries = {}
    names = [*PARTS]
    for number, (name, put) in enumerate(HOOKS.items()):
        for offset in (0, 3, 4):
            part = names[(number + offset) % len(names)]
            found[f"{name} on {part}"] = Entry(Change(put(PARTS[part]), unchanged), harmless=True)
    return found


# Batches


def among_images(change: Callable[[Tensor], Tensor]) -> Callable[[Where], Make]:
    """A change of what a module returns that reads other images."""
    return lambda where: lambda p: after(where(p), change)


def attended_images(x: Tensor) -> Tensor:
    """Each token looks at the same token of the other images."""
    weights = torch.einsum("asd,bsd->sab", x, x).mul(0.1).softmax(-1)
    return 0.5 * x + 0.5 * torch.einsum("sab,bsd->asd", weights, x)


IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "less the batch's mean": lambda x: x - 0.5 * x.mean(0, keepdim=True),
    "mixed up": lambda x: 0.7 * x + 0.3 * x.flip(0),
    "of the next image": lambda x: x.roll(1, 0),
    "standardized over images": lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 0.1).sqrt(),
    "by the batch's largest": lambda x: 3 * x / x.abs().amax((0, 1), keepdim=True),
    "attending to images": attended_images,
    "some patches of another image": lambda x: torch.cat([x[:, :9], x.flip(0)[:, 9:]], 1),
    "CLS of another image": lambda x: torch.cat([x.flip(0)[:, :1], x[:, 1:]], 1),
}


def images() -> Entries:
    """What an image has of others has no map."""
    found: Entries = {}
    places = {n: PARTS[n] for n in ("a block", "an attention", "an MLP", "the last block")}
    for number, (name, change) in enumerate(IMAGES.items()):
        for offset in (0, 1, 3):
            part = [*places][(number + offset) % len(places)]
            # of what the last block returns, CLS alone is read
            unread = (part, name) == ("the last block", "some patches of another image")
            refused = () if unread else METHODS
            instead = unchanged if unread else None
            found[f"{part}: {name}"] = Entry(
                Change(among_images(change)(places[part]), instead, refused=refused)
            )
    # images in another order within the tower, and put back
    for first, last in ((0, 1), (1, 2), (0, 2)):

        def make(place: Place, first: int = first, last: int = last) -> None:
            order = torch.tensor([2, 0, 1])
            before(blocks(place)[first], lambda x: x[order[: len(x)]] if len(x) == 3 else x)
            after(blocks(place)[last], lambda x: x[order.argsort()] if len(x) == 3 else x)

        found[f"images in another order, blocks {first} to {last}"] = Entry(Change(make, unchanged))
    return found


# Between two calls


def later(make: Make) -> Change:
    """A change after a first call."""
    return Change(make, before=unchanged)


def toggled(where: Where, change: Callable[[Tensor], Tensor]) -> tuple[Make, Make]:
    """A flag that somebody's code reads, and its setting."""
    flags: dict[int, bool] = {}

    def first(place: Place) -> None:
        flags[0] = False
        after(where(place), lambda x: change(x) if flags[0] else x)

    def then(place: Place) -> None:
        flags[0] = True

    return first, then


def between() -> Entries:
    """What changes after a first call that looked."""
    found: Entries = {}
    orders = {
        "rolled": moves.rolled,
        "sorted": by_content,
        "mirrored": moves.ordered(ORDERS["mirrored"]),
    }
    for name, change in orders.items():
        of = of_patches(change, 1)
        for part in ("a block", "the last block", "the stem"):
            first, then = toggled(PARTS[part], of)
            found[f"{name} by a flag, {part}"] = Entry(Change(then, unchanged, before=first))
        found[f"{name} by a new hook"] = Entry(
            Change(lambda p, of=of: before(blocks(p)[1], of), unchanged, before=unchanged)
        )
        found[f"{name} by a new class"] = Entry(
            Change(lambda p, of=of: reclassed(blocks(p)[1], of), unchanged, before=unchanged)
        )
        found[f"{name} inside by a new forward"] = Entry(
            Change(lambda p, of=of: moves.inside(blocks(p)[1], of), unchanged, before=unchanged)
        )
        found[f"{name} inside by a patched norm"] = Entry(
            Change(lambda p, of=of: moves.inside(blocks(p)[2], of), unchanged, before=unchanged)
        )
    swapped = moves.swapped(2, 9)
    for name, make in {
        "a new stem": lambda p: setattr(
            p.model.vision_model.embeddings, "patch_embedding", Swapping(moves.stem(p), swapped)
        ),
        "a hook on the stem": moves.moving_stem(swapped),
        "a forward of the stem": lambda p: forward_of(
            lambda f: lambda x: Swapping.swap(f(x), swapped)
        )(moves.stem)(p),
    }.items():
        found[f"{name} exchanges patches"] = Entry(
            Change(make, moves.moved_positions(swapped), before=unchanged)
        )
    plain: dict[str, Make] = {
        "new weights": lambda p: reweighed(p, "self_attn.v_proj"),
        "new weights of queries": lambda p: reweighed(p, "self_attn.q_proj"),
        "another kernel": kernels.kernel(lambda q, k, v, s: kernels.fused(q, k, v, 2 * s)),
        "a wrapped block": lambda p: blocks(p).__setitem__(1, Wrapped(blocks(p)[1])),
        "a DyT norm": putting("layer_norm1", 1, Dynamic),
        "a halved MLP": lambda p: after(blocks(p)[1].mlp, lambda x: 0.5 * x),
        "float32 and back": lambda p: p.model.vision_model.post_layernorm.to(torch.float64),
    }
    for name, make in plain.items():
        change = later(make)
        if "DyT" in name:
            change = change._replace(truth=unknown("conservative"))
        found[f"{name} between calls"] = Entry(change, harmless="float32" in name)
    return found


class Swapping(nn.Module):
    """A convolution whose cells change places."""

    def __init__(self, inner: Any, order: list[int]) -> None:
        super().__init__()
        self.inner, self.order = inner, order
        self.weight = inner.weight

    @staticmethod
    def swap(x: Tensor, order: list[int]) -> Tensor:
        """In another order."""
        return x.flatten(2)[..., order].view_as(x).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Swapped."""
        return self.swap(self.inner(x), self.order)


def reclassed(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """A class of its own, whose call changes what it takes."""
    kind = type(module)

    def call(self: Any, tokens: Tensor, *args: Any, **options: Any) -> Any:
        return nn.Module.__call__(self, change(tokens), *args, **options)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def reweighed(place: Place, path: str) -> None:
    """Other weights."""
    linear = blocks(place)[1].get_submodule(path)
    linear.weight = nn.Parameter(linear.weight.detach() + 0.2 * noise(32, 32, seed=50))


# What is no part of the values


def gradients() -> Entries:
    """Graphs that are cut or bent: either what autograd says or what the values say."""
    found: Entries = {}
    cut: dict[str, Any] = {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "detached": detaching,
    }
    for name, wrap in cut.items():
        for part in ("the tower", "a block", "an attention", "an MLP", "the stem"):
            if name == "detached" and part in ("the tower", "an attention", "the stem"):
                continue
            make = forward_of(wrap)(PARTS[part])
            found[f"{part}: {name}"] = Entry(Change(make, truth=either(make)))
    return found


def either(make: Make) -> Any:
    """The map of the plain model, or of the graph as it is."""

    def truth(change: Change, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            found = [of_plain(change.tower, unchanged, method)]
            own = known(change.tower, method, change.batch)
            return found if own is None else [*found, own]

        return wanted

    return truth


def families() -> dict[str, Entries]:
    """By name."""
    return {
        "wrappers": wrapped(),
        "hooks": hooked(),
        "images in the tower": images(),
        "between calls": between(),
        "graphs": gradients(),
    }
