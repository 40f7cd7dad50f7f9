"""What a changed model really computes, plainly, and what the methods say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import CaptumClipError
from tests import builders, oracles
from tests.attr import cases

Post = Callable[[Tensor], Tensor]
Wanted = Callable[[str], "Tensor | list[Tensor | None] | None"]
"""A method's map; several where more than one is right, None where it is not known."""
GRADIENTS = ["last-grad", "all-grad"]
FEW = ["direct", *GRADIENTS, "rollout"]
TAKEN_APART = ["direct", "conservative", "legrad", "patches"]  # they read the embedding alone
PATCHES = 16
ONE, OTHER = "right", "refused"


def double(name: str = "hf_vit") -> builders.Small:
    """A small model of one's own to change."""
    small = cases.BUILDERS[name]()
    small.model.double()
    return small


def rows() -> Tensor:
    """What a score compares with."""
    return cases.embeddings()[:3]


def similarity_of(clip: Any) -> ClipSimilarity:
    """The cosines of an adapter's embeddings."""
    return ClipSimilarity(clip, targets.embedding(rows()))


def layers_of(model: Any) -> Any:
    """The layers of the vision tower of `hf_vit`."""
    return model.vision_model.encoder.layers


# Attention, written plainly


class Form(NamedTuple):
    """A kind of attention: what multiplies the values, and what a model runs to that end.

    Attributes:
        weights: module, q and k (B, H, s, d) -> A (B, H, s, s), which is all that is known of it.
        kernel: module, q, k, v -> the heads' outputs (B, H, s, d), as somebody would write it.
        values: the values that A multiplies.
        must: whether it has to be explained; else it may be refused.
    """

    weights: Callable[[Any, Tensor, Tensor], Tensor]
    kernel: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    values: Callable[[Tensor], Tensor] = lambda v: v
    must: bool = True


def usual(_: Any, q: Tensor, k: Tensor) -> Tensor:
    """CLIP's own weights."""
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)


USUAL = Form(usual, lambda module, q, k, v: F.scaled_dot_product_attention(q, k, v))


def split(module: Any, hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values (B, H, s, d) of a `CLIPAttention`."""
    shape = (*hidden.shape[:-1], module.num_heads, -1)
    maps = (module.q_proj, module.k_proj, module.v_proj)
    return [m(hidden).view(shape).transpose(1, 2) for m in maps]


def merged(module: Any, heads: Tensor) -> tuple[Tensor, None]:
    """What a `CLIPAttention` returns."""
    return module.out_proj(heads.transpose(1, 2).flatten(2)), None


class Noted(NamedTuple):
    """One attention as it ran."""

    weights: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class Plain:
    """Maps of the methods on a model of `hf_vit`, from attentions that stand in autograd's graph.

    Args:
        model: it may be changed anywhere but in its attentions.
        forms: of each layer's attention.
        post: what is made of the model's embedding before the cosine.
        span: the columns of the patches.
        score: of the embedding and the last block's output, in the place of the cosines.
        row: the row that the map is read at, of the last attention.
    """

    def __init__(
        self,
        model: Any,
        pixels: Tensor,
        forms: Sequence[Form] = (USUAL,) * 3,
        *,
        post: Post = lambda e: e,
        span: slice = slice(1, 1 + PATCHES),
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
        row: oracles.Row = "cls",
    ) -> None:
        self.model, self.post, self.span, self.row = model, post, span, row
        kept: list[Tensor] = []
        last = layers_of(model)[-1]
        handle = last.register_forward_hook(
            lambda m, a, out: kept.append(out if isinstance(out, Tensor) else out[0])
        )
        with plain_attention(model, forms) as self.noted:
            embedding = cases.embed(model, pixels.clone())
        handle.remove()
        self.hidden = kept[0]
        attention = tuple(each.weights for each in self.noted)
        self.seen = oracles.Seen(embedding, self.hidden, self.hidden, attention, (4, 4), row)
        if score is None:
            self.scores = oracles.cosines(post(embedding), rows())
        else:
            self.scores = score(embedding, self.hidden)

    def __call__(self, method: str) -> Any:
        """Maps (B, K, 4, 4), two for `direct` if there is a `post`."""
        if method == "direct":
            return [self._on_grid(self.direct(how)) for how in directions(self.post)]
        if method == "grad-eclip":
            maps = torch.stack([self.grad_eclip(y) for y in self.scores.T], 1)
        else:
            own = oracles.METHODS[attr.METHODS[method].__name__]
            maps = torch.stack([own(self.seen, y, self.row) for y in self.scores.T], 1)
        return self._on_grid(maps)

    def _on_grid(self, maps: Tensor) -> Tensor:
        return maps[..., self.span].unflatten(-1, (4, 4)).detach()

    def direct(self, direction: Callable[[Tensor], Tensor]) -> Tensor:
        """What the tokens' values add to the score through CLS's row, norms held."""
        token = self.hidden[:, 0].detach().requires_grad_()
        norm = oracles.norm(token, self.model.vision_model.post_layernorm, detached=True)
        embedding = norm @ self.model.visual_projection.weight.T
        scores = torch.einsum("be,bke->bk", embedding, direction(embedding.detach()))
        total: Any = 0
        for layer, (weights, _, _, value) in zip(layers_of(self.model), self.noted, strict=True):
            out = layer.self_attn.out_proj.weight.unflatten(1, (value.shape[1], -1))  # (D, H, d)
            found = [torch.autograd.grad(y.sum(), token, retain_graph=True)[0] for y in scores.T]
            grown = torch.einsum("kbc,chd,bhsd->bkhs", torch.stack(found), out, value)
            total = total + (grown * weights[:, None, :, 0]).sum(2)
        return total

    def grad_eclip(self, y: Tensor) -> Tensor:
        """The last attention's gradient, weighted by keys that are close to the query."""
        last = self.noted[-1]
        (gradient,) = torch.autograd.grad(y.sum(), last.weights, retain_graph=True)
        q, k = (x.transpose(1, 2).flatten(2) for x in (last.query, last.key))
        q, gradient = (oracles.read(x, self.row) for x in (q, gradient.transpose(1, 2)))
        close = F.cosine_similarity(q[:, None], k, dim=-1)
        low = close[:, self.span].amin(1, keepdim=True)
        extent = close[:, self.span].amax(1, keepdim=True) - low
        return gradient.sum(1).clamp(min=0) * (close - low) / extent


def held(post: Post, e: Tensor) -> Tensor:
    """The directions (B, K, E) of a cosine whose length is held, through an affine map."""
    e = e.requires_grad_()
    found = post(e)
    lengths = found.norm(dim=-1).detach()
    scores = found @ rows().T / lengths[:, None]
    return torch.stack([torch.autograd.grad(y.sum(), e, retain_graph=True)[0] for y in scores.T], 1)


def sloped(post: Post, e: Tensor) -> Tensor:
    """Those of any function of the embedding: its slope, and along e what is left of the score.

    What is not odd in the embedding has its slope alone.
    """
    e = e.requires_grad_()
    scores = oracles.cosines(post(e), rows())
    slopes = [torch.autograd.grad(y.sum(), e, retain_graph=True)[0] for y in scores.T]
    slope = torch.stack(slopes, 1)
    if not torch.allclose(oracles.cosines(post(-e), rows()), -scores):
        return slope.detach()
    left = scores - torch.einsum("be,bke->bk", e, slope)
    return (slope + left[..., None] * e[:, None] / e.square().sum(-1)[:, None, None]).detach()


def directions(post: Post) -> list[Callable[[Tensor], Tensor]]:
    """Both, which are the same where nothing is made of the embedding."""
    return [partial(held, post), partial(sloped, post)]


@contextmanager
def plain_attention(model: Any, forms: Sequence[Form]) -> Iterator[list[Noted]]:
    """Every attention of `hf_vit` as a product of a matrix with the values."""
    noted: list[Noted] = []

    def attend(module: Any, form: Form, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        q, k, v = split(module, hidden_states)
        noted.append(Noted(form.weights(module, q, k), q, k, form.values(v)))
        return merged(module, noted[-1].weights @ noted[-1].value)

    with ExitStack() as stack:
        for layer, form in zip(layers_of(model), forms, strict=True):
            module = layer.self_attn
            stack.enter_context(patch.object(module, "forward", partial(attend, module, form)))
        yield noted


# What the methods say


def images(name: str = "hf_vit") -> Tensor:
    """Two of them."""
    return cases.images(name, torch.float64, 2)


def explained(method: str, given: Sequence[Any], pixels: Tensor, **options: Any) -> Any:
    """Maps, scores, and a rest where there is one."""
    made: Any = attr.METHODS[method](*given)
    extra = {"return_rest": True} if made.additive else {}
    return made.attribute_targets(pixels.clone(), return_scores=True, **extra, **options)


def verdict(
    method: str,
    given: Sequence[Any],
    pixels: Tensor,
    wanted: Wanted,
    scores: Tensor,
    tolerance: float = 1e-6,
    **options: Any,
) -> str:
    """ "right" or "refused", else what is wrong."""
    try:
        maps, found, *rest = explained(method, given, pixels, **options)
    except CaptumClipError as error:
        return OTHER if error.reason.rstrip().endswith(".") else f"no sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    if not torch.allclose(found, scores, rtol=tolerance, atol=1e-3 * tolerance):
        return f"scores off by {(found - scores).abs().max():.1e}"
    if rest and not torch.allclose(maps.sum((-2, -1)) + rest[0], scores, atol=10 * tolerance):
        return "maps and rest are not the score"
    expected = wanted(method)
    each = expected if isinstance(expected, list) else [expected]
    offs = [
        float((maps - one).abs().max() / one.abs().max().clamp(min=1e-12))
        for one in each
        if one is not None
    ]
    return ONE if min(offs, default=0) < tolerance else f"map off by {min(offs):.1e}"


def verdicts(
    methods: Sequence[str],
    given: Any,
    wanted: Wanted = lambda method: None,
    pixels: Tensor | None = None,
    **options: Any,
) -> dict[str, str]:
    """Of each method, on a similarity, or on a callable with its layer."""
    given = given if isinstance(given, tuple) else (given,)
    pixels = images() if pixels is None else pixels
    scores = options.pop("scores", None)
    if scores is None:
        with torch.no_grad():
            scores = given[0](pixels.clone())
    return {m: verdict(m, given, pixels, wanted, scores.detach(), **options) for m in methods}


def assert_answers(answers: dict[str, str], *allowed: str) -> None:
    """Every method's answer is one of those."""
    wrong = {method: answer for method, answer in answers.items() if answer not in allowed}
    assert not wrong, wrong


def assert_right(answers: dict[str, str]) -> None:
    """All are explained as they compute."""
    assert_answers(answers, ONE)


def assert_right_or_refused(answers: dict[str, str]) -> None:
    """None is wrong, and none ends in another's exception."""
    assert_answers(answers, ONE, OTHER)
