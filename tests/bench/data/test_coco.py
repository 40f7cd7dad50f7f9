"""COCO's instances: polygons and run lengths as pycocotools reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from captum_clip.bench.data import open_data
from captum_clip.bench.data.readers import CocoInstances
from captum_clip.errors import InputError
from tests.bench.data.writing import LEFT, RIGHT, SIZE, box, noise, same, save

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toaster"}]
INSIDE = box(rows=slice(1, 4), columns=slice(13, 18))


def compressed(mask: Any) -> Any:
    """Run lengths as COCO's files hold them."""
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def counted(mask: Any) -> Any:
    """Run lengths as numbers, by a plain loop."""
    counts, last = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != last:
            counts, last = [*counts, 0], pixel
        counts[-1] += 1
    return {"size": [*mask.shape], "counts": counts}


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three images: several kinds of masks, a crowd, no mask; a fourth is not there."""
    for number in range(3):
        save(noise(seed=number), tmp_path / f"val2017/00{number}.jpg")
    annotations = [
        {"image_id": 0, "category_id": 18, "segmentation": [rectangle(1, 2, 12, 11)]},
        {"image_id": 0, "category_id": 1, "segmentation": compressed(RIGHT)},
        {"image_id": 0, "category_id": 18, "segmentation": compressed(INSIDE)},
        {"image_id": 1, "category_id": 1, "segmentation": [rectangle(1, 2, 12, 11)]},
        {"image_id": 1, "category_id": 1, "segmentation": counted(RIGHT), "iscrowd": 1},
        {"image_id": 3, "category_id": 1, "segmentation": [rectangle(1, 2, 12, 11)]},
    ]
    images = [{"id": number, "file_name": f"00{number}.jpg"} for number in range(4)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path = tmp_path / "annotations/instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def change(file: Path, **content: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def test_instances_are_lawful(file: Path, lawful: Any) -> None:
    assert len(lawful(CocoInstances(file))) == 2


def test_a_region_is_all_of_a_category(file: Path) -> None:
    """Its objects are joined, whatever their form; crowds are void; the rest is left out."""
    data = open_data(f"coco:{file}")
    first, second = map(data.read, range(2))
    assert [region.text for region in first.regions] == ["person", "dog"]
    assert same(first.regions[0].mask, RIGHT)
    assert same(first.regions[1].mask, LEFT | INSIDE)
    assert first.void is None
    assert same(second.regions[0].mask, LEFT)
    assert second.void is None
    assert same(second.regions[0].void, RIGHT)
    assert data.left_out == {"002.jpg": "it has no mask", "003.jpg": "there is no such image"}
    assert data.classes == ("dog", "person", "toaster")
    assert data.prompts["dog"] == ["a photo of a dog"]
    assert open_data(f"coco:{file}", template="the {}").prompts["dog"] == ["the dog"]


def test_run_lengths_are_those_of_pycocotools(file: Path) -> None:
    """Compressed and not, of masks with long and short runs, which begin inside or outside."""
    random = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.9):
        mask = random.random(SIZE) < share
        mask[:7, 3:9] = share > 0.5
        for encoded in (compressed(mask), counted(mask)):
            annotation = {"image_id": 0, "category_id": 1, "segmentation": encoded}
            change(file, annotations=[annotation])
            assert same(CocoInstances(file).read(0).regions[0].mask, mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in decode
def test_polygons_are_nearly_those_of_pycocotools(file: Path) -> None:
    """Pixels count by their centers, and the pixels of the outline may differ."""
    random = np.random.default_rng(0)
    save(noise((120, 150)), file.parent.parent / "val2017/000.jpg")
    for _ in range(5):
        angles = np.sort(random.random(9)) * 2 * np.pi
        radii = random.uniform(25, 55, 9)
        x, y = 75 + radii * np.cos(angles), 60 + radii * np.sin(angles)
        polygon = np.stack([x, y], 1).ravel().tolist()
        annotation = {"image_id": 0, "category_id": 1, "segmentation": [polygon]}
        change(file, annotations=[annotation])
        mask = CocoInstances(file).read(0).regions[0].mask
        theirs = coco_masks.decode(coco_masks.frPyObjects([polygon], 120, 150))[..., 0] > 0
        assert (mask & theirs).sum() > 0.95 * (mask | theirs).sum()


@pytest.mark.parametrize(
    "place", ["annotations", "annotations/images", "images", "images/val2017", "val2017"]
)
def test_images_are_found_where_others_have_them(file: Path, place: str) -> None:
    folder = file.parent.parent
    before = CocoInstances(file)
    for image in sorted((folder / "val2017").iterdir()):
        target = folder / place / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image.rename(target)
    found = CocoInstances(file)
    assert found.identity() == before.identity()
    assert len(found.read(0).regions) == 2


def test_images_are_found_in_the_folder_that_is_named(file: Path) -> None:
    """Alone, so that other images of the same names do not count."""
    before, photos = CocoInstances(file), file.parent.parent / "my, photos"
    (file.parent.parent / "val2017").rename(photos)
    found = open_data(f"coco:{file},{photos}/")
    assert found.identity() == before.identity()
    assert same(found.read(0).regions[1].mask, LEFT | INSIDE)
    photos.rename(file.with_name("beside"))
    assert open_data(f"coco:{file},beside").identity() == before.identity()
    file.with_name("beside").rename(photos)
    save(noise(seed=0), file.with_name("000.jpg"))
    with pytest.raises(
        InputError, match=r"in one of \S*/none, .*name the folder in which they lie"
    ):
        open_data(f"coco:{file},{photos.with_name('none')}")


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "the mask is empty"),
        ([[0, 0, 9, 9]], "the mask is empty"),  # two corners
        ([rectangle(300, 300, 310, 310)], "the mask is empty"),  # outside of the image
        ([[1, 2, 3]], "expected mask of a file, polygons [[x, y, x, y, ...]] or run lengths"),
        (
            [["a", "b", "c", "d"]],
            "expected mask of a file, polygons [[x, y, x, y, ...]] or run lengths",
        ),
        ({"size": [20, 30], "counts": [5, 5]}, "pixels, which sum to 600, got 10"),
        ({"size": [30, 20], "counts": [300, 300]}, "run lengths of 20 x 30 pixels, got [30, 20]"),
        ({"size": [20, 30], "counts": [-5, 605]}, "pixels, none below 0, got -5"),
        ({"size": [20, 30], "counts": [10**18]}, "which sum to 600, got 1000000000000000000"),
        ({"size": [20, 30]}, "expected run lengths with size and counts, got {'size': [20, 30]}"),
        ({"size": [20, 30], "counts": []}, "which sum to 600, got 0"),
    ],
)
def test_masks_that_cannot_be_read_are_told(file: Path, segmentation: Any, reason: str) -> None:
    """The sample is left out with its reason, and no run is unpacked before it is checked."""
    full = {"image_id": 0, "category_id": 1, "segmentation": [rectangle(0, 0, 9, 9)]}
    bad = {"image_id": 0, "category_id": 18, "segmentation": segmentation or [[]]}
    change(file, annotations=[full, bad])
    sample = CocoInstances(file).read(0)
    assert [region.text for region in sample.regions] == ["person"]
    [dropped] = sample.dropped
    assert dropped.startswith("000, 'dog': ")
    assert reason in dropped


def test_other_files_are_reported(file: Path) -> None:
    """No file, no JSON, other annotations of COCO, none of the images."""
    with pytest.raises(InputError, match=r"there is no file of COCO's instances .*none\.json"):
        CocoInstances(file.with_name("none.json"))
    captions = [{"image_id": 0, "caption": "a dog"}]
    for content in ("text", "[]", json.dumps({"images": [], "annotations": captions})):
        other = file.with_name("other.json")
        other.write_text(content)
        with pytest.raises(InputError, match=r"with masks, as COCO's instances have"):
            CocoInstances(other)
    with pytest.raises(InputError, match=r"other\.json'; it has no categories\.$"):
        CocoInstances(other)
    change(file, images=[{"id": 0, "file_name": "gone.jpg"}])
    with pytest.raises(InputError, match=r"images of instances_val2017\.json in one of .*val2017"):
        CocoInstances(file)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("images", {"id": 4}, "images[0] (id 4) has no file_name."),
        ("categories", {"name": "dog"}, "categories[0] has no id."),
        ("annotations", {"segmentation": []}, "annotations[0] has no image_id."),
        (
            "annotations",
            {"id": 5, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]},
            "annotations[0] (id 5) has no segmentation; boxes alone are read from samples:FILE,",
        ),
        (
            "annotations",
            {"id": 5, "image_id": 0, "category_id": 7, "segmentation": []},
            "annotations[0] (id 5) has 7 as its category_id, which is the id of no category; the "
            "categories are {18: 'dog', 1: 'person', 90: 'toaster'}.",
        ),
    ],
)
def test_an_entry_that_lacks_a_field_is_named(
    file: Path, name: str, entry: Any, message: str
) -> None:
    change(file, **{name: [entry]})
    with pytest.raises(InputError, match=re.escape(f"{file}: {message}")):
        CocoInstances(file)


def test_a_crowd_is_void_for_its_own_category_alone(file: Path) -> None:
    """As in COCO's own evaluation: for others its pixels are no part of them."""
    people = {"image_id": 0, "category_id": 1, "segmentation": counted(RIGHT), "iscrowd": 1}
    person = {"image_id": 0, "category_id": 1, "segmentation": [rectangle(1, 2, 4, 4)]}
    dog = {"image_id": 0, "category_id": 18, "segmentation": [rectangle(1, 6, 12, 11)]}
    change(file, annotations=[people, person, dog])
    sample = CocoInstances(file).read(0)
    voids = {region.text: region.void for region in sample.regions}
    assert same(voids["person"], RIGHT)
    assert voids["dog"] is None


@pytest.mark.parametrize("name", ["../../picture.png", "../picture.png", "absolute"])
def test_no_file_outside_of_the_folder_is_read(file: Path, name: str, tmp_path: Path) -> None:
    """A stranger's file could show any image of the reader's disk."""
    outside = tmp_path / "picture.png" if name == "absolute" else tmp_path / "val2017" / name
    save(noise(seed=0), outside.resolve())
    first = {"id": 0, "file_name": str(outside) if name == "absolute" else name}
    change(file, images=[first, {"id": 1, "file_name": "001.jpg"}])
    with pytest.raises(InputError, match=r"picture\.png' lies outside of .*; move it inside"):
        CocoInstances(file)


def test_images_of_one_name_are_refused(file: Path) -> None:
    """They would be one sample, and the first would be gone without a word."""
    save(noise(seed=0), file.parent.parent / "val2017/000.png")
    full = {"category_id": 1, "segmentation": [rectangle(0, 0, 9, 9)]}
    images = [
        {"id": number, "file_name": f"000.{end}"} for number, end in enumerate(["jpg", "png"])
    ]
    change(file, images=images, annotations=[{**full, "image_id": n} for n in range(2)])
    with pytest.raises(InputError, match=r"one image of each stem in .*, got '000\.png'"):
        CocoInstances(file)


def test_an_object_within_a_crowd_counts(file: Path) -> None:
    """As in COCO's own evaluation, which compares with objects before it looks at crowds."""
    outlined = box(rows=slice(8, 12), columns=slice(18, 24))  # part of it in the crowd
    people = {"image_id": 0, "category_id": 1, "segmentation": counted(RIGHT), "iscrowd": 1}
    person = {"image_id": 0, "category_id": 1, "segmentation": counted(outlined)}
    change(file, annotations=[people, person])
    [region] = CocoInstances(file).read(0).regions
    assert same(region.mask, outlined)
    assert same(region.void, RIGHT & ~outlined)


def test_a_list_of_samples_names_what_lies_outside(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    save(noise(seed=0), tmp_path / "picture.png")
    save(noise(seed=0), folder / "own.png")
    for fields in ({"image": "../picture.png"}, {"image": "own.png", "void": "../picture.png"}):
        (folder / "samples.jsonl").write_text(json.dumps({**fields, "label": "a"}))
        path = folder / "samples.jsonl"
        with pytest.raises(InputError, match=r"'\.\./picture\.png' lies outside .* move it inside"):
            open_data(f"samples:{path}")
        assert open_data(f"samples:{path},{tmp_path}").names
