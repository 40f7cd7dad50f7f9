"""Every method keeps every law on one tower, and one method on every tower."""

from __future__ import annotations

import pytest

from tests.attr import cases
from tests.attr.cases import CONTRACT, CONVOLUTIONAL, VITS, Case
from tests.attr.laws import LAWS, UPSETTING
from tests.attr.subject import Subject

# A new method may add its row here.
VIT_METHODS = [
    Case("AttentionGradCam", {}),
    Case("AttentionGradCam", {"weights": "pooled"}),
    Case("AttentionRollout", {"start_layer": 1}),
    Case("AllGradAttention", {}),
    Case("LastGradAttention", {}),
    Case("LastGradAttention", {"heads": "averaged"}),
    Case("DirectContribution", {}),
    Case("DirectContribution", {"baseline": "mean"}),
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
    *((case, "hf_vit") for case in VIT_METHODS),
    *((Case("LastGradAttention", {}), name) for name in [*VITS, *CONTRACT] if name != "hf_vit"),
    *((Case("ClipGradCam", {}), name) for name in CONVOLUTIONAL),
    (Case("DirectContribution", {}), "siglip"),
    (Case("DirectContribution", {}), "open_clip_resnet"),
    (Case("CamFamily", {"variant": "LayerCAM"}), "open_clip_resnet"),
]

# Their oracles see more than attentions in a graph, in files of their own.
OWN_ORACLES = {
    "DirectContribution": "test_direct.py",
    "ConservativePropagation": "test_conservative.py",
    **dict.fromkeys(("LeGrad", "GradEclip", "PatchSimilarity"), "test_others_methods.py"),
    "CamFamily": "test_cam_family.py",
}
CHECKED = [
    pytest.param(law, case, name)
    for law in LAWS
    for case, name in MATRIX
    if not (law == "equals_its_oracle" and case.method in OWN_ORACLES)
]


@pytest.mark.parametrize("forward", ["similarity", "callable"])
@pytest.mark.parametrize(("law", "case", "name"), CHECKED, ids=str)
def test_contract_holds(law, case, name, forward):
    """One law, one method, one tower, one kind of forward function."""
    small = cases.upset(name) if law in UPSETTING else None
    LAWS[law](Subject(name, case, forward, small=small))
