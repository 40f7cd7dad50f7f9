"""Data sets that are read from files: a folder of masks, COCO's instances, a list of samples."""

import math
import os
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...checks import (
    check_integer,
    error_context,
    expand,
    expect,
    expecting,
    find_file,
    find_folder,
    find_repeated,
    show,
    suggestion,
)
from ...errors import InputError, is_kind, naming, parse_json, type_name
from ...files import IMAGE_ENDINGS, as_pil, draw_names, image_names, open_image
from ...folders.storage import check_template, storage_of
from ...targets.target import word_spans
from .base import DataSet, Mask, NamedRegion, Sample, entries_digest

Record = dict[str, Any]
_FIELDS: Final[dict[str, Any]] = {
    "image": str,
    "name": str,
    "label": str,
    "caption": str,
    "group": str,
    "labels": str,
    "regions": list[dict[str, Any]],
    "void": Any,
    "subsets": list[str | None],
    # The first line may have these instead; they describe the set.
    "truth": list[str],
    "classes": list[str],
    "prompts": dict[str, list[str]],
    "background": bool,
}
"""The fields of a line of samples.jsonl, with the types of their values."""
_TRUTH_OF_FIELD: Final = {
    "regions": ("masks", "objects"),
    "point": ("points",),
    "subsets": ("scenes",),
    "caption": ("retrieval", "phrases"),
    "label": ("classes",),
    "labels": ("label images",),
}
"""Field of a sample or of a region -> the kinds of truth that it gives."""
_COCO_FIELDS: Final = {
    "categories": ("id", "name"),
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "segmentation"),
}
"""Part of a COCO file -> the fields that each of its entries needs."""
_MASK_FORMS: Final = {
    "mask": "a file, polygons [[x, y, x, y, ...]] or run lengths",
    "box": "[left, top, width, height] in pixels, one or several",
    "point": "several [x, y, 1 or 0], with x and y as shares of the image",
}
"""Field of a region that says where it is -> the form of its value."""
_IGNORED_NUMBER: Final = 255  # in a label image
_POINT_SIDE: Final = 0.01  # in shorter sides of the image; about two pixels for most models
_MOST_REGIONS: Final = 8  # in a scene with its subsets, which are 256 images


class FileData(DataSet):
    """Samples that are read from files, all or a drawn sample of them.

    A record describes a sample, in the fields of a line of samples.jsonl (:class:`SampleList`).
    Its files are relative to :attr:`folder`.

    Args:
        path: of the folder, or of the file; :attr:`path` has its ``~`` expanded.
        limit: take a sample of this many; None is all.
        seed: of the sample.
        template: makes texts from the names of classes, where the data set takes one.

    Raises:
        InputError: a limit below 1, a seed below 0, a path that no file can have, a template
            without "{}", or what :meth:`find` refuses.
    """

    place = "FOLDER"
    template: str | None = None

    def __init__(
        self,
        path: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str | None = None,
    ) -> None:
        with naming(type(self).__name__):
            check_integer("seed", seed, least=0)
            if limit is not None:
                check_integer("limit", limit)
        self.path = expand(path)
        self.folder = self.path  # Files of records are relative to it.
        self.root = self.path  # No file may lie outside of it.
        self.limit = limit
        self.seed = seed
        if template is not None:
            self.template = template
        self.left_out: dict[str, str] = {}
        self.find()

    @abstractmethod
    def find(self) -> None:
        """Find all samples: set `classes` and `truth`, then :meth:`take` the records."""

    def take(self, records: Mapping[str, Record]) -> None:
        """Keep the records, by the names of their samples, or those of a drawn sample.

        The sample is that of :func:`captum_clip.files.draw_names`.
        """
        if self.template:
            check_template(self.template)
            self.prompts = {text: [self.template.replace("{}", text)] for text in self.classes}
        self.names = tuple(draw_names(records, self.limit, self.seed))
        self._records = {name: records[name] for name in self.names}
        groups: dict[str, str] = {}
        files: dict[Path, str] = {}
        for name, record in self._records.items():
            if "group" in record:
                groups[name] = record["group"]
            for file in _files_of(record):
                self._check_inside(file, name)
                files[self.folder / file] = file
        self.groups = groups
        about = [[*self.classes], dict(self.prompts), [*self.truth], self.background]
        sizes = {file: path.is_file() and path.stat().st_size for path, file in files.items()}
        # The empty name, which no sample has, stands for the set as a whole.
        self._identity = {
            "data": self.name,
            "limit": self.limit,
            # Without a limit the seed decides nothing.
            "seed": None if self.limit is None else self.seed,
            "samples": entries_digest({**self._records, "": about}),
            "files": entries_digest(sizes),
        }

    def _check_inside(self, file: str, name: str) -> None:
        """Refuse a file outside of the folder that the user named."""
        # The list may come from a stranger, and must not read other files of the user.
        path = os.path.abspath(self.folder / file)
        root = os.path.abspath(self.root)
        is_inside = os.path.commonpath([path, root]) == root
        is_windows_path = bool(PureWindowsPath(file).drive) or "\\" in file
        if is_windows_path or not is_inside:
            raise InputError(
                f"{name} of {self.path.name}: {show(file)} lies outside of {self.root}; move it "
                f"inside, or name a folder that holds it, as in {self.name}:FILE,FOLDER."
            )

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        record = self._records[name]
        class_of: dict[str | None, int] = {}
        for number, text in enumerate(self.classes):
            class_of[text] = number
        caption = record.get("caption")
        image = self._read_image(record["image"])
        void = None
        if record.get("void"):
            void = self._read_mask({"mask": record["void"]}, image)
        regions: list[NamedRegion] = []
        dropped: list[str] = []
        for entry in record.get("regions", ()):
            earlier_texts = [region.text for region in regions]
            try:
                region = self._read_region(entry, image, class_of, earlier_texts)
            except InputError as error:
                dropped.append(f"{name}, {entry['text']!r}: {error.reason.rstrip('.')}")
                continue
            regions.append(region)
        files = record.get("subsets", ())
        subsets = [self._read_image(file) if file else None for file in files]
        # A sample with a caption needs no region, since its caption can be retrieved.
        lacks_regions = "regions" in record and not regions and caption is None
        # The subsets are numbered by all regions, so none of these may be dropped.
        lacks_one_of_subsets = len(subsets) > 0 and len(dropped) > 0
        if lacks_regions or lacks_one_of_subsets:
            reason = "; ".join(dropped) or f"{name} has no mask"
            raise InputError(f"there is no region to compare a map with: {reason}.")
        if subsets:
            sizes = {subset.size for subset in subsets if subset}
            is_alike = sizes <= {image.size}
            fits = len(regions) <= _MOST_REGIONS and len(subsets) == 2 ** len(regions) and is_alike
            form = f"2^n subsets of n regions up to {_MOST_REGIONS} of {name}, of its image's size"
            expect(fits, form, record["subsets"])
        label = record.get("label", "")
        if "label" not in record and "retrieval" in self.truth:
            label = caption
        labels = None
        if "labels" in record:
            labels = self._read_labels(record["labels"], image)
        return Sample(
            name=name,
            image=image,
            regions=tuple(regions),
            label=class_of.get(label),
            caption=caption,
            subsets=tuple(subsets),
            void=void,
            labels=labels,
            dropped=tuple(dropped),
        )

    def _read_region(
        self,
        entry: Record,
        image: Image.Image,
        class_of: Mapping[str | None, int],
        earlier_texts: Sequence[str],
    ) -> NamedRegion:
        """Read a region; raise InputError if no map can be compared with it."""
        mask = self._read_mask(entry, image)
        if not mask.any():
            raise InputError("the mask is empty")
        if mask.all():
            raise InputError("the mask is full")
        # Copies of one thing share their text, and differ by nothing but their masks.
        if entry["text"] in earlier_texts and "thirds" not in self.truth:
            raise InputError("the image has another region of the same text")
        void = None
        if "void" in entry:
            # An object that was outlined within a crowd counts all the same.
            void = self._read_mask({"mask": entry["void"]}, image) & ~mask
        if "point" in entry:
            # Nothing is known of the pixels between the points.
            negative = _fill_points(entry["point"], 0, mask.shape)
            void = ~(mask | negative)
        label = class_of.get(entry.get("label"))
        return NamedRegion(entry["text"], mask, label=label, void=void)

    def _read_image(self, file: str) -> Image.Image:
        return as_pil(self.folder / file, keep_mode=True)[0]

    def _read_mask(self, region: Record, image: Image.Image) -> Mask:
        """Read a mask (H, W) from any of the forms that a region may have."""
        field = _mask_field(region)
        value = region[field]
        size = image.height, image.width
        with expecting(f"{field} of {_MASK_FORMS[field]}", value):
            if field == "box":
                boxes = np.reshape(value, (-1, 4))
                _check_boxes(boxes, size)
                return _fill_boxes(boxes, size)
            if field == "point":
                return _fill_points(value, 1, size)
            if isinstance(value, str):
                filled = _mask_of_file(self.folder / value)
                _check_shape("the mask", filled, image)
                return filled
            pieces = value if isinstance(value, list) else [value]
            joined = np.zeros(size, dtype=bool)
            for piece in pieces:
                joined |= _fill_piece(piece, size)
            return joined

    def _read_labels(self, file: str, image: Image.Image) -> npt.NDArray[np.int64]:
        """Read the class of each pixel, which is its number in a palette or gray image."""
        path = self.folder / file
        with open_image(path) as stored:
            expected = f"{path} with numbers of classes in a palette or gray image of 8 bits"
            expect(stored.mode in ("P", "L"), expected, stored.mode)
            numbers = np.asarray(stored, dtype=np.int64)
        _check_shape(path, numbers, image)
        labels = np.where(numbers == _IGNORED_NUMBER, -1, numbers)
        highest = len(self.classes) - 1
        if self.background:
            highest += 1
        expected = f"{path} with numbers of classes up to {highest}"
        expect(labels.max() <= highest, expected, int(labels.max()))
        return labels


@final
class MaskedFolder(FileData):
    """``images/STEM.jpg`` with ``masks/STEM/a horse.png``, one mask per text.

    The mask's name is the text, with spaces for underscores. Every pixel of the mask that is not 0
    is inside. An image without masks is a sample that cannot be read.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or a number out of range.
    """

    name = "masks"
    truth = ("masks", "objects")

    def find(self) -> None:
        files = storage_of(self.path).files()
        if "groups.csv" in files:
            raise InputError(
                f"{self.path}: groups stand in a samples.jsonl, and not in groups.csv; "
                "docs/examples/convert.py writes it from this folder."
            )
        masks: dict[str, list[Record]] = defaultdict(list)
        texts: set[str] = set()
        for file in sorted(files):
            path = PurePosixPath(file)
            is_png = path.suffix.lower() == ".png"
            if is_png and path.parts[0] == "masks" and len(path.parts) > 2:
                text = path.stem.replace("_", " ").strip()
                stem = str(path.parent.relative_to("masks"))
                masks[stem].append({"text": text, "mask": str(path)})
                texts.add(text)
        records: dict[str, Record] = {}
        images = image_names(file for file in files if file.startswith("images/"))
        for image in images:
            stem = _stem(image)
            if stem in records:
                both = f"{records[stem]['image']} and {image}"
                raise InputError(f"{self.path}: {both} would be one sample; rename one of them.")
            records[stem] = {"image": image, "regions": masks.get(stem, [])}
        needed = f"images ({', '.join(IMAGE_ENDINGS)}) in its folder images/, found none"
        if records:
            example = f"masks in masks/, such as masks/{next(iter(records))}/a horse.png"
            needed = f"{example}, found none that belongs to an image"
        if not records.keys() & masks.keys():
            raise InputError(f"{self.path}: expected {needed}.")
        self.classes = tuple(sorted(texts))
        self.take(records)


@final
class CocoInstances(FileData):
    """The file ``instances_val2017.json`` of COCO, or a file of the same form, with its images.

    A region is the union of all objects of a category in the image, as polygons or run lengths,
    which may be compressed. Crowds (``iscrowd``), in which nobody outlined single objects, are void
    for their own category, and outside of all others. Images without a mask are left out.

    Images lie in the folder after a comma, as in "instances.json,photos", relative to the working
    directory or to the file. Without it they lie next to the file, or next to the file or its
    folder in ``images/``, ``val2017/`` (the end of the file's name) or ``images/val2017/``.

    Raises:
        InputError: there is no such file, it holds something else, or none of its images is there.

    Source: Lin et al. 2014, *Microsoft COCO: Common Objects in Context* (arXiv:1405.0312).
    """

    name = "coco"
    truth = ("masks", "objects")
    place = "FILE"
    takes_template = True
    template = "a photo of a {}"

    def find(self) -> None:
        file, folder = _split_place(self.path, r"\.json")
        path = find_file(file, what="file of COCO's instances")
        # Image -> category, by its number and text -> polygons and run lengths.
        masks: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        crowds: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        form = "JSON with images, categories and annotations with masks, as COCO's instances have"
        with expecting(form, str(path)):
            content = parse_json(path.read_bytes())
            missing = [name for name in _COCO_FIELDS if name not in content]
            expect(not missing, form, str(path), f"it has no {' and no '.join(missing)}")
            for name, fields in _COCO_FIELDS.items():
                _check_entries(content[name], name, fields, path)
            texts = {category["id"]: str(category["name"]) for category in content["categories"]}
            images = {image["id"]: str(image["file_name"]) for image in content["images"]}
            for number, annotation in enumerate(content["annotations"]):
                mask = annotation["segmentation"]
                category_number = annotation["category_id"]
                if category_number not in texts:
                    label = _entry_label("annotations", number, annotation)
                    raise InputError(
                        f"{path}: {label} has {category_number!r} as its category_id, which is "
                        f"the id of no category; the categories are {show(texts)}."
                    )
                # COCO's own evaluation ignores a crowd for its category alone.
                of_all_images = crowds if annotation.get("iscrowd") else masks
                of_image = of_all_images[annotation["image_id"]]
                category = (category_number, texts[category_number])
                of_image[category] += mask if isinstance(mask, list) else [mask]
        self.folder = self.root = _folder_of_images(path, folder, images.values())
        records: dict[str, Record] = {}
        for number, file in images.items():
            regions = []
            for category, mask in sorted(masks[number].items()):
                region = {"text": category[1], "mask": mask}
                if category in crowds[number]:
                    region["void"] = crowds[number][category]
                regions.append(region)
            if not regions:
                self.left_out[file] = "it has no mask"
            elif not (self.folder / file).is_file():
                self.left_out[file] = "there is no such image"
            else:
                stem = _stem(file)
                expect(stem not in records, f"one image of each stem in {path}", file)
                records[stem] = {"image": file, "regions": regions}
        expect(records, f"masks of images in {path}", "none")
        self.classes = tuple(dict.fromkeys(texts.values()))
        self.take(records)


def _check_entries(entries: Sequence[Record], name: str, fields: Sequence[str], path: Path) -> None:
    """Raise InputError for an entry of a COCO file that lacks a field."""
    for number, entry in enumerate(entries):
        for field in fields:
            if field in entry:
                continue
            advice = ""
            if field == "segmentation" and "bbox" in entry:
                advice = (
                    "; boxes alone are read from samples:FILE, whose lines have a box in each "
                    "region (docs/appendix/formats.md)"
                )
            raise InputError(f"{path}: {_entry_label(name, number, entry)} has no {field}{advice}.")


def _entry_label(name: str, number: int, entry: Record) -> str:
    """Name an entry of a COCO file by its place, and by its id if it has one."""
    label = f"{name}[{number}]"
    if "id" in entry:
        label += f" (id {entry['id']!r})"
    return label


def _folder_of_images(path: Path, folder: str | None, files: Collection[str]) -> Path:
    """Find the folder that holds images of a COCO file, which may be given."""
    base = path.absolute().parent
    if folder is not None:
        places = [expand(folder), base / folder]
    else:
        split = path.stem.partition("_")[2]
        places = [base]
        for parent in (base, base.parent):
            places += [parent / split, parent / "images", parent / "images" / split]
    # A name without a split gives a folder twice, and so does a FOLDER beside the file.
    places = list(dict.fromkeys(place.absolute() for place in places))
    holding = [place for place in places if any((place / file).is_file() for file in files)]
    expected = f"images of {path.name} in one of {', '.join(map(str, places))}"
    advice = "name the folder in which they lie"
    if folder is None:
        advice = f"name their folder: coco:{path},FOLDER"
    expect(holding, expected, "none", advice)
    return holding[0]


@final
class SampleList(FileData):
    """A file such as ``samples.jsonl``: in each line a sample as a JSON object.

    Fields of a sample; all but the first may be left out:

    - `image`: the file of the image, relative to the list;
    - `name`: unique, by default that file without its ending;
    - `regions`: what texts name, see below;
    - `label`, `caption`, `group`: the class of the image, a text, the group of the image;
    - `labels`: the file of a label image. Its numbers count the classes, 255 is no class, and the
      number of classes is the background;
    - `void`: a mask of pixels that count for nothing;
    - `subsets`: 2^n files or null, as :class:`Sample` has them.

    A region has a `text`, maybe the `label` of its class, and a mask, boxes or points:

    - `mask`: a file, or polygons and run lengths as COCO has them;
    - `box`: [left, top, width, height] in pixels of the upright image, one or several;
    - `point`: [x, y, 1 or 0] of each, in shares of the width and the height. 1 means that the text
      names what is there. Points are squares of a hundredth of the shorter side, and all other
      pixels are void for this region.

    The first line may describe the set by attributes of :class:`DataSet`. They are `truth`, by
    default what the fields tell, `classes` in their order, `prompts` and `background`.

    Results call the set as the file, without its ending. Its files lie in the folder of the list,
    or in the one after a comma, as in "samples.jsonl,photos": paths stay relative to the list.

    Raises:
        InputError: there is no such file, a line that describes no sample, by its number, or a file
            outside of that folder.
    """

    name = "samples"
    truth = (*chain(*_TRUTH_OF_FIELD.values()), "captions", "cells", "thirds")
    place = "FILE"
    takes_template = True

    def find(self) -> None:
        file, folder = _split_place(self.path, r"\.jsonl?")
        path = find_file(file, what="list of samples")
        self.name = path.stem
        self.folder = path.parent
        self.root = self.folder if folder is None else find_folder(folder)
        about, records = _read_lines(path)
        regions: list[Record] = []
        for record in records.values():
            regions.extend(record.get("regions", ()))
        used_fields: set[str] = set().union(*records.values())
        for region in regions:
            # The label of a region is not that of the image, so it makes no truth.
            used_fields |= region.keys() - {"label"}
        truth: list[str] = []
        for field, kinds in _TRUTH_OF_FIELD.items():
            if field in used_fields:
                truth.extend(kinds)
        self.truth = tuple(about.get("truth", truth))
        self.prompts = about.get("prompts", {})
        self.background = about.get("background", False)
        self._take_classes(path, about, [*records.values()], regions)
        self.take(records)
        if "labels" in used_fields:
            # A wrong label image is found before a model runs.
            for index in range(len(self)):
                self.read(index)

    def _take_classes(
        self, path: Path, about: Record, records: Sequence[Record], regions: Sequence[Record]
    ) -> None:
        """Set the classes that are given, or else those that labels, captions or regions name."""
        labels = {entry["label"] for entry in (*records, *regions) if "label" in entry}
        if "retrieval" in self.truth:
            texts = [record["caption"] for record in records if "caption" in record]
        else:
            texts = sorted(labels or {region["text"] for region in regions})
        self.classes = tuple(about.get("classes", dict.fromkeys(texts)))
        names = list(self.classes)
        if self.background:
            names.append("background")
        repeated = find_repeated(names)
        expect(repeated is None, f"classes of {path} that differ", repeated)
        expect(labels <= set(self.classes), f"labels of {path} among its classes", sorted(labels))


def _read_lines(path: Path) -> tuple[Record, dict[str, Record]]:
    """Return the line of a list that describes the set, or {}, and its samples by name."""
    about: Record = {}
    records: dict[str, Record] = {}
    # Not splitlines, since a text may hold other separators of lines.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        with expecting(f"a JSON object in {where}", line):
            fields = parse_json(line)
        _check_fields(fields, where)
        if number == 1 and "image" not in fields:
            about = fields
            continue
        expect(fields.get("image"), f"an image in {where}", fields)
        name = fields.get("name") or _stem(fields["image"])
        expect(name not in records, f"a name of its own in {where}", name)
        records[name] = fields
    expect(records, f"a sample in each line of {path}", "none")
    return about, records


def _check_fields(fields: Record, where: str) -> None:
    """Refuse fields of a line that are unknown, or whose values are of another type."""
    for name, value in fields.items():
        expect(name in _FIELDS, f"fields {', '.join(_FIELDS)} in {where}", name)
        expected_type = _FIELDS[name]
        form = f"{name} of {type_name(expected_type)} in {where}"
        expect(is_kind(value, expected_type), form, value)
    for region in fields.get("regions", ()):
        text = region.get("text")
        is_text = text and is_kind([text, region.get("label", "")], list[str])
        expect(is_text, f"a text, and maybe a label, of each region in {where}", region)
        if "caption" in fields:
            # The task finds the words of a region in the caption in the same way.
            with error_context(where):
                word_spans(fields["caption"].split(), [text])


def _split_place(place: Path, ending: str) -> tuple[str, str | None]:
    """Split "FILE,FOLDER" after the ending of the file, a regular expression."""
    match = re.fullmatch(rf"(.*{ending}),(.+)", str(place))
    if match is None:
        return str(place), None
    return match[1], match[2]


def _stem(image: str) -> str:
    return str(PurePosixPath(image.removeprefix("images/")).with_suffix(""))


def _files_of(record: Record) -> list[str]:
    """List the files that a record names."""
    values: list[Any] = []
    for region in record.get("regions", ()):
        values += [region.get("mask"), region.get("void")]
    values += [record["image"], record.get("labels"), record.get("void")]
    values += record.get("subsets", ())
    # Masks may be polygons and run lengths, too, and a subset may have no image.
    return [value for value in values if isinstance(value, str)]


def _check_shape(what: object, pixels: npt.NDArray[Any], image: Image.Image) -> None:
    if pixels.shape != (image.height, image.width):
        size = " x ".join(map(str, pixels.shape))
        raise InputError(f"{what} has {size} pixels, its image {image.height} x {image.width}.")


def _mask_field(region: Record) -> str:
    """Return the field that says where a region is: box, point or mask."""
    for field in ("box", "point", "mask"):
        if field in region:
            return field
    others = [field for field in region if field not in ("text", "label", "void")]
    hints = [suggestion(field, _MASK_FORMS) for field in others]
    got = ", ".join(map(show, others)) or "none of them"
    raise InputError(
        f"expected a field mask, box or point in each region, got {got}{''.join(hints)}"
    )


def _mask_of_file(path: Path) -> Mask:
    """Read a mask (H, W), in which every pixel that is not 0 is inside.

    Palette images count by their indices, others by their colors. Transparent pixels are outside.
    """
    with open_image(path) as image:
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            mask: Mask = np.asarray(image) != 0
        else:
            filled = np.asarray(image.convert("RGBA")) != 0
            mask = filled[..., :3].any(-1) & filled[..., 3]
        return mask


def _fill_piece(piece: Any, size: tuple[int, int]) -> Mask:
    """Fill a mask (H, W) with a polygon x, y, x, y, ..., or with run lengths, as COCO has them.

    A pixel is in the polygon if its center is, by the even-odd rule.
    """
    if isinstance(piece, dict):
        return _fill_runs(piece, size)
    corners = np.array(piece, dtype=np.float64).reshape(-1, 2)
    rows = np.arange(size[0]) + 0.5
    columns = np.arange(size[1]) + 0.5
    mask = np.zeros(size, dtype=bool)
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # An edge that crosses a row flips all pixels on its right between inside and outside.
        crossed = (rows < y) != (rows < next_y)
        crossing = x + (rows[crossed] - y) * (next_x - x) / (next_y - y)
        mask[crossed] ^= columns > crossing[:, None]
    return mask


def _fill_runs(encoded: Record, size: tuple[int, int]) -> Mask:
    """Fill a mask (H, W) with run lengths down its columns, outside first, as COCO writes them."""
    expect(encoded.keys() >= {"size", "counts"}, "run lengths with size and counts", encoded)
    counts = encoded["counts"]
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    height, width = size
    form = f"run lengths of {height} x {width} pixels"
    expect(encoded["size"] == [height, width], form, encoded["size"])
    # Runs are checked before they are unpacked, since a run may have any length.
    total = sum(runs)
    expect(total == height * width, f"{form}, which sum to {height * width}", total)
    expect(min(runs) >= 0, f"{form}, none below 0", min(runs))
    is_inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_inside, runs).reshape(width, height).T


def _decode_runs(text: str) -> list[int]:
    """Decode compressed run lengths.

    A character holds six bits, from "0" on: five of a number, the lowest first, and one that says
    whether the number goes on. From the fourth run on, a number is the difference to the run before
    the last.
    """
    runs: list[int] = []
    value = 0
    shift = 0
    for code in text.encode():
        bits = code - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        goes_on = bits & 32
        if goes_on:
            continue
        if bits & 16:  # The highest bit of a number is its sign.
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = 0
        shift = 0
    return runs


def _check_boxes(boxes: npt.NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise InputError for boxes that hold corners or shares where widths in pixels belong."""
    height, width = size
    form = "boxes [left, top, width, height] in pixels"
    # Text is refused before it is compared.
    boxes = boxes.astype(np.float64, casting="same_kind")
    shares = (boxes <= 1).all() and (boxes % 1 > 0).any()
    expect(
        not shares, form, boxes.tolist(), "these are shares; multiply them with the image's size"
    )
    left, top, box_width, box_height = boxes.T
    # Annotations may be off by a pixel, and those of a resized image by a share of it.
    slack = 1 + 0.01 * max(size)
    is_inside = (np.minimum(left, top) >= -slack).all()
    is_inside &= (left + box_width <= width + slack).all()
    is_inside &= (top + box_height <= height + slack).all()
    advice = f"one leaves the image of {width} x {height} pixels, as corners would"
    expect(bool(is_inside), form, boxes.tolist(), advice)


def _fill_boxes(boxes: npt.NDArray[np.float64], size: tuple[int, int]) -> Mask:
    """Fill a mask (H, W) with all pixels that boxes touch: left, top, width and height."""
    mask = np.zeros(size, dtype=bool)
    for x, y, width, height in boxes.tolist():
        # An index below 0 would count from the other edge.
        left = max(0, math.floor(x))
        top = max(0, math.floor(y))
        right = max(0, math.ceil(x + width))
        bottom = max(0, math.ceil(y + height))
        mask[top:bottom, left:right] = True
    return mask


def _fill_points(rows: Sequence[float], positive: int, size: tuple[int, int]) -> Mask:
    """Fill a mask (H, W) with squares around the points that are positive (1), or negative (0)."""
    points = np.reshape(rows, (-1, 3))
    is_in_range = ((points >= 0) & (points <= 1)).all()
    expect(is_in_range, "x and y of points in [0, 1], and 1 or 0", rows)
    chosen = points[points[:, 2] == positive]
    side = _POINT_SIDE * min(size)
    height, width = size
    corners = chosen[:, :2] * (width, height) - side / 2
    sides = np.full_like(corners, side)
    return _fill_boxes(np.hstack([corners, sides]), size)
