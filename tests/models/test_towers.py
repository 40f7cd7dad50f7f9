"""The towers compute what the libraries compute."""

from __future__ import annotations

import warnings

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.models import ViTTower, tower_of
from captum_clip.models.library import checkpoints
from captum_clip.models.steps import call_steps, run_steps
from tests import timm_builders
from tests.models.small import small
from tests.models.test_openai import model_of

CLS_TOWERS = ["hf_vit", "open_clip_vit", "open_clip_custom_vit"]
VITS = [*CLS_TOWERS, "open_clip_vit_mean"]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def vit_of(model) -> ViTTower:
    tower = tower_of(model)
    assert isinstance(tower, ViTTower)
    return tower


def record(layer, run):
    """Residual and output of one attention layer, and what the block returned."""
    seen = {}

    def enter_block(module, args, kwargs):
        seen["residual"] = layer.residual(args, kwargs)

    def attend(module, args, result):
        seen["output"] = layer.output(result)

    def leave_block(module, args, result):
        seen["block"] = layer.output(result)

    handles = [
        layer.block.register_forward_pre_hook(enter_block, with_kwargs=True),
        layer.attention.register_forward_hook(attend),
        layer.block.register_forward_hook(leave_block),
    ]
    try:
        seen["result"] = run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def block_of(layer, residual, output):
    """What a block makes of its input and of its attention's output."""
    return run_steps(layer.after_attention(), residual + run_steps(layer.branch(), output))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CLS_TOWERS[:2])
@torch.no_grad()
def test_branches_and_embed_of_the_cls_token_equal_the_librarys_embedding(name, dtype):
    built = small(name, dtype)
    clip = built.load()
    images = built.images(dtype=dtype)
    layer = clip.tower.layers[-1]
    seen = record(layer, lambda: clip.image_features(images))
    token = block_of(layer, seen["residual"][:, 0], seen["output"][:, 0])
    embedding = call_steps(clip.tower.head, token)
    assert embedding.shape == (2, 24)
    torch.testing.assert_close(
        embedding, seen["result"], atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("final_ln_after_pool", [False, True])
@torch.no_grad()
def test_embed_holds_for_both_orders_of_norm_and_pooling(final_ln_after_pool):
    built = small("open_clip_vit", torch.float64, final_ln_after_pool=final_ln_after_pool)
    clip = built.load()
    layer = clip.tower.layers[-1]
    seen = record(layer, lambda: clip.image_features(built.images(dtype=torch.float64)))
    embedding = call_steps(clip.tower.head, seen["block"][:, 0])
    torch.testing.assert_close(embedding, seen["result"], atol=1e-11, rtol=1e-11)


@torch.no_grad()
def test_sequence_first_attention_is_seen_batch_first():
    built = small("open_clip_vit", torch.float64)
    if not hasattr(built.model.visual.transformer, "batch_first"):
        pytest.skip("from version 4 on OpenCLIP has the batch first")
    built.model.visual.transformer.batch_first = False
    for block in built.model.visual.transformer.resblocks:
        block.attn.batch_first = False
    clip = built.load()
    layer = clip.tower.layers[-1]
    seen = record(layer, lambda: clip.image_features(built.images(3, dtype=torch.float64)))
    assert seen["residual"].shape == seen["output"].shape == (3, 17, 32)
    token = block_of(layer, seen["residual"][:, 0], seen["output"][:, 0])
    torch.testing.assert_close(
        call_steps(clip.tower.head, token), seen["result"], atol=1e-11, rtol=1e-11
    )


@pytest.mark.parametrize("name", ["hf_vit"])
def test_grid_of_the_native_size(name):
    assert small(name).load().grid(32, 32) == (4, 4)


def test_grid_of_other_sizes_in_transformers():
    clip = small("hf_vit").load()
    assert clip.grid(32, 64) == (4, 8)
    images = torch.randn(1, 3, 32, 64)
    seen = record(clip.tower.layers[0], lambda: clip.encode_image(images))
    assert seen["residual"].shape == (1, 1 + 4 * 8, 32)


@pytest.mark.parametrize("size", [(33, 32), (0, 32)])
def test_grid_names_the_size_that_transformers_cannot_take(size):
    clip = small("hf_vit").load()
    with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels.*multiples of 8 x 8"):
        clip.grid(*size)


FORCED = r", or make a model for them by name, with `image_size=64`, .*\.$"
LARGER = {
    "open_clip_vit": (lambda: small("open_clip_vit").model, FORCED),
    "timm in OpenCLIP": (lambda: timm_builders.timm_siglip().model, FORCED),
    "timm": (
        lambda: timm_builders.eva02().model.visual.trunk,
        r" timm\.create_model\(\.\.\., img_size=64\)\.$",
    ),
    "OpenAI's": (lambda: model_of("vit").visual, r" by name, with `image_size=128`\.$"),
    "a ResNet": (
        lambda: small("open_clip_resnet").model,
        r" by name, with `image_size=192`\.$",
    ),
}


@pytest.mark.parametrize(("make", "advice"), LARGER.values(), ids=LARGER)
def test_a_tower_of_one_size_names_the_call_that_makes_a_larger_one(make, advice):
    tower = tower_of(make())
    with pytest.raises(InputError, match=advice):
        tower.grid(2 * tower.native[0], 2 * tower.native[0])


def test_grid_of_a_non_square_open_clip_tower():
    built = small("open_clip_vit", image_size=(32, 48))
    clip = built.load()
    assert clip.grid(32, 48) == (4, 6)
    assert clip.encode_image(built.images()).shape == (2, 24)


@pytest.mark.parametrize("name", VITS)
def test_tower_of_finds_the_same_module_in_model_and_tower(name):
    model = small(name).model
    tower = vit_of(model)
    assert len(tower.layers) == 3
    assert tower.layers[0].heads == 4
    assert tower.pooling == ("mean" if name == "open_clip_vit_mean" else "cls")
    assert tower_of(tower.module).module is tower.module


def test_tower_of_takes_the_vision_models_of_transformers():
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    config = small("hf_vit").model.config.vision_config
    images = torch.randn(1, 3, 32, 32)
    for kind, dim in ((CLIPVisionModel, 32), (CLIPVisionModelWithProjection, 24)):
        model = kind(config).eval()
        tower = vit_of(model)
        seen = record(tower.layers[-1], lambda model=model: model(images))
        embedding = call_steps(tower.head, seen["block"][:, 0])
        assert embedding.shape == (1, dim)
        expected = seen["result"].pooler_output if dim == 32 else seen["result"].image_embeds
        torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=1e-6)


def test_transformers_tells_of_gradient_checkpointing():
    model = small("hf_vit").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5
        model.gradient_checkpointing_enable()
    assert not checkpoints(vit_of(model).module)  # transformers does it in training mode only
    assert checkpoints(vit_of(model.train()).module)


@pytest.mark.parametrize("name", ["open_clip_vit", "open_clip_custom_vit", "open_clip_vit_mean"])
def test_open_clip_takes_its_native_size_only(name):
    clip = small(name).load()
    with pytest.raises(InputError, match=r"64 x 32 pixels.*native size only, here 32 x 32"):
        clip.encode_image(torch.randn(1, 3, 64, 32))


def test_open_clip_resnet_takes_its_native_size_only():
    clip = small("open_clip_resnet").load()
    assert clip.grid(96, 96) == (3, 3)
    with pytest.raises(InputError, match="native size only, here 96 x 96"):
        clip.grid(64, 64)


@pytest.mark.parametrize("name", [*VITS, "open_clip_resnet"])
def test_tower_runs_once_in_a_forward(name):
    built = small(name)
    calls = []
    clip = built.load()
    handle = clip.vision.register_forward_hook(lambda *_: calls.append(1))
    clip.encode_image(built.images())
    handle.remove()
    assert calls == [1]


def test_open_clip_tells_of_gradient_checkpointing():
    model = small("open_clip_vit").model
    assert not checkpoints(vit_of(model).module)
    model.set_grad_checkpointing()
    assert checkpoints(vit_of(model).module)
