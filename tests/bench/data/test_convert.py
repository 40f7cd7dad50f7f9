"""docs/examples/convert.py: what others publish becomes samples, each form on small files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder, VOCSegmentation

from captum_clip.bench.data import open_data
from captum_clip.bench.data.base import Sample
from captum_clip.bench.data.readers import SampleList
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from tests.bench.data.writing import (
    LEFT,
    RIGHT,
    SIZE,
    converted,
    noise,
    same,
    save,
    save_mask,
    save_numbers,
    save_segmentations,
)
from tests.photographs import PAIRS, scenes

TENCH, FLAMINGO, DOG = "n01440764", "n02007558", "n02084071"  # the last is none of the thousand


def rows(path: Path, *lines: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


def opened(form: str, source: Path, *options: str) -> SampleList:
    data = open_data(converted(form, source, *options))
    assert isinstance(data, SampleList)
    return data


def read_all(data: SampleList) -> Iterator[Sample]:
    return map(data.read, range(len(data)))


def test_masks_with_groups_and_removed_objects(tmp_path: Path, lawful: Any) -> None:
    """Region i is there where bit i of a subset is set; what nobody made is None."""
    source = tmp_path / "farm"
    for number, (stem, scene) in enumerate(scenes(source).items()):
        nouns = [thing.noun for thing in scene.objects]
        for thing in scene.objects:
            save_mask(thing.mask, source / f"masks/{stem}/a_{thing.noun}.png")
        for without in ([0], [1], [0, 1])[: 1 if number == 3 else 3]:
            name = " + ".join(f"a {nouns[place]}" for place in without)
            drawn = draw_scene(number, objects=nouns, without=without)
            save(Image.fromarray(drawn.image), source / f"without/{stem}/{name}.png")
    rows(source / "groups.csv", ("image", "group"), ("scene0.png", "land"), ("scene1", "water"))
    data = opened("masks", source)
    samples = lawful(data)
    assert set(data.truth) == {"masks", "objects", "scenes"}
    assert data.groups == {"scene0": "land", "scene1": "water"}
    for number, sample in enumerate(samples[:-1]):
        nouns = [region.text.removeprefix("a ") for region in sample.regions]
        for there, image in enumerate(sample.subsets):
            gone = [PAIRS[number].index(n) for i, n in enumerate(nouns) if not there >> i & 1]
            drawn = draw_scene(number, objects=list(PAIRS[number]), without=gone)
            assert same(np.asarray(image), drawn.image)
    assert [region.text for region in samples[-1].regions] == ["a duck", "a pizza"]
    assert [image is None for image in samples[-1].subsets] == [True, False, True, False]


def test_copies_of_what_masks_show(tmp_path: Path, lawful: Any) -> None:
    """On a background of the folder, from the pixels of the object alone."""
    source = tmp_path / "farm"
    for stem, scene in scenes(source).items():
        for thing in scene.objects:
            save_mask(thing.mask, source / f"masks/{stem}/a {thing.noun}.png")
    save(Image.new("RGB", (50, 40), (1, 2, 3)), source / "backgrounds/plain.png")
    data = opened("copies", source)
    assert data.truth == ("thirds",)
    for sample in lawful(data):
        assert sample.image.size == (448, 448)
        assert len(sample.subsets) == 8
        assert same(sample.subsets[-1], sample.image)
        masks = np.stack([region.mask for region in sample.regions])
        assert len({int(mask.sum()) for mask in masks}) == 1
        outside = np.asarray(sample.image)[~masks.any(0)]
        assert {tuple(color) for color in outside.tolist()} == {(1, 2, 3)}
        assert np.asarray(sample.image)[masks[0]].std() > 5


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four pictures of each of five classes, each of one gray."""
    for name, gray in COLORS.items():
        for number in range(4):
            color = (gray, gray, gray + number)
            save(Image.new("RGB", (20 + number, 30), color), tmp_path / f"in/{name}/{number}.png")
    return tmp_path / "in"


COLORS = {TENCH: 10, FLAMINGO: 60, "red_barn": 110, "boat": 160, "house boat": 210}
WORDS = {"tench": 10, "flamingo": 60, "red barn": 110, "boat": 160, "house boat": 210}


def test_classes_are_those_of_torchvision(folders: Path, lawful: Any) -> None:
    """Named by their folders, by ImageNet, or by a list; groups may stand beside them."""
    rows(folders / "groups.csv", ("image", "group"), ("boat/1.png", "land"))
    data = opened("classes", folders)
    theirs = ImageFolder(str(folders))
    assert [label for _, label in theirs.samples] == [sample.label for sample in lawful(data)]
    assert data.classes == ("boat", "house boat", "tench", "flamingo", "red barn")
    assert (data.truth, data.groups) == (("classes",), {"boat/1": "land"})
    (folders / "classnames.txt").write_text(f"\ufeff{FLAMINGO}\tpink bird\n", encoding="utf-8")
    assert opened("classes", folders, "--template", "the {}").classes[3] == "the pink bird"
    (folders / "templates.txt").write_text("a {}\n\nthe {}\n")
    data = opened("classes", folders)
    assert data.classes[0] == "boat"
    assert data.prompts["boat"] == ["a boat", "the boat"]
    for content, message in (("a dog\n", "one"), ("\n", "one")):
        (folders / "templates.txt").write_text(content)
        with pytest.raises(
            InputError, match=rf"templates\.txt: expected a template with {message}"
        ):
            opened("classes", folders)


def test_mosaics_name_one_to_four_cells_of_their_classes(folders: Path, lawful: Any) -> None:
    """The caption is the names side by side; each region is the cell of its class."""
    data = opened("mosaics", folders)
    assert data.truth == ("captions", "cells")
    for index, sample in enumerate(lawful(data)):
        pixels = np.asarray(sample.image)
        assert pixels.shape == (448, 448, 3)
        assert len(sample.regions) == 1 + index % 4
        assert sample.caption == " ".join(region.text for region in sample.regions)
        cells = {int(pixels[y, x, 0]) for y in (0, 447) for x in (0, 447)}
        assert len(cells) == 4
        assert not {160, 210} <= cells  # "boat" is a part of "house boat"
        for region in sample.regions:
            assert region.mask.sum() == 224**2
            assert set(pixels[region.mask][:, 0].tolist()) == {WORDS[region.text]}
            assert region.label is not None
            assert data.classes[region.label] == f"a photo of a {region.text}"
    shutil.rmtree(folders / "house boat")
    shutil.rmtree(folders / TENCH)
    with pytest.raises(SystemExit, match="four classes, none with a name that is part of another"):
        opened("mosaics", folders)


def test_label_images_number_the_classes_anew(tmp_path: Path, lawful: Any) -> None:
    """Lines of names count from 0 on; 255 and what is ignored count for nothing."""
    numbers = np.where(LEFT, 1, np.where(RIGHT, 3, 0)).astype(np.uint8)
    numbers[0], numbers[1] = 255, 2
    save(noise(), tmp_path / "ade/images/one.png")
    save(Image.fromarray(numbers), tmp_path / "ade/labels/one.png")
    (tmp_path / "ade/names.txt").write_text("[background]\nhorse, pony\n[ignored]\ndog\n")
    data = opened("labels", tmp_path / "ade")
    [sample] = lawful(data)
    assert (data.truth, data.classes, data.background) == (
        ("label images",),
        ("horse", "dog"),
        True,
    )
    assert data.prompts["horse"] == ["a photo of a horse", "a photo of a pony"]
    places = {255: -1, 2: -1, 0: 2, 1: 0, 3: 1}
    assert same(sample.labels, np.vectorize(places.get)(numbers))
    (tmp_path / "ade/names.txt").write_text("[ignored]\nhorse\ncat\n")
    with pytest.raises(InputError, match="with numbers of classes up to 1, got 254"):
        opened("labels", tmp_path / "ade")


def test_captions_with_boxes_and_points(tmp_path: Path) -> None:
    """Images are named with or without their ending, as in images/; rows of others count not."""
    save(noise(), tmp_path / "own/images/in/one.png")
    caption = "Two dogs, (a ball) and a cat."
    rows(
        tmp_path / "own/captions.csv",
        ("image", "caption", "phrase", "x", "y", "width", "height"),
        ("images/in/one.png", caption, "Two dogs", -1, 2.5, 2, 1),
        ("in/one", caption, "Two dogs", 3, 18, 28, 3),
        ("in/one.jpg", caption, "", "", "", "", ""),
        ("gone.png", "another", "thing", 0, 0, 1, 1),
    )
    rows(
        tmp_path / "own/points.csv",
        ("image", "text", "x", "y", "positive"),
        *(("in/one", "a dog", 0.1, 0.1, 1), (" in/one.png", "a dog ", 0.9, 0.9, 0)),
        *(("in/one", "a cat", 0.1, 0.1, 1), ("gone", "a dog", 0.9, 0.9, 0)),
    )
    data = opened("captions", tmp_path / "own")
    [sample] = read_all(data)
    assert (sample.name, sample.caption, data.classes) == ("in/one", caption, (caption,))
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:4, :1] = expected[18:, 3:] = True
    assert [region.text for region in sample.regions] == ["Two dogs"]
    assert same(sample.regions[0].mask, expected)
    rows(tmp_path / "own/groups.csv", ("image", "group"), ("in/one.png", "land"))
    data = opened("points", tmp_path / "own")
    [sample] = read_all(data)
    assert (data.names, data.groups) == (("in/one/a dog",), {"in/one/a dog": "land"})
    assert data.truth == ("masks", "points")
    assert sample.regions[0].mask[2, 3]


def test_pascal_voc_is_that_of_torchvision(tmp_path: Path, lawful: Any) -> None:
    """A region a class, with an article; outlines are of no class and no background either."""
    voc = tmp_path / "VOCdevkit/VOC2012"
    numbers = np.where(LEFT, 12, np.where(RIGHT, 15, 0)).astype(np.uint8)
    numbers[2, 1:12] = 255
    for name, of_image in (("2007_33", numbers), ("2007_42", np.where(RIGHT, 20, 0))):
        save(noise(), voc / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(of_image.astype(np.uint8))
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        save(mask, voc / f"SegmentationClass/{name}.png")
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("2007_42\n2007_33\n")
    data = opened("voc", voc)
    samples = lawful(data)
    theirs = VOCSegmentation(str(tmp_path), year="2012", image_set="val")
    known = {Path(path).stem: index for index, path in enumerate(theirs.images)}
    for name, sample in zip(data.names, samples, strict=True):
        image, numbers = map(np.asarray, theirs[known[name]])
        assert same(np.asarray(sample.image), image)
        drawn = np.zeros(SIZE, dtype=np.uint8)
        for region in sample.regions:
            drawn[region.mask] = 1 + data.classes.index(region.text)
        assert same(drawn, np.where(numbers == 255, 0, numbers))
        assert same(sample.void, numbers == 255)
    assert [region.text for region in samples[0].regions] == ["a dog", "a person"]
    assert (len(data.classes), data.classes[0]) == (20, "an aeroplane")
    assert opened("voc", voc, "--void", "background").read(0).void is None


def test_imagenet_s_has_the_images_own_class(tmp_path: Path, lawful: Any) -> None:
    """The second shows a part of the first as well; 1000 is left out."""
    for name, own, other in ((TENCH, 1, 0), (FLAMINGO, 2, 1)):
        save(noise(seed=own), tmp_path / f"s/validation/{name}/one.JPEG", quality=95)
        numbers = own * LEFT + other * RIGHT
        numbers[0] = 1000
        save_numbers(numbers, tmp_path / f"s/validation-segmentation/{name}/one.png")
    data = opened("imagenet-s", tmp_path / "s")
    assert data.truth == ("masks",)
    for index, sample in enumerate(lawful(data)):
        [region] = sample.regions
        assert (region.text, sample.label) == (data.classes[index], index)
        assert same(region.mask, LEFT)
        assert same(sample.void, numbers == 1000)
    assert data.classes == ("a photo of a tench", "a photo of a flamingo")


def test_imagenet_segmentation_is_the_right_way_round(tmp_path: Path, lawful: Any) -> None:
    """CLIP's names for the thousand classes, WordNet's for others; gray images are RGB."""
    images = [np.asarray(noise(seed=seed)) for seed in range(3)]
    images[2] = images[2][..., 0]
    masks = [mask.astype(np.uint8) for mask in (LEFT, RIGHT, LEFT)]
    file = save_segmentations(tmp_path / "gtsegs.mat", images, masks, [TENCH, FLAMINGO, DOG])
    data = opened("imagenet-segmentation", file)
    samples = lawful(data)
    for sample, image, mask in zip(samples, images, masks, strict=True):
        assert same(np.asarray(sample.image), np.asarray(Image.fromarray(image).convert("RGB")))
        assert same(sample.regions[0].mask, mask > 0)
    assert data.classes == ("a photo of a tench", "a photo of a flamingo", "a photo of a dog")
    assert [sample.label for sample in samples] == [0, 1, 2]
    assert [sample.regions[0].text for sample in samples] == [*data.classes]


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, str]:
    for stem in ("12", "34"):
        save(noise(), tmp_path / f"pictures/{stem}.jpg")
    return "--images", str(tmp_path / "pictures")


def test_flickr30k_entities(tmp_path: Path, images: tuple[str, str]) -> None:
    """The first caption of each image, and the boxes of its phrases."""
    box = "<xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>5</ymax>"
    name, nobox = "<name>7</name><name>8</name>", "<object><name>9</name><nobndbox/></object>"
    entity = f"<object>{name}<bndbox>{box}</bndbox></object>{nobox}"
    marked = "[/EN#7/people Two men] look at [/EN#9/other/scene the sky] .\nAnother one .\n"
    files = {"test.txt": "12\n", "Sentences/12.txt": marked}
    for path, content in (files | {"Annotations/12.xml": f"<a>{entity}</a>"}).items():
        (tmp_path / "flickr" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flickr" / path).write_text(content)
    [sample] = read_all(opened("flickr30k", tmp_path / "flickr", *images))
    assert sample.caption == "Two men look at the sky ."
    assert [region.text for region in sample.regions] == ["Two men"]
    assert same(np.argwhere(sample.regions[0].mask)[[0, -1]], [[2, 1], [5, 4]])


def test_captions_of_coco(tmp_path: Path, images: tuple[str, str]) -> None:
    """The first caption of each image, and the boxes of the classes that it names."""
    listed = [{"id": n, "file_name": f"{n}.jpg"} for n in (12, 34)]
    texts = [(12, "A dog by a\n hot dog."), (12, "Later."), (34, "Dogs.")]
    captions = [{"image_id": image, "caption": caption} for image, caption in texts]
    boxes = [
        {"image_id": image, "category_id": 1, "bbox": [1.5, 2, 3, 4]} for image, _ in texts[1:]
    ]
    (tmp_path / "coco").mkdir()
    for kind, published in (
        ("captions", {"images": listed, "annotations": captions}),
        ("instances", {"categories": [{"id": 1, "name": "dog"}], "annotations": boxes}),
    ):
        (tmp_path / f"coco/{kind}_val2017.json").write_text(json.dumps(published))
    first, second = read_all(opened("coco-captions", tmp_path / "coco", *images))
    assert (first.caption, second.caption) == ("A dog by a hot dog.", "Dogs.")
    assert [len(sample.regions) for sample in (first, second)] == [1, 0]


def test_open_images(tmp_path: Path, images: tuple[str, str]) -> None:
    """Points that somebody was sure of, on images with both answers."""
    said = enumerate(("yes", "no", "unsure"))
    points = [("12", "/m/1", 0.1 + n / 3, 0.5, answer) for n, answer in said]
    heads = ("ImageId", "Label", "X", "Y", "EstimatedYesNo"), ("LabelName", "DisplayName")
    rows(tmp_path / "open/oidv7-val-annotations-point-labels.csv", heads[0], *points)
    rows(tmp_path / "open/oidv7-class-descriptions.csv", heads[1], ("/m/1", "Cat"))
    data = opened("open-images", tmp_path / "open", *images)
    [sample] = read_all(data)
    assert (data.names, data.truth) == (("12/a photo of a cat",), ("masks", "points"))
    [region] = sample.regions
    assert (region.text, region.mask[10, 3], region.mask[10, 13]) == (
        "a photo of a cat",
        True,
        False,
    )


def test_waterbirds_and_counter_animal(tmp_path: Path) -> None:
    """Classes with the background as their group."""
    birds = [("001/a.jpg", 0, 1), ("002/b.jpg", 1, 1)]
    rows(tmp_path / "birds/metadata.csv", ("img_filename", "y", "place"), *birds)
    for name, *_ in birds:
        save(noise(), tmp_path / "birds" / name)
    data = opened("waterbirds", tmp_path / "birds")
    assert [data.classes[sample.label or 0] for sample in read_all(data)] == [
        "landbird",
        "waterbird",
    ]
    assert [*data.groups.values()] == ["landbird on water", "waterbird on water"]
    for name in ("fox/snow/1.jpg", "fox/grass/2.jpg", "owl/grass/3.jpg"):
        save(noise(), tmp_path / "animals" / name)
    data = opened("counter-animal", tmp_path / "animals")
    assert data.classes == ("fox", "owl")
    assert data.groups == {"fox/grass/2": "grass", "fox/snow/1": "snow", "owl/grass/3": "grass"}
