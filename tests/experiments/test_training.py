"""The training of the embedded models: right positives, a loss with a closed form, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip.demo.catalog import BACKGROUNDS, THINGS, compose
from captum_clip.demo.scenes import STANDARD, draw_scene
from tests.experiments import experiment

commands = experiment("demo_models")
training = experiment("training.train")
banks_module = experiment("training.banks")
captions = experiment("training.captions")
recipes = experiment("training.recipes")
unit = experiment("training.architectures").unit
BROAD = experiment("training.broad_scenes").BROAD


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep tiny batches from waiting for a pool of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def banks() -> Any:
    return banks_module.build_banks(0, variants=1)


def test_caption_holds_for_every_scene_with_all_it_names() -> None:
    scene = draw_scene(0, objects=["horse", "red heart"], background="grass")
    true = ["a horse", "a heart", "a red heart", "grass", "a heart and a horse on grass"]
    false = ["a dog", "a blue heart", "a horse and a dog", "a horse on sand", "a red circle"]
    assert [text for text in true + false if captions.holds(text, scene)] == true
    for thing in THINGS:
        for background in BACKGROUNDS:
            text = compose([thing.name, "phone"], background)
            assert captions.parse_caption(text).concepts == {thing.name, "phone", background}
    with pytest.raises(ValueError, match="no demo scene shows a 'red horse'"):
        captions.parse_caption("a red horse")
    for world in (STANDARD, BROAD):
        for seed in range(10):
            drawn = draw_scene(seed, world=world, size=96)
            assert all(captions.holds(text, drawn) for text in drawn.captions)


def test_pair_loss_agrees_with_its_formula() -> None:
    """And a margin counts for false pairs only."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (unit(torch.randn(n, 8, generator=generator)) for n in (3, 5))
    positive = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    margin = torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0]).expand(3, 5)
    logits, truths = (7 * images @ texts.T).numpy().astype(float), positive.numpy()
    shifted = logits - 2 + margin.numpy() * ~truths
    expected = np.log1p(np.exp(np.where(truths, -shifted, shifted))).sum() / 3
    for table, true in ((logits, truths), (logits.T, truths.T)):
        rows = [
            np.log(np.exp(row).sum()) - row[signs].mean()
            for row, signs in zip(table, true, strict=True)
            if signs.any()
        ]
        expected += 0.1 * np.mean(rows)
    pair_loss = experiment("training.objective").pair_loss
    scale, bias = torch.tensor(7.0), torch.tensor(-2.0)
    found = pair_loss(images, texts, positive, scale=scale, bias=bias, margin=margin)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_evaluate_prints_the_tables_of_the_documentation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row for each number of objects, or for each kind of background."""
    commands.main(["evaluate", "vit", "--scenes", "4"])
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert header == "| objects | nouns | colors | feelings | backgrounds |"
    assert all(float(row.split("|")[2]) > 0.7 for row in rows)
    commands.main(["evaluate", "vit", "--scenes", "1", "--broad"])
    _, _, *rows = capsys.readouterr().out.strip().splitlines()
    kinds = [*dict.fromkeys(BROAD.backgrounds), *(f"{name} (held out)" for name in BROAD.held_out)]
    assert [row.split("|")[1].strip() for row in rows] == ["standard", *kinds]
