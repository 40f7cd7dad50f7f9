"""Data sets that an evaluation reads, by name, as the command line takes them."""

from collections.abc import Callable, Iterable
from typing import Final

from ...errors import InputError, public
from . import benchmarks, demo, formats, labels, photographs
from .base import DataSet, FileData, Region, Sample, digest, masked_sample
from .demo import DemoScenes

__all__ = [
    "DATA_SETS",
    "DataSet",
    "DemoScenes",
    "FileData",
    "Region",
    "Sample",
    "digest",
    "masked_sample",
    "open_data",
]

_SETS: Final[tuple[type[DataSet], ...]] = (
    *(DemoScenes, demo.DemoObjects, demo.DemoMosaics, demo.DemoThirds, demo.DemoIdentical),
    *(
        formats.MaskedFolder,
        benchmarks.ImageNetSegmentation,
        benchmarks.ImageNetS,
        benchmarks.PascalVoc,
    ),
    *(formats.ClassFolder, formats.ClassMosaics, labels.LabelFolder),
    *(photographs.CaptionFolder, photographs.CounterfactualFolder, photographs.PointFolder),
    photographs.CopyFolder,
)
DATA_SETS: Final = {data_set.name: data_set for data_set in _SETS}
"""All data sets by name; one of your own is known under the name that it is entered with."""


def forms() -> list[str]:
    """List all that :func:`open_data` takes, as "voc:FOLDER"."""
    return [f"{name}:{kind.place}" if kind.place else name for name, kind in DATA_SETS.items()]


def options_of(name: str) -> Iterable[str]:
    """The own options of a data set, of the name that :func:`open_data` takes."""
    data_set = DATA_SETS.get(name.partition(":")[0])
    return data_set.options if data_set else ()


@public("open_data")
def open_data(
    name: str, *, number: int | None = None, seed: int = 0, **options: str | None
) -> DataSet:
    """Open a data set by name.

    Args:
        name: of :data:`DATA_SETS`, as "demo" or "demo-mosaics", where it has a place with that
            place: "masks:FOLDER", "imagenet-segmentation:FILE" and so on.
        number: of samples; of files a drawn sample. None is 500 of the demo, and all files.
        seed: of the demo's scenes, or of the drawn sample.
        **options: the data set's own, None for its default: `template`, the text of a class with
            "{}" for its name; `void`, "out" or "background", what becomes of the pixels that
            "voc" marks so.

    Raises:
        InputError: another name, an option that the data set does not have, or what the data set
            itself cannot work with.

    Example:
        >>> len(open_data("demo", number=3))
        3
    """
    kind, colon, place = name.partition(":")
    data_set = DATA_SETS.get(kind)
    if data_set is None or bool(data_set.place) != bool(colon) or bool(colon) != bool(place):
        raise InputError(f"there is no data set {name!r}; expected one of {', '.join(forms())}.")
    accepted = data_set.check_options(options)
    build: Callable[..., DataSet] = data_set
    if not place:
        return build(500 if number is None else number, seed)
    return build(place, limit=number, seed=seed, **accepted)
