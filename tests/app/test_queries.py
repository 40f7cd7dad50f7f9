"""Questions of the page: each answer is the library's own, each refusal a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import (
    ClipSimilarity,
    DirectContribution,
    LayerAttention,
    explain,
    load_clip,
    targets,
)
from captum_clip.app import html
from captum_clip.app.model_cache import EMBEDDED, ModelCache
from captum_clip.app.queries import (
    MAX_TEXTS,
    Query,
    Result,
    ask,
    example,
    heads,
    layers,
    pick,
    words,
)
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, TargetError
from captum_clip.visualization.strips import sum_notes

IMAGE = draw_scene(0, objects=["horse", "dog"]).image
TEXTS = "a horse\n\n  a horse and   a dog \n"


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    return ModelCache()


@pytest.fixture(scope="module", params=["positive", "negative", "both"])
def answer(request: pytest.FixtureRequest, cache: ModelCache) -> Result:
    return ask(cache, Query(IMAGE, TEXTS, "demo/vit", "last-grad", request.param))


def test_ask_answers_as_explain_does(answer: Result, cache: ModelCache) -> None:
    """One text per line; lines without one and needless spaces do not count."""
    sign = "both" if len(answer.explanation.maps) == 2 else next(iter(answer.explanation.maps))
    texts = ["a horse", "a horse and a dog"]
    expected = explain(IMAGE, texts, model="demo/vit", method="last-grad", sign=sign)  # type: ignore[arg-type]
    assert answer.explanation.names == expected.names
    assert answer.explanation.maps.keys() == expected.maps.keys()
    torch.testing.assert_close(answer.explanation.scores, expected.scores)
    for kind, found in answer.explanation.maps.items():
        torch.testing.assert_close(found, expected.maps[kind])


def test_shown_is_what_was_found_until_a_word_is_picked(answer: Result) -> None:
    same = answer.shown()
    assert same.names == answer.explanation.names
    for sign, found in same.maps.items():
        torch.testing.assert_close(found, answer.explanation.maps[sign], rtol=0, atol=0)


def test_pick_shows_the_word_of_targets_words(answer: Result, cache: ModelCache) -> None:
    """The map, the norm and the brightness of the fifth word; the other text stays."""
    picked = pick(cache, answer, 1, 5)
    found, clip = picked.shown(), cache.get("demo/vit")
    words = targets.words(clip, "a horse and a dog")
    assert found.names == ("a horse", "'dog' in 'a horse and a dog'")
    torch.testing.assert_close(found.norms[1], words.norms[4])
    torch.testing.assert_close(
        picked.weights, torch.tensor([1, words.norms[4] / words.norms.max()])
    )
    for sign, maps in found.maps.items():
        target = words if sign == "positive" else -words
        expected = explain(IMAGE, target, model=clip, method="last-grad").maps["positive"]
        torch.testing.assert_close(maps[:, 1], expected[:, 4])
        torch.testing.assert_close(maps[:, 0], answer.explanation.maps[sign][:, 0])


def test_pick_goes_back_and_explains_a_text_once(
    answer: Result, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = pick(cache, answer, 1, 2)
    monkeypatch.setattr("captum_clip.app.queries.explain", lambda *_, **__: pytest.fail("again"))
    other = pick(cache, picked, 1, 5)
    assert (other.picks, pick(cache, other, 1, 0).picks) == ((0, 5), (0, 0))
    assert answer.picks == (0, 0)


@pytest.mark.parametrize(("text", "word"), [(2, 0), (-1, 1), (0, 3), (0, -1)])
def test_pick_refuses_what_is_not_there(
    answer: Result, cache: ModelCache, text: int, word: int
) -> None:
    with pytest.raises(InputError, match="no longer there"):
        pick(cache, answer, text, word)


def test_layers_are_those_of_layer_attention(answer: Result, cache: ModelCache) -> None:
    clip = cache.get("demo/vit")
    attention, gradient = layers(cache, answer, 1)
    method = LayerAttention(ClipSimilarity(clip, targets.text(clip, "a horse and a dog")))
    pixels = clip.preprocess(IMAGE)
    assert attention.shape == gradient.shape == (1, 6, 7, 7)
    for index in (0, 5):
        expected = method.attribute(pixels, target=0, index=index)
        torch.testing.assert_close(attention[:, [index]], expected)
        expected = method.attribute(pixels, target=0, index=index, of="gradient")
        torch.testing.assert_close(gradient[:, [index]], expected)


def test_layers_of_a_resnet_are_refused(cache: ModelCache) -> None:
    answer = ask(cache, Query(IMAGE, "a horse", "demo/resnet", "grad-cam"))
    with pytest.raises(InputError, match="the ResNet of demo/resnet has none"):
        layers(cache, answer)


def test_heads_are_those_of_direct_contribution(answer: Result, cache: ModelCache) -> None:
    """Those of the sign that was asked for; with the rest they add up to the text's cosine."""
    clip = cache.get("demo/vit")
    parts = heads(cache, answer, 1)
    method = DirectContribution(ClipSimilarity(clip, targets.text(clip, "a horse and a dog")))
    expected = method.attribute(clip.preprocess(IMAGE), target=0, per="head")[0, 0]
    layer, head = map(int, re.findall(r"\d+", parts.labels[0]))
    torch.testing.assert_close(parts.maps[0], expected[layer, head])
    sums = expected.sum((-2, -1))
    assert expected[layer, head].sum() == (sums.min() if answer.sign == "negative" else sums.max())
    cosine = ClipSimilarity(clip, targets.text(clip, "a horse and a dog"))(answer.pixels)
    assert parts.maps.sum().item() + parts.rest == pytest.approx(cosine.item(), abs=1e-5)
    total, notes = sum_notes(parts.maps.numpy(), parts.rest)
    drawn = html.head_cards(answer, 1, parts)
    assert drawn.count("<img") == len(notes) == len(parts.labels) + 1
    assert all(text in drawn for text in (total, *notes, *parts.labels))
    with pytest.raises(InputError, match="no such text"):
        heads(cache, answer, 2)


@pytest.mark.parametrize(
    ("model", "method", "by"),
    [
        ("demo/vit", "direct", "direct"),
        ("demo/vit", "patches", "conservative"),
        ("demo/resnet", "grad-cam", "conservative"),
    ],
)
def test_words_are_those_of_the_text_side(
    cache: ModelCache, model: str, method: str, by: str
) -> None:
    answer = ask(cache, Query(IMAGE, TEXTS, model, method))
    found = explain(IMAGE, "a horse and a dog", model=model, method=by, side="text").text_maps[0]
    values = words(cache, answer, 1)
    assert [word for word, _ in values] == ["a", "horse", "and", "a", "dog"]
    assert [value for _, value in values] == pytest.approx([value for _, value in found], abs=1e-6)
    drawn = html.word_row(answer, 1, values)
    assert drawn.count("</b>") == 5
    assert f"cosine {answer.explanation.scores[0, 1]:.3f}" in drawn
    with pytest.raises(InputError, match="no such text"):
        words(cache, answer, 2)


def test_an_answer_has_hints(cache: ModelCache) -> None:
    page = html.cards(ask(cache, Query(IMAGE, "a horse\na rocket", "demo/vit", "last-grad")))
    assert page.count('<p class="hint">') == 1
    assert "\u201ca rocket\u201d scores below" in page


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"image": None}, InputError, "Choose an image"),
        ({"texts": " \n"}, TargetError, "Type a text"),
        ({"texts": "a dog\n" * (MAX_TEXTS + 1)}, TargetError, "13 texts; at most 12 at once"),
        ({"texts": "a unicorn"}, TargetError, "do not know 'unicorn'"),
        ({"texts": "a " * 20}, TargetError, "22 tokens"),
        ({"model": "ViT-B/32"}, InputError, "not offered here; choose demo/vit or demo/resnet"),
        ({"method": "grad-cam"}, TypeError, "ClipGradCam needs"),
        ({"method": "rollout", "sign": "both"}, InputError, "no negative map"),
    ],
)
def test_ask_refuses_with_a_reason(
    cache: ModelCache, change: dict[str, str], kind: type[Exception], message: str
) -> None:
    given = {"image": IMAGE, "texts": "a dog", "model": "demo/vit", "method": "last-grad"}
    with pytest.raises(kind, match=message):
        ask(cache, Query(**{**given, **change}))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\0\0"])
def test_a_bad_image_is_named_without_its_folder(
    cache: ModelCache, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"'holiday\.png'") as caught:
        ask(cache, Query(str(path), "a dog", "demo/vit", "last-grad"))
    assert str(tmp_path) not in str(caught.value)


def test_an_image_file_is_answered_as_its_array(cache: ModelCache, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    Image.fromarray(IMAGE).save(path)
    found = [
        ask(cache, Query(image, "a dog", "demo/resnet", "grad-cam")).explanation.scores
        for image in (str(path), IMAGE)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("size", "crop"),
    [((60, 30), (0.25, 0, 0.5, 1)), ((30, 60), (0, 0.25, 1, 0.5)), ((50, 50), (0, 0, 1, 1))],
)
def test_the_photo_is_kept_with_the_part_that_the_model_sees(
    cache: ModelCache, size: tuple[int, int], crop: tuple[float, ...]
) -> None:
    image = Image.new("RGB", size, "red")
    result = ask(cache, Query(image, "a horse", "demo/vit", "last-grad"))
    assert result.crop == pytest.approx(crop, abs=0.01)
    assert ("the model sees the frame" in html.cards(result)) == (size != (50, 50))


def test_example_is_a_scene_with_texts_that_are_true_of_it() -> None:
    image, texts = example(3)
    scene = draw_scene(3, count=2)
    np.testing.assert_array_equal(np.asarray(image), scene.image)
    assert tuple(texts.splitlines()) == scene.captions


@pytest.mark.parametrize("seed", [None, -1, 0.5])
def test_example_refuses_a_number_that_is_none(seed: float | None) -> None:
    with pytest.raises(InputError, match="whole numbers from 0"):
        example(seed)


def test_cache_offers_the_named_models_first_and_each_once() -> None:
    assert ModelCache().names == EMBEDDED
    assert ModelCache(["demo/resnet", "ViT-B/32", "ViT-B/32"]).names == (
        "demo/resnet",
        "ViT-B/32",
        "demo/vit",
        "demo/siglip",
    )


def test_cache_gives_processor_and_tokenizer_to_the_named_models(tmp_path: Path, vit: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(Path(vit, name).read_bytes())
    cache = ModelCache([str(tmp_path)], processor=vit, tokenizer=vit)
    bare, whole = cache.get(str(tmp_path)), load_clip(vit)
    assert torch.equal(bare.encode_text(["a horse"]), whole.encode_text(["a horse"]))
    assert bare.fingerprint == whole.fingerprint
    assert cache.get("demo/vit").fingerprint == load_clip("demo/vit").fingerprint
    with pytest.raises(InputError, match="nonsense"):
        ModelCache(tokenizer="nonsense")


def test_cache_refuses_a_name_that_leads_nowhere() -> None:
    with pytest.raises(InputError, match="nonsense"):
        ModelCache(["nonsense"])


def test_cache_loads_a_model_once_for_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    loaded: list[str] = []

    def load(name: str, **_: object) -> object:
        loaded.append(name)
        sleep(0.05)
        return object()

    monkeypatch.setattr("captum_clip.app.model_cache.load_clip", load)
    cache = ModelCache()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cache.get, ["demo/vit"] * 8))
    assert loaded == ["demo/vit"]
    assert len(set(map(id, found))) == 1
