"""One picture for each image of a folder, and contact sheets of them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ..errors import InputError
from ..files import DAMAGED
from ..models import ClipAdapter
from ..runs import Engine, Progress, Storage, manifest, storage_of
from ..runs.run import tidy_up
from ..visualization.grid import Panel, grid
from ..visualization.saving import save_figure
from . import file_list
from .file_list import FileList, list_images

SHEET: Final = "contact_sheet.jpg"
_ON_A_SHEET: Final = 24  # pictures
_WIDE: Final = 12  # inches of a sheet
_PIXELS: Final = 360  # of a square picture's side there


@dataclass(frozen=True)
class PictureFolder:
    """What was drawn of a folder of images."""

    pictures: dict[Path, Path]  # image -> its picture, of all that could be drawn
    sheets: tuple[Path, ...]  # the pictures together, 24 a sheet
    skipped: dict[Path, str]  # image -> why it has none; it is tried again in the next run


def draw_folder(
    images: Path,
    output: Path,
    draw: Callable[[Path], Figure],
    *,
    settings: Mapping[str, Any],
    models: Sequence[ClipAdapter],
    progress: Progress | None = None,
) -> PictureFolder:
    """Draw every image of a folder that has no picture yet, then the contact sheets.

    Started again after a stop, it keeps the pictures that are whole, and draws those of images
    that came, or have another size; the folder ends up the same, to the byte. The picture of
    ``inner/a.jpg`` is ``inner/a.jpg.png`` in a folder of its own; `settings` are all that decides
    the pictures beside the models, as JSON. `progress` is told first what an earlier run had drawn.

    Raises:
        InputError: no image, none that can be drawn, or a folder that holds something else or
            pictures with other settings.
    """
    source, target = storage_of(images), storage_of(output)
    files = list_images(source, target)
    on_gpu = any(clip.device.type == "cuda" for clip in models)
    engine = Engine("local", 0, int(on_gpu), torch.get_num_threads())
    about = {
        "config": dict(settings),
        "models": [{"name": clip.name, "fingerprint": clip.fingerprint} for clip in models],
    }
    with target.lock():
        begun = manifest.begin(_KIND, about, target, engine)
        tidy_up(target)
        _forget_changed(files, target)
        target.write(manifest.NAME, manifest.to_bytes(begun))
        target.write(file_list.NAME, files.to_csv())
        skipped = _draw_missing(files, source, target, draw, progress)
        kept = [name for name in files.names if name not in skipped]
        if not kept:
            name, reason = next(iter(skipped.items()))
            raise InputError(f"none of the {len(skipped)} images can be drawn; {name}: {reason}")
        sheets = list(_draw_sheets(files.names, set(kept), target))
        entries = [{"file": name, "reason": reason} for name, reason in skipped.items()]
        done = {**begun, "state": "drawn", "images": len(files), "skipped": entries}
        target.write(manifest.NAME, manifest.to_bytes(done))
    return PictureFolder(
        {images / name: output / _picture(name) for name in kept},
        tuple(output / name for name in sheets),
        {images / name: reason for name, reason in skipped.items()},
    )


def _differences(before: manifest.Content, now: manifest.Content) -> list[str]:
    then, today = (
        {
            **about["config"],
            # as much of the fingerprints as tells two sets of weights apart in a sentence
            "models": [
                f"{model['name']} ({model['fingerprint'][:8]})" for model in about["models"]
            ],
        }
        for about in (before, now)
    )
    return manifest.changes(then, today)


_TYPES: Final = {"config": dict, "models": list}
_KIND: Final = manifest.ManifestFormat(
    "folder of pictures", "captum_clip pictures 1", _TYPES, _differences
)


def _picture(name: str) -> str:
    # with the ending, since a folder may hold a.jpg and a.png
    return f"{name}.png"


def _sheet(number: int) -> str:
    return SHEET if number == 0 else SHEET.replace(".", f"-{number + 1}.")


def _forget_changed(files: FileList, target: Storage) -> None:
    """Remove what an earlier run drew of images that are gone or have another size since."""
    content = target.read(file_list.NAME)
    before = files if content is None else FileList.from_csv(content)
    if before == files:
        return
    for name, _ in set(before.files) - set(files.files):
        target.remove(_picture(name))
    for number in range(math.ceil(len(before) / _ON_A_SHEET)):
        target.remove(_sheet(number))


def _draw_missing(
    files: FileList,
    source: Storage,
    target: Storage,
    draw: Callable[[Path], Figure],
    progress: Progress | None,
) -> dict[str, str]:
    """Draw what has no whole picture; name -> why it cannot be drawn."""
    missing = [
        number
        for number, name in enumerate(files.names)
        if not _is_whole(Path(target.root, _picture(name)))
    ]
    skipped = {}
    for done, number in enumerate(missing, len(files) - len(missing)):
        if progress is not None:
            progress(done, len(files))
        name = files.names[number]
        # a stop between the picture and its sheet must not leave an old sheet
        target.remove(_sheet(number // _ON_A_SHEET))
        picture = Path(target.root, _picture(name))
        picture.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure = draw(Path(source.root, name))
        except InputError as error:
            skipped[name] = str(error).removeprefix("preprocess: ")
        else:
            save_figure(figure, picture)
    if progress is not None:
        progress(len(files), len(files))
    return skipped


def _is_whole(picture: Path) -> bool:
    try:
        with Image.open(picture) as image:
            image.verify()
    except DAMAGED:
        return False
    return True


def _draw_sheets(names: Sequence[str], kept: set[str], target: Storage) -> Iterator[str]:
    """Draw the sheets that are not there yet; the names of all."""
    for number, start in enumerate(range(0, len(names), _ON_A_SHEET)):
        shown = [name for name in names[start : start + _ON_A_SHEET] if name in kept]
        path = Path(target.root, _sheet(number))
        if shown and not _is_whole(path):
            save_figure(_draw_sheet(shown, target), path)
        if shown:
            yield path.name


def _draw_sheet(names: Sequence[str], target: Storage) -> Figure:
    """Pictures beside each other, all in the shape of the first one."""
    panels: list[Panel] = []
    shape: tuple[int, int] | None = None
    ratio = 1.0
    for name in names:
        with Image.open(Path(target.root, _picture(name))) as picture:
            if shape is None:
                ratio = picture.width / picture.height
                shape = (round(_PIXELS * math.sqrt(ratio)), round(_PIXELS / math.sqrt(ratio)))
            thumbnail = ImageOps.pad(picture.convert("RGB"), shape, color="white")
        shown = name.encode("utf-8", "replace").decode()
        panels.append(Panel(np.asarray(thumbnail, np.float32) / np.float32(255), shown))
    columns = max(1, int(_WIDE / (2 * math.sqrt(ratio))))
    return grid([panels[start : start + columns] for start in range(0, len(panels), columns)])
