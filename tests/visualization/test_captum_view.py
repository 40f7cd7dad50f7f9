from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from captum_clip.errors import InputError
from captum_clip.visualization import captum_image_attr

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SIGNED = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def title(figure: Figure) -> str:
    return str(figure.axes[0].get_title())


def test_captum_draws_every_method_and_sign() -> None:
    pairs: list[Any] = [
        ("heat_map", "all"),
        ("blended_heat_map", "all"),
        ("blended_heat_map", "absolute_value"),
        ("masked_image", "positive"),
        ("alpha_scaling", "negative"),
    ]
    for method, sign in pairs:
        figure = captum_image_attr(IMAGE, SIGNED, method=method, sign=sign, title="a $5 horse")
        assert title(figure) == "a $5 horse"
        assert figure.axes[0].images
    assert pyplot.get_fignums() == []


def test_a_map_of_tiny_values_is_drawn_as_any_other() -> None:
    small, usual = (
        np.asarray(
            captum_image_attr(IMAGE, scale * SIGNED, method="heat_map")
            .axes[0]
            .images[0]
            .get_array()
        )
        for scale in (1e-9, 1)
    )
    np.testing.assert_allclose(small, usual, atol=1e-4)


def test_where_captum_would_fail_the_image_is_shown_and_the_title_gives_the_reason() -> None:
    empty: list[Any] = [
        (torch.zeros(1, 1, 4, 4), "all", "horse (no saliency)"),
        (torch.zeros(1, 1, 4, 4), "positive", "horse (no positive saliency)"),
        (-SIGNED.abs(), "positive", "horse (no positive saliency)"),
        (SIGNED.abs(), "negative", "horse (no negative saliency)"),
    ]
    for attribution, sign, expected in empty:
        figure = captum_image_attr(IMAGE, attribution, sign=sign, title="horse")
        assert title(figure) == expected
        pixels = np.asarray(figure.axes[0].images[0].get_array())
        np.testing.assert_allclose(pixels / 255, IMAGE[0].permute(1, 2, 0), atol=1 / 255)


def test_captum_image_attr_names_the_choices() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "heatmap"}, "method to be one of heat_map"),
        ({"sign": "both"}, "sign to be one of all"),
        ({"method": "masked_image"}, "masked_image has no sign"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            captum_image_attr(IMAGE, SIGNED, **options)
    with pytest.raises(InputError, match=r"shape \(1, 1, h, w\), got \(1, 2, 4, 4\)"):
        captum_image_attr(IMAGE, SIGNED.expand(1, 2, 4, 4))
