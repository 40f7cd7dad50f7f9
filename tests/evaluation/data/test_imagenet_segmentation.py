"""Files of the structure of gtsegs_ijcv.mat."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.evaluation.data.benchmarks import ImageNetSegmentation
from tests.evaluation.data.writing import LEFT, RIGHT, SIZE, noise, save_segmentations

TENCH, FLAMINGO, DOG = "n01440764", "n02007558", "n02084071"  # the last is none of the thousand
IMAGES = [np.asarray(noise(seed=seed)) for seed in range(3)]


@pytest.fixture
def file(tmp_path):
    masks = [LEFT.astype(np.uint8), RIGHT.astype(np.uint8), LEFT.astype(np.uint8)]
    return save_segmentations(tmp_path / "gtsegs_ijcv.mat", IMAGES, masks, [TENCH, FLAMINGO, DOG])


def test_segmentations_are_lawful(file, lawful):
    """Names, masks, labels, pickles and identities are what every data set's are."""
    lawful(ImageNetSegmentation(file))


def test_segmentations_are_read_the_right_way_round(file):
    """Images and masks are those that were written, rows and columns not exchanged."""
    data = ImageNetSegmentation(file)
    for index, (image, mask) in enumerate(zip(IMAGES, (LEFT, RIGHT, LEFT), strict=True)):
        sample = data.read(index)
        assert np.array_equal(np.asarray(sample.image), image)
        assert np.array_equal(sample.regions[0].mask, mask)


def test_segmentations_are_read_as_the_published_loader_does(file):
    """The published evaluation's way through the references, written out."""
    sample = ImageNetSegmentation(file).read(1)
    with h5py.File(file, "r") as raw:
        image = np.array(raw[raw["/value/img"][1, 0]]).transpose(2, 1, 0)
        mask = np.array(raw[raw[raw["/value/gt"][1, 0]][0, 0]]).transpose(1, 0)
    assert np.array_equal(np.asarray(sample.image), image)
    assert np.array_equal(sample.regions[0].mask, mask != 0)


def test_texts_are_imagenets_names(file):
    """CLIP's names for the thousand classes, WordNet's first for others, in a template."""
    data = ImageNetSegmentation(file)
    texts = [data.read(index).regions[0].text for index in range(3)]
    assert texts == ["a photo of a tench", "a photo of a flamingo", "a photo of a dog"]
    assert data.classes == tuple(texts)
    assert [data.read(index).label for index in range(3)] == [0, 1, 2]
    assert ImageNetSegmentation(file, template="the {}!").classes[1] == "the flamingo!"


def test_a_file_of_names_comes_first(file):
    """It lies beside the file, and names only what it wants to; one name is one class."""
    (file.parent / "classnames.txt").write_text(f"{TENCH}\tbig fish\n\n{DOG}\tbig fish\n")
    data = ImageNetSegmentation(file)
    assert data.classes == ("a photo of a big fish", "a photo of a flamingo")
    assert [data.read(index).label for index in range(3)] == [0, 1, 0]


def test_samples_are_drawn_by_seed(file):
    """All classes stay where only some images are taken."""
    data = ImageNetSegmentation(file, limit=1, seed=4)
    assert len(data) == 1
    assert len(data.classes) == 3
    assert data.names == ImageNetSegmentation(file, limit=1, seed=4).names
    assert data.identity() != ImageNetSegmentation(file).identity()
    [name] = data.names
    assert np.array_equal(np.asarray(data.read(0).image), IMAGES[int(name)])


def test_bad_masks_are_refused(tmp_path):
    """There is only one region, so the sample cannot be read."""
    mask, reason = np.zeros(SIZE, np.uint8), "the mask is empty"
    file = save_segmentations(tmp_path / "some.mat", IMAGES[:1], [mask], [TENCH])
    with pytest.raises(InputError, match=f"00000, 'a photo of a tench': .*{reason}"):
        ImageNetSegmentation(file).read(0)


def test_images_of_another_type_are_reported(tmp_path):
    """Only images of uint8 have known brightness."""
    mask = LEFT.astype(np.uint8)
    file = save_segmentations(tmp_path / "some.mat", [IMAGES[0] / 255], [mask], [TENCH])
    with pytest.raises(
        InputError, match=r"00000: .* array or tensor of float64 .* accepted are .* of uint8"
    ):
        ImageNetSegmentation(file).read(0)


def test_gray_images_are_read(tmp_path):
    """An image without channels is gray."""
    gray = IMAGES[0][..., 0]
    file = save_segmentations(tmp_path / "some.mat", [gray], [LEFT.astype(np.uint8)], [TENCH])
    image = np.asarray(ImageNetSegmentation(file).read(0).image)
    assert np.array_equal(image, np.repeat(gray[..., None], 3, -1))


def test_broken_cells_are_reported(file):
    """A reference that leads nowhere is an error of its sample."""
    data = ImageNetSegmentation(file)
    with h5py.File(file, "r+") as raw:
        raw["value/gt"][1, 0] = h5py.Reference()
    data.read(0)
    with pytest.raises(InputError, match=r"cannot be read as gtsegs_ijcv\.mat"):
        data.read(1)


def test_masks_of_something_else_than_numbers_are_reported(file):
    """They are an error of their sample as well, and do not end an evaluation."""
    data = ImageNetSegmentation(file)
    with h5py.File(file, "r+") as raw:
        raw["other"] = np.zeros((2, 2), dtype=[("real", "f4"), ("imag", "f4")])
        raw["value/gt"][1, 0] = raw["other"].ref
    with pytest.raises(InputError, match=r"cannot be read as gtsegs_ijcv\.mat"):
        data.read(1)


def test_other_files_are_reported(tmp_path):
    """No file, a text, another HDF5 file, numbers for classes, nothing in it."""
    with pytest.raises(InputError, match=r"there is no file .*none\.mat"):
        ImageNetSegmentation(tmp_path / "none.mat")
    text = tmp_path / "text.mat"
    text.write_text("MATLAB 5.0 MAT-file")
    with pytest.raises(InputError, match=r"cannot be read as gtsegs_ijcv\.mat"):
        ImageNetSegmentation(text)
    other = tmp_path / "other.mat"
    with h5py.File(other, "w") as raw:
        raw["value/img"] = np.zeros(3)
    with pytest.raises(InputError, match=r"which is a file of MATLAB 7\.3 with value/img"):
        ImageNetSegmentation(other)
    with pytest.raises(InputError, match="expected as many masks and classes as images"):
        ImageNetSegmentation(save_segmentations(tmp_path / "empty.mat", [], [], []))
    fewer = save_segmentations(tmp_path / "fewer.mat", IMAGES, [LEFT.astype(np.uint8)], [TENCH])
    with pytest.raises(InputError, match="got \\[3, 1, 1\\]"):
        ImageNetSegmentation(fewer)


def test_unknown_classes_are_reported(tmp_path):
    """A number that neither ImageNet nor a file of names knows has no text."""
    mask = LEFT.astype(np.uint8)
    file = save_segmentations(tmp_path / "some.mat", IMAGES[:1], [mask], ["n99999999"])
    with pytest.raises(InputError, match=r"n99999999 is not one of ImageNet's.*classnames\.txt"):
        ImageNetSegmentation(file)
    (tmp_path / "classnames.txt").write_text("n99999999\tthing\n")
    assert ImageNetSegmentation(file).classes == ("a photo of a thing",)


def test_missing_h5py_names_the_extra(file, monkeypatch):
    """The message is the command that installs it."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install h5py"):
        ImageNetSegmentation(file)
