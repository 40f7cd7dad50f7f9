"""An attention of another form is explained as it computes: A is what multiplies the values."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.models.clip.modeling_clip import CLIPAttention

from tests.attr import running
from tests.attr.running import FEW, USUAL, Form, usual

SDPA = F.scaled_dot_product_attention
COUNT, HEADS, WIDTH = 17, 4, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


# What the forms are made of

ANGLES = torch.arange(COUNT)[:, None] * 10.0 ** -torch.arange(0, 1, 2 / WIDTH)
COS, SIN = (f(ANGLES.repeat(1, 2).double()) for f in (torch.cos, torch.sin))
TURNS = torch.polar(torch.ones_like(ANGLES.double()), ANGLES.double())
BIAS = noise(1, HEADS, COUNT, COUNT)
MIX = noise(HEADS, HEADS).softmax(-1) + 0.1
SINK, SINK_KEY = noise(1, HEADS, 1, 1), noise(1, HEADS, 1, WIDTH)
LAMBDA = 0.4


def rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * COS + torch.cat([-second, first], -1) * SIN


def turned(x: Tensor) -> Tensor:
    """The rotation once more, plane by plane."""
    planes = torch.complex(*x.chunk(2, -1)) * TURNS
    return torch.cat([planes.real, planes.imag], -1)


def normed(x: Tensor) -> Tensor:
    return 3 * F.normalize(x, dim=-1)


def near() -> Tensor:
    """Windows of four patches that also see CLS, which sees all."""
    window = (torch.arange(COUNT) - 1) // 4
    seen = window[:, None] == window
    seen[0] = seen[:, 0] = True
    return seen


def masked(_: Any, q: Tensor, k: Tensor) -> Tensor:
    return logits(q, k).masked_fill(~near(), -torch.inf).softmax(-1)


# Sinks, and weights without a softmax


def with_column(_: Any, q: Tensor, k: Tensor) -> Tensor:
    column = SINK.expand(len(q), -1, q.shape[2], 1)
    return torch.cat([logits(q, k), column], -1).softmax(-1)[..., :-1]


def with_key(_: Any, q: Tensor, k: Tensor) -> Tensor:
    every = torch.cat([k, SINK_KEY.expand(len(k), -1, -1, -1)], 2)
    return logits(q, every).softmax(-1)[..., :-1]


def with_zero_value(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = torch.cat([k, SINK_KEY.expand(len(k), -1, -1, -1)], 2)
    return SDPA(q, every, F.pad(v, (0, 0, 0, 1)))


# Sums of attentions


def halves(q: Tensor, k: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(q.chunk(2, -1), k.chunk(2, -1), strict=True))


def difference(_: Any, q: Tensor, k: Tensor) -> Tensor:
    first, second = (logits(*pair).softmax(-1) for pair in halves(q, k))
    return first - LAMBDA * second


def two_kernels(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = (SDPA(*pair, v) for pair in halves(q, k))
    return first - LAMBDA * second


def sclip(_: Any, q: Tensor, k: Tensor) -> Tensor:
    return logits(q, q).softmax(-1) + logits(k, k).softmax(-1)


# The same in other operations


def by_bmm(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    folded = [x.flatten(0, 1) for x in (q, k, v)]
    start = torch.zeros(len(folded[0]), COUNT, COUNT, dtype=q.dtype)
    products = torch.baddbmm(start, folded[0], folded[1].mT, beta=0, alpha=WIDTH**-0.5)
    return torch.bmm(products.softmax(-1), folded[2]).view_as(q)


def mixing(m: Any, q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("gh,bhij->bgij", MIX, usual(m, q, k))


def mixed(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (usual(m, q, k).movedim(1, -1) @ MIX.T).movedim(-1, 1) @ v


def twice(x: Tensor) -> Tensor:
    """The first two heads, each for two heads of queries."""
    return x[:, :2].repeat_interleave(2, 1)


def form(weights: Any, kernel: Any = None, must: bool = True, values: Any = None) -> Form:
    """A form whose kernel is by default the plain product with the values."""
    kernel = kernel or (lambda m, q, k, v: weights(m, q, k) @ v)
    return Form(weights, kernel, values or (lambda v: v), must)


def of_keys(change: Any) -> Any:
    return lambda m, q, k: usual(m, q, change(k))


def of_both(change: Any) -> Any:
    return lambda m, q, k: usual(m, change(q), change(k))


FORMS: dict[str, Form] = {
    "another scale": form(
        lambda m, q, k: torch.softmax(0.1 * q @ k.mT, -1),
        lambda m, q, k, v: SDPA(q, k, v, scale=0.1),
    ),
    "rotary": form(of_both(turned), lambda m, q, k, v: SDPA(rotated(q), rotated(k), v)),
    "norms": form(of_both(normed)),
    "baddbmm": form(usual, by_bmm),
    "dropout": form(usual, lambda m, q, k, v: F.dropout(usual(m, q, k), 0.1, False) @ v),
    "bias": form(
        lambda m, q, k: (logits(q, k) + BIAS).softmax(-1),
        lambda m, q, k, v: SDPA(q, k, v, attn_mask=BIAS),
    ),
    "window, mask": form(masked, lambda m, q, k, v: SDPA(q, k, v, attn_mask=near())),
    "window, logits": form(masked),
    "sink, column": form(with_column),
    "sink, key": form(with_key, with_zero_value),
    "talking heads": form(mixing, mixed),
    "grouped, repeated": form(
        of_keys(twice), lambda m, q, k, v: SDPA(q, twice(k), twice(v)), values=twice
    ),
    "grouped, enable_gqa": form(
        of_keys(twice),
        lambda m, q, k, v: SDPA(q, k[:, :2], v[:, :2], enable_gqa=True),
        values=twice,
    ),
    "differential": form(difference),
    "differential, two kernels": form(difference, two_kernels, must=False),
    "sclip": form(sclip),
    "sclip, two kernels": form(sclip, lambda m, q, k, v: SDPA(q, q, v) + SDPA(k, k, v), must=False),
}


def attend(kernel: Any, module: Any, hidden_states: Tensor, *_: Any, **options: Any) -> Any:
    """The forward of somebody's attention."""
    q, k, v = running.split(module, hidden_states)
    return running.merged(module, kernel(module, q, k, v))


def by_subclass(module: Any, own: Form) -> None:
    def forward(self: Any, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        return attend(own.kernel, self, hidden_states)

    module.__class__ = type("OwnAttention", (CLIPAttention,), {"forward": forward})


def by_patch(module: Any, own: Form) -> None:
    module.forward = partial(attend, own.kernel, module)


WAYS: dict[str, tuple[Any, slice]] = {
    "all, subclass": (by_subclass, slice(0, 3)),
    "last, patched": (by_patch, slice(2, 3)),
}


def check(model: Any, clip: Any, forms: list[Form], must: bool, **options: Any) -> None:
    plain = running.Plain(model, running.images(), forms)
    similarity = running.similarity_of(clip)
    # the attention that runs is the one that is written plainly
    torch.testing.assert_close(similarity(running.images()), plain.scores, **options)
    answers = running.verdicts(FEW, similarity, plain, tolerance=1e-4 if options else 1e-6)
    (running.assert_right if must else running.assert_right_or_refused)(answers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMS)
def test_an_attention_of_another_form_is_explained_as_it_computes(name: str, way: str) -> None:
    """A sink is no token: its column is not in A, and rollout divides by what is left of a row."""
    small, own = running.double(), FORMS[name]
    change, which = WAYS[way]
    forms = [USUAL] * 3
    for index in range(3)[which]:
        change(running.layers_of(small.model)[index].self_attn, own)
        forms[index] = own
    check(small.model, small.load(), forms, own.must)


# Through transformers' own registry


@pytest.fixture(autouse=True)
def registry_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is nobody else's."""
    own = dict(AttentionInterface._global_mapping)
    monkeypatch.setattr(AttentionInterface, "_global_mapping", own)


def registered(name: str, own: Form) -> str:
    def function(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        return own.kernel(module, query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, function)
    return name


INTERFACE = {
    "sclip": FORMS["sclip"],
    "sclip_two_kernels": FORMS["sclip, two kernels"],
    "clearclip": form(lambda m, q, k: usual(m, q, q), lambda m, q, k, v: SDPA(q, q, v)),
    "kk": form(lambda m, q, k: usual(m, k, k)),
    "temperature": form(
        lambda m, q, k: torch.softmax(2 * logits(q, k), -1),
        lambda m, q, k, v: SDPA(q, k, v, scale=2 * m.scale),
    ),
}


@pytest.mark.parametrize("which", ["last", "all", "last, by one function"])
@pytest.mark.parametrize("name", INTERFACE)
def test_a_layer_with_a_registered_attention_is_explained_as_it_computes(
    name: str, which: str
) -> None:
    """SCLIP and ClearCLIP change the last layer alone, here by its configuration or by asking."""
    small, own = running.double(), INTERFACE[name]
    forms = [own if which == "all" else USUAL] * 2 + [own]
    layers = running.layers_of(small.model)
    if which == "last, by one function":
        last = layers[-1].self_attn
        asking = form(None, lambda m, *qkv: (own if m is last else USUAL).kernel(m, *qkv))
        small.model.set_attn_implementation(registered(f"asking_{name}", asking))
    else:
        for layer in layers[0 if which == "all" else 2 :]:
            layer.self_attn.config = copy.copy(layer.self_attn.config)
            layer.self_attn.config._attn_implementation = registered(f"own_{name}", own)
    check(small.model, small.load(), forms, own.must)


def test_an_output_map_that_all_layers_share_is_explained() -> None:
    """One `nn.Linear` object in every layer, and one for queries and keys."""
    small = running.double()
    layers = running.layers_of(small.model)
    for layer in layers:
        layer.self_attn.out_proj = layers[0].self_attn.out_proj
        layer.self_attn.k_proj = layer.self_attn.q_proj
    plain = running.Plain(small.model, running.images())
    answers = running.verdicts([*FEW, "grad-eclip"], running.similarity_of(small.load()), plain)
    running.assert_right(answers)
