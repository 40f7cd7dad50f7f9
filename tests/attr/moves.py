"""Changes of a small model's tokens: where they stand, and what is added to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.attr import test_others_methods as others
from tests.attr.changes import Place, changed
from tests.attr.judged import Make

Move = Callable[[Tensor], Tensor]
SIDE, COUNT, TOKENS = 4, 16, 17
SDPA = F.scaled_dot_product_attention  # as it is now, whatever stands for it later


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Places of a model


def prefix_of(place: Place) -> int:
    """Tokens before the patches."""
    has_visual = hasattr(place.model, "visual")
    return 1 if has_visual or hasattr(place.model.vision_model.embeddings, "class_embedding") else 0


def blocks(place: Place) -> Any:
    """The blocks of the vision tower."""
    return others.blocks_of(place.model)


def stem(place: Place) -> Any:
    """The convolution that cuts the patches."""
    visual = getattr(place.model, "visual", None)
    return visual.conv1 if visual else place.model.vision_model.embeddings.patch_embedding


def positions(place: Place) -> tuple[Any, str]:
    """Who has the positions, and the parameter's name."""
    visual = getattr(place.model, "visual", None)
    if visual is not None:
        return visual, "positional_embedding"
    return place.model.vision_model.embeddings.position_embedding, "weight"


def before(module: nn.Module, change: Move) -> None:
    """Change what enters a module."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return (changed(args, change), kwargs) if args else (args, changed(kwargs, change))

    module.register_forward_pre_hook(hook, with_kwargs=True)


def after(module: nn.Module, change: Move) -> None:
    """Change what a module returns."""
    module.register_forward_hook(lambda _, args, out: changed(out, change))


# Patches that change places


def swapped(first: int, second: int) -> list[int]:
    """The cells with two of them exchanged."""
    order = list(range(COUNT))
    order[first], order[second] = second, first
    return order


def of_patches(move: Move, prefix: int) -> Move:
    """A change of the patches (B, N, D) among tokens."""
    return lambda x: torch.cat([x[:, :prefix], move(x[:, prefix:])], 1)


def ordered(order: Sequence[int]) -> Move:
    """Patches (B, N, D) in another order."""
    return lambda patches: patches[:, list(order)]


def rolled(patches: Tensor) -> Tensor:
    """Each patch at the next one's place."""
    return patches.roll(1, 1)


def sorted_by_length(patches: Tensor) -> Tensor:
    """In an order that the image decides."""
    order = patches.detach().norm(dim=-1).argsort(1)
    return torch.take_along_dim(patches, order[..., None], 1)


def tome_unmerged(patches: Tensor) -> Tensor:
    """The two most similar patches of an image are both their mean, as ToMe has it unmerged."""
    unit = F.normalize(patches.detach(), dim=-1)
    alike = (unit @ unit.mT).masked_fill(torch.eye(patches.shape[1]).bool(), -2)
    most = alike.flatten(1).argmax(1)
    pair = F.one_hot(torch.stack([most // patches.shape[1], most % patches.shape[1]], 1), COUNT)
    chosen = pair.sum(1)[..., None].to(patches)
    return patches * (1 - chosen) + chosen * (patches * chosen).sum(1, keepdim=True) / 2


def inside(block: Any, change: Move) -> None:
    """A change between the two branches of a block."""
    if hasattr(block, "ln_1"):

        def forward(q_x: Tensor, *_: Any, **__: Any) -> Tensor:
            x = change(q_x + block.ls_1(block.attention(q_x=block.ln_1(q_x))))
            out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
            return out
    else:

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # type: ignore[misc]
            normed = block.layer_norm1(hidden_states)
            attended, _ = block.self_attn(hidden_states=normed, attention_mask=None)
            x = change(hidden_states + attended)
            out: Tensor = x + block.mlp(block.layer_norm2(x))
            return out

    block.forward = forward


def moving_inside(move: Move, index: int = 1) -> Make:
    """Patches that move between the branches of a block."""
    return lambda place: inside(blocks(place)[index], of_patches(move, prefix_of(place)))


def moving_before(move: Move, index: int = 1) -> Make:
    """Patches that move before a block."""
    return lambda place: before(blocks(place)[index], of_patches(move, prefix_of(place)))


def moving_stem(order: Sequence[int]) -> Make:
    """Patches that the stem puts into another order, before they get positions."""
    return lambda place: after(
        stem(place), lambda x: x.flatten(2)[..., list(order)].view_as(x).contiguous()
    )


def moved_positions(order: Sequence[int]) -> Make:
    """The same with the patches at their places, and the positions in another order."""

    def make(place: Place) -> None:
        owner, name = positions(place)
        weight, prefix = getattr(owner, name), prefix_of(place)
        new = weight.detach().clone()
        new[[prefix + cell for cell in order]] = weight.detach()[prefix:]
        setattr(owner, name, nn.Parameter(new))

    return make


def transposed() -> list[int]:
    """Rows as columns."""
    return torch.arange(COUNT).view(SIDE, SIDE).T.flatten().tolist()


def projections(*names: str, change: Move, index: int = 1) -> Make:
    """A change of what maps of an attention return."""

    def make(place: Place) -> None:
        for name in names:
            after(getattr(blocks(place)[index].self_attn, name), change)

    return make


class Beside(nn.Module):
    """An attention of its own weights, by a function that no oracle exchanges."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.maps = nn.Parameter(noise(4, width, width, seed=2) / 5)

    def forward(self, x: Tensor) -> Tensor:
        """What it adds to every token."""
        q, k, v = ((x @ each)[:, None] for each in self.maps[:3])
        out: Tensor = SDPA(q, k, v)[:, 0] @ self.maps[3]
        return out


def second_attention(where: slice) -> Make:
    """A second attention whose output is added beside the first one's, to some tokens."""

    def make(place: Place) -> None:
        block, other, start = blocks(place)[1], Beside(), list[Tensor]()
        norm = block.ln_1 if hasattr(block, "ln_1") else block.layer_norm1
        norm.register_forward_hook(lambda _, args, out: start.append(out))

        def beside(x: Tensor) -> Tensor:
            added = torch.zeros_like(x)
            added[:, where] = other(start[-1])[:, where]
            return x + added

        inside(block, beside)

    return make
