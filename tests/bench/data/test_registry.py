"""Data sets by name."""

from __future__ import annotations

import pytest

from captum_clip.bench.data import open_data
from captum_clip.bench.data.demo import DemoMosaics, DemoObjects, DemoScenes
from captum_clip.bench.data.readers import MaskedFolder, SampleList
from captum_clip.errors import InputError
from tests.bench.data.writing import LEFT, noise, save, save_mask
from tests.photographs import write_samples


def test_demo_data_are_opened_by_name():
    """With a number and a seed."""
    for kind in (DemoScenes, DemoObjects, DemoMosaics):
        data = open_data(kind.name, number=3, seed=2)
        assert isinstance(data, kind)
        assert data.identity() == kind(3, seed=2).identity()
        assert len(open_data(kind.name)) == 500


def test_files_are_opened_by_name_and_place(tmp_path):
    """What follows the colon is the place, and the number is a limit."""
    for number in range(3):
        save(noise(), tmp_path / f"images/{number}.png")
        save_mask(LEFT, tmp_path / f"masks/{number}/it.png")
    masks = open_data(f"masks:{tmp_path}", number=2, seed=3)
    assert isinstance(masks, MaskedFolder)
    assert masks.identity() == MaskedFolder(tmp_path, limit=2, seed=3).identity()
    samples = open_data(write_samples(tmp_path, {"image": "images/1.png"}), template="the {}")
    assert isinstance(samples, SampleList)
    assert samples.template == "the {}"


def test_unknown_names_are_refused_with_the_known_ones():
    """All forms are in the message, and the script that makes samples of any other."""
    known = r"no data set .*demo, demo-objects.*masks:FOLDER.*coco:FILE.* docs/examples/convert\.py"
    for name in ("", "demos", "demo:", "demo:/tmp", "masks", "masks:", ":x", "voc:VOC2012"):
        with pytest.raises(InputError, match=known):
            open_data(name)


def test_places_that_are_not_there_are_named(tmp_path):
    for kind in ("masks", "coco", "samples"):
        with pytest.raises(InputError, match="nowhere"):
            open_data(f"{kind}:{tmp_path}/nowhere")
