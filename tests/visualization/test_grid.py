"""Texts are as wide as their place, and files are there whole or not at all."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.visualization import save_figure
from captum_clip.visualization.charts import strip_legends
from captum_clip.visualization.grid import Panel, folded, grid, page, wrap


def wrapped(words: str, width: float) -> Text:
    text = page(100).text(0, 0, words, fontsize=8, parse_math=False)
    wrap(text, width)
    return text


def test_rows_of_wide_images_are_folded_earlier() -> None:
    """So that they are as long: eight squares, or six images of 4 by 3, one of 80 by 1."""
    for shape, rows in (
        ((9, 9, 3), [8]),
        ((9, 3, 3), [8]),
        ((9, 12, 3), [4, 4]),
        ((1, 80, 3), 8 * [1]),
    ):
        assert [len(row) for row in folded(8 * [Panel(np.zeros(shape, np.float32))])] == rows


def test_wrap_keeps_every_character_and_the_width() -> None:
    texts = ("a horse", "Donaudampfschifffahrtsgesellschaft", "", "$ 4 < 5 M W")
    for words, width in product(texts, (0.2, 0.8, 4)):
        text = wrapped(words, width)
        assert "".join(text.get_text().split()) == words.replace(" ", "")
        assert text.get_window_extent().width <= 100 * width


def test_legends_of_long_texts_stay_in_the_figure() -> None:
    """As those of two captions that are contrasted."""
    image = Panel(np.zeros((64, 64, 3), np.float32))
    for text in ("a horse", "a photo of a black and white horse in the snow with a dog"):
        made = grid([[image, image]], legends=strip_legends(f"for {text}", f"rather than {text}"))
        [legend] = made.legends
        made.draw_without_rendering()
        assert legend.get_window_extent().x1 <= made.bbox.x1
        assert legend.get_window_extent().y0 >= 0
        assert ("\n" in legend.get_texts()[0].get_text()) == (len(text) > 9)


@pytest.fixture
def figure() -> Figure:
    made = Figure(figsize=(1, 1), dpi=50)
    made.text(0.5, 0.5, "x\x01")
    return made


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".jpg", b"\xff\xd8\xff"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")],
)
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_save_figure_writes_the_format_of_the_ending(
    figure: Figure, tmp_path: Path, ending: str, start: bytes
) -> None:
    """The same figure is the same file, and no character is one that XML forbids."""
    path = save_figure(figure, str(tmp_path / f"figure{ending}"))
    content = path.read_bytes()
    assert content.startswith(start)
    assert b"\x01</" not in content
    assert os.listdir(tmp_path) == [path.name]
    if ending != ".svg":  # whose identifiers are random
        assert save_figure(figure, path).read_bytes() == content


def test_save_figure_keeps_the_figures_resolution_and_the_usual_permissions(
    tmp_path: Path,
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = save_figure(Figure(figsize=(1, 1), dpi=50), tmp_path / "figure.png")
    with Image.open(path) as image:
        assert image.size == (50, 50)
    assert path.stat().st_mode == plain.stat().st_mode


def test_save_figure_refuses_a_destination_that_cannot_be(figure: Figure, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, message in (
        ("figure.gif", r"must end in \.png, \.jpg, \.jpeg, \.pdf, \.svg"),
        ("figure", "must end in"),
        ("none/figure.png", "there is no folder"),
        ("folder.png", "it is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            save_figure(figure, tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]
