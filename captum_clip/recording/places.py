"""Whether the token at each place is that of the place, seen by gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.images import Size
from .graph import graph_from_start
from .hooks import Arguments, Hooks
from .records import Recording


class Places:
    """Follows tokens from the patches to the first block, and from each block to the next values.

    A kernel of attention knows values, and not which tokens they came from: a model may permute
    them, merge them, or put others among them. So of one half of the values at random a gradient is
    taken, which must reach that half of the tokens alone.
    """

    def __init__(self, record: Recording, hooks: Hooks) -> None:
        self._record, self._hooks = record, hooks
        self.leaf = None
        self._draw = torch.Generator().manual_seed(0)

    leaf: Any  # or what lies in a graph that has begun

    def begin(self, _: Arguments, projected: Tensor) -> Tensor:
        """Follow what the patch projection, or the table of words, returned."""
        self._patches = followed = self._follow(projected)
        return followed.clone()

    def enter(self, tokens: Tensor) -> Tensor:
        """Follow the tokens (B, s, D) that leave a block or enter the first one."""
        record = self._record
        if self.leaf is None and hasattr(self, "_patches"):
            half = self._half(tokens)
            reached = self._reached(tokens, half, self._patches, "the first block")
            wanted = half[:, record.span]
            if reached.shape != wanted.shape or not reached.equal(wanted):
                raise self._refused("the first block", "the patches")
        self.leaf = followed = self._follow(tokens)
        return followed.clone()

    def check(self, name: str, value: Tensor) -> None:
        """Raise UnsupportedModelError unless the values (B, H, s, d) are those of the tokens."""
        tokens = self.leaf
        if tokens is None:
            return
        if value.shape[2] < tokens.shape[1]:
            raise self._refused(name, f"{tokens.shape[1]} tokens")
        half = self._half(tokens)
        extra = half.new_ones(len(half), value.shape[2] - tokens.shape[1])  # keys of no token
        rows = torch.cat([half, extra], 1)
        reached = self._reached(value.transpose(1, 2), rows, tokens, name)
        if (reached & ~half).any():
            raise self._refused(name, "the tokens that the block below returned")
        torch.set_grad_enabled(self._record.begun or graph_from_start.get())

    def _follow(self, tokens: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        # with a graph that is kept, frozen layers may lie below
        in_graph = self._record.begun and tokens.requires_grad
        return tokens if in_graph else tokens.detach().requires_grad_()

    def _half(self, tokens: Tensor) -> Tensor:
        """One half of the tokens, (B, s), drawn for each image."""
        # a fixed half would never see two tokens of it swapped
        order = torch.rand(tokens.shape[:2], generator=self._draw, device="cpu").argsort(1)
        return (order < (tokens.shape[1] + 1) // 2).to(tokens.device)

    def _reached(self, values: Tensor, rows: Tensor, tokens: Tensor, name: str) -> Tensor:
        """The tokens (B, s) to which a gradient of some rows of values (B, s, ...) leads."""
        if not values.requires_grad:
            raise UnsupportedModelError(
                f"no gradient leads from {name} of the {self._record.transformer.noun} to what "
                "enters it, so the tokens cannot be told apart; remove what turns the graph off, "
                "such as no_grad, inference_mode or detach."
            )
        random = torch.rand(values.shape[:2], generator=self._draw, device="cpu") + 0.5
        weights = (random.to(values) * rows).view(*rows.shape, *[1] * (values.ndim - 2))
        # not a sum over channels, which a norm would set to zero
        cotangent = weights * torch.linspace(-1, 2, values[0, 0].numel(), device=values.device).to(
            values
        ).view(values.shape[2:])
        options = {"retain_graph": self._record.begun, "allow_unused": True}
        # a checkpointed block runs again in this backward, and its hooks with it
        with self._hooks.paused():
            [gradient] = torch.autograd.grad(values, tokens, cotangent, **options)
        if gradient is None:
            raise self._refused(name, "what enters it")
        size: Size | None = self._record.size
        assert size is not None
        stem: Any = self._record.transformer.stem
        if gradient.ndim == 4 and isinstance(stem, nn.Conv2d):
            gradient = gradient.permute(0, 2, 3, 1)
        return gradient.flatten(1, -2).ne(0).any(-1)

    def _refused(self, name: str, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{name} of the {self._record.transformer.noun} does not read {what} each at its own "
            "place: something merges, drops, adds or permutes tokens, such as prompts. Remove "
            "that, or use a method of Captum that does not look inside, such as Occlusion."
        )
