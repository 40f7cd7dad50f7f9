"""Losses on maps: closed forms, what they refuse, and a step of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_clip import ClipSimilarity, DirectContribution, targets
from captum_clip.errors import InputError
from captum_clip.maps import agreement, outside_share
from tests import builders
from tests.attr import cases

MAPS = torch.tensor([[[[3.0, -1.0], [0.0, 4.0]], [[0.0, 0.0], [-2.0, 0.0]]]])


def in_graph(maps: Tensor = MAPS) -> Tensor:
    """Maps that require a gradient."""
    return maps.clone().requires_grad_()


def test_outside_share_is_that_of_the_absolute_values() -> None:
    """With masks of cells or of pixels, of which each cell has a share."""
    cells = torch.tensor([[[1, 0], [0, 0]]])
    torch.testing.assert_close(outside_share(in_graph(), cells), torch.tensor([[5 / 8, 1.0]]))
    pixels = torch.zeros(1, 4, 4, dtype=torch.bool)
    pixels[0, :2, :3] = True  # the first cell, and half of the second
    wanted = torch.tensor([[4.5 / 8, 1.0]])
    torch.testing.assert_close(outside_share(in_graph(), pixels), wanted)
    assert outside_share(in_graph(0 * MAPS), cells).eq(0).all()


def test_agreement_is_a_cosine() -> None:
    """Signs count, scales do not."""
    wanted = torch.stack([MAPS[:, 0], -7 * MAPS[:, 1]], 1)
    torch.testing.assert_close(agreement(in_graph(), wanted), torch.tensor([[1.0, -1.0]]))
    mixed = torch.ones(1, 2, 2, 2)
    expected = torch.tensor([[6 / (26**0.5 * 2), -0.5]])
    torch.testing.assert_close(agreement(in_graph(), mixed), expected)


MASK = torch.ones(1, 2, 2)


REFUSED: tuple[tuple[Any, Tensor, Tensor, str], ...] = (
    (outside_share, MAPS, MASK, "the maps have no graph to train; make them with create_graph"),
    (agreement, MAPS, MAPS, "the maps have no graph"),
    (outside_share, in_graph(), torch.ones(2, 2, 2), "masks of the 1 preprocessed images"),
    (outside_share, in_graph(), torch.ones(1, 480, 640), "crop and resize them as the images"),
    (outside_share, in_graph(), torch.ones(1, 2, 4), "sees as 2 x 2 cells, got Tensor"),
    (outside_share, in_graph(), MASK[0], r"masks of shape \(B, H, W\)"),
    (outside_share, in_graph(), 0 * MASK, r"masks of the images \[0\] are empty; leave these"),
    (outside_share, in_graph()[0], MASK, r"maps of shape \(B, K, h, w\)"),
    (agreement, in_graph(), MAPS[:, :1], r"expected maps of shape \(1, 2, 2, 2\)"),
    (agreement, in_graph(), 0 * MAPS, "expected maps of the images .* are empty"),
)


def test_losses_refuse_what_trains_nothing() -> None:
    """In a sentence that begins with their name."""
    for loss, maps, other, message in REFUSED:
        with pytest.raises(InputError, match=message) as refused:
            loss(maps, other)
        assert str(refused.value).startswith(f"{loss.__name__}: ")


def test_losses_are_measured_without_a_graph_where_there_is_none() -> None:
    """As on validation images."""
    with torch.no_grad():
        assert outside_share(MAPS, MASK).shape == agreement(MAPS, MAPS).shape == (1, 2)


def test_a_few_steps_bring_maps_inside() -> None:
    """The penalty falls, and the cosines stay what the model gives."""
    small = builders.hf_vit()
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings(2)))
    method, images = DirectContribution(forward), small.images()
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, :16, :16] = True
    optimizer = torch.optim.SGD(small.model.vision_model.parameters(), lr=0.2)
    shares = []
    for _ in range(4):
        maps, scores = method.attribute_targets(images, return_scores=True, create_graph=True)
        share = outside_share(maps, masks).mean()
        optimizer.zero_grad()
        share.backward()
        optimizer.step()
        shares.append(float(share.detach()))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.9 * shares[0]
    assert not torch.allclose(scores, forward(images))
