"""Mosaics of the pictures of a class folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.evaluation.data.formats import ClassMosaics
from tests.evaluation.data.writing import save

COLORS = {"n01440764": 10, "n02007558": 60, "red_barn": 110, "boat": 160, "house boat": 210}


@pytest.fixture
def folder(tmp_path):
    """Four pictures of each of five classes, each of one gray."""
    for name, gray in COLORS.items():
        for number in range(4):
            color = (gray, gray, gray + number)
            save(Image.new("RGB", (20 + number, 30), color), tmp_path / f"{name}/{number}.png")
    return tmp_path


def test_mosaics_are_lawful(folder, lawful):
    assert len(lawful(ClassMosaics(folder))) == 5


def test_mosaics_name_one_to_four_cells_of_their_classes(folder):
    """The caption is the names side by side; each region is the cell of its class."""
    data = ClassMosaics(folder)
    words = {"tench": 10, "flamingo": 60, "red barn": 110, "boat": 160, "house boat": 210}
    for index in range(5):
        sample = data.read(index)
        pixels = np.asarray(sample.image)
        assert pixels.shape == (448, 448, 3)
        assert len(sample.regions) == 1 + index % 4
        assert sample.caption == " ".join(region.text for region in sample.regions)
        cells = {int(pixels[y, x, 0]) for y in (0, 447) for x in (0, 447)}
        assert len(cells) == 4
        assert not {160, 210} <= cells  # "boat" is a part of "house boat"
        for region in sample.regions:
            assert region.mask.sum() == 224**2
            assert set(pixels[region.mask][:, 0].tolist()) == {words[region.text]}
            assert region.label is not None
            assert data.classes[region.label] == f"a photo of a {region.text}"


def test_mosaics_are_the_same_in_any_sample(folder):
    whole = ClassMosaics(folder)
    some = ClassMosaics(folder, limit=2, seed=3)
    for index, name in enumerate(some.names):
        same = whole.read(whole.names.index(name))
        assert np.array_equal(np.asarray(some.read(index).image), np.asarray(same.image))
    assert some.identity() != whole.identity()
    assert len({np.asarray(whole.read(i).image).tobytes() for i in range(5)}) == 5


def test_mosaics_need_four_classes(tmp_path):
    for name in ("boat", "house boat", "steam boat"):
        save(Image.new("RGB", (8, 8)), tmp_path / f"{name}/1.png")
    with pytest.raises(InputError, match="expected four classes or more for mosaics"):
        ClassMosaics(tmp_path)
    save(Image.new("RGB", (8, 8)), tmp_path / "horse/1.png")
    with pytest.raises(InputError, match="four classes, none with a name that is part of another"):
        ClassMosaics(tmp_path)
