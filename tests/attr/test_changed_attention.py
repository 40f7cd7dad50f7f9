"""SCLIP, ClearCLIP and their like, registered with transformers, are explained as they compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from tests.attr import running
from tests.attr.running import FEW, USUAL, Form, usual

SDPA = F.scaled_dot_product_attention


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


def sclip(_: Any, q: Tensor, k: Tensor) -> Tensor:
    return logits(q, q).softmax(-1) + logits(k, k).softmax(-1)


def form(weights: Any, kernel: Any = None, must: bool = True, values: Any = None) -> Form:
    """A form whose kernel is by default the plain product with the values."""
    kernel = kernel or (lambda m, q, k, v: weights(m, q, k) @ v)
    return Form(weights, kernel, values or (lambda v: v), must)


def check(model: Any, clip: Any, forms: list[Form], must: bool, **options: Any) -> None:
    plain = running.Plain(model, running.images(), forms)
    similarity = running.similarity_of(clip)
    # the attention that runs is the one that is written plainly
    torch.testing.assert_close(similarity(running.images()), plain.scores, **options)
    answers = running.verdicts(FEW, similarity, plain, tolerance=1e-4 if options else 1e-6)
    (running.assert_right if must else running.assert_right_or_refused)(answers)


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
    "sclip": form(sclip),
    "sclip_two_kernels": form(sclip, lambda m, q, k, v: SDPA(q, q, v) + SDPA(k, k, v), must=False),
    "clearclip": form(lambda m, q, k: usual(m, q, q), lambda m, q, k, v: SDPA(q, q, v)),
    "kk": form(lambda m, q, k: usual(m, k, k)),
    "temperature": form(
        lambda m, q, k: torch.softmax(2 * logits(q, k), -1),
        lambda m, q, k, v: SDPA(q, k, v, scale=2 * m.scale),
    ),
}


@pytest.mark.parametrize("which", ["last", "last, by one function"])
@pytest.mark.parametrize("name", INTERFACE)
def test_a_layer_with_a_registered_attention_is_explained_as_it_computes(
    name: str, which: str
) -> None:
    """SCLIP and ClearCLIP change the last layer alone, here by its configuration or by asking."""
    small, own = running.double(), INTERFACE[name]
    forms = [USUAL, USUAL, own]
    layers = running.layers_of(small.model)
    if which == "last, by one function":
        last = layers[-1].self_attn
        asking = form(None, lambda m, *qkv: (own if m is last else USUAL).kernel(m, *qkv))
        small.model.set_attn_implementation(registered(f"asking_{name}", asking))
    else:
        last = layers[-1].self_attn
        last.config = copy.copy(last.config)
        last.config._attn_implementation = registered(f"own_{name}", own)
    check(small.model, small.load(), forms, own.must)
