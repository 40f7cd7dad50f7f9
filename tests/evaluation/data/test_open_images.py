"""Folders with tables of the columns of Open Images V7."""

from __future__ import annotations

import pytest

from captum_clip.errors import InputError
from captum_clip.evaluation.data import OpenImagesPoints
from tests.evaluation.data.writing import SIZE, noise, save, save_open_images

ROWS = [
    *(
        "a,0.0,0.0,/m/1,yes,",
        "a,1.0,0.5,/m/1,no,",
        "a,0.5,0.999,/m/1,Yes,",
        "a,0.5,0.5,/m/1,unsure,",
    ),
    *("a,0.2,0.2,/m/2,no,", "b,0.1,0.9,/m/3,yes,red barn", "c,0.1,0.9,/m/1,yes,"),
]


@pytest.fixture
def folder(tmp_path):
    """Points on two images that are there and one that is not."""
    for seed, name in enumerate("abd"):
        save(noise(seed=seed), tmp_path / f"images/{name}.jpg")
    return save_open_images(tmp_path, ROWS, names={"/m/1": "Horse", "/m/2": "Dog"})


def test_points_are_lawful(folder, lawful):
    assert [sample.name for sample in lawful(OpenImagesPoints(folder))] == ["a", "b"]


def test_points_are_the_pixels_that_they_lie_in(folder):
    """Of the width and the height; nothing unsure counts, nor a class without a yes."""
    data = OpenImagesPoints(folder)
    [points] = data.read(0).points
    height, width = SIZE
    assert points.text == "a photo of a horse"
    assert [*zip(*points.yes.nonzero(), strict=True)] == [(0, 0), (height - 1, width // 2)]
    assert [*zip(*points.no.nonzero(), strict=True)] == [(height // 2, width - 1)]
    assert points.yes.shape == points.no.shape == SIZE
    assert data.read(1).points[0].text == "a photo of a red barn"
    assert data.classes == ("a photo of a horse", "a photo of a red barn")
    assert OpenImagesPoints(folder, template="{}").classes == ("horse", "red barn")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,0.1,1.2,/m/1,yes,"], "expected X and Y from 0 to 1"),
        (["a,0.1,0.2,/m/9,yes,"], "no table says what the class /m/9 is called"),
        (["a,0.1,0.2,/m/1,no,"], "no image in images/ has points that say yes"),
    ],
)
def test_unusable_tables_are_said(folder, rows, message):
    save_open_images(folder, rows, names={"/m/1": "Horse"})
    with pytest.raises(InputError, match=message):
        OpenImagesPoints(folder)


def test_missing_tables_and_columns_are_said(folder):
    table = next(folder.glob("*point-labels.csv"))
    table.write_text("ImageId,X,Y,Label\na,0,0,/m/1\n")
    with pytest.raises(InputError, match=r"expected the columns .*; EstimatedYesNo is not"):
        OpenImagesPoints(folder)
    table.unlink()
    with pytest.raises(InputError, match=r"one table oidv7-val.*point-labels\.csv.*found 0"):
        OpenImagesPoints(folder)
