"""Images in folders that name their class."""

from __future__ import annotations

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from captum_clip.errors import InputError
from captum_clip.evaluation.data.formats import ClassFolder
from tests.evaluation.data.writing import JPEG_OF_NOTHING, noise, save, save_bytes


@pytest.fixture
def folder(tmp_path):
    """Three images of two classes."""
    save(noise(seed=0), tmp_path / "a horse/1.png")
    save(noise(seed=1), tmp_path / "a horse/more/2.png")
    save(noise(seed=2), tmp_path / "red_barn/1.jpg")
    (tmp_path / "notes.txt").write_text("not of the data")
    save(noise(), tmp_path / "cover.png")
    return tmp_path


def test_class_folder_is_lawful(folder, lawful):
    """Names, labels, pickles and identities are what every data set's are."""
    assert len(lawful(ClassFolder(folder))) == 3


def test_labels_are_the_folders(folder):
    """The text is the folder's name, spaces for underscores; images beside folders do not count."""
    data = ClassFolder(folder)
    assert data.classes == ("a horse", "red barn")
    assert data.names == ("a horse/1", "a horse/more/2", "red_barn/1")
    assert [data.read(index).label for index in range(3)] == [0, 0, 1]
    assert np.array_equal(np.asarray(data.read(1).image), np.asarray(noise(seed=1)))


def test_labels_agree_with_torchvision(folder):
    """The same labels in the same order as torchvision's reader."""
    theirs = ImageFolder(str(folder))
    data = ClassFolder(folder)
    assert [label for _, label in theirs.samples] == [data.read(i).label for i in range(len(data))]


def test_templates_make_the_texts(folder):
    """Everything but the name comes from the template."""
    data = ClassFolder(folder, template="a photo of {}.")
    assert data.classes == ("a photo of a horse.", "a photo of red barn.")
    assert data.identity() != ClassFolder(folder).identity()


def test_templates_without_one_place_are_refused(folder):
    for template in ("a photo", "{} and {}"):
        with pytest.raises(InputError, match=r'expected a template with one "\{\}"'):
            ClassFolder(folder, template=template)


def test_numbers_of_wordnet_are_named(tmp_path):
    """By a file of names first, by ImageNet else."""
    for name in ("n01440764", "n02007558"):
        save(noise(), tmp_path / name / "1.png")
    assert ClassFolder(tmp_path).classes == ("tench", "flamingo")
    (tmp_path / "classnames.txt").write_text("\ufeffn02007558\tpink bird\n", encoding="utf-8")
    assert ClassFolder(tmp_path).classes == ("tench", "pink bird")


def test_bad_files_of_names_are_refused(folder):
    """A class, a tab, a name, in UTF-8."""
    for line in ("n02007558", "n02007558\t", "a\tb\tc", "n02007558 pink bird"):
        (folder / "classnames.txt").write_text(f"{line}\n")
        with pytest.raises(InputError, match=r"a class and its name per line of .*classnames\.txt"):
            ClassFolder(folder)
    (folder / "classnames.txt").write_bytes(b"\xff\xff\t\xff")
    with pytest.raises(InputError, match=r"classnames\.txt cannot be read"):
        ClassFolder(folder)


def test_two_classes_of_one_text_are_reported(folder):
    """Zero-shot classification could not tell them apart."""
    save(noise(), folder / "red barn/3.png")
    with pytest.raises(InputError, match="two classes have the same text, 'red barn'"):
        ClassFolder(folder)


def test_missing_empty_and_single_folders_are_reported(tmp_path):
    """Two classes with images are needed."""
    with pytest.raises(InputError, match="there is no folder"):
        ClassFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"expected images .* in folders in it, found none"):
        ClassFolder(tmp_path)
    save(noise(), tmp_path / "horse/1.png")
    (tmp_path / "barn").mkdir()
    with pytest.raises(InputError, match=r"folders of two or more classes.* got \['.*'\]"):
        ClassFolder(tmp_path)


def test_unreadable_images_are_reported(folder):
    """A broken image is an error of its sample."""
    save_bytes(JPEG_OF_NOTHING, folder / "red_barn/1.jpg")
    data = ClassFolder(folder)
    data.read(0)
    with pytest.raises(InputError, match=r"red_barn/1\.jpg cannot be read"):
        data.read(2)


def test_samples_are_drawn_and_all_classes_stay(folder):
    """A limit takes so many images, not classes."""
    data = ClassFolder(folder, limit=1)
    assert len(data) == 1
    assert len(data.classes) == 2
    assert data.identity() != ClassFolder(folder).identity()
