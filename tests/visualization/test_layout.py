from __future__ import annotations

import pytest
from matplotlib.text import Text

from captum_clip.visualization.layout import page, wrap


def wrapped(words: str, width: float) -> Text:
    text = page(100).text(0, 0, words, fontsize=8, parse_math=False)
    wrap(text, width)
    return text


@pytest.mark.parametrize(
    "words", ["a horse", "Donaudampfschifffahrtsgesellschaft", "", "$ 4 < 5 M W"]
)
@pytest.mark.parametrize("width", [0.2, 0.8, 4])
def test_wrap_keeps_every_character_and_the_width(words: str, width: float) -> None:
    text = wrapped(words, width)
    assert "".join(text.get_text().split()) == words.replace(" ", "")
    assert text.get_window_extent().width <= 100 * width


def test_wrap_breaks_at_spaces_where_it_can() -> None:
    assert wrapped("one two", 10).get_text() == "one two"
    assert wrapped("one two (last-grad)", 0.8).get_text() == "one two\n(last-grad)"
