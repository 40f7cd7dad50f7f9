"""Images with maps of where people looked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.evaluation.data.formats import FixationFolder
from tests.evaluation.data.writing import (
    JPEG_OF_NOTHING,
    LEFT,
    SIZE,
    noise,
    same,
    save,
    save_bytes,
    save_mask,
)

POINTS = np.zeros(SIZE, dtype=bool)
POINTS[[3, 8], [20, 5]] = True
DENSITY = np.random.default_rng(5).integers(0, 256, SIZE).astype(np.uint8)


def save_array(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images: with both maps, with a density, with points."""
    for number, name in enumerate(("both", "density", "points")):
        save(noise(seed=number), tmp_path / f"images/{name}.png")
    fixations = tmp_path / "fixations"
    save(Image.fromarray(DENSITY), fixations / "both.png")
    save_array(POINTS, fixations / "both.npy")
    save_array(DENSITY / 255, fixations / "density.npy")
    save_array(POINTS.astype(np.int64), fixations / "points.npy")
    (tmp_path / "texts.csv").write_text(
        'file,text\nboth.png,"a horse, a dog"\nimages/density.png,a cow\npoints,a cat\n'
    )
    return tmp_path


def test_fixation_folder_is_lawful(folder, lawful):
    """Names, pickles and identities are what every data set's are."""
    assert len(lawful(FixationFolder(folder))) == 3


def test_points_and_densities_are_told_apart(folder):
    """PNG is a density, an array of 0 and 1 is points, any other a density; none is made up."""
    both, density, points = (FixationFolder(folder).read(index) for index in range(3))
    assert same(both.fixations, POINTS)
    assert same(both.density, DENSITY)
    assert density.fixations is None
    assert same(density.density, DENSITY / 255)
    assert points.density is None
    assert same(points.fixations, POINTS)
    assert points.fixations is not None
    assert points.fixations.dtype == np.bool_
    assert [one.fixated for one in (both, density, points)] == ["a horse, a dog", "a cow", "a cat"]


@pytest.mark.parametrize("mode", ["I;16", "RGB", "1"])
def test_densities_of_any_mode_are_grey(folder, mode):
    """Eight and sixteen bits keep their values, colours their brightness."""
    path = folder / "fixations/both.png"
    if mode == "I;16":
        save(Image.fromarray(DENSITY.astype(np.uint16) * np.uint16(257)), path)
        truth = DENSITY * 257.0
    elif mode == "1":
        save(Image.fromarray(LEFT), path)
        truth = LEFT * 255.0
    else:
        save(Image.fromarray(DENSITY).convert(mode), path)
        truth = DENSITY * 1.0
    assert same(FixationFolder(folder).read(0).density, truth)


def test_pictures_are_densities_even_of_two_values(folder):
    """A PNG file of 0 and 1 is no file of points."""
    save_mask(LEFT, folder / "fixations/both.png", value=1)
    sample = FixationFolder(folder).read(0)
    assert same(sample.density, LEFT * 1.0)
    assert same(sample.fixations, POINTS)


def test_one_text_serves_all(folder):
    """A given text is for images that texts.csv does not name."""
    (folder / "texts.csv").write_text("file,text\nboth,a horse\n")
    data = FixationFolder(folder, text="animals")
    assert [data.read(index).fixated for index in range(3)] == ["a horse", "animals", "animals"]
    with pytest.raises(InputError, match=r"density: texts\.csv has no text for it"):
        FixationFolder(folder).read(1)
    (folder / "texts.csv").unlink()
    assert FixationFolder(folder, text="animals").read(0).fixated == "animals"
    with pytest.raises(InputError, match="there is no text to compare fixations with"):
        FixationFolder(folder)
    with pytest.raises(InputError, match="a text with something in it, got ' '"):
        FixationFolder(folder, text=" ")


def wrong(value):
    density = DENSITY / 255
    density[4, 4] = value
    return density


BAD = {
    "NaN": (wrong(np.nan), "finite values from 0 on"),
    "infinite": (wrong(np.inf), "finite values from 0 on"),
    "negative": (wrong(-0.1), "finite values from 0 on"),
    "nothing": (np.zeros(SIZE), "nobody looked"),
    "no points": (np.zeros(SIZE, dtype=bool), "nobody looked"),
    "all points": (np.ones(SIZE, dtype=bool), "every pixel is a fixation"),
    "turned": (POINTS.T, "has 30 x 20 pixels, its image 20 x 30"),
    "three axes": (np.ones((*SIZE, 3)), "has 20 x 30 x 3 pixels"),
    "texts": (np.full(SIZE, "a"), "expected an array of numbers"),
    "objects": (np.full(SIZE, None), "cannot be read as an array"),
}


def test_bad_arrays_are_dropped(folder):
    """Alone they are an error of the sample, next to a good map a reason."""
    for array, reason in BAD.values():
        for name in ("both", "points"):
            path = save_array(array, folder / f"fixations/{name}.npy")
        data = FixationFolder(folder)
        sample = data.read(0)
        assert sample.fixations is None
        assert same(sample.density, DENSITY)
        assert len(sample.dropped) == 1
        assert reason in sample.dropped[0]
        alone = f"no fixations to compare a map with.*{path.name}"
        with pytest.raises(InputError, match=alone) as raised:
            data.read(2)
        assert reason in str(raised.value)


def test_bad_images_of_densities_are_dropped(folder):
    """The points stay, and the reason tells what is missing."""
    data = FixationFolder(folder)
    for spoil, reason in (
        (
            lambda path: save_bytes(JPEG_OF_NOTHING, path),
            "cannot be read, it may be truncated or damaged",
        ),
        (lambda path: save_mask(np.zeros(SIZE), path), "nobody looked"),
        (lambda path: save_mask(LEFT.T, path), "has 30 x 20 pixels"),
        (lambda path: path.unlink(), "there is no image file"),
    ):
        spoil(folder / "fixations/both.png")
        sample = data.read(0)
        assert sample.density is None
        assert same(sample.fixations, POINTS)
        assert reason in sample.dropped[0]


def test_arrays_that_are_none_are_reported(folder):
    """Bytes of something else, and a file cut short."""
    path = folder / "fixations/points.npy"
    for content in (b"", b"text", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"points\.npy cannot be read as an array"):
            FixationFolder(folder).read(2)
    with open(path, "wb") as file:
        np.savez(file, POINTS)
    with pytest.raises(InputError, match="expected an array of numbers"):
        FixationFolder(folder).read(2)


def test_two_densities_are_reported(folder):
    """The picture counts, and the array is left out."""
    save_array(DENSITY / 2, folder / "fixations/both.npy")
    sample = FixationFolder(folder).read(0)
    assert same(sample.density, DENSITY)
    assert "the image has another density" in sample.dropped[0]


def test_images_without_fixations_cannot_be_read(folder):
    """They count among the samples, so that nothing goes missing unsaid."""
    save(noise(), folder / "images/bare.png")
    data = FixationFolder(folder, text="it")
    with pytest.raises(InputError, match="no fixations to compare a map with: bare has none"):
        data.read(0)


def test_bad_lists_of_texts_are_refused(folder):
    """The columns file and text, each with something in it, in UTF-8; the line is named."""
    for content, message in (
        ("", "there is no text .* texts.csv with the columns file and text"),
        ("image,text\na,b\n", "texts.csv, line 2: expected file, text, got {'image': 'a'"),
        ("file,text\nboth,it\n\nboth\n", "texts.csv, line 4: .* 'text': None}"),
        ("file,text\nboth, \n", "texts.csv, line 2: .* 'text': ''}"),
        ("file,text\nboth,a,b\n", "texts.csv, line 2: .*'b'"),
        ('file,text\n"both,a\n', "texts.csv cannot be read as CSV"),
    ):
        (folder / "texts.csv").write_text(content)
        with pytest.raises(InputError, match=message):
            FixationFolder(folder)
    (folder / "texts.csv").write_bytes(b"file,text\nboth,\xff\n")
    with pytest.raises(InputError, match=r"texts\.csv cannot be read"):
        FixationFolder(folder)


def test_missing_and_empty_folders_are_reported(tmp_path):
    """Each says what was expected where."""
    with pytest.raises(InputError, match="there is no folder"):
        FixationFolder(tmp_path / "nowhere", text="it")
    with pytest.raises(InputError, match=r"in its folder images/, found none"):
        FixationFolder(tmp_path, text="it")
    save(noise(), tmp_path / "images/farm.png")
    with pytest.raises(InputError, match=r"expected fixations/farm\.png or \.npy"):
        FixationFolder(tmp_path, text="it")


def test_identity_follows_texts_and_sample(folder):
    """Another text or another draw are other data; a text that no image needs decides nothing."""
    data = FixationFolder(folder).identity()
    assert FixationFolder(folder, text="it").identity() == data
    assert FixationFolder(folder, limit=2).identity() != data
    texts = (folder / "texts.csv").read_text()
    (folder / "texts.csv").write_text(texts.replace("a cow", "a pig"))
    assert FixationFolder(folder).identity() != data
