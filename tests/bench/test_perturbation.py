"""The perturbation task: which map, which class, which images, which steps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import ClipSimilarity, attr, metrics, targets
from captum_clip.bench.data.base import Sample
from captum_clip.bench.data.demo import DemoObjects, DemoScenes
from captum_clip.bench.run import Fill
from captum_clip.models import ClipAdapter
from tests.bench.cases import (
    TEXTS,
    Listed,
    Rows,
    context,
    direct,
    measured,
    model,
    picture,
    same_rows,
)
from tests.bench.cases import rows as rows_of

NAMES = ("most", "least", "gap", "gap_cosine", "gap_margin")


def embeddings_of(clip: ClipAdapter, classes: Any) -> Tensor:
    """Each alone, as an evaluation reads them: in a batch they round otherwise."""
    return torch.cat([targets.text(clip, text).embeddings for text in classes])


def predicted_by(clip: ClipAdapter, pixels: Tensor, classes: Any) -> int:
    rows = embeddings_of(clip, classes)
    return int((clip.encode_image(pixels[None]).detach() @ rows.T).argmax())


def test_of(
    clip: ClipAdapter, pixels: Tensor, classes: Any, of: int, label: int, **options: Any
) -> metrics.PerturbationTest:
    """The test itself, with the map of class `of` and top-1 accuracy of class `label`."""
    embeddings = embeddings_of(clip, classes)
    kind = attr.LastGradAttention if clip.kind == "vit" else attr.ClipGradCam
    heatmap = direct(clip, kind, pixels, embeddings[of]).clamp(min=0)  # the published map
    forward = ClipSimilarity(clip, targets.embedding(embeddings))
    given = {"fill": torch.zeros(1), **options}
    return metrics.perturbation_test(
        forward, pixels[None], heatmap[None], of, labels=label, **given
    )


test_of.__test__ = False  # type: ignore[attr-defined]


def check(found: dict[str, Rows], end: str, owners: list[int], tests: Any) -> None:
    """Areas and curves are those of these tests."""
    values = {
        "most": [test.top1.most_area for test in tests],
        "least": [test.top1.least_area for test in tests],
        "gap": [test.top1.gap for test in tests],
        "gap_cosine": [test.score.gap for test in tests],
        "gap_margin": [test.margin.gap for test in tests],
    }
    for name in NAMES:
        same_rows(found[f"{name}_{end}"], rows_of(owners, values[name]))
    for order in ("most", "least"):
        curve = found[f"curve_{order}_{end}"]
        assert curve.owners.tolist() == owners
        np.testing.assert_allclose(curve.x, tests[0].score.fractions)
        expected = torch.cat([getattr(test.top1, f"{order}_first") for test in tests])
        np.testing.assert_allclose(curve.values, expected)


@pytest.mark.parametrize(
    ("name", "method"), [("demo/vit", "last-grad"), ("demo/resnet", "grad-cam")]
)
def test_the_embedded_models_give_the_tests_own_figures(name: str, method: str) -> None:
    """One scene: the map of the class that it shows, which is also the predicted one."""
    clip, data = model(name), DemoObjects(1)
    found = measured("perturbation", context(clip, data, fills=("mean",)), method)
    sample = data.read(0)
    [pixels] = clip.preprocess([sample.image])
    label = sample.label
    assert label is not None
    assert predicted_by(clip, pixels, data.classes) == label
    test = test_of(clip, pixels, data.classes, label, label)
    for kind in ("predicted", "true"):
        check(found, f"mean_{kind}", [0], [test])


SMALL = model("hf_vit")
PIXELS = [SMALL.preprocess([picture(seed)])[0] for seed in range(3)]
SEEN = [predicted_by(SMALL, pixels, TEXTS) for pixels in PIXELS]
LABELS = [SEEN[0], (SEEN[1] + 1) % 3, (SEEN[2] + 2) % 3]
"""The first image is classified right, the others are not."""


def data() -> Listed:
    every = zip(range(3), LABELS, strict=True)
    return Listed(*(Sample(f"{n}", picture(n), label=label) for n, label in every))


@lru_cache
def found(fill: Fill) -> dict[str, Rows]:
    """One map at a time: other rounding would order pixels of nearly equal value otherwise."""
    small = context(SMALL, data(), fills=(fill,), batch_size=1)
    return measured("perturbation", small, "last-grad")


def test_the_predicted_and_the_true_class_have_maps_of_their_own() -> None:
    """Top-1 accuracy is that of the true class both times."""
    for kind, classes in (("predicted", SEEN), ("true", LABELS)):
        tests = [
            test_of(SMALL, pixels, TEXTS, of, label, seed=number)
            for number, (pixels, of, label) in enumerate(zip(PIXELS, classes, LABELS, strict=True))
        ]
        check(found("mean"), f"mean_{kind}", [0, 1, 2], tests)
    curves = found("mean")
    for kind in ("predicted", "true"):
        assert curves[f"curve_most_mean_{kind}"].values[:, 0].tolist() == [1, 0, 0]
    predicted, true = (found("mean")[f"gap_cosine_mean_{k}"] for k in ("predicted", "true"))
    assert (predicted.values == true.values)[:, 0].tolist() == [True, False, False]


@pytest.mark.parametrize("fill", ["black", "blur"])
def test_other_fills_are_what_they_are_called(fill: Fill) -> None:
    pixels = PIXELS[1][None]
    taken = SMALL.color((0, 0, 0)) if fill == "black" else metrics.blur_fill(pixels)
    test = test_of(SMALL, PIXELS[1], TEXTS, LABELS[1], LABELS[1], fill=taken, seed=1)
    assert test.top1 is not None
    got = found(fill)[f"curve_most_{fill}_true"]
    assert got.values[1].tolist() == test.top1.most_first[0].tolist()
    gap = found(fill)[f"gap_cosine_{fill}_true"].values[1, 0]
    assert gap == pytest.approx(float(test.score.gap), abs=1e-5)


def test_what_is_drawn_belongs_to_the_image() -> None:
    """Ties come from the sample's number: alone, or in any batch, the same."""
    for number in range(3):
        small = context(SMALL, data(), fills=("mean",), batch_size=3)
        alone = measured("perturbation", small, "center", [number])
        together = measured("perturbation", context(SMALL, data(), fills=("mean",)), "center")
        for name, rows in alone.items():
            expected = together[name]
            chosen = expected.owners == number
            np.testing.assert_allclose(rows.values, expected.values[chosen], atol=1e-5)


def test_scenes_of_several_objects_are_told_apart_by_their_number() -> None:
    """One, two, three in turn; classification is of those with nothing but their class."""
    clip = model("demo/vit")
    got = measured("perturbation", context(clip, DemoObjects(4), fills=("mean",)), "last-grad")
    for metric in ("gap_cosine", "gap_margin"):
        owners = [got[f"{metric}_mean_{count}"].owners.tolist() for count in (1, 2, 3)]
        assert owners == [[0, 3], [1], [2]]
        same_rows(got[f"{metric}_mean_1"], got[f"{metric}_mean_true"])
    for metric in ("gap", "gap_margin", "curve_most"):
        assert got[f"{metric}_mean_predicted"].owners.tolist() == [0, 3]
    texts = [region.text for region in DemoObjects(4).read(2).regions]
    assert got["gap_margin_mean_3"].regions == (texts[0],)


def test_a_margin_needs_the_text() -> None:
    """Of a scene with two objects, the mask of the one that is named, and of the other one."""
    clip, data = model("demo/vit"), DemoScenes(12)
    forward = ClipSimilarity(clip, targets.text(clip, list(data.classes)))
    margins: list[list[float]] = []
    for number in range(0, 12, 2):
        sample = data.read(number)
        pixels = clip.preprocess([sample.image])
        target = data.classes.index(sample.regions[0].text)
        margins.append([])
        for region in sample.regions:
            mask = torch.from_numpy(region.mask).float()[None]
            fill = metrics.mean_fill(pixels)
            test = metrics.perturbation_test(forward, pixels, mask, target, fill=fill)
            assert test.margin is not None
            margins[-1].append(float(test.margin.gap))
    named, other = np.mean(margins, 0)
    assert named > 0.1
    assert other < 0.5 * named


def test_images_without_a_class_have_no_curves() -> None:
    got = measured("perturbation", context(SMALL, Listed(Sample("a", picture()))), "last-grad")
    assert got == {}
