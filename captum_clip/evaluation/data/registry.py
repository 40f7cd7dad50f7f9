"""Data sets by name, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ...errors import InputError
from .base import DataSet
from .class_folder import ClassFolder
from .demo import DemoMosaics, DemoScenes, DemoSingles
from .fixation_folder import FixationFolder
from .imagenet_segmentation import ImageNetSegmentation
from .masked_folder import MaskedFolder
from .pascal_voc import PascalVoc

DRAWN: Final[dict[str, Callable[[int, int], DataSet]]] = {
    one.name: one for one in (DemoScenes, DemoSingles, DemoMosaics)
}
"""Data sets that need no files."""

READ: Final[dict[str, tuple[type[DataSet], str, tuple[str, ...]]]] = {
    MaskedFolder.name: (MaskedFolder, "FOLDER", ()),
    ImageNetSegmentation.name: (ImageNetSegmentation, "FILE", ("template",)),
    PascalVoc.name: (PascalVoc, "FOLDER", ()),
    ClassFolder.name: (ClassFolder, "FOLDER", ("template",)),
    FixationFolder.name: (FixationFolder, "FOLDER", ("text",)),
}
"""Data sets that are read, what follows their name, and their own options."""

FORMS: Final = (*DRAWN, *(f"{name}:{what}" for name, (_, what, _) in READ.items()))
"""All that :func:`open_data` takes."""


def options_of(name: str) -> tuple[str, ...]:
    """The own options of a data set, of the name that :func:`open_data` takes."""
    kind = name.partition(":")[0]
    return READ[kind][2] if kind in READ else ()


def open_data(
    name: str,
    *,
    number: int | None = None,
    seed: int = 0,
    template: str | None = None,
    text: str | None = None,
) -> DataSet:
    """Open a data set by name.

    Args:
        name: "demo", "demo-singles", "demo-mosaics", "masks:FOLDER",
            "imagenet-segmentation:FILE", "voc:FOLDER", "classes:FOLDER" or "fixations:FOLDER".
        number: of samples; of files a drawn sample. None is 500 of the demo, and all files.
        seed: of the demo's scenes, or of the drawn sample.
        template: text of a class with "{}" for its name, of "imagenet-segmentation" and "classes";
            None is the data set's own.
        text: that fixations are compared with where no texts.csv names another.

    Raises:
        InputError: another name, an option that the data set does not have, or what the data set
            itself cannot work with.

    Example:
        >>> len(open_data("demo", number=3))
        3
    """
    kind, mark, place = name.partition(":")
    given: dict[str, Any] = {"template": template, "text": text}
    given = {option: value for option, value in given.items() if value is not None}
    if name in DRAWN:
        _refuse(name, given, ())
        return DRAWN[name](500 if number is None else number, seed)
    if kind not in READ or not mark or not place:
        raise InputError(f"there is no data set {name!r}; expected one of {', '.join(FORMS)}.")
    reader, _, options = READ[kind]
    _refuse(kind, given, options)
    found: Callable[..., DataSet] = reader
    try:
        return found(place, limit=number, seed=seed, **given)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(f"{name[:200]!r} cannot be read ({error}).") from error


def _refuse(name: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    other = [option for option in given if option not in known]
    if other:
        raise InputError(f"the data set {name} takes no {other[0]}.")
