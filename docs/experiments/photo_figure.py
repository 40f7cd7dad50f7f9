"""Draws README's figure of a photograph with a real CLIP, ``docs/images/photo.jpg``.

It needs the Hugging Face hub, or the model in its cache, and a photograph whose license allows to
show it here. It prints the line that README shows the figure with, below that of the drawn scene.

Example: python docs/experiments/photo_figure.py cats.jpg "a cat" "a remote control"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from captum_clip import explain

IMAGES = Path(__file__).parents[1] / "images"
SIDE = 1000
"""Pixels of the longer side, as the figure of the drawn scene has."""


def main() -> None:
    """Explain the photograph, keep the figure as JPEG, and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("text", nargs="+", help="what the photograph shows")
    parser.add_argument("--model", default="ViT-B/16", help="its maps have 14 x 14 cells")
    parser.add_argument("-o", "--output", type=Path, default=IMAGES / "photo.jpg")
    asked = parser.parse_args()
    explanation = explain(asked.photo, asked.text, model=asked.model)
    explanation.save(asked.output)
    with Image.open(asked.output) as drawn:
        figure = drawn.convert("RGB")
    figure.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    figure.save(asked.output, quality=90, optimize=True)
    texts = " and ".join(f'"{text}"' for text in asked.text)
    alt = f"A photograph, and the maps of {texts} by {asked.model}"
    print(*explanation.hints, f"![{alt}](docs/images/{asked.output.name})", sep="\n")


if __name__ == "__main__":
    main()
