"""Images in their places, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captum_clip import load_clip
from captum_clip.errors import InputError
from captum_clip.runs import AGAIN, storage_of
from captum_clip.studies.image_loader import ImageLoader, load_batches
from tests import builders
from tests.studies import folders


def loader_of(folder: Path, *names: str, **change: Any) -> ImageLoader:
    settings: dict[str, Any] = {
        "images": storage_of(folder),
        "names": names,
        "processor": builders.hf_processor(),
        "size": (32, 32),
        "batch_size": 3,
    }
    return ImageLoader(**{**settings, **change})


def test_each_image_is_what_the_model_would_see(images: Path, vit: str) -> None:
    clip = load_clip(vit)
    names = ("image0.png", "inner/image1.png", "image2.png")
    batch = loader_of(images, *names).load([0, 1, 2])
    assert batch.reasons == {}
    assert torch.equal(batch.pixels, clip.preprocess([images / name for name in names]))


def test_rows_without_an_image_hold_zeros(images: Path, tmp_path: Path) -> None:
    """One that cannot be read, and those beyond the last one."""
    folders.make_images(tmp_path, 1)
    batch = loader_of(tmp_path, "none.png", "image0.png").load([0, 1])
    assert batch.pixels.shape == (3, 3, 32, 32)
    assert [bool(image.any()) for image in batch.pixels] == [False, True, False]
    assert batch.reasons == {0: f"there is no image file none.png.{AGAIN}"}


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 1), None), ((3, 50), None), ((1, 200), None), ((1, 201), "a.png is too long and narrow")],
)
def test_odd_shapes_are_read_or_told(
    tmp_path: Path, size: tuple[int, int], reason: str | None
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    found = loader_of(tmp_path, "a.png").load([0]).reasons
    assert found.get(0, "").startswith(reason or "")
    assert bool(found) == (reason is not None)


def test_a_processor_that_fails_or_does_not_crop_is_told(images: Path) -> None:
    """For this image, with the reason."""

    def fail(image: Image.Image) -> torch.Tensor:
        raise ValueError("cannot infer the channels")

    batch = loader_of(images, "image0.png", processor=fail).load([0])
    assert batch.reasons == {0: "image0.png cannot be preprocessed (cannot infer the channels)."}
    batch = loader_of(images, "image0.png", processor=lambda _: torch.ones(3, 40, 48)).load([0])
    assert batch.reasons[0].startswith("image0.png becomes (3, 40, 48) and not (3, 32, 32);")


class Gone:
    """A store that nobody reaches any more."""

    def as_file(self, name: str) -> Any:
        raise InputError("the store cannot be reached.")


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_store_that_fails_stops_the_study(images: Path, workers: int | None) -> None:
    """An image is not to be skipped for good because a network was away; no traceback in it."""
    loader = loader_of(images, "image0.png", images=Gone())
    with (
        pytest.raises(InputError, match=r"^the store cannot be reached\.$"),
        load_batches(loader, [[0]], workers) as batches,
    ):
        next(batches)
