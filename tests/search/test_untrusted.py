"""An index is data from a stranger, its model may have changed, and its disk may be full."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import targets
from captum_clip.apps.search import ImageIndex
from captum_clip.apps.search_table import checksum
from captum_clip.errors import InputError
from tests import builders
from tests.search.conftest import COUNT, draw

NAME = "0/it''s 0.png"
SHAPE = (4, 4, 24)


def describe(index: ImageIndex, **changes: Any) -> None:
    """Write other settings into the table, as somebody else might."""
    [key] = index.table.schema.field("file").metadata
    about = json.loads(index.table.schema.field("file").metadata[key].partition(b" ")[2]) | changes
    content = json.dumps(about)
    settings = {key.decode(): f"{zlib.crc32(content.encode())} {content}"}
    index.table.update_field_metadata({"path": "file", "metadata": settings})


def test_names_that_lead_out_of_the_folder_are_refused(clip, folder, index, tmp_path):
    """Before a file is read, by a search and by a build; dots alone lead nowhere."""
    path, [row] = tmp_path / "index.lance", index.table.search().limit(1).to_list()
    where = f"modified = {row['modified']}"
    for name in ("../x.png", "a/../../x.png", "..", "/etc/x.png", None):
        index.table.update(where, {"file": name})
        for run in (ImageIndex.open, lambda path, clip: ImageIndex.build(clip, folder, path)):
            with pytest.raises(InputError, match=r"index of images in its folder.* 1 of the names"):
                run(path, clip)
    index.table.update(where, {"file": "..0/.../it's 0..png"})
    assert len(ImageIndex.open(path, clip)) == COUNT


def test_a_folder_on_another_machine_is_read_where_the_user_names_it(clip, tmp_path):
    """A table that lies here does not choose whom this machine asks for files."""
    import fsspec

    fsspec.filesystem("memory").pipe("/c/0.png", draw(tmp_path / "0.png", 0).read_bytes())
    path = tmp_path / "index.lance"
    index = ImageIndex.build(clip, "memory://c", path)
    for elsewhere in ("", "memory://d"):
        with pytest.raises(InputError, match=r"index\.lance indexes images at memory://c"):
            ImageIndex.open(path, clip, images=elsewhere)
    assert ImageIndex.open(path, clip, images="memory://c/").search("a").files == ("0.png",)
    describe(index, folder="simplecache::file:///etc")
    with pytest.raises(InputError, match="indexes images at simplecache::file:///etc"):
        ImageIndex.open(path, clip)


WRONG: dict[str, Any] = {
    "identity": [{}, [], {"weights": 1}, {"weights": "", "image_embeddings": ""}, None],
    "grid": [[2, 2], [2, 2, 25], [0, 2, 24], [True, 2, 24], "224", 10**30, None],
    "precision": ["int4", ["int8"], None],
    "image_size": ["24", 1.5],
    "model": [None, 3],
    "folder": [None, ["images"]],
    "method": [None],
    "format": ["captum_clip index 1", None],
}


def test_settings_of_another_kind_are_refused(clip, index, tmp_path):
    """Also an identity that names nothing, with which every model would agree."""
    about = index._table.about
    for name, values in WRONG.items():
        for value in values:
            describe(index, **about | {name: value})
            with pytest.raises(InputError, match="expected a table of the kind 'captum_clip index"):
                ImageIndex.open(tmp_path / "index.lance", clip)
    describe(index, **about)
    assert len(ImageIndex.open(tmp_path / "index.lance", clip)) == COUNT


def flip(index: ImageIndex, wanted: bytes) -> None:
    """Turn one bit of some bytes of the table on the disk."""
    for file in Path(index.table.uri).rglob("data/*.lance"):
        content = file.read_bytes()
        if wanted in content:
            file.write_bytes(content.replace(wanted, bytes([wanted[0] ^ 1]) + wanted[1:]))
            return
    pytest.fail("the bytes are not there")


@pytest.mark.parametrize("column", ["vector", "contributions", "scale"])
def test_a_row_that_is_damaged_is_named(index, column):
    """A bit of each column."""
    rows = index.table.search().where(f"file = '{NAME}'").to_arrow().to_pylist()
    value = rows[0][column]
    kept = value if column == "contributions" else np.float32(value).tobytes()
    flip(index, kept)
    name = NAME.replace("''", "'")
    for ask in (index.search, lambda text: index.explanation(name, text)):
        with pytest.raises(InputError, match=rf"1 rows are damaged: {name}\).*delete it"):
            ask("a horse")


def test_text_weights_that_changed_after_the_opening_are_noticed(folder, tmp_path):
    """And a hook that came; without it the index answers again."""
    clip = builders.hf_vit().load()
    index = ImageIndex.build(clip, folder, tmp_path / "index.lance")
    other = ImageIndex.open(tmp_path / "index.lance", clip)

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.5

    handle = clip.model.text_projection.register_forward_hook(hook)
    for each in (index, other):
        with pytest.raises(InputError, match="embeds texts differently; open it with that model"):
            each.search("a horse")
    handle.remove()
    assert len(other.search("a horse").files) == COUNT
    with torch.no_grad():
        clip.model.text_projection.weight.mul_(torch.linspace(0.5, 1.5, 24)[:, None])
    with pytest.raises(InputError, match="embeds texts differently"):
        index.explanation(index.files[0], "a horse")


@pytest.mark.parametrize("change", ["weights", "processor"])
def test_an_image_as_target_needs_the_image_side_that_made_the_index(folder, tmp_path, change):
    """Texts that agree say nothing of it."""
    clip, path = builders.hf_vit().load(), tmp_path / "index.lance"
    ImageIndex.build(clip, folder, path)
    target = targets.image(clip, next(folder.rglob("*.png")))
    assert ImageIndex.open(path, clip).search(target, 1).scores[0] == pytest.approx(1, abs=1e-5)
    if change == "processor":
        clip.processor.image_mean = [0.1, 0.2, 0.9]
    else:
        with torch.no_grad():
            clip.model.visual_projection.weight.mul_(torch.linspace(0.5, 1.5, 24)[:, None])
    index = ImageIndex.open(path, clip)
    for wanted in (target, targets.concatenate([target, targets.text(clip, "a horse")])):
        with pytest.raises(InputError, match="embeds images differently"):
            index.search(wanted)


def test_a_drawing_needs_the_preprocessing_that_made_the_index(folder, tmp_path):
    """Else the map of one crop would lie on another."""
    clip, path = builders.hf_vit().load(), tmp_path / "index.lance"
    index = ImageIndex.build(clip, folder, path)
    side = clip.processor.crop_size["height"]
    clip.processor.resample = 2  # the place is the same
    assert len(index.search("a horse").files) == COUNT
    clip.processor.size = {"shortest_edge": 2 * side}
    for each in (index, ImageIndex.open(path, clip)):
        with pytest.raises(InputError, match="crops or scales images differently"):
            each.search("a horse")


def test_a_folder_of_the_users_is_no_index_and_stays(clip, folder, tmp_path):
    """Nor is it said to delete it."""
    path = tmp_path / "photos.lance"
    draw(path / "mine.png", 0)
    for run in (ImageIndex.open, lambda path, clip: ImageIndex.build(clip, folder, path)):
        with pytest.raises(
            InputError, match=r"photos\.lance is not an index.*; name another"
        ) as said:
            run(path, clip)
        assert "delete" not in str(said.value)
    assert os.listdir(path) == ["mine.png"]


def test_a_full_disk_asks_for_room(clip, folder, index, tmp_path, monkeypatch):
    """Nothing is damaged, so nothing is to be deleted."""
    draw(folder / "new.png", 100)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("lance error: IO error: No space left on device (os error 28), /src/x.rs:1")

    monkeypatch.setattr(type(index.table), "add", full)
    with pytest.raises(InputError, match="make room and run it again") as said:
        ImageIndex.build(clip, folder, tmp_path / "index.lance")
    assert "delete" not in str(said.value)


def spoil(path: Path) -> Path:
    """An image that is none any more."""
    path.write_bytes(b"no image")
    return path


DAMAGED = r"1 rows are damaged.*delete it and build it again"


def test_listed_files_have_whole_names_without_steps_back(clip, tmp_path):
    """So an index of them is no stranger's."""
    draw(tmp_path / "a.png", 0)
    (tmp_path / "b").mkdir()
    path = tmp_path / "index.lance"
    ImageIndex.build(clip, [tmp_path / "b" / ".." / "a.png"], path)
    assert ImageIndex.open(path, clip).files == [(tmp_path / "a.png").as_posix()]


def test_rows_of_other_settings_are_damage(clip, index, tmp_path):
    """Also where the checksum of the settings is right: a row knows what its numbers are."""
    about = index._table.about
    for changes in (
        {"grid": [2, 8, 24]},
        {"method": "direct:depth=token"},
        {"identity": about["identity"] | {"weights": "0" * 64}},
    ):
        describe(index, **about | changes)
        with pytest.raises(InputError, match=f"{COUNT} rows are damaged: .*delete it and build"):
            ImageIndex.open(tmp_path / "index.lance", clip).search("a horse")


NOT_ROWS: list[dict[str, Any]] = [
    {"contributions": np.full(SHAPE, np.nan, np.float16).tobytes()},
    {"scale": np.inf},
    {"contributions": None},
    {"contributions": b"1"},
]


def test_numbers_that_are_none_are_damage_whatever_their_checksum(clip, folder, tmp_path):
    """NaN, infinity, none, and fewer than the grid has."""
    index = ImageIndex.build(clip, folder, tmp_path / "index.lance", precision="float16")
    where = f"file = '{NAME}'"
    [whole] = index.table.search().where(where).to_arrow().to_pylist()
    vector = np.array(whole["vector"], np.float32)
    for changes in ({}, *NOT_ROWS, {}):
        row = {name: whole[name] for name in ("contributions", "scale")} | changes
        blob = row["contributions"] or b""
        index.table.update(
            where, row | {"checksum": checksum(vector, blob, row["scale"], index._table.about)}
        )
        if changes:
            with pytest.raises(InputError, match=DAMAGED):
                index.search("a horse")
        else:
            assert len(index.search("a horse").files) == COUNT


def test_a_vector_of_nan_is_damage_although_no_query_finds_it(index):
    """LanceDB leaves such a row out without a word."""
    [row] = index.table.search().where(f"file = '{NAME}'").to_arrow().to_pylist()
    kept = np.float32(row["vector"])
    for file in Path(index.table.uri).rglob("data/*.lance"):
        nothing = np.full_like(kept, np.nan).tobytes()
        file.write_bytes(file.read_bytes().replace(kept.tobytes(), nothing))
    with pytest.raises(InputError, match=DAMAGED):
        index.search("a horse")
