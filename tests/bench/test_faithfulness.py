"""Infidelity, sensitivity and the sanity checks of the harness."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import ClipSimilarity, metrics, targets
from captum_clip.bench.batch import ModelContext
from captum_clip.bench.data.base import NamedRegion, Sample
from captum_clip.bench.data.demo import DemoScenes
from captum_clip.bench.methods import method_of
from captum_clip.bench.tasks import TASKS
from captum_clip.bench.tasks.faithfulness import _other_text
from tests.bench.cases import (
    KINDS,
    TEXTS,
    Listed,
    Rows,
    context,
    direct,
    half,
    joined,
    measured,
    model,
    on_batch,
    picture,
    rows,
    same_rows,
    two_regions,
)

MODELS = list(KINDS)
GRID = (7, 7)


@lru_cache
def demo(name: str) -> ModelContext:
    return context(model(name), DemoScenes(2), seed=3)


@lru_cache
def faithful(name: str) -> dict[str, Rows]:
    return measured("faithfulness", demo(name), KINDS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_faithfulness_is_of_the_first_region_and_the_published_map(name: str) -> None:
    """Image i draws from seed + i; beside the infidelity stands that of a map of zeros."""
    clip, kind = model(name), KINDS[name][1]
    correlations, pairs, moves = [], [], []
    for number in range(2):
        sample = DemoScenes(2).read(number)
        pixels = clip.preprocess([sample.image])
        target = targets.text(clip, sample.regions[0].text)
        forward = ClipSimilarity(clip, target)
        heatmap = direct(clip, kind, pixels[0], target.embeddings[0]).clamp(min=0)
        options: Any = {"samples": 2, "seed": 3 + number}
        changes = metrics.masked_changes(forward, pixels, grid=GRID, share=0.2, **options)
        correlation = metrics.faithfulness_correlation(heatmap[None], changes)
        correlations.append(correlation if heatmap.any() else 0)  # an empty map: chance
        square = changes.changes.square().mean()
        pairs.append([float(metrics.infidelity(heatmap[None], changes)), float(square)])
        published = {"relu_attributions": True} if name == "demo/resnet" else {}
        attribute = partial(kind(forward).attribute, **published)
        moves.append(metrics.sensitivity(attribute, pixels, 0, samples=5, seed=3 + number))
    got = faithful(name)
    same_rows(got["faithfulness_correlation"], rows([0, 1], correlations), 1e-3)
    same_rows(got["infidelity"], rows([0, 1], pairs), 1e-6)
    same_rows(got["sensitivity"], rows([0, 1], moves), 1e-4)
    assert (got["infidelity"].values[:, 1] > 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_draws_do_not_depend_on_chunks_and_batches(name: str) -> None:
    small = context(model(name), DemoScenes(2), seed=3, batch_size=1)
    parts = [on_batch(small, KINDS[name][0], [n]) for n in range(2)]
    alone = joined(rows for one in parts for rows in TASKS["faithfulness"].measure(one))
    for metric, expected in faithful(name).items():
        same_rows(alone[metric], expected, 1e-4 if metric == "sensitivity" else 1e-6)


def test_a_map_of_nothing_gets_an_infidelity_of_one() -> None:
    """As a ratio of sums; the center baseline is no such map, a map of zeros is."""
    clip = model("hf_vit")
    nothing = method_of("center", clip)
    nothing.draw = lambda grid, number: torch.zeros(grid)  # type: ignore[attr-defined]
    got = measured("faithfulness", context(clip, Listed(two_regions("a"))), nothing)
    own, zeros = got["infidelity"].values[0]
    assert own == zeros > 0
    assert got["faithfulness_correlation"].values.tolist() == [[0]]  # chance, not left out
    assert "sensitivity" not in got  # it has no `attribute` to call


def test_sensitivity_and_sanity_take_a_sample_of_the_images() -> None:
    clip = model("hf_vit")
    small = context(clip, Listed(*(two_regions(f"{n}", n) for n in range(3))), slow_images=2)
    seen = [0, 2]  # by their names' hashes, not by their place
    got = measured("faithfulness", small, "last-grad")
    assert got["infidelity"].owners.tolist() == [0, 1, 2]
    assert got["sensitivity"].owners.tolist() == seen
    for one in measured("sanity", small, "last-grad").values():
        assert one.owners.tolist() == seen
    assert measured("sanity", small, "last-grad", [1]) == {}


@lru_cache
def sane(method: str, name: str = "demo/vit") -> dict[str, Any]:
    return measured("sanity", demo(name), method)


@pytest.mark.parametrize("method", ["all-grad"])
def test_renumbered_heads_leave_averaged_maps_alone(method: str) -> None:
    first = on_batch(demo("demo/vit"), method).positive[[0, 2]]  # regions of the two scenes
    expected = [[float(heatmap.any())] for heatmap in first]  # an empty map: chance
    found = sane(method)["renumbered_heads"].values
    assert found == pytest.approx(np.array(expected), abs=2.5e-4)  # two neighbors of 49 swapped


def test_renumbered_heads_change_paired_maps() -> None:
    assert (sane("last-grad")["renumbered_heads"].values < 0.995).all()
    assert "renumbered_heads" not in sane("grad-cam", "demo/resnet")


def test_the_renumbered_copy_is_the_same_function() -> None:
    clip, copy = model("demo/vit"), demo("demo/vit").renumbered_copy
    assert copy is not None
    pixels = clip.preprocess([DemoScenes(1).read(0).image])
    torch.testing.assert_close(copy.encode_image(pixels), clip.encode_image(pixels))
    weights = [tower.layers[0].input_maps()[0].weight for tower in (clip.tower, copy.tower)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", MODELS)
def test_sanity_correlates_with_the_other_map(name: str) -> None:
    """The same class on another model, or with another target."""
    clip, (method, kind) = model(name), KINDS[name]
    one = on_batch(demo(name), method)
    copy = demo(name).random_copy
    expected: dict[str, list[Any]] = {
        "random_parameters": [],
        "empty_prompt": [],
        "other_prompt": [],
    }
    for number in range(2):
        sample = DemoScenes(2).read(number)
        [pixels] = clip.preprocess([sample.image])
        other = _other_text(one, number)
        assert other not in [region.text for region in sample.regions]
        texts = [sample.regions[0].text, other]
        rows_ = targets.text(clip, texts).embeddings
        heatmap = direct(clip, kind, pixels, rows_[0]).clamp(min=0)
        others = {
            "random_parameters": direct(copy, kind, pixels, rows_[0]),
            "empty_prompt": direct(clip, kind, pixels, clip.encode_text([""]).detach()[0]),
            "other_prompt": direct(clip, kind, pixels, rows_[1]),
        }
        others = {metric: changed.clamp(min=0) for metric, changed in others.items()}
        for metric, changed in others.items():
            expected[metric].append(metrics.rank_correlation(heatmap, changed).nan_to_num())
    got = sane(method, name)
    for metric, values in expected.items():
        same_rows(got[metric], rows([0, 1], values), 1e-2)  # ranks of values that nearly tie
    assert (got["random_parameters"].values < 0.95).all()


def test_the_other_prompt_names_nothing_in_the_sample() -> None:
    """Of the classes without what is shown; the empty text where nothing is left."""
    clip = model("hf_vit")
    labeled = Sample("labeled", picture(), label=1)
    both = two_regions("both")
    every = tuple(NamedRegion(text, half("top left")) for text in TEXTS)
    data = Listed(labeled, both, Sample("all", picture(), every))
    one = on_batch(context(clip, data), "last-grad")
    assert _other_text(one, 0) in {"a horse", "a dog"}
    assert _other_text(one, 1) == "a red barn"
    assert _other_text(one, 2) == ""
    seeds = {_other_text(on_batch(context(clip, data, seed=s), "rollout"), 0) for s in range(8)}
    assert len(seeds) == 2
