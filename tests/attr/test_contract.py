"""The laws of the base class on four rows; those that a formula could break, on every method."""

from __future__ import annotations

import pytest

from tests.attr import cases
from tests.attr.cases import Case
from tests.attr.laws import LAWS, UPSETTING
from tests.attr.subject import Subject

# A new method must add its row here.
VIT_METHODS = [
    Case("AttentionGradCam", {}),
    Case("AttentionRollout", {"start_layer": 1}),
    Case("AllGradAttention", {}),
    Case("LastGradAttention", {}),
    Case("DirectContribution", {}),
    Case("DirectContribution", {"depth": "token"}),
    Case("ConservativePropagation", {}),
    Case("ReaderRemoval", {"readers": 2}),
    Case("LeGrad", {}),
    Case("GradEclip", {}),
    Case("PatchSimilarity", {"attention": "kk"}),
    Case("CamFamily", {}),
    Case("LayerAttention", {}),
    Case("LayerAttention", {"index": 0, "of": "gradient"}),
]
# A law of the base class does not change with the formula: a row for each way to run a forward.
ROWS = [
    (Case("LastGradAttention", {}), "hf_vit", "similarity"),
    (Case("ConservativePropagation", {}), "hf_vit", "callable"),
    (Case("DirectContribution", {}), "siglip", "callable"),
    (Case("ClipGradCam", {}), "open_clip_resnet", "similarity"),
]
OF_FORMULA = [
    "batch_equals_loop",
    "all_targets_equal_each",
    "half_precision_gives_single",
    "leaves_nothing_behind",
]
FORMULAS = [
    *((case, "hf_vit", "similarity") for case in VIT_METHODS),
    (Case("LastGradAttention", {}), "open_clip_vit_mean", "similarity"),
    (Case("DirectContribution", {}), "open_clip_resnet", "similarity"),
    (Case("ReaderRemoval", {}), "open_clip_resnet", "similarity"),
    (Case("CamFamily", {"variant": "LayerCAM"}), "open_clip_resnet", "similarity"),
]

# Their oracles see more than attentions in a graph, in files of their own.
OWN_ORACLES = {
    "DirectContribution": "test_direct.py",
    "ConservativePropagation": "test_conservative.py",
    **dict.fromkeys(("LeGrad", "GradEclip", "PatchSimilarity"), "test_others_methods.py"),
    "ReaderRemoval": "test_removal.py",
    "CamFamily": "test_cam_family.py",
}
CHECKED = [
    *((law, *row) for law in LAWS for row in ROWS if law != "equals_its_oracle"),
    *((law, *row) for law in OF_FORMULA for row in FORMULAS if row not in ROWS),
]


@pytest.mark.parametrize(("law", "case", "name", "forward"), CHECKED, ids=str)
def test_contract_holds(law, case, name, forward):
    """One law, one method, one tower, one kind of forward function."""
    small = cases.upset(name) if law in UPSETTING else None
    LAWS[law](Subject(name, case, forward, small=small))
