"""Folders of photos with label images: the number of a class at each pixel."""

from typing import ClassVar, Final, final

import numpy as np
from typing_extensions import override

from ...checks import expect, find_file, find_repeated
from ...errors import InputError
from .base import FileData, Sample, check_size, digest, read_lines, read_numbers
from .formats import TEMPLATE, class_texts, templates_of

_IGNORED: Final = 255


@final
class LabelFolder(FileData):
    """``images/STEM.jpg`` with ``labels/STEM.png``, numbers of the classes in ``names.txt``.

    A label image is a palette or gray PNG of 8 bits. Its numbers count the lines of ``names.txt``
    from 0 on; 255 counts for nothing. A line has one or several names of a class with commas
    between them, or "[ignored]" for a number that counts for nothing either, or "[background]" for
    pixels that no text supports. A class is called by its first name; its prompts are all names in
    each template (:func:`class_texts`): the option, or the lines of ``templates.txt``, or "a photo
    of a {}". The mean of their unit embeddings is its target.

    Raises:
        InputError: there is no such folder, no image or no names in it, a line without names, two
            classes of one name, or an image without labels. Among what is sampled: a label image of
            another size or kind, a number without a line, or an image that cannot be read.
    """

    name = "labels"
    truth = ("label images",)
    options: ClassVar = {"template": None}

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        path = find_file(self.path / "names.txt", what="list of names")
        lines = read_lines(path, numbered=True)
        names = [[name.strip() for name in line.split(",")] for line in lines]
        classes = [line for line in names if line not in (["[background]"], ["[ignored]"])]
        odd = [", ".join(line) for line in classes if not all(line) or line[0].startswith("[")]
        if odd or not 0 < len(names) <= _IGNORED:
            raise InputError(
                f"{path}: expected 1 to {_IGNORED} lines, each with names of one class separated "
                "by commas, or [background], or [ignored]; got "
                + (f"the line {odd[0]!r}." if odd else f"{len(names)} lines.")
            )
        self.background = ["[background]"] in names
        self.classes = tuple(line[0] for line in classes)
        repeated = find_repeated((*self.classes, *("background",) * self.background))
        if repeated or not classes:
            what = f"two classes are called {repeated!r}" if repeated else "no line names a class"
            raise InputError(f"{path}: {what}.")
        places = {name: place for place, name in enumerate(self.classes)}
        places |= {"[background]": len(classes), "[ignored]": -1}
        self._lines = len(names)
        self._places = np.full(_IGNORED + 1, -2, dtype=np.int64)  # of each number; -2 is none
        self._places[: self._lines] = [places[line[0]] for line in names]
        self._places[_IGNORED] = -1
        templates = templates_of(self.path, self.settings["template"], TEMPLATE)
        every = [name for line in classes for name in line]
        texts = [class_texts(every, self.path, template=template) for template in templates]
        self.prompts = {line[0]: [t[name] for name in line for t in texts] for line in classes}
        used = digest(files, ("images", "labels"))
        self.take(images, names=names, templates=templates, files=used)
        for index in range(len(self)):  # so that what is wrong is found before a model runs
            self.read(index)

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        image, path = self.read_image(stem), self.path / f"labels/{stem}.png"
        numbers = read_numbers(path)
        check_size(path, numbers.shape, image)
        labels = self._places[numbers]
        unknown = numbers[labels == -2]
        expected = f"{path} with numbers of the {self._lines} lines of names.txt, from 0 on"
        expect(not len(unknown), expected, int(unknown.max(initial=0)))
        return Sample(stem, image, labels=labels)
