"""The demo's own ArtEmis: real files, a known truth, and the whole path through them."""

from __future__ import annotations

import csv
import itertools
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import load_clip, maps, metrics, targets
from captum_clip.attr import LastGradAttention
from captum_clip.demo.artemis import HELD_OUT, paintings
from captum_clip.demo.artemis.paintings import GLOBAL, LOCAL, NEUTRAL
from captum_clip.demo.catalogue import FEELINGS
from captum_clip.demo.scenes import draw_scene
from captum_clip.emotions import CLASSES, EMOTIONS, find_artemis, read_artemis
from captum_clip.emotions.artemis import COLUMNS, FILE_NAME
from captum_clip.errors import InputError, TargetError
from captum_clip.similarity import ClipSimilarity
from captum_clip.studies import (
    emotion_pointing,
    emotion_truth,
    fit_emotions,
    score_emotions,
    write_demo_artemis,
)

PAINTINGS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set."""
    return write_demo_artemis(tmp_path_factory.mktemp("artemis"), paintings=PAINTINGS)


@pytest.fixture(scope="module")
def clip():
    """The embedded model, whatever its weights."""
    return load_clip("demo/vit")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Features of the small data set."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def probe(clip, folder, cache):
    """Fitted on the small data set."""
    return fit_emotions(clip, read_artemis(*find_artemis(folder)), cache=cache)[0]


def rows_of(folder):
    """The rows of the CSV file."""
    with open(folder / FILE_NAME, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("part", "count"), [("", PAINTINGS), (HELD_OUT, PAINTINGS // 2)])
def test_files_are_those_of_the_data_set(folder, part, count):
    """Official name and columns, one image per painting, repetition = its number of rows."""
    with open(folder / part / FILE_NAME, encoding="utf-8") as file:
        assert file.readline().strip() == ",".join(COLUMNS)
    rows = rows_of(folder / part)
    assert set(Counter(row["emotion"] for row in rows)) <= set(CLASSES)
    per_painting = Counter(row["painting"] for row in rows)
    assert all(int(row["repetition"]) == per_painting[row["painting"]] for row in rows)
    for row in rows:
        path = folder / part / "images" / row["art_style"] / f"{row['painting']}.jpg"
        assert path.is_file()
    report = read_artemis(*find_artemis(folder / part)).report
    assert str(report) == f"{len(rows):,} rows read, {count} paintings kept; left out: nothing."


def test_truth_says_what_decides_and_where(folder):
    """Each emotion equally often; a face inside its mask, or all that no object covers."""
    truths = emotion_truth(folder)
    assert Counter(truth.emotion for truth in truths) == dict.fromkeys(EMOTIONS, PAINTINGS // 8)
    for truth in truths:
        with Image.open(truth.image) as image:
            assert truth.mask.shape == image.size[::-1] == (224, 224)
        if truth.kind == "local":
            assert truth.cause == f"{FEELINGS[truth.emotion]} face"
            assert 0.02 < truth.mask.mean() < 0.3
        else:
            assert truth.cause == GLOBAL[truth.emotion]
            assert truth.mask.mean() > 0.4
    assert set(LOCAL) | set(GLOBAL) == set(EMOTIONS)
    assert not set(NEUTRAL) & set(GLOBAL.values())


def test_most_votes_are_for_the_truth_and_some_are_not(folder):
    """Noise, also of something else."""
    data = read_artemis(*find_artemis(folder))
    drawn = {truth.image: EMOTIONS.index(truth.emotion) for truth in emotion_truth(folder)}
    true = sum(painting.votes[drawn[painting.image]] for painting in data.paintings)
    assert 0.6 < true / data.votes.sum() < 0.8
    assert 0.04 < data.votes[:, 8].sum() / data.votes.sum() < 0.16


def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    """To the byte; another seed gives others."""
    again = write_demo_artemis(tmp_path / "a", paintings=PAINTINGS)
    other = write_demo_artemis(tmp_path / "b", paintings=16, seed=1)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".npz":
            assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert rows_of(other) != rows_of(folder)[: len(rows_of(other))]


def test_split_of_the_scenes_follows_the_part(tmp_path, monkeypatch):
    """The first part asks for seen faces, the other one for held-out ones."""
    whole, asked = draw_scene, []

    def spy(seed, **options):
        asked.append(options["split"])
        return whole(seed, **options)

    monkeypatch.setattr(paintings, "draw_scene", spy)
    write_demo_artemis(tmp_path, paintings=16)
    assert asked == ["train"] * 16 + ["test"] * 8


def test_nothing_else_is_in_the_folder(folder):
    """No temporary file; the truth holds no picture that a study would take for an image."""
    assert sorted(os.listdir(folder)) == sorted([FILE_NAME, HELD_OUT, "emotion_truth", "images"])
    assert sorted(os.listdir(folder / "emotion_truth")) == ["masks.npz", "truth.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"paintings": 15}, "paintings of 16 or more, got 15"), ({"seed": -1}, "a seed of 0 or more")],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, message):
    """Before anything is written."""
    with pytest.raises(InputError, match=message):
        write_demo_artemis(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    """A file in its place."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        write_demo_artemis(tmp_path / "file", paintings=16)


def test_other_folders_hold_no_truth(tmp_path, folder):
    """Nor do damaged ones."""
    with pytest.raises(InputError, match="holds no truth that 'captum-clip emotions demo-data'"):
        emotion_truth(tmp_path)
    (tmp_path / "emotion_truth").mkdir()
    (tmp_path / "emotion_truth/truth.csv").write_bytes(
        (folder / "emotion_truth/truth.csv").read_bytes()
    )
    whole = (folder / "emotion_truth/masks.npz").read_bytes()
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\1\2") + 8] |= 1
    flipped = bytearray(whole)
    flipped[200] ^= 255
    for content in (b"nothing", b"", whole[: len(whole) // 2], bytes(encrypted), bytes(flipped)):
        (tmp_path / "emotion_truth/masks.npz").write_bytes(content)
        with pytest.raises(InputError, match="holds no truth"):
            emotion_truth(tmp_path)


# From files to a probe and to maps


def test_a_probe_on_files_beats_the_majority(clip, folder, cache, probe):
    """On held-out paintings of the same faces and on held-out faces."""
    assert (probe.model, probe.fingerprint) == (clip.name, clip.fingerprint)
    test = read_artemis(*find_artemis(folder / HELD_OUT))
    scores, skipped = score_emotions(clip, probe, test, cache=cache)
    assert skipped == {}
    for found in (probe.scores, scores):
        assert found.all.nine > found.all.majority_nine + 0.1


def test_images_that_cannot_be_read_are_left_out(clip, folder, tmp_path, cache, probe):
    """With their votes; the others have their own."""
    copy = tmp_path / "copy"
    write_demo_artemis(copy, paintings=PAINTINGS)
    broken = sorted((copy / "images").rglob("*.jpg"))[3]
    broken.write_bytes(b"no image")
    data = read_artemis(*find_artemis(copy))
    found, skipped = fit_emotions(clip, data, cache=cache, held_out=0)
    assert list(skipped) == [broken]
    assert found.settings is not None
    assert found.settings.paintings == PAINTINGS - 1
    kept = data.votes[[path != broken for path in data.images]]
    assert found.settings.votes == tuple(kept.sum(0).tolist())


def test_a_data_set_is_not_written_over(folder):
    """Paintings of another size or seed would stay among the new ones."""
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(InputError, match="holds a data set already"):
        write_demo_artemis(folder, paintings=16)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_nothing_to_read_is_refused(clip, tmp_path, cache):
    """With the first reason."""
    write_demo_artemis(tmp_path, paintings=16)
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 16 images can be read"):
        fit_emotions(clip, read_artemis(*find_artemis(tmp_path)), cache=cache)


@pytest.mark.parametrize("option", [{"seed": -1}, {"held_out": 1.0}, {"strength": 0.0}])
def test_options_of_a_fit_are_checked_before_the_features(clip, folder, tmp_path, option):
    """Which take hours."""
    data = read_artemis(*find_artemis(folder))
    with pytest.raises(InputError, match=f"expected .*{next(iter(option))}"):
        fit_emotions(clip, data, cache=tmp_path / "cache", **option)
    assert os.listdir(tmp_path) == []


def test_pointing_equals_a_plain_loop(clip, folder, probe):
    """One emotion, image by image."""
    found = {one.emotion: one for one in emotion_pointing(clip, probe, folder / HELD_OUT)}
    assert list(found) == list(EMOTIONS)
    for emotion in ("anger", "awe"):
        target = targets.emotion(clip, probe, emotion)
        method = LastGradAttention(ClipSimilarity(clip, target))
        truths = [one for one in emotion_truth(folder / HELD_OUT) if one.emotion == emotion]
        hits, shares = [], []
        for truth in truths:
            raw = method.attribute(clip.preprocess(truth.image), target=0)
            heatmap = maps.upsample(raw, truth.mask.shape)[0, 0].double().numpy()
            hits.append(truth.mask.reshape(-1)[heatmap.argmax()])
            shares.append(heatmap[truth.mask].sum() / heatmap.sum())
        assert found[emotion].images == len(truths) == 4
        assert found[emotion].pointing == pytest.approx(np.mean(hits), abs=0.26)
        assert found[emotion].energy == pytest.approx(np.mean(shares), abs=1e-5)
        assert found[emotion].chance == pytest.approx(np.mean([t.mask.mean() for t in truths]))
        assert found[emotion].kind == truths[0].kind


@pytest.mark.parametrize(("values", "empty"), [((0.0, 0.0), 4), ((1.0, 0.0), 2)])
def test_pointing_counts_maps_without_heat_apart(clip, folder, probe, monkeypatch, values, empty):
    """They have no part in the energy, and count as constant in the pointing."""
    given = itertools.cycle(values)

    def constant(self, pixels, **_):
        return torch.full((len(pixels), 1, 7, 7), next(given))

    monkeypatch.setattr(LastGradAttention, "attribute_targets", constant)
    for one in emotion_pointing(clip, probe, folder / HELD_OUT):
        assert (one.images, one.without_heat) == (4, empty)
        assert np.isnan(one.energy) == (empty == 4)
        assert one.pointing == pytest.approx(one.chance, abs=1e-6)


def test_pointing_refuses_a_probe_of_another_model(folder, probe):
    """By its fingerprint."""
    with pytest.raises(TargetError, match="another fingerprint"):
        emotion_pointing(load_clip("demo/resnet"), probe, folder)


def test_masks_and_metrics_agree_about_a_perfect_map(folder):
    """A map that is the mask itself points and has all its energy inside."""
    for truth in emotion_truth(folder)[:8]:
        mask = torch.from_numpy(truth.mask)
        assert metrics.pointing_game(mask.float(), mask) == 1
        assert metrics.energy_inside(mask.float(), mask) == 1
