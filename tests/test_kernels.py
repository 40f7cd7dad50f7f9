"""Kernels that a method launches, which is what a small batch costs on a graphics card."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import Kernels, kernels

# The most kernels of a call by method and number of texts, for an image and transformers' ViT-B/32.
# The first call, which inspects the model, is not counted.
BOUNDS = {
    ("forward", 1): 175,
    ("direct", 1): 370,
    ("direct", 8): 370,
    ("last-grad", 1): 310,
    ("last-grad", 8): 310,
    ("attention-grad-cam", 1): 270,
    ("attention-grad-cam", 8): 270,
    ("rollout", 1): 305,
    ("grad-eclip", 1): 285,
    ("grad-eclip", 8): 285,
    ("legrad", 1): 375,
    ("legrad", 8): 410,
    ("patches", 1): 260,
    ("removal", 1): 725,
    ("all-grad", 1): 570,
    ("all-grad", 8): 915,
    ("conservative", 1): 505,
    ("conservative", 8): 845,
}


@pytest.mark.parametrize(("method", "texts"), BOUNDS)
def test_a_method_launches_few_kernels(method: str, texts: int) -> None:
    _, second = kernels(method, texts)
    assert second.total <= BOUNDS[method, texts]


def test_kernels_are_operators_that_compute() -> None:
    with Kernels() as seen:
        x = torch.ones(3, 4)  # allocated and filled
        x.t()[0].view(1, 3).detach()  # views
        torch.empty(3)
        x.add_(1)
    assert {kernel.operator: count for kernel, count in seen.counts.items()} == {
        "ones": 1,
        "add_": 1,
    }
