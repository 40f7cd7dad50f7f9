"""Every method keeps every law on one tower, and one method on every tower."""

from __future__ import annotations

import pytest

from tests.attr import cases
from tests.attr.cases import CONTRACT, CONVOLUTIONAL, VITS, Case
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
    Case("LeGrad", {}),
    Case("GradEclip", {}),
    Case("PatchSimilarity", {"attention": "kk"}),
    Case("CamFamily", {}),
    Case("LayerAttention", {}),
    Case("LayerAttention", {"index": 0, "of": "gradient"}),
]
# The laws are about the base class, which neither the method nor the tower changes.
MATRIX = [
    *((case, "hf_vit", forward) for case in VIT_METHODS for forward in ("similarity", "callable")),
    *(
        (Case("LastGradAttention", {}), name, "similarity")
        for name in [*VITS, *CONTRACT]
        if name != "hf_vit"
    ),
    (Case("LastGradAttention", {}), "siglip", "callable"),
    *((Case("ClipGradCam", {}), name, "similarity") for name in CONVOLUTIONAL),
    (Case("ClipGradCam", {}), "open_clip_resnet", "callable"),
    (Case("DirectContribution", {}), "siglip", "similarity"),
    (Case("DirectContribution", {}), "open_clip_resnet", "similarity"),
    (Case("CamFamily", {"variant": "LayerCAM"}), "open_clip_resnet", "similarity"),
]

# Their oracles see more than attentions in a graph, in files of their own.
OWN_ORACLES = {
    "DirectContribution": "test_direct.py",
    "ConservativePropagation": "test_conservative.py",
    **dict.fromkeys(("LeGrad", "GradEclip", "PatchSimilarity"), "test_others_methods.py"),
    "CamFamily": "test_cam_family.py",
}
CHECKED = [
    (law, *row)
    for law in LAWS
    for row in MATRIX
    if not (law == "equals_its_oracle" and row[0].method in OWN_ORACLES)
]


@pytest.mark.parametrize(("law", "case", "name", "forward"), CHECKED, ids=str)
def test_contract_holds(law, case, name, forward):
    """One law, one method, one tower, one kind of forward function."""
    small = cases.upset(name) if law in UPSETTING else None
    LAWS[law](Subject(name, case, forward, small=small))
