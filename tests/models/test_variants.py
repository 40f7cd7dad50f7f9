"""Modified copies: the same function with other numbers, and random parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import ViTTower, tower_of
from captum_clip.models.variants import (
    permute_heads,
    randomization_stages,
    randomize_parameters,
)
from tests import builders

VITS = ["hf_vit", "open_clip_vit", "open_clip_vit_mean", "open_clip_custom_vit"]
ORDER = [2, 0, 3, 1]


@pytest.mark.parametrize("name", VITS[:2])
@torch.no_grad()
def test_renumbering_heads_keeps_the_function(name):
    built = builders.BUILDERS[name]()
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    images = built.images()
    expected = built.load().encode_image(images)
    for layer in (0, 2, -2):
        changed = built._replace(model=permute_heads(built.model, layer, ORDER))
        found = changed.load().encode_image(images)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for key, value in built.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", VITS[:1])
def test_renumbering_heads_moves_the_heads_of_one_layer(name):
    built = builders.BUILDERS[name]()
    towers = tower_of(built.model), tower_of(permute_heads(built.model, 1, ORDER))
    for index in range(3):
        pair = []
        for tower in towers:
            assert isinstance(tower, ViTTower)
            layer: Any = tower.layers[index]
            pair.append((layer.input_maps()[-1].weight, layer.output_map().weight))
        (value, output), (new_value, new_output) = pair
        expected = ORDER if index == 1 else range(4)
        for new, old in enumerate(expected):
            rows, source = slice(8 * new, 8 * new + 8), slice(8 * old, 8 * old + 8)
            assert torch.equal(new_value[rows], value[source])
            assert torch.equal(new_output[:, rows], output[:, source])


@pytest.mark.parametrize("layer", [3])
def test_renumbering_names_a_layer_that_is_not_there(layer):
    with pytest.raises(InputError, match=rf"expected a layer of 0 \.\.\. 2, .*, got {layer}"):
        permute_heads(builders.hf_vit().model, layer, ORDER)


@pytest.mark.parametrize("order", [[0, 1, 2, 2]])
def test_renumbering_wants_a_permutation(order):
    with pytest.raises(InputError, match=r"a permutation of 0 \.\.\. 3, got \["):
        permute_heads(builders.hf_vit().model, 0, order)


def test_renumbering_wants_a_vit():
    with pytest.raises(UnsupportedModelError, match="is a ModifiedResNet, which has no layers"):
        permute_heads(builders.open_clip_resnet().model, 0, ORDER)


TOWERS = ["hf_vit", "open_clip_vit", "open_clip_resnet", "timm_convnext", "align"]
STAGES = {
    **dict.fromkeys(VITS, ("head", "layer 2", "layer 1", "layer 0", "embedding")),
    "open_clip_resnet": ("head", "layer4", "layer3", "layer2", "layer1", "stem"),
    "timm_convnext": ("head", "stage 3", "stage 2", "stage 1", "stage 0", "stem"),
    "timm_fastvit": ("head", "final_conv", "stage 3", "stage 2", "stage 1", "stage 0", "stem"),
    "align": ("block 2", "block 1", "block 0", "stem"),
}
PREFIXES = {  # what a stage's parameters are called in the two libraries
    "head": ("post_layernorm", "visual_projection", "ln_post", "proj", "attnpool", "head"),
    "final_conv": ("final_conv",),
    "embedding": ("embeddings", "pre_layrnorm", "conv1", "class_", "positional_", "ln_pre"),
    "stem": ("conv", "bn", "stem", "embeddings"),
}
BLOCKS = {
    "transformer.resblocks.": "layer",
    "encoder.layers.": "layer",
    "encoder.blocks.": "block",
    "stages.": "stage",
}


def changes(before, after):
    """The names of the parameters that differ."""
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    return {name for (name, old), (_, new) in pairs if not torch.equal(old, new)}


def stage_of(name, stages):
    """The stage of a parameter by its name, one of `stages`; None in the text tower."""
    if name.startswith(("visual.", "vision_model.")) or name.startswith("visual_projection"):
        short = name.removeprefix("visual.").removeprefix("vision_model.").removeprefix("trunk.")
        for block, stage in BLOCKS.items():
            if short.startswith(block):
                return f"{stage} {short.removeprefix(block)[0]}"
        if short.startswith("layer"):
            return short.partition(".")[0]
        known = {stage: PREFIXES[stage] for stage in stages if stage in PREFIXES}
        return next(stage for stage, starts in known.items() if short.startswith(starts))
    return None


@pytest.mark.parametrize("name", TOWERS)
def test_randomizing_goes_from_the_top_down(name):
    """With n stages exactly the parameters of the n top ones change, and none of the text tower."""
    built = builders.BUILDERS[name]()
    assert randomization_stages(built.model) == STAGES[name]
    every = {key for key, _ in built.model.named_parameters()}
    for count in range(1, len(STAGES[name]) + 1):
        found = changes(built.model, randomize_parameters(built.model, seed=0, stages=count))
        assert found == {
            key for key in every if stage_of(key, STAGES[name]) in STAGES[name][:count]
        }
    whole = changes(built.model, randomize_parameters(built.model, seed=0))
    assert whole == found


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_randomizing_leaves_the_original_as_it_is(name):
    """Values, flags, modes and hooks; the copy has the same flags, and computes something else."""
    built = builders.BUILDERS[name]()
    first = next(built.model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    changed = randomize_parameters(built.model, seed=1)
    for key, value in built.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not first.requires_grad
    flags = [[p.requires_grad for p in m.parameters()] for m in (built.model, changed)]
    assert flags[0] == flags[1]
    assert sum(flags[0]) == len(flags[0]) - 1
    assert all(p.grad is None for p in changed.parameters())
    images = built.images()
    one, other = (b.load().encode_image(images) for b in (built, built._replace(model=changed)))
    assert torch.isfinite(other).all()
    assert (one - other).abs().max() > 0.05


def test_randomizing_keeps_the_mean_and_deviation_of_each_tensor():
    """So that activations stay in range; stages get the same values however many there are."""
    model = builders.open_clip_vit(width=64).model
    whole, stages = randomize_parameters(model, seed=2), STAGES["open_clip_vit"]
    weights = dict(model.named_parameters())
    for name, value in whole.named_parameters():
        if value.numel() > 2000 and stage_of(name, stages):
            assert value.mean().item() == pytest.approx(weights[name].mean().item(), abs=0.02)
            assert value.std().item() == pytest.approx(weights[name].std().item(), rel=0.1)
    some = dict(randomize_parameters(model, seed=2, stages=2).named_parameters())
    for name, value in whole.named_parameters():
        if stage_of(name, stages) in ("head", "layer 2"):
            assert torch.equal(some[name], value)
    other = randomize_parameters(model, seed=3, stages=1)
    assert changes(other, randomize_parameters(model, seed=2, stages=1))


@pytest.mark.parametrize("name", ["hf_vit", "align"])
def test_randomizing_an_adapter_gives_an_adapter(name):
    """With the same processor and tokenizer, and the same text encodings, so targets stay."""
    clip = builders.BUILDERS[name]().load()
    changed = randomize_parameters(clip, seed=0, stages=2)
    assert type(changed) is type(clip)
    assert changed.model is not clip.model
    assert (changed.processor, changed.tokenizer, changed.name) == (
        clip.processor,
        clip.tokenizer,
        clip.name,
    )
    torch.testing.assert_close(changed.encode_text("a dog"), clip.encode_text("a dog"))
    assert randomization_stages(clip) == STAGES[name]


@pytest.mark.parametrize("mode", [torch.inference_mode])
def test_randomizing_works_in_every_mode(mode):
    """The copy is an ordinary model, whose parameters may be trained."""
    built = builders.hf_vit()
    wanted = randomize_parameters(built.model, seed=0)
    with mode():
        found = randomize_parameters(built.model, seed=0)
        assert randomization_stages(built.model) == STAGES["hf_vit"]
    assert not changes(found, wanted)
    built._replace(model=found).load().encode_image(built.images()).sum().backward()


@pytest.mark.parametrize("stages", [6])
def test_randomizing_names_the_stages_that_there_are(stages):
    """The message lists them from the top."""
    with pytest.raises(InputError, match=r"stages from 1 to 5, .* they are head, layer 2, .*, emb"):
        randomize_parameters(builders.hf_vit().model, seed=0, stages=stages)


def test_renumbering_twice_back_gives_the_original():
    model = builders.hf_vit().model
    back = [ORDER.index(head) for head in range(4)]
    again = permute_heads(permute_heads(model, 1, ORDER), 1, back)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_randomizing_a_bare_tower_works():
    """A vision tower without its model, with and without a projection."""
    model = builders.hf_vit().model
    changed = randomize_parameters(model.vision_model, seed=0, stages=1)
    found = changes(model.vision_model, changed)
    assert found == {"post_layernorm.weight", "post_layernorm.bias"}


def test_randomizing_wants_a_clip():
    """Any other module is refused by name."""
    with pytest.raises(UnsupportedModelError, match="no CLIP vision tower in a Linear"):
        randomize_parameters(torch.nn.Linear(2, 2), seed=0)
