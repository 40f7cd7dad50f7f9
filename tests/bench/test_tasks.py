"""Localization, signs and effects against plain oracles, one region at a time."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import attr, maps, metrics, targets
from captum_clip.bench.data.base import Sample
from captum_clip.bench.data.demo import DemoScenes
from captum_clip.bench.methods import Method, method_of
from captum_clip.bench.table import Queries
from captum_clip.bench.tasks import TASKS
from captum_clip.bench.tasks.effects import EFFECT
from captum_clip.models import ClipAdapter
from tests.bench.cases import (
    KINDS,
    Listed,
    Rows,
    context,
    direct,
    half,
    joined,
    measured,
    model,
    on_batch,
    rows,
    same_rows,
    settings,
    two_regions,
)

MODELS = list(KINDS)
SCENES = DemoScenes(3)  # of two, three and two objects
OWNERS = [0, 0, 1, 1, 1, 2, 2]


def whole(heatmap: torch.Tensor) -> torch.Tensor:
    """The map; of an empty one a map of one value, which tells nothing either."""
    return heatmap if heatmap.any() else torch.ones_like(heatmap)


@lru_cache
def oracle(name: str) -> list[dict[str, Any]]:
    """Every region of the scenes: its mask, and its two maps from the method's own class."""
    clip, kind = model(name), KINDS[name][1]
    found = []
    for number in range(3):
        sample = SCENES.read(number)
        [pixels] = clip.preprocess([sample.image])
        masks = torch.stack([torch.from_numpy(region.mask) for region in sample.regions])
        for place, region in enumerate(sample.regions):
            row = targets.text(clip, region.text).embeddings[0]
            raw = direct(clip, kind, pixels, row)
            against = -raw if name == "demo/resnet" else direct(clip, kind, pixels, -row)
            found.append(
                {
                    "owner": number,
                    "place": place,
                    "row": row,
                    "positive": raw.clamp(min=0),
                    "negative": against.clamp(min=0),
                    "mask": masks[place],
                    "masks": masks,
                    "subsets": sample.subsets,
                }
            )
    return found


@lru_cache
def found(name: str) -> dict[str, Rows]:
    """All tasks of the scenes but those that take long, in one chunk."""
    asked = on_batch(context(model(name), SCENES), KINDS[name][0])
    tasks = ("localization", "signs", "effect")
    return joined(rows for task in tasks for rows in TASKS[task].measure(asked))


@pytest.mark.parametrize("name", MODELS)
def test_localization_is_each_metric_of_each_region(name: str) -> None:
    got = found(name)
    every = oracle(name)
    heatmap, masks = [one["positive"] for one in every], [one["mask"] for one in every]
    expected: dict[str, list[Any]] = {
        "pointing": [metrics.pointing_game(h, m) for h, m in zip(heatmap, masks, strict=True)],
        "pointing_15": [
            metrics.pointing_game(h, m, tolerance=15) for h, m in zip(heatmap, masks, strict=True)
        ],
        "energy": [metrics.energy_inside(whole(h), m) for h, m in zip(heatmap, masks, strict=True)],
        "coverage": [metrics.coverage(h, m, area=0.2) for h, m in zip(heatmap, masks, strict=True)],
    }
    for suffix, threshold in (("", None), ("_half", 0.5)):
        counts, ratios, precisions = [], [], []
        for h, m in zip(heatmap, masks, strict=True):
            large = maps.normalize(maps.upsample(h[None], (224, 224))[0])
            chosen = large > (large.mean() if threshold is None else threshold)
            cells = [chosen & m, chosen & ~m, ~chosen & m, ~chosen & ~m]
            counts.append([int(cell.sum()) for cell in cells])
            ratios.append([counts[-1][0] + counts[-1][3], 224 * 224])
            precisions.append(metrics.average_precision(h, m))
        unions = [
            (hit, hit + wrong + missed, rest, rest + wrong + missed)
            for hit, wrong, missed, rest in counts
        ]
        expected |= {f"mean_iou{suffix}": unions, f"pixel_accuracy{suffix}": ratios}
        expected["average_precision"] = precisions
    expected["legrad_pixel_accuracy"] = [right / whole for right, whole in ratios]
    expected["legrad_mean_iou"] = [(hit / a + rest / b) / 2 for hit, a, rest, b in unions]
    expected["legrad_map"] = [
        metrics.two_class_average_precision(h, m) for h, m in zip(heatmap, masks, strict=True)
    ]
    listed = {m.name for g in _metrics("localization").values() for m in g}
    assert {*expected, "point_auc"} == listed  # which is of labeled points alone
    for metric, values in expected.items():
        pixels = 30.0 if metric.startswith(("mean_iou", "pixel")) else 1e-5  # ties at the threshold
        pixels = 1e-3 if metric.startswith("legrad") else pixels
        same_rows(got[metric], rows(OWNERS, values), pixels)


@pytest.mark.parametrize("name", MODELS)
def test_signs_are_the_shares_of_mass_in_three_parts(name: str) -> None:
    got = found(name)
    expected: dict[str, list[Any]] = {}
    for one in oracle(name):
        union = one["masks"].any(0)
        parts = {"target": one["mask"], "others": union & ~one["mask"], "background": ~union}
        for sign in ("positive", "negative"):
            large = maps.upsample(whole(one[sign])[None], (224, 224))[0]
            for part, mask in parts.items():
                share = (large * mask).sum() / large.sum()
                expected.setdefault(f"{sign}_{part}", []).append(share)
        inside = [
            (maps.upsample(whole(one["positive"])[None], (224, 224))[0] * m).sum()
            for m in parts.values()
        ]
        expected.setdefault("target_among_regions", []).append(inside[0] / (inside[0] + inside[1]))
        first, other = one["positive"], one["negative"]
        correlation = metrics.rank_correlation(first, other)
        cosine = torch.cosine_similarity(first.flatten(), other.flatten(), 0)
        hit = metrics.pointing_game(other, parts["others"])
        expected.setdefault("sign_correlation", []).append(correlation.nan_to_num())
        expected.setdefault("sign_cosine", []).append(cosine)
        expected.setdefault("negative_pointing_others", []).append(hit)
    assert set(expected) == {m.name for g in _metrics("signs").values() for m in g}
    for metric, values in expected.items():
        same_rows(got[metric], rows(OWNERS, values), 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_effects_pair_the_mass_in_every_object_with_its_exact_effects(name: str) -> None:
    """Each text of a scene with each of its objects; bit i of a subset is object i.

    One effect is Shapley's, the other what the whole scene has over the scene without the object.
    """
    clip, got = model(name), found(name)
    owners, pairs, removals, others = [], [], [], []
    for one in oracle(name):
        pixels = clip.preprocess(list(one["subsets"]))
        scores = clip.encode_image(pixels).detach() @ one["row"]
        count = len(one["masks"])
        signed = maps.upsample((one["positive"] - one["negative"])[None], (224, 224))[0]
        grid = one["positive"].numel() / 224**2
        for place in range(count):
            gains = {
                subset: float(scores[subset | 1 << place] - scores[subset])
                for subset in range(2**count)
                if not subset >> place & 1
            }
            sizes = {subset: bin(subset).count("1") for subset in gains}
            weight = {2: [1 / 2, 1 / 2], 3: [1 / 3, 1 / 6, 1 / 3]}[count]
            effect = sum(weight[sizes[subset]] * gain for subset, gain in gains.items())
            owners.append(one["owner"])
            mass = float((signed * one["masks"][place]).sum()) * grid
            pairs.append([mass, effect])
            removals.append([mass, gains[2**count - 1 - (1 << place)]])
            others.append(place != one["place"])
    chosen = np.array(others)
    scenes = np.unique(owners).tolist()
    for kind, columns in (("effect", pairs), ("removal", removals)):
        for end, kept in (("", chosen | True), ("_others", chosen)):
            places = [(np.array(owners) == scene) & kept for scene in scenes]
            each = [torch.tensor(columns)[torch.from_numpy(place)].T for place in places]
            ranks = [metrics.effect_agreement(*pair).spearman for pair in each]
            right = [(pair.sign().prod(0) > 0).double() for pair in each]
            same_rows(got[f"{kind}_spearman_scene{end}"], rows(scenes, ranks), 1e-4)
            shares = [float(signs.mean()) for signs in right]
            same_rows(got[f"{kind}_agreement{end}"], rows(scenes, shares), 1e-4)
            counts = [
                [float(one[k].sum()) for k in (effect > 0, effect < 0) for one in (signs, k + 0.0)]
                for signs, (_, effect) in zip(right, each, strict=True)
            ]
            same_rows(got[f"{kind}_balanced{end}"], rows(scenes, counts), 1e-4)


def test_predictors_of_effects_are_their_arithmetic() -> None:
    """They have the rows of a map, with an answer of their own in the place of its mass."""
    clip = model("demo/vit")
    scenes = context(clip, SCENES)
    maps = measured("effect", scenes, "direct")
    ranks: dict[str, list[float]] = {}
    for sample in map(SCENES.read, range(len(SCENES))):
        texts = scenes.encode([region.text for region in sample.regions])  # ties by rounding
        images = clip.encode_image(clip.preprocess([s for s in sample.subsets if s])).detach()
        effects, size = metrics.shapley_effects(texts @ images.T), len(texts)
        answers = {
            "named": torch.eye(size),
            "score": (texts @ images[-1:].T).expand(size, size),
            "text-only": texts @ texts.T,
            "always-negative": -torch.ones(size, size),
        }
        for (name, answer), end in product(answers.items(), ("", "_others")):
            kept = ~torch.eye(size, dtype=torch.bool) | (not end)
            rank = metrics.effect_agreement(answer[kept], effects[kept]).spearman
            ranks.setdefault(f"{name}{end}", []).append(np.nan_to_num(rank))
    for name in EFFECT.without_map:
        got = measured("effect", context(clip, SCENES), name)
        assert set(got) == set(maps)
        for end in ("", "_others"):
            expected = rows([0, 1, 2], ranks[f"{name}{end}"])
            same_rows(got[f"effect_spearman_scene{end}"], expected, 1e-4)
            for kind in ("effect", "removal"):  # how many rise and fall does not depend on answers
                counts = got[f"{kind}_balanced{end}"].values[:, 1::2]
                assert np.array_equal(counts, maps[f"{kind}_balanced{end}"].values[:, 1::2])
    assert measured("localization", context(clip, SCENES), "named") == {}


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_depend_on_chunks_and_batches(name: str) -> None:
    """Image by image and map by map, or all at once: the same."""
    small = context(model(name), SCENES, batch_size=1)
    parts = []
    for number in range(3):
        asked = on_batch(small, KINDS[name][0], [number])
        tasks = ("localization", "signs", "effect")
        parts += [rows for task in tasks for rows in TASKS[task].measure(asked)]
    alone, together = joined(parts), found(name)
    assert alone.keys() == together.keys()
    for metric, expected in together.items():
        pixels = 30.0 if metric.startswith(("mean_iou", "pixel")) else 1e-4
        same_rows(alone[metric], expected, pixels)


@pytest.mark.parametrize(
    ("method", "negative"), [("rollout", False), ("empty-text", False), ("random", True)]
)
def test_methods_without_a_negative_map_have_no_rows_of_it(method: str, negative: bool) -> None:
    """Missing rows, not zeros; their mass is never below zero."""
    asked = on_batch(context(model("hf_vit"), Listed(two_regions("a"))), method)
    got = joined(TASKS["signs"].measure(asked))
    assert set(got) >= {"positive_target", "positive_others", "positive_background"}
    assert ("negative_target" in got) == negative
    assert ("sign_cosine" in got) == negative
    assert bool((asked.signed < 0).any()) == negative


def test_regions_alone_in_their_image_have_no_signs() -> None:
    """There is nothing else that the negative map could lie on."""
    sample = two_regions("a")
    alone = Sample("b", sample.image, sample.regions[:1])
    got = measured("signs", context(model("hf_vit"), Listed(alone, sample)), "last-grad")
    assert got["positive_target"].owners.tolist() == [1, 1]
    assert measured("signs", context(model("hf_vit"), Listed(alone)), "last-grad") == {}


def test_random_maps_find_chance() -> None:
    """Positive and negative mass of the random baseline lie where the pixels are."""
    data = Listed(*(two_regions(f"{number}") for number in range(24)))
    got = measured("signs", context(model("hf_vit"), data), "random")
    for sign in ("positive", "negative"):
        for part, share in (("target", 0.25), ("others", 0.25), ("background", 0.5)):
            assert got[f"{sign}_{part}"].values.mean() == pytest.approx(share, abs=0.08)


class Broken(Method):
    """A map that marks the left; none of every text in `without`."""

    name, what, signed = "broken", "marks the left", True

    def __init__(self, *without: str) -> None:
        self.without = without

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        heatmap = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).repeat(len(queries), 1, 1)
        heatmap[[text in self.without for text in queries.texts], 0, 0] = torch.nan
        return heatmap


def test_a_map_with_nan_is_left_out_and_reported() -> None:
    """No zero in its place; a scene with one map missing has no effects."""
    first, second = two_regions("first"), two_regions("second", seed=1)
    image = first.image
    scene = Sample("scene", image, first.regions, subsets=(image, image, image, image))
    asked = on_batch(context(model("hf_vit"), Listed(scene, second)), Broken("a dog"))
    for task in ("localization", "signs"):
        for one in joined(TASKS[task].measure(asked)).values():
            assert one.owners.tolist() == [0, 1]
    assert joined(TASKS["effect"].measure(asked)) == {}
    reason = "broken: the map of 'a dog' holds NaN or infinity"
    assert asked.skipped == [(0, reason, False), (1, reason, False)]


@pytest.mark.parametrize("task", list(TASKS))
def test_without_any_map_nothing_is_measured(task: str) -> None:
    """Every task ends without rows and with reasons, whatever the sample tells."""
    points = half("top")
    whole = two_regions("a")
    sample = Sample(
        *("a", whole.image, whole.regions),
        label=0,
        caption="a horse a dog",
        subsets=(whole.image,) * 4,
        labels=points.astype(np.int64),
    )
    words = Sample("a", whole.image, tuple(_bare(r) for r in whole.regions), caption="horse dog")
    data = Listed(words if task == "words" else sample)
    broken = Broken("a horse", "a red barn", "a dog", "horse", "dog")
    asked = on_batch(context(model("hf_vit"), data, fills=("mean",)), broken)
    got = joined(TASKS[task].measure(asked))
    assert got == {}
    # a method without an `attribute` is not asked, and no class is known by a random model
    assert task in ("sanity", "grid") or asked.skipped


def test_an_empty_map_scores_chance_everywhere() -> None:
    """It has a row wherever another map has one, with what a map that tells nothing gets."""
    clip = model("hf_vit")
    scenes = context(clip, Listed(two_regions("a")))
    nothing = method_of("uniform", clip)
    nothing.draw = lambda grid, number: torch.zeros(grid)  # type: ignore[attr-defined]
    nothing.signed = True
    expected: dict[str, dict[str, float]] = {
        "localization": {"pointing": 0.25, "energy": 0.25, "average_precision": 0.25},
        "signs": {
            **{f"{sign}_target": 0.25 for sign in ("positive", "negative")},
            **{f"{sign}_background": 0.5 for sign in ("positive", "negative")},
            **{"sign_correlation": 0, "sign_cosine": 0, "negative_pointing_others": 0.25},
        },
    }
    for task, figures in expected.items():
        got = measured(task, scenes, nothing)
        every = measured(task, scenes, "grad-cam" if clip.kind == "resnet" else "last-grad")
        assert got.keys() == every.keys()
        for metric, value in figures.items():
            assert got[metric].values.tolist() == pytest.approx(
                np.full_like(every[metric].values, value), abs=0.01
            ), metric


def test_void_pixels_count_for_nothing() -> None:
    """A map that has all its mass there is empty, and what lies there has no part in the rest."""
    clip = model("hf_vit")
    whole, void = two_regions("a"), half("top right")
    sample = Sample("a", whole.image, whole.regions, void=void)
    scenes = context(clip, Listed(sample))
    marking = method_of("uniform", clip)
    grid = torch.zeros(32, 32)
    grid[torch.from_numpy(void)] = 9.0
    grid[torch.from_numpy(half("top left"))] = 1.0
    marking.draw = lambda shape, number: grid  # type: ignore[attr-defined]
    got = measured("localization", scenes, marking)
    assert got["energy"].values[:, 0].tolist() == [1, 0]
    assert got["pointing"].values[:, 0].tolist() == [1, 0]
    assert got["average_precision"].values[:, 0] == pytest.approx([1, 1 / 3], abs=1e-6)
    assert got["pixel_accuracy"].values.tolist() == [[768, 768], [256, 768]]
    shares = measured("signs", scenes, marking)
    assert shares["positive_target"].values[:, 0].tolist() == [1, 0]
    assert shares["positive_background"].values[:, 0].tolist() == [0, 0]
    full = Sample("full", whole.image, whole.regions[:1], void=~whole.regions[0].mask)
    left = on_batch(context(clip, Listed(full, sample)), marking)
    assert joined(TASKS["localization"].measure(left))["energy"].owners.tolist() == [1, 1]
    assert [number for number, *_ in left.samples.skipped] == [0]
    counted = measured("localization", context(clip, Listed(whole)), marking)
    assert counted["energy"].values[0, 0] == pytest.approx(0.1)


def test_against_an_image_the_target_is_the_reference() -> None:
    """The same rows as with the picture's own encoding for a target."""
    clip = model("demo/vit")
    scenes = DemoScenes(1)
    got = measured("localization", context(clip, scenes, against="image"), "last-grad")
    sample = scenes.read(0)
    [pixels] = clip.preprocess([sample.image])
    values = []
    for region in sample.regions:
        assert region.reference is not None
        row = clip.encode_image(clip.preprocess([region.reference])).detach()[0]
        heatmap = direct(clip, attr.LastGradAttention, pixels, row)
        values.append(metrics.energy_inside(heatmap, torch.from_numpy(region.mask)))
    same_rows(got["energy"], rows([0, 0], values))


def _metrics(task: str) -> dict[str, Any]:
    return dict(TASKS[task].metrics(settings()))


def _bare(region: Any) -> Any:
    return type(region)(region.text.removeprefix("a "), region.mask)
