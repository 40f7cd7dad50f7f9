"""Every method equals its equation on every family, on the library's own modules."""

from __future__ import annotations

import pytest
import torch

from tests.attr import cases
from tests.attr.cases import FORWARDS, READOUTS, TOLERANCE, VIT_CASES, Case

FAMILIES = list(READOUTS)
LAST_LAYER = [
    Case("LayerAttention", {"index": 2, "of": of, "rows": rows})
    for of in ("attention", "gradient")
    for rows in ("cls", "sum")
]
PROBES = [name for name in FAMILIES if READOUTS[name][0] == "probe"]


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", [*VIT_CASES, *LAST_LAYER], ids=str)
def test_method_equals_its_equation(case, name, forward):
    """All targets of a batch, with every way to name the tower."""
    function, layer = FORWARDS[forward](name, torch.float64)
    method = case.kind(function, layer)
    found = method.attribute_targets(cases.images(name, torch.float64), **case.options)
    wanted = cases.expected(name, case, scale=1 if forward == "similarity" else 20)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("method", ["AttentionRollout", "AllGradAttention", "LastGradAttention"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_probe_alone_may_take_part(method, name, forward):
    """The last start layer is the pool: its own row."""
    function, layer = FORWARDS[forward](name, torch.float64)
    case = Case(method, {"start_layer": 3})
    method = case.kind(function, layer)
    found = method.attribute_targets(cases.images(name, torch.float64), **case.options)
    wanted = cases.expected(name, case, scale=1 if forward == "similarity" else 20)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])
