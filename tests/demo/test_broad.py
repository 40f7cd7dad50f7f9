"""Broad scenes: other backgrounds, small and large objects, some partly covered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captum_clip.demo.backgrounds import draw_background
from captum_clip.demo.captions import parse_caption
from captum_clip.demo.catalogue import BACKGROUNDS, CONCEPTS, HELD_OUT, UNNAMED
from captum_clip.demo.scenes import BROAD, Scene, draw_scene, holds
from captum_clip.demo.training import __main__ as commands
from captum_clip.demo.training import train as training
from captum_clip.demo.training.banks import Banks, build_banks, draw_batch
from captum_clip.demo.training.export import export_checkpoint
from captum_clip.demo.vocabulary import DemoTokenizer
from captum_clip.errors import InputError

SEEDS = range(20)


@pytest.fixture(scope="module")
def banks() -> Banks:
    return build_banks(0, variants=1, world=BROAD)


def broad(seed: int, **options: object) -> Scene:
    return draw_scene(seed, world=BROAD, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*UNNAMED, *HELD_OUT])
def test_kinds_of_background_vary_and_follow_from_the_generator(name: str) -> None:
    first, again, other = (
        draw_background(name, 96, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_stay_exact(seed: int) -> None:
    """Every pixel belongs to one part; leaving an object out changes its pixels only."""
    whole, rest = broad(seed, count=5), broad(seed, count=5, without=[3])
    masks = [whole.background_mask, *(thing.mask for thing in whole.objects)]
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    changed = (whole.image != rest.image).any(axis=-1)
    assert not (changed & ~whole.objects[3].mask).any()
    kept = [thing.name for thing in whole.objects]
    assert [thing.name for thing in rest.objects] == [*kept[:3], kept[4]]


def test_objects_are_small_and_large_and_partly_covered() -> None:
    lengths, visible = [], []
    for seed in SEEDS:
        whole = broad(seed, count=5)
        for i in range(5):
            alone = broad(seed, count=5, without=[j for j in range(5) if j != i]).objects[0].mask
            rows, columns = np.nonzero(alone)
            lengths.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 224)
            visible.append(whole.objects[i].mask.sum() / alone.sum())
    assert min(lengths) < 0.2
    assert max(lengths) > 0.6
    assert max(lengths) <= 1.27 * BROAD.sizes[1]
    assert min(visible) >= 0.4
    assert 0.1 < np.mean(np.array(visible) < 0.95) < 0.6


def test_half_of_the_backgrounds_have_a_name_and_none_is_held_out() -> None:
    drawn = Counter(broad(seed, count=1, size=64).background for seed in range(300))
    assert set(drawn) == {*BACKGROUNDS, *UNNAMED}
    assert 0.4 < sum(drawn[name] for name in BACKGROUNDS) / 300 < 0.6


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_kinds_are_never_drawn_for_training(name: str) -> None:
    assert broad(0, background=name, split="test").background == name
    with pytest.raises(InputError, match=f"background of grass, .*, got '{name}'"):
        broad(0, background=name, split="train")


def test_standard_scenes_know_none_of_them() -> None:
    with pytest.raises(InputError, match=r"background of grass, .*, got 'plain'"):
        draw_scene(0, background="plain")
    with pytest.raises(InputError, match="up to 3, got 4"):
        draw_scene(0, count=4)


def test_captions_are_true_and_short_enough_for_the_tokenizer() -> None:
    """A background without a name is in no caption and is no concept."""
    tokenizer = DemoTokenizer()
    for seed in SEEDS:
        for background in ("plain", "grass"):
            scene = broad(seed, count=5, background=background, size=96)
            assert all(holds(caption, scene) for caption in scene.captions)
            tokenizer(list(scene.captions))
            assert scene.concepts <= set(CONCEPTS)
            assert ("grass" in scene.concepts) == (background == "grass")


def test_batch_is_true_to_its_captions(banks: Banks) -> None:
    """Of banks that hold no held-out kind; the same for the same step."""
    assert set(banks.backgrounds) == {*BACKGROUNDS, *UNNAMED}
    batch, again = (draw_batch(banks, 0, 1, size=24) for _ in range(2))
    np.testing.assert_array_equal(batch.images, again.images)
    shown = [
        {concept for concept, true in zip(CONCEPTS, row, strict=True) if true}
        for row in batch.positive[:, 24:]
    ]
    for column, text in enumerate(batch.texts):
        named = parse_caption(text).concepts
        assert batch.positive[:, column].tolist() == [named <= concepts for concepts in shown]
    assert 0 < sum(not concepts & set(BACKGROUNDS) for concepts in shown) < 24


@pytest.mark.slow
def test_training_on_broad_scenes_starts_from_a_model_and_resumes(
    banks: Banks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "build_banks", lambda *_, **__: banks)
    options = {"batch_size": 2, "validation": 2, "scenes": "broad", "start": "demo/vit"}
    settings = training.Settings("vit", steps=2, **options)  # type: ignore[arg-type]
    whole = training.train(settings, tmp_path / "whole")
    stopped = training.Trainer(settings)
    assert stopped.validate(stopped.recipe.validation(8, BROAD)) > 0.2  # not of fresh weights
    stopped.advance(training.Batches(settings, banks)[stopped.step])
    training.save_checkpoint(tmp_path / "resumed", stopped.state())
    resumed = training.train(settings, tmp_path / "resumed")
    for key, value in whole.model.state_dict().items():
        assert (resumed.model.state_dict()[key] == value).all(), key
    with pytest.raises(InputError, match="scenes=broad, not standard"):
        training.Trainer(training.Settings("vit", steps=2, batch_size=2)).restore(whole.state())
    export_checkpoint("vit", tmp_path / "whole", tmp_path / "export", scenes=2)
    card = (tmp_path / "export" / "MODEL_CARD.md").read_text()
    assert "--scenes broad --start demo/vit" in card
    assert "one to five of" in card


def test_evaluate_prints_the_nouns_found_by_kind_of_scene(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.main(["evaluate", "vit", "--scenes", "4", "--broad"])
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert header == "| scenes | nouns | colours | feelings | backgrounds |"
    names = [row.split("|")[1].strip() for row in rows]
    kinds = [*BACKGROUNDS, *UNNAMED, *(f"{name} (held out)" for name in HELD_OUT)]
    assert names == ["standard", *kinds]
