"""Renumbering the heads of a layer leaves the function as it is; which maps stay as well?"""

from __future__ import annotations

import pytest
import torch

from captum_clip import targets
from captum_clip.models.variants import permute_heads
from captum_clip.targets.similarity import ClipSimilarity
from tests.attr import cases
from tests.attr.cases import CLS_TOWERS, Case

INVARIANT = [
    Case("AllGradAttention", {}),
    Case("AttentionGradCam", {"weights": "pooled"}),
    Case("LastGradAttention", {"heads": "averaged"}),
    Case("LayerAttention", {"index": 1, "of": "gradient", "rows": "sum"}),
]


def renumbered(name):
    """The forward function, and the same one with the heads of two layers renumbered."""
    small = cases.built(name, torch.float64)
    model = permute_heads(permute_heads(small.model, 0, [2, 0, 3, 1]), 1, [1, 2, 3, 0])
    embeddings = targets.embedding(cases.embeddings())
    return [ClipSimilarity(s.load(), embeddings) for s in (small, small._replace(model=model))]


def maps_of(case, name):
    """Maps before and after."""
    pixels = cases.images(name, torch.float64)
    return [case.kind(f).attribute_targets(pixels, **case.options) for f in renumbered(name)]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        *((case, "hf_vit") for case in INVARIANT),
        (INVARIANT[0], "open_clip_vit"),
    ],
    ids=str,
)
def test_method_does_not_change_with_the_numbers_of_heads(case, name):
    """All methods but the paired form draw the same map."""
    before, after = maps_of(case, name)
    cases.assert_maps_close(after, before, 1e-10)


@pytest.mark.parametrize("name", ["hf_vit"])
def test_paired_form_changes_with_the_numbers_of_heads(name):
    """Equation 6 pairs heads of different layers, which do not correspond."""
    before, after = maps_of(Case("LastGradAttention", {"heads": "paired"}), name)
    assert (after - before).abs().max() > 0.05 * before.max()


@pytest.mark.parametrize("name", CLS_TOWERS)
def test_renumbering_leaves_the_function_as_it_is(name):
    """The scores do not change."""
    pixels = cases.images(name, torch.float64)
    with torch.no_grad():
        before, after = (forward(pixels) for forward in renumbered(name))
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-12)
