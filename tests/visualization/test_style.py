from __future__ import annotations

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from captum_clip.visualization.style import FONT, text_width, wrap


@pytest.mark.parametrize(
    "text", ["a horse", "Donaudampfschifffahrtsgesellschaft", "", "$x$ \u4e2d\u6587"]
)
@pytest.mark.parametrize("width", [20, 60, 300])
def test_wrap_keeps_every_character_and_the_width(text: str, width: float) -> None:
    lines = wrap(text, width, 8)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(text_width(line, 8) <= width for line in lines)


def test_wrap_breaks_at_spaces_where_it_can() -> None:
    assert wrap("one  two\nthree", 1000, 8) == ["one two three"]
    assert wrap("one two three", text_width("one two", 8), 8) == ["one two", "three"]


def test_text_width_is_the_width_that_is_drawn() -> None:
    text = "a horse and a dog on the grass"
    drawn = TextPath((0, 0), text, size=100, prop=FontProperties(family=FONT)).get_extents().width
    assert text_width(text, 100) == pytest.approx(drawn, rel=0.03)
