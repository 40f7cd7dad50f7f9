"""A changed model is explained as it computes now, or refused: a part of the cells of `hooked`."""

from collections import Counter
from collections.abc import Iterator
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
from tests.attr.changes import halved, placed
from tests.attr.kinds import HARD, KINDS, NEW, OLD


def similarity_of(small: builders.Small) -> ClipSimilarity:
    return ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))


@pytest.fixture(autouse=True)
def graphs_of_the_shared_models_are_made_anew() -> Iterator[None]:
    """What was changed and put back has another version, which a graph kept before would see."""
    yield
    cases.seen.cache_clear()


# every n-th cell, which no number of methods divides, so that all of them take their turn; before
# a release `python -m tests.attr.hooked` tries them all
SETS = {"plain": (OLD, 199), "hidden": (NEW, 659), "hard": (HARD, 1289)}


@pytest.mark.parametrize("kinds", SETS)
@pytest.mark.parametrize("name", [*hooked.TOWERS, *hooked.CONVOLUTIONAL])
def test_a_changed_model_is_explained_as_it_computes_or_refused(name: str, kinds: str) -> None:
    tried, every = SETS[kinds]
    cells = islice(hooked.cells(name, tried), 3, None, every)
    answers = [(*cell, hooked.verdict_of(name, *cell)) for cell in cells]
    wrong = [answer for answer in answers if answer[-1] not in ("right", "refused", "no model")]
    assert not wrong
    counts = Counter(answer[-1] for answer in answers)
    assert counts["right"] > 2 * counts["refused"]


# cells that were once wrong, which the strides above leave out
FOUND = [
    ("pe_core", "visual.trunk.attn_pool.q", "lora", "attention-grad-cam pooled"),
    ("pe_core", "visual.trunk.attn_pool.kv", "functional_call", "legrad"),
    ("pe_core", "visual.trunk.attn_pool.mlp.fc2", "all but the first token", "pairs"),
    ("siglip", "vision_model.encoder.layers.2.self_attn", "attribute num_heads", "last-grad"),
    ("siglip", "vision_model.embeddings", "class, enable_grad", "conservative"),
    ("hf_vit", "vision_model.encoder.layers.0", "class, enable_grad", "direct"),
    ("hf_vit", "vision_model.encoder.layers.1.mlp.activation_fn", "after, squared", "direct token"),
    ("siglip", "vision_model.head.mlp.activation_fn", "after, squared", "direct"),
    ("siglip", "vision_model.head.attention", "callable: mask of rows", "legrad"),
    (
        "open_clip_vit",
        "visual.transformer.resblocks.2.ls_1",
        "gradient, none",
        "last-grad averaged",
    ),
    ("eva02", "visual.trunk.blocks.2.attn.norm", "one token", "patches"),
    ("eva02", "visual.trunk.head", "of many tokens", "pairs"),
]


@pytest.mark.parametrize("cell", FOUND)
def test_a_cell_that_was_wrong_is_right_or_refused(cell: tuple[str, str, str, str]) -> None:
    assert hooked.verdict_of(*cell) in ("right", "refused")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("registered attention", "q_proj"),
        ("eager attention, half", "q_proj"),
        ("function, attention", "q_proj"),
        ("mode, attention", "q_proj"),
        ("function, attention's output", "v_proj"),
        ("mode, attention's output", "v_proj"),
        ("function, linear", ("_proj", "fc1", "fc2", "visual_projection")),
        ("mode, linear", ("_proj", "fc1", "fc2", "visual_projection")),
        ("function, layer_norm", ("norm", "norm1", "norm2")),
        ("mode, layer_norm", ("norm", "norm1", "norm2")),
    ],
)
def test_what_is_wanted_of_changed_functions_is_what_changed_weights_give(
    change: str, parts: str | tuple[str, ...]
) -> None:
    model: Any = cases.built("hf_vit", torch.float64).model
    kind, methods = KINDS[change], ["all-grad", "legrad", "direct", "conservative"]
    with placed(model, "") as place:
        for make in kind.instead or (kind.make,):
            make(place)
        found = [hooked.wanted("hf_vit", method) for method in methods]
    plain = hooked.wanted("hf_vit", "all-grad")
    with placed(model, ""):
        for path, module in model.named_modules():
            if path.endswith(parts):
                for name, value in halved(module).items():
                    setattr(module, name, value)
        expected = [hooked.wanted("hf_vit", method) for method in methods]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found[0] is not None
    assert plain is not None
    assert not torch.allclose(plain, found[0])
    again = hooked.wanted("hf_vit", "all-grad")
    torch.testing.assert_close(again, plain, rtol=0, atol=0)  # all was undone


def test_what_only_looks_everywhere_changes_nothing() -> None:
    small = builders.hf_vit()
    similarity = similarity_of(small)
    methods = [m for n, m in cases.OWN.items() if "vit" in m.towers and n != "cam"]
    plain = [method(similarity).attribute(small.images(), target=0) for method in methods]
    handle = register_module_forward_hook(lambda module, args, out: None)
    try:
        for method, maps in zip(methods, plain, strict=True):
            found = method(similarity).attribute(small.images(), target=0)
            torch.testing.assert_close(found, maps)
    finally:
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
    for method in cases.OWN.values():
        if similarity.clip.kind in method.towers:
            _, scores = method(similarity).attribute_targets(small.images(), return_scores=True)
            torch.testing.assert_close(scores, expected.detach())


NONLINEAR = [
    torch.atan, torch.sinh, torch.expm1, torch.square, torch.cos,
    lambda x: x.logsumexp(-1, keepdim=True) + x,
    lambda x: nn.functional.instance_norm(x.mT).mT,
    lambda x: nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    lambda x: 1 / (3 + x * 0.01), lambda x: x * x.detach().abs() * x, lambda x: x.cumprod(-1),
    lambda x: x.clone().index_copy_(1, torch.tensor([0]), x[:, :1].exp()), lambda x: x.softmax(-1),
]  # fmt: skip


def test_conservative_refuses_what_is_not_linear_in_a_hook() -> None:
    small = builders.hf_vit()
    mlp: Any = small.model.vision_model.encoder.layers[1].mlp
    similarity = similarity_of(small)
    for function in NONLINEAR:
        handle = mlp.register_forward_hook(lambda module, args, out, f=function: f(out))
        with pytest.raises(UnsupportedModelError, match="is not linear"):
            attr.ConservativePropagation(similarity).attribute(small.images(), target=0)
        handle.remove()
