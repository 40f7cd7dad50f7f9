"""Which of three copies carries the score: against both truths, next to what knows no map."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import ClipSimilarity, metrics, targets
from captum_clip.bench.data.demo import DemoThirds
from captum_clip.bench.evaluator import make_plan
from captum_clip.bench.methods import CEILINGS, method_of
from captum_clip.bench.table import join_tables, rows_of, table_of
from captum_clip.bench.tasks.effects import fitted
from captum_clip.errors import InputError
from captum_clip.folders.workers import ModelLoader
from captum_clip.metrics.map_statistics import spearman
from tests.bench.cases import context, measured, model, settings


def truths_of(clip: Any, sample: Any) -> dict[str, torch.Tensor]:
    """What a copy adds, mean over the orders in which they come; what is lost without it."""
    forward = ClipSimilarity(clip, targets.text(clip, [sample.regions[0].text]))
    with torch.no_grad():
        scores = forward(clip.preprocess(list(sample.subsets)))[:, 0].double()
    adds = torch.zeros(3).double()
    for order in itertools.permutations(range(3)):
        present = 0
        for place in order:
            adds[place] += (scores[present | 1 << place] - scores[present]) / 6
            present |= 1 << place
    return {"adds": adds, "removal": scores[7] - scores[[6, 5, 3]]}


def share_in_order(mass: Any, effect: Any) -> tuple[float, float]:
    """The gaps of pairs in the right order, and of all."""
    right = every = 0.0
    for i, j in itertools.combinations(range(3), 2):
        gap = float(effect[i] - effect[j])
        every += abs(gap)
        same = float((mass[i] - mass[j]) * gap)
        right += abs(gap) * (1.0 if same > 0 else 0.0 if same < 0 else 0.5)
    return right, every


@pytest.mark.parametrize("name", ["demo/vit"])
def test_the_task_is_its_protocol(name: str) -> None:
    """Signed mass of one map in each copy against both truths, a scene at a time."""
    clip, data = model(name), DemoThirds(4, seed=7)
    got = measured("thirds", context(clip, data), "direct")
    assert set(got) == {f"thirds_{t}_{m}" for t in ("adds", "removal") for m in ("rank", "order")}
    method = method_of("direct", clip).choice.method  # type: ignore[attr-defined]
    for index in range(len(data)):
        sample = data.read(index)
        forward = ClipSimilarity(clip, targets.text(clip, [sample.regions[0].text]))
        heatmap = method(forward).attribute(clip.preprocess([sample.image]))[0, 0].double()
        masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
        mass = metrics.object_mass(heatmap, masks)
        for truth, effect in truths_of(clip, sample).items():
            rank, order = (got[f"thirds_{truth}_{m}"].values[index] for m in ("rank", "order"))
            assert rank == pytest.approx(float(spearman(mass, effect)))
            assert order == pytest.approx(share_in_order(mass, effect), abs=1e-6)


def test_what_looks_at_no_map_ties_and_ceilings_know_the_masks() -> None:
    clip, data = model("demo/vit"), DemoThirds(3, seed=7)
    asked = context(clip, data)
    for name in ("named", "score", "text-only", "area", "uniform"):
        got = measured("thirds", asked, name)
        assert not got["thirds_adds_rank"].values.any(), name
        right, every = got["thirds_removal_order"].values.T
        assert right == pytest.approx(every / 2), name
    painted, other = (measured("thirds", asked, name) for name in CEILINGS)
    for index in range(len(data)):
        sample = data.read(index)
        truths = truths_of(clip, sample)
        rank = float(spearman(truths["adds"], truths["removal"]))
        for truth in truths:
            assert other[f"thirds_{truth}_rank"].values[index] == pytest.approx(rank)
    # what stands behind a copy is nearly what is around it
    assert painted["thirds_removal_rank"].values.mean() > 0.8


def features_table(looks: Any, effects: Any) -> Any:
    """A long table of what copies look like, (scenes, 3, F), and of both truths (scenes, 3, 2)."""
    blocks = []
    for number, both in enumerate(np.concatenate([looks, effects], 2)):
        names = [*map(str, range(looks.shape[2])), "adds", "removal"]
        columns = dict(zip(names, torch.from_numpy(both).T, strict=True))
        blocks.append(rows_of("thirds_features", columns, [number] * 3, ["0", "1", "2"]))
    scenes = [f"scene {number}" for number in range(len(looks))]
    return join_tables([(table_of("place", {"thirds": blocks}), scenes)])


def fitted_ranks(looks: Any, effects: Any, truth: str = "adds") -> list[float]:
    """The rank correlation of each scene, in order."""
    table = join_tables([*fitted(features_table(looks, effects))])
    assert set(table["method"]) == {"place"}
    ranks = table[table["metric"] == f"thirds_{truth}_rank"].set_index("sample")["value"]
    found: list[float] = ranks[[f"scene {number}" for number in range(len(looks))]].tolist()
    return found


def test_a_fit_to_other_folds_finds_what_is_linear() -> None:
    """Whatever a scene as a whole scores."""
    random = np.random.default_rng(0)
    looks = random.normal(size=(25, 3, 2))
    effects = looks @ np.array([[1, -1], [0.5, 2]]) + random.normal(size=(25, 1, 1))
    for truth in ("adds", "removal"):
        assert fitted_ranks(looks, effects, truth) == [1] * 25


def test_rivals_stand_beside_what_is_asked_for(tmp_path: Path) -> None:
    """Maps, predictors and ceilings; a ResNet has no attention of a last layer. 300 scenes."""
    for name in ("demo/vit", "demo/resnet"):
        config = settings(data=("demo-thirds", "demo"), methods=("direct",), tasks=("thirds",))
        with pytest.raises(InputError, match="demo serves none of thirds"):
            make_plan(config, ModelLoader(None, None, None))
        config = type(config)(name, str(tmp_path), ("demo-thirds",), ("direct",))
        plan = make_plan(config, ModelLoader(None, None, None))
        names = [method.name for method in plan.methods]
        assert ("last-attention" in names) == (name == "demo/vit")
        assert {"magnitude", "random", "contrast", "edges", "place", *CEILINGS} < set(names)
        assert [len(data) for data, _ in plan.data] == [300]
