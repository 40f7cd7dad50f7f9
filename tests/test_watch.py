"""Attention is read at its kernel, whichever code runs it: weights, values, heads' outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip.errors import UnsupportedModelError
from captum_clip.models import Attention
from captum_clip.models.attentions import PooledToken
from captum_clip.recording.hooks import Watch
from captum_clip.recording.reads import AttentionRead
from tests.samples import normal

SDPA = F.scaled_dot_product_attention
B, HEADS, S, D = 2, 4, 5, 3
Q, K, V = (normal(B, HEADS, S, D, seed=seed).double() for seed in range(3))
FLOAT_MASK = normal(B, 1, S, S, seed=3).double()
BOOL_MASK = FLOAT_MASK.gt(-1) | torch.eye(S, dtype=torch.bool)
CAUSAL = torch.ones(S, S, dtype=torch.bool).tril()


def watched(run: Callable[[], Any], heads: int = HEADS) -> tuple[list[AttentionRead], Any]:
    """What is read of a function that runs in the place of an attention module, and its result."""
    watch, reads = Watch("vision tower"), list[AttentionRead]()
    watch.enter(Attention(nn.Identity(), heads), "the attention", reads.append)
    try:
        out = run()
        watch.leave()
    finally:
        watch.remove()
        assert torch.overrides._get_current_function_mode_stack() == []
    return reads, out


def of_weights(bias: Tensor | float = 0.0, scale: float = D**-0.5, key: Tensor = K) -> Tensor:
    return (Q @ key.mT * scale + bias).softmax(-1)


def flat(part: Tensor) -> Tensor:
    return part.flatten(0, 1)


def baddbmm() -> Tensor:
    bias = FLOAT_MASK.expand(-1, HEADS, -1, -1).flatten(0, 1)
    logits = torch.baddbmm(bias, flat(Q), flat(K).mT, alpha=D**-0.5)
    return torch.bmm(F.softmax(logits, dim=-1), flat(V)).unflatten(0, (B, HEADS))


def eager() -> Tensor:
    weights = F.softmax(Q @ K.mT * D**-0.5 + FLOAT_MASK, dim=-1, dtype=torch.float64)
    return torch.matmul(F.dropout(weights, 0.0, training=False), V)


HIDDEN = torch.zeros_like(FLOAT_MASK).masked_fill(~BOOL_MASK, -torch.inf)
AFTER = torch.zeros(S, S, dtype=torch.float64).masked_fill(~CAUSAL, -torch.inf)
# what runs, and the weights that it has
FORMS: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "fused": (lambda: SDPA(Q, K, V), of_weights()),
    "fused, scale": (lambda: SDPA(query=Q, key=K, value=V, scale=2.0), of_weights(scale=2.0)),
    "fused, float mask": (lambda: SDPA(Q, K, V, FLOAT_MASK), of_weights(FLOAT_MASK)),
    "fused, boolean mask": (lambda: SDPA(Q, K, V, attn_mask=BOOL_MASK), of_weights(HIDDEN)),
    "fused, causal": (lambda: SDPA(Q, K, V, is_causal=True), of_weights(AFTER)),
    "eager": (eager, of_weights(FLOAT_MASK)),
    "eager, one key for all heads": (
        lambda: (Q @ K[:, :1].mT * D**-0.5).softmax(-1) @ V[:, :1],
        of_weights(key=K[:, :1]),
    ),
    "baddbmm": (baddbmm, of_weights(FLOAT_MASK)),
}
VALUES = {"eager, one key for all heads": V[:, :1].expand_as(V)}
if "enable_gqa" in str(SDPA.__doc__):  # from PyTorch 2.5 on
    grouped = lambda: SDPA(Q, K[:, :2], V[:, :2], enable_gqa=True)  # noqa: E731
    FORMS["fused, grouped"] = grouped, of_weights(key=K[:, [0, 0, 1, 1]])
    VALUES["fused, grouped"] = V[:, [0, 0, 1, 1]]


@pytest.mark.parametrize("form", FORMS)
def test_a_read_has_the_weights_the_values_and_what_they_make(form: str) -> None:
    (run, weights), value = FORMS[form], VALUES.get(form, V)
    [read], out = watched(run)
    for row in (0, 2):  # of CLS, or of the end of a text
        of_row = replace(read, pooled=PooledToken(torch.full((B,), row)))
        torch.testing.assert_close(of_row.row(), weights[:, :, row])
    torch.testing.assert_close(read.matrix(), weights)
    torch.testing.assert_close(read.value, value)
    for made in (read.out, out):
        torch.testing.assert_close(made, weights @ value)
    assert read.obeys(1e-10)
    assert not replace(read, out=1.001 * read.out).obeys(1e-4)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("needs_weights", [True, False])
def test_torchs_own_module_is_read_inside(batch_first: bool, needs_weights: bool) -> None:
    module = nn.MultiheadAttention(12, HEADS, batch_first=batch_first, dtype=torch.float64).eval()
    tokens = normal(B, S, 12, seed=5).double()
    tokens = tokens if batch_first else tokens.transpose(0, 1)
    [read], _ = watched(lambda: module(tokens, tokens, tokens, need_weights=needs_weights))
    weights = module(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(read.matrix(), weights)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Q @ K.mT @ V, r"the attention of the vision tower shows no attention: neither"),
        (lambda: torch.sigmoid(Q @ K.mT) @ V, "shows no attention"),
        (lambda: torch._scaled_dot_product_attention_math(Q, K, V), "shows no attention"),
        (lambda: SDPA(SDPA(Q, K, V), K, V), "runs more than one attention, as windows do"),
        (lambda: (eager(), baddbmm()), "runs more than one attention"),
        (lambda: SDPA(flat(Q)[:7], flat(K)[:7], flat(V)[:7]), "7, 5, 3"),
    ],
)
def test_no_attention_or_two_are_refused(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{message}.*such as Occlusion"):
        watched(run)
