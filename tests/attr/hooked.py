"""Every kind of change of every module of a tower, and what plain autograd makes of it.

A method must give the map of the model as it computes now, or refuse. `python -m
tests.attr.hooked` tries every cell (towers x modules x changes x methods), prints the wrong ones
and counts; `test_hooked.py` tries a part. The changes are those of `kinds.py`.
"""

from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipPairSimilarity, ClipSimilarity, attr
from captum_clip.errors import CaptumClipError
from captum_clip.models import ClipAdapter
from tests import explicit, oracles
from tests.attr import cases, test_others_methods
from tests.attr.changes import placed, unchanged
from tests.attr.kinds import HARD, KINDS, NEW, OLD, Kind

TOWERS = ("hf_vit", "open_clip_vit", "open_clip_vit_mean", "siglip", "eva02", "pe_core")
CONVOLUTIONAL = ("open_clip_resnet", "timm_convnext")
GATED = ("hf_vit", "open_clip_vit", "open_clip_vit_mean", "siglip")  # whose gates are known here


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
        vectors, rest = attr.DirectContribution(self.similarity).vectors(pixels.clone(), **options)
        rows = self.similarity.embeddings.to(vectors).T
        unit, maps = vectors.sum((1, 2)) + rest, (vectors @ rows).movedim(-1, 1)
        try:
            made = attr.DirectContribution(self.similarity)
            own = made.attribute_targets(pixels.clone(), **options)[0]
        except CaptumClipError as error:
            raise AssertionError("there are vectors and no maps") from error
        torch.testing.assert_close(maps, own)
        return maps, unit @ rows, rest @ rows


class Pairs(Vectors):
    """The same, where the shares of two images are the products of their vectors."""

    def attribute_targets(self, pixels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, scores and rests of all targets."""
        method = interaction(self.similarity.clip)
        shares, rest = method.attribute((pixels.clone(), pixels.flip(0)), return_rest=True)
        total = shares.sum((1, 2, 3, 4)) + rest.constant
        total += rest.other.sum((1, 2)) + rest.image.sum((1, 2))
        torch.testing.assert_close(
            total, method.forward_func(pixels.clone(), pixels.flip(0)).detach()
        )
        vectors: Any = attr.DirectContribution(self.similarity).vectors(pixels.clone())
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
    "direct token": (attr.DirectContribution, {"depth": "token"}),
    "deep vectors": (Vectors, {"depth": "all"}),
    "token vectors": (Vectors, {"depth": "token"}),
    "pairs": (Pairs, {}),
}
PRODUCTS = ("deep vectors", "token vectors", "pairs")  # of vectors
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    **VIT_METHODS,
    "grad-cam": (attr.ClipGradCam, {}),
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
def detached_gates(
    name: str, marks: list[Tensor] | None = None, mlps: bool = False
) -> Iterator[None]:
    """The model with every gate a constant.

    With `marks` the pooled row of every attention is multiplied with ones, which they collect, and
    nothing else leads from a layer to the next but the stream itself, or with `mlps` also the MLPs
    of each token.
    """
    model, softmax = cases.built(name, torch.float64).model, F.softmax
    width = len(cases.images(name))

    def norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 0) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        sigma = (centered.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        return centered / sigma * (1 if weight is None else weight) + (0 if bias is None else bias)

    def weighted(weights: Tensor) -> Tensor:  # (B, H, rows, s)
        weights = weights.detach()
        if marks is None:
            return weights
        ones = torch.ones_like(weights[:, :1, :1]).requires_grad_()
        marks.append(ones)
        return torch.cat([weights[:, :, :1] * ones, weights[:, :, 1:]], 2)

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        return weighted(explicit.weights(q, k, attn_mask, is_causal, scale)) @ v

    def weigh(logits: Tensor, dim: int | None = None, *a: Any, **options: Any) -> Tensor:
        weights = softmax(logits, dim, *a, **options)
        return weighted(weights.unflatten(0, (width, -1))).flatten(0, 1)

    def gate(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        return args[0] * (out / args[0]).detach()

    def cut(_: nn.Module, args: Any) -> Any:
        return tuple(a.detach() if isinstance(a, Tensor) else a for a in args)

    with ExitStack() as stack:
        stack.enter_context(explicit.without_fast_path())
        for function, own in (("layer_norm", norm), ("scaled_dot_product_attention", attend)):
            stack.enter_context(patch.object(F, function, explicit.around(function, own)))
        stack.enter_context(patch.object(F, "softmax", weigh))
        for module in model.modules():
            if "GELU" in type(module).__name__:
                stack.callback(module.register_forward_hook(gate, prepend=True).remove)
            if type(module) is nn.SiLU:  # of SwiGLU, whose other branch is the linear one
                handle = module.register_forward_hook(lambda _, args, out: out.detach())
                stack.callback(handle.remove)
        if marks is not None:
            for block in test_others_methods.blocks_of(model):
                later = () if mlps else ("layer_norm2", "ln_2", "norm2")
                names = ("layer_norm1", "ln_1", "norm1", *later)
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


def _direct(name: str, mlps: bool = False) -> Tensor:
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
    with detached_gates(name, marks, mlps):
        embedding = cases.embed(model, pixels)
    marks = marks[-1:] if row == "attention" else marks
    maps = []
    for y in _linear_scores(embedding).T:
        total = torch.zeros_like(marks[0])
        if y.requires_grad:
            found = torch.autograd.grad(y.sum(), marks, retain_graph=True, allow_unused=True)
            total = sum((g for g in found if g is not None), total)
        maps.append(total[:, 0, 0, prefix:])
    return torch.stack(maps, 1).detach()


@cache
def _stage(name: str) -> str:
    """The path of the last stage, in whose place another module may stand."""
    adapter = cases.adapter(name, torch.float64)
    return next(n for n, m in adapter.model.named_modules() if m is adapter.tower.stage)


def _grad_cam(name: str) -> Tensor:
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    kept: list[Tensor] = []
    handle = model.get_submodule(_stage(name)).register_forward_hook(partial(_keep, kept))
    embedding = cases.embed(model, pixels.requires_grad_())
    handle.remove()
    seen = oracles.SeenResNet(embedding, kept[0])
    return oracles.grad_cam(seen, oracles.cosines(embedding, cases.embeddings()))


OTHERS: dict[str, Callable[[str], Tensor]] = {
    "grad-eclip": test_others_methods.grad_eclip,
    "legrad": partial(test_others_methods.legrad, layers=2),
    "patches": partial(test_others_methods.patch_similarity, how="identity"),
    "direct": _direct,
    "direct token": partial(_direct, mlps=True),
    "token vectors": partial(_direct, mlps=True),
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
    # a pool that attends by other functions than those that the oracle exchanges
    if explicit.AROUND and method in ("grad-eclip", "patches") and name not in GATED[:3]:
        return None
    gated = ("direct", "conservative", "direct token", *PRODUCTS)
    if method in gated and name not in GATED:
        return None
    try:
        if method not in OTHERS:
            return _attention_oracle(name, method)
        found = OTHERS[method](name)
    except RuntimeError:  # autograd itself cannot differentiate the model as it was changed
        return None
    if method == "grad-eclip" and _flat_keys(name):
        return None
    if found.ndim == 3 and found.shape[-1] != 16:  # keys of no patch
        return None
    return found if found.ndim == 4 else found.unflatten(-1, (4, 4))


# Cells


class Found(NamedTuple):
    """What a method gives, or what is to be expected of it."""

    maps: Tensor | None
    scores: Tensor
    rest: Tensor | None = None


def _explain(made: Any, additive: bool, pixels: Tensor, options: dict[str, Any]) -> Found:
    extra = {"return_rest": True} if additive else {}
    return Found(*made.attribute_targets(pixels.clone(), return_scores=True, **extra, **options))


def _wrong(found: Found, wanted: Found, tolerance: float) -> str:
    """What is wrong, if anything."""
    scores, expected = wanted.scores, wanted.maps
    if not torch.allclose(found.scores, scores, rtol=tolerance, atol=1e-3 * tolerance):
        return f"scores off by {(found.scores - scores).abs().max():.1e}"
    assert found.maps is not None
    if found.rest is not None:
        difference = (found.maps.sum((-2, -1)) + found.rest - scores).abs().max()
        if difference > max(1e-4, tolerance):
            return "maps and rest are not the score"
    if expected is None or not torch.isfinite(expected).all():
        return ""  # nothing to compare with
    off = float((found.maps - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return "" if off < tolerance else f"map off by {off:.1e}"


def cells(name: str, kinds: Mapping[str, Kind] = OLD) -> Iterator[tuple[str, str, str]]:
    """Module, change and method of every cell of a tower."""
    methods = [*VIT_METHODS] if name in TOWERS else ["grad-cam", "direct", "pairs"]
    if name not in ("hf_vit", "open_clip_vit", "eva02"):  # no token is pooled
        methods = [method for method in methods if "token" not in method]
    model, modules = cases.built(name, torch.float64).model, modules_of(name)
    first = {type(module): path for path, module in reversed(modules.items())}
    for path in ("", *(path for path in modules if path)):
        scopes = {"model"} if not path else {"module"}
        if path and first[type(modules[path])] == path:
            scopes.add("class")
        with placed(model, path) as place:
            here = [n for n, kind in kinds.items() if kind.scope in scopes and kind.fits(place)]
        for kind, method in product(here, methods):
            # the others take no function of one's own, and run several times
            alike = kinds[kind].forward is None and kinds[kind].same_values
            if alike or method not in PRODUCTS:
                yield path, kind, method


def _is_late(name: str, path: str) -> bool:
    """Whether a module ends with the last block, is in it, or comes after it."""
    if name not in TOWERS:
        return False
    paths, model = [*modules_of(name)], cases.built(name, torch.float64).model
    block = test_others_methods.blocks_of(model)[-1]
    last = next(n for n, module in model.named_modules() if module is block)
    return last.startswith(f"{path}.") or path in paths[paths.index(last) :]


def verdict_of(name: str, path: str, change: str, method: str) -> str:
    """ "right", "refused", or "no model" where the library cannot run it; else what is wrong."""
    (explainer, options), kind = METHODS[method], KINDS[change]
    similarity, pixels = cases.similarity(name, torch.float64), cases.images(name).double()
    model = similarity.clip.model
    if method == "pairs":
        interaction(similarity.clip)
    with placed(model, path) as place:
        given: tuple[Any, ...] = (similarity,)
        if kind.forward is not None:
            given = (kind.forward(similarity, place), model)
        made = explainer(*given) if kind.kept else None
        kind.make(place)
        try:
            with torch.no_grad():
                cases.embed(model, pixels.clone())
        except Exception:
            return "no model"

        def reference() -> Found:
            with torch.no_grad():
                scores = similarity(pixels.clone())
            unknown = kind.mixes and _is_late(name, path)
            return Found(None if unknown else wanted(name, method), scores)

        try:
            made = made or explainer(*given)
            found = _explain(made, explainer.additive, pixels, options)
        except CaptumClipError:
            return "refused"
        except Exception as error:
            # autograd itself cannot differentiate some models
            if isinstance(error, RuntimeError) and wanted(name, method) is None:
                return "refused"
            return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        expected = [] if kind.instead else [reference()]
    for make in (*kind.instead, *([unchanged] if kind.of_gradient else [])):
        with placed(model, path) as place:
            make(place)
            expected.append(reference())
    answers = [_wrong(found, each, kind.tolerance) for each in expected]
    return "right" if "" in answers else answers[0]


def table(counts: Mapping[str, Counter[str]]) -> str:
    """Counts of verdicts, a line for each."""
    columns = ("right", "refused", "wrong", "no model")
    lines = [f"{'':34}" + "".join(f"{column:>10}" for column in columns)]
    for name, own in counts.items():
        lines.append(f"{name:34}" + "".join(f"{own[column]:10}" for column in columns))
    return "\n".join(lines)


def main() -> None:
    """Try every cell, or every n-th."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("towers", nargs="*", default=(*TOWERS, *CONVOLUTIONAL))
    # those of the whole model are few
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="every N-th cell of modules"
    )
    parser.add_argument("--kinds", default="all", help="all, old, new, or a part of their names")
    given = parser.parse_args()
    sets = {"all": KINDS, "old": OLD, "new": NEW, "hard": HARD}
    named = {name: kind for name, kind in KINDS.items() if given.kinds in name}
    torch.set_num_threads(1)
    per_tower: dict[str, Counter[str]] = defaultdict(Counter)
    per_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for tower in given.towers:
        for index, cell in enumerate(cells(tower, sets.get(given.kinds, named))):
            path, kind, method = cell
            if index % given.every and KINDS[kind].scope != "model":
                continue
            answer = verdict_of(tower, path, kind, method)
            plain = answer if answer in ("right", "refused", "no model") else "wrong"
            per_tower[tower][plain] += 1
            per_kind[kind][plain] += 1
            if plain == "wrong":
                print(f"{tower:18} {path:46} {kind:30} {method:26} {answer}", flush=True)
        print(f"{tower}: {dict(per_tower[tower])}", flush=True)
    print(f"\n{table(per_kind)}\n\n{table(per_tower)}")


if __name__ == "__main__":
    main()
