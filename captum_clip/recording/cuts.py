"""A look at a model: whether, beside its attentions, it treats each token and image by itself.

A map says which position matters, so each token must stay at its own, from the pixels to the end.
No number of a forward tells, since a model may permute tokens, merge them, or put others among
them. So one forward runs with its graph cut at every attention and block, and a gradient with a
weight of its own for each token must come back with that weight at that token alone.
"""

import sys
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CaptureError, UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention
from ..models.library import modules_of, refuse_not_finite
from ..models.rounding import difference, is_rounding
from ..models.steps import run_steps
from ..models.towers import ResNetTower, Tower, TransformerTower
from .hooks import Arguments, Hooks, Watch
from .observe import plan_attention, recording
from .reads import AttentionRead
from .records import Recording, channel_ramp

_PLAIN_TYPES = {bool, int, float, str, type(None)}


def kind_of(tower: nn.Module, model: nn.Module | None = None) -> Hashable:
    """What tells whether a tower is as it was at the last look: its modules and their hooks.

    Their classes, forwards and plain attributes as well; two towers of one kind pass one look.
    """
    parts: list[Any] = [F.scaled_dot_product_attention]
    # of which a model has the name alone
    kernels = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {})
    parts += kernels.values()
    for each in [*([] if model is None else [model]), *modules_of(tower)]:
        own, before, after = vars(each), each._forward_pre_hooks, each._forward_hooks
        forward = own.get("forward")
        parts += (id(each), getattr(type(each), "forward", None), forward, *before, None, *after)
        parts.append(own.get("_compiled_call_impl"))
        parts.append(getattr(own.get("config"), "_attn_implementation", None))
        parts += [value for value in own.values() if type(value) in _PLAIN_TYPES]
    return tuple(parts)


def look(
    tower: Tower,
    runs: Sequence[Callable[[], Tensor]],
    laws: Collection[str],
    *,
    exact: bool = True,
    images: Sequence[Tensor | None] = (),
) -> None:
    """Run a forward function of a tower once, and raise where tokens or images do not stay apart.

    Args:
        tower: the tower.
        runs: give scores (B, K), of two images; the next one where one cannot be run.
        laws: "blocks" where tokens must stay at their positions in all blocks, and not only from
            pixels to patches. "merge" where each token's heads pass the output map alone.
            "embedding" where scores read nothing but the last layer.
        exact: whether a forward computes the same each time, which with dropout it does not.
        images: what each of the runs takes, a leaf, where its own code may move pixels.

    Raises:
        UnsupportedModelError: something merges, drops, adds, mixes or permutes tokens.
        CaptureError: a score depends on other images, or not on what the tower returns.
    """
    failure: BaseException | None = None
    for run, leaf in zip(runs, images or [None] * len(runs), strict=True):
        try:
            return _look_once(tower, run, laws, exact, leaf)
        except _NotRunError as error:  # of a function that takes its own number of images alone
            failure = error.__cause__
    assert failure is not None
    raise failure


class _NotRunError(Exception):
    """A forward function failed, before anything was compared."""


def _look_once(
    tower: Tower, run: Callable[[], Tensor], laws: Collection[str], exact: bool, images: Any
) -> None:
    # a caller's context may have turned the graph off, and the tower turns it on inside
    with recording(tower, gradient=False) as (hooks, record):
        seen = _Seen(record, laws, exact, images=images)
        seen.plan(hooks)
        try:
            result = run()
        except Exception as error:
            raise _NotRunError from error
        # inside, since a checkpointed block runs again in the backward, and is cut again
        if record.size is not None and not hooks.unseen:
            seen.compare()
            if result.requires_grad and len(result) == record.batch:
                seen.compare_scores(result)


def _flat(gradient: Tensor) -> Tensor:
    """A gradient (B, ..., D) by tokens, (B, n, D)."""
    return gradient.flatten(1, -2)


@dataclass(eq=False)
class _Cut:
    """Where the graph is cut: a leaf that stands for what enters, and what is made of it."""

    name: str  # of what reads the leaf
    entered: str  # what the leaf is
    leaf: Tensor
    as_tokens: Callable[[Tensor], Tensor] = _flat  # of a gradient: (B, n, ...)
    outputs: list[Tensor] = field(default_factory=list)  # (B, s, ...) each
    span: slice = field(default_factory=lambda: slice(None))  # of the tokens of `outputs`


@dataclass(eq=False)
class _Seen:
    """The cuts of a forward, from the pixels up."""

    record: Recording
    laws: Collection[str]
    exact: bool
    cuts: list[_Cut] = field(default_factory=list)
    heads: list[_Cut] = field(default_factory=list)  # of the block that runs
    images: Tensor | None = None  # what the forward function takes, as a leaf
    entered: Tensor | None = None  # (B, 3, H, W), what the tower takes, made of the images
    features: Tensor | None = None  # (B, C, h, w), whose cells see overlapping pixels
    pixels: Tensor | None = None
    last: Tensor | None = None  # the leaf that scores are made of
    out: Tensor | None = None  # the last attention's heads' outputs
    closed: bool = False

    def plan(self, hooks: Hooks) -> None:
        """Set the hooks."""
        record, tower = self.record, self.record.tower
        watch = Watch(tower.noun)
        hooks.handles.append(watch)
        if tower.kind != "text":
            hooks.before(tower.input_module, self.begin)
        is_resnet = isinstance(tower, ResNetTower)
        source = tower.stage if is_resnet else tower.stem
        hooks.after(source, self.project, "The last stage" if is_resnet else "The patch projection")
        if "blocks" not in self.laws:
            return
        for index, layer in enumerate(tower.layers):
            hooks.before(layer.block, partial(self.enter, layer))
            hooks.after(layer.block, partial(self.leave, index), first=True)
        # set before the hook that refuses an attention, so that it runs after it
        if "merge" in self.laws:
            last = tower.attentions[-1]
            hooks.after(last.output_module, partial(self.merge, last), first=True)
        for index in range(len(tower.attentions)):
            plan_attention(hooks, record, watch, index, self.see)

    @torch.no_grad()
    def merge(self, attention: Attention, _: Arguments, result: Any) -> None:
        """Compare what the output map makes of each token's heads with what is returned."""
        if self.out is None or self.closed:
            return
        heads = self.out.transpose(1, 2).flatten(2)
        with autocast_disabled(heads):
            heads = heads.to(next(attention.output_module.parameters(), heads).dtype)
            merged = to_float32(run_steps(attention.merge_steps(), heads)).flatten(1)
        self.record.compare("the last attention", merged, attention.output(result).flatten(1))

    def begin(self, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise CaptureError(
                f"The forward function ran the {self.record.tower.noun} under "
                "torch.inference_mode(), so no gradient reaches it; remove that."
            )
        torch.set_grad_enabled(True)
        pixels = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        if not pixels.is_leaf and pixels.ndim == 4:
            self.entered = pixels
            if self.images is not None and len(self.images) == len(pixels) > 1:
                whole = partial(torch.unsqueeze, dim=1)  # an image as a token
                cut = _Cut(
                    "the forward function", "the images", self.images, whole, [whole(pixels)]
                )
                self.cuts.append(cut)
        if isinstance(self.record.tower, ResNetTower):
            # norms have no deviation on an even image, and gradients no order
            draw = torch.Generator().manual_seed(0)
            noise = torch.randn(pixels.shape, generator=draw, device="cpu")
            pixels = pixels.detach() + noise.to(pixels)
        self.pixels = _leaf(pixels)
        return self.pixels.clone()

    def project(self, _: Arguments, projected: Tensor) -> Tensor:
        """Compare patches with their pixels, and cut."""
        record, tower, pixels = self.record, self.record.tower, self.pixels
        torch.set_grad_enabled(True)
        leaf = self.last = _leaf(projected)
        if self.closed:
            return leaf.clone()
        as_tokens = (lambda map: map.flatten(2).mT) if record.is_map(projected) else _flat
        if pixels is not None and _reads_patches(tower, pixels, projected):
            of_pixels = partial(_of_pixels, tower.patch) if pixels.ndim == 4 else _flat
            cut = _Cut("the patch projection", "the pixels", pixels, of_pixels)
            cut.outputs.append(as_tokens(projected))
            self.cuts.append(cut)
        elif pixels is not None and record.is_map(projected):
            self.features = projected
        if isinstance(tower, ResNetTower):
            self.cuts.append(_Cut("the pooling head", "the patches", leaf, as_tokens))
            record.features = leaf
            record.count = tower.prefix + leaf.shape[-2] * leaf.shape[-1]
        else:
            entered = "the words" if tower.kind == "text" else "the patches"
            self.cuts.append(_Cut("the first block", entered, leaf, as_tokens, span=record.span))
        return leaf.clone()

    def enter(self, layer: Any, args: Arguments, kwargs: dict[str, Any]) -> None:
        self.record.count = layer.residual(args, kwargs).shape[1]

    def see(self, index: int, read: AttentionRead) -> Tensor:
        """Compare what attention reads with what entered the block, and cut its outputs."""
        record = self.record
        torch.set_grad_enabled(True)
        self.out = read.out.detach()
        leaf = _leaf(self.out)
        if self.closed:
            return leaf.clone()
        if self.exact and not read.obeys(record.rounding(read.out)):
            refuse_not_finite(record.tower.module)
            if not read.out.isfinite().all():
                raise CaptureError(
                    f"{read.name} of the {record.tower.noun} returns NaN or infinity, and its "
                    "weights are finite; look for NaN in the images, or for an overflow in half "
                    "precision."
                )
            raise UnsupportedModelError(
                f"{read.name} of the {record.tower.noun} does not return the sum of its values by "
                "its weights; use a method of Captum that does not look inside, such as Occlusion."
            )
        sources = [read.value, read.key] + [read.query] * (not read.attention.is_pool)
        # keys beyond the tokens, such as a sink, are of none; nor is the mean in a ResNet's pool
        first = record.tower.prefix if isinstance(record.tower, ResNetTower) else 0
        tokens = [x.transpose(1, 2)[:, first : record.count] for x in sources if x is not None]
        self.cuts[-1].outputs += tokens
        if read.attention.is_pool:
            self.last = leaf
        else:
            name = f"what follows {read.name}"
            cut = _Cut(name, "its heads' outputs", leaf, partial(torch.transpose, dim0=1, dim1=2))
            self.heads = [cut]
        return leaf.clone()

    def leave(self, index: int, _: Arguments, result: Any) -> Any:
        """Compare what a block returns with what entered it, and cut."""
        layer = self.record.transformer.layers[index]
        output = layer.output(result)
        torch.set_grad_enabled(True)
        leaf = self.last = _leaf(output)
        if not self.closed:
            for cut in (*self.heads, self.cuts[-1]):
                cut.outputs.append(output)
            self.cuts += self.heads
            self.heads = []
            is_last = index + 1 == len(self.record.tower.layers)
            name = "the pooling head" if is_last else f"layer {index + 1}"
            self.cuts.append(_Cut(name, "the tokens that the block below returned", leaf))
        return layer.replaced(result, leaf.clone())

    def compare(self) -> None:
        """Raise UnsupportedModelError unless each token's weight came back at that token."""
        self.closed = True
        self.record.verify("a look at the model")
        self.compare_order("cells", self.features, self.pixels)
        self.compare_order("pixels", self.entered, self.images)
        cuts = [cut for cut in self.cuts if cut.outputs]
        for cut, output in [(each, output) for each in cuts for output in each.outputs]:
            if output.is_leaf:
                raise UnsupportedModelError(
                    f"no gradient leads from {cut.name} of the {self.record.tower.noun} to "
                    f"{cut.entered}, so the tokens cannot be told apart; remove what turns the "
                    "graph off, such as no_grad, inference_mode or detach."
                )
            if output.shape[:2] != cut.outputs[0].shape[:2]:
                raise self._refused(cut)
        first = list[Tensor]()
        count = max((cut.outputs[0].shape[1] for cut in cuts), default=0)
        for weights in _weights(self.record, count) if cuts else ():  # (B, count)
            scaled = self._scaled(cuts, weights)
            first = first or scaled
            for cut, *pair in zip(cuts, scaled, first, strict=True):
                self._compare(cut, *pair)

    def _scaled(self, cuts: Sequence[_Cut], weights: Tensor) -> list[Tensor]:
        """The gradients by tokens (B, n, x), each over its token's weight."""
        outputs = {id(output): output for cut in cuts for output in cut.outputs}
        # not a sum over channels, which a norm would set to zero
        cotangents = list[Tensor]()
        for output in outputs.values():
            channels = channel_ramp(output[0, 0].numel(), output.dtype, output.device)
            own = weights[:, : output.shape[1], None].to(output) * channels
            cotangents.append(own.view_as(output))
        # all that is made of them, together
        gradients = self._grad([*outputs.values()], [cut.leaf for cut in cuts], cotangents)
        scaled = list[Tensor]()
        for cut, gradient in zip(cuts, gradients, strict=True):
            own = weights[:, range(cut.outputs[0].shape[1])[cut.span]]
            tokens = None if gradient is None else cut.as_tokens(gradient).flatten(2)
            if tokens is None or tokens.shape[1] != own.shape[1]:
                raise self._refused(cut)
            scaled.append(to_float32(tokens) / own[..., None])
        return scaled

    def _grad(
        self, outputs: Any, leaves: Sequence[Tensor], cotangents: Any
    ) -> Sequence[Tensor | None]:
        options = {"retain_graph": True, "allow_unused": True}
        try:
            return torch.autograd.grad(outputs, leaves, cotangents, **options)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].partition(": [")[0]
            raise UnsupportedModelError(
                f"no gradient passes the {self.record.tower.noun} ({reason}); remove what works in "
                "place or turns the graph off, or use a method of Captum that does not look "
                "inside, such as Occlusion."
            ) from error

    def _compare(self, cut: _Cut, tokens: Tensor, first: Tensor) -> None:
        off, size = difference(tokens, first, dim=-1), first.norm(dim=-1)  # (B, n)
        bound = max(map(self.record.rounding, (cut.leaf, *cut.outputs)))
        wrong = ~is_rounding(off, size, bound) & size.isfinite()
        # what drops a patch, and not a weight of zero, which drops them all
        span = self.record.span if tokens.shape[1] == cut.outputs[0].shape[1] else slice(None)
        wrong[:, span] |= (size[:, span] == 0) & bool(size.any())
        visible = self.record.pooled.visible
        if visible is not None and visible.shape == wrong.shape:  # padding may be wiped
            wrong &= visible
        if wrong.any():
            raise self._refused(cut)

    def _refused(self, cut: _Cut) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{cut.name} of the {self.record.tower.noun} does not read {cut.entered} each at its "
            "own place: something beside the attention merges, drops, adds, mixes or permutes "
            "tokens, such as prompts. Remove that, or use a method of Captum that does not look "
            "inside, such as Occlusion."
        )

    def compare_order(self, what: str, features: Tensor | None, pixels: Tensor | None) -> None:
        """Raise UnsupportedModelError unless features lie in the order of the pixels that they see.

        The pixels of cells overlap, so of a mixture of all cells, weighted by their row, the share
        of each row of pixels must grow with it, as must that of columns.
        """
        if features is None or pixels is None:
            return
        draw = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, features.shape, generator=draw, device="cpu").to(features)
        steps = (torch.arange(1.0, side + 1).to(features) for side in features.shape[2:])
        by_row, by_column = torch.meshgrid(*steps, indexing="ij")
        energies = list[Tensor | None]()
        for weights in (torch.ones_like(by_row), by_row, by_column):
            [gradient] = self._grad(features, [pixels], (2 * signs - 1) * weights)
            energies.append(None if gradient is None else to_float32(gradient).square())
        plain, *weighted = energies
        for axis, energy in zip((2, 3), weighted, strict=True):
            side, is_map = features.shape[axis], min(features.shape[2:]) > 1
            if side == 1:
                continue
            own, cross = (_grows(energy, plain, along) for along in (axis, 5 - axis))
            # grids of real models have .96 and more, rolled ones .76 at most; random ones of four
            # cells may have less, but turned ones have .96 across
            if own < 0.9 and (side > 4 or own < -0.3 or (cross > 0.9 and is_map)):
                raise UnsupportedModelError(
                    f"the {what} of the {self.record.tower.noun} do not lie in the order of the "
                    "pixels that they see: something permutes them, or takes their gradient. "
                    "Remove that, or use a method of Captum that does not look inside, such as "
                    "Occlusion."
                )

    def compare_scores(self, scores: Tensor) -> None:
        """Raise CaptureError unless each image's scores depend on that image's tokens alone."""
        last, noun = self.last, self.record.tower.noun
        assert last is not None
        below = [cut for cut in self.cuts if cut.leaf is not last]
        channels = channel_ramp(len(scores[0]), scores.dtype, scores.device)
        leaves, first = [last, *(cut.leaf for cut in below)], None
        # a forward function may score in half precision and cast afterwards, unseen, and smaller
        # weights would underflow there
        weight_sets = _weights(self.record, 1, torch.float16)
        for weights in weight_sets if len(scores) > 1 else weight_sets[:1]:  # (B, 1)
            gradient, *others = self._grad(scores, leaves, weights.to(scores) * channels)
            pairs = zip(below, others, strict=True)
            read = [cut.name for cut, other in pairs if other is not None and other.any()]
            if gradient is None or not gradient.any():
                if not read:
                    raise CaptureError("The scores do not depend on what the tower computed.")
                raise CaptureError(
                    f"The scores read what enters {read[-1]}, and not what the last layer of the "
                    f"{noun} returns, so a map of its attention would be zero everywhere. Score "
                    "what the tower returns; for a vision-language model use Captum's "
                    "LLMAttribution with ImageMaskInput (docs/captum.md)."
                )
            if read and "embedding" in self.laws:
                raise CaptureError(
                    f"The scores read what enters {read[-1]} of the {noun} beside the "
                    "embedding, so they cannot be taken apart. Use a method with gradients, "
                    "such as all-grad."
                )
            rows = to_float32(gradient).flatten(1) / weights.to(gradient.device)
            first = rows if first is None else first
            off, size = difference(rows, first, dim=1), first.norm(dim=1)
            alike = is_rounding(off, size, self.record.rounding(last))
            if not (alike | ~size.isfinite()).all():
                raise CaptureError(
                    "The scores of an image depend on other images of the batch, as a softmax over "
                    "images, a batch's mean or sorted images do; score each image by itself."
                )


def _grows(weighted: Tensor | None, plain: Tensor | None, axis: int) -> float:
    """How the share of the weighted in all energy (B, 3, H, W) grows along an axis, -1 to 1."""
    if weighted is None or plain is None:
        return -1.0
    others = tuple(dim for dim in range(4) if dim != axis)
    share, whole = weighted.sum(others), plain.sum(others)
    share = share[whole > 0] / whole[whole > 0]
    if len(share) < 2:  # of pixels that hardly any cell sees nothing can be told
        return torch.nan
    grows = torch.corrcoef(torch.stack([share, torch.arange(len(share)).to(share)]))[0, 1]
    return float(grows.nan_to_num(0))  # no share grows, as where rows are columns


def _weights(record: Recording, count: int, *others: torch.dtype) -> list[Tensor]:
    """Weights (B, count) for the tokens of B images, such that no two tokens share them all.

    They are powers of two, which scale a gradient exactly; the second weights are the inverses of
    the first, so that what leaks from one token to another is larger in one of them.
    """
    parameters = list(record.tower.module.parameters())
    device, dtypes = parameters[0].device, {record.autocast, *others}
    dtypes.update(parameter.dtype for parameter in parameters)
    base = 8 if torch.float16 in dtypes else 128
    index, sets, power = torch.arange(record.batch * count, device=device), list[Tensor](), 1
    while power == 1 or power < len(index):
        digits = (index // power) % base - base // 2
        sets.append(torch.exp2(digits.float()).view(record.batch, count))
        power *= base
    return [sets[0], 1 / sets[0], *sets[1:]]


def _reads_patches(tower: Tower, pixels: Tensor, projected: Tensor) -> bool:
    """Whether each cell is made of the pixels of one patch, and no two of the same."""
    stem = tower.stem if isinstance(tower, TransformerTower) else None
    if not isinstance(stem, nn.Conv2d):
        return stem is not None and (pixels.ndim == 3 or projected.ndim == 4)
    plain = stem.padding in ((0, 0), 0, "valid") and stem.dilation == (1, 1)
    return plain and stem.kernel_size == stem.stride == tuple(tower.patch)


def _of_pixels(patch: tuple[int, int], gradient: Tensor) -> Tensor:
    """A gradient (B, 3, H, W) by patches, (B, n, ...)."""
    tall, wide = patch
    rows, columns = gradient.shape[-2] // tall, gradient.shape[-1] // wide
    whole = gradient[..., : rows * tall, : columns * wide]
    cells = whole.reshape(*whole.shape[:2], rows, tall, columns, wide)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _leaf(tensor: Tensor) -> Tensor:
    """A tensor at which a graph begins."""
    detached = tensor.detach()
    return (detached.clone() if detached.is_inference() else detached).requires_grad_()
