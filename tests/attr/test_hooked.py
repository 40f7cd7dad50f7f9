"""A changed model is explained as it computes now, or refused: a part of the cells of `hooked`."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import UnsupportedModelError
from tests import builders
from tests.attr import cases, hooked


def similarity_of(small: builders.Small) -> ClipSimilarity:
    return ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))


EVERY = 11  # no divisor of the number of methods, so that all of them take their turn


@pytest.mark.parametrize("name", [*hooked.TOWERS, *hooked.CONVOLUTIONAL])
def test_a_changed_model_is_explained_as_it_computes_or_refused(name: str) -> None:
    cells = islice(hooked.cells(name), 3, None, EVERY)
    answers = [(*cell, hooked.verdict_of(name, *cell)) for cell in cells]
    wrong = [answer for answer in answers if answer[-1] not in ("right", "refused")]
    assert not wrong
    counts = Counter(answer[-1] for answer in answers)
    assert counts["right"] > counts["refused"] / 2 > 0


@pytest.mark.parametrize("where", ["global", "attention function"])
def test_what_changes_every_attention_is_refused(where: str) -> None:
    small = builders.hf_vit()
    similarity = similarity_of(small)
    methods = [method for method in attr.METHODS.values() if "vit" in method.towers]
    if where == "global":
        handle = register_module_forward_hook(lambda module, args, out: None)
    else:
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        def flat(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            return sdpa_attention_forward(module, 0 * query, *args, **kwargs)

        AttentionInterface.register("flat", flat)
        small.model.set_attn_implementation("flat")
    try:
        for method in methods:
            with pytest.raises(
                UnsupportedModelError, match=r"runs in every module|code of its own"
            ):
                method(similarity).attribute(small.images(), target=0)
    finally:
        if where == "global":
            handle.remove()


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "open_clip_resnet"])
def test_scores_are_the_models_own_where_its_class_was_patched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole model, which a forward that stops early would never run."""
    small = cases.BUILDERS[name]()
    similarity = similarity_of(small)
    kind, part = type(small.model), "encode_image" if name != "hf_vit" else "get_image_features"
    own = getattr(kind, part)

    def turned(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(self, *args, **kwargs)
        if isinstance(found, Tensor):
            return found.flip(-1)
        found.pooler_output = found.pooler_output.flip(-1)
        return found

    plain = similarity(small.images())
    monkeypatch.setattr(kind, part, turned)
    expected = similarity(small.images())
    assert not torch.allclose(expected, plain)
    for method in attr.METHODS.values():
        if similarity.clip.kind in method.towers:
            _, scores = method(similarity).attribute_targets(small.images(), return_scores=True)
            torch.testing.assert_close(scores, expected.detach())


NONLINEAR = [
    torch.atan, torch.sinh, torch.expm1, torch.erf, torch.sigmoid, torch.square, torch.cos,
    lambda x: x.logsumexp(-1, keepdim=True) + x,
    lambda x: nn.functional.instance_norm(x.mT).mT,
    lambda x: nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    lambda x: 1 / (3 + x * 0.01), lambda x: x * x.detach().abs() * x, lambda x: x.cumprod(-1),
    lambda x: x.clone().index_copy_(1, torch.tensor([0]), x[:, :1].exp()), lambda x: x.softmax(-1),
]  # fmt: skip


@pytest.mark.parametrize("function", NONLINEAR)
def test_conservative_refuses_what_is_not_linear_in_a_hook(function: Any) -> None:
    small = builders.hf_vit()
    mlp: Any = small.model.vision_model.encoder.layers[1].mlp
    mlp.register_forward_hook(lambda module, args, out: function(out))
    similarity = similarity_of(small)
    with pytest.raises(UnsupportedModelError, match=r"computes an? \w+, of which it is not known"):
        attr.ConservativePropagation(similarity).attribute(small.images(), target=0)
