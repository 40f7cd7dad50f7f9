"""What is read is known because it is what the library returned: how much may differ, of what."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import UnsupportedModelError
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


# what a method reads -> the module whose output is scaled, the method, and by how much
READ: dict[str, tuple[str, Any, float, float]] = {
    "a row": ("attn", attr.LastGradAttention, 5e-7, 2e-6),
    "all rows": ("attn", attr.AllGradAttention, 2e-7, 5e-6),
    "all rows, rollout": ("attn", attr.AttentionRollout, 2e-7, 5e-6),
    "the whole": ("attn", attr.ConservativePropagation, 5e-7, 2e-6),
    "the shares": ("attn", attr.DirectContribution, 1e-7, 1e-3),
    "a block's sum": ("", attr.DirectContribution, 2e-8, 2e-5),
    "a patch's block": ("", attr.PatchSimilarity, 2e-8, 2e-5),
}


@pytest.mark.parametrize("what", READ)
def test_a_part_that_differs_by_more_than_rounding_is_refused(what: str) -> None:
    path, method, less, more = READ[what]
    for factor, known in ((1 + less, True), (1 + more, False)):
        small = builders.open_clip_vit()
        small.model.double()
        block: Any = small.model.visual.transformer.resblocks[2 if "patch" in what else 1]
        module = block.get_submodule(path)
        module.forward = partial(scaled, module.forward, factor)
        made = method(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
        images = small.images(2, torch.float64)
        if known:
            made.attribute_targets(images)
        else:
            with pytest.raises(UnsupportedModelError, match=r"layer \d of the vision tower"):
                made.attribute_targets(images)


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
