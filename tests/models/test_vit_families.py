"""Families of vision transformers: what their files say of a tower is what the library computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_clip import ClipSimilarity, attr, load_clip, targets
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from captum_clip.models import ViTTower, tower_of
from captum_clip.models.library import checkpoints, nondeterminism
from captum_clip.models.steps import call_steps, run_steps
from captum_clip.models.variants import permute_heads, randomization_stages, randomize_parameters
from captum_clip.recording.observe import Kernels, Outputs, observe
from tests import builders, timm_builders
from tests.attr import cases
from tests.samples import picture

FAMILIES = list(cases.POOLINGS)
POOLED = [name for name in FAMILIES if cases.POOLINGS[name][0] == "attention"]


def tower(name: str, dtype: torch.dtype = torch.float64) -> ViTTower:
    found = tower_of(cases.built(name, dtype).model)
    assert isinstance(found, ViTTower)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_tower_says_what_is_read(name):
    """And its embeddings are the library's own, in unit length, for other batches too."""
    built, clip, found = cases.built(name), cases.adapter(name), tower(name)
    for batch in (1, 4):
        images = built.images(batch)
        expected = F.normalize(cases.embed(built.model, images), dim=-1)
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-6)
    assert clip.embedding_dim == expected.shape[1]
    assert (found.pooling, found.prefix) == cases.POOLINGS[name]
    assert (found.pooling_head is None) == (found.pooling != "attention")
    assert len(found.layers) == 3
    assert tower_of(found.module).module is found.module
    assert nondeterminism(found.module) is None
    assert not checkpoints(found.module)


@pytest.mark.parametrize("name", [*FAMILIES, "hf_vit", "open_clip_vit"])
@torch.no_grad()
def test_layers_show_what_their_blocks_compute(name):
    """All tokens of the grid and the prefix, from the heads to what each block returns."""
    found, images = tower(name), cases.images(name, torch.float64)
    height, width = found.grid(*images.shape[-2:])
    inputs, every = [], range(len(found.layers))
    handles = [
        layer.block.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: inputs.append(layer.residual(args, kwargs)),
            with_kwargs=True,
        )
        for layer in found.layers
    ]
    with observe(found, Kernels(every), Outputs(every)) as record:
        cases.embed(cases.built(name, torch.float64).model, images)
    for handle in handles:
        handle.remove()
    for index, layer in enumerate(found.layers):
        read = record.reads[index]
        assert read.value.shape[:3] == (3, layer.heads, found.prefix + height * width)
        output = run_steps(layer.merge_steps(), read.out.transpose(1, 2).flatten(2))
        stream = inputs[index] + run_steps(layer.branch(), output)
        block = run_steps(layer.after_attention(), stream)
        torch.testing.assert_close(block, record.outputs[index], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", POOLED)
@torch.no_grad()
def test_embed_of_the_pooling_heads_output_is_the_librarys_embedding(name):
    found, images = tower(name), cases.images(name, torch.float64)
    model = cases.built(name, torch.float64).model
    last = len(found.layers)
    with observe(found, Kernels([last])) as record:
        embedding = cases.embed(model, images)
    read = record.reads[last]
    output = run_steps(read.attention.merge_steps(), read.select(read.out).flatten(1))
    torch.testing.assert_close(output, record.pool, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        F.normalize(call_steps(found.head, output)), F.normalize(embedding), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("name", ["siglip", "eva02", "coca", "tipsv2"])
@torch.no_grad()
def test_renumbering_heads_keeps_the_function(name):
    built = cases.built(name)
    images, order = built.images(), [2, 0, 3, 1]
    expected = cases.embed(built.model, images)
    for index in (0, 2):
        changed = permute_heads(built.model, index, order)
        torch.testing.assert_close(cases.embed(changed, images), expected, atol=1e-5, rtol=1e-5)
        found = tower_of(changed)
        assert isinstance(found, ViTTower)
        before = tower(name, torch.float32).layers[index].input_maps()[-1].weight
        assert not torch.equal(found.layers[index].input_maps()[-1].weight, before)


# with a pooling head, registers, and a stem of convolutions
KINDS = ["siglip", "timm_registers", "mobileclip"]


@pytest.mark.parametrize("name", KINDS)
def test_randomizing_goes_from_the_top_down(name):
    """Each stage changes its own parameters, all of them together the whole vision tower."""
    model = cases.built(name).model
    stages = randomization_stages(model)
    assert stages == ("head", "layer 2", "layer 1", "layer 0", "embedding")
    parameters = dict(model.named_parameters())
    changed: list[set[str]] = []
    for count in range(1, 6):
        copy = randomize_parameters(model, seed=0, stages=count)
        changed.append(
            {
                key
                for key, value in copy.named_parameters()
                if not torch.equal(value, parameters[key])
            }
        )
    own = [later - earlier for earlier, later in zip([set(), *changed], changed, strict=False)]
    assert all(own)
    found = tower(name, torch.float32)
    for layer, keys in zip(reversed(found.layers), own[1:4], strict=True):
        ids = {id(parameter) for parameter in layer.block.parameters()}
        assert {id(parameters[key]) for key in keys} <= ids
    head = found.pooling_head
    pool = [] if head is None else [m for m in (head.norm, head.head) if m is not None]
    for key in own[-1]:  # nothing above the blocks is left for the embedding
        assert all(parameters[key] is not p for module in pool for p in module.parameters())


OWN_TEXTS = {
    "aimv2": lambda model, ids, mask: model.get_text_features(ids, mask).pooler_output,
    "tipsv2": lambda model, ids, mask: model.get_text_features(ids, mask).pooler_output,
    "flava": lambda model, ids, mask: model.get_text_features(ids, mask).pooler_output[:, 0],
    "blip": lambda model, ids, mask: model.text_proj(model.text_encoder(ids, mask)[0][:, 0]),
}


@pytest.mark.parametrize("name", OWN_TEXTS)
@torch.no_grad()
def test_text_embeddings_are_the_librarys_own(name):
    """A text alone and next to a longer one are the same."""
    built, clip, texts = cases.built(name), cases.adapter(name), ["a horse", "a dog on a bench"]
    padded = built.tokenizer(texts, padding=True, return_tensors="pt")
    expected = OWN_TEXTS[name](built.model, padded["input_ids"], padded["attention_mask"])
    found = clip.encode_text(texts)
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(clip.encode_text(texts[0]), found[:1], rtol=0, atol=1e-6)


def test_aimv2_with_learned_positions_takes_its_native_size_only():
    with pytest.raises(InputError, match="native size only, here 32 x 32"):
        cases.adapter("aimv2").grid(32, 48)
    native = builders.aimv2(is_native=True).load()
    assert native.grid(32, 48) == (4, 6)
    assert native.encode_image(torch.zeros(1, 3, 32, 48)).shape == (1, 24)


def test_timm_tower_of_another_size_is_made_for_it():
    """OpenCLIP's `set_input_size` gives the tower other positions, which it then takes only."""
    small = timm_builders.eva02()
    small.model.visual.set_input_size((48, 32))
    clip = small.load()
    assert clip.grid(48, 32) == (6, 4)
    with pytest.raises(InputError, match="native size only, here 48 x 32"):
        clip.grid(32, 32)
    forward = ClipSimilarity(clip, targets.embedding(cases.embeddings()))
    maps = attr.LastGradAttention(forward).attribute_targets(torch.ones(1, 3, 48, 32))
    assert maps.shape == (1, 4, 6, 4)


def test_timm_tower_alone_is_explained_by_its_logits():
    """A classifier of timm with a callable of one's own."""
    trunk = timm_builders.timm_registers().model.visual.trunk
    method = attr.AttentionGradCam(trunk, layer=trunk)
    assert method.attribute(torch.ones(1, 3, 32, 32), target=3).shape == (1, 1, 4, 4)


class LowRank(torch.nn.Module):
    """An adapter that was not merged: W x + b + B A x."""

    def __init__(self, base):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.base, (rows, columns) = base, base.weight.shape
        self.down = torch.randn(2, columns, generator=generator).double() / columns**0.5
        self.up = torch.randn(rows, 2, generator=generator).double()

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T

    def merge(self):
        self.base.weight.data += self.up @ self.down
        return self.base


PARTS = {
    "hf_vit": ("vision_model.encoder.layers.2.self_attn", "q_proj"),
    "timm_gap": ("visual.trunk.blocks.2.attn", "qkv"),
    "flava": ("image_model.encoder.layer.1.attention.output", "dense"),
    "siglip": ("vision_model.encoder.layers.1.self_attn", "out_proj"),
    "pe_core": ("visual.trunk.attn_pool", "kv"),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_adapter_that_was_not_merged_has_the_maps_of_the_merged_one(name):
    """It is called, or what it gave is read, where its weights alone would not do."""
    small, (owner, part) = cases.BUILDERS[name](), PARTS[name]
    small.model.double()
    module, images = small.model.get_submodule(owner), small.images(2, torch.float64)
    base, found = getattr(module, part), []
    adapter = LowRank(base)
    for step in (lambda: base, lambda: adapter, adapter.merge):
        setattr(module, part, step())
        similarity = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
        methods = {n: m for n, m in cases.OWN.items() if "vit" in m.towers and n != "cam"}
        found.append({n: m(similarity).attribute_targets(images) for n, m in methods.items()})
    plain, adapted, merged = found
    for method, maps in adapted.items():
        torch.testing.assert_close(maps, merged[method], rtol=1e-8, atol=1e-10, msg=method)
    assert sum(not torch.allclose(m, plain[n], rtol=1e-3) for n, m in adapted.items()) > 4


@pytest.mark.parametrize(
    ("pooler", "row"),
    [
        ("mean_pooler", "mean"),
        ("cls_pooler", "first"),
        ("cls_last_hidden_state_pooler", "first"),
        ("max_pooler", None),
    ],
)
def test_text_models_of_transformers_in_open_clip_say_their_pooling(pooler, row):
    from open_clip import CustomTextCLIP
    from open_clip.hf_model import HFTextEncoder
    from transformers import RobertaConfig

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = HFTextEncoder("", 24, config=RobertaConfig(**small), pooler_type=pooler, proj_type="mlp")
    model = CustomTextCLIP(24, dict(builders.VIT_CONFIG), dict(builders.TEXT_CONFIG))
    model.text = text
    clip = load_clip(model)
    if row is None:
        with pytest.raises(UnsupportedModelError, match="cannot be explained"):
            _ = clip.text_tower
    else:
        assert (clip.text_tower.row, clip.text_tower.causal) == (row, False)


@torch.no_grad()
def test_naflex_sees_an_image_in_its_own_shape():
    """The processor's patches are joined, and the embedding is that of the padded patches."""
    built = cases.built("naflex")
    clip, wide = built.load(), picture(height=24, width=40)
    images = clip.preprocess(wide)
    given = built.processor(images=[wide], return_tensors="pt")
    rows, columns = given["spatial_shapes"][0].tolist()
    assert images.shape == (1, 3, 8 * rows, 8 * columns)
    assert clip.grid(*images.shape[-2:]) == (rows, columns)
    assert rows < columns
    assert rows * columns < 16  # the processor pads to 16
    expected = F.normalize(built.model.get_image_features(**given).pooler_output, dim=-1)
    torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="sees every image in its own shape, and these differ"):
        clip.preprocess([wide, picture(height=40, width=24)])


def test_naflex_refuses_padded_patches_in_a_callable_of_ones_own():
    built = cases.built("naflex")
    given = built.processor(images=[picture(height=24, width=40)], return_tensors="pt")

    def forward(patches):
        more = (given["pixel_attention_mask"], given["spatial_shapes"])
        return built.model.get_image_features(patches, *more).pooler_output

    method = attr.AttentionGradCam(forward, built.model)
    with pytest.raises(CaptureError, match="different grids or on padded patches"):
        method.attribute(given["pixel_values"], target=0)
