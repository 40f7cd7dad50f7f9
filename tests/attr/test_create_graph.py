"""Maps with `create_graph`: those without it, in the graph of the model, with its derivatives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from captum_clip import ClipSimilarity, DirectContribution, TextSimilarity, attr, load_clip, targets
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from tests import builders
from tests.attr import cases, changes

FLOAT64 = torch.float64
READOUTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cls": ("hf_vit", "callable, layer=model", {}),
    "cls, depth token": ("open_clip_vit", "similarity", {"depth": "token"}),
    "cls, depth all": ("hf_vit", "callable, layer=model", {"depth": "all"}),
    "mean": ("open_clip_vit_mean", "similarity", {}),
    "probe": ("siglip", "callable, layer=tower", {}),
    "attention pool": ("open_clip_resnet", "callable, layer=model", {}),
}
IN_MATH = (
    cases.Case("AllGradAttention", {}),
    cases.Case("ConservativePropagation", {}),
)
OF_ATTENTION = (
    cases.Case("AttentionRollout", {}),
    cases.Case("PatchSimilarity", {"attention": "kk"}),
)


def some_parameters(clip: Any) -> tuple[Tensor, ...]:
    """Five parameters of a model's vision tower, from its first to its last."""
    parameters = [p for p in clip.vision.parameters() if p.numel() > 1]
    return tuple(parameters[index] for index in torch.linspace(0, len(parameters) - 1, 5).int())


def check_gradients(function: Callable[[], Any], parameters: tuple[Tensor, ...]) -> None:
    """All of a function's outputs along random directions, which torch draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options: Any = {"fast_mode": True, "eps": 1e-7, "atol": 1e-5, "check_undefined_grad": False}
        assert torch.autograd.gradcheck(lambda *_: function(), parameters, **options)


def everything(method: Any, inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Maps, scores, and the rest where there is one."""
    more = {"return_rest": True} if method.additive else {}
    return method.attribute_targets(inputs, return_scores=True, **more, **options)


def small_method(small: builders.Small, kind: str = "DirectContribution") -> Any:
    """A method on a small model of its own."""
    target = targets.embedding(cases.embeddings(2))
    return cases.METHODS[kind](ClipSimilarity(small.load(), target))


@pytest.mark.parametrize("readout", READOUTS)
def test_derivatives_of_direct_are_those_of_its_values(readout: str) -> None:
    """`gradcheck` of maps, scores and rest on every readout; the values are those without."""
    name, forward, options = READOUTS[readout]
    function, layer = cases.FORWARDS[forward](name, FLOAT64)
    method, images = DirectContribution(function, layer), cases.images(name, FLOAT64, batch=2)
    plain = everything(method, images, **options)
    assert not any(each.requires_grad for each in plain)
    torch.testing.assert_close(everything(method, images, create_graph=True, **options), plain)

    def explained() -> tuple[Tensor, ...]:
        return everything(method, images, create_graph=True, **options)

    check_gradients(explained, some_parameters(cases.adapter(name, FLOAT64)))


@pytest.mark.parametrize("chosen", [OF_ATTENTION, IN_MATH], ids=["of attention", "of gradients"])
def test_derivatives_of_other_methods_are_those_of_their_values(
    chosen: tuple[cases.Case, ...],
) -> None:
    """Attention alone in its fused kernel, gradients in one that torch differentiates twice."""
    images = cases.images("hf_vit", FLOAT64, batch=2)

    def explained() -> list[Tensor]:
        return [
            each
            for case, method in methods
            for each in everything(method, images, create_graph=True, **case.options)
        ]

    methods = [(case, case.kind(cases.similarity("hf_vit", FLOAT64))) for case in chosen]
    with sdpa_kernel(SDPBackend.MATH) if chosen is IN_MATH else nullcontext():
        check_gradients(
            lambda: tuple(explained()), some_parameters(cases.adapter("hf_vit", FLOAT64))
        )


def test_words_have_derivatives() -> None:
    """A text tower's maps are values of tokens."""
    clip = cases.adapter("hf_vit", FLOAT64)
    method = DirectContribution(TextSimilarity(clip, targets.image(clip, cases.images("hf_vit"))))
    ids, mask = clip.text_inputs(["a horse", "dogs"])

    def explained() -> tuple[Tensor, ...]:
        return everything(method, ids, additional_forward_args=mask, create_graph=True)

    parameters = cases.built("hf_vit", FLOAT64).model.text_model.encoder.layers[0].parameters()
    check_gradients(explained, tuple(parameters)[:4])


def test_images_are_in_the_graph_where_they_require_it() -> None:
    """With frozen parameters; with neither there is nothing to differentiate."""
    small = builders.hf_vit()
    small.model.requires_grad_(False)
    method, images = small_method(small), small.images()
    with pytest.raises(InputError, match="create_graph: no parameter and no image requires"):
        method.attribute(images, target=0, create_graph=True)
    maps = method.attribute(images.requires_grad_(), target=0, create_graph=True)
    assert torch.autograd.grad(maps.square().sum(), images)[0].abs().amax() > 0
    assert not method.attribute(images, target=0).requires_grad


def test_a_gradient_through_fused_attention_is_refused_in_a_sentence() -> None:
    """Before a loss is made of it."""
    method = attr.AllGradAttention(cases.similarity("hf_vit"))
    with pytest.raises(UnsupportedModelError, match=r"cannot differentiate .*sdpa_kernel"):
        method.attribute_targets(cases.images("hf_vit"), create_graph=True)


def test_a_method_that_leaves_the_graph_takes_none() -> None:
    """Not even CamFamily, which takes options of any name; nor is it anything but a flag."""
    for kind in (attr.LeGrad, attr.CamFamily):
        method = kind(cases.similarity("hf_vit"))
        with pytest.raises(TypeError, match=r"takes no create_graph \(its maps .* of direct"):
            method.attribute(cases.images("hf_vit"), target=0, create_graph=True)
    with pytest.raises(InputError, match="`create_graph` of True or False"):
        DirectContribution(cases.similarity("hf_vit")).attribute(
            cases.images("hf_vit"), target=0, create_graph="yes"
        )


# Models as they are while they are trained


def test_dropout_in_training_is_told() -> None:
    """Maps and rest are still the score, and the plain call refuses it as before."""
    small = builders.hf_vit(attention_dropout=0.2)
    small.model.train()
    method, told = small_method(small), r"in training mode with attention dropout 0\.2: each call"
    for attention in ("sdpa", "eager"):
        small.model.set_attn_implementation(attention)
        for depth in ("pooling", "token", "all"):
            with pytest.warns(UserWarning, match=told):
                made = everything(method, small.images(), create_graph=True, depth=depth)
            torch.testing.assert_close(made[0].sum((-2, -1)) + made[2], made[1])
    with pytest.raises(InputError, match=r"call model\.eval"):
        method.attribute(small.images(), target=0)


def test_checkpointing_is_refused() -> None:
    """By name, for a method that takes it otherwise."""
    small = builders.open_clip_vit()
    method = small_method(small)
    small.model.set_grad_checkpointing()
    method.attribute(small.images(), target=0)
    with pytest.raises(UnsupportedModelError, match="turn gradient checkpointing off"):
        method.attribute(small.images(), target=0, create_graph=True)


@pytest.mark.parametrize("name", ["projection", "lora"])
def test_gradients_are_those_of_the_whole_model_where_most_is_frozen(name: str) -> None:
    """The frozen parameters have none."""
    small = builders.hf_vit()
    trained = [small.model.visual_projection]
    if name == "lora":
        block = small.model.vision_model.encoder.layers[1].self_attn
        block.v_proj, block.out_proj = map(changes.Lora, (block.v_proj, block.out_proj))
        trained = [block.v_proj.a, block.v_proj.b, block.out_proj.a, block.out_proj.b]
    method, images = small_method(small), small.images()

    def gradients(depth: str) -> tuple[Tensor, ...]:
        maps = method.attribute_targets(images, create_graph=True, depth=depth)
        return torch.autograd.grad(maps.square().sum(), [module.weight for module in trained])

    for depth in ("pooling", "token", "all"):
        small.model.requires_grad_(True)
        wanted = gradients(depth)
        small.model.requires_grad_(False)
        for module in trained:
            module.requires_grad_()
        torch.testing.assert_close(gradients(depth), wanted)
        assert all(gradient.abs().amax() > 0 for gradient in wanted)


def test_autocast_and_half_precision_give_the_values_without() -> None:
    """And finite gradients of the model's own parameters."""
    for name in ("hf_vit", "open_clip_resnet"):
        small = builders.BUILDERS[name]()
        for dtype in (torch.float32, torch.bfloat16):
            small.model.to(dtype)
            method, images = small_method(small), small.images(dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                plain = method.attribute_targets(images)
                maps = method.attribute_targets(images, create_graph=True)
            torch.testing.assert_close(maps, plain)
            (gradient,) = torch.autograd.grad(
                maps.square().sum(), some_parameters(small.load())[:1]
            )
            assert gradient.isfinite().all()
            assert gradient.abs().amax() > 0


def test_a_score_that_reads_hidden_states_is_refused() -> None:
    """With a graph they lie in it, below the last block and in its way."""
    # a model of its own, since transformers leaves hooks on one that is asked for hidden states
    model: Any = cases.BUILDERS["hf_vit"]().model

    def forward(pixels: Tensor, layer: int) -> Tensor:
        out = model.vision_model(pixel_values=pixels, output_hidden_states=True)
        made: Tensor = model.visual_projection(out.pooler_output)[:, :2]
        return made + out.hidden_states[layer].mean(1)[:, :2]

    for layer, create_graph in product((0, 1), (False, True)):
        method = DirectContribution(partial(forward, layer=layer), model)
        with pytest.raises(CaptureError, match="the embedding"):
            method.attribute_targets(cases.images("hf_vit"), create_graph=create_graph)


def test_a_model_in_data_parallelism_is_its_module() -> None:
    """Its gradients reach the module's parameters."""
    small = builders.hf_vit()
    with tempfile.NamedTemporaryFile() as file:
        store: Any = distributed.FileStore(file.name, 1)  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            clip = load_clip(DistributedDataParallel(small.model), processor=small.processor)
            target = targets.embedding(cases.embeddings(2))
            method = DirectContribution(ClipSimilarity(clip, target))
            maps = method.attribute_targets(small.images(), create_graph=True)
            maps.square().sum().backward()
        finally:
            distributed.destroy_process_group()
    assert small.model.visual_projection.weight.grad.abs().amax() > 0
