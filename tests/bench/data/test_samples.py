"""Lists of samples: what a line may say, and what is wrong in which line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip.bench.data import open_data
from captum_clip.bench.data.readers import SampleList
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from tests.bench.data.writing import (
    JPEG_OF_NOTHING,
    LEFT,
    RIGHT,
    SIZE,
    noise,
    same,
    save,
    save_bytes,
    save_mask,
)
from tests.photographs import (
    PAIRS,
    make_captions,
    make_counterfactuals,
    make_points,
    scenes,
    write_samples,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, of which two masks are known."""
    save(noise(), tmp_path / "images/farm.png")
    save_mask(LEFT, tmp_path / "left.png")
    save_mask(RIGHT, tmp_path / "right.png")
    return tmp_path


FARM = {"image": "images/farm.png"}
HORSE = {"text": "a horse", "mask": "left.png"}


def listed(folder: Path, *records: Any, **options: Any) -> SampleList:
    data = open_data(write_samples(folder, *records), **options)
    assert isinstance(data, SampleList)
    return data


def test_regions_have_masks_boxes_and_labels(folder: Path, lawful: Any) -> None:
    """What a line does not say stays empty; files are found from the list."""
    polygon = {"text": "a barn", "label": "barn", "mask": [[20, 5, 29, 5, 29, 19, 20, 19]]}
    box = {"text": "a dog", "label": "dog", "box": [1, 2, 11, 9]}
    data = listed(folder, {**FARM, "regions": [HORSE, polygon], "void": "right.png"})
    [sample] = lawful(data)
    assert sample.name == "farm"
    assert [region.text for region in sample.regions] == ["a horse", "a barn"]
    assert same(sample.regions[0].mask, LEFT)
    assert same(sample.regions[1].mask, RIGHT)
    assert same(sample.void, RIGHT)
    assert (sample.label, sample.caption, sample.subsets, sample.dropped) == (None, None, (), ())
    about = {"truth": ["captions", "cells"]}
    data = listed(folder, about, {**FARM, "caption": "a dog a barn", "regions": [box, polygon]})
    [sample] = lawful(data)
    assert data.truth == ("captions", "cells")
    assert [data.classes[region.label or 0] for region in sample.regions] == ["dog", "barn"]
    assert same(sample.regions[0].mask, LEFT)
    assert (sample.label, sample.caption) == (None, "a dog a barn")


@pytest.mark.parametrize(
    ("fields", "truth"),
    [
        ({"regions": [HORSE]}, {"masks", "objects"}),
        ({"label": "a horse"}, {"classes"}),
        ({"caption": "a horse"}, {"retrieval", "phrases"}),
        (
            {"regions": [{"text": "it", "point": [[0.1, 0.1, 1], [0.9, 0.9, 0]]}]},
            {"masks", "objects", "points"},
        ),
        ({"regions": [HORSE], "subsets": [None, FARM["image"]]}, {"masks", "objects", "scenes"}),
        ({"regions": [{**HORSE, "label": "horse"}]}, {"masks", "objects"}),
    ],
)
def test_the_truth_is_what_the_fields_tell(folder: Path, fields: Any, truth: set[str]) -> None:
    data = listed(folder, {**FARM, **fields})
    assert set(data.truth) == truth
    assert set(data.truth) <= set(SampleList.truth)
    data.read(0)


def test_templates_make_prompts_of_classes(folder: Path) -> None:
    """Classes are called by their names; the order and prompts may be given."""
    data = listed(folder, {**FARM, "label": "horse"}, {**FARM, "name": "2", "label": "dog"})
    assert data.classes == ("dog", "horse")
    assert [data.read(index).label for index in range(2)] == [1, 0]
    assert data.prompts == {}
    path = f"samples:{data.path}"
    assert open_data(path, template="a {}").prompts == {"dog": ["a dog"], "horse": ["a horse"]}
    assert open_data(path, template="a {}").identity() != data.identity()
    about = {"classes": ["horse", "dog"], "prompts": {"horse": ["a horse", "a pony"]}}
    data = listed(folder, about, {**FARM, "label": "horse"})
    assert (data.classes, data.prompts) == (("horse", "dog"), about["prompts"])
    for template in ("a photo", "{} and {}"):
        with pytest.raises(InputError, match=r'expected a template with one "\{\}"'):
            listed(folder, {**FARM, "label": "horse"}, template=template)


def test_captions_are_classes_and_phrases_regions(tmp_path: Path, lawful: Any) -> None:
    """An image without phrases has its caption; a sample leaves all classes."""
    data = open_data(make_captions(tmp_path))
    samples = lawful(data)
    assert [data.classes[sample.label] for sample in samples] == [s.caption for s in samples]
    assert [len(sample.regions) for sample in samples] == [2, 2, 2, 0]
    thing = scenes(tmp_path)["scene1"].objects[1]
    box = Image.fromarray(thing.mask).getbbox()
    assert box is not None
    expected = np.zeros((224, 224), dtype=bool)
    expected[box[1] : box[3], box[0] : box[2]] = True
    assert samples[1].regions[1].text == "car"
    assert same(samples[1].regions[1].mask, expected)
    small = open_data(f"samples:{tmp_path}/samples.jsonl", number=2)
    assert (len(small), len(small.classes)) == (2, 4)


def test_boxes_of_a_region_are_joined_and_cut_at_the_edge(folder: Path) -> None:
    """A pixel that a box touches belongs to it; a box that leaves the image is dropped."""
    width, height = SIZE[1], SIZE[0]
    boxes = [[-1, 2.5, 2, 1], [3, 18, width - 2, height - 17]]
    corners = [3, 5, width, height]
    regions = [{"text": "dogs", "box": boxes}, {"text": "ball", "box": corners}]
    regions.append({"text": "cat", "box": [0.1, 0.1, 0.5, 0.5]})
    sample = listed(folder, {**FARM, "regions": regions}).read(0)
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:4, :1] = expected[18:, 3:] = True
    assert [region.text for region in sample.regions] == ["dogs"]
    assert same(sample.regions[0].mask, expected)
    ball, cat = sample.dropped
    assert ball.startswith(
        "farm, 'ball': expected boxes [left, top, width, height] in pixels, got "
    )
    assert "leaves the image of" in ball
    assert cat.endswith("these are shares; multiply them with the image's size")


def test_points_are_squares_and_all_else_is_void(tmp_path: Path, lawful: Any) -> None:
    """A corner is in the image."""
    assert len(lawful(open_data(make_points(tmp_path / "many")))) == 2 * len(PAIRS)
    save(noise((200, 300)), tmp_path / "images/one.png")
    region = {"text": "a/b", "point": [[0, 0, 1], [0.5, 0.5, 0], [1, 1, 1]]}
    other = {"text": "c", "point": [[0.2, 0.2, 1], [0, 0, 0]]}
    sample = listed(tmp_path, {"image": "images/one.png", "regions": [region, other]}).read(0)
    inside, void = np.zeros((200, 300), dtype=bool), np.ones((200, 300), dtype=bool)
    inside[:1, :1] = inside[199:, 299:] = True
    void[inside] = void[99:101, 149:151] = False
    assert sample.regions[0].text == "a/b"
    assert same(sample.regions[0].mask, inside)
    assert same(sample.regions[0].void, void)
    assert sample.void is None


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ({"point": [[1.1, 0, 1]]}, "x and y of points in [0, 1]"),
        (
            {"point": [[0.5, 0]]},
            "expected point of several [x, y, 1 or 0], with x and y as shares",
        ),
        ({"point": [[0.5, 0.5, 0]]}, "the mask is empty"),
        ({"box": [1, 1, 0, 1]}, "the mask is empty"),
        ({"box": [1, 1, float("nan"), 1]}, "expected boxes [left, top, width, height] in pixels"),
        ({"box": [1, 1, "2", 1]}, "expected box of [left, top, width, height] in pixels"),
        ({"box": [1, 1, 2]}, "expected box of [left, top, width, height] in pixels"),
        ({"mask": 3}, "expected mask of a file, polygons [[x, y, x, y, ...]] or run lengths"),
        ({"mask": "gone.png"}, "there is no image file"),
        ({"bbox": [1, 1, 2, 2]}, "in each region, got 'bbox' (did you mean box?)"),
        ({"points": [[0.5, 0.5, 1]]}, "in each region, got 'points' (did you mean point?)"),
        ({}, "expected a field mask, box or point in each region, got none of them"),
    ],
)
def test_regions_that_cannot_be_read_are_told(folder: Path, region: Any, reason: str) -> None:
    """They are left out of the sample, and alone make it unreadable."""
    data = listed(folder, {**FARM, "regions": [{"text": "it", **region}, HORSE]})
    sample = data.read(0)
    assert [region.text for region in sample.regions] == ["a horse"]
    [dropped] = sample.dropped
    assert reason in dropped
    alone = listed(folder, {**FARM, "regions": [{"text": "it", **region}]})
    with pytest.raises(InputError, match="there is no region to compare a map with: farm, 'it'"):
        alone.read(0)


def test_subsets_are_in_the_order_of_their_bits(tmp_path: Path, lawful: Any) -> None:
    """Region i is there where bit i is set; what nobody made is None."""
    samples = lawful(open_data(make_counterfactuals(tmp_path)))
    for number, sample in enumerate(samples[:-1]):
        nouns = [region.text.removeprefix("a ") for region in sample.regions]
        for there, image in enumerate(sample.subsets):
            gone = [PAIRS[number].index(n) for i, n in enumerate(nouns) if not there >> i & 1]
            drawn = draw_scene(number, objects=list(PAIRS[number]), without=gone)
            assert same(np.asarray(image), drawn.image)
    assert [region.text for region in samples[-1].regions] == ["a duck", "a pizza"]
    assert [image is None for image in samples[-1].subsets] == [True, False, True, False]


def test_subsets_that_do_not_match_are_refused(folder: Path) -> None:
    """Too few, of another size, of too many regions, or of regions that cannot be read."""
    save(noise((20, 31)), folder / "wider.png")
    form = "expected 2^n subsets of n regions up to 8 of farm, of its image's size"
    image = FARM["image"]
    many = [{"text": f"thing {n}", "box": [n, 0, 3, 3]} for n in range(9)]
    bad = {"text": "gone", "mask": "gone.png"}
    for regions, subsets, reason in (
        ([HORSE], [image], form),
        ([HORSE], ["wider.png", image], form),
        (many, [None] * 511 + [image], form),
        ([HORSE, bad], [None, None, None, image], "farm, 'gone': there is no image file"),
    ):
        with pytest.raises(InputError, match=re.escape(reason)):
            listed(folder, {**FARM, "regions": regions, "subsets": subsets}).read(0)


def test_a_text_comes_twice_only_among_copies(folder: Path) -> None:
    again = {"text": "a horse", "mask": "right.png"}
    sample = listed(folder, {**FARM, "regions": [HORSE, again]}).read(0)
    assert sample.dropped == ("farm, 'a horse': the image has another region of the same text",)
    about = {"truth": ["thirds"]}
    sample = listed(folder, about, {**FARM, "regions": [HORSE, again]}).read(0)
    assert [region.text for region in sample.regions] == ["a horse"] * 2


def labeled(folder: Path, numbers: Any, **about: Any) -> SampleList:
    save(Image.fromarray(numbers.astype(np.uint8)), folder / "labels/farm.png")
    about = {"classes": ["horse", "dog"], **about}
    return listed(folder, about, {**FARM, "labels": "labels/farm.png"})


def test_label_images_number_the_classes(folder: Path, lawful: Any) -> None:
    """255 counts for nothing, the number of classes is the background; a palette is no color."""
    numbers = np.where(LEFT, 1, np.where(RIGHT, 255, 2))
    data = labeled(folder, numbers, background=True)
    [sample] = lawful(data)
    assert data.truth == ("label images",)
    assert data.background
    assert same(sample.labels, np.where(numbers == 255, -1, numbers))
    with Image.open(folder / "labels/farm.png") as image:
        palette = image.convert("L")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    save(palette, folder / "labels/farm.png")
    assert same(SampleList(data.path).read(0).labels, sample.labels)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a JSON object in {path}, line 2"),
        ("[]", "a JSON object in {path}, line 2"),
        ('{"image": "a.png", "captoin": "x"}', "fields image, name, "),
        ('{"image": 3}', "image of str in {path}, line 2, got 3"),
        ('{"label": "x"}', "an image in {path}, line 2"),
        ('{"image": ""}', "an image in {path}, line 2"),
        ('{"image": "images/farm.jpg"}', "a name of its own in {path}, line 2, got 'farm'"),
        ('{"image": "a.png", "regions": [{"mask": "x"}]}', "a text, and maybe a label, of each"),
        ('{"image": "a.png", "regions": [{"text": "x", "label": [1]}]}', "a text, and maybe a"),
        ('{"image": "a.png", "regions": ["x"]}', "regions of list[dict[str, Any]] in {path}"),
        ('{"image": "a.png", "subsets": [1]}', "subsets of list[str | None] in {path}, line 2"),
        ('{"truth": ["masks"]}', "an image in {path}, line 2"),
    ],
)
def test_lines_that_describe_no_sample_are_refused(folder: Path, line: str, message: str) -> None:
    path = folder / "samples.jsonl"
    path.write_text(f'{{"image": "images/farm.png"}}\n{line}\n')
    with pytest.raises(InputError, match=re.escape(message.replace("{path}", str(path)))):
        SampleList(path)


def test_lists_that_hold_nothing_or_contradict_themselves_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no list of samples"):
        SampleList(folder / "none.jsonl")
    for content in (b"", b"\n\n", b'{"classes": ["a"]}\n'):
        with pytest.raises(InputError, match="expected a sample in each line of"):
            SampleList(save_bytes(content, folder / "samples.jsonl"))
    with pytest.raises(InputError, match=r"line 1, got b'\\xff"):
        SampleList(save_bytes(b"\xff\xfe\xff", folder / "samples.jsonl"))
    with pytest.raises(InputError, match=r"classes of .* that differ, got 'a'"):
        listed(folder, {"classes": ["a", "a"]}, {**FARM, "label": "a"})
    with pytest.raises(InputError, match=r"labels of .* among its classes, got \['b'\]"):
        listed(folder, {"classes": ["a"]}, {**FARM, "label": "b"})


def test_groups_are_those_of_the_samples(folder: Path) -> None:
    """They belong to the identity, as do the sizes of the files; the place does not."""
    data = listed(folder, {**FARM, "label": "a"}, {**FARM, "name": "2", "label": "b"})
    grouped = listed(folder, {**FARM, "label": "a"}, {**FARM, "name": "2", "group": "land"})
    assert (data.groups, grouped.groups) == ({}, {"2": "land"})
    assert grouped.identity() != data.identity()
    moved = folder.rename(folder.with_name("moved"))
    assert SampleList(moved / "samples.jsonl").identity() == grouped.identity()
    save(noise((21, 30)), moved / "images/farm.png")
    assert SampleList(moved / "samples.jsonl").identity() != grouped.identity()


def test_samples_are_drawn_by_seed(folder: Path) -> None:
    records = [{**FARM, "name": f"{number}", "label": "a"} for number in range(12)]
    path = listed(folder, *records).path
    draws = [SampleList(path, limit=5, seed=seed).names for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 5


def test_unreadable_images_are_reported(folder: Path) -> None:
    """An error of its sample, with its path."""
    data = listed(folder, {**FARM, "label": "a"}, {"image": "images/gone.png", "label": "a"})
    with pytest.raises(InputError, match=r"there is no image file .*gone\.png"):
        data.read(1)
    save_bytes(JPEG_OF_NOTHING, folder / "images/farm.png")
    with pytest.raises(InputError, match=r"farm\.png cannot be read"):
        data.read(0)
