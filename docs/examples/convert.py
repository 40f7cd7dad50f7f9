"""Writes samples.jsonl from the files of a benchmark, for ``captum-clip evaluate --data samples:``.

``python docs/examples/convert.py voc VOCdevkit/VOC2012 voc.jsonl``; ``--help`` lists all forms.
Images stay where they are, masks are written as run lengths, and pictures that have to be made go
to a folder next to the list.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image, ImageOps
from timm.data import ImageNetInfo

from captum_clip.bench.data import open_data
from captum_clip.checks import expect
from captum_clip.demo.scenes import SIDES, draw_subsets, rotated, without_thirds
from captum_clip.errors import InputError
from captum_clip.files import image_names, read_lines
from captum_clip.folders.storage import check_template, read_templates

Record = dict[str, Any]
Records = Iterator[Record]
VOC = (
    "an aeroplane", "a bicycle", "a bird", "a boat", "a bottle", "a bus", "a car", "a cat",
    "a chair", "a cow", "a dining table", "a dog", "a horse", "a motorbike", "a person",
    "a potted plant", "a sheep", "a sofa", "a train", "a tv monitor",
)  # fmt: skip
PHOTO = "a photo of a {}"


def runs(mask: Any) -> Record:
    """The run lengths of a mask (H, W) down its columns, outside first."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"size": [*mask.shape], "counts": np.diff([0, *ends, len(pixels)]).tolist()}


def images_in(folder: Path) -> dict[str, Path]:
    """All images in a folder and the folders in it, by what names them below it."""
    names = image_names(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {os.path.splitext(name)[0]: folder / name for name in names}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, skipinitialspace=True)
        return [{key: (value or "").strip() for key, value in row.items()} for row in table]


def stem_in(images: dict[str, Path], name: str) -> str:
    """The name of an image that a list may have with its ending, and below images/."""
    name = name.removeprefix("images/")
    return name if name in images else os.path.splitext(name)[0]


def captioned(rows: Iterable[Any], folder: Path) -> Records:
    """Records of an image, its caption, a phrase, and a box of it; the last two may be empty."""
    images, records = images_in(folder), dict[str, Record]()
    for name, caption, phrase, box in rows:
        if (stem := stem_in(images, name)) in images:
            empty = {"name": stem, "image": images[stem], "caption": caption, "regions": {}}
            record = records.setdefault(stem, empty)
            if phrase:
                record["regions"].setdefault(phrase, []).append(box)
    for record in records.values():
        regions = [{"text": text, "box": boxes} for text, boxes in record["regions"].items()]
        yield {**record, "regions": regions}


def pointed(rows: Iterable[Any], folder: Path) -> Records:
    """Records of an image, a text and points [x, y, 1 or 0], if it has points of both kinds."""
    yield {"truth": ["masks", "points"]}
    images, points = images_in(folder), defaultdict(list)
    for name, text, point in rows:
        if (stem := stem_in(images, name)) in images:
            points[stem, text].append(point)
    for (stem, text), marks in points.items():
        if len({positive for _, _, positive in marks}) == 2:
            region = {"text": text, "point": marks}
            yield {"name": f"{stem}/{text}", "image": images[stem], "regions": [region]}


def masks(folder: Path, options: Any) -> Records:
    """images/STEM.jpg, masks/STEM/a horse.png, maybe without/STEM/a horse + a dog.png."""
    for stem, image in images_in(folder / "images").items():
        files = sorted(folder.joinpath("masks", stem).glob("*.[pP][nN][gG]"))
        texts = [file.stem.replace("_", " ").strip() for file in files]
        regions = [{"text": text, "mask": file} for text, file in zip(texts, files, strict=True)]
        record = {"name": stem, "image": image, "regions": regions}
        without = {
            frozenset(text.strip() for text in name.replace("_", " ").split("+")): file
            for name, file in images_in(folder / "without" / stem).items()
        }
        if without:
            absent = [
                frozenset(text for place, text in enumerate(texts) if not there >> place & 1)
                for there in range(2 ** len(texts))
            ]
            record["subsets"] = [*map(without.get, absent[:-1]), image]
        yield record


def copies(folder: Path, options: Any) -> Records:
    """The same with backgrounds/, on which each image gives three copies of one of its objects."""
    data, backgrounds = open_data(f"masks:{folder}"), [*images_in(folder / "backgrounds").values()]
    yield {"truth": ["thirds"], "classes": data.classes}
    for sample in map(data.read, range(len(data))):
        generator = np.random.default_rng([*sample.name.encode("utf-8", "surrogateescape")])
        region = sample.regions[generator.integers(len(sample.regions))]
        with Image.open(backgrounds[generator.integers(len(backgrounds))]) as file:
            background = np.asarray(ImageOps.fit(file.convert("RGB"), (448, 448)))
        cut_out, mask = sample.image.copy(), Image.fromarray(region.mask)
        cut_out.putalpha(mask.convert("L"))
        side = round(448 * generator.uniform(*SIDES))
        sprite = rotated(cut_out.crop(mask.getbbox()), side=side, angle=0, flip=False)
        drawn, shown = draw_subsets(without_thirds(sprite, generator), background, generator)
        regions = [{"text": region.text, "mask": runs(each)} for each in shown]
        subsets = [*map(Image.fromarray, drawn)]
        yield {"name": sample.name, "image": subsets[-1], "regions": regions, "subsets": subsets}


def class_names(classes: Iterable[str], folder: Path) -> list[str]:
    """The names in ``classnames.txt``, else ImageNet's, else the class with spaces.

    A line of the file has a class and its name, with a tab between them. ImageNet's names are those
    that OpenAI chose for CLIP for the thousand classes of ILSVRC 2012, and for others the first of
    WordNet's.
    """
    path, names = folder / "classnames.txt", dict[str, str]()
    for row in (line.split("\t") for line in (read_lines(path) if path.exists() else ())):
        expected = f"a class and its name per line of {path}, with a tab between them"
        expect(len(row) == 2 and all(map(str.strip, row)), expected, " ".join(row))
        names[row[0].strip()] = row[1].strip()
    numbers = [name for name in classes if re.fullmatch(r"n\d{8}", name) and name not in names]
    names |= {name: imagenet_name(name) for name in numbers}
    return [names.get(name, name.replace("_", " ").strip()) for name in classes]


def imagenet_name(number: str) -> str:
    """The name of one of the 21 thousand classes of the whole ImageNet."""
    if number not in imagenet_names():
        raise InputError(
            f"the class {number} is not one of ImageNet's; give its name in a file classnames.txt: "
            f"{number}, a tab, the name."
        )
    return imagenet_names()[number]


@cache
def imagenet_names() -> dict[str, str]:
    """Number -> name."""
    whole, thousand = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k").label_names()
    described = zip(whole.label_names(), whole.label_descriptions(), strict=True)
    known = {number: text.partition(",")[0].strip() for number, text in described}
    return {**known, **dict(zip(thousand, IMAGENET_CLASSNAMES, strict=True))}


def named(folders: Sequence[str], place: Path, template: str | None, usual: str) -> list[Any]:
    """The names of classes, the text of each, and the prompts of each where there are several."""
    templates = [check_template(template)] if template else read_templates(place) or [usual]
    names = class_names(folders, place)
    texts = [[each.replace("{}", name) for each in templates] for name in names]
    if len(templates) == 1:
        return [names, [text for [text] in texts], {}]
    return [names, names, dict(zip(names, texts, strict=True))]


def classes(folder: Path, options: Any) -> Records:
    """CLASS/*.jpg at any depth, maybe classnames.txt and templates.txt."""
    images = {stem: image for stem, image in images_in(folder).items() if "/" in stem}
    folders = sorted({stem.partition("/")[0] for stem in images})
    _, texts, prompts = named(folders, folder, options.template, "{}")
    yield {"classes": texts, "prompts": prompts}
    for stem, image in images.items():
        label = texts[folders.index(stem.partition("/")[0])]
        yield {"name": stem, "image": image, "label": label}


def mosaics(folder: Path, options: Any) -> Records:
    """The same folders: mosaics of 2 x 2 images, each of another class."""
    of_class = defaultdict(list)
    for stem, image in images_in(folder).items():
        of_class[stem.partition("/")[0]].append(image)
    folders = sorted(of_class)
    words, texts, prompts = named(folders, folder, options.template, PHOTO)
    yield {"truth": ["captions", "cells"], "classes": texts, "prompts": prompts}
    for number in range(max(1, sum(map(len, of_class.values())) // 4)):
        seeds = (np.random.SeedSequence(number, spawn_key=(use,)) for use in range(2))
        draw, order = map(np.random.default_rng, seeds)
        chosen: list[int] = []
        for label in draw.permutation(len(words)).tolist():
            spaced = [f" {words[each]} " for each in (label, *chosen)]
            if not any(
                a != b and a in b for a in spaced for b in spaced
            ):  # as "boat", "house boat"
                chosen.append(label)
        if len(chosen) < 4:
            raise SystemExit("expected four classes, none with a name that is part of another.")
        image, regions = Image.new("RGB", (448, 448)), []
        for cell, label in enumerate(chosen[:4]):
            corner = (cell % 2 * 224, cell // 2 * 224)
            with Image.open(
                of_class[folders[label]][draw.integers(len(of_class[folders[label]]))]
            ) as f:
                image.paste(
                    ImageOps.fit(ImageOps.exif_transpose(f).convert("RGB"), (224, 224)), corner
                )
            box = [*corner, 224, 224]
            regions.append({"text": words[label], "label": texts[label], "box": box})
        regions = [regions[cell] for cell in order.permutation(4)[: 1 + number % 4]]
        caption = " ".join(region["text"] for region in regions)
        yield {"name": f"{number:05d}", "image": image, "caption": caption, "regions": regions}


def labels(folder: Path, options: Any) -> Records:
    """images/, labels/STEM.png and names.txt: line n, from 0, names the pixels n, with commas."""
    lines = (folder / "names.txt").read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [[name.strip() for name in line.split(",")] for line in lines]
    known = [line for line in names if line not in (["[background]"], ["[ignored]"])]
    numbers = {line[0]: number for number, line in enumerate(known)}
    numbers |= {"[background]": len(known), "[ignored]": 255}
    table = np.full(256, 254, dtype=np.uint8)  # which is refused, as no class
    table[: len(names)] = [numbers[line[0]] for line in names]
    table[255] = 255
    templates = [options.template] if options.template else read_templates(folder) or [PHOTO]
    prompts = {
        line[0]: [t.replace("{}", name) for name in line for t in templates] for line in known
    }
    about = {"truth": ["label images"], "classes": [*prompts], "prompts": prompts}
    yield {**about, "background": ["[background]"] in names}
    for stem, image in images_in(folder / "images").items():
        with Image.open(folder / f"labels/{stem}.png") as stored:
            classes_of = Image.fromarray(table[np.asarray(stored)])
        yield {"name": stem, "image": image, "labels": classes_of}


def captions(folder: Path, options: Any) -> Records:
    """images/ and captions.csv: image, caption, phrase, x, y, width, height."""
    sides = ("x", "y", "width", "height")
    rows = (
        (row["image"], row["caption"], phrase, [float(row[side]) for side in sides if phrase])
        for row in rows_of(folder / "captions.csv")
        for phrase in [row.get("phrase")]
    )
    return captioned(rows, folder / "images")


def points(folder: Path, options: Any) -> Records:
    """images/ and points.csv: image, text, x, y, positive."""
    rows = (
        (row["image"], row["text"], [float(row["x"]), float(row["y"]), float(row["positive"])])
        for row in rows_of(folder / "points.csv")
    )
    return pointed(rows, folder / "images")


def voc(folder: Path, options: Any) -> Records:
    """VOCdevkit/VOC2012, the images of its val.txt."""
    yield {"classes": VOC}
    listed = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
    for name in sorted({*listed}):
        with Image.open(folder / f"SegmentationClass/{name}.png") as file:
            numbers = np.asarray(file)
        present = [number for number in np.unique(numbers) if number not in (0, 255)]
        regions = [{"text": VOC[n - 1], "mask": runs(numbers == n)} for n in present]
        record = {"name": name, "image": folder / f"JPEGImages/{name}.jpg", "regions": regions}
        yield record if options.void == "background" else {**record, "void": runs(numbers == 255)}


def imagenet_s(folder: Path, options: Any) -> Records:
    """ImageNetS50, ImageNetS300 or ImageNetS919, with the folders of all classes."""
    places = (folder / "validation", folder / "validation-segmentation")
    folders = sorted({path.name for place in places for path in place.iterdir() if path.is_dir()})
    _, texts, _ = named(folders, folder, options.template, PHOTO)
    yield {"truth": ["masks"], "classes": [*dict.fromkeys(texts)]}
    for stem, image in images_in(places[0]).items():
        with Image.open(places[1] / f"{stem}.png") as file:
            red, green, _ = np.moveaxis(np.asarray(file.convert("RGB"), dtype=np.int64), -1, 0)
        numbers, own = red + 256 * green, folders.index(stem.partition("/")[0])
        regions = [{"text": texts[own], "mask": runs(numbers == own + 1)}]
        record = {"name": stem, "image": image, "label": texts[own], "regions": regions}
        yield {**record, "void": runs(numbers == 1000)}


def imagenet_segmentation(path: Path, options: Any) -> Records:
    """The file gtsegs_ijcv.mat of ImageNet-Segmentation; it needs h5py."""
    import h5py  # noqa: PLC0415

    with h5py.File(path, "r") as file:
        images, truth, targets = (
            np.ravel(file[f"value/{name}"][()]) for name in ("img", "gt", "target")
        )
        synsets = ["".join(map(chr, file[target][()].ravel())) for target in targets]
        folders = sorted({*synsets})
        _, texts, _ = named(folders, path.parent, options.template, PHOTO)
        yield {"truth": ["masks"], "classes": [*dict.fromkeys(texts)]}
        for number, (image, mask) in enumerate(zip(images, truth, strict=True)):
            inner, text = file[mask], texts[folders.index(synsets[number])]
            inner = file[np.ravel(inner[()])[0]] if inner.dtype == object else inner
            picture = Image.fromarray(file[image][()].T).convert("RGB")  # whose axes are reversed
            regions = [{"text": text, "mask": runs(inner[()].T != 0)}]
            yield {"name": f"{number:05d}", "image": picture, "label": text, "regions": regions}


def flickr30k(root: Path, options: Any) -> Records:
    """Flickr30k Entities: Annotations/, Sentences/ and test.txt; --images has the images."""

    def rows() -> Iterator[Any]:
        for stem in (root / "test.txt").read_text().split():
            marked = (root / f"Sentences/{stem}.txt").read_text(encoding="utf-8").splitlines()[0]
            caption = re.sub(r"\[/EN#\S+ ([^\]]+)\]", r"\1", marked)
            yield stem, caption, "", []
            phrases = re.findall(r"\[/EN#(\d+)/\S+ ([^\]]+)\]", marked)
            for item in ElementTree.parse(root / f"Annotations/{stem}.xml").iter("object"):
                names = {name.text for name in item.iter("name")}
                for box in item.iter("bndbox"):
                    x, y, right, bottom = (int(side.text or "") for side in box)
                    for phrase in (text for number, text in phrases if number in names):
                        yield stem, caption, phrase, [x, y, right - x + 1, bottom - y + 1]

    return captioned(rows(), options.images)


def coco_captions(folder: Path, options: Any) -> Records:
    """COCO's annotations/: captions, boxes of the classes that they name; --images val2017."""
    texts, instances = (
        json.loads((folder / f"{kind}_val2017.json").read_text())
        for kind in ("captions", "instances")
    )
    files = {image["id"]: image["file_name"] for image in texts["images"]}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    first: dict[int, str] = {}
    for row in texts["annotations"]:
        first.setdefault(row["image_id"], " ".join(row["caption"].split()))
    rows = [(files[image], caption, "", []) for image, caption in first.items()]
    for row in instances["annotations"]:
        caption, name = first.get(row["image_id"], ""), names[row["category_id"]]
        if re.search(rf"(?<!\S){name}(?![^\s.,])", caption) and min(row["bbox"][2:]) > 0:
            rows.append((files[row["image_id"]], caption, name, row["bbox"]))
    return captioned(rows, options.images)


def open_images(folder: Path, options: Any) -> Records:
    """The folder of Open Images' points and names of classes; --images has the images."""
    described = rows_of(folder / "oidv7-class-descriptions.csv")
    names = {row["LabelName"]: PHOTO.replace("{}", row["DisplayName"].lower()) for row in described}
    rows = (
        (
            row["ImageId"],
            names[row["Label"]],
            [float(row["X"]), float(row["Y"]), float(answer == "yes")],
        )
        for row in rows_of(folder / "oidv7-val-annotations-point-labels.csv")
        for answer in [row["EstimatedYesNo"]]
        if answer in ("yes", "no") and row["Label"] in names
    )
    return pointed(rows, options.images)


def waterbirds(folder: Path, options: Any) -> Records:
    """The folder of metadata.csv of Waterbirds."""
    for row in rows_of(folder / "metadata.csv"):
        bird, place = (
            ("landbird", "waterbird")[int(row["y"])],
            (" on land", " on water")[int(row["place"])],
        )
        name, image = os.path.splitext(row["img_filename"])[0], folder / row["img_filename"]
        yield {"name": name, "image": image, "label": bird, "group": bird + place}


def counter_animal(folder: Path, options: Any) -> Records:
    """CLASS/BACKGROUND/*.jpg of CounterAnimal."""
    for record in classes(folder, options):
        parts = record.get("name", "").split("/")
        yield {**record, "group": parts[1]} if len(parts) > 2 else record


FORMS = {
    form.__name__.replace("_", "-"): form
    for form in (
        *(masks, copies, classes, mosaics, labels, captions, points, voc, imagenet_s),
        *(imagenet_segmentation, flickr30k, coco_captions, open_images, waterbirds, counter_animal),
    )
}


def convert(form: str, source: Path, output: Path, options: Any) -> None:
    """Write the list, with pictures that had to be made in a folder of its name beside it."""
    images = images_in(source / "images") if source.is_dir() else {}
    rows = rows_of(source / "groups.csv")
    groups = {stem_in(images, row["image"]): row["group"] for row in rows}

    def stored(value: Any, name: str) -> Any:
        if isinstance(value, Image.Image):
            path = output.with_suffix("") / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            value.save(path)
            value = path
        if isinstance(value, (list, tuple)):
            return [stored(each, f"{name}-{place}") for place, each in enumerate(value)]
        if isinstance(value, dict):
            return {key: stored(each, f"{name}-{key}") for key, each in value.items()}
        return os.path.relpath(value, output.parent) if isinstance(value, Path) else value

    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as file:
        for record in FORMS[form](source, options):
            name = record.get("name", "")
            group = groups.get(name) or groups.get(name.rpartition("/")[0])
            of_group = {"group": group} if group else {}
            file.write(json.dumps({**stored(record, name), **of_group}) + "\n")


def main() -> None:
    """Read the command line."""
    forms = "\n".join(f"  {name:22} {form.__doc__}" for name, form in FORMS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nforms of SOURCE; any may have groups.csv (image, group):\n{forms}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=Path, help="the folder of the images")
    parser.add_argument("--template", help='the text of a class, such as "a photo of a {}"')
    parser.add_argument("--void", choices=("out", "background"), help="what VOC's void pixels are")
    options = parser.parse_args()
    convert(options.form, options.source, options.output, options)


if __name__ == "__main__":
    main()
