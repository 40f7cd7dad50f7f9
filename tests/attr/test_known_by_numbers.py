"""What is read is known because it is what the library returned: how much may differ, of what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.attr._call import Pass, _leads_through
from captum_clip.attr.additive import PooledRows
from captum_clip.errors import UnsupportedModelError
from captum_clip.models.rounding import ROUNDING
from captum_clip.models.steps import Direction
from captum_clip.recording.laws import verify
from captum_clip.recording.records import Recording
from tests import builders
from tests.attr import cases

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_each_image_may_differ_by_the_bound_of_its_type_and_no_more(
    dtype: torch.dtype,
) -> None:
    assert ROUNDING == BOUNDS
    returned = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    returned = returned.to(dtype)
    for factor, known in ((0.95, True), (1.05, False)):
        made = returned.double().clone()
        made[1] *= 1 + factor * BOUNDS[dtype]
        record = Recording()
        record.compare("a part", made, returned)
        if known:
            verify(record, "Method")
        else:
            with pytest.raises(UnsupportedModelError, match=r"^Method: a part of the model does"):
                verify(record, "Method")


def test_tokens_that_are_changed_in_place_later_are_refused() -> None:
    record = Recording()
    tokens = record.graph.watched(torch.zeros(1, 4))
    verify(record, "Method")
    tokens += 1
    with pytest.raises(UnsupportedModelError, match="of an attention in place"):
        verify(record, "Method")


def scaled(forward: Any, factor: float, *args: Any, **kwargs: Any) -> Any:
    found = forward(*args, **kwargs)
    return (factor * found[0], *found[1:]) if isinstance(found, tuple) else factor * found


# what a method reads -> the module whose output is scaled, the method, and what it may differ by
# in double precision, which is a hundredth of that in single
READ: dict[str, tuple[str, Any, float]] = {
    "the shares": ("attn", attr.DirectContribution, 4.46e-6),
    "a block's sum": ("", attr.DirectContribution, 9e-7),
    "a patch's block": ("", attr.PatchSimilarity, 8.1e-7),
}


@pytest.mark.parametrize("what", READ)
def test_a_part_that_differs_by_more_than_rounding_is_refused(what: str) -> None:
    path, method, most = READ[what]
    dtype = torch.float64
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


def explained(method: Any) -> Tensor:
    """Maps of a small model of its own."""
    small = builders.hf_vit()
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    maps: Tensor = method(similarity).attribute_targets(small.images(2))
    return maps


def test_a_score_that_is_not_the_cosine_of_the_embedding_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where somebody patches the class with a temperature, which no hook shows."""
    cosines = ClipSimilarity.score
    monkeypatch.setattr(ClipSimilarity, "score", lambda self, e: 1.01 * cosines(self, e))
    message = "LastGradAttention: the score of the vision tower does not return"
    with pytest.raises(UnsupportedModelError, match=message):
        explained(attr.LastGradAttention)


def test_a_sum_that_is_not_the_score_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever our own arithmetic takes apart must be what the forward function returned."""
    direction: Any = PooledRows.direction

    def too_long(rows: PooledRows) -> Direction:
        found: Direction = direction.fget(rows)
        return replace(found, scale=1.01 * found.scale)

    monkeypatch.setattr(PooledRows, "direction", property(too_long))
    message = "DirectContribution: the score of the vision tower does not return"
    with pytest.raises(UnsupportedModelError, match=message):
        explained(attr.DirectContribution)


@pytest.mark.parametrize(("share", "known"), [(5e-7, True), (5e-6, False)])
def test_a_score_that_reads_more_than_the_projection_is_told(share: float, known: bool) -> None:
    embedding = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    projected = embedding @ torch.tensor([[0.0], [1.0], [0.5]], dtype=torch.float64)
    run = Pass(Recording(), projected + share * embedding[:, :1], torch.zeros(1, 2).long())
    whole, inner = run.mixed(embedding, projected)
    assert whole is not None
    assert _leads_through(run, projected, inner, whole, embedding) is known


@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
@pytest.mark.parametrize("part", ["attention", "block"])
def test_a_hook_that_works_in_place_has_the_maps_of_one_that_does_not(name: str, part: str) -> None:
    """It changes what follows, and nothing that was recorded before it."""
    small = cases.BUILDERS[name]()
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    layers = similarity.clip.tower.layers
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
        changed[1, 0] *= 1.5
        return (changed, *out[1:])

    own = attention.forward
    attention.forward = lambda *a, **k: second(attention, a, k, own(*a, **k))
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    with pytest.raises(UnsupportedModelError, match="the attention of layer 1"):
        attr.DirectContribution(similarity).attribute(small.images(3), target=0)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_weights_of_inference_mode_are_refused_in_one_sentence(name: str) -> None:
    small, images = cases.BUILDERS[name](), cases.images(name)
    similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings().float()))
    with torch.inference_mode():
        for module in small.model.modules():
            for path, value in module.named_parameters(recurse=False):
                setattr(module, path, nn.Parameter(value.clone(), requires_grad=False))
        inputs = images.clone()
    for method in cases.OWN.values():
        if similarity.clip.kind in method.towers and method is not attr.CamFamily:
            with pytest.raises(UnsupportedModelError, match=r"made under torch.inference_mode\(\)"):
                method(similarity).attribute_targets(inputs)


DEVICES = ["hf_vit", "open_clip_vit_mean", "siglip", "open_clip_resnet"]


@pytest.mark.parametrize("name", DEVICES)
def test_no_tensor_is_made_without_a_device(name: str) -> None:
    """On a GPU one of the CPU's would meet the model's; here the default is no device at all."""
    similarity, images = cases.similarity(name), cases.images(name)
    clip, pairs = similarity.clip, {}
    if clip.kind == "vit":
        pairs = {"pairs": attr.DirectInteraction(attr_pairs(clip))}
    made = {n: m(similarity) for n, m in cases.OWN.items() if clip.kind in m.towers}
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
