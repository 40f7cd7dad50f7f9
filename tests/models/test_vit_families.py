"""Families of vision transformers: what their files say of a tower is what the library computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_clip.models import ViTTower, tower_of
from captum_clip.models.variants import randomization_stages, randomize_parameters, renumber_heads
from captum_clip.recording import record_vit
from tests.attr import cases

FAMILIES = list(cases.READOUTS)
PROBES = [name for name in FAMILIES if cases.READOUTS[name][0] == "probe"]


def tower(name: str, dtype: torch.dtype = torch.float64) -> ViTTower:
    found = tower_of(cases.built(name, dtype).model)
    assert isinstance(found, ViTTower)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_tower_says_what_is_read(name):
    found = tower(name)
    assert (found.pooling, found.prefix) == cases.READOUTS[name]
    assert (found.probe is None) == (found.pooling != "probe")
    assert len(found.layers) == 3
    assert tower_of(found.module).module is found.module
    assert found.nondeterminism() is None
    assert not found.checkpointing


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_layers_show_tokens_and_blocks(name):
    """All tokens of the grid and the prefix; `tail` ends each block as the library does."""
    found, images = tower(name), cases.images(name, torch.float64)
    height, width = found.grid(*images.shape[-2:])
    inputs, outputs = [], []
    handles = [
        layer.block.register_forward_hook(lambda _, args, out: outputs.append(out))
        for layer in found.layers
    ] + [
        layer.block.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: inputs.append(layer.residual(args, kwargs)),
            with_kwargs=True,
        )
        for layer in found.layers
    ]
    with record_vit(found, keep=range(len(found.attentions))) as record:
        found.module(images)
    for handle in handles:
        handle.remove()
    for index, layer in enumerate(found.layers):
        seen = record.layers[index]
        assert seen.tokens is not None
        assert seen.tokens.shape[:2] == (3, found.prefix + height * width)
        output, is_heads = seen.point(layer)
        if is_heads:  # an inner norm stands before the output map
            output = layer.merge(output)
        block = outputs[index][0] if isinstance(outputs[index], tuple) else outputs[index]
        torch.testing.assert_close(layer.tail(inputs[index], output), block, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PROBES)
@torch.no_grad()
def test_embed_of_the_probes_output_is_the_librarys_embedding(name):
    found, images = tower(name), cases.images(name, torch.float64)
    model = cases.built(name, torch.float64).model
    last = len(found.layers)
    with record_vit(found, keep=range(last, last + 1)) as record:
        embedding = cases.embed(model, images)
    output = record.layers[last].output
    assert output is not None
    torch.testing.assert_close(
        F.normalize(found.embed(output[:, 0])), F.normalize(embedding), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_renumbering_heads_keeps_the_function(name):
    built = cases.built(name)
    images, order = built.images(), [2, 0, 3, 1]
    expected = cases.embed(built.model, images)
    for index in (0, 2):
        changed = renumber_heads(built.model, index, order)
        torch.testing.assert_close(cases.embed(changed, images), expected, atol=1e-5, rtol=1e-5)
        found = tower_of(changed)
        assert isinstance(found, ViTTower)
        before = tower(name, torch.float32).layers[index].projections().value.weight
        assert not torch.equal(found.layers[index].projections().value.weight, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_randomising_goes_from_the_top_down(name):
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
    pool = [] if found.probe is None else found.probe.modules()
    for key in own[-1]:  # nothing above the blocks is left for the embedding
        assert all(parameters[key] is not p for module in pool for p in module.parameters())


def test_siglip_reads_the_last_position_of_a_text():
    assert cases.adapter("siglip").text_readout == ("last", False, "max_length")
