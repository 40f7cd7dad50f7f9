"""A small tree of Pascal VOC 2012."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from captum_clip.errors import InputError
from captum_clip.evaluation.data.benchmarks import PascalVoc
from tests.evaluation.data.writing import LEFT, RIGHT, SIZE, noise, save

DOG, PERSON, TV, VOID = 12, 15, 20, 255


def classes(*parts):
    """A palette image of class numbers, as VOC's masks are."""
    numbers = np.zeros(SIZE, dtype=np.uint8)
    for mask, number in parts:
        numbers[mask] = number
    image = Image.fromarray(numbers)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


@pytest.fixture
def root(tmp_path):
    """Two images of the validation set, one of the training set."""
    voc = tmp_path / "VOCdevkit/VOC2012"
    for number, name in enumerate(("2007_000033", "2007_000042", "2007_000032")):
        save(noise(seed=number), voc / f"JPEGImages/{name}.jpg")
    outline = np.zeros(SIZE, dtype=bool)
    outline[2, 1:12] = True
    masks = voc / "SegmentationClass"
    save(classes((LEFT, DOG), (RIGHT, PERSON), (outline, VOID)), masks / "2007_000033.png")
    save(classes((RIGHT, TV)), masks / "2007_000042.png")
    save(classes((LEFT, PERSON)), masks / "2007_000032.png")
    lists = voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000042\n2007_000033\n")
    (lists / "train.txt").write_text("2007_000032\n")
    return tmp_path


def test_voc_is_lawful(root, lawful):
    """Names, masks, pickles and identities are what every data set's are."""
    assert len(lawful(PascalVoc(root))) == 2


def test_regions_are_the_classes_without_the_void(root):
    """A region a class, with an article; outlines are of no class and no background either."""
    data = PascalVoc(root)
    assert data.names == ("2007_000033", "2007_000042")
    first, second = (data.read(index) for index in range(2))
    assert [region.text for region in first.regions] == ["a dog", "a person"]
    inside = LEFT.copy()
    inside[2, 1:12] = False
    assert np.array_equal(first.regions[0].mask, inside)
    assert np.array_equal(first.regions[1].mask, RIGHT)
    assert first.void is not None
    assert np.array_equal(first.void, LEFT & ~inside)
    counted = PascalVoc(root, void="background")
    assert counted.read(0).void is None
    assert (data.identity()["void"], counted.identity()["void"]) == ("out", "background")
    with pytest.raises(InputError, match="expected void of out, background, got 'left'"):
        PascalVoc(root, void="left")
    assert [region.text for region in second.regions] == ["a tv monitor"]
    assert len(data.classes) == 20
    assert data.classes[0] == "an aeroplane"


def test_voc_agrees_with_torchvision(root):
    """The same images and the same class numbers as torchvision's reader."""
    theirs = VOCSegmentation(str(root), year="2012", image_set="val")
    known = {path.rpartition("/")[2][:-4]: index for index, path in enumerate(theirs.images)}
    data = PascalVoc(root)
    for index, name in enumerate(data.names):
        sample = data.read(index)
        image, numbers = theirs[known[name]]
        assert np.array_equal(np.asarray(sample.image), np.asarray(image))
        drawn = np.zeros(SIZE, dtype=np.uint8)
        for region in sample.regions:
            drawn[region.mask] = 1 + data.classes.index(region.text)
        numbers = np.asarray(numbers)
        assert np.array_equal(drawn, np.where(numbers == VOID, 0, numbers))


def test_any_folder_above_will_do(root):
    """The folder itself, the kit, or what holds the kit: the same data."""
    for inside in ("VOCdevkit", "VOCdevkit/VOC2012"):
        assert PascalVoc(root / inside).identity() == PascalVoc(root).identity()


def test_samples_are_drawn(root):
    """A limit takes so many, and is part of the identity."""
    assert len(PascalVoc(root, limit=1)) == 1
    assert PascalVoc(root, limit=1).identity() != PascalVoc(root).identity()


def test_bad_samples_are_reported(root):
    """No class, a color image, an unknown number, another size, no mask, no image."""
    data = PascalVoc(root)
    voc = root / "VOCdevkit/VOC2012"
    mask = voc / "SegmentationClass/2007_000033.png"
    for image, message in (
        (classes(), "2007_000033 has no mask"),
        (classes((LEFT, VOID)), "2007_000033 has no mask"),
        (classes((LEFT, DOG)).convert("RGB"), "numbers of classes in a palette.*got 'RGB'"),
        (classes((LEFT, 21)), "from 0 to 20 and 255, got 21"),
        (classes((LEFT, DOG)).transpose(Image.Transpose.ROTATE_90), "has 30 x 20 pixels"),
        (classes((np.ones(SIZE, dtype=bool), DOG)), "the mask is full"),
    ):
        save(image, mask)
        with pytest.raises(InputError, match=message):
            data.read(0)
    mask.unlink()
    with pytest.raises(InputError, match=r"there is no image file .*2007_000033\.png"):
        data.read(0)
    (voc / "JPEGImages/2007_000033.jpg").unlink()
    with pytest.raises(InputError, match=r"there is no image file .*2007_000033\.jpg"):
        data.read(0)
    assert data.read(1).regions


def test_other_folders_are_reported(root, tmp_path):
    """No VOC, an empty list, a list of images that are not there."""
    with pytest.raises(InputError, match=r"is not Pascal VOC 2012: expected folders JPEGImages"):
        PascalVoc(tmp_path / "nowhere")
    listed = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    listed.write_text("\n \n")
    with pytest.raises(InputError, match=r"val\.txt lists no image"):
        PascalVoc(root)
    listed.write_text("2012_999999\n")
    with pytest.raises(
        InputError, match=r"expected files such as JPEGImages/2012_999999\.jpg, found"
    ):
        PascalVoc(root)
    listed.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"val\.txt cannot be read"):
        PascalVoc(root)
