"""Data sets by name."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.evaluation.data import open_data
from captum_clip.evaluation.data.benchmarks import ImageNetSegmentation, PascalVoc
from captum_clip.evaluation.data.demo import DemoMosaics, DemoObjects, DemoScenes
from captum_clip.evaluation.data.formats import ClassFolder, MaskedFolder
from tests.evaluation.data.writing import LEFT, noise, save, save_mask, save_segmentations


def test_demo_data_are_opened_by_name():
    """With a number and a seed."""
    for kind in (DemoScenes, DemoObjects, DemoMosaics):
        data = open_data(kind.name, number=3, seed=2)
        assert isinstance(data, kind)
        assert data.identity() == kind(3, seed=2).identity()
        assert len(open_data(kind.name)) == 500


def test_folders_are_opened_by_name_and_place(tmp_path):
    """What follows the colon is the place, and the number is a limit."""
    for number in range(3):
        save(noise(), tmp_path / f"images/{number}.png")
        save_mask(LEFT, tmp_path / f"masks/{number}/it.png")
        save(noise(), tmp_path / f"sorted/kind {number}/1.png")
    masks = open_data(f"masks:{tmp_path}", number=2, seed=3)
    assert isinstance(masks, MaskedFolder)
    assert masks.identity() == MaskedFolder(tmp_path, limit=2, seed=3).identity()
    classes = open_data(f"classes:{tmp_path}/sorted", template="the {}")
    assert isinstance(classes, ClassFolder)
    assert classes.classes == ("the kind 0", "the kind 1", "the kind 2")
    image, mask = np.asarray(noise()), LEFT.astype(np.uint8)
    file = save_segmentations(tmp_path / "some.mat", [image], [mask], ["n01440764"])
    segmentations = open_data(f"imagenet-segmentation:{file}", template="{}")
    assert isinstance(segmentations, ImageNetSegmentation)
    assert segmentations.classes == ("tench",)
    voc = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    save(noise(), voc / "JPEGImages/a.jpg")
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n")
    assert isinstance(open_data(f"voc:{tmp_path}"), PascalVoc)


def test_unknown_names_are_refused_with_the_known_ones():
    """All forms are in the message."""
    known = r"no data set .*demo, demo-objects.*masks:FOLDER.*voc:"
    for name in ("", "demos", "demo:", "demo:/tmp", "masks", "masks:", ":x"):
        with pytest.raises(InputError, match=known):
            open_data(name)


def test_options_of_other_data_are_refused():
    """Nothing that was asked for is left out in silence."""
    for name in ("demo", "masks:x"):
        kind = name.partition(":")[0]
        with pytest.raises(InputError, match=f"the data set {kind} takes no template"):
            open_data(name, template="a {}")


def test_places_that_are_not_there_are_named(tmp_path):
    for kind in ("masks", "voc", "classes", "imagenet-segmentation"):
        with pytest.raises(InputError, match="nowhere"):
            open_data(f"{kind}:{tmp_path}/nowhere")
