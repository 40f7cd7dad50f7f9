"""Images with masks that are named by what they show."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from captum_clip.bench.data.readers import MaskedFolder
from captum_clip.errors import InputError
from tests.bench.data.writing import (
    JPEG_OF_NOTHING,
    LEFT,
    RIGHT,
    SIZE,
    noise,
    save,
    save_bytes,
    save_mask,
)


@pytest.fixture
def folder(tmp_path):
    """Two images: one with two masks, one in a folder with one."""
    save(noise(), tmp_path / "images/farm.png")
    save_mask(LEFT, tmp_path / "masks/farm/a horse.png", value=1)
    save_mask(RIGHT, tmp_path / "masks/farm/a_red_barn.png")
    save(noise(seed=1), tmp_path / "images/more/zoo.jpg")
    save_mask(RIGHT, tmp_path / "masks/more/zoo/zebras.png")
    save_bytes(b"", tmp_path / "images/.hidden.png")
    return tmp_path


def test_masked_folder_is_lawful(folder, lawful):
    """Names, masks, pickles and identities are what every data set's are."""
    assert [sample.name for sample in lawful(MaskedFolder(folder))] == ["farm", "more/zoo"]


def test_masks_are_named_by_their_files(folder):
    """Spaces for underscores, nothing else changed; any value but 0 is inside."""
    first, second = (MaskedFolder(folder).read(index) for index in range(2))
    assert [region.text for region in first.regions] == ["a horse", "a red barn"]
    assert np.array_equal(first.regions[0].mask, LEFT)
    assert np.array_equal(first.regions[1].mask, RIGHT)
    assert [region.text for region in second.regions] == ["zebras"]
    assert np.array_equal(np.asarray(first.image), np.asarray(noise()))
    assert first.dropped == ()


@pytest.mark.parametrize("mode", ["1", "I;16", "P", "RGB", "LA"])
def test_masks_of_any_mode_are_read(folder, mode):
    """Palette masks count by index, others by color, and what is transparent is outside."""
    path = folder / "masks/farm/a horse.png"
    gray = Image.fromarray(LEFT.astype(np.uint8) * np.uint8(255))
    if mode == "P":
        image = Image.fromarray(LEFT.astype(np.uint8))
        image.putpalette([9, 9, 9, 0, 0, 0])  # index 0 is not black, index 1 is
    elif mode == "I;16":
        image = Image.fromarray(LEFT.astype(np.uint16) * np.uint16(300))
    elif mode in ("RGBA", "LA"):
        image = Image.new(mode, gray.size, "white")
        image.putalpha(gray)
    elif mode == "RGB":
        image = Image.merge("RGB", [Image.new("L", gray.size), Image.new("L", gray.size), gray])
    else:
        image = gray.convert(mode)
    save(image, path)
    assert np.array_equal(MaskedFolder(folder).read(0).regions[0].mask, LEFT)


BAD = {
    "empty": (lambda path: save_mask(np.zeros(SIZE), path), "the mask is empty"),
    "full": (lambda path: save_mask(np.ones(SIZE), path), "the mask is full"),
    "turned": (lambda path: save_mask(LEFT.T, path), "has 30 x 20 pixels, its image 20 x 30"),
    "damaged": (
        lambda path: save_bytes(JPEG_OF_NOTHING, path),
        "cannot be read, it may be truncated or damaged",
    ),
    "cut short": (
        lambda path: save_bytes(save(noise(), path).read_bytes()[:200], path),
        "cannot be read, it may be truncated or damaged",
    ),
    "gone": (lambda path: path.unlink(), "there is no image file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_masks_are_dropped_with_their_reason(folder, kind):
    """The sample keeps its other region, and says which is gone and why."""
    data = MaskedFolder(folder)
    spoil, reason = BAD[kind]
    spoil(folder / "masks/farm/a horse.png")
    sample = data.read(0)
    assert [region.text for region in sample.regions] == ["a red barn"]
    [said] = sample.dropped
    assert said.startswith("farm, 'a horse': ")
    assert reason in said


def test_samples_without_a_good_mask_cannot_be_read(folder):
    """The error tells the reasons of all masks."""
    data = MaskedFolder(folder)
    spoil, reason = BAD["empty"]
    spoil(folder / "masks/more/zoo/zebras.png")
    with pytest.raises(InputError, match=f"no region to compare.*more/zoo, 'zebras'.*{reason}"):
        data.read(1)


def test_images_without_masks_cannot_be_read(folder):
    """They count among the samples, so that nothing goes missing unsaid."""
    save(noise(), folder / "images/bare.png")
    data = MaskedFolder(folder)
    assert data.names == ("bare", "farm", "more/zoo")
    with pytest.raises(InputError, match="bare has no mask"):
        data.read(0)


def test_unreadable_images_are_reported(folder):
    """A broken image is an error of its sample, with its path."""
    save_bytes(JPEG_OF_NOTHING, folder / "images/more/zoo.jpg")
    data = MaskedFolder(folder)
    data.read(0)
    with pytest.raises(InputError, match=r"^[^:]*zoo\.jpg cannot be read"):
        data.read(1)


def test_samples_are_drawn_by_seed(tmp_path):
    """A limit takes so many, in order, the same ones each time, others with another seed."""
    for number in range(12):
        save(noise(), tmp_path / f"images/{number:02d}.png")
        save_mask(LEFT, tmp_path / f"masks/{number:02d}/it.png")
    draws = [MaskedFolder(tmp_path, limit=5, seed=seed).names for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == tuple(sorted(draws[0]))
    assert len(draws[0]) == 5
    assert draws[0] != draws[2]
    assert MaskedFolder(tmp_path, limit=99).names == MaskedFolder(tmp_path).names


def test_missing_and_empty_folders_are_reported(tmp_path):
    """Each says what was expected where."""
    with pytest.raises(InputError, match="there is no folder"):
        MaskedFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"expected images .* in its folder images/, found none"):
        MaskedFolder(tmp_path)
    save(noise(), tmp_path / "images/farm.png")
    with pytest.raises(InputError, match=r"masks/farm/a horse\.png, found none that belongs"):
        MaskedFolder(tmp_path)
    save_mask(LEFT, tmp_path / "masks/other/a horse.png")
    with pytest.raises(InputError, match="found none that belongs"):
        MaskedFolder(tmp_path)


def test_limits_out_of_range_are_refused(folder):
    """The message names the argument."""
    for limit, seed in ((0, 0), (True, 0), (1, -1)):
        with pytest.raises(InputError, match=r"MaskedFolder: expected (limit|seed) of"):
            MaskedFolder(folder, limit=limit, seed=seed)


def test_the_same_text_twice_is_dropped(folder):
    """Two masks of one text leave the first."""
    save_mask(RIGHT, folder / "masks/farm/a_horse.png")
    sample = MaskedFolder(folder).read(0)
    assert np.array_equal(sample.regions[0].mask, LEFT)
    assert "another region of the same text" in sample.dropped[0]


def test_identity_follows_names_and_sizes_but_no_place(folder, tmp_path_factory):
    """The same files elsewhere are the same data; another mask is not."""
    before = MaskedFolder(folder).identity()
    elsewhere = tmp_path_factory.mktemp("moved") / "data"
    os.rename(folder, elsewhere)
    assert MaskedFolder(elsewhere).identity() == before
    (elsewhere / "notes.txt").write_text("not of the data")
    assert MaskedFolder(elsewhere).identity() == before
    assert MaskedFolder(elsewhere, limit=2).identity() != before
    save_mask(RIGHT, elsewhere / "masks/farm/a cow.png")
    assert MaskedFolder(elsewhere).identity() != before


def test_two_images_of_one_stem_are_reported(folder):
    """Masks would belong to both."""
    save(noise(), folder / "images/farm.jpg")
    with pytest.raises(InputError, match=r"farm\.jpg and images/farm\.png would be one sample"):
        MaskedFolder(folder)


def test_groups_in_a_table_are_refused(folder):
    """They would count for nothing; the script that reads them is named."""
    (folder / "groups.csv").write_text("image,group\nfarm,land\n")
    with pytest.raises(InputError, match=r"not in groups\.csv; docs/examples/convert\.py writes"):
        MaskedFolder(folder)
