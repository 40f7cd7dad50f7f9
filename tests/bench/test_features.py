"""Features of files: those of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip.errors import InputError
from captum_clip.folders.workers import image_features
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
        found = image_features(clip, paths, batch_size=batch_size)
        assert clip.computed == batches
        assert found.embeddings.dtype == np.float32
        np.testing.assert_allclose(found.embeddings, wanted.numpy(), atol=1e-6)
        assert (found.paths, found.skipped) == (tuple(paths), {})
        assert found.indices.tolist() == list(range(7))


def test_workers_change_nothing(clip, paths):
    """Decoding elsewhere gives the same bits."""
    wanted = image_features(clip, paths, batch_size=4)
    found = image_features(clip, paths, batch_size=4, workers=1)
    np.testing.assert_array_equal(found.embeddings, wanted.embeddings)


def test_files_that_cannot_be_read_are_left_out_with_a_reason(clip, paths, tmp_path):
    """Corrupt, truncated, huge, missing or no image; the others stay as they are."""
    wanted = image_features(clip, paths[1:3])
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(huge)
    missing = tmp_path / "none.jpg"
    listed = [broken, paths[1], text, missing, huge, paths[2], tmp_path]
    found = image_features(clip, listed)
    assert (found.paths, found.indices.tolist()) == ((paths[1], paths[2]), [1, 5])
    np.testing.assert_array_equal(found.embeddings, wanted.embeddings)
    assert list(found.skipped) == [broken, text, missing, huge, tmp_path]
    assert "there is no image file" in found.skipped[missing]
    assert "may be truncated or damaged" in found.skipped[broken]
    assert "not an image" in found.skipped[text]
    assert "decompression bomb" in found.skipped[huge]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` of 1 or more, got 0"),
        ({"batch_size": True}, "`batch_size` of 1 or more, got True"),
        ({"workers": -1}, "workers of 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(clip, paths, options, message):
    """By name."""
    with pytest.raises(InputError, match=message):
        image_features(clip, paths, **options)


def test_nothing_readable_is_refused(clip, tmp_path):
    with pytest.raises(InputError, match=r"none of the 1 images can be read; .*none\.jpg"):
        image_features(clip, [tmp_path / "none.jpg"])
    with pytest.raises(InputError, match="no file was given"):
        image_features(clip, [])
