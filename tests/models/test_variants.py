"""Modified copies compute the same function."""

from __future__ import annotations

import pytest
import torch

from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import ViTTower, tower_of
from captum_clip.models.variants import renumber_heads
from tests import builders

VITS = ["hf_vit", "open_clip_vit", "open_clip_vit_mean", "open_clip_custom_vit"]
ORDER = [2, 0, 3, 1]


@pytest.mark.parametrize("layer", [0, 2, -2])
@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_renumbering_heads_keeps_the_function(name, layer):
    built = builders.BUILDERS[name]()
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    changed = built._replace(model=renumber_heads(built.model, layer, ORDER))
    images = built.images()
    expected = built.load().encode_image(images)
    torch.testing.assert_close(changed.load().encode_image(images), expected, atol=1e-6, rtol=1e-6)
    for key, value in built.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", VITS)
def test_renumbering_heads_moves_the_heads_of_one_layer(name):
    built = builders.BUILDERS[name]()
    towers = tower_of(built.model), tower_of(renumber_heads(built.model, 1, ORDER))
    for index in range(3):
        pair = []
        for tower in towers:
            assert isinstance(tower, ViTTower)
            pair.append(tower.layers[index].projections())
        before, after = pair
        expected = ORDER if index == 1 else range(4)
        for new, old in enumerate(expected):
            rows, source = slice(8 * new, 8 * new + 8), slice(8 * old, 8 * old + 8)
            assert torch.equal(after.value.weight[rows], before.value.weight[source])
            assert torch.equal(after.output.weight[:, rows], before.output.weight[:, source])


def test_renumbering_twice_back_gives_the_original():
    model = builders.hf_vit().model
    back = [ORDER.index(head) for head in range(4)]
    again = renumber_heads(renumber_heads(model, 1, ORDER), 1, back)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize("layer", [3, -4])
def test_renumbering_names_a_layer_that_is_not_there(layer):
    with pytest.raises(InputError, match=rf"layer {layer} does not exist; .* 0 \.\.\. 2"):
        renumber_heads(builders.hf_vit().model, layer, ORDER)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]])
def test_renumbering_wants_a_permutation(order):
    with pytest.raises(InputError, match=r"a permutation of 0 \.\.\. 3, got \["):
        renumber_heads(builders.hf_vit().model, 0, order)


def test_renumbering_wants_a_vit():
    with pytest.raises(UnsupportedModelError, match="is a ModifiedResNet, which has no layers"):
        renumber_heads(builders.open_clip_resnet().model, 0, ORDER)
