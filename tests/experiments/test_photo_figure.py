"""The figure of a photograph in README is a command."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from captum_clip.demo.scenes import draw_scene
from tests.experiments import FOLDER, printed


def test_it_writes_the_figure_and_prints_its_line(tmp_path: Path) -> None:
    """Here with an embedded model, which needs no hub."""
    photo, output = tmp_path / "scene.png", tmp_path / "photo.jpg"
    Image.fromarray(draw_scene(0, objects=["horse", "dog"]).image).save(photo)
    options = [str(photo), "a horse", "a dog", "--model", "demo/vit", "-o", str(output)]
    *_, line = printed(FOLDER / "photo_figure.py", *options)
    alt = 'A photograph, and the maps of "a horse" and "a dog" by demo/vit'
    assert line == f"![{alt}](docs/images/photo.jpg)"
    with Image.open(output) as figure:
        assert max(figure.size) == 1000
