"""What classes are called: from a file of names, or as ImageNet numbers them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from ...errors import InputError
from .files import read_lines

FILE: Final = "classnames.txt"
TEMPLATE: Final = "a photo of a {}"
"""The template of data whose classes have names only."""
_SYNSET: Final = re.compile(r"n\d{8}")


def class_texts(names: Sequence[str], folder: Path, *, template: str) -> dict[str, str]:
    """A text for each class.

    The name of a class comes from ``classnames.txt`` in the folder, if it is there (a class and its
    name a line, with a tab between them), else from ImageNet, if it is a number of WordNet such as
    "n02084071", else it is the class itself with spaces for underscores. ImageNet's names are those
    that OpenAI chose for CLIP for the thousand classes of ILSVRC 2012, and for others the first of
    WordNet's.

    Raises:
        InputError: a template without "{}", a file that cannot be read, an unknown number.
    """
    check_template(template)
    path = folder / FILE
    lines = read_lines(path) if path.exists() else []
    rows = [[part.strip() for part in line.split("\t")] for line in lines]
    wrong = [row for row in rows if len(row) != 2 or not all(row)]
    if wrong:
        raise InputError(
            f"{path}: expected a class and its name per line, with a tab between them, got "
            f"{' '.join(wrong[0])!r}."
        )
    known = dict(rows)
    return {name: template.replace("{}", known.get(name) or _name(name)) for name in names}


def check_template(template: object) -> None:
    """A text with one "{}" for the name of a class."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(f'expected a template with one "{{}}" for the name, got {template!r}.')


def _name(name: str) -> str:
    if not _SYNSET.fullmatch(name):
        return name.replace("_", " ").strip()
    known = _imagenet().get(name) or _wordnet().get(name)
    if known is None:
        raise InputError(
            f"the class {name} is not one of ImageNet's; give its name in a file {FILE}: {name}, a "
            "tab, the name."
        )
    return known


@lru_cache(maxsize=1)
def _imagenet() -> dict[str, str]:
    """Number -> name of the thousand classes."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


@lru_cache(maxsize=1)
def _wordnet() -> dict[str, str]:
    """Number -> first name of the 21 thousand classes of the whole ImageNet."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    named = zip(info.label_names(), info.label_descriptions(), strict=True)
    return {number: description.partition(",")[0].strip() for number, description in named}
