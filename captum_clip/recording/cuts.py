"""The cuts of an inspection: where the graph of a forward is cut, and what gradients show there.

A map says which position matters, so each token must stay at its own, from the pixels to the end.
No number of a forward tells, since a model may permute tokens, merge them, or put others among
them. So one forward runs with its graph cut at every attention and block, and a gradient with a
weight of its own for each token must come back with that weight at that token alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CaptureError, UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention
from ..models.rounding import difference, is_rounding
from ..models.steps import run_steps
from ..models.towers import ResNetTower, Tower, TransformerTower
from .hooks import Arguments, Hooks, Watch
from .observe import Observer, plan_attention
from .reads import AttentionRead
from .records import Claim, Recording, channel_ramp


def _flat(gradient: Tensor) -> Tensor:
    """A gradient (B, ..., D) by tokens, (B, n, D)."""
    return gradient.flatten(1, -2)


@dataclass(eq=False)
class Cut:
    """Where the graph is cut: a leaf that stands for what enters, and what is made of it.

    Attributes:
        name: of what reads the leaf.
        entered: what the leaf is.
        leaf: where the graph begins again.
        as_tokens: makes (B, n, ...) of a gradient at the leaf.
        outputs: what is made of the leaf, (B, s, ...) each.
        span: the tokens of the outputs that the leaf has.
        in_blocks: whether it lies in the tower's blocks, and not between pixels and patches.
    """

    name: str
    entered: str
    leaf: Tensor
    as_tokens: Callable[[Tensor], Tensor] = _flat
    outputs: list[Tensor] = field(default_factory=list)
    span: slice = field(default_factory=lambda: slice(None))
    in_blocks: bool = True

    def is_even(self) -> bool:
        """Whether all outputs have as many tokens."""
        return len({output.shape[:2] for output in self.outputs}) == 1


class ScoreGradients(NamedTuple):
    """The gradients of one mixture of scores, in which each image has a weight of its own."""

    weights: Tensor  # (B, 1)
    embedding: Tensor | None  # at what the last layer returns
    others: list[str]  # names of the cuts below it that the scores read as well


@dataclass(eq=False)
class Cuts(Observer):
    """Cuts the graph of a forward from the pixels up.

    Attributes:
        blocks: whether it cuts in the blocks, too.
        merges: whether it claims that each token's heads pass the last output map alone.
        exact: whether a forward computes the same each time, which with dropout it does not.
        images: what the forward function takes, as a leaf, where its own code may move pixels.
        scores: (B, K), set by who runs the forward; None where they cannot be differentiated.
        broken_reads: attentions that are not the sum of their values by their weights.
        claims: what the last output map makes of the heads, beside what was returned.
    """

    order: ClassVar[int] = 90
    blocks: bool = True
    merges: bool = False
    exact: bool = True
    images: Tensor | None = None
    scores: Tensor | None = None
    broken_reads: list[AttentionRead] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    _cuts: list[Cut] = field(default_factory=list)
    _attention_cut: Cut | None = None  # of the block that runs
    _entered: Tensor | None = None  # (B, 3, H, W), what the tower takes, made of the images
    _features: Tensor | None = None  # (B, C, h, w), whose cells see overlapping pixels
    _pixels: Tensor | None = None  # what the tower runs on, as a leaf
    _last: Tensor | None = None  # the leaf that scores are made of
    _head_outputs: Tensor | None = None  # of the last attention
    _is_closed: bool = False  # whether the forward is over
    record: Recording = field(init=False)
    _hooks: Hooks = field(init=False)

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        self.record = record
        self._hooks = hooks
        tower = record.tower
        watch = Watch(tower.noun)
        hooks.handles.append(watch)
        if tower.kind != "text":
            hooks.before(tower.input_module, self._begin)
        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, self._project, "The last stage")
        else:
            hooks.after(tower.stem, self._project, "The patch projection")
        if not self.blocks:
            return
        for index, layer in enumerate(tower.layers):
            hooks.before(layer.block, partial(self._enter, layer))
            hooks.after(layer.block, partial(self._leave, index), first=True)
        # Of hooks that are set as `first` the last one runs first. So this one is set before those
        # of `plan_attention`, of which one refuses an attention, and runs after them.
        if self.merges:
            last = tower.attentions[-1]
            hooks.after(last.output_module, partial(self._merge, last), first=True)
        for index in range(len(tower.attentions)):
            plan_attention(hooks, record, watch, index, self._see)

    # What happens while the forward runs

    def _begin(self, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise CaptureError(
                f"The forward function ran the {self.record.noun} under "
                "torch.inference_mode(), so no gradient reaches it; remove that."
            )
        torch.set_grad_enabled(True)
        arguments = (*args, *kwargs.values())
        pixels = next(value for value in arguments if isinstance(value, Tensor))
        if not pixels.is_leaf and pixels.ndim == 4:
            self._entered = pixels
            images = self.images
            # A single image has no other with which it could be mixed up.
            if images is not None and len(images) == len(pixels) and len(pixels) > 1:
                self._cut_images(images, pixels)
        if isinstance(self.record.tower, ResNetTower):
            # On an even image a norm has no deviation, and a gradient no order.
            draw = torch.Generator().manual_seed(0)
            noise = torch.randn(pixels.shape, generator=draw, device="cpu")
            pixels = pixels.detach() + noise.to(pixels)
        self._pixels = _leaf(pixels)
        return self._pixels.clone()

    def _cut_images(self, images: Tensor, pixels: Tensor) -> None:
        """Cut between the forward function and the tower, where an image counts as a token."""
        as_token = partial(torch.unsqueeze, dim=1)
        cut = Cut("the forward function", "the images", images, as_token, in_blocks=False)
        cut.outputs.append(as_token(pixels))
        self._cuts.append(cut)

    def _project(self, _: Arguments, projected: Tensor) -> Tensor:
        """Cut between patches and their pixels, and behind the patches."""
        record = self.record
        tower = record.tower
        pixels = self._pixels
        torch.set_grad_enabled(True)
        leaf = self._last = _leaf(projected)
        if self._is_closed:
            return leaf.clone()
        as_tokens = _map_as_tokens if record.is_map(projected) else _flat
        if pixels is not None and _reads_patches(tower, pixels, projected):
            pixels_as_tokens = partial(_of_pixels, tower.patch) if pixels.ndim == 4 else _flat
            cut = Cut(
                "the patch projection", "the pixels", pixels, pixels_as_tokens, in_blocks=False
            )
            cut.outputs.append(as_tokens(projected))
            self._cuts.append(cut)
        elif pixels is not None and record.is_map(projected):
            self._features = projected
        if isinstance(tower, ResNetTower):
            self._cuts.append(Cut("the pooling head", "the patches", leaf, as_tokens))
            record.features = leaf
            record.count = tower.prefix + leaf.shape[-2] * leaf.shape[-1]
        else:
            entered = "the words" if tower.kind == "text" else "the patches"
            self._cuts.append(Cut("the first block", entered, leaf, as_tokens, span=record.span))
        return leaf.clone()

    def _enter(self, layer: Any, args: Arguments, kwargs: dict[str, Any]) -> None:
        self.record.count = layer.residual(args, kwargs).shape[1]

    def _see(self, index: int, read: AttentionRead) -> Tensor:
        """Cut between what entered the block and what attention reads, and behind its outputs."""
        record = self.record
        tower = record.tower
        torch.set_grad_enabled(True)
        self._head_outputs = read.out.detach()
        leaf = _leaf(self._head_outputs)
        if self._is_closed:
            return leaf.clone()
        if self.exact and not read.obeys(record.rounding(read.out)):
            self.broken_reads.append(read)
        sources = [read.value, read.key]
        if not read.attention.is_pool:
            sources.append(read.query)
        # Keys beyond the tokens, such as a sink, belong to no token. Nor does the mean that comes
        # first in a ResNet's pool.
        first = tower.prefix if isinstance(tower, ResNetTower) else 0
        for source in sources:
            if source is not None:
                self._cuts[-1].outputs.append(source.transpose(1, 2)[:, first : record.count])
        if read.attention.is_pool:
            self._last = leaf
        else:
            heads_behind_tokens = partial(torch.transpose, dim0=1, dim1=2)
            name = f"what follows {read.name}"
            self._attention_cut = Cut(name, "its heads' outputs", leaf, heads_behind_tokens)
        return leaf.clone()

    @torch.no_grad()
    def _merge(self, attention: Attention, _: Arguments, result: Any) -> None:
        """Claim that the output map makes of each token's heads what is returned."""
        if self._head_outputs is None or self._is_closed:
            return
        heads = self._head_outputs.transpose(1, 2).flatten(2)
        with autocast_disabled(heads):
            heads = heads.to(next(attention.output_module.parameters(), heads).dtype)
            merged = to_float32(run_steps(attention.merge_steps(), heads)).flatten(1)
        returned = attention.output(result).flatten(1)
        self.claims.append(Claim.of("the last attention", merged, returned))

    def _leave(self, index: int, _: Arguments, result: Any) -> Any:
        """Cut between what entered a block and what it returns, and behind it."""
        layer = self.record.transformer.layers[index]
        output = layer.output(result)
        torch.set_grad_enabled(True)
        leaf = self._last = _leaf(output)
        if not self._is_closed:
            block_cut = self._cuts[-1]
            block_cut.outputs.append(output)
            attention_cut = self._attention_cut
            if attention_cut is not None:
                attention_cut.outputs.append(output)
                self._cuts.append(attention_cut)
                self._attention_cut = None
            is_last = index + 1 == len(self.record.tower.layers)
            name = "the pooling head" if is_last else f"layer {index + 1}"
            self._cuts.append(Cut(name, "the tokens that the block below returned", leaf))
        return layer.replaced(result, leaf.clone())

    # What the gradients show once it has run

    def close(self, scores: Tensor) -> bool:
        """End the forward; False where a part ran without its hooks, so that too little was seen.

        A checkpointed block runs again in the backward. It is then cut as before, but no cut is
        added to those that were made.
        """
        self._is_closed = True
        can_differentiate = scores.requires_grad and len(scores) == self.record.batch
        self.scores = scores if can_differentiate else None
        return self.record.size is not None and not self._hooks.unseen

    def disordered(self) -> Iterator[str]:
        """Name what does not lie in the order of the pixels that it sees: cells or pixels."""
        if not self._lies_in_order(self._features, self._pixels):
            yield "cells"
        if not self._lies_in_order(self._entered, self.images):
            yield "pixels"

    def _lies_in_order(self, features: Tensor | None, pixels: Tensor | None) -> bool:
        """Whether features lie in the order of the pixels that they see.

        Cells see overlapping pixels. So the gradient of all cells is taken, plain and with each
        cell weighted by its row: the share of a row of pixels in the weighted one must grow along
        the rows. The same holds for columns.
        """
        if features is None or pixels is None:
            return True
        draw = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, features.shape, generator=draw, device="cpu").to(features)
        steps = (torch.arange(1.0, side + 1).to(features) for side in features.shape[2:])
        by_row, by_column = torch.meshgrid(*steps, indexing="ij")
        energies = list[Tensor]()
        for weights in (torch.ones_like(by_row), by_row, by_column):
            [gradient] = self._gradients(features, [pixels], (2 * signs - 1) * weights)
            if gradient is None:
                # The only cell of a grid is in order, whatever it sees.
                return max(features.shape[2:]) == 1
            energies.append(to_float32(gradient).square())
        plain, *weighted = energies
        is_map = min(features.shape[2:]) > 1
        for axis, energy in zip((2, 3), weighted, strict=True):
            side = features.shape[axis]
            if side == 1:
                continue
            other_axis = 3 if axis == 2 else 2
            along = _growth(energy, plain, axis)
            across = _growth(energy, plain, other_axis)
            # Grids of real models have .96 and more along the axis, rolled ones .76 at most. Random
            # ones of four cells may have less, but turned ones have .96 across.
            is_turned = along < -0.3 or (across > 0.9 and is_map)
            if along < 0.9 and (side > 4 or is_turned):
                return False
        return True

    @cached_property
    def displaced(self) -> list[Cut]:
        """The cuts behind which not every token is at its own place."""
        cuts = [cut for cut in self._cuts if cut.outputs]
        uneven = [cut for cut in cuts if not cut.is_even()]
        if uneven or not cuts:
            return uneven
        first = list[Tensor]()  # the gradients with the first weights, to which others are compared
        count = max(cut.outputs[0].shape[1] for cut in cuts)
        for weights in _weights(self.record, count):  # (B, count)
            scaled = self._scaled(cuts, weights)
            without_gradient = [c for c, tokens in zip(cuts, scaled, strict=True) if tokens is None]
            if without_gradient:
                return without_gradient
            gradients = [tokens for tokens in scaled if tokens is not None]
            first = first or gradients
            moved = list[Cut]()
            for cut, tokens, first_tokens in zip(cuts, gradients, first, strict=True):
                if self._is_displaced(cut, tokens, first_tokens):
                    moved.append(cut)
            if moved:
                return moved
        return []

    def _scaled(self, cuts: Sequence[Cut], weights: Tensor) -> list[Tensor | None]:
        """The gradients by tokens (B, n, x), each over its token's weight; None where one is lost.

        They are those of all outputs together.
        """
        outputs = {id(output): output for cut in cuts for output in cut.outputs}
        cotangents = list[Tensor]()
        for output in outputs.values():
            # A ramp and no sum over channels, which a norm would set to zero.
            ramp = channel_ramp(output[0, 0].numel(), output.dtype, output.device)
            by_token = weights[:, : output.shape[1], None].to(output) * ramp
            cotangents.append(by_token.view_as(output))
        leaves = [cut.leaf for cut in cuts]
        gradients = self._gradients([*outputs.values()], leaves, cotangents)
        scaled = list[Tensor | None]()
        for cut, gradient in zip(cuts, gradients, strict=True):
            count = cut.outputs[0].shape[1]
            token_weights = weights[:, :count][:, cut.span]
            tokens = None if gradient is None else cut.as_tokens(gradient).flatten(2)
            if tokens is None or tokens.shape[1] != token_weights.shape[1]:
                scaled.append(None)
            else:
                scaled.append(to_float32(tokens) / token_weights[..., None])
        return scaled

    def _is_displaced(self, cut: Cut, tokens: Tensor, first: Tensor) -> bool:
        """Whether a token's gradient changes with the weights of others, or a patch has none.

        `tokens` is its gradient by tokens over their weights, and `first` that with other weights.
        """
        size = first.norm(dim=-1)  # (B, n)
        bound = max(map(self.record.rounding, (cut.leaf, *cut.outputs)))
        is_same = is_rounding(difference(tokens, first, dim=-1), size, bound)
        wrong = ~is_same & size.isfinite()
        # A patch without a gradient was dropped. If none has one, the model multiplies all of them
        # by zero.
        has_all = tokens.shape[1] == cut.outputs[0].shape[1]
        span = self.record.span if has_all else slice(None)
        wrong[:, span] |= (size[:, span] == 0) & bool(size.any())
        visible = self.record.pooled.visible
        if visible is not None and visible.shape == wrong.shape:
            # Padding, which the pooled token does not see, may be wiped on the way.
            wrong &= visible
        return bool(wrong.any())

    @cached_property
    def score_gradients(self) -> list[ScoreGradients]:
        """The gradients of the scores at what the last layer returns and at all cuts below it."""
        if self.scores is None:
            return []
        assert self._last is not None
        below = [cut for cut in self._cuts if cut.leaf is not self._last]
        leaves = [self._last, *(cut.leaf for cut in below)]
        ramp = channel_ramp(len(self.scores[0]), self.scores.dtype, self.scores.device)
        # A forward function may score in half precision and cast afterwards, unseen, and smaller
        # weights would underflow there.
        weight_sets = _weights(self.record, 1, torch.float16)
        if len(self.scores) == 1:
            weight_sets = weight_sets[:1]
        gradients = list[ScoreGradients]()
        for weights in weight_sets:  # (B, 1)
            cotangent = weights.to(self.scores) * ramp
            embedding, *others = self._gradients(self.scores, leaves, cotangent)
            if embedding is not None and not embedding.any():
                embedding = None
            read_below = list[str]()
            for cut, gradient in zip(below, others, strict=True):
                if gradient is not None and gradient.any():
                    read_below.append(cut.name)
            gradients.append(ScoreGradients(weights, embedding, read_below))
        return gradients

    def mixes_images(self) -> bool:
        """Whether the scores of an image depend on what the tower returned of another."""
        first: Tensor | None = None
        for scored in self.score_gradients:
            if scored.embedding is None:
                continue
            rows = to_float32(scored.embedding).flatten(1)
            rows = rows / scored.weights.to(rows.device)
            if first is None:
                first = rows
            size = first.norm(dim=1)
            bound = self.record.rounding(scored.embedding)
            is_same = is_rounding(difference(rows, first, dim=1), size, bound)
            if not (is_same | ~size.isfinite()).all():
                return True
        return False

    def _gradients(
        self, outputs: Any, leaves: Sequence[Tensor], cotangents: Any
    ) -> Sequence[Tensor | None]:
        options = {"retain_graph": True, "allow_unused": True}
        try:
            return torch.autograd.grad(outputs, leaves, cotangents, **options)
        except RuntimeError as error:
            # What follows in torch's message, such as a tensor's type and version, helps nobody.
            reason = str(error).partition("\n")[0].partition(": [")[0]
            raise UnsupportedModelError(
                f"no gradient passes the {self.record.noun} ({reason}); remove what works in "
                "place or turns the graph off, or use a method of Captum that does not look "
                "inside, such as Occlusion."
            ) from error


def _growth(weighted: Tensor, plain: Tensor, axis: int) -> float:
    """How the share of the weighted in all energy (B, 3, H, W) grows along an axis, -1 to 1."""
    other_axes = tuple(dim for dim in range(4) if dim != axis)
    share, whole = weighted.sum(other_axes), plain.sum(other_axes)
    share = share[whole > 0] / whole[whole > 0]
    if len(share) < 2:
        # Hardly any cell sees a pixel, so nothing is known.
        return torch.nan
    places = torch.arange(len(share)).to(share)
    correlation = torch.corrcoef(torch.stack([share, places]))[0, 1]
    # Where rows are columns no share grows, and there is no correlation.
    return float(correlation.nan_to_num(0))


def _weights(record: Recording, count: int, *others: torch.dtype) -> list[Tensor]:
    """Weights (B, count) for the tokens of B images, such that no two tokens share them all.

    They are powers of two, which scale a gradient exactly; the second weights are the inverses of
    the first, so that what leaks from one token to another is larger in one of them.
    """
    parameters = list(record.tower.module.parameters())
    dtypes = {parameter.dtype for parameter in parameters} | {record.autocast, *others}
    base = 8 if torch.float16 in dtypes else 128
    # A token's number is written in this base, and each of its digits becomes an exponent.
    token_numbers = torch.arange(record.batch * count, device=parameters[0].device)
    weight_sets = list[Tensor]()
    place = 1
    while place == 1 or place < len(token_numbers):
        digits = (token_numbers // place) % base - base // 2
        weight_sets.append(torch.exp2(digits.float()).view(record.batch, count))
        place *= base
    first, *further = weight_sets
    return [first, 1 / first, *further]


def _reads_patches(tower: Tower, pixels: Tensor, projected: Tensor) -> bool:
    """Whether each cell is made of the pixels of one patch, and no two of the same."""
    stem = tower.stem if isinstance(tower, TransformerTower) else None
    if not isinstance(stem, nn.Conv2d):
        return stem is not None and (pixels.ndim == 3 or projected.ndim == 4)
    is_plain = stem.padding in ((0, 0), 0, "valid") and stem.dilation == (1, 1)
    return is_plain and stem.kernel_size == stem.stride == tuple(tower.patch)


def _map_as_tokens(gradient: Tensor) -> Tensor:
    """A gradient (B, D, h, w) by tokens, (B, h w, D)."""
    return gradient.flatten(2).mT


def _of_pixels(patch: tuple[int, int], gradient: Tensor) -> Tensor:
    """A gradient (B, 3, H, W) by patches, (B, n, ...)."""
    height, width = patch
    rows = gradient.shape[-2] // height
    columns = gradient.shape[-1] // width
    # A convolution leaves out the pixels of an incomplete patch.
    covered = gradient[..., : rows * height, : columns * width]
    cells = covered.reshape(*covered.shape[:2], rows, height, columns, width)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _leaf(tensor: Tensor) -> Tensor:
    """A tensor at which a graph begins."""
    detached = tensor.detach()
    if detached.is_inference():
        detached = detached.clone()
    return detached.requires_grad_()
