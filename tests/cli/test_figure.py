"""``captum-clip figure`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from captum_clip import demo
from captum_clip.attr.registry import methods_for
from captum_clip.visualization import grid
from tests.cli.conftest import Run

VIT_METHODS, RESNET_METHODS = (len(methods_for(kind)) for kind in ("vit", "resnet"))


@pytest.mark.parametrize(
    ("line", "panels"),
    [
        ("compare photo.jpg other.png 'a horse' --model VIT", 2 * (1 + VIT_METHODS)),
        ("compare photo.jpg sky --model VIT --model RESNET", 2 + VIT_METHODS + RESNET_METHODS),
        ("compare photo.jpg a --image other.png --model VIT --method direct", 2 * 2 + 1),
        ("compare --model VIT --colormap jet photo.jpg --method all-grad other.png a", 2 * 2),
    ],
)
def test_each_figure_is_drawn(line: str, panels: int, run: Run) -> None:
    assert run(f"figure {line} -o figure.svg") == "figure.svg\n"
    assert Path("figure.svg").read_text().count("<image") == panels


@pytest.mark.parametrize("line", ["explain photo.jpg a", "figure compare photo.jpg a"])
def test_a_figure_has_the_look_of_its_line(
    line: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its width and its colors; the figure command and explain take the same options."""
    monkeypatch.setattr(grid, "_FINE", 400)
    plain = f"{line} --model VIT --method direct --no-titles --no-colorbar --dpi 400 --width 4"
    run(f"{plain} --colormap gray --interpolation nearest --scale shared --alpha 1 -o a.png")
    with Image.open("a.png") as image:
        assert abs(image.width - 1600) <= 1
    run(f"{plain} --vector --transparent -o a.svg")
    assert "<text" not in Path("a.svg").read_text()


def test_averages_are_drawn_of_studies(run: Run) -> None:
    run("study statistics photos a b --model VIT --workers 0 --quiet -o study")
    assert run("figure average study --target a --colormap viridis") == "study-average.png\n"
    assert "expected --target that the study holds ('a', 'b'), got 'joy'" in run(
        "figure average study --target joy", code=2
    )


def test_each_image_of_a_folder_gets_the_figure_that_it_has_alone(run: Run) -> None:
    again = "figure compare photos horse --model VIT --method direct"
    assert run(again) == "3 figures in photos-compare\n"
    alone = again.replace("photos", "photos/image0.png")
    assert run(alone) == "image0-compare-horse.png\n"
    drawn = Path("photos-compare/image0-compare-horse.png")
    assert drawn.read_bytes() == Path("image0-compare-horse.png").read_bytes()
    assert run(again) == "3 figures in photos-compare (3 existed)\n"
    assert 'cmap was null and is "jet"' in run(f"{again} --colormap jet", code=2)


def test_a_scene_is_drawn_for_the_embedded_models(
    run: Run, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.MODELS, "demo/vit", Path(vit))
    assert run("figure compare a --scene 0:horse,dog") == "scene-0-compare-a.png\n"
    run("figure compare --scene 1 --scene 2 a -o both.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare photo.jpg a --model VIT --method grad-cam", "none of the methods grad-cam fits"),
    ],
)
def test_what_does_not_fit_a_model_is_one_sentence(line: str, message: str, run: Run) -> None:
    assert message in run(f"figure {line}", code=2)
