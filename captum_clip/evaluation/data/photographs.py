"""Folders of photographs: with captions and boxes of their phrases, points, counterfactuals."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, final

import numpy as np
from PIL import Image, ImageOps
from typing_extensions import override

from ...checks import expect
from ...demo.copies import SIDES, without_thirds
from ...demo.sprites import rotated
from ...errors import InputError, TargetError
from ...files import image_names
from ...pictures import as_pil
from ...targets.target import word_spans
from .base import FileData, Mask, Sample, copies_sample, digest, masked_sample, read_table
from .formats import MaskedFolder, mask_text

_SIDE: Final = 0.01  # of a point, in shorter sides of its image: about two pixels of most models
_SQUARE: Final = 448  # pixels on a side of a picture with copies
_MOST: Final = 8  # objects of a counterfactual, which are 256 images
Box = tuple[float, ...]


@final
class CaptionFolder(FileData):
    """``images/STEM.jpg`` with ``captions.csv``: image, caption, phrase, x, y, width, height.

    An image has one caption. A phrase of it is a region: all pixels in its boxes. A row has the
    left and upper edge and the size of a box, in pixels of the upright image; all five may be
    empty. The captions are the classes, so that to classify is to retrieve; a limit leaves all of
    them.

    Raises:
        InputError: no image with a caption; in a line another caption of an image, a phrase that
            is not in its caption, or a box that is none.
    """

    name = "captions"
    truth = ("retrieval", "phrases", "masks", "objects")

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        truth: dict[str, tuple[str, dict[str, list[Box]]]] = {}
        path, names = self.path / "captions.csv", ("x", "y", "width", "height")
        rows = read_table(path, images, self.left_out, "image", "caption", numbers=names)
        for where, image, row, box in rows:
            caption, phrase = row["caption"], row.get("phrase")
            first_caption, boxes = truth.setdefault(image, (caption, {}))
            if first_caption != caption:
                raise InputError(f"{where}: expected one caption, {image} has another one already.")
            if phrase:
                try:  # as the task finds it
                    word_spans(caption.split(), [phrase])
                except TargetError as error:
                    raise InputError(
                        f"{where}: {phrase!r} is not in the caption {caption!r}."
                    ) from error
                if not box or min(box[2:]) <= 0:
                    raise InputError(f"{where}: expected {', '.join(names)} of a box, got {row}.")
                boxes.setdefault(phrase, []).append(box)
        self.check_belonging(truth, "captions in captions.csv")
        self.classes = tuple(dict.fromkeys(caption for caption, _ in truth.values()))
        chosen = {image: images[image] for image in truth}
        self.take(chosen, truth=digest(truth), files=digest(files, ("images",)))
        self._truth = {name: truth[name] for name in self.names}

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        image, (caption, boxes) = self.read_image(name), self._truth[name]
        truth: Any = {"caption": caption, "label": self.classes.index(caption)}
        masks = [(phrase, partial(_mask, image.size, drawn)) for phrase, drawn in boxes.items()]
        try:
            return masked_sample(name, image, masks, **truth)
        except InputError as error:  # no usable box: to be retrieved it needs none
            return Sample(name, image, dropped=(error.reason,) if masks else (), **truth)


@final
class PointFolder(FileData):
    """``images/STEM.jpg`` with ``points.csv``: image, text, x, y, positive.

    A point lies at shares x and y of the width and the height; the text names what is there (1) or
    not (0). A sample is an image with one text that has both kinds. Points are squares of a
    hundredth of the shorter side: the positive ones are the region, all but points is void.

    Raises:
        InputError: no image with points of both kinds; in a line a point that is none.

    Source: Benenson and Ferrari 2022 (arXiv:2210.14142), whose points are in Open Images V7.
    """

    name = "points"
    truth = ("masks", "points")

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        points: dict[tuple[str, str], list[Box]] = defaultdict(list)
        path, names = self.path / "points.csv", ("x", "y", "positive")
        rows = read_table(path, images, self.left_out, "image", "text", numbers=names)
        for where, image, row, values in rows:
            if not values or not 0 <= min(values) <= max(values) <= 1 or values[2] not in (0, 1):
                raise InputError(f"{where}: expected x, y in [0, 1], positive 0 or 1, got {row}.")
            points[image, row["text"]].append(values)
        both = {
            f"{image}/{text}": (image, text, marks)
            for (image, text), marks in points.items()
            if len({positive for _, _, positive in marks}) == 2
        }
        others = sorted({f"{image}/{text}" for image, text in points} - both.keys())
        self.left_out |= dict.fromkeys(others, "its points are of one kind")
        self.check_belonging(both, "points of both kinds of a text in points.csv")
        self.classes = tuple(sorted({text for _, text, _ in both.values()}))
        self.groups = {n: self.groups[i] for n, (i, *_) in both.items() if i in self.groups}
        chosen = {name: images[image] for name, (image, *_) in both.items()}
        self.take(chosen, points=digest(both), files=digest(files, ("images",)))
        self._points = {name: both[name][1:] for name in self.names}

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        image, (text, points) = self.read_image(name), self._points[name]
        side = _SIDE * min(image.size)
        squares: tuple[list[Box], list[Box]] = ([], [])
        for x, y, positive in points:
            corner = x * image.width - side / 2, y * image.height - side / 2
            squares[int(positive)].append((*corner, side, side))
        outside, inside = (_mask(image.size, of_kind) for of_kind in squares)
        return masked_sample(name, image, [(text, lambda: inside)], void=~(inside | outside))


@final
class CounterfactualFolder(MaskedFolder):
    """A :class:`MaskedFolder` with ``without/STEM/a horse.png``, the image without that object.

    Without several objects, their names have "+" between them, as in "a horse + a dog.png". Where
    all 2^n - 1 of these images are there, the exact effects of the objects are known; else what is
    lost when one goes, of those with an image without it alone.

    Raises:
        InputError: there is no such image, or an image without an object that has no mask; in a
            sample, an image of another size, or more than eight objects.
    """

    name = "counterfactuals"
    truth = ("masks", "objects", "scenes")

    @override
    def find(self) -> None:
        super().find()
        files, images = self.list_images("images")
        self._without: dict[tuple[str, frozenset[str]], str] = {}
        for file in image_names(name for name in files if name.startswith("without/")):
            stem = str(PurePosixPath(file).parent.relative_to("without"))
            if stem not in images:
                self.left_out[file] = f"there is no image {stem!r}"
            absent = frozenset(text.strip() for text in mask_text(file).split("+"))
            unknown = absent - {mask_text(mask) for mask in self._masks.get(stem, ())}
            if unknown and stem in self.names:
                raise InputError(f"{self.path / file}: {min(unknown)!r} has no mask.")
            if other := self._without.get((stem, absent)):
                raise InputError(f"{self.path / file}: {other} leaves out the same; keep one.")
            self._without[stem, absent] = file
        example = f"images in without/, such as without/{self.names[0]}/a horse.png"
        self.check_belonging((stem in self.names for stem, _ in self._without), example)
        self._identity["without"] = digest(files, ("without",))

    @override
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        texts = [region.text for region in sample.regions]
        expect(len(texts) <= _MOST, f"up to {_MOST} masks of {sample.name}", len(texts))
        subsets: list[Image.Image | None] = []
        for there in range(2 ** len(texts)):
            absent = frozenset(t for place, t in enumerate(texts) if not there >> place & 1)
            file = self._without.get((sample.name, absent))
            image = as_pil(self.path / file)[0] if file else None
            if image and image.size != sample.image.size:
                raise InputError(f"{self.path}/{file} does not have the size of its image.")
            subsets.append(image if absent else sample.image)
        return replace(sample, subsets=tuple(subsets))


@final
class CopyFolder(MaskedFolder):
    """A :class:`MaskedFolder` with ``backgrounds/*.jpg``, of which each image gives three copies.

    A mask and a background are drawn at random. What the mask shows is cut out and stands three
    times on the background, each copy without another third, as in :class:`DemoThirds`.

    Raises:
        InputError: no background, or no mask.
    """

    name = "copies"
    truth = ("thirds",)
    usual = 300

    @override
    def find(self) -> None:
        super().find()
        files, _ = self.list_images("images")
        self._backgrounds = image_names(n for n in files if n.startswith("backgrounds/"))
        expected = f"images in {self.path}/backgrounds to put copies on"
        expect(self._backgrounds, expected, self._backgrounds)
        self._identity["backgrounds"] = digest(files, ("backgrounds",))

    @override
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        name = sample.name.encode("utf-8", "surrogateescape")
        generator = np.random.default_rng([*name])
        region = sample.regions[generator.integers(len(sample.regions))]
        file = self._backgrounds[generator.integers(len(self._backgrounds))]
        background = ImageOps.fit(as_pil(self.path / file)[0], (_SQUARE, _SQUARE))
        cut_out = sample.image.copy()
        cut_out.putalpha(Image.fromarray(region.mask).convert("L"))
        cut_out = cut_out.crop(Image.fromarray(region.mask).getbbox())
        side = round(_SQUARE * generator.uniform(*SIDES))
        copies = without_thirds(rotated(cut_out, side=side, angle=0, flip=False), generator)
        return copies_sample(sample.name, region.text, copies, np.asarray(background), generator)


def _mask(size: tuple[int, int], boxes: Iterable[Box]) -> Mask:
    """The pixels (H, W) that boxes touch: left, top, width and height."""
    mask = np.zeros(size[::-1], dtype=bool)
    for x, y, width, height in boxes:
        left, top = max(0, math.floor(x)), max(0, math.floor(y))
        mask[top : max(0, math.ceil(y + height)), left : max(0, math.ceil(x + width))] = True
    return mask
