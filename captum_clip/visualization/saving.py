"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, BinaryIO, Final

from matplotlib.figure import Figure

from ..checks import check_destination
from ..files import replace_file

FORMATS: Final = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
# without the time of day, the same picture is the same file
_METADATA: Final = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_JPEG: Final = {"quality": 90, "subsampling": 0}  # letters stay crisp


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, JPEG, PDF or SVG, by the ending of the name.

    The file appears under its name only when it is complete.

    Args:
        figure: any matplotlib figure.
        path: in an existing folder; an existing file is replaced.

    Returns:
        The path.

    Raises:
        InputError: another ending, or a folder that cannot be written to.
    """
    path = check_destination(path, FORMATS)
    kind = path.suffix.lower()

    def write(file: BinaryIO) -> None:
        options: dict[str, Any] = {"metadata": _METADATA.get(kind, {})}
        if kind in (".jpg", ".jpeg"):
            options = {"pil_kwargs": _JPEG}
        if kind != ".svg":
            figure.savefig(file, format=kind[1:], dpi="figure", **options)
            return
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", dpi="figure", **options)
        file.write(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawn.getvalue()).encode())

    replace_file(path, write)
    return path
