"""Data sets that an evaluation reads, by name, as the command line takes them."""

from collections.abc import Callable
from typing import Final

from ...errors import InputError, public
from . import demo, readers
from .base import DataSet, NamedRegion, Sample, entries_digest
from .demo import DemoScenes
from .readers import FileData

__all__ = [
    "DATA_SETS",
    "DataSet",
    "DemoScenes",
    "FileData",
    "NamedRegion",
    "Sample",
    "entries_digest",
    "open_data",
]

DATA_SETS: Final[dict[str, type[DataSet]]] = {
    kind.name: kind
    for kind in (
        DemoScenes,
        demo.DemoObjects,
        demo.DemoMosaics,
        demo.DemoThirds,
        demo.DemoIdentical,
        readers.MaskedFolder,
        readers.CocoInstances,
        readers.SampleList,
    )
}
"""All data sets by name; one of your own is known under the name that it is entered with."""


def forms() -> list[str]:
    """List all that :func:`open_data` takes, as "masks:FOLDER"."""
    return [f"{name}:{kind.place}" if kind.place else name for name, kind in DATA_SETS.items()]


@public("open_data")
def open_data(
    name: str, *, number: int | None = None, seed: int = 0, template: str | None = None
) -> DataSet:
    """Open a data set by name.

    Args:
        name: of :data:`DATA_SETS`, as "demo" or "demo-mosaics", where it has a place with that
            place: "masks:FOLDER", "coco:FILE" or "coco:FILE,FOLDER" with the folder of its images,
            or "samples:FILE".
        number: of samples; of files a drawn sample. None is 500 of the demo, and all files.
        seed: of the demo's scenes, or of the drawn sample.
        template: the text of a class with "{}" for its name, where the data set takes one; None
            for its default.

    Raises:
        InputError: another name, a template that the data set does not take, or what the data set
            itself cannot work with.

    Example:
        >>> len(open_data("demo", number=3))
        3
    """
    kind, colon, place = name.partition(":")
    data_set = DATA_SETS.get(kind)
    if data_set is None or bool(data_set.place) != bool(colon) or bool(colon) != bool(place):
        raise InputError(
            f"there is no data set {name!r}; expected one of {', '.join(forms())}. "
            "docs/examples/convert.py writes samples.jsonl from other forms, such as Pascal VOC."
        )
    if template is not None and not data_set.takes_template:
        raise InputError(f"the data set {kind} takes no template.")
    build: Callable[..., DataSet] = data_set
    if not place:
        return build(500 if number is None else number, seed)
    options = {"template": template} if data_set.takes_template else {}
    return build(place, limit=number, seed=seed, **options)
