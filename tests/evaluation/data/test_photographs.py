"""Folders of photographs: what is read of them, and what is wrong in which line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from captum_clip.evaluation.data import open_data
from captum_clip.evaluation.data.formats import ClassFolder, MaskedFolder
from captum_clip.evaluation.data.photographs import (
    CaptionFolder,
    CounterfactualFolder,
    PointFolder,
)
from tests.evaluation.data.writing import LEFT, RIGHT, SIZE, noise, same, save, save_mask
from tests.photographs import (
    PAIRS,
    make_captions,
    make_counterfactuals,
    make_points,
    scenes,
    write_rows,
)

BOXES = ("image", "caption", "phrase", "x", "y", "width", "height")
POINTS = ("image", "text", "x", "y", "positive")


def test_phrases_are_regions_and_captions_classes(tmp_path, lawful):
    """A region is all pixels of its boxes; an image without phrases has its caption."""
    data = open_data(make_captions(tmp_path))
    assert isinstance(data, CaptionFolder)
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
    assert len(CaptionFolder(tmp_path, limit=2).classes) == 4
    assert CaptionFolder(tmp_path, limit=2).names != data.names


def test_boxes_of_a_phrase_are_joined_and_cut_at_the_edge(tmp_path):
    """A pixel that a box touches belongs to it; rows of other images are left out, and named."""
    save(noise(), tmp_path / "images/in/one.png")
    caption = "Two dogs, (a ball) and a cat."
    rows = [
        ("images/in/one.png", caption, "Two dogs", -4, 2.5, 5, 1),
        ("in/one", caption, "Two dogs", 3, 18, 90, 90),
        ("in/one.jpg", caption, "a ball", 40, 0, 9, 9),
        ("gone.png", "another", "thing", 0, 0, 1, 1),
    ]
    write_rows(tmp_path / "captions.csv", BOXES, *rows)
    data = CaptionFolder(tmp_path)
    sample = data.read(0)
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:4, :1] = expected[18:, 3:] = True
    assert [region.text for region in sample.regions] == ["Two dogs"]
    assert same(sample.regions[0].mask, expected)
    assert sample.dropped == ("in/one, 'a ball': the mask is empty",)
    assert data.classes == (caption,)
    left_out = {f"{tmp_path}/captions.csv, line 5": "there is no image 'gone.png'"}
    assert data.left_out == left_out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "two dogs"), "line 3: expected one caption, a has another one already"),
        (("a", "a dog", "do", 1, 1, 1, 1), "line 3: 'do' is not in the caption 'a dog'"),
        (("a", "a dog", "dog", 1, 1, 0, 1), "line 3: expected x, y, width, height of a box, got {"),
        (("a", "a dog", "dog", 1, "", 1, 1), "line 3: expected x, y, width, height of a box"),
        (("a", "a dog", "dog", 1, "nan", 1, 1), "'x': '1', 'y': 'nan', 'width': '1'"),
        (("a", "a dog", "dog"), "line 3: expected x, y, width, height of a box"),
        (("a", ""), "line 3: expected image, caption, got {'image': 'a'"),
    ],
)
def test_captions_that_do_not_match_are_refused(tmp_path, row, message):
    save(noise(), tmp_path / "images/a.png")
    write_rows(tmp_path / "captions.csv", BOXES, ("a", "a dog"), row)
    with pytest.raises(InputError, match=re.escape(message)):
        CaptionFolder(tmp_path)


def test_a_phrase_stands_in_its_caption_as_the_task_finds_it(tmp_path):
    """By words without outer punctuation, whatever the white space; else a run would end midway."""
    save(noise(), tmp_path / "images/a.png")
    for caption, phrase in (
        ("a  red\tdog, (x)", "red dog"),
        ("a \N{LEFT DOUBLE QUOTATION MARK}dog.", "dog"),
    ):
        write_rows(tmp_path / "captions.csv", BOXES, ("a", caption, phrase, 1, 1, 9, 9))
        assert [region.text for region in CaptionFolder(tmp_path).read(0).regions] == [phrase]
    write_rows(
        tmp_path / "captions.csv", BOXES, ("a", "a dog\N{TRADE MARK SIGN}", "dog", 1, 1, 9, 9)
    )
    with pytest.raises(InputError, match=r"line 2: 'dog' is not in the caption"):
        CaptionFolder(tmp_path)


def test_accents_may_be_written_apart(tmp_path):
    """As a list or a disk has them."""
    save(noise(), tmp_path / "images/cafe\u0301.png")
    write_rows(tmp_path / "captions.csv", BOXES, ("caf\u00e9.png", "a dog"))
    assert CaptionFolder(tmp_path).names == ("cafe\u0301",)


def test_lists_that_are_not_there_or_empty_are_refused(tmp_path):
    save(noise(), tmp_path / "images/a.png")
    for kind, name in ((CaptionFolder, "captions.csv"), (PointFolder, "points.csv")):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            kind(tmp_path)
        columns = BOXES if kind is CaptionFolder else POINTS
        for wrong in (columns[1:], (*columns, columns[2])):
            write_rows(tmp_path / name, wrong, range(len(wrong)))
            with pytest.raises(InputError, match=rf"each once, in .*{name}, got \["):
                kind(tmp_path)
        write_rows(tmp_path / name, columns)
        with pytest.raises(InputError, match=rf"in {name}, found none that belongs"):
            kind(tmp_path)


def test_points_are_squares_and_all_else_is_void(tmp_path, lawful):
    """A sample a text, if it has points of both kinds; a corner is in the image."""
    data = open_data(make_points(tmp_path))
    assert isinstance(data, PointFolder)
    assert len(lawful(data)) == 2 * len(PAIRS)
    save(noise((200, 300)), tmp_path / "images/one.png")
    rows = [("one", "a/b", 0, 0, 1), ("one", "a/b", 0.5, 0.5, 0), ("one", "c", 0.1, 0.1, 1)]
    write_rows(tmp_path / "points.csv", POINTS, *rows, ("one", "a/b", 1, 1, 1.0))
    one = PointFolder(tmp_path)
    assert one.names == ("one/a/b",)
    assert one.left_out == {"one/c": "its points are of one kind"}
    sample = one.read(0)
    inside, void = np.zeros((200, 300), dtype=bool), np.ones((200, 300), dtype=bool)
    inside[:1, :1] = inside[199:, 299:] = True
    void[inside] = void[99:101, 149:151] = False
    assert sample.regions[0].text == "a/b"
    assert same(sample.regions[0].mask, inside)
    assert same(sample.void, void)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "it", 1.1, 0, 1), "line 3: expected x, y in [0, 1], positive 0 or 1, got {"),
        (("a", "it", 0.5, 0, 0.5), "line 3: expected x, y in [0, 1], positive 0 or 1, got {"),
        (("a", "it", 0.5, 0, "yes"), "line 3: expected x, y in [0, 1], positive 0 or 1, got {"),
        (("a", "", 0.5, 0, 1), "line 3: expected image, text, got"),
    ],
)
def test_points_that_do_not_match_are_refused(tmp_path, row, message):
    save(noise(), tmp_path / "images/a.png")
    write_rows(tmp_path / "points.csv", POINTS, ("a", "it", 0, 0, 0), row)
    with pytest.raises(InputError, match=re.escape(f"points.csv, {message}")):
        PointFolder(tmp_path)


def test_counterfactuals_are_subsets_by_their_bits(tmp_path, lawful):
    """Region i is there where bit i is set; what nobody made is None."""
    data = open_data(make_counterfactuals(tmp_path))
    assert isinstance(data, CounterfactualFolder)
    samples = lawful(data)
    assert data.identity() != MaskedFolder(tmp_path).identity()
    for number, sample in enumerate(samples[:-1]):
        nouns = [region.text.removeprefix("a ") for region in sample.regions]
        for there, image in enumerate(sample.subsets):
            gone = [PAIRS[number].index(n) for i, n in enumerate(nouns) if not there >> i & 1]
            drawn = draw_scene(number, objects=list(PAIRS[number]), without=gone)
            assert same(np.asarray(image), drawn.image)
    nouns = [region.text for region in samples[-1].regions]
    assert nouns == ["a duck", "a pizza"]
    assert [image is None for image in samples[-1].subsets] == [True, False, True, False]


def test_counterfactuals_that_do_not_match_are_refused(tmp_path):
    """An image without what no mask shows, of another size, of too many things, or none at all."""
    save(noise(), tmp_path / "images/one.png")
    for number, mask in enumerate((LEFT, RIGHT) * 4):
        save_mask(mask, tmp_path / f"masks/one/thing_{number}.png")
    with pytest.raises(InputError, match=r"such as without/one/a horse\.png, found none"):
        CounterfactualFolder(tmp_path)
    removed = save(noise((20, 31)), tmp_path / "without/one/thing 3+thing_1.png")
    with pytest.raises(
        InputError, match=r"without/one/thing 3\+thing_1\.png does not have the size"
    ):
        CounterfactualFolder(tmp_path).read(0)
    save(noise(seed=1), removed)
    subsets = CounterfactualFolder(tmp_path).read(0).subsets
    assert {place for place, image in enumerate(subsets) if image} == {0b11110101, 0b11111111}
    save_mask(LEFT, tmp_path / "masks/one/more.png")
    with pytest.raises(InputError, match="expected up to 8 masks of one, got 9"):
        CounterfactualFolder(tmp_path).read(0)
    again = save(noise(), tmp_path / "without/one/thing 1 + thing 3.png")
    with pytest.raises(
        InputError, match=r"without/one/thing 1 \+ thing 3\.png leaves out the same"
    ):
        CounterfactualFolder(tmp_path)
    again.unlink()
    other = save(noise(), tmp_path / "without/two/thing 3.png")
    name = other.relative_to(tmp_path).as_posix()
    assert CounterfactualFolder(tmp_path).left_out == {name: "there is no image 'two'"}
    save(noise(), tmp_path / "without/one/a dog + more.png")
    with pytest.raises(InputError, match=r"a dog \+ more\.png: 'a dog' has no mask"):
        CounterfactualFolder(tmp_path)


def test_templates_of_classes_are_prompts(tmp_path, lawful):
    """Of the option alone, else of templates.txt; one of them makes the class's text."""
    for kind in ("red_fox", "dog"):
        save(noise(), tmp_path / f"{kind}/1.png")
    assert ClassFolder(tmp_path).classes == ("dog", "red fox")
    (tmp_path / "templates.txt").write_text("a {}\n\nthe {}\n")
    data = ClassFolder(tmp_path)
    lawful(data)
    assert data.classes == ("dog", "red fox")
    assert data.prompts == {"dog": ["a dog", "the dog"], "red fox": ["a red fox", "the red fox"]}
    given = ClassFolder(tmp_path, template="my {}")
    assert given.classes == ("my dog", "my red fox")
    assert given.identity() != data.identity()
    (tmp_path / "templates.txt").write_text("a {}\n")
    assert ClassFolder(tmp_path).classes == ("a dog", "a red fox")
    for content in ("", "a dog\n"):
        (tmp_path / "templates.txt").write_text(content)
        with pytest.raises(InputError, match=r"templates\.txt: expected a template with one"):
            ClassFolder(tmp_path)


def test_blanks_beside_a_value_and_names_of_no_image_count_for_nothing(tmp_path):
    save(noise(), tmp_path / "images/a.png")
    rows = [(" a ", "a cat ", 0, 0, 1), ("a", " a cat", 1, 1, 0)]
    write_rows(
        tmp_path / "points.csv", POINTS, *rows, *((n, "b", 0, 0, 1) for n in (".", "images/"))
    )
    assert PointFolder(tmp_path).names == ("a/a cat",)


def test_groups_are_those_of_the_list(tmp_path):
    """Of any folder; they belong to its identity. A sample of points has that of its image."""
    data = open_data(make_points(tmp_path))
    assert data.groups == {}
    groups = ("image", "group"), ("scene0.png", "land"), ("scene1", "water"), ("gone", "land")
    write_rows(tmp_path / "groups.csv", *groups)
    again = PointFolder(tmp_path)
    assert set(again.groups) == {n for n in again.names if n.startswith(("scene0", "scene1"))}
    assert set(again.groups.values()) == {"land", "water"}
    assert again.identity() != data.identity()
    classes = ("one", "two")
    for kind in classes:
        save(noise(), Path(tmp_path / f"sorted/{kind}/1.png"))
    write_rows(tmp_path / "sorted/groups.csv", groups[0], ("one/1.png", "land"), ("two/1", ""))
    with pytest.raises(InputError, match=r"groups\.csv, line 3: expected image, group, got"):
        ClassFolder(tmp_path / "sorted")
    write_rows(tmp_path / "sorted/groups.csv", groups[0], ("one/1.png", "land"))
    assert ClassFolder(tmp_path / "sorted").groups == {"one/1": "land"}


def test_lists_are_made_of_what_others_publish(tmp_path, monkeypatch):
    """The code of docs/appendix/protocols.md, on small files in the formats of the data sets."""
    page = (Path(__file__).parents[3] / "docs/appendix/protocols.md").read_text(encoding="utf-8")
    code: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), code)
    monkeypatch.chdir(tmp_path)
    for stem in ("12", "34"):
        save(noise(), tmp_path / f"images/{stem}.jpg")

    box = "<xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>5</ymax>"
    name, nobox = "<name>7</name><name>8</name>", "<object><name>9</name><nobndbox/></object>"
    entity = f"<object>{name}<bndbox>{box}</bndbox></object>{nobox}"
    marked = "[/EN#7/people Two men] look at [/EN#9/other/scene the sky] .\nAnother one .\n"
    files = {"test.txt": "12\n", "Sentences/12.txt": marked}
    for path, content in (files | {"Annotations/12.xml": f"<a>{entity}</a>"}).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    code["flickr"](tmp_path)
    [sample] = map(CaptionFolder(tmp_path).read, range(1))
    assert sample.caption == "Two men look at the sky ."
    assert [region.text for region in sample.regions] == ["Two men"]
    assert same(np.argwhere(sample.regions[0].mask)[[0, -1]], [[2, 1], [5, 4]])

    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (12, 34)]
    texts = [(12, "A dog by a\n hot dog."), (12, "Later."), (34, "Dogs.")]
    captions = [{"image_id": image, "caption": caption} for image, caption in texts]
    boxes = [
        {"image_id": image, "category_id": 1, "bbox": [1.5, 2, 3, 4]} for image, _ in texts[1:]
    ]
    classes = [{"id": 1, "name": "dog"}]
    for kind, published in (
        ("captions", {"images": images, "annotations": captions}),
        ("instances", {"categories": classes, "annotations": boxes}),
    ):
        (tmp_path / f"{kind}_val2017.json").write_text(json.dumps(published))
    code["coco"](tmp_path)
    first, second = map(CaptionFolder(tmp_path).read, range(2))
    assert (first.caption, second.caption) == ("A dog by a hot dog.", "Dogs.")
    assert [len(sample.regions) for sample in (first, second)] == [1, 0]

    head = ("ImageId", "Label", "X", "Y", "EstimatedYesNo")
    answers = enumerate(("yes", "no", "unsure"))
    said = [("12", "/m/1", 0.1 + n / 3, 0.5, answer) for n, answer in answers]
    write_rows(tmp_path / "p.csv", head, *said)
    write_rows(tmp_path / "c.csv", ("LabelName", "DisplayName"), ("/m/1", "Horse"))
    code["open_images"]("p.csv", "c.csv")
    assert PointFolder(tmp_path).classes == ("a photo of a horse",)

    birds = ("img_filename", "y", "place"), ("12.jpg", 0, 1), ("34.jpg", 1, 1)
    write_rows(tmp_path / "m.csv", *birds)
    code["waterbirds"]("m.csv")
    for bird in ("landbird/12", "waterbird/34"):
        save(noise(), tmp_path / f"{bird}.jpg")
    assert ClassFolder(tmp_path).groups == {
        "landbird/12": "landbird on water",
        "waterbird/34": "waterbird on water",
    }
    for kind, place in (("bear", "snow"), ("bear", "grass"), ("fox", "snow")):
        save(noise(), tmp_path / f"animals/{kind}/{place}/1.jpg")
    code["counter_animal"](tmp_path / "animals")
    assert set(ClassFolder(tmp_path / "animals").groups.values()) == {"snow", "grass"}
