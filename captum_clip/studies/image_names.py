"""Which files of a folder are its images, and not the results of a study in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

IMAGE_ENDINGS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the files that are taken for images."""

_STUDY: Final = ("manifest.json", "images.csv")
_RANKING: Final = ("ranking.csv", "ranking.png")


def image_names(names: Iterable[str]) -> list[str]:
    """Those of the names, relative to one folder, that are images; sorted.

    Hidden files and folders are left out, and so are the pictures of earlier studies (all that is
    in a folder with their ``manifest.json`` and ``images.csv``) and of ``captum-clip rank``.

    Example:
        >>> image_names(["b.png", "a/c.JPG", "notes.txt", ".cache/d.png"])
        ['a/c.JPG', 'b.png']
    """
    known = set(names)
    paths = [PurePosixPath(name) for name in known]
    studies = {path.parent for path in paths if path.name == _STUDY[0]}
    studies = {folder for folder in studies if str(folder / _STUDY[1]) in known}
    return sorted(
        str(path)
        for path in paths
        if path.suffix.lower() in IMAGE_ENDINGS
        and not any(part.startswith(".") for part in path.parts)
        and not studies.intersection(path.parents)
        and not (path.name == _RANKING[1] and str(path.with_name(_RANKING[0])) in known)
    )
