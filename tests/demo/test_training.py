"""Training: right positives, a loss with a closed form, resuming, exporting."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import demo, load_clip
from captum_clip.demo.captions import parse_caption
from captum_clip.demo.catalogue import CONCEPTS
from captum_clip.demo.scenes import draw_scene
from captum_clip.demo.training import __main__ as commands
from captum_clip.demo.training import train as training
from captum_clip.demo.training.architectures import ARCHITECTURES, normalize_pixels, trim, unit
from captum_clip.demo.training.banks import Banks, build_banks, draw_batch
from captum_clip.demo.training.evaluate import figures
from captum_clip.demo.training.export import export_checkpoint, export_model
from captum_clip.demo.training.objective import one_cycle, pair_loss
from captum_clip.demo.training.recipes import RECIPES, TRAINED_BIAS
from captum_clip.demo.vocabulary import DemoTokenizer
from captum_clip.errors import InputError
from captum_clip.models.huggingface import embedding_of

NAMES = sorted(ARCHITECTURES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep tiny batches from waiting for a pool of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def banks() -> Banks:
    return build_banks(0, variants=1)


def test_batch_follows_from_seed_and_step(banks: Banks) -> None:
    first, again = draw_batch(banks, 0, 3, size=4), draw_batch(banks, 0, 3, size=4)
    other = draw_batch(banks, 0, 4, size=4)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.texts == again.texts
    assert not np.array_equal(first.images, other.images)


def test_batch_marks_a_caption_for_every_scene_that_holds_all_it_names(banks: Banks) -> None:
    size = 32
    for step in range(4):
        batch = draw_batch(banks, 0, step, size=size)
        shown = [
            {concept for concept, is_shown in zip(CONCEPTS, row, strict=True) if is_shown}
            for row in batch.positive[:, size:]
        ]
        for column, text in enumerate(batch.texts):
            named = parse_caption(text).concepts
            expected = [named <= concepts for concepts in shown]
            assert batch.positive[:, column].tolist() == expected, text
        assert batch.positive[:, :size].diagonal().all()


def test_pair_loss_agrees_with_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (unit(torch.randn(n, 8, generator=generator)) for n in (3, 5))
    positive = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    scale, bias = torch.tensor(7.0), torch.tensor(-2.0)
    expected = 0.0
    logits = (scale * images @ texts.T).tolist()
    for row, signs in zip(logits, positive.tolist(), strict=True):
        for value, sign in zip(row, signs, strict=True):
            expected += np.log1p(np.exp(-(value - 2) if sign else value - 2)) / 3
    for table, truths in (
        (np.array(logits), positive.numpy()),
        (np.array(logits).T, positive.numpy().T),
    ):
        rows = []
        for row, signs in zip(table, truths, strict=True):
            if signs.any():
                rows.append((np.log(np.exp(row).sum()) - row[signs]).mean())
        expected += 0.1 * float(np.mean(rows))
    found = pair_loss(images, texts, positive, scale=scale, bias=bias)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_figures_are_shares_of_what_scores_best() -> None:
    scenes = (
        draw_scene(0, objects=["horse", "red heart"], background="grass"),
        draw_scene(1, objects=["dog"], background="sand"),
    )
    scores = torch.zeros(2, len(CONCEPTS))
    for row, concepts in enumerate([["heart", "cat", "blue heart", "grass"], ["dog", "grass"]]):
        scores[row, [CONCEPTS.index(concept) for concept in concepts]] = 1
    found = figures(scores, scenes)
    assert (found.nouns, found.colors, found.backgrounds) == (2 / 3, 0.0, 0.5)
    assert np.isnan(found.feelings)
    scores[0, CONCEPTS.index("red heart")] = 2
    assert figures(scores, scenes).colors == 1.0
    assert figures(scores[:1], scenes[:1]).backgrounds == 1.0
    assert np.isnan(figures(scores[1:], scenes[1:]).colors)


def test_figures_keep_feelings_apart_from_colours() -> None:
    scenes = (draw_scene(0, objects=["sad face"]), draw_scene(1, objects=["angry face"]))
    scores = torch.zeros(2, len(CONCEPTS))
    for row, concept in enumerate(["sad face", "scared face"]):
        scores[row, CONCEPTS.index(concept)] = 1
    assert figures(scores, scenes).feelings == 0.5
    assert np.isnan(figures(scores, scenes).colors)


def test_learning_rate_rises_to_its_peak_and_ends_near_zero() -> None:
    rates = [one_cycle(step, 200, peak=2.0) for step in range(200)]
    assert max(rates) == rates[20] == pytest.approx(2.0)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_trimmed_texts_keep_their_encoding(name: str) -> None:
    run = ARCHITECTURES[name]
    model: Any = run.build().eval()
    tokens = DemoTokenizer()(["a horse", "a red heart and a dog"])
    with torch.no_grad():
        if name == "resnet":
            whole = model.encode_text(tokens)
        else:
            whole = embedding_of(model.get_text_features(input_ids=tokens))
        torch.testing.assert_close(run.encode_text(model, tokens), whole)


@pytest.mark.parametrize("name", NAMES)
def test_resumed_training_ends_as_an_uninterrupted_one(
    name: str, banks: Banks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "build_banks", lambda *_, **__: banks)
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], every=2))
    settings = training.Settings(name, steps=3, batch_size=2, validation=2)
    whole = training.train(settings, tmp_path / "whole")

    stopped = training.Trainer(settings)
    first = [stopped.advance(training.Batches(settings, banks)[stopped.step]) for _ in range(2)]
    assert np.isfinite(first).all()
    training.save_checkpoint(tmp_path / "resumed", stopped.state())
    resumed = training.train(settings, tmp_path / "resumed")

    assert resumed.step == whole.step == 3
    assert torch.equal(resumed.bias, whole.bias)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    curve = (tmp_path / "whole" / "curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in curve] == ["step", "2", "3"]
    assert len((tmp_path / "resumed" / "curve.csv").read_text().splitlines()) == 2
    other = training.Trainer(training.Settings(name, steps=3, batch_size=4))
    with pytest.raises(InputError, match="batch_size=2, not 4"):
        other.restore(whole.state())
    with pytest.raises(InputError, match="has 3 steps, asked: 2"):
        training.Trainer(training.Settings(name, steps=2)).restore(whole.state())
    assert export_checkpoint(name, tmp_path / "whole", tmp_path / "export", scenes=2) == 3
    assert (tmp_path / "export" / "curve.csv").exists()
    card = (tmp_path / "export" / "MODEL_CARD.md").read_text()
    assert f"{name} --steps 3" in card


def test_siglip_starts_where_names_and_shapes_are_those_of_the_vit() -> None:
    """The blocks and the words are taken over; the head stays fresh, and trains its own bias."""
    trainer = training.Trainer(training.Settings("siglip", steps=1))
    own, vit = trainer.model.state_dict(), load_clip("demo/vit").model.state_dict()
    for key in ("vision_model.encoder.layers.5.mlp.fc1.weight", "text_model.final_layer_norm.bias"):
        assert torch.equal(own[key], vit[key])
    assert not any(key.startswith("vision_model.head") for key in vit)
    assert trainer.bias.item() == pytest.approx(TRAINED_BIAS)
    assert trainer.bias is dict(trainer.model.named_parameters())["logit_bias"]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # Python 3.12, in torch
def test_batches_drawn_in_other_processes_are_the_same(
    banks: Banks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "build_banks", lambda *_, **__: banks)
    settings = training.Settings("vit", steps=3, batch_size=2, validation=2)
    alone = training.train(settings, tmp_path / "alone")
    helped = training.train(replace(settings, workers=2), tmp_path / "helped")
    for key, value in alone.model.state_dict().items():
        assert torch.equal(helped.model.state_dict()[key], value), key


def test_missing_checkpoint_is_an_error_for_the_exporter(tmp_path: Path) -> None:
    assert training.load_checkpoint(tmp_path) is None
    with pytest.raises(InputError, match=r"no checkpoint\.pt"):
        export_checkpoint("vit", tmp_path, tmp_path / "export")


@pytest.mark.parametrize("name", RECIPES)
def test_commands_are_the_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` has the steps of the recipe, and exports what it trained if it is asked to."""
    calls: list[Any] = []
    monkeypatch.setattr(commands, "train", lambda *arguments, **_: calls.append(arguments))
    monkeypatch.setattr(commands, "export_checkpoint", lambda *_: RECIPES[name].steps)
    places = [str(tmp_path / "checkpoint"), str(tmp_path / "model")]
    commands.main(["train", name, "--checkpoint", places[0], "--export", places[1]])
    [(settings, folder)] = calls
    assert settings == training.Settings(name, steps=RECIPES[name].steps)
    assert str(folder) == places[0]
    assert capsys.readouterr().out.strip() == f"{name} after {settings.steps} steps -> {places[1]}"


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_prints_the_table_of_the_card(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each number of objects; the packaged models know nearly all nouns."""
    commands.main(["evaluate", name, "--scenes", "4"])
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert header == "| objects | nouns | colours | feelings | backgrounds |"
    assert [row.split("|")[1].strip() for row in rows] == ["1", "2", "3"]
    assert all(float(row.split("|")[2]) > 0.7 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_exported_model_loads_and_agrees(name: str, banks: Banks, tmp_path: Path) -> None:
    run = ARCHITECTURES[name]
    model = run.build().eval()
    export_model(run, model, tmp_path)
    clip = load_clip(tmp_path)
    loaded: Any = clip.model
    pixels = normalize_pixels(draw_batch(banks, 0, 0, size=2).images)
    tokens = DemoTokenizer()(["a horse", "grass"])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5e6
    with torch.no_grad():
        for encode, inputs in ((run.encode_image, pixels), (run.encode_text, tokens)):
            before, after = unit(encode(model, inputs)), unit(encode(loaded, inputs))
            torch.testing.assert_close(after, before, atol=5e-3, rtol=0)
    by_adapter = clip.encode_text(["a horse", "grass"])  # with the exported tokenizer
    torch.testing.assert_close(by_adapter, after, atol=1e-5, rtol=0)


def test_exported_vit_opens_as_any_clip(tmp_path: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    export_model(ARCHITECTURES["vit"], ARCHITECTURES["vit"].build(), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    image = np.zeros((300, 240, 3), dtype=np.uint8)
    inputs = processor(
        text=["a horse", "a red heart"], images=image, padding=True, return_tensors="pt"
    )
    texts = DemoTokenizer()(["a horse", "a red heart"])
    assert torch.equal(inputs["input_ids"], trim(texts))
    with torch.no_grad():
        assert model(**inputs).logits_per_image.shape == (1, 2)


def test_exported_resnet_opens_with_preprocessing_and_tokenizer(tmp_path: Path) -> None:
    import open_clip

    export_model(ARCHITECTURES["resnet"], ARCHITECTURES["resnet"].build(), tmp_path)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert torch.equal(tokenizer(["a horse"]), DemoTokenizer()(["a horse"]))
    assert model.visual.attnpool.num_heads == 8
    normalize = preprocess.transforms[-1]
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert list(normalize.mean) == config["preprocess_cfg"]["mean"]
    assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 128)


def test_package_module_itself_loads_no_library() -> None:
    code = (
        f"import runpy, sys; names = runpy.run_path({demo.__file__!r}); "
        "assert [name.removeprefix('demo/') for name in names['MODELS']] == "
        "['vit', 'resnet', 'siglip', 'shortcut']; "
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
