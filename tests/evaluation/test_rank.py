"""The best images of a folder."""

from __future__ import annotations

import csv
import os
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import maps, targets
from captum_clip.attr import AttentionGradCam, DirectContribution
from captum_clip.errors import InputError, TargetError, UnsupportedModelError
from captum_clip.evaluation import features, rank
from captum_clip.similarity import ClipSimilarity
from tests import builders

COUNT = 9


@pytest.fixture(scope="module")
def clip():
    """A small model."""
    return builders.hf_vit().load()


@pytest.fixture
def folder(tmp_path):
    """Images in folders, one of them broken."""
    for seed in range(COUNT):
        path = tmp_path / "images" / f"{seed % 2}" / f"picture {seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def cosines(clip, folder, text):
    """Relative path -> score, one image at a time."""
    forward = ClipSimilarity(clip, targets.text(clip, text))
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with torch.no_grad():
            found[path.relative_to(folder)] = forward(clip.preprocess(path)).item()
    return found


def test_the_best_images_come_first(clip, folder):
    """By the cosine of image and text; what cannot be read is told apart."""
    scores = cosines(clip, folder, "a horse")
    found = rank(clip, folder, "a horse", top=4)
    assert list(found.files) == sorted(scores, key=lambda path: -scores[path])[:4]
    np.testing.assert_allclose(found.scores, [scores[path] for path in found.files], atol=1e-6)
    assert {explanation.names for explanation in found.explanations} == {("a horse",)}
    assert (found.ranked, list(found.skipped)) == (COUNT, [folder / "broken.jpg"])


def test_maps_are_those_of_the_method(clip, folder):
    """Positive, on the model's grid; by default those of `direct`."""
    target = targets.text(clip, "a horse")
    for method, kind in ((None, DirectContribution), ("attention-grad-cam", AttentionGradCam)):
        found = rank(clip, folder, target, top=2, method=method)
        attribution = kind(ClipSimilarity(clip, target))
        for path, explanation in zip(found.files, found.explanations, strict=True):
            pixels = clip.preprocess(folder / path)
            expected = maps.positive(attribution.attribute(pixels, target=0))
            torch.testing.assert_close(explanation.maps["positive"], expected)
            torch.testing.assert_close(explanation.images, clip.denormalize(pixels))


def test_more_than_there_are_gives_all(clip, folder):
    assert len(rank(clip, folder, "a horse", top=100).files) == COUNT


def test_save_writes_a_list_and_a_figure(clip, folder, tmp_path):
    """rank, file, score; names with commas and letters of any kind."""
    odd = folder / "a, „ä“.png"
    odd.write_bytes(next(folder.rglob("picture 0.png")).read_bytes())
    found = rank(clip, folder, "a horse", top=COUNT + 1)
    table, figure = found.save(tmp_path / "new" / "out")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(place) for place in range(1, COUNT + 2)]
    assert [row["file"] for row in rows] == [path.as_posix() for path in found.files]
    np.testing.assert_allclose([float(row["score"]) for row in rows], found.scores, atol=1e-6)
    with Image.open(figure) as image:
        image.verify()
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["ranking.csv", "ranking.png"]


def test_a_name_that_is_no_text_is_written_and_drawn(clip, folder, tmp_path):
    """As the file system has it."""
    name = os.fsdecode(b"\xff.png")
    (folder / name).write_bytes(next(folder.rglob("picture 0.png")).read_bytes())
    found = rank(clip, [folder / name], "a horse")
    table, _ = found.save(tmp_path / "out")
    assert b"\xff.png" in table.read_bytes()


def test_features_are_kept(clip, folder, tmp_path, monkeypatch):
    """The second search computes no feature."""
    first = rank(clip, folder, "a horse", top=1, cache=tmp_path / "features.npz")
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("was computed"))
    again = rank(clip, folder, "a horse", top=1, cache=tmp_path / "features.npz")
    assert (again.files, again.scores) == (first.files, first.scores)


BAD: list[Any] = [
    ("a horse", {"top": 0}, InputError, "top of 1 or more, got 0"),
    ("a horse", {"method": "none"}, InputError, "expected one of grad-cam"),
    ("a horse", {"method": "grad-cam"}, UnsupportedModelError, "convolutional"),
    ("a horse", {"workers": -1}, InputError, "workers of 0 or more"),
    (" ", {}, TargetError, "is empty"),
]


def test_what_cannot_be_ranked_is_refused(clip, folder) -> None:
    """Each with its reason."""
    for text, options, error, message in BAD:
        with pytest.raises(error, match=message):
            rank(clip, folder, text, **options)


def test_one_target_at_a_time(clip, folder):
    """Several have no common order."""
    with pytest.raises(TargetError, match=r"expected one target, got \['a', 'b'\]"):
        rank(clip, folder, targets.text(clip, ["a", "b"]))


def test_nothing_readable_is_refused(clip, folder, tmp_path):
    """With the first reason."""
    with pytest.raises(InputError, match=r"none of the 1 images can be read; .*broken\.jpg"):
        rank(clip, [folder / "broken.jpg"], "a horse")
    with pytest.raises(InputError, match="no file was given"):
        rank(clip, [], "a horse")
    with pytest.raises(InputError, match="there is no folder"):
        rank(clip, tmp_path / "none", "a horse")


def test_a_folder_for_results_that_cannot_be_is_refused(clip, folder, tmp_path):
    """A file in its place."""
    found = rank(clip, folder, "a horse", top=1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to: File exists"):
        found.save(tmp_path / "file")
