"""Mean maps side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_clip import visualization
from captum_clip.errors import InputError
from tests.figure_parts import lines_of, pixels_of


def test_all_maps_share_one_scale() -> None:
    """The smallest value of all is the darkest colour, the largest the lightest."""
    rows = {"a": torch.full((1, 4, 4), 0.2), "b": torch.full((1, 3, 3), 0.6)}
    figure = visualization.average(rows)
    ends = np.array([[0.001462, 0.000466, 0.013866], [0.988362, 0.998364, 0.644924]])
    np.testing.assert_allclose(pixels_of(figure)[0][0, 0], ends[0], atol=1e-4)
    np.testing.assert_allclose(pixels_of(figure)[1][0, 0], ends[1], atol=1e-4)
    assert "0.2 to 0.6" in lines_of(figure)


def test_a_scale_can_be_given_for_several_figures() -> None:
    figure = visualization.average({"a": torch.full((1, 4, 4), 0.5)}, scale=(0.0, 1.0))
    middle = visualization.average({"a": torch.tensor([[[0.0, 1.0]]])})
    assert "0 to 1" in lines_of(figure)
    assert 0 < pixels_of(figure)[0].mean() < pixels_of(middle)[0].max()


def test_rows_columns_and_notes_have_their_words() -> None:
    figure = visualization.average(
        {"ViT": torch.rand(2, 7, 7), "ResNet": torch.rand(2, 9, 9)},
        names=["awe", "fear"],
        notes={"ViT": ["one", "two"], "ResNet": ["three", "four"]},
        caption="below",
    )
    words = {"awe", "fear", "ViT", "ResNet", "one", "two", "three", "four", "below"}
    assert words <= set(lines_of(figure))
    assert len(figure.axes) == 4


def test_equal_maps_are_drawn() -> None:
    """No scale at all is no failure."""
    visualization.average({"a": np.zeros((1, 2, 2))})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "at least one row"),
        ({"a": torch.rand(4, 4)}, r"shape \(K, h, w\) for 'a', got \(4, 4\)"),
        ({"a": torch.rand(1, 4, 4), "b": torch.rand(2, 4, 4)}, r"as many maps .* \[1, 2\]"),
        ({"a": torch.full((1, 2, 2), torch.nan)}, "the maps of 'a' hold NaN"),
    ],
)
def test_average_says_what_it_cannot_draw(rows: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=f"average: .*{message}"):
        visualization.average(rows)


def test_names_must_be_as_many_as_the_maps() -> None:
    with pytest.raises(InputError, match="expected 1 names, got 2"):
        visualization.average({"a": torch.rand(1, 4, 4)}, names=["a", "b"])
