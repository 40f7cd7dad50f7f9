"""Data sets that are read from files: a folder of masks, COCO's instances, a list of samples."""

import math
import os
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
)
from ...errors import InputError, is_kind, naming, parse_json, type_name
from ...files import IMAGE_ENDINGS, as_pil, draw_names, image_names, open_image
from ...folders.storage import check_template, storage_of
from ...targets.target import word_spans
from .base import DataSet, Mask, NamedRegion, Sample, entries_digest

Record = dict[str, Any]
_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("image", "name", "label", "caption", "group", "labels"), str),
    **{"regions": list[dict[str, Any]], "void": Any, "subsets": list[str | None]},
    **{"truth": list[str], "classes": list[str], "prompts": dict[str, list[str]]},
    "background": bool,
}
"""Fields of a line of samples.jsonl: of a sample, and of the line that describes the set."""
_TRUTH_OF_FIELD: Final = {
    **{"regions": ("masks", "objects"), "point": ("points",), "subsets": ("scenes",)},
    **{"caption": ("retrieval", "phrases"), "label": ("classes",), "labels": ("label images",)},
}
_IGNORED_NUMBER: Final = 255  # in a label image
_POINT_SIDE: Final = 0.01  # in shorter sides of the image: about two pixels of most models
_MOST_REGIONS: Final = 8  # of a scene with its subsets, which are 256 images


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
            check_integer("limit", 1 if limit is None else limit)
        self.path = self.folder = self.root = expand(path)
        self.limit, self.seed = limit, seed
        self.template = self.template if template is None else template
        self.left_out: dict[str, str] = {}
        self.find()

    @abstractmethod
    def find(self) -> None:
        """Find all samples: set `classes` and `truth`, then :meth:`take` the records."""

    def take(self, records: Mapping[str, Record]) -> None:
        """Keep the records, by the names of their samples, or those of a drawn sample.

        The sample is that of :func:`captum_clip.files.draw_names`.
        """
        if template := self.template:
            check_template(template)
            self.prompts = {text: [template.replace("{}", text)] for text in self.classes}
        self.names = tuple(draw_names(records, self.limit, self.seed))
        self._records = {name: records[name] for name in self.names}
        for name, record in self._records.items():
            for file in _files_of(record):
                self._check_inside(file, name)
        self.groups = {n: r["group"] for n, r in self._records.items() if "group" in r}
        files = {self.folder / file: file for r in self._records.values() for file in _files_of(r)}
        sizes = {file: path.is_file() and path.stat().st_size for path, file in files.items()}
        about = [[*self.classes], dict(self.prompts), [*self.truth], self.background]
        self._identity = {
            "data": self.name,
            "limit": self.limit,
            "seed": None if self.limit is None else self.seed,  # which decides nothing
            "samples": entries_digest({**self._records, "": about}),
            "files": entries_digest(sizes),
        }

    def _check_inside(self, file: str, name: str) -> None:
        """Refuse a file outside of the folder that the user named: a stranger wrote the list."""
        whole, root = (os.path.abspath(path) for path in (self.folder / file, self.root))
        is_inside = os.path.commonpath([whole, root]) == root
        if PureWindowsPath(file).drive or "\\" in file or not is_inside:
            raise InputError(
                f"{name} of {self.path.name}: {show(file)} lies outside of {self.root}; move it "
                f"inside, or name a folder that holds it, as in {self.name}:FILE,FOLDER."
            )

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        record = self._records[name]
        caption = record.get("caption")
        image = self._read_image(record["image"])
        class_of = {text: number for number, text in enumerate(self.classes)}
        void = self._read_region({"mask": record["void"]}, image) if record.get("void") else None
        regions: list[NamedRegion] = []
        dropped: list[str] = []
        for entry in record.get("regions", ()):
            text = entry["text"]
            try:
                mask = self._read_region(entry, image)
                if not mask.any() or mask.all():
                    raise InputError(f"the mask is {'full' if mask.any() else 'empty'}")
                if "thirds" not in self.truth and any(region.text == text for region in regions):
                    raise InputError("the image has another region of the same text")
                crowd = None
                if "void" in entry:
                    # What was outlined within a crowd counts all the same.
                    crowd = self._read_region({"mask": entry["void"]}, image) & ~mask
                label = class_of.get(entry.get("label"))
                regions.append(NamedRegion(text, mask, label=label, void=crowd))
                if "point" in entry:  # nothing but the points is known
                    void = ~(mask | _fill_points(entry["point"], 0, mask.shape))
            except InputError as error:
                dropped.append(f"{name}, {text!r}: {error.reason.rstrip('.')}")
        subsets = [file and self._read_image(file) for file in record.get("subsets", ())]
        # with a caption it needs no region to be retrieved
        if ("regions" in record and not regions and caption is None) or (subsets and dropped):
            reason = "; ".join(dropped) or f"{name} has no mask"
            raise InputError(f"there is no region to compare a map with: {reason}.")
        if subsets:
            form = f"2^n subsets of n regions up to {_MOST_REGIONS} of {name}, of its image's size"
            alike = all(subset.size == image.size for subset in subsets if subset)
            holds = len(regions) <= _MOST_REGIONS and len(subsets) == 2 ** len(regions) and alike
            expect(holds, form, record["subsets"])
        own = {"label": caption} if "retrieval" in self.truth else {}
        label = class_of.get({**own, **record}.get("label", ""))
        labels = self._read_labels(record["labels"], image) if "labels" in record else None
        truth = label, caption, tuple(subsets), void, labels, tuple(dropped)
        return Sample(name, image, tuple(regions), *truth)

    def _read_image(self, file: str) -> Image.Image:
        return as_pil(self.folder / file, keep_mode=True)[0]

    def _read_region(self, region: Record, image: Image.Image) -> Mask:
        form = "one of a mask, boxes [left, top, width, height], points [x, y, 1 or 0]"
        size = image.height, image.width
        with expecting(form, region):
            if "box" in region:
                return _fill_boxes(np.reshape(region["box"], (-1, 4)), size)
            if "point" in region:
                return _fill_points(region["point"], 1, size)
            mask = region["mask"]
            if isinstance(mask, str):
                filled = _mask_of_file(self.folder / mask)
                _check_shape("the mask", filled, image)
                return filled
            joined = np.zeros(size, dtype=bool)
            for piece in mask if isinstance(mask, list) else [mask]:
                joined |= _fill_piece(piece, size)
            return joined

    def _read_labels(self, file: str, image: Image.Image) -> npt.NDArray[np.int64]:
        """The class of each pixel: its number in a palette or gray image."""
        path = self.folder / file
        with open_image(path) as stored:
            expected = f"{path} with numbers of classes in a palette or gray image of 8 bits"
            expect(stored.mode in ("P", "L"), expected, stored.mode)
            numbers = np.asarray(stored, dtype=np.int64)
        _check_shape(path, numbers, image)
        labels = np.where(numbers == _IGNORED_NUMBER, -1, numbers)
        most = len(self.classes) - (not self.background)
        expect(
            labels.max() <= most, f"{path} with numbers of classes up to {most}", int(labels.max())
        )
        return labels


@final
class MaskedFolder(FileData):
    """``images/STEM.jpg`` with ``masks/STEM/a horse.png``, one mask per text.

    The mask's name is the text, as it stands but with spaces for underscores; every pixel of it
    that is not 0 is inside. An image without masks is a sample that cannot be read.

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
        for path in map(PurePosixPath, sorted(files)):
            if path.parts[0] == "masks" and path.suffix.lower() == ".png" and len(path.parts) > 2:
                text = path.stem.replace("_", " ").strip()
                stem = str(path.parent.relative_to("masks"))
                masks[stem].append({"text": text, "mask": str(path)})
        records: dict[str, Record] = {}
        for image in image_names(file for file in files if file.startswith("images/")):
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
        self.classes = tuple(sorted({mask["text"] for mask in chain(*masks.values())}))
        self.take(records)


@final
class CocoInstances(FileData):
    """The file ``instances_val2017.json`` of COCO, or a file of the same form, with its images.

    A region is all of a category in the image, however many objects that is: what their polygons
    and run lengths mark, also compressed ones. Crowds (``iscrowd``), which nobody outlined one by
    one, are void for their own category, and outside of all others. Images lie in the folder after
    a comma, as in "instances.json,photos", from here or from the file. Without it they lie next to
    the file, or next to the file or its folder in ``images/``, ``val2017/`` (the end of the file's
    name) or ``images/val2017/``.
    Those without a mask are left out.

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
        pair = re.fullmatch(r"(.*\.json),(.+)", str(self.path))
        path = find_file(pair[1] if pair else self.path, what="file of COCO's instances")
        parts: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        crowds: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        form = "JSON with images, categories and annotations with masks, as COCO's instances have"
        with expecting(form, str(path)):
            content = parse_json(path.read_bytes())
            texts = {category["id"]: str(category["name"]) for category in content["categories"]}
            images = {image["id"]: str(image["file_name"]) for image in content["images"]}
            for each in content["annotations"]:
                mask, number = each["segmentation"], each["category_id"]
                # COCO's own evaluation ignores a crowd for its category alone.
                of_image = (crowds if each.get("iscrowd") else parts)[each["image_id"]]
                of_image[number, texts[number]] += mask if isinstance(mask, list) else [mask]
        base, split = path.absolute().parent, path.stem.partition("_")[2]
        if pair:
            places = [expand(pair[2]), base / pair[2]]
        else:
            places = [base]
            for folder in (base, base.parent):
                places += [folder / split, folder / "images", folder / "images" / split]
        # A name without a split gives a folder twice, and so does a FOLDER beside the file.
        places = list({place.absolute(): place for place in places})
        files = [*images.values()]
        folders = [folder for folder in places if any((folder / file).is_file() for file in files)]
        expected = f"images of {path.name} in one of {', '.join(map(str, places))}"
        expect(folders, expected, "none", f"name their folder: coco:{path.name},FOLDER")
        self.folder = self.root = folders[0]
        records: dict[str, Record] = {}
        for number, file in images.items():
            masks = []
            for category, mask in sorted(parts[number].items()):
                region = {"text": category[1], "mask": mask}
                if category in crowds[number]:
                    region["void"] = crowds[number][category]
                masks.append(region)
            if not masks or not (self.folder / file).is_file():
                self.left_out[file] = "there is no such image" if masks else "it has no mask"
                continue
            expect(_stem(file) not in records, f"one image of each stem in {path}", file)
            records[_stem(file)] = {"image": file, "regions": masks}
        expect(records, f"masks of images in {path}", "none")
        self.classes = tuple(dict.fromkeys(texts.values()))
        self.take(records)


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
      pixels are void.

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
        pair = re.fullmatch(r"(.*\.jsonl?),(.+)", str(self.path))
        path = find_file(pair[1] if pair else self.path, what="list of samples")
        self.folder, self.name = path.parent, path.stem
        self.root = find_folder(pair[2]) if pair else self.folder
        about: Record = {}
        records: dict[str, Record] = {}
        # not splitlines, since a text may hold other separators of lines
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
        every = [*records.values()]
        regions = [*chain(*(record.get("regions", ()) for record in every))]
        used = {*chain(*every), *({*chain(*regions)} - {"label"})}
        kinds = chain(*(kinds for field, kinds in _TRUTH_OF_FIELD.items() if field in used))
        self.truth = tuple(about.get("truth", kinds))
        labels = {each["label"] for each in (*every, *regions) if "label" in each}
        texts = [record["caption"] for record in every if "caption" in record]
        if "retrieval" not in self.truth:
            texts = sorted(labels or {region["text"] for region in regions})
        self.classes = tuple(about.get("classes", dict.fromkeys(texts)))
        self.prompts, self.background = about.get("prompts", {}), about.get("background", False)
        repeated = find_repeated((*self.classes, *("background",) * self.background))
        expect(repeated is None, f"classes of {path} that differ", repeated)
        expect(labels <= {*self.classes}, f"labels of {path} among its classes", sorted(labels))
        self.take(records)
        for index in range(len(self) if "labels" in used else 0):
            self.read(index)  # so that what is wrong is found before a model runs


def _check_fields(fields: Record, where: str) -> None:
    for name, value in fields.items():
        expect(name in _FIELDS, f"fields {', '.join(_FIELDS)} in {where}", name)
        kind = _FIELDS[name]
        expect(is_kind(value, kind), f"{name} of {type_name(kind)} in {where}", value)
    for region in fields.get("regions", ()):
        text, form = region.get("text"), f"a text, and maybe a label, of each region in {where}"
        expect(text and is_kind([text, region.get("label", "")], list[str]), form, region)
        if "caption" in fields:
            with error_context(where):
                word_spans(fields["caption"].split(), [text])  # as the task finds it


def _stem(image: str) -> str:
    return str(PurePosixPath(image.removeprefix("images/")).with_suffix(""))


def _files_of(record: Record) -> list[str]:
    regions = record.get("regions", ())
    masks = [region.get(field) for region in regions for field in ("mask", "void")]
    masks += [record["image"], record.get("labels"), record.get("void"), *record.get("subsets", ())]
    return [file for file in masks if isinstance(file, str)]


def _check_shape(what: object, pixels: npt.NDArray[Any], image: Image.Image) -> None:
    if pixels.shape != (image.height, image.width):
        size = " x ".join(map(str, pixels.shape))
        raise InputError(f"{what} has {size} pixels, its image {image.height} x {image.width}.")


def _mask_of_file(path: Path) -> Mask:
    """A mask (H, W): every pixel that is not 0.

    Palette images count by their indices, others by their colors; what is transparent is outside.
    """
    with open_image(path) as image:
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            mask: Mask = np.asarray(image) != 0
        else:
            filled = np.asarray(image.convert("RGBA")) != 0
            mask = filled[..., :3].any(-1) & filled[..., 3]
        return mask


def _fill_piece(piece: Any, size: tuple[int, int]) -> Mask:
    """A mask (H, W) of a polygon x, y, x, y, ..., or of run lengths, as COCO has them.

    In the polygon are the pixels whose centers lie in it, by the even-odd rule.
    """
    if isinstance(piece, dict):
        return _fill_runs(piece, size)
    corners = np.array(piece, dtype=np.float64).reshape(-1, 2)
    rows, columns = (np.arange(length) + 0.5 for length in size)
    mask = np.zeros(size, dtype=bool)
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crossed = (rows < y) != (rows < next_y)
        crossing = x + (rows[crossed] - y) * (next_x - x) / (next_y - y)
        mask[crossed] ^= columns > crossing[:, None]
    return mask


def _fill_runs(encoded: Record, size: tuple[int, int]) -> Mask:
    """A mask (H, W) of run lengths down its columns, outside first, as COCO writes them.

    A text holds six bits a character, from "0" on: five of the number, the lowest first, and one
    that says whether it goes on. From the fourth on, runs are differences to that before the last.
    """
    counts, (height, width) = encoded["counts"], size
    runs = [] if isinstance(counts, str) else counts
    value = shift = 0
    for code in counts.encode() if isinstance(counts, str) else ():
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16) << shift - 4  # its sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    # before they are unpacked, since a run may be of any length
    holds = min(runs) >= 0 and sum(runs) == height * width and encoded["size"] == [height, width]
    expect(holds, f"run lengths of {height} x {width} pixels", encoded["size"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _fill_boxes(boxes: npt.NDArray[np.float64], size: tuple[int, int]) -> Mask:
    """The pixels (H, W) that boxes touch: left, top, width and height."""
    mask = np.zeros(size, dtype=bool)
    for x, y, width, height in boxes.tolist():
        left, top = max(0, math.floor(x)), max(0, math.floor(y))
        mask[top : max(0, math.ceil(y + height)), left : max(0, math.ceil(x + width))] = True
    return mask


def _fill_points(rows: Sequence[float], positive: int, size: tuple[int, int]) -> Mask:
    """Squares around the points of one kind."""
    points = np.reshape(rows, (-1, 3))
    expect(((points >= 0) & (points <= 1)).all(), "x and y of points in [0, 1], and 1 or 0", rows)
    side = _POINT_SIDE * min(size)
    corners = points[points[:, 2] == positive, :2] * size[::-1] - side / 2
    return _fill_boxes(np.pad(corners, ((0, 0), (0, 2)), constant_values=side), size)
