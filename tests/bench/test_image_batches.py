"""Which files a folder holds, and images in their places, whatever becomes of the others."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip import load_clip
from captum_clip.errors import InputError
from captum_clip.folders.storage import (
    ImageReader,
    Skipped,
    list_images,
    read_ahead,
    storage_of,
)
from captum_clip.folders.workers import preprocess_alone
from tests import builders, folders


def reader_of(
    folder: Path, *names: str, images: Any = None, processor: Any = None
) -> ImageReader[Tensor]:
    prepare = partial(preprocess_alone, processor or builders.hf_processor(), (32, 32))
    return ImageReader(images or storage_of(folder), names, prepare)


def test_each_image_is_what_the_model_would_see(images: Path, vit: str) -> None:
    clip = load_clip(vit)
    names = ("image0.png", "inner/image1.png", "image2.png")
    read = [*map(reader_of(images, *names), range(3))]
    assert all(isinstance(image, Tensor) for image in read)
    pixels = torch.stack([image for image in read if isinstance(image, Tensor)])
    assert torch.equal(pixels, clip.preprocess([images / name for name in names]))


def test_an_image_that_is_not_there_is_told_and_tried_again(tmp_path: Path) -> None:
    """Others are read all the same."""
    folders.make_images(tmp_path, 1)
    read = [*map(reader_of(tmp_path, "none.png", "image0.png"), range(2))]
    assert read[0] == Skipped(0, "there is no image file none.png.", again=True)
    assert isinstance(read[1], Tensor)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 1), None), ((3, 50), None), ((1, 200), None), ((1, 201), "a.png is too long and narrow")],
)
def test_odd_shapes_are_read_or_told(
    tmp_path: Path, size: tuple[int, int], reason: str | None
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    read = reader_of(tmp_path, "a.png")(0)
    assert isinstance(read, Skipped) == (reason is not None)
    if isinstance(read, Skipped):
        assert read.reason.startswith(str(reason))
        assert not read.again


class Gone:
    """A store that nobody reaches any more."""

    is_local, path = False, ""

    def read(self, name: str) -> bytes:
        raise InputError("the store cannot be reached.") from OSError(5, "away")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_fails_is_tried_again(images: Path, workers: int) -> None:
    """An image is not to be skipped for good because a network was away."""
    reader = reader_of(images, "image0.png", images=Gone())
    with read_ahead(reader, [0], workers) as read:
        [skipped] = read
    assert skipped == Skipped(0, "the store cannot be reached.", again=True)
    assert isinstance(skipped, Skipped)
    assert skipped.message.endswith("reached. It is tried again when the same command runs again.")


def test_items_are_read_in_their_order_a_few_ahead_and_nothing_runs_on() -> None:
    """Neither after an error nor when nobody wants the rest."""
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        if item == 9:
            raise InputError("nine")
        time.sleep(0.01 * (item % 3))
        return item

    threads = threading.active_count()
    with read_ahead(read, range(50), 0) as items:
        assert [next(items), *begun] == [0, 0]
    begun.clear()
    with read_ahead(read, range(50), 2) as items:
        assert next(items) == 0
        assert len(begun) <= 5
        with pytest.raises(InputError, match="nine"):
            list(items)
    assert len(begun) <= 14
    begun.clear()
    with read_ahead(read, range(9), 3, batch=2) as items:
        assert [*items] == sorted(begun) == [*range(9)]
    with read_ahead(read, range(9), 3) as items:
        next(items)
    assert threading.active_count() == threads


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    return folder


def names_of(folder: Path, output: Path | None = None, **sample: Any) -> tuple[str, ...]:
    place = folder / "out" if output is None else output
    return tuple(list_images(storage_of(folder), storage_of(place), **sample))


def test_images_are_found_by_their_ending_to_the_bottom(tmp_path: Path) -> None:
    """Hidden files and the output are left out."""
    touch(tmp_path, "b.JPG", "a/c.png", "a/b/d.webp", "notes.txt", "e.jpg.part", "outer/c.png")
    touch(tmp_path, "._a.png", ".cache/b.png", "out/mean_maps.png")
    assert names_of(tmp_path) == ("a/b/d.webp", "a/c.png", "b.JPG", "outer/c.png")
    assert "out/mean_maps.png" in names_of(tmp_path, tmp_path / "elsewhere")


def test_folders_that_cannot_be_studied_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image file"):
        names_of(touch(tmp_path, "a.txt"))
    with pytest.raises(InputError, match="there is no folder"):
        names_of(tmp_path / "none")
    with pytest.raises(InputError, match="cannot go into the folder of the images"):
        names_of(touch(tmp_path, "a.png"), tmp_path)


def test_a_sample_is_drawn_by_name_and_seed(tmp_path: Path) -> None:
    """Sorted, the same each time, growing with its size, another one for another seed."""
    touch(tmp_path, *(f"{number:03d}.png" for number in range(60)))
    small, large = names_of(tmp_path, limit=10), names_of(tmp_path, limit=20)
    assert small == tuple(sorted(small)) == names_of(tmp_path, limit=10)
    assert set(small) < set(large)
    assert len(large) == 20
    assert names_of(tmp_path, limit=10, seed=1) != small
    assert len(names_of(tmp_path, limit=99)) == 60
