"""Small files of the formats that the data sets read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.experiments import printed

SIZE = (20, 30)  # height, width
JPEG_OF_NOTHING = b"\xff\xd8\xff\xe0 no image follows"


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """An RGB picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box(size: tuple[int, int] = SIZE, *, rows: slice, columns: slice) -> Any:
    """A mask (H, W) of a rectangle."""
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


LEFT = box(rows=slice(2, 11), columns=slice(1, 12))
RIGHT = box(rows=slice(5, 19), columns=slice(20, 29))


def same(found: Any, expected: Any) -> bool:
    """Whether two arrays have the same shape and values; None is no array."""
    return found is not None and np.array_equal(found, expected)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Write an image, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def save_mask(mask: Any, path: Path, value: int = 255) -> Path:
    """Write a gray mask."""
    return save(Image.fromarray(mask.astype(np.uint8) * np.uint8(value)), path)


def save_bytes(content: bytes, path: Path) -> Path:
    """Write any bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def converted(form: str, source: Path, *options: str) -> str:
    """What docs/examples/convert.py makes of a benchmark's files, as "samples:FILE,FOLDER"."""
    script = Path(__file__).parents[3] / "docs/examples/convert.py"
    output = source.with_name(f"{source.stem}-{form}") / "samples.jsonl"
    printed(script, form, str(source), str(output), *options)
    return f"samples:{output},{source.parent}"


def save_numbers(numbers: Any, path: Path) -> Path:
    """Red + 256 green, as the masks of ImageNet-S."""
    channels = np.stack([numbers % 256, numbers // 256, 0 * numbers], -1)
    return save(Image.fromarray(channels.astype(np.uint8)), path)


def save_segmentations(
    path: Path, images: Sequence[Any], masks: Sequence[Any], targets: Sequence[str]
) -> Path:
    """Write a file of the structure of gtsegs_ijcv.mat: cells are references to reversed arrays.

    Each mask lies in a cell of its own inside its cell, as MATLAB 7.3 writes a cell of a cell.
    """
    import h5py

    with h5py.File(path, "w", userblock_size=512) as file:

        def stored(name: str, array: Any) -> Any:
            return file.create_dataset(f"#refs#/{name}", data=np.asarray(array).T).ref

        def cell(references: list[Any]) -> Any:
            return np.array(references, dtype=h5py.ref_dtype).reshape(-1, 1)

        columns: dict[str, list[Any]] = {"img": [], "gt": [], "target": []}
        for number, image in enumerate(images):
            columns["img"].append(stored(f"image{number}", image))
        for number, mask in enumerate(masks):
            inner = stored(f"mask{number}", mask)
            outer = file.create_dataset(f"#refs#/cell{number}", data=cell([inner]))
            columns["gt"].append(outer.ref)
        for number, target in enumerate(targets):
            codes = np.array([[ord(letter) for letter in target]], dtype=np.uint16)
            columns["target"].append(stored(f"target{number}", codes))
        for name, references in columns.items():
            file.create_dataset(f"value/{name}", data=cell(references))
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with open(path, "r+b") as raw:
        raw.write(header)
    return path
