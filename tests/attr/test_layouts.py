"""Classes of transformers with CLIP's layout: their maps are those of a CLIPModel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_clip import ClipSimilarity, load_clip, targets
from tests import builders
from tests.attr import cases

NAMES = [*builders.LAYOUTS, "dual_encoder"]


def as_clip(model):
    """A `CLIPModel` with the vision tower's weights."""
    clip = builders.hf_vit().model.double()
    for name in ("vision_model", "visual_projection"):
        state = getattr(model, name).state_dict()
        spelled = {key.replace("pre_layernorm", "pre_layrnorm"): state[key] for key in state}
        getattr(clip, name).load_state_dict(spelled)
    return clip


@pytest.mark.parametrize(("name", "wide"), [*((name, False) for name in NAMES), (NAMES[0], True)])
def test_maps_equal_those_of_a_clip_with_the_same_weights(name, wide):
    """Every method, with a `ClipSimilarity` and with a callable of one's own."""
    model, embeddings = cases.built(name, torch.float64).model, cases.embeddings()
    clip, target = as_clip(model), targets.embedding(embeddings)
    pixels = cases.images(name, torch.float64, wide=wide)
    forward = ClipSimilarity(cases.adapter(name, torch.float64), target)
    of_clip = ClipSimilarity(load_clip(clip), target)

    def own(images):
        return F.normalize(cases.embed(model, images), dim=-1) @ embeddings.T

    for method in (case.kind for case in cases.VIT_CASES if not case.options):
        wanted = method(of_clip).attribute_targets(pixels)
        cases.assert_maps_close(method(forward).attribute_targets(pixels), wanted, 1e-10)
        cases.assert_maps_close(method(own, layer=model).attribute_targets(pixels), wanted, 1e-10)
