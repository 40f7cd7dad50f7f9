"""What is read is known because it is what the library returned: how much may differ, of what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import Any
from unittest.mock import patch

import pytest
import torch
from open_clip import transformer
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.attr import _engine
from captum_clip.errors import UnsupportedModelError
from captum_clip.models import library, tower_of
from captum_clip.models.library import may_be_left_out
from captum_clip.models.steps import ROUNDING
from captum_clip.recording import Recording
from tests import builders
from tests.attr import cases

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8)])
def test_each_image_may_differ_by_the_bound_of_its_type_and_no_more(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    assert ROUNDING == BOUNDS
    returned = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    returned = returned.to(dtype)
    for factor, known in ((0.95, True), (1.05, False)):
        made = returned.double().clone()
        made[1] *= 1 + factor * BOUNDS[dtype]
        record = Recording()
        record.compare("a part", made, returned)
        if known:
            record.verify("Method")
        else:
            with pytest.raises(UnsupportedModelError, match=r"^Method: a part of the model does"):
                record.verify("Method")


def test_what_is_no_number_in_the_librarys_own_output_is_left_to_the_map() -> None:
    """So is no number, but nothing of ours may be none where the library's is one."""
    record = Recording()
    record.compare("a part", torch.full((1, 4), torch.nan), torch.full((1, 4), torch.inf))
    record.verify("Method")
    record.compare("a part", torch.full((1, 4), torch.nan), torch.zeros(1, 4))
    with pytest.raises(UnsupportedModelError):
        record.verify("Method")


def test_tokens_that_are_changed_in_place_later_are_refused() -> None:
    record = Recording()
    tokens = record.watched(torch.zeros(1, 4))
    record.verify("Method")
    tokens += 1
    with pytest.raises(UnsupportedModelError, match="changed in place later"):
        record.verify("Method")


def scaled(forward: Any, factor: float, *args: Any, **kwargs: Any) -> Any:
    found = forward(*args, **kwargs)
    return (factor * found[0], *found[1:]) if isinstance(found, tuple) else factor * found


# what a method reads -> the module whose output is scaled, the method, and what it may differ by
# in double precision, which is a hundredth of that in single
READ: dict[str, tuple[str, Any, float]] = {
    "a row": ("attn", attr.LastGradAttention, 1e-6),
    "all rows": ("attn", attr.AllGradAttention, 4.32e-6),
    "all rows, rollout": ("attn", attr.AttentionRollout, 4.32e-6),
    "the whole": ("attn", attr.ConservativePropagation, 1e-6),
    "the shares": ("attn", attr.DirectContribution, 4.46e-6),
    "a block's sum": ("", attr.DirectContribution, 9e-7),
    "a patch's block": ("", attr.PatchSimilarity, 8.1e-7),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("what", READ)
def test_a_part_that_differs_by_more_than_rounding_is_refused(
    what: str, dtype: torch.dtype
) -> None:
    path, method, most = READ[what]
    most *= BOUNDS[dtype] / 1e-6
    for factor, known in ((1 + 0.96 * most, True), (1 + 1.04 * most, False)):
        small = builders.open_clip_vit()
        small.model.to(dtype)
        block: Any = small.model.visual.transformer.resblocks[2 if "patch" in what else 1]
        module = block.get_submodule(path)
        module.forward = partial(scaled, module.forward, factor)
        made = method(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
        images = small.images(2, dtype)
        if known:
            made.attribute_targets(images)
        else:
            with pytest.raises(UnsupportedModelError, match=r"layer \d of the vision tower"):
                made.attribute_targets(images)


@pytest.mark.parametrize(("share", "known"), [(5e-7, True), (5e-6, False)])
def test_a_score_that_reads_more_than_the_projection_is_told(share: float, known: bool) -> None:
    embedding = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    projected = embedding @ torch.tensor([[0.0], [1.0], [0.5]], dtype=torch.float64)
    scores = projected[:, 0] + share * embedding[:, 0]
    assert _engine._leads_through(scores, projected, embedding) is known


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "siglip"])
@pytest.mark.parametrize("part", ["attention", "block"])
def test_a_hook_that_works_in_place_has_the_maps_of_one_that_does_not(name: str, part: str) -> None:
    """It changes what follows, and nothing that was recorded before it."""
    small = cases.BUILDERS[name]()
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    layers = similarity.clip.tower.layers  # type: ignore[attr-defined]
    methods = [attr.AllGradAttention, attr.LastGradAttention, attr.AttentionRollout]
    methods += [attr.ConservativePropagation] * (part == "attention")
    methods += [attr.LeGrad] * (name != "siglip")

    def halve(in_place: bool, module: Any, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if in_place:
            first *= 0.5
            return None
        return (0.5 * first, *out[1:]) if isinstance(out, tuple) else 0.5 * first

    for method in methods:
        maps = []
        for in_place in (False, True):
            handles = [
                getattr(each, part).register_forward_hook(partial(halve, in_place))
                for each in layers
            ]
            maps.append(method(similarity).attribute_targets(small.images()))
            for handle in handles:
                handle.remove()
        torch.testing.assert_close(*maps)


@contextmanager
def a_hook(place: Any, *, everywhere: bool = False) -> Iterator[None]:
    register = register_module_forward_hook if everywhere else place.register_forward_hook
    handle = register(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def another_class(block: Any) -> Iterator[None]:
    own = type(block)
    block.__class__ = type("Own", (own,), {})
    yield
    block.__class__ = own


class Passive(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def mine(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError


# what stands in the way of an early stop -> how it comes about, at the last block of OpenCLIP's
TOUCHED: dict[str, Callable[[Any], Any]] = {
    "a hook": a_hook,
    "a hook everywhere": partial(a_hook, everywhere=True),
    "an attribute": lambda block: patch.object(block, "forward", block.forward),
    "a function mode": lambda _: Passive(),
    "a dispatch mode": lambda _: Watching(),
    "a function of torch": lambda _: patch.object(F, "layer_norm", mine),
    "a forward": lambda block: patch.object(type(block), "forward", mine),
    "a wrapped forward": lambda block: patch.object(
        type(block), "forward", torch.enable_grad()(type(block).forward)
    ),
    "a partial method": lambda block: patch.object(type(block), "forward", partialmethod(mine)),
    "another method": lambda block: patch.object(type(block), "attention", mine),
    "a function of its file": lambda _: patch.object(transformer, "_expand_token", mine),
    "another class": another_class,
    "a call": lambda _: patch.object(nn.Module, "__call__", mine),
}


@pytest.mark.parametrize("what", TOUCHED)
def test_a_forward_is_left_early_only_where_nobody_touched_its_rest(what: str) -> None:
    visual: Any = builders.open_clip_vit().model.visual
    rest = tower_of(visual).left_out
    assert may_be_left_out(rest)
    with TOUCHED[what](visual.transformer.resblocks[-1]):
        assert not may_be_left_out(rest)
    assert may_be_left_out(rest)


def test_a_last_attention_with_settings_of_its_own_has_no_witness() -> None:
    model = builders.hf_vit().model
    tower: Any = tower_of(model)
    assert tower.witness is tower.layers[-2]
    attention: Any = tower.layers[-1].attention
    attention.is_causal = not attention.is_causal
    assert tower.witness is None


class Between(transformer.Transformer):  # type: ignore[misc]
    """A library's encoder that does something between its blocks."""

    def forward(self, x: Any, attn_mask: Any = None) -> Any:
        for index, block in enumerate(self.resblocks):
            x = block(1.5 * x if index == len(self.resblocks) - 1 else x)
        return x


def test_what_happens_before_a_last_block_that_is_not_run_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_PACKAGES", {*library._PACKAGES, __name__})
    small = builders.open_clip_vit()
    visual: Any = small.model.visual
    visual.transformer.__class__ = Between
    assert may_be_left_out(tower_of(visual).left_out)
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    with pytest.raises(UnsupportedModelError, match="what enters layer 2 of the vision tower"):
        attr.DirectContribution(similarity).attribute(small.images(), target=0)


def test_a_block_without_one_of_its_branches_is_seen() -> None:
    """Nothing stands for what did not run, neither in the sum nor in what bounds it."""
    small = builders.hf_vit()
    block = small.model.vision_model.encoder.layers[1]

    def forward(hidden_states: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
        attended, _weights = block.self_attn(block.layer_norm1(hidden_states), attention_mask=None)
        return 2 * hidden_states + attended

    block.forward = forward
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    with pytest.raises(UnsupportedModelError, match="layer 1 of the vision tower"):
        attr.DirectContribution(similarity).attribute(small.images(), target=0)


def test_one_image_of_a_batch_is_enough() -> None:
    small = builders.hf_vit()
    attention = small.model.vision_model.encoder.layers[1].self_attn

    def second(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        changed = out[0].clone()
        changed[1, 3] *= 1.5  # a row that CLS does not read here
        return (changed, *out[1:])

    own = attention.forward
    attention.forward = lambda *a, **k: second(attention, a, k, own(*a, **k))
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    images = small.images(3)
    with pytest.raises(UnsupportedModelError, match="the attention of layer 1"):
        attr.AllGradAttention(similarity).attribute(images, target=0)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "open_clip_resnet", "siglip"])
def test_weights_of_inference_mode_have_the_same_maps_or_one_sentence(name: str) -> None:
    small, images = cases.BUILDERS[name](), cases.images(name)
    target = targets.embedding(cases.embeddings().float())
    similarity = ClipSimilarity(small.load(), target)
    methods = {n: m for n, m in attr.METHODS.items() if similarity.clip.kind in m.towers}
    methods.pop("cam", None)
    plain = {n: m(similarity).attribute_targets(images) for n, m in methods.items()}
    with torch.inference_mode():
        for module in small.model.modules():
            for path, value in module.named_parameters(recurse=False):
                setattr(module, path, nn.Parameter(value.clone(), requires_grad=False))
        inputs = images.clone()
    without = {"rollout", "direct", "patches", "layer", "grad-cam"}
    for method, maps in plain.items():
        run = partial(methods[method](similarity).attribute_targets, inputs)
        if method in without:
            torch.testing.assert_close(run(), maps)
        else:
            with pytest.raises(UnsupportedModelError, match=r"made under torch.inference_mode\(\)"):
                run()


DEVICES = [*cases.CONTRACT, "hf_vit", "open_clip_vit", "open_clip_vit_mean", "open_clip_custom_vit"]


@pytest.mark.parametrize("name", [*DEVICES, "open_clip_resnet", "timm_convnext"])
def test_no_tensor_is_made_without_a_device(name: str) -> None:
    """On a GPU one of the CPU's would meet the model's; here the default is no device at all."""
    similarity, images = cases.similarity(name), cases.images(name)
    clip, pairs = similarity.clip, {}
    if clip.kind == "vit":
        pairs = {"pairs": attr.DirectInteraction(attr_pairs(clip))}
    made = {n: m(similarity) for n, m in attr.METHODS.items() if clip.kind in m.towers}
    made.pop("cam", None)  # another library's
    plain = {n: m.attribute_targets(images) for n, m in made.items()}
    with torch.device("meta"):
        for method, maps in plain.items():
            found = made[method].attribute_targets(images)
            assert found.device.type == "cpu"
            torch.testing.assert_close(found, maps, msg=method)
        vectors: Any = made["direct"].vectors(images)
        assert vectors.device.type == "cpu"
        for each in pairs.values():
            assert each.attribute((images, images.flip(0))).device.type == "cpu"


def attr_pairs(clip: Any) -> Any:
    from captum_clip import ClipPairSimilarity

    return ClipPairSimilarity(clip, "image")
