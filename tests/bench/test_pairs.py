"""The interaction of word and object, exactly, and what estimates it."""

from __future__ import annotations

import itertools
from functools import lru_cache
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import (
    ClipPairSimilarity,
    ClipSimilarity,
    DirectContribution,
    DirectInteraction,
    TextSimilarity,
    metrics,
    targets,
)
from captum_clip.bench.data.base import Sample
from captum_clip.bench.data.demo import DemoScenes
from captum_clip.bench.evaluator import evaluate, make_plan
from captum_clip.bench.methods import method_of
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.tasks.effects import exact_interactions
from captum_clip.folders.workers import ModelLoader
from tests.bench.cases import Listed, Rows, context, direct, measured, model, two_regions


def present(n: int) -> Tensor:
    """(2^n, n), whether each player is in each subset."""
    return torch.tensor([[index >> bit & 1 for bit in range(n)] for index in range(2**n)]).double()


def test_an_additive_game_has_no_interactions() -> None:
    scores = present(3) @ torch.tensor([[0.1], [0.5], [-0.3]]).double() + (
        present(2) @ torch.tensor([0.7, -0.2]).double()
    )
    for found in exact_interactions(scores):
        torch.testing.assert_close(found, torch.zeros(3, 2).double())


def test_a_product_game_has_its_weights_as_interactions() -> None:
    """y = sum_wo a_wo [w there] [o there]; a third word's part in a pair goes to the index."""
    weights = torch.tensor([[0.4, -0.1, 0.2], [0.3, 0.5, -0.6]]).double()
    game = present(2) @ weights @ present(3).T
    for found in exact_interactions(game):
        torch.testing.assert_close(found, weights)
    both = game + (present(2).prod(1)[:, None] * present(3)[:, 1])  # words 0 and 1 with object 1
    exact, index = exact_interactions(both)
    share = torch.tensor([0.0, 1.0, 0.0]).double().expand(2, 3)
    torch.testing.assert_close(exact, weights + share)
    torch.testing.assert_close(index, weights + share / 2)


def test_the_index_is_its_formula() -> None:
    """Written out over sets of players, which are words, then objects."""
    words, objects = 3, 2
    scores = torch.randn(2**words, 2**objects, generator=torch.Generator().manual_seed(0))

    def value(players: set[int]) -> float:
        row = sum(1 << player for player in players if player < words)
        column = sum(1 << (player - words) for player in players if player >= words)
        return float(scores[row, column])

    count = words + objects
    exact, index = exact_interactions(scores)
    for word, thing in itertools.product(range(words), range(objects)):
        pair = {word, words + thing}
        rest = [player for player in range(count) if player not in pair]
        total = 0.0
        for size in range(len(rest) + 1):
            for chosen in map(set, itertools.combinations(rest, size)):
                gain = value(chosen | pair) + value(chosen)
                gain -= sum(value(chosen | {one}) for one in pair)
                total += gain * factorial(size) * factorial(count - size - 2) / factorial(count - 1)
        assert index[word, thing] == pytest.approx(total, abs=1e-12)
        assert exact[word, thing] == pytest.approx(gain, abs=1e-12)


SCENES = DemoScenes(3)


@lru_cache
def found(method: str, batch_size: int = 32) -> dict[str, Rows]:
    return measured("pairs", context(model("demo/vit"), SCENES, batch_size=batch_size), method)


def test_pairs_are_measured_by_their_definitions() -> None:
    """Scores pair by pair, maps by the public methods, for one scene of two objects."""
    clip, sample = model("demo/vit"), SCENES.read(0)
    first, second = (region.text for region in sample.regions)
    texts, images = (
        ["", first, second, f"{first} and {second}"],
        clip.preprocess([image for image in sample.subsets if image]),
    )
    score = ClipSimilarity(clip, targets.text(clip, texts, allow_empty=True))(images)
    masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
    mass: dict[str, list[Tensor]] = {"share": [], "difference": [], "product": []}
    effects, pixels = [], images[3:]
    ids, mask = clip.text_inputs(texts[3])
    shares = DirectInteraction(ClipPairSimilarity(clip)).attribute((pixels, ids), None, mask)[0]
    image = clip.encode_image(pixels).detach()
    by_token = DirectContribution(TextSimilarity(clip, targets.embedding(image)))
    values = by_token.attribute(ids, additional_forward_args=mask)[0, 0]
    whole = direct(clip, DirectContribution, pixels[0], targets.text(clip, texts[3]).embeddings[0])
    for place, tokens, span in ((0, slice(1, 3), (0, 3)), (1, slice(4, 6), (2, 5))):
        left = 3 - (1 << place)
        effects += [
            score[3, 3] - score[3 - (1 << thing), 3] - score[3, left]
            + score[3 - (1 << thing), left] for thing in (0, 1)
        ]  # fmt: skip
        word = targets.words(clip, texts[3], [span])
        added = direct(clip, DirectContribution, pixels[0], word.embeddings[0]) * word.norms[0]
        maps = (shares[tokens].sum(0), added, values[tokens].sum() * whole)
        for name, heatmap in zip(mass, maps, strict=True):
            mass[name].append(metrics.object_mass(heatmap, masks))
    for name, expected in mass.items():
        pairs = torch.cat(expected).detach(), torch.stack(effects).detach()
        for end, kept in (("", slice(None)), ("_others", slice(1, 3))):
            got = found("direct")[f"{name}_interaction_scene{end}"]
            assert got.owners.tolist() == [0, 1, 2]
            rank = metrics.effect_agreement(*(column[kept] for column in pairs)).spearman
            assert got.values[0, 0] == pytest.approx(rank)
        assert len(found("direct")[f"{name}_pointing"].owners) == 7


def test_a_method_of_one_side_has_no_shares() -> None:
    """A constant map points at the share that the object covers, and an empty one ranks nothing."""
    got = found("uniform")
    assert {name.partition("_")[0] for name in got} == {"difference"}
    sizes = [region.mask.mean() for index in range(3) for region in SCENES.read(index).regions]
    np.testing.assert_allclose(got["difference_pointing"].values[:, 0], sizes, atol=1e-6)
    nothing = method_of("uniform", model("demo/vit"))
    nothing.draw = lambda grid, number: torch.zeros(grid)  # type: ignore[attr-defined]
    got = measured("pairs", context(model("demo/vit"), SCENES), nothing)
    assert not got["difference_index_scene"].values[:, 0].any()


def test_predictors_without_a_map_are_their_arithmetic() -> None:
    """Of a scene of three objects, next to each estimator and against the truth of the maps."""
    clip, sample = model("demo/vit"), SCENES.read(1)
    words = [region.text for region in sample.regions]
    whole, names = " and ".join(words), targets.text(clip, words).embeddings
    image = clip.encode_image(clip.preprocess([sample.image])).detach()[0]
    caption = targets.text(clip, whole).embeddings[0]
    added = []
    for word in words:
        rest = " and ".join(other for other in words if other != word)
        added.append(caption - targets.text(clip, rest).embeddings[0])
    expected = {
        "named": torch.eye(3),
        "text-only": torch.stack(added) @ names.T,
        "score": (torch.stack(added) @ image)[:, None].expand(3, 3),
    }
    texts = [" and ".join(w for i, w in enumerate(words) if s >> i & 1) for s in range(8)]
    every = targets.text(clip, texts, allow_empty=True)
    images = clip.preprocess([one for one in sample.subsets if one])
    exact, index = exact_interactions(ClipSimilarity(clip, every)(images).T.detach())
    for name, answer in expected.items():
        got = found(name)
        assert set(got) == {metric for metric in found("direct") if "pointing" not in metric}
        for (truth, effect), end in itertools.product(
            {"interaction": exact, "index": index}.items(), ("", "_others")
        ):
            kept = ~torch.eye(3, dtype=torch.bool) | (not end)
            rank = metrics.effect_agreement(answer[kept], effect[kept]).spearman
            for estimator in ("share", "difference", "product"):
                values = got[f"{estimator}_{truth}_scene{end}"].values
                assert values[1, 0] == pytest.approx(np.nan_to_num(rank), abs=1e-4)


def test_a_scene_without_its_subsets_is_not_measured() -> None:
    whole = two_regions("a")
    one = Sample("b", whole.image, whole.regions[:1], subsets=(whole.image,) * 2)
    assert measured("pairs", context(model("hf_vit"), Listed(whole, one)), "direct") == {}


def test_pairs_are_evaluated_where_they_are_asked_for(tmp_path: Path) -> None:
    """End to end on three scenes, in a table for each estimator; never by default."""
    common: dict[str, Any] = {
        "data": ("demo",),
        "methods": ("direct", "random"),
        "images": 3,
        "resamples": 20,
    }
    out = EvaluationConfig("demo/vit", str(tmp_path / "out"), tasks=("pairs",), **common)
    result = evaluate(out)
    assert set(result.summary.groups) == {
        f"Word and region: {name}" for name in ("share", "difference", "product")
    }
    figures = result.summary.figures.set_index(["method", "metric"])["mean"]
    assert figures["direct", "share_pointing"] > figures["random", "difference_pointing"]
    plain = make_plan(EvaluationConfig("demo/vit", str(tmp_path / "b"), **common), ModelLoader())
    [(_, tasks)] = plain.data
    assert tasks == ("localization", "signs", "effect", "faithfulness", "sanity")
