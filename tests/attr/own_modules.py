"""Modules and scores of one's own, in the place of a small model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity
from tests.attr import running
from tests.attr.changes import Place
from tests.attr.judged import Make
from tests.attr.moves import SIDE, TOKENS, after, before, blocks, noise
from tests.attr.own_kernels import kernel


class Convolved(nn.Module):
    """A convolution over the patches beside a module that works token by token."""

    def __init__(self, inner: nn.Module, width: int = 32, *, first: int = 1) -> None:
        super().__init__()
        self.inner, self.first = inner, first
        self.weight = nn.Parameter(noise(width, width, 3, 3, seed=5) / 30)

    def forward(self, x: Tensor) -> Tensor:
        """What both make of it."""
        grid = x[:, self.first :].mT.unflatten(2, (SIDE, SIDE))
        local = F.conv2d(grid, self.weight, padding=1).flatten(2).mT
        out: Tensor = self.inner(x) + F.pad(local, (0, 0, self.first, 0))
        return out


class Mixer(nn.Module):
    """An MLP along the tokens."""

    def __init__(self, count: int = TOKENS) -> None:
        super().__init__()
        self.first = nn.Parameter(noise(count, count, seed=6) / 4)
        self.second = nn.Parameter(noise(count, count, seed=7) / 4)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each channel."""
        return (self.activation(x.mT @ self.first) @ self.second).mT


class Adapter(nn.Module):
    """CLIP-Adapter: an MLP on the embedding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.down, self.up = (nn.Parameter(noise(24, 24, seed=seed) / 5) for seed in (8, 9))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """A mixture of both."""
        e = self.inner(x)
        out: Tensor = 0.8 * e + 0.2 * (self.relu(e @ self.down) @ self.up)
        return out


class Chunked(nn.Module):
    """An MLP that runs some tokens at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """As the whole."""
        return torch.cat([self.inner(part) for part in x.split(6, 1)], 1)


def mlp(wrap: Callable[[Any], nn.Module], index: int = 1) -> Make:
    """Another module in the place of a block's MLP."""
    return lambda place: setattr(blocks(place)[index], "mlp", wrap(blocks(place)[index].mlp))


class Output:
    """An object that passes everything on to a library's output."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["of"], name)

    def __getitem__(self, key: Any) -> Any:
        return self.of[key]


class Attributes(dict[str, Any]):
    """A dictionary whose items are attributes, as many projects have one; of others it has None."""

    __getattr__ = dict.get


def own_output(kind: Any) -> Make:
    """A tower that returns one."""

    def make(place: Place) -> None:
        module = place.model.vision_model
        own = module.forward
        module.forward = lambda *args, **options: kind(own(*args, **options))

    return make


def backward_hooks(*paths: str) -> Make:
    """Full backward hooks that only look."""

    def make(place: Place) -> None:
        for path in paths:
            module = place.model.get_submodule(path)
            module.register_full_backward_hook(lambda *_: None)

    return make


def registers(place: Place) -> None:
    """Two tokens that one layer alone has, behind the patches."""
    block = blocks(place)[1]
    extra = noise(2, 32, seed=11)
    before(block, lambda x: torch.cat([x, extra.expand(len(x), -1, -1)], 1))
    after(block, lambda x: x[:, :-2])


def two_heads(place: Place) -> None:
    """An attention of other heads."""
    own = blocks(place)[1].self_attn
    own.num_heads, own.head_dim, own.scale = 2, 16, 16**-0.5


def shared_maps(place: Place) -> None:
    """The last layer takes the weights of the one below."""
    kept = list[Tensor]()

    def weights(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        kept.append((q @ k.mT * scale).softmax(-1))
        return kept[-1] @ v

    kernel(weights, (1,))(place)
    last = blocks(place)[2].self_attn

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        value = running.split(last, hidden_states)[2]
        return running.merged(last, kept[-1] @ value)

    last.forward = forward


ANY: Any = ({0: torch.export.Dim("images", min=1, max=64)},)


def exported(module: nn.Module, sizes: Any = ANY) -> Any:
    """A module as torch.export has it, for images of any number."""
    example = (torch.zeros(3, TOKENS, 32, dtype=torch.float64),)
    return torch.export.export(module, example, dynamic_shapes=sizes).module()


def rolled_stage(place: Place) -> None:
    """A last stage whose columns are moved."""
    after(place.model.visual.layer4, lambda x: x.roll(1, 3))


def rolled_positions(place: Place) -> None:
    """The same with the columns at their places, and the pool's positions moved back."""
    pool = place.model.visual.attnpool
    rest = pool.positional_embedding.detach()
    grid = rest[1:].unflatten(0, (int((len(rest) - 1) ** 0.5), -1)).roll(-1, 1).flatten(0, 1)
    pool.positional_embedding = nn.Parameter(torch.cat([rest[:1], grid]))


def thrown_away(place: Place) -> None:
    """An attention pool that runs for a log, while the mean of the features is what is read."""
    pool = place.model.visual.attnpool
    own = pool.forward

    def forward(x: Tensor) -> Tensor:
        own(x)
        out: Tensor = pool.c_proj(pool.v_proj(x.mean((2, 3))))
        return out

    pool.forward = forward


# Scores of one's own


def scored(score: Callable[[Tensor], Tensor]) -> Any:
    """A function of the cosines (B, K)."""
    return lambda similarity, place: lambda pixels: score(similarity(pixels))


def of_images(way: Callable[[ClipSimilarity, Tensor], Tensor]) -> Any:
    """A function of a similarity and images."""
    return lambda similarity, place: lambda pixels: way(similarity, pixels)


def put_back(similarity: ClipSimilarity, pixels: Tensor) -> Tensor:
    """Images that run in another order."""
    order = pixels.flatten(1).mean(1).argsort()
    order = order if order.tolist() != list(range(len(pixels))) else order.flip(0)
    found: Tensor = similarity(pixels[order])[order.argsort()]
    return found


def in_place(similarity: ClipSimilarity, pixels: Tensor) -> Tensor:
    """Images that are changed in place on their way."""
    found: Tensor = similarity(pixels.sub_(0.1))
    return found


def cosines(embedding: Tensor) -> Tensor:
    """With the texts."""
    return F.normalize(embedding, dim=-1) @ running.rows().T


def also(reads: Callable[[Place], nn.Module]) -> Any:
    """Cosines, and a score of what a module of the tower returned."""

    def make(similarity: ClipSimilarity, place: Place) -> Any:
        def forward(pixels: Tensor) -> Tensor:
            caught: list[Any] = []
            handle = reads(place).register_forward_hook(lambda *call: caught.append(call[2]))
            try:
                found = similarity(pixels)
            finally:
                handle.remove()
            tokens = caught[0] if isinstance(caught[0], Tensor) else caught[0][0]
            tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens
            return found + 0.5 * cosines(tokens[:, 1:, :24].mean(1))

        return forward

    return make


def llava(similarity: ClipSimilarity, place: Place) -> Any:
    """What a vision-language model reads: all patches of the last layer but one."""
    model = place.model

    def forward(pixels: Tensor) -> Tensor:
        hidden = model.vision_model(pixels, output_hidden_states=True).hidden_states
        return cosines(model.visual_projection(hidden[-2][:, 1:].mean(1)))

    return forward


def headless(similarity: ClipSimilarity, place: Place) -> Any:
    """The mean of the patches, where the pooling head does not run."""
    model = place.model
    return lambda pixels: cosines(model.vision_model(pixels).last_hidden_state.mean(1))
