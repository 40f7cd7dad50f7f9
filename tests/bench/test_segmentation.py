"""Label images: mIoU as mmsegmentation and torchmetrics count it, windows, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional import classification

from captum_clip import ClipSimilarity, load_clip, maps, targets
from captum_clip.bench.data.base import Sample
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.methods import Method, method_of, methods_for
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.table import Queries
from captum_clip.bench.tasks import TASKS
from captum_clip.bench.tasks.localization import _maps_of_classes
from captum_clip.maps import threshold_level
from captum_clip.models import ClipAdapter
from tests.bench.cases import Listed, context, joined, model, on_batch, picture
from tests.bench.data.writing import noise, save
from tests.photographs import write_samples

CLASSES = ("a horse", "a red barn", "a dog", "a fish")
SIZES = ((20, 30), (33, 21), (24, 24))


def write(folder: Path, background: bool) -> dict[str, np.ndarray]:
    """Photos of three sizes with label images, and maps of all classes in maps/; stem -> maps.

    Numbers with the background, or what is ignored, as 0 are in numbers/.
    """
    written, records = {}, []
    first = len(CLASSES) if background else 255
    draw = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        raw = draw.random((len(CLASSES), *size), dtype=np.float32) - 0.3
        raw[:, :4, :4] = -1  # where nothing supports any class
        numbers = raw[[0, 2, 3]].argmax(0).astype(np.uint8)  # the second class is never true
        numbers = np.array([1, 3, 4], dtype=np.uint8)[numbers]
        numbers[draw.random(size) < 0.4] = 0
        numbers[draw.random(size) < 0.2] = 255
        save(noise(size, number), folder / f"images/{number}.png")
        save(Image.fromarray(numbers), folder / f"numbers/{number}.png")
        labels = np.where(numbers == 255, 255, np.where(numbers == 0, first, numbers - 1))
        save(Image.fromarray(labels.astype(np.uint8)), folder / f"labels/{number}.png")
        (folder / "maps").mkdir(exist_ok=True)
        np.savez(folder / f"maps/{number}.npz", maps=raw, names=np.array(CLASSES))
        written[str(number)] = raw
        records.append({"image": f"images/{number}.png", "labels": f"labels/{number}.png"})
    about = {"classes": CLASSES, "background": background}
    write_samples(folder, about, *records)
    return written


def mmsegmentation(found: Tensor, truth: Tensor, count: int) -> tuple[float, float]:
    """MIoU and aAcc by the formulas of its `intersect_and_union`: histograms, then `nanmean`."""
    found, truth = found[truth != 255], truth[truth != 255]
    areas = [  # what is of no class is in no bin
        torch.histc(part.float(), bins=count, min=0, max=count - 1)
        for part in (found[found == truth], found, truth)
    ]
    iou = areas[0] / (areas[1] + areas[2] - areas[0])
    return float(np.nanmean(iou.numpy())), float(areas[0].sum() / areas[2].sum())


@pytest.mark.parametrize("background", [True, False])
def test_figures_are_those_of_mmsegmentation_and_torchmetrics(
    tmp_path: Path, vit: str, background: bool
) -> None:
    """Over all pixels of all images, of maps made elsewhere, which lie on the whole photo."""
    written = write(tmp_path, background)
    config = EvaluationConfig(
        *(vit, str(tmp_path / "out"), (f"samples:{tmp_path}/samples.jsonl",), ("random",)),
        maps=(str(tmp_path / "maps"),),
        tasks=("segmentation",),
        resamples=20,
        image_size=64,
    )
    evaluation = evaluate(config)
    about = json.loads((tmp_path / "out/manifest.json").read_text())
    larger = load_clip(vit, image_size=64)
    assert about["model"]["identity"] == larger.identity()
    lines = evaluation.summary.figures
    figures = lines[lines["method"] == "maps"].set_index("metric")["mean"].to_dict()
    levels: dict[str, Any] = {"": "mean", "_half": 0.5} if background else {"": None}
    assert set(figures) == {f"{name}{end}" for name in ("miou", "aacc") for end in levels}
    for end, level in levels.items():
        found, truth = [], []
        for stem, raw in written.items():
            largest, labels = torch.from_numpy(raw).clamp(min=0).max(0)
            marked = largest > 0
            if level is not None:
                normal = maps.normalize(largest)
                marked &= normal > threshold_level(normal[None], level)
            found.append(torch.where(marked, labels + 1, 0).flatten())
            with Image.open(tmp_path / f"numbers/{stem}.png") as image:
                truth.append(torch.from_numpy(np.array(image)).long().flatten())
        one, other = torch.cat(found), torch.cat(truth)
        first = 0 if background else 1  # of the classes; where none is found, that is wrong
        other[other < first] = 255
        assert (one[other != 255] == 0).any()
        shift = torch.where(other == 255, 0, first)
        miou, accuracy = mmsegmentation(one - first, other - shift, 5 - first)
        assert figures[f"miou{end}"] == pytest.approx(miou)
        assert figures[f"aacc{end}"] == pytest.approx(accuracy)
        theirs = classification.multiclass_jaccard_index(
            one, other, 5, average="none", ignore_index=255
        )
        assert figures[f"miou{end}"] == pytest.approx(float(theirs[first:].mean()))
    rows = evaluation.table.query("metric == 'miou' and method == 'maps'")
    assert set(rows["region"]) == {*CLASSES, *(["background"] if background else [])}
    assert set(rows["part"]) == {"class", "intersection", "union"}


def test_the_best_class_is_painted_over_the_whole_photo(tmp_path: Path, vit: str) -> None:
    """By the mean of its cosines with overlapping squares, where the data have background too."""
    written = write(tmp_path, background=True)
    config = EvaluationConfig(
        *(vit, str(tmp_path / "out"), (f"samples:{tmp_path}/samples.jsonl",), ("random",)),
        maps=(str(tmp_path / "maps"),),
        tasks=("segmentation",),
        resamples=20,
    )
    lines = evaluate(config).summary.figures
    figures = lines[lines["method"] == "best-class"].set_index("metric")["mean"].to_dict()
    clip, painted, truth = load_clip(vit), [], []
    similarity = ClipSimilarity(clip, targets.text(clip, list(CLASSES)))
    for stem in written:
        with Image.open(tmp_path / f"images/{stem}.png") as image:
            side, length = sorted(image.size)
            boxes = []
            for start in np.linspace(0, length - side, -(-2 * (length - side) // side) + 1).round():
                x, y = (start, 0) if image.width > image.height else (0, start)
                boxes.append(image.crop((int(x), int(y), int(x) + side, int(y) + side)))
        best = similarity(clip.preprocess(boxes)).mean(0).argmax()
        with Image.open(tmp_path / f"numbers/{stem}.png") as image:
            truth.append(torch.from_numpy(np.array(image)).long().flatten())
        painted.append(torch.full_like(truth[-1], int(best) + 1))
    miou, accuracy = mmsegmentation(torch.cat(painted), torch.cat(truth), 5)
    for end in ("", "_half"):
        assert figures[f"miou{end}"] == pytest.approx(miou)
        assert figures[f"aacc{end}"] == pytest.approx(accuracy)


class Brightness(Method):
    """Light for the first class, dark for the second, of each window alone."""

    name = what = "brightness"

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        self.seen.append(tuple(queries.pixels.shape))
        light = clip.denormalize(queries.pixels).mean(1)
        sign = torch.tensor([1.0 if text == "light" else -1.0 for text in queries.texts])
        return (light - 0.5) * sign[:, None, None]


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
@pytest.mark.parametrize("wide", [True, False])
def test_windows_see_the_whole_photo_where_it_is(name: str, wide: bool) -> None:
    """Long photos too, of which a processor leaves the middle: every pixel has its own class."""
    light = np.zeros((60, 220), dtype=bool)
    light[5:35, 3:40] = light[30:55, 180:218] = light[10:30, 100:130] = True
    light = light if wide else light.T
    photo = Image.fromarray(np.repeat(255 * light[..., None], 3, axis=2).astype(np.uint8))
    labels = np.where(light, 0, 1).astype(np.int64)
    labels[:2] = -1
    data = Listed(Sample("one", photo, labels=labels), classes=("light", "dark"))
    method = Brightness()
    asked = on_batch(context(model(name), data), method)
    found = joined(TASKS["segmentation"].measure(asked))
    [[right, pixels]] = found["aacc"].values
    assert pixels == (labels >= 0).sum()
    assert right / pixels > 0.93  # but for edges, which lie between the pixels of the model
    assert set(found) == {"miou", "aacc"}
    assert len(method.seen) == 7  # 60 wide, about 27 apart
    heatmap = _maps_of_classes(asked, asked.samples.views[0])
    assert heatmap is not None
    assert heatmap.amax() == pytest.approx(0.5, abs=0.01)  # the mean where windows overlap


def test_maps_that_are_not_finite_leave_their_image_out() -> None:
    class Broken(Brightness):
        def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
            heatmap = super().maps(clip, queries)
            heatmap[[text == "dark" for text in queries.texts]] = torch.nan
            return heatmap

    labels = np.zeros((32, 32), dtype=np.int64)
    samples = [Sample("one", picture(), labels=labels), Sample("two", picture())]
    asked = on_batch(
        context(model("hf_vit"), Listed(*samples, classes=("light", "dark"))), Broken()
    )
    assert not list(TASKS["segmentation"].measure(asked))
    assert asked.skipped == [(0, "brightness: the map of 'dark' holds NaN or infinity", False)]


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_all_classes_from_one_pass_are_the_maps_one_by_one(name: str) -> None:
    """Of every method and baseline, in batches that do not divide the number of classes."""
    clip = model(name)
    labels = np.zeros((32, 32), dtype=np.int64)
    data = Listed(Sample("one", picture(), labels=labels), classes=CLASSES)
    for method in methods_for(clip):
        asked = on_batch(context(clip, data, batch_size=3), method)
        found = _maps_of_classes(asked, asked.samples.views[0])
        assert found is not None
        for place, text in enumerate(CLASSES):
            row, pixels = targets.text(clip, text).embeddings, asked.samples.pixels
            alone = Queries(pixels, row, ("one",), (text,), (place,))
            raw = method_of(method, clip).maps(clip, alone)
            expected = maps.upsample(raw.clamp(min=0), (32, 32))[0]
            torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-6)


def test_prompts_are_averaged() -> None:
    """The mean of the unit embeddings of all prompts of a class, and unit length again."""
    clip, data = model("hf_vit"), Listed(classes=("horse",))
    data.prompts = {"horse": ("a horse", "a pony", "the pony")}
    [found] = context(clip, data).encode(["horse"])
    mean = targets.text(clip, list(data.prompts["horse"])).embeddings.mean(0)
    torch.testing.assert_close(found, mean / mean.norm())
    assert torch.equal(
        context(clip, data).encode(["a dog"]), targets.text(clip, "a dog").embeddings
    )
