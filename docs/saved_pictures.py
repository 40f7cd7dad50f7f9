"""How the gallery's pictures reach their pages: sphinx-gallery takes what a script saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst


def take(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Move the pictures that a block saved to where its page shows them.

    Sphinx-gallery sees figures of pyplot only; those of captum_clip stand alone, so that they may
    be drawn in any thread.

    Args:
        block: the code and its place.
        variables: the script's, with the paths of its pictures.
        settings: the gallery's.

    Returns:
        The pictures as reStructuredText.
    """
    saved = sorted(Path(variables["src_file"]).parent.glob("*.png"))
    targets = [variables["image_path_iterator"].next() for _ in saved]
    for source, target in zip(saved, targets, strict=True):
        shutil.move(source, target)
    return str(figure_rst(targets, settings["src_dir"]))
