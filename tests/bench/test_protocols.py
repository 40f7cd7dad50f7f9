"""Other people's protocols in the harness: one image at a time, and from their own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captum_clip import metrics, targets
from captum_clip.bench.data.demo import DemoMosaics
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.tasks import TASKS
from tests.bench.cases import (
    KINDS,
    Listed,
    context,
    direct,
    measured,
    model,
    on_batch,
    rows,
    same_rows,
)
from tests.bench.data.writing import LEFT, converted, noise, save, save_numbers
from tests.bench.test_tasks import Broken


@pytest.mark.parametrize("name", list(KINDS))
def test_grid_is_the_share_of_cells_that_are_known_alone(name: str) -> None:
    clip, data = model(name), DemoMosaics(6)
    classes = targets.text(clip, list(data.classes)).embeddings
    owners, wanted, unsure = [], [], 0
    for number in range(len(data)):
        sample = data.read(number)
        [pixels] = clip.preprocess([sample.image])
        for region in sample.regions:
            places = region.mask.nonzero()
            top, left = int(places[0].min()), int(places[1].min())
            alone = sample.image.crop((left, top, left + 112, top + 112))
            scores = (clip.encode_image(clip.preprocess([alone])) @ classes.T)[0]
            assert region.label is not None
            if (100 * scores).softmax(0)[region.label] < 0.5:
                unsure += 1
                continue
            row = targets.text(clip, data.classes[region.label]).embeddings[0]
            heatmap = direct(clip, KINDS[name][1], pixels, row).clamp(min=0)
            owners.append(number)
            wanted.append(metrics.energy_inside(heatmap, torch.from_numpy(region.mask)))
    assert wanted
    got = measured("grid", context(clip, data), KINDS[name][0])
    same_rows(got["grid_pg"], rows(owners, wanted), 1e-4)


def test_cells_of_another_class_are_no_cells_of_the_grid() -> None:
    """The model sees a horse, so what is called a dog is not asked for."""
    data = DemoMosaics(2)
    samples = [data.read(number) for number in range(2)]
    moved = [
        replace(s, regions=tuple(replace(r, label=((r.label or 0) + 1) % 9) for r in s.regions))
        for s in samples
    ]
    listed = Listed(*moved, classes=data.classes)
    assert measured("grid", context(model("demo/vit"), listed), "random") == {}
    first = samples[0]
    region = replace(first.regions[0], label=0)
    own = f"a {region.text}"
    for classes, found in (((own, "a phone"), {"grid_pg"}), ((own, own, own), set())):
        alone = Listed(replace(first, regions=(region,)), classes=classes)
        got = measured("grid", context(model("demo/vit"), alone), "random")
        assert set(got) == found  # of three equal classes none has half of the probability
    asked = on_batch(context(model("demo/vit"), data), Broken(*data.classes))
    assert [*TASKS["grid"].measure(asked)] == []
    assert {reason.partition(" the map")[0] for _, reason, _ in asked.skipped} == {"broken:"}


def make_mosaics(folder: Path) -> str:
    for gray, name in enumerate(("horse", "dog", "donut", "phone")):
        for number in range(2):
            save(
                Image.new("RGB", (40, 40), (60 * gray, 9, number)), folder / f"{name}/{number}.png"
            )
    return converted("mosaics", folder, "--template", "a {}")


def make_imagenet_s(folder: Path) -> str:
    for number, name in enumerate(("n01440764", "n02007558"), start=1):
        save(noise(seed=number), folder / f"validation/{name}/one.JPEG")
        save_numbers(number * LEFT, folder / f"validation-segmentation/{name}/one.png")
    (folder / "classnames.txt").write_text("n01440764\thorse\nn02007558\tdog\n")
    return converted("imagenet-s", folder, "--template", "a {}")


@pytest.mark.parametrize(
    ("make", "measures"),
    [
        (make_mosaics, {"words_1", "word_energy_1", "caption_2"}),
        (make_imagenet_s, {"legrad_mean_iou", "legrad_map", "mean_iou"}),
    ],
)
def test_protocols_run_on_their_own_files(make: Any, measures: set[str], tmp_path: Path) -> None:
    config = EvaluationConfig(
        *("demo/vit", str(tmp_path / "out")),
        data=(make(tmp_path / "data"),),
        methods=("last-grad", "random"),
        resamples=20,
        draws=4,
    )
    table = evaluate(config).table
    assert measures <= set(table["metric"])
    assert set(table["method"]) == {"last-grad", "random", "uniform", "center"}
