"""Reading the data set: every row ends up as a vote or in the report."""

from __future__ import annotations

import csv
import io
import unicodedata

import pytest

from captum_clip.bench.emotions import find_artemis, read_artemis
from captum_clip.demo.catalog import CLASSES
from captum_clip.errors import InputError

COLUMNS = ("art_style", "painting", "emotion", "utterance", "repetition")
FILE_NAME = "artemis_dataset_release_v0.csv"
ROWS = [
    ("Cubism", "a_man", "anger", "so loud", "3"),
    ("Cubism", "a_man", "anger", "red, and red", "3"),
    ("Cubism", "a_man", "something else", "a\nline", "3"),
    ("Baroque", "a_man", "awe", "vast", "1"),
]


@pytest.fixture
def images(tmp_path):
    """A folder of images, empty files: they are not opened."""
    folder = tmp_path / "images"
    for name in ("Cubism/a_man.jpg", "Baroque/a_man.jpeg", "Rococo/swing.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    return folder


def written(folder, rows, header=COLUMNS, *, encoding="utf-8"):
    """A CSV file of rows."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path = folder / "data.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def counted(found):
    """Style/name.ending -> emotion -> votes."""
    return {
        "/".join(image.parts[-2:]): {c: v for c, v in zip(CLASSES, cast, strict=True) if v}
        for image, cast in zip(found.images, found.votes.tolist(), strict=True)
    }


def test_a_row_is_a_vote_for_its_painting(tmp_path, images):
    """Paintings of one name in two styles are two; images may be .jpg or .jpeg."""
    found = read_artemis(written(tmp_path, ROWS), images)
    assert counted(found) == {
        "Baroque/a_man.jpeg": {"awe": 1},
        "Cubism/a_man.jpg": {"anger": 2, "something else": 1},
    }
    assert found.images == (images / "Baroque/a_man.jpeg", images / "Cubism/a_man.jpg")
    assert found.votes.shape == (2, 9)
    assert found.votes.sum() == found.rows == 4
    assert str(found) == "4 rows read, 2 paintings kept; left out: nothing"


def test_what_cannot_be_used_is_counted(tmp_path, images):
    """Exact duplicates count once; each other row is in one of the counts."""
    other = [
        ROWS[0],
        ROWS[0],
        ("Cubism", "a_man", "anger", "so loud", "4"),
        ("Cubism", "a_man", "joy", "x", "3"),
        ("Cubism", "a_man", "Anger", "x", "3"),
        ("Cubism", "gone", "fear", "x", "2"),
        ("Cubism", "gone", "awe", "y", "2"),
        ("Cubism", "a_man", "fear"),
        ("Cubism", "a_man", "fear", "x", "3", "4"),
        ("", "a_man", "fear", "x", "1"),
        ("Cubism", " ", "fear", "x", "1"),
    ]
    found = read_artemis(written(tmp_path, ROWS + other), images)
    assert counted(found)["Cubism/a_man.jpg"] == {"anger": 3, "something else": 1}
    assert str(found) == (
        "15 rows read, 2 paintings kept; left out: bad rows: 4, duplicate rows: 2, paintings "
        "without an image: 1, rows of unknown emotions: 2"
    )


@pytest.mark.parametrize(
    ("style", "painting"),
    [
        ("..", "secret"),
        ("Cubism", "../secret"),
        ("Cubism", "..\\secret"),
        ("Cubism", "a\0man"),
    ],
)
def test_names_never_leave_the_folder(tmp_path, images, style, painting):
    """A row with a path in a name is a bad row, whatever lies there."""
    (tmp_path / "secret.jpg").touch()
    (images / "secret.jpg").touch()
    found = read_artemis(written(tmp_path, [*ROWS, (style, painting, "awe", "x", "1")]), images)
    assert len(found.images) == 2
    assert found.left_out["bad rows"] == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_letters_with_accents_are_found(tmp_path, images, swapped):
    """Whichever way the file system and the CSV encode them."""
    forms = [unicodedata.normalize("NFC", "été_日本"), unicodedata.normalize("NFD", "été_日本")]
    assert forms[0] != forms[1]
    stem, name = reversed(forms) if swapped else forms
    (images / "Cubism" / f"{stem}.jpg").touch()
    found = read_artemis(written(tmp_path, [("Cubism", name, "awe", "x", "1")]), images)
    assert found.images[0].is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"art_style,painting,emotion\n", "lacks utterance, repetition, expected the columns"),
        (b"Cubism,a_man,awe,x,1\n", "lacks art_style, painting, emotion, utterance, repetition"),
        (
            ",".join(COLUMNS).encode() + b"\nCubism,a_man,awe,\xff,1\n",
            "cannot be read as CSV in UTF-8",
        ),
        (",".join(COLUMNS).encode() + b'\nCubism,a_man,awe,"x,1\n', "unexpected end of data"),
        (",".join(COLUMNS).encode() + b"\n", "no painting of .* has a vote"),
        (",".join(COLUMNS).encode() + b"\nCubism,gone,awe,x,1\n", "paintings without an image: 1"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, images, content, message):
    """With what is wrong and what was expected."""
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_artemis(path, images)


def test_what_is_not_there_is_refused(tmp_path, images):
    """The file, the folder, and an unknown wish."""
    path = written(tmp_path, ROWS)
    with pytest.raises(InputError, match="there is no file"):
        read_artemis(tmp_path / "none.csv", images)
    with pytest.raises(InputError, match="there is no folder of images"):
        read_artemis(path, tmp_path / "none")


def test_a_data_set_in_one_folder_is_found(tmp_path, images):
    """The official name wins; otherwise the only CSV; images in `images`, `wikiart` or there."""
    path = written(tmp_path, ROWS)
    assert find_artemis(tmp_path) == (path, images)
    (tmp_path / FILE_NAME).touch()
    assert find_artemis(tmp_path) == (tmp_path / FILE_NAME, images)
    (tmp_path / FILE_NAME).unlink()
    images.rename(tmp_path / "wikiart")
    assert find_artemis(tmp_path)[1] == tmp_path / "wikiart"
    (tmp_path / "wikiart").rename(tmp_path / "Cubism")
    assert find_artemis(tmp_path)[1] == tmp_path
    (tmp_path / "other.csv").touch()
    with pytest.raises(InputError, match=r"got \['data.csv', 'other.csv'\]; name the file"):
        find_artemis(tmp_path)
    with pytest.raises(InputError, match=r"got \[\]"):
        find_artemis(tmp_path / "Cubism")
    with pytest.raises(InputError, match="there is no folder"):
        find_artemis(tmp_path / "none")
