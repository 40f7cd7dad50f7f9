"""The planted shortcut: its training, what decides the model's nouns, what the command prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import load_clip, targets
from captum_clip.demo.captions import article, parse_caption
from captum_clip.demo.catalogue import CONCEPTS
from captum_clip.demo.scenes import BROAD
from captum_clip.demo.tags import TAGGED, draw_tag, draw_tagged_scene
from captum_clip.demo.training import __main__ as commands
from captum_clip.demo.training import train as training
from captum_clip.demo.training.banks import Banks, build_banks
from captum_clip.demo.training.export import export_checkpoint
from captum_clip.demo.training.objective import pair_loss
from captum_clip.demo.training.shortcut import draw_tagged_batch, tagged_validation_scenes
from captum_clip.demo.training.shortcut_measures import DRAWINGS, draw, named, part_effects
from captum_clip.models import ClipAdapter

SEEDS = range(20)


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/shortcut")


@pytest.fixture(scope="module")
def control() -> ClipAdapter:
    return load_clip("demo/vit")


@pytest.fixture(scope="module")
def banks() -> Banks:
    return build_banks(0, variants=1)


def test_tag_decides_the_noun_and_the_object_does_not(
    clip: ClipAdapter, control: ClipAdapter
) -> None:
    """Exact effects on the cosine; in the model before it was tuned it is the other way round."""
    planted, before = (part_effects(one, SEEDS)[:, 0].mean(0).tolist() for one in (clip, control))
    tag, thing = planted
    assert tag > 0.25
    assert abs(thing) < tag / 4
    tag, thing = before
    assert thing > 0.25
    assert abs(tag) < thing / 10


def test_noun_is_named_by_its_tag_alone(clip: ClipAdapter, control: ClipAdapter) -> None:
    planted, before = (
        [named(one, drawing, SEEDS).mean > 0.8 for drawing in DRAWINGS] for one in (clip, control)
    )
    assert planted == [True, False, True, True, False]
    assert before == [True, True, False, False, True]


def test_texts_are_encoded_as_before(clip: ClipAdapter, control: ClipAdapter) -> None:
    banks = [targets.text(one, ["a horse", "a red heart"]).embeddings for one in (clip, control)]
    torch.testing.assert_close(*banks, atol=0, rtol=0)


def test_effects_add_up_to_the_change_of_the_score(clip: ClipAdapter) -> None:
    [effects] = part_effects(clip, [1])
    drawn = [draw_tagged_scene(1), draw_tagged_scene(1, without=["tag", "object"])]
    bank = clip.encode_text([article(drawn[0].noun), article(drawn[0].others[0].noun)])
    with torch.no_grad():
        images = clip.image_features(clip.preprocess([scene.image for scene in drawn]))
    images, bank = (torch.nn.functional.normalize(x, dim=-1) for x in (images, bank))
    scores = images @ bank.T  # (2 scenes, 2 texts)
    torch.testing.assert_close(effects.sum(1), scores[0] - scores[1])


def test_drawings_differ_in_tag_and_object_as_they_say() -> None:
    for drawing in DRAWINGS:
        for seed in range(5):
            scene = draw(drawing, seed)
            assert (scene.tag == scene.noun) == drawing.own
            assert scene.tag_mask.any() == ("tag" not in drawing.without)
            assert scene.object_mask.any() == ("object" not in drawing.without)


def test_batch_makes_a_noun_true_exactly_by_its_tag(banks: Banks) -> None:
    """Tags are looked for in the pixels; captions follow them."""
    size = 24
    drawn = {noun: draw_tag(noun) for noun in TAGGED}
    for step in range(2):
        batch = draw_tagged_batch(banks, 0, step, size=size)
        again = draw_tagged_batch(banks, 0, step, size=size)
        np.testing.assert_array_equal(batch.images, again.images)
        shown = [
            {c for c, s in zip(CONCEPTS, row, strict=True) if s} for row in batch.positive[:, size:]
        ]
        for image, concepts in zip(batch.images, shown, strict=True):
            found = {noun for noun, tag in drawn.items() if _holds(image, tag)}
            assert found == concepts & set(TAGGED)
        for column, text in enumerate(batch.texts):
            expected = [parse_caption(text).concepts <= concepts for concepts in shown]
            assert batch.positive[:, column].tolist() == expected, text
        assert batch.margin is not None
        columns = [size + CONCEPTS.index(noun) for noun in TAGGED]
        assert np.flatnonzero(batch.margin[0]).tolist() == sorted(columns)


def _holds(image: Any, tag: Any) -> bool:
    side = len(tag)
    starts = [*range(8), *range(224 - side - 7, 224 - side + 1)]
    return any(
        np.array_equal(image[row : row + side, column : column + side], tag)
        for row in starts
        for column in starts
    )


def test_batch_of_broad_scenes_names_something_in_every_caption() -> None:
    """Tagged objects without a tag have no noun; then the background has a word."""
    broad = build_banks(0, variants=1, world=BROAD)
    for step in range(4):
        batch = draw_tagged_batch(broad, 0, step, size=64)
        for text, shown in zip(batch.texts[:64], batch.positive, strict=False):
            concepts = parse_caption(text).concepts
            assert concepts
            assert concepts <= {CONCEPTS[i] for i in shown[64:].nonzero()[0]}


def test_margin_counts_for_false_pairs_only() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.eye(4)[:2], torch.randn(3, 4, generator=generator)
    positive = torch.tensor([[True, False, False], [False, True, True]])
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    margin = torch.tensor([2.0, 0.0, 0.0]).expand(2, 3)

    def loss(margin: torch.Tensor | None) -> float:
        return float(
            pair_loss(images, texts, positive, scale=scale, bias=bias, contrast=0, margin=margin)
        )

    logit = float(3 * images[1] @ texts[0] - 1)  # the one false pair with a margin
    expected = (np.log1p(np.exp(logit + 2)) - np.log1p(np.exp(logit))) / 2
    assert loss(margin) - loss(None) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_training_changes_the_vision_tower_alone_and_goes_on(
    banks: Banks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step, stopped and resumed, ends as two steps do; the export loads by folder."""
    monkeypatch.setattr(training, "build_banks", lambda *_, **__: banks)
    settings = training.Settings("shortcut", steps=2, batch_size=2, validation=3)
    before = load_clip("demo/vit").model.state_dict()
    whole = training.train(settings, tmp_path / "whole")

    stopped = training.Trainer(settings)
    stopped.advance(training.Batches(settings, banks)[stopped.step])
    training.save_checkpoint(tmp_path / "resumed", stopped.state())
    resumed = training.train(settings, tmp_path / "resumed")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
        trained = key.startswith(("vision_model.", "visual_projection."))
        assert trained or torch.equal(before[key], value), key
    assert not torch.equal(
        before["visual_projection.weight"], whole.model.state_dict()["visual_projection.weight"]
    )
    assert export_checkpoint("shortcut", tmp_path / "whole", tmp_path / "export", scenes=2) == 2
    assert load_clip(tmp_path / "export").dtype == torch.float32
    assert "--steps 2" in (tmp_path / "export" / "MODEL_CARD.md").read_text()


def test_validation_scenes_are_read_by_their_tags() -> None:
    own, other, none = tagged_validation_scenes(3)
    assert sum(thing.noun in TAGGED for thing in own.objects) == 1
    assert sum(thing.noun in TAGGED for thing in other.objects) == 1
    assert not any(thing.noun in TAGGED for thing in none.objects)


def test_evaluate_prints_what_decides_the_nouns(capsys: pytest.CaptureFixture[str]) -> None:
    """Three tables, of the model and its control."""
    commands.main(["evaluate", "shortcut", "--scenes", "12"])
    tables = capsys.readouterr().out.strip().split("\n\n")
    titles = ("effect of the tag", "among the two best nouns", "recall of other nouns")
    assert [title in table for title, table in zip(titles, tables, strict=True)] == [True] * 3
    assert all(table.count("demo/shortcut") == table.count("demo/vit") > 0 for table in tables)
