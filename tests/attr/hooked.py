"""Every kind of change of every module of a tower, and what plain autograd makes of it.

A method must give the map of the model as it computes now, or refuse. `python -m
tests.attr.hooked` tries every cell (towers x modules x changes x methods), some quarter of an
hour, and prints the wrong ones; `test_hooked.py` tries a part.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipPairSimilarity, ClipSimilarity, attr
from captum_clip.errors import CaptumClipError
from captum_clip.models import ClipAdapter
from tests import explicit, oracles
from tests.attr import cases, test_others_methods

TOWERS = ("hf_vit", "open_clip_vit", "open_clip_vit_mean", "siglip", "eva02", "pe_core")
CONVOLUTIONAL = ("open_clip_resnet", "timm_convnext")
GATED = ("hf_vit", "open_clip_vit", "open_clip_vit_mean", "siglip")  # whose gates are known here
TOLERANCE = 1e-5  # in float64, of the map's maximum


class Vectors:
    """The maps, scores and rests that are products of the vectors with the target's embeddings.

    Where there are vectors the method itself must have these maps.
    """

    additive = True

    def __init__(self, similarity: ClipSimilarity) -> None:
        self.similarity = similarity

    def attribute_targets(self, pixels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, scores and rests of all targets."""
        options.pop("return_scores")
        vectors, rest = attr.DirectContribution(self.similarity).vectors(pixels, **options)
        rows = self.similarity.embeddings.to(vectors).T
        unit, maps = vectors.sum((1, 2)) + rest, (vectors @ rows).movedim(-1, 1)
        try:
            own = attr.DirectContribution(self.similarity).attribute_targets(pixels, **options)[0]
        except CaptumClipError as error:
            raise AssertionError("there are vectors and no maps") from error
        torch.testing.assert_close(maps, own)
        return maps, unit @ rows, rest @ rows


class Pairs(Vectors):
    """The same, where the shares of two images are the products of their vectors."""

    def attribute_targets(self, pixels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, scores and rests of all targets."""
        method = interaction(self.similarity.clip)
        pair = (pixels, pixels.flip(0))
        shares, rest = method.attribute(pair, return_rest=True)
        total = shares.sum((1, 2, 3, 4)) + rest.constant
        total += rest.other.sum((1, 2)) + rest.image.sum((1, 2))
        torch.testing.assert_close(total, method.forward_func(*pair).detach())
        vectors: Any = attr.DirectContribution(self.similarity).vectors(pixels)
        wanted = torch.einsum("bhwe,byxe->byxhw", vectors, vectors.flip(0))
        torch.testing.assert_close(shares, wanted)
        return super().attribute_targets(pixels, **options)


@cache
def interaction(clip: ClipAdapter) -> attr.DirectInteraction:
    """One that was made before the model is changed, as its constructor asks for."""
    return attr.DirectInteraction(ClipPairSimilarity(clip, "image"))


VIT_METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "all-grad": (attr.AllGradAttention, {}),
    "attention-grad-cam": (attr.AttentionGradCam, {}),
    "attention-grad-cam pooled": (attr.AttentionGradCam, {"weights": "pooled"}),
    "rollout": (attr.AttentionRollout, {}),
    "last-grad": (attr.LastGradAttention, {}),
    "last-grad averaged": (attr.LastGradAttention, {"heads": "averaged"}),
    "layer": (attr.LayerAttention, {"index": 1, "of": "gradient"}),
    "grad-eclip": (attr.GradEclip, {}),
    "legrad": (attr.LeGrad, {"layers": 2}),
    "patches": (attr.PatchSimilarity, {}),
    "direct": (attr.DirectContribution, {}),
    "conservative": (attr.ConservativePropagation, {}),
    "deep vectors": (Vectors, {"depth": "all"}),
    "pairs": (Pairs, {}),
}
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    **VIT_METHODS,
    "grad-cam": (attr.ClipGradCam, {}),
}


# Changes


def changed(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The first floating tensor of what a module takes or returns, changed."""
    if isinstance(given, Tensor):
        return change(given) if given.is_floating_point() else given
    if isinstance(given, tuple) and given and isinstance(given[0], Tensor):
        return (changed(given[0], change), *given[1:])
    if isinstance(given, dict) and given:  # an output of transformers, or keyword arguments
        name = next((n for n, v in given.items() if isinstance(v, Tensor)), None)
        if name is not None:
            new = {**given, name: changed(given[name], change)}
            return new if type(given) is dict else type(given)(**new)
    return given


def half(tensor: Tensor) -> Tensor:
    """Half of it."""
    return 0.5 * tensor


def nothing(tensor: Tensor) -> Tensor:
    """Zeros."""
    return 0 * tensor


def masked(tensor: Tensor) -> Tensor:
    """Half of its last axis taken away, in place."""
    tensor[..., : tensor.shape[-1] // 2] = 0
    return tensor


def squared(tensor: Tensor) -> Tensor:
    """Something that is not linear."""
    return tensor + 0.1 * tensor.square()


@contextmanager
def _hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda m, args, out: changed(out, change))
    yield
    handle.remove()


@contextmanager
def _pre_hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return (changed(args, change), kwargs) if args else (args, changed(kwargs, change))

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    yield
    handle.remove()


@contextmanager
def _patched(module: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    forward = module.forward
    module.forward = lambda *args, **kwargs: changed(forward(*args, **kwargs), change)
    yield
    del module.forward


@contextmanager
def _patched_class(module: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    forward = type(module).forward

    def new(self: Any, *args: Any, **kwargs: Any) -> Any:
        return changed(forward(self, *args, **kwargs), change)

    with patch.object(type(module), "forward", new):
        yield


@contextmanager
def _knocked_out(module: Any, change: Any = None) -> Iterator[None]:
    """No token may attend to the fourth one."""
    multihead = isinstance(module, nn.MultiheadAttention)
    name = "attn_mask" if multihead or hasattr(module, "attn_drop") else "attention_mask"

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        tokens = tensors[min(1, len(tensors) - 1)]  # the keys
        first = getattr(module, "batch_first", True)
        size = tokens.shape[1 if first else 0]
        mask = tokens.new_zeros(len(tensors[0][0]) if first else len(tensors[0]), size)
        mask[:, 3] = -torch.inf
        return args, {**kwargs, name: mask if multihead else mask[None, None]}

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    yield
    handle.remove()


KINDS: dict[str, Callable[[Any], Any]] = {
    "after, half": lambda m: _hook(m, half),
    "after, nothing": lambda m: _hook(m, nothing),
    "after, masked": lambda m: _hook(m, masked),
    "after, squared": lambda m: _hook(m, squared),
    "before, half": lambda m: _pre_hook(m, half),
    "before, nothing": lambda m: _pre_hook(m, nothing),
    "patched": lambda m: _patched(m, half),
    "patched class": lambda m: _patched_class(m, half),
    "knocked out": _knocked_out,
}


def modules_of(name: str) -> dict[str, nn.Module]:
    """The modules of a small model that images pass, by name; the model itself is ""."""
    model = cases.built(name, torch.float64).model
    entered: dict[nn.Module, None] = {}
    handles = [
        m.register_forward_hook(lambda m, args, out: entered.setdefault(m)) for m in model.modules()
    ]
    with torch.no_grad():
        cases.embed(model, cases.images(name).double())
    for handle in handles:
        handle.remove()
    return {n: m for n, m in model.named_modules() if m in entered}


def kinds_of(module: nn.Module) -> list[str]:
    """The changes that a module can have."""
    attends = isinstance(module, nn.MultiheadAttention) or type(module).__name__ in (
        *("CLIPAttention", "SiglipAttention", "Attention"),
    )
    return [kind for kind in KINDS if attends or kind != "knocked out"]


# What plain autograd says


def _attention_oracle(name: str, method: str) -> Tensor:
    kind, options = METHODS[method]
    view = _see(name)
    scores = oracles.cosines(view.embedding, cases.embeddings())
    return oracles.maps(kind.__name__, view, scores, **options)


def _see(name: str) -> oracles.Seen:
    row, prefix = test_others_methods.READ[name]
    tower = cases.adapter(name, torch.float64).tower
    pixels = cases.images(name).double()
    model = cases.built(name, torch.float64).model
    with explicit.explicit_attention(len(pixels)) as attention:
        embedding = cases.embed(model, pixels.requires_grad_())
    grid = tower.grid(*pixels.shape[-2:])
    return oracles.Seen(embedding, embedding, embedding, tuple(attention), grid, row, prefix)


@contextmanager
def detached_gates(name: str, marks: list[Tensor] | None = None) -> Iterator[None]:
    """The model with every gate a constant.

    With `marks` the pooled row of every attention is multiplied with ones, which they collect, and
    nothing else leads from a layer to the next but the stream itself.
    """
    model, attended = cases.built(name, torch.float64).model, F.scaled_dot_product_attention
    softmax, width = F.softmax, len(cases.images(name))

    def norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 0) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        sigma = (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        return centred / sigma * (1 if weight is None else weight) + (0 if bias is None else bias)

    def weighted(weights: Tensor) -> Tensor:  # (B, H, rows, s)
        weights = weights.detach()
        if marks is None:
            return weights
        ones = torch.ones_like(weights[:, :1, :1]).requires_grad_()
        marks.append(ones)
        return torch.cat([weights[:, :, :1] * ones, weights[:, :, 1:]], 2)

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *a: Any, **options: Any
    ) -> Tensor:
        mask = options.get("attn_mask", mask)
        scale = options.get("scale") or q.shape[-1] ** -0.5
        logits = q @ k.mT * scale + (0 if mask is None else mask)
        return weighted(softmax(logits, dim=-1)) @ v

    def weigh(logits: Tensor, dim: int | None = None, *a: Any, **options: Any) -> Tensor:
        weights = softmax(logits, dim, *a, **options)
        return weighted(weights.unflatten(0, (width, -1))).flatten(0, 1)

    def gate(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        return args[0] * (out / args[0]).detach()

    def cut(_: nn.Module, args: Any) -> Any:
        return tuple(a.detach() if isinstance(a, Tensor) else a for a in args)

    assert attended is not None
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "layer_norm", norm))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attend))
        stack.enter_context(patch.object(F, "softmax", weigh))
        for module in model.modules():
            if "GELU" in type(module).__name__:
                stack.callback(module.register_forward_hook(gate, prepend=True).remove)
        if marks is not None:
            for block in test_others_methods.blocks_of(model):
                names = ("layer_norm1", "layer_norm2", "ln_1", "ln_2")
                for part in (getattr(block, n) for n in names if hasattr(block, n)):
                    stack.callback(part.register_forward_pre_hook(cut, prepend=True).remove)
        yield


def _keep(kept: list[Tensor], _: nn.Module, args: Any, out: Any) -> Any:
    """What follows gets a copy, since it may work in place."""
    kept.append(out[0] if isinstance(out, tuple) else out)
    return (kept[-1].clone(), *out[1:]) if isinstance(out, tuple) else kept[-1].clone()


def _linear_scores(embedding: Tensor) -> Tensor:
    return embedding @ cases.embeddings().T / embedding.norm(dim=-1, keepdim=True).detach()


def _conservative(name: str) -> Tensor:
    """Maps (B, K, N)."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    visual = getattr(model, "visual", None)
    conv = model.vision_model.embeddings.patch_embedding if visual is None else visual.conv1
    kept: list[Tensor] = []
    with detached_gates(name):
        handle = conv.register_forward_hook(partial(_keep, kept))
        embedding = cases.embed(model, pixels.requires_grad_())
        handle.remove()
    [patches] = kept
    maps = [
        (torch.autograd.grad(y.sum(), patches, retain_graph=True)[0] * patches).sum(1).flatten(1)
        for y in _linear_scores(embedding).T
    ]
    return torch.stack(maps, 1).detach()


def _direct(name: str) -> Tensor:
    """Maps (B, K, N)."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    row, prefix = test_others_methods.READ[name]
    if row == "mean":
        tokens: list[Tensor] = []
        last_block = test_others_methods.blocks_of(model)[-1]
        handle = last_block.register_forward_hook(partial(_keep, tokens))
        with detached_gates(name):
            embedding = cases.embed(model, pixels.requires_grad_())
        handle.remove()
        [last] = tokens
        maps = [
            (torch.autograd.grad(y.sum(), last, retain_graph=True)[0] * last).sum(-1)[:, prefix:]
            for y in _linear_scores(embedding).T
        ]
        return torch.stack(maps, 1).detach()
    marks: list[Tensor] = []
    with detached_gates(name, marks):
        embedding = cases.embed(model, pixels)
    marks = marks[-1:] if row == "attention" else marks
    maps = []
    for y in _linear_scores(embedding).T:
        if not y.requires_grad:
            maps.append(torch.zeros_like(marks[0][:, 0, 0, prefix:]))
            continue
        found = torch.autograd.grad(y.sum(), marks, retain_graph=True, allow_unused=True)
        total = sum(g for g in found if g is not None)
        assert isinstance(total, Tensor)
        maps.append(total[:, 0, 0, prefix:])
    return torch.stack(maps, 1).detach()


def _grad_cam(name: str) -> Tensor:
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    stage = cases.adapter(name, torch.float64).tower.stage
    kept: list[Tensor] = []
    handle = stage.register_forward_hook(partial(_keep, kept))
    embedding = cases.embed(model, pixels.requires_grad_())
    handle.remove()
    seen = oracles.SeenResNet(embedding, kept[0])
    return oracles.grad_cam(seen, oracles.cosines(embedding, cases.embeddings()))


OTHERS: dict[str, Callable[[str], Tensor]] = {
    "grad-eclip": test_others_methods.grad_eclip,
    "legrad": partial(test_others_methods.legrad, layers=2),
    "patches": partial(test_others_methods.patch_similarity, how="identity"),
    "direct": _direct,
    "conservative": _conservative,
    "deep vectors": _conservative,
    "pairs": _direct,
    "grad-cam": _grad_cam,
}


def _flat_keys(name: str) -> bool:
    """Whether all patches have one key, whose min-max is rounding."""
    _, _, inputs, _ = test_others_methods.see(name)
    keys = inputs[-1][1][:, :, test_others_methods.READ[name][1] :]
    return bool((keys - keys.mean(2, keepdim=True)).abs().max() < 1e-6)


def wanted(name: str, method: str) -> Tensor | None:
    """The map (B, K, h, w) of the model as it computes now; None where no oracle knows it."""
    if OTHERS.get(method) in (_direct, _conservative) and name not in GATED:
        return None
    try:
        if method not in OTHERS:
            return _attention_oracle(name, method)
        found = OTHERS[method](name)
    except RuntimeError:  # autograd itself cannot differentiate the model as it was changed
        return None
    if method == "grad-eclip" and _flat_keys(name):
        return None
    return found if found.ndim == 4 else found.unflatten(-1, (4, 4))


def verdict(name: str, method: str, similarity: ClipSimilarity) -> str:
    """ "right" or "refused"; else what is wrong."""
    kind, options = METHODS[method]
    pixels = cases.images(name).double()
    with torch.no_grad():
        scores = similarity(pixels)
    try:
        made = kind(similarity)
        extra = {"return_rest": True} if kind.additive else {}
        maps, own, *rest = made.attribute_targets(pixels, return_scores=True, **extra, **options)
    except CaptumClipError:
        return "refused"
    except RuntimeError:
        if wanted(name, method) is None:  # autograd itself cannot differentiate the model
            return "refused"
        raise
    if not torch.allclose(own, scores, rtol=1e-5, atol=1e-8):
        return f"scores off by {(own - scores).abs().max():.1e}"
    if rest and (maps.sum((-2, -1)) + rest[0] - scores).abs().max() > 1e-4:
        return "maps and rest are not the score"
    expected = wanted(name, method)
    if expected is None:
        return "right"
    size = expected.abs().max().clamp(min=1e-12)
    off = float((maps - expected).abs().max() / size)
    if not torch.isfinite(expected).all():
        return "right"  # nothing to compare with
    return "right" if off < TOLERANCE else f"map off by {off:.1e}"


def cells(name: str) -> Iterator[tuple[str, str, str]]:
    """Module, change and method of every cell of a tower."""
    methods = VIT_METHODS if name in TOWERS else ("grad-cam", "direct", "pairs")
    for path, module in modules_of(name).items():
        yield from product([path], kinds_of(module), methods)


def verdict_of(name: str, path: str, kind: str, method: str) -> str:
    """The verdict of a cell, or the error that is neither right nor a refusal."""
    similarity = cases.similarity(name, torch.float64)
    if method == "pairs":
        interaction(similarity.clip)
    with KINDS[kind](similarity.clip.model.get_submodule(path)):
        try:
            return verdict(name, method, similarity)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:80]}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for tower in sys.argv[1:] or (*TOWERS, *CONVOLUTIONAL):
        counts: Counter[str] = Counter()
        for path, kind, method in cells(tower):
            answer = verdict_of(tower, path, kind, method)
            counts[answer if answer in ("right", "refused") else "wrong"] += 1
            if answer not in ("right", "refused"):
                print(f"{tower:18} {path:50} {kind:15} {method:26} {answer}", flush=True)
        print(tower, dict(counts), flush=True)
