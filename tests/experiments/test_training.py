"""The training of the embedded models: right positives, a loss with a closed form, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import load_clip
from captum_clip.demo.catalog import BACKGROUNDS, CONCEPTS, THINGS, DemoTokenizer, compose
from captum_clip.demo.scenes import STANDARD, draw_scene
from captum_clip.errors import InputError
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


@pytest.mark.parametrize("world", [STANDARD, BROAD], ids=["standard", "broad"])
def test_batch_marks_a_caption_for_every_scene_that_holds_all_it_names(world: Any) -> None:
    size, banks = 24, banks_module.build_banks(0, variants=1, world=world)
    batch, again = (banks_module.draw_batch(banks, 0, 1, size=size) for _ in range(2))
    np.testing.assert_array_equal(batch.images, again.images)
    shown = [
        {concept for concept, is_shown in zip(CONCEPTS, row, strict=True) if is_shown}
        for row in batch.positive[:, size:]
    ]
    for column, text in enumerate(batch.texts):
        named = captions.parse_caption(text).concepts
        assert batch.positive[:, column].tolist() == [named <= concepts for concepts in shown]
    assert batch.positive[:, :size].diagonal().all()
    assert not set(banks.backgrounds) & set(BROAD.held_out)


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


def test_learning_rate_rises_to_its_peak_and_ends_near_zero() -> None:
    rates = [experiment("training.objective").one_cycle(s, 200, peak=2.0) for s in range(200)]
    assert max(rates) == rates[20] == pytest.approx(2.0)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] < 1e-3


def test_figures_are_shares_of_what_scores_best() -> None:
    scenes = (
        draw_scene(0, objects=["horse", "red heart"], background="grass"),
        draw_scene(1, objects=["sad face"], background="sand"),
    )
    scores = torch.zeros(2, len(CONCEPTS))
    for row, named in enumerate([["heart", "cat", "blue heart", "grass"], ["face", "sad face"]]):
        scores[row, [CONCEPTS.index(concept) for concept in named]] = 1
    scores[1, CONCEPTS.index("grass")] = 1
    found = experiment("training.evaluate").figures(scores, scenes)
    assert (found.nouns, found.colors, found.feelings, found.backgrounds) == (2 / 3, 0, 1, 0.5)


@pytest.mark.parametrize("name", ["vit", "resnet", "siglip"])
def test_resumed_training_ends_as_an_uninterrupted_one(
    name: str, banks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the export opens, with the exported tokenizer, as the model that was trained."""
    monkeypatch.setattr(training, "build_banks", lambda *_, **__: banks)
    monkeypatch.setitem(recipes.RECIPES, name, replace(recipes.RECIPES[name], every=2))
    settings = training.Settings(name, steps=3, batch_size=2, validation=2)
    whole = training.train(settings, tmp_path / "whole")
    stopped = training.Trainer(settings)
    for _ in range(2):
        stopped.advance(training.Batches(settings, banks)[stopped.step])
    training.save_checkpoint(tmp_path / "resumed", stopped.state())
    resumed = training.train(settings, tmp_path / "resumed")
    assert resumed.step == whole.step == 3
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    with pytest.raises(InputError, match="batch_size=2, not 4"):
        training.Trainer(replace(settings, batch_size=4)).restore(whole.state())
    export = experiment("training.export").export_checkpoint
    assert export(name, tmp_path / "whole", tmp_path / "export", scenes=2) == 3
    assert f"{name} --steps 3" in (tmp_path / "export" / "MODEL_CARD.md").read_text()
    clip, texts = load_clip(tmp_path / "export"), ["A horse, and (a Dog).", "there is a red heart!"]
    tokens = DemoTokenizer()(texts)
    with torch.no_grad():
        found = clip.encode_text(texts)
        own = unit(whole.recipe.architecture.encode_text(whole.model.eval(), tokens))
    torch.testing.assert_close(found, own, atol=5e-3, rtol=0)


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
