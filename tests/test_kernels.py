"""Kernels that a method launches, which is what a small batch costs on a graphics card."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import Kernels, kernels

# of transformers' ViT-B/32, one image, by method and texts: at most so many at every call but the
# first, which looks at the model
BOUNDS = {
    ("forward", 1): 175,
    ("direct", 1): 385,
    ("direct", 8): 385,
    ("last-grad", 1): 315,
    ("last-grad", 8): 315,
    ("attention-grad-cam", 1): 280,
    ("attention-grad-cam", 8): 280,
    ("rollout", 1): 350,
    ("grad-eclip", 1): 300,
    ("grad-eclip", 8): 300,
    ("legrad", 1): 420,
    ("legrad", 8): 420,
    ("patches", 1): 280,
    ("removal", 1): 800,
    ("all-grad", 1): 600,
    ("all-grad", 8): 1_500,
    ("conservative", 1): 1_300,
    ("conservative", 8): 2_600,
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
