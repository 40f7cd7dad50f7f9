"""One look for all that draws: what each of its fields changes, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from PIL import Image

from captum_clip import Explanation, visualization
from captum_clip.errors import InputError
from captum_clip.look import current_look
from captum_clip.visualization import Look, colors
from tests.figure_parts import lines_of, pixels_of, texts_of
from tests.samples import uniform

IMAGES = uniform(2, 3, 8, 8)
RAW = torch.tensor([1.0, 4.0])[:, None, None, None] * uniform(2, 2, 4, 4, seed=1)


def explained(**changes: Any) -> Explanation:
    fields: dict[str, Any] = {
        "maps": {"positive": RAW},
        "scores": torch.zeros(2, 2),
        "names": ("a horse", "a dog"),
        "norms": torch.ones(2),
        "model": "small",
        "method": "direct",
        "images": IMAGES,
    }
    return Explanation(**{**fields, **changes})


def test_a_width_has_a_unit() -> None:
    for width, inches in ((5, 5), ("5", 5), ("361.35pt", 5), ("12.7cm", 5), (" 127 mm", 5)):
        assert Look(width=width).inches == pytest.approx(inches)


@pytest.mark.parametrize(
    "options", [{}, {"labels": ["one", "a much longer name"]}, {"titles": False}]
)
def test_a_figure_is_as_wide_as_it_is_asked_to_be(options: dict[str, Any]) -> None:
    """Whatever stands around the images, to a pixel."""
    figure = visualization.overlay(IMAGES, RAW / 4, names=["a", "b"], width=5, **options)
    assert abs(figure.get_size_inches()[0] - 5) <= 1 / figure.dpi


def test_a_text_is_as_wide_as_it_is_asked_to_be() -> None:
    words = [[("a", 0.1), ("horse", 0.2)]]
    figure = visualization.sentences(IMAGES[:1], words, width=5, font_size=12)
    assert figure.get_size_inches()[0] == 5
    assert max(text.get_fontsize() for text in texts_of(figure)) == 12 * 10 / 8


def test_letters_have_the_size_of_the_look_or_of_matplotlib() -> None:
    def sizes(**options: Any) -> set[float]:
        return {
            round(float(text.get_fontsize()), 6) for text in texts_of(explained().plot(**options))
        }

    assert sizes() == {8, 7}
    assert sizes(font_size=12) == {12, 10.5}
    with rc_context({"font.size": 5, "font.family": "serif"}):
        assert sizes() == {4, 3.5}
        assert {text.get_fontfamily()[0] for text in texts_of(explained().plot())} == {"serif"}


def test_a_dark_style_has_light_letters_on_its_page(tmp_path: Path) -> None:
    dark = {"text.color": "white", "figure.facecolor": "black", "savefig.facecolor": "black"}
    with rc_context(dark):
        figure = explained().plot()
        clear = explained().save(tmp_path / "clear.png", transparent=True)
    assert {to_hex(text.get_color()) for text in texts_of(figure)} == {"#ffffff"}
    assert figure.get_facecolor() == (0, 0, 0, 1)
    assert Image.open(clear).getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_dpi_is_that_of_the_file(tmp_path: Path) -> None:
    for dpi in (50, 300):
        with Image.open(explained().save(tmp_path / "a.png", width=3, dpi=dpi)) as image:
            assert abs(image.width - 3 * dpi) <= 2
    explained().plot(width=3, dpi=100).savefig(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert abs(image.width - 300) <= 2


def test_a_shared_scale_makes_the_largest_value_of_all_maps_one() -> None:
    """Zero stays zero, and a number takes the place of the largest value."""
    found = explained()
    for scale, top in (("shared", float(RAW.max())), (2.5, 2.5), ("2.5", 2.5)):
        heatmap = found.heatmap("nearest", scale=scale)["positive"]
        expected = (RAW / top).clamp(max=1).repeat_interleave(2, -1).repeat_interleave(2, -2)
        torch.testing.assert_close(heatmap, expected)
        drawn = pixels_of(found.plot(scale=scale, interpolation="nearest", cmap="gray"))
        wanted = colors.blend(IMAGES[1].movedim(0, -1).numpy(), heatmap[1, 0].numpy(), GRAY)
        np.testing.assert_allclose(drawn[4], wanted, atol=1e-5)
    assert "all maps of this figure on one scale" in " ".join(lines_of(found.plot(scale="shared")))


GRAY = colormaps["gray"]


def test_text_stays_text_in_pdf_and_svg(tmp_path: Path) -> None:
    """Type 42 can be edited, and Type 3 is refused by publishers."""
    found = explained()[0]
    for vector in (False, True):
        pdf = found.save(tmp_path / "a.pdf", vector=vector).read_bytes()
        assert (b"/FontFile2" in pdf, b"/Type3" in pdf) == (True, False)
        svg = found.save(tmp_path / "a.svg", vector=vector).read_text()
        assert ">a horse</text>" in svg


def test_a_vector_map_is_filled_contours_over_the_photo(tmp_path: Path) -> None:
    """In the colors that the pixels have, but for the steps between 16 levels."""
    image = torch.ones(1, 3, 64, 64) * torch.linspace(0, 1, 64)
    found = explained(images=image, maps={"positive": RAW[:1]}, scores=torch.zeros(1, 2))
    plain: dict[str, Any] = {"colorbar": False, "titles": False}
    files = [found.save(tmp_path / f"{v}.png", vector=v, **plain) for v in (False, True)]
    pixels, drawn = (np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in files)
    assert np.abs(pixels - drawn).mean() < 3
    figure = found.plot(vector=True)
    assert [len(axes.collections) for axes in figure.axes] == [0, 1, 1]


def test_a_look_holds_for_its_call_and_its_thread() -> None:
    seen = []
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(InputError):
            explained().plot(alpha=0.3, cmap="none such")
        seen.append(pool.submit(current_look.get).result())
    assert [current_look.get(), *seen] == [Look()] * 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"width": "wide"}, "`width` in inches, or as in 246pt or 8.6cm, got 'wide'"),
    ({"width": -1}, "`width` in inches"),
    ({"width": 0.5}, "`width` with room for 3 images, about 1.1 inches or more, got 0.5"),
    ({"scale": "common"}, "`scale` of own, shared or a number above zero, got 'common'"),
    ({"scale": 0}, "`scale` of own"),
    ({"font_size": 0}, r"`font_size` in \[1, inf\), got 0"),
    ({"dpi": 1}, r"`dpi` in \[10, inf\), got 1"),
    ({"dpi": 1e5}, "with `dpi=100000.0` it would be .* pixels"),
    ({"titles": "no"}, "titles of True or False, got 'no'"),
    ({"colour": "red"}, "expected path, original, cmap, .*got 'colour'"),
]


def test_a_look_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    for options, message in WRONG:
        with pytest.raises(InputError, match=f"^save: .*{message}"):
            explained().save(tmp_path / "a.png", **options)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("a.npz", {"cmap": "jet", "dpi": 300}, "`cmap`, `dpi`"),
        ("a.npy", {"width": 3}, "`width`"),
        ("a.html", {"alpha": 0.5, "scale": "shared"}, "`scale`"),
    ],
)
def test_a_file_that_is_no_figure_refuses_a_look(
    name: str, options: dict[str, Any], refused: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{name} takes no {refused}; leave it out"):
        explained().save(tmp_path / name, **options)
