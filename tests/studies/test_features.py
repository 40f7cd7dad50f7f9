"""Features of files: computed once, kept whole, and never those of another image or model."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.models.images import read_file
from captum_clip.studies import features, find_images, image_features
from captum_clip.studies.feature_cache import FeatureCache, default_cache
from tests import builders


@pytest.fixture(scope="module")
def clip():
    """A small model that counts its forwards."""
    adapter = builders.hf_vit().load()
    whole = adapter.encode_image
    adapter.computed = []

    def encode(images):
        adapter.computed.append(len(images))
        return whole(images)

    adapter.encode_image = encode
    return adapter


@pytest.fixture
def count(clip):
    """How many images were computed since it was last asked."""
    clip.computed.clear()

    def asked():
        total = sum(clip.computed)
        clip.computed.clear()
        return total

    return asked


def draw(path, seed):
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24 + seed, 30, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def paths(tmp_path):
    """Seven pictures of different sizes."""
    return [draw(tmp_path / "images" / f"{seed}.png", seed) for seed in range(7)]


def test_rows_are_the_models_own_unit_features(clip, paths):
    """In single precision, in the order of the files, in batches of any size."""
    with torch.no_grad():
        wanted = torch.cat([clip.encode_image(clip.preprocess(path)) for path in paths])
    for batch_size, batches in ((1, [1] * 7), (3, [3, 3, 1]), (16, [7])):
        clip.computed.clear()
        found = image_features(clip, paths, cache=False, batch_size=batch_size)
        assert clip.computed == batches
        assert found.rows.dtype == np.float32
        np.testing.assert_allclose(found.rows, wanted.numpy(), atol=1e-6)
        assert (found.paths, found.indices, found.skipped) == (tuple(paths), tuple(range(7)), {})


def test_workers_change_nothing(clip, paths):
    """Decoding elsewhere gives the same bits."""
    wanted = image_features(clip, paths, cache=False, batch_size=4)
    found = image_features(clip, paths, cache=False, batch_size=4, workers=1)
    np.testing.assert_array_equal(found.rows, wanted.rows)


def test_nothing_is_computed_twice(clip, paths, tmp_path, count):
    """Under another name, twice in a list, or in another run; a changed file is."""
    cache = tmp_path / "cache"
    first = image_features(clip, paths[:5], cache=cache)
    assert count() == 5
    copy = draw(tmp_path / "other" / "copy.png", 2)
    again = image_features(clip, [paths[6], copy, paths[6], *paths[:5]], cache=str(cache))
    assert count() == 1
    np.testing.assert_array_equal(again.rows[3:], first.rows)
    np.testing.assert_array_equal(again.rows[1], first.rows[2])
    np.testing.assert_array_equal(again.rows[0], again.rows[2])
    draw(paths[0], 20)
    image_features(clip, paths[:5], cache=cache)
    assert count() == 1


def test_another_model_has_features_of_its_own(clip, paths, tmp_path, count):
    """By its fingerprint, in one cache."""
    other = builders.hf_vit(seed=1).load()
    cache = tmp_path / "cache"
    mine = image_features(clip, paths, cache=cache)
    theirs = image_features(other, paths, cache=cache)
    assert np.abs(mine.rows - theirs.rows).max() > 0.1
    assert sorted(os.listdir(cache)) == sorted([clip.fingerprint, other.fingerprint])


def test_without_a_cache_nothing_is_written(clip, paths, tmp_path, monkeypatch, count):
    """And nothing is read."""
    monkeypatch.setenv("CAPTUM_CLIP_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        image_features(clip, paths, cache=False)
        assert count() == 7
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_user_wants_it(clip, paths, tmp_path, monkeypatch):
    """The package's own variable, then the system's, then the home folder."""
    for name in ("CAPTUM_CLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "captum_clip" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "captum_clip" / "features"
    monkeypatch.setenv("CAPTUM_CLIP_CACHE", str(tmp_path / "own"))
    image_features(clip, paths)
    assert os.listdir(tmp_path / "own" / "features") == [clip.fingerprint]


def test_files_that_cannot_be_read_are_left_out_with_a_reason(clip, paths, tmp_path):
    """Corrupt, truncated, huge, missing or no image; the others stay as they are."""
    wanted = image_features(clip, paths[1:3], cache=False)
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(huge)
    missing = tmp_path / "none.jpg"
    listed = [broken, paths[1], text, missing, huge, paths[2], tmp_path]
    found = image_features(clip, listed, cache=tmp_path / "cache")
    assert (found.paths, found.indices) == ((paths[1], paths[2]), (1, 5))
    np.testing.assert_array_equal(found.rows, wanted.rows)
    assert list(found.skipped) == [broken, text, missing, huge, tmp_path]
    assert "there is no image file" in found.skipped[missing]
    assert "may be truncated or damaged" in found.skipped[broken]
    assert "not an image" in found.skipped[text]
    assert "decompression bomb" in found.skipped[huge]


def test_a_file_is_read_once_and_its_row_is_that_of_these_bytes(clip, paths, tmp_path, monkeypatch):
    """Whatever is in it a moment later: the cache must not keep another picture's row under it."""
    wanted = image_features(clip, paths[:2], cache=False, batch_size=1).rows
    times = []

    def read_and_change(path):
        content = read_file(path)
        times.append(path)
        path.write_bytes(paths[5].read_bytes())
        return content

    with monkeypatch.context() as patch:
        patch.setattr(features, "read_file", read_and_change)
        found = image_features(clip, [*paths[:2], paths[0]], cache=tmp_path, batch_size=1)
    assert times == paths[:2]
    np.testing.assert_array_equal(found.rows, wanted[[0, 1, 0]])
    draw(paths[0], 0)
    again = image_features(clip, paths[:1], cache=tmp_path, batch_size=1)
    np.testing.assert_array_equal(again.rows, wanted[:1])


def test_a_named_pipe_is_left_out(clip, paths, tmp_path):
    """Opened, it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    found = image_features(clip, [tmp_path / "pipe.png", paths[0]], cache=False)
    assert found.paths == (paths[0],)
    assert "is not a file but a pipe" in found.skipped[tmp_path / "pipe.png"]


def test_narrow_pictures_are_left_out(clip, paths, tmp_path):
    """They do not end a search among thousands."""
    Image.new("1", (60000, 1)).save(tmp_path / "bomb.png")
    found = image_features(clip, [tmp_path / "bomb.png", paths[0]], cache=False)
    assert found.paths == (paths[0],)
    assert "too long and narrow" in found.skipped[tmp_path / "bomb.png"]


def test_files_of_equal_content_have_reasons_of_their_own(clip, tmp_path):
    """Each by its own path."""
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(b"no image")
    found = image_features(clip, files, cache=False)
    for file in files:
        assert found.skipped[file] == f"{file} is not an image that Pillow can read."


def test_nothing_readable_gives_no_rows(clip, tmp_path):
    """And no list at all either."""
    found = image_features(clip, [tmp_path / "none.jpg"], cache=False)
    assert (len(found.rows), found.paths, len(found.skipped)) == (0, (), 1)
    assert len(image_features(clip, [], cache=False).rows) == 0


def damage_a_row(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def damage_a_key(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def replace_by_text(path):
    path.write_text("no features" * 100)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [(damage_a_row, 1), (damage_a_key, 1), (cut, 1), (replace_by_text, 7)],
)
def test_damaged_entries_are_computed_again(clip, paths, tmp_path, count, damage, lost):
    """Only these, and right."""
    cache = tmp_path / "cache"
    wanted = image_features(clip, paths, cache=cache)
    [file] = (cache / clip.fingerprint).iterdir()
    damage(file)
    count()
    found = image_features(clip, paths, cache=cache)
    assert count() == lost
    np.testing.assert_allclose(found.rows, wanted.rows, atol=1e-6)
    image_features(clip, paths, cache=cache)
    assert count() == 0


def test_writers_do_not_disturb_each_other(tmp_path):
    """Two at a time, each with a file of its own."""
    generator = np.random.default_rng(0)
    keys = [generator.bytes(32) for _ in range(40)]
    rows = generator.normal(size=(40, 5)).astype(np.float32)
    writers = FeatureCache(tmp_path), FeatureCache(tmp_path)
    for index, key in enumerate(keys):
        writers[index % 2].append([(key, rows[index])])
    assert len(os.listdir(tmp_path)) == 2
    found = FeatureCache(tmp_path)
    assert len(found) == 40
    for key, row in zip(keys, rows, strict=True):
        np.testing.assert_array_equal(found[key], row)
    assert b"x" * 32 not in found


def test_many_images_make_few_files(clip, paths, tmp_path):
    """One a run that computed something, none for a run that did not."""
    cache = tmp_path / "cache"
    for some in (paths[:3], paths, paths):
        image_features(clip, some, cache=cache, batch_size=1)
    assert len(os.listdir(cache / clip.fingerprint)) == 2


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_did(tmp_path):
    """Batch by batch; the next run computes the rest."""
    script = tmp_path / "append.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            import numpy as np
            from captum_clip.studies.feature_cache import FeatureCache
            cache = FeatureCache(Path(sys.argv[1]))
            for number in range(10**6):
                key = number.to_bytes(32, "little")
                cache.append([(key, np.full(64, number, dtype=np.float32))])
                time.sleep(0.001)
            """
        )
    )
    cache = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(script), str(cache)], env=environment)
    keys = [number.to_bytes(32, "little") for number in range(10**4)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (cache.is_dir() and len(FeatureCache(cache)) > 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = FeatureCache(cache)
    assert len(found) > 20
    assert list(found) == keys[: len(found)]
    assert all((row == number).all() for number, row in enumerate(found.values()))


def test_a_cache_that_cannot_be_written_is_said(clip, paths, tmp_path):
    """With what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be kept in .* set CAPTUM_CLIP_CACHE"):
        image_features(clip, paths, cache=tmp_path / "file")


def test_a_full_disk_is_said(clip, paths, tmp_path, monkeypatch):
    """In the middle of a run."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    class Full(io.RawIOBase):
        writable = seekable = lambda _: True
        write = fail

    for stand_in in (fail, lambda *_: io.BufferedWriter(Full())):
        monkeypatch.setattr("captum_clip.studies.feature_cache.open", stand_in, raising=False)
        with pytest.raises(InputError, match="No space left on device"):
            image_features(clip, paths, cache=tmp_path)


def test_a_worker_that_dies_is_said(clip, paths, monkeypatch):
    """With what to do."""
    parent = os.getpid()

    def die(*_):
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("captum_clip.studies.features.decode_file", die)
    with pytest.raises(InputError, match=r"a process that decodes images died.*take fewer workers"):
        image_features(clip, paths, cache=False, workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"batch_size": True}, "batch_size of 1 or more, got True"),
        ({"workers": -1}, "workers of 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(clip, paths, options, message):
    """By name."""
    with pytest.raises(InputError, match=message):
        image_features(clip, paths, cache=False, **options)


def test_images_are_found_in_folders_of_folders(tmp_path):
    """Sorted, by their endings in any case; nothing hidden."""
    names = ["b.jpg", "a/z.PNG", "a/b/c.webp", "c.jpeg"]
    for name in [*names, "notes.txt", ".hidden.jpg", ".git/x.jpg", "a/._b.jpg", "jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(str(tmp_path)) == sorted(tmp_path / name for name in names)


def test_a_folder_without_images_is_refused(tmp_path):
    """So is one that is not there."""
    with pytest.raises(InputError, match="there is no image file"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        find_images(tmp_path / "none")
