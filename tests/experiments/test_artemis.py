"""The drawn ArtEmis: real files, a known truth, and where maps point on it."""

from __future__ import annotations

import csv
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from captum_clip import load_clip, maps, targets
from captum_clip.attr import LastGradAttention
from captum_clip.bench.emotions import find_artemis, read_artemis
from captum_clip.demo.catalog import CLASSES, EMOTIONS, FEELINGS
from captum_clip.targets import EmotionProbe
from captum_clip.targets.similarity import ClipSimilarity
from tests.experiments import experiment

artemis = experiment("artemis")
PAINTINGS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set."""
    return artemis.write_artemis(tmp_path_factory.mktemp("artemis"), paintings=PAINTINGS)


@pytest.mark.parametrize(("part", "count"), [("", PAINTINGS), ("held_out", PAINTINGS // 2)])
def test_files_are_those_of_the_data_set(folder, part, count):
    """Official name and columns, one image per painting, repetition = its number of rows."""
    with open(folder / part / artemis.ANNOTATIONS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == artemis.COLUMNS
    assert {row["emotion"] for row in rows} <= set(CLASSES)
    per_painting = Counter(row["painting"] for row in rows)
    assert all(int(row["repetition"]) == per_painting[row["painting"]] for row in rows)
    found = str(read_artemis(*find_artemis(folder / part)))
    assert found == f"{len(rows):,} rows read, {count} paintings kept; left out: nothing"
    names = {artemis.ANNOTATIONS, "emotion_truth", "images"} | ({"held_out"} - {part})
    assert set(os.listdir(folder / part)) == names


def test_truth_names_what_decides_and_where(folder):
    """Each emotion equally often; a face inside its mask, or all that no object covers."""
    truths = artemis.emotion_truth(folder)
    assert Counter(truth.emotion for truth in truths) == dict.fromkeys(EMOTIONS, PAINTINGS // 8)
    for truth in truths:
        with Image.open(truth.image) as image:
            assert truth.mask.shape == image.size[::-1] == (224, 224)
        if truth.kind == "local":
            assert truth.cause == f"{FEELINGS[truth.emotion]} face"
            assert 0.02 < truth.mask.mean() < 0.3
        else:
            assert truth.cause == artemis.GLOBAL[truth.emotion]
            assert truth.mask.mean() > 0.4


def test_pointing_equals_a_plain_loop(folder, tmp_path, capsys):
    """One emotion, image by image; and the command prints a line for each."""
    clip = load_clip("demo/vit")
    rows = np.random.default_rng(0).normal(size=(9, 128))
    probe = EmotionProbe(rows, np.zeros(9))
    rows_of_report = artemis.emotion_pointing(clip, probe, folder, method="mamooler")
    found = {one.emotion: one for one in rows_of_report}
    assert list(found) == list(EMOTIONS)
    target = targets.emotion(clip, probe, "awe")
    method = LastGradAttention(ClipSimilarity(clip, target))
    truths = [one for one in artemis.emotion_truth(folder) if one.emotion == "awe"]
    shares = []
    for truth in truths:
        raw = method.attribute(clip.preprocess(truth.image), target=0)
        heatmap = maps.upsample(raw, truth.mask.shape)[0, 0].double().numpy()
        shares.append(heatmap[truth.mask].sum() / heatmap.sum())
    assert found["awe"].images == len(truths) == 2
    assert found["awe"].energy == pytest.approx(np.mean(shares), abs=1e-5)
    assert found["awe"].chance == pytest.approx(np.mean([t.mask.mean() for t in truths]))
    file = str(probe.save(tmp_path / "p.safetensors"))
    artemis.main(["check", str(folder), "--model", "demo/vit", "--emotions", file])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:]] == list(EMOTIONS)
