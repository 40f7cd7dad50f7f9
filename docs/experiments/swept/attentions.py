"""Attentions of other forms, and other code for the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from docs.experiments.swept.entries import Entries, Entry, unknown
from tests.attr import running
from tests.attr.changes import Place, unchanged
from tests.attr.judged import Change, known, of_forms
from tests.attr.moves import SIDE, TOKENS, blocks, noise
from tests.attr.own_kernels import Kernel, fused, kernel, padded

Weigh = Callable[[Tensor, Tensor, float], Tensor]


def plain(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The products."""
    return q @ k.mT * scale


def form(weigh: Weigh) -> running.Form:
    """As a matrix that multiplies the values."""
    return running.Form(lambda m, q, k: weigh(q, k, m.scale), lambda *_: _[-1])


# Weights of another form, written as somebody would

PLACES = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1)
FAR = F.pad(torch.cdist(*[PLACES.flatten(0, 1).double()] * 2), (1, 0, 1, 0))
NEAR = (FAR < 1.5) | torch.eye(TOKENS).bool()
NEAR[0] = NEAR[:, 0] = True
SLOPES = torch.tensor([0.1, 0.3, 0.5, 1.0], dtype=torch.float64)[:, None, None]
MIX = noise(4, 4, seed=30).softmax(-1)
TEMPERATURES = torch.tensor([0.5, 1, 2, 3], dtype=torch.float64)[:, None, None]
STATIC = noise(1, 4, TOKENS, TOKENS, seed=31).softmax(-1)
DIAGONAL = torch.eye(TOKENS).bool()


def softmax(logits: Tensor) -> Tensor:
    """Over the keys."""
    return logits.softmax(-1)


def sparse(weights: Tensor, least: float = 0.05) -> Tensor:
    """Small ones as zeros."""
    return weights * (weights.detach() > least)


def sparsemax(z: Tensor) -> Tensor:
    """Martins and Astudillo."""
    ordered = z.sort(-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    support = 1 + k * ordered > ordered.cumsum(-1)
    size = support.sum(-1, keepdim=True)
    threshold = (torch.where(support, ordered, 0.0).sum(-1, keepdim=True) - 1) / size
    return (z - threshold).clamp(min=0)


FORMS: dict[str, Weigh] = {
    "temperatures by head": lambda q, k, s: softmax(plain(q, k, s) * TEMPERATURES),
    "ALiBi": lambda q, k, s: softmax(plain(q, k, s) - SLOPES * FAR),
    "a bias by place": lambda q, k, s: softmax(plain(q, k, s) - 0.1 * FAR.square()),
    "neighbors and CLS": lambda q, k, s: softmax(plain(q, k, s).masked_fill(~NEAR, -torch.inf)),
    "without itself": lambda q, k, s: softmax(plain(q, k, s).masked_fill(DIAGONAL, -torch.inf)),
    "causal": lambda q, k, s: softmax(
        plain(q, k, s).masked_fill(~torch.ones(TOKENS, TOKENS).bool().tril(), -torch.inf)
    ),
    "cosines": lambda q, k, s: softmax(4 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT),
    "distances": lambda q, k, s: softmax(-torch.cdist(q, k).square() * s),
    "capped logits": lambda q, k, s: softmax(2 * torch.tanh(plain(q, k, s) / 2)),
    "talking heads before": lambda q, k, s: softmax(
        torch.einsum("gh,bhij->bgij", MIX, plain(q, k, s))
    ),
    "talking heads after": lambda q, k, s: torch.einsum(
        "gh,bhij->bgij", MIX, softmax(plain(q, k, s))
    ),
    "one map for all heads": lambda q, k, s: softmax(
        plain(q, k, s).mean(1, keepdim=True).expand(-1, 4, -1, -1)
    ),
    "keys ask": lambda q, k, s: softmax(plain(k, k, s)),
    "with a constant map": lambda q, k, s: 0.5 * softmax(plain(q, k, s)) + 0.5 * STATIC,
    "a constant map": lambda q, k, s: STATIC.expand(len(q), -1, -1, -1),
    "a uniform map": lambda q, k, s: 0 * plain(q, k, s) + 1 / TOKENS,
    "the identity added": lambda q, k, s: softmax(plain(q, k, s)) + torch.eye(TOKENS),
    "less the mean": lambda q, k, s: softmax(plain(q, k, s)) - 1 / TOKENS,
    "sparse": lambda q, k, s: sparse(softmax(plain(q, k, s))),
    "sparsemax": lambda q, k, s: sparsemax(plain(q, k, s)),
    "sigmoid": lambda q, k, s: torch.sigmoid(plain(q, k, s) - 2.8),
    "squared ReLU": lambda q, k, s: plain(q, k, s).relu().square() / TOKENS,
    "linear": lambda q, k, s: (
        (F.elu(q) + 1)
        @ (F.elu(k) + 1).mT
        / ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).sum(-1, keepdim=True)
    ),
    "softmax over queries": lambda q, k, s: plain(q, k, s).softmax(-2),
    "Sinkhorn": lambda q, k, s: (
        plain(q, k, s).softmax(-1) / plain(q, k, s).softmax(-1).sum(-2, keepdim=True)
    ),
    "two softmaxes": lambda q, k, s: softmax(3 * softmax(plain(q, k, s))),
    "squared and normalized": lambda q, k, s: F.normalize(softmax(plain(q, k, s)).square(), 1, -1),
    "stale weights": lambda q, k, s: softmax(plain(q, k, s)).detach(),
    "rows of CLS for all": lambda q, k, s: softmax(plain(q[:, :, :1], k, s)).expand(
        -1, -1, TOKENS, -1
    ),
    "one head off": lambda q, k, s: (
        softmax(plain(q, k, s)) * torch.tensor([1.0, 0, 1, 1])[:, None, None]
    ),
    "heads weighed": lambda q, k, s: softmax(plain(q, k, s)) * TEMPERATURES,
    "a strong diagonal": lambda q, k, s: softmax(plain(q, k, s) + 2 * torch.eye(TOKENS)),
    "weights by rank": lambda q, k, s: softmax(0.2 * plain(q, k, s).argsort(-1).argsort(-1).to(q)),
}


def of_written(*forms: running.Form) -> Any:
    """Maps of attentions that are written out; the others read kernels and know none."""
    own = of_forms(*forms)

    def truth(change: Any, forward: Any) -> Any:
        def wanted(method: str) -> Any:
            if method == "conservative":
                return relevance(change, forms * (3 // len(forms)))
            return own(change, forward)(method) if method in SHOWN else None

        return wanted

    return truth


# Grad-ECLIP compares the queries and keys of the kernel, which a form does not show
SHOWN = ("direct", "last-grad", "all-grad", "rollout", "attention-grad-cam")


def relevance(change: Change, forms: Any) -> Tensor | None:
    """What conservative propagation gives where weights are constants."""
    held = [form._replace(weights=lambda *a, w=form.weights: w(*a).detach()) for form in forms]
    with running.plain_attention(running.shared(change.tower), held):
        return known(change.tower, "conservative", change.batch)


def weighed(weigh: Weigh) -> Kernel:
    """The product of weights and values."""
    return lambda q, k, v, scale: weigh(q, k, scale) @ v


def of_form() -> Entries:
    """In all layers, or in the last one."""
    found: Entries = {}
    for name, weigh in FORMS.items():
        found[f"{name}, all layers"] = Entry(
            Change(kernel(weighed(weigh)), truth=of_written(form(weigh)))
        )
        usual = form(lambda q, k, s: softmax(plain(q, k, s)))
        found[f"{name}, last layer"] = Entry(
            Change(kernel(weighed(weigh), (2,)), truth=of_written(usual, usual, form(weigh)))
        )
    return found


# The same, as other code


def threaded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """In another thread."""
    out: list[Tensor] = []
    needs = torch.is_grad_enabled()

    def work() -> None:
        with torch.set_grad_enabled(needs):
            out.append(fused(q, k, v, scale))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return out[0]


def keys_padded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Keys alone, before the tokens."""
    k, v = (F.pad(x, (0, 0, 7, 0)) for x in (k, v))
    mask = torch.arange(TOKENS + 7) >= 7
    return F.scaled_dot_product_attention(q, k, v, mask.expand(q.shape[2], -1), scale=scale)


def keys_turned(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Keys and values from the last to the first."""
    return fused(q, k.flip(2), v.flip(2), scale)


def online(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A softmax over blocks of keys, as flash attention has it."""
    top = torch.full((*q.shape[:3], 1), -torch.inf, dtype=q.dtype)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    for keys, values in zip(k.split(6, 2), v.split(6, 2), strict=True):
        logits = plain(q, keys, scale)
        new = torch.maximum(top, logits.amax(-1, keepdim=True))
        powers, decay = (logits - new).exp(), (top - new).exp()
        total, out, top = (
            total * decay + powers.sum(-1, keepdim=True),
            out * decay + powers @ values,
            new,
        )
    return out / total


def halves_of_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Two heads at a time."""
    parts = zip(q.split(2, 1), k.split(2, 1), v.split(2, 1), strict=True)
    return torch.cat([fused(*part, scale) for part in parts], 1)


def by_image(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One image at a time."""
    return torch.cat([fused(*(x[i : i + 1] for x in (q, k, v)), scale) for i in range(len(q))])


def by_vmap(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A function of one image."""

    def one(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (a @ b.mT * scale).softmax(-1) @ c

    out: Tensor = torch.func.vmap(one)(q, k, v)
    return out


def last_first(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Channels before tokens."""
    logits = torch.einsum("bhdi,bhdj->bhij", q.mT, k.mT) * scale
    return torch.einsum("bhij,bhdj->bhdi", logits.softmax(-1), v.mT).mT


def tokens_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Heads last."""
    q, k, v = (x.permute(0, 2, 3, 1) for x in (q, k, v))  # (B, s, d, H)
    weights = (torch.einsum("bidh,bjdh->bijh", q, k) * scale).softmax(2)
    return torch.einsum("bijh,bjdh->bidh", weights, v).permute(0, 3, 1, 2)


def logsumexp(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A softmax as a difference of logarithms."""
    logits = plain(q, k, scale)
    return (logits - logits.logsumexp(-1, keepdim=True)).exp() @ v


def log_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """By its logarithm."""
    return F.log_softmax(plain(q, k, scale), -1).exp() @ v


def shifted_logits(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Less their maximum before."""
    logits = plain(q, k, scale)
    return softmax(logits - logits.amax(-1, keepdim=True).detach()) @ v


def with_ones(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The sum of the weights from a column of ones."""
    powers = plain(q, k, scale).exp() @ F.pad(v, (0, 1), value=1.0)
    return powers[..., :-1] / powers[..., -1:]


def as_math(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """By a chosen backend."""
    with sdpa_kernel(SDPBackend.MATH):
        return fused(q, k, v, scale)


def scaled_before(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Both by the root of the scale."""
    return F.scaled_dot_product_attention(q * scale**0.5, k * scale**0.5, v, scale=1.0)


def twice(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Once to warm up."""
    fused(q, k, v, scale)
    return fused(q, k, v, scale)


def warmed_up(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Once with zeros."""
    fused(0 * q, k, v, scale)
    return fused(q, k, v, scale)


def half_and_half(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """CLS by one kernel, the patches by another."""
    return torch.cat([fused(q[:, :, :1], k, v, scale), fused(q[:, :, 1:], k, v, scale)], 2)


def chunked_values(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Weights times some of the values' channels."""
    weights = softmax(plain(q, k, scale))
    return torch.cat([weights @ part for part in v.chunk(2, -1)], -1)


def contiguous(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Copies."""
    return fused(q.contiguous().clone(), k.clone(), v.clone(), scale).clone()


def in_single(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """In single precision."""
    return fused(q.float(), k.float(), v.float(), scale).to(q)


def with_lists(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Head by head, in a list."""
    return torch.stack(
        [
            softmax(plain(a, b, scale)) @ c
            for a, b, c in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
        ],
        1,
    )


def nested(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch.matmul with an output of its own."""
    return torch.bmm(
        softmax(
            torch.baddbmm(
                torch.zeros(()).to(q), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=scale
            )
        ),
        v.flatten(0, 1),
    ).view_as(q)


def by_mul(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Products as sums."""
    weights = softmax((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * scale)
    return (weights[..., None] * v[..., None, :, :]).sum(-2)


def by_linear(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Weights times values as one linear map an image and head."""
    weights = softmax(plain(q, k, scale))
    heads = [F.linear(w, x.T) for w, x in zip(weights.flatten(0, 1), v.flatten(0, 1), strict=True)]
    return torch.stack(heads).view_as(q)


def by_operator(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """By an operator of aten."""
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(q, k, v, scale=scale)[0]
    return out


SAME: dict[str, Kernel] = {
    each.__name__: each
    for each in (
        threaded, padded, keys_padded, keys_turned, online, halves_of_heads, by_image, by_vmap,
        last_first, tokens_heads, logsumexp, log_softmax, shifted_logits, with_ones, as_math,
        scaled_before, twice, warmed_up, half_and_half, chunked_values, contiguous, in_single,
        with_lists, nested, by_mul, by_linear, by_operator,
    )
}  # fmt: skip


def as_other_code() -> Entries:
    """Kernels that compute the same."""
    found: Entries = {}
    for name, run in SAME.items():  # keys in another order change no score, and all places
        tolerance = 1e-4 if name == "in_single" else 1e-6
        for layers in ((0, 1, 2), (2,)):
            found[f"{name}, {len(layers)} layers"] = Entry(
                Change(kernel(run, layers), unchanged, tolerance=tolerance),
                harmless=name != "keys_turned",
            )
    return found


# What is round the weights


def gated(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Outputs times a gate of the queries."""
    return fused(q, k, v, scale) * torch.sigmoid(q)


def normed_values(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Values of unit length."""
    return fused(q, k, F.normalize(v, dim=-1), scale)


def mean_of_values(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Less the values' mean."""
    return fused(q, k, v - v.mean(2, keepdim=True), scale)


def mixed_values(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Linformer: keys and values of mixtures of tokens, as many as tokens."""
    mix = noise(TOKENS, TOKENS, seed=32) / 4
    return fused(q, mix @ k, mix @ v, scale)


def pooled_keys(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Fewer keys: CLS and means of two patches."""
    k, v = (torch.cat([x[:, :, :1], x[:, :, 1:].unflatten(2, (8, 2)).mean(3)], 2) for x in (k, v))
    return fused(q, k, v, scale)


def own_output(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The token's own value as well."""
    return fused(q, k, v, scale) + 0.5 * v


def normed_output(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A norm of each head's output."""
    return F.layer_norm(fused(q, k, v, scale), q.shape[-1:])


def exchanged_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Outputs of another head, put back by nothing."""
    return fused(q, k, v, scale).roll(1, 1)


def values_of_others(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Each patch's value is its neighbor's."""
    return fused(q, k, torch.cat([v[:, :, :1], v[:, :, 1:].roll(1, 2)], 2), scale)


def keys_of_others(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Each patch's key is its neighbor's."""
    return fused(q, torch.cat([k[:, :, :1], k[:, :, 1:].roll(1, 2)], 2), v, scale)


def outputs_of_others(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Each patch gets its neighbor's output."""
    out = fused(q, k, v, scale)
    return torch.cat([out[:, :, :1], out[:, :, 1:].roll(1, 2)], 2)


def smoothed_values(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Values averaged with their neighbors'."""
    return fused(q, k, 0.5 * v + 0.25 * (v.roll(1, 2) + v.roll(-1, 2)), scale)


def rolled_weights(q: Tensor, k: Tensor) -> Tensor:
    """Of neighbors' keys."""
    return running.usual(None, q, torch.cat([k[:, :, :1], k[:, :, 1:].roll(-1, 2)], 2))


SMOOTH = 0.5 * torch.eye(TOKENS).double()
SMOOTH = SMOOTH + 0.25 * (
    torch.eye(TOKENS).double().roll(1, 0) + torch.eye(TOKENS).double().roll(-1, 0)
)
LINFORMER = noise(TOKENS, TOKENS, seed=32) / 4
OWN = "its own value as well"
ROUND: dict[str, tuple[Kernel, Any]] = {
    # the matrix that multiplies each token's own value, and the methods that must be refused
    "a value of the neighbor": (
        values_of_others,
        form(lambda q, k, s: rolled_weights(q, k)),
    ),
    "a key of the neighbor": (
        keys_of_others,
        form(
            lambda q, k, s: softmax(
                plain(q, torch.cat([k[:, :, :1], k[:, :, 1:].roll(1, 2)], 2), s)
            )
        ),
    ),
    "an output of the neighbor": (
        outputs_of_others,
        form(
            lambda q, k, s: torch.cat(
                [softmax(plain(q, k, s))[:, :, :1], softmax(plain(q, k, s))[:, :, 1:].roll(1, 2)], 2
            )
        ),
    ),
    "values smoothed": (smoothed_values, form(lambda q, k, s: softmax(plain(q, k, s)) @ SMOOTH)),
    "values and keys mixed": (
        mixed_values,
        form(lambda q, k, s: softmax(plain(q, LINFORMER @ k, s)) @ LINFORMER),
    ),
    "less the values' mean": (
        mean_of_values,
        form(lambda q, k, s: softmax(plain(q, k, s)) - 1 / TOKENS),
    ),
    OWN: (
        own_output,
        form(lambda q, k, s: softmax(plain(q, k, s)) + 0.5 * torch.eye(TOKENS)),
    ),
}
# of which the model as it runs knows
COMPUTED: dict[str, Kernel] = {
    "gated outputs": gated,
    "normed values": normed_values,
    "normed outputs": normed_output,
    "heads in another order": exchanged_heads,
}


def round_about() -> Entries:
    """Values and outputs that are changed beside the weights."""
    found: Entries = {}
    for name, (run, own) in ROUND.items():
        usual = form(lambda q, k, s: softmax(plain(q, k, s)))
        for layers in ((0, 1, 2), (2,), (1,)):
            forms = [own if index in layers else usual for index in range(3)]

            # a token's own value beside the kernel is a residual, and in no attention
            beside = ("last-grad", "all-grad", "rollout") if name == OWN else ()
            found[f"{name}, layers {layers}"] = Entry(
                Change(kernel(run, layers), truth=of_written(*forms), unknown=beside)
            )
    for name, run in COMPUTED.items():
        for layers in ((0, 1, 2), (2,)):
            found[f"{name}, {len(layers)} layers"] = Entry(
                Change(kernel(run, layers), truth=unknown("conservative"))
            )
    found["fewer keys than tokens"] = Entry(
        Change(
            kernel(pooled_keys),
            refused=("direct", "rollout", "all-grad", "last-grad", "attention-grad-cam"),
        )
    )
    found["fewer keys in the last layer"] = Entry(
        Change(
            kernel(pooled_keys, (2,)),
            refused=("direct", "rollout", "all-grad", "last-grad", "attention-grad-cam"),
        )
    )
    return found


# Between layers


def from_below(what: str) -> Any:
    """Keys, values or logits of the first layer in the later ones as well."""

    def make(place: Place) -> None:
        kept: dict[str, Tensor] = {}
        count = [0]

        def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            count[0] += 1
            if count[0] % 3 == 1:
                kept.update(k=k, v=v, z=plain(q, k, scale))
                return fused(q, k, v, scale)
            if what == "keys":
                return fused(q, kept["k"], v, scale)
            if what == "values":
                return fused(q, k, v + 0.5 * kept["v"], scale)
            if what == "values alone":
                return fused(q, k, kept["v"], scale)
            return softmax(plain(q, k, scale) + 0.5 * kept["z"]) @ v

        def start(*_: Any) -> None:
            count[0] = 0

        blocks(place)[0].register_forward_pre_hook(start)
        kernel(run)(place)

    return make


def between() -> Entries:
    """What layers share."""
    return {
        f"the first layer's {what}": Entry(
            Change(
                from_below(what), truth=None if what != "logits" else lambda *_: lambda method: None
            )
        )
        for what in ("keys", "values", "values alone", "logits")
    }


def families() -> dict[str, Entries]:
    """By name."""
    return {
        "attention forms": of_form(),
        "attention code": as_other_code(),
        "values and outputs": round_about(),
        "between layers": between(),
    }
