"""Folders of the structure of ImageNet-S."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.evaluation.data.benchmarks import ImageNetS
from tests.evaluation.data.writing import LEFT, RIGHT, SIZE, noise, same, save

TENCH, FLAMINGO = "n01440764", "n02007558"


def save_numbers(numbers, path):
    """Red + 256 green, as the data set's own masks."""
    save(
        Image.fromarray(np.stack([numbers % 256, numbers // 256, 0 * numbers], -1).astype("u1")),
        path,
    )


@pytest.fixture
def folder(tmp_path):
    """A picture of each of two classes; the second shows a part of the first as well."""
    for name, own, other in ((TENCH, 1, 0), (FLAMINGO, 2, 1)):
        save(noise(seed=own), tmp_path / f"validation/{name}/one.JPEG", quality=95)
        numbers = own * LEFT + other * RIGHT
        numbers[0] = 1000
        save_numbers(numbers, tmp_path / f"validation-segmentation/{name}/one.png")
    return tmp_path


def test_imagenet_s_is_lawful(folder, lawful):
    assert len(lawful(ImageNetS(folder))) == 2


def test_the_images_own_class_is_the_region(folder):
    data = ImageNetS(folder)
    assert data.classes == ("a photo of a tench", "a photo of a flamingo")
    for index, text in enumerate(data.classes):
        sample = data.read(index)
        [region] = sample.regions
        assert (region.text, sample.label) == (text, index)
        assert same(region.mask, LEFT)
        assert sample.void is not None
        assert sample.void[0].all()
        assert sample.void.sum() == SIZE[1]


def test_numbers_of_missing_folders_are_reported(folder):
    """Classes are numbered in the order of all folders, so all must be there."""
    numbers = 300 * LEFT
    save_numbers(numbers, folder / f"validation-segmentation/{TENCH}/one.png")
    with pytest.raises(InputError, match="numbers up to 2, the folders of classes, got 300"):
        ImageNetS(folder).read(0)


def test_folders_without_masks_are_reported(tmp_path):
    save(noise(), tmp_path / f"validation/{TENCH}/one.JPEG")
    with pytest.raises(InputError, match=rf"masks such as .*{TENCH}/one\.png, found none"):
        ImageNetS(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        ImageNetS(tmp_path / "nowhere")
