"""Letters that matplotlib's usual font lacks come from an installed font, or become a named box."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager

from captum_clip.errors import CaptumClipWarning
from captum_clip.visualization import save_figure, sentences
from captum_clip.visualization.grid import Panel, grid

IN_NO_FONT = "\U0010fffd"  # for private use, so that only a placeholder of every letter has it


def drawn(title: str, families: str = "sans-serif") -> Figure:
    with rc_context({"font.family": families}):
        return grid([[Panel(np.ones((8, 8, 3), np.float32), title=title)]])


def test_letters_that_a_font_lacks_come_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computer Modern has no Cyrillic; matplotlib itself would draw a box for each letter."""
    gone = FontEntry(fname="gone.ttf", name="Gone")
    monkeypatch.setattr(fontManager, "ttflist", [gone, *fontManager.ttflist])
    text, *_ = drawn("лошадь, horse", "cmtt10").axes[0].texts
    assert text.get_text() == "лошадь, horse"
    first, *others = text.get_fontfamily()
    assert first == "cmtt10"
    assert others
    usual, *_ = drawn("лошадь, horse").axes[0].texts
    assert usual.get_fontfamily() == ["sans-serif"]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_letter_in_no_font_is_a_box_and_named_once(tmp_path: Path, ending: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        figure = drawn(f"{IN_NO_FONT} horse {IN_NO_FONT}")
        save_figure(figure, tmp_path / f"figure{ending}")
    [warning] = told
    assert warning.category is CaptumClipWarning
    assert re.search(f"has {IN_NO_FONT}, so .* install .* Noto Emoji", str(warning.message))
    assert figure.axes[0].texts[0].get_text() == "□ horse □"


def test_words_have_fonts_too() -> None:
    with pytest.warns(CaptumClipWarning, match=IN_NO_FONT):
        figure = sentences(np.ones((1, 3, 8, 8), np.float32), [[(IN_NO_FONT, 1.0)]])
    assert "□" in [text.get_text() for axes in figure.axes for text in axes.texts]
