"""Texts become tokens and embeddings as the library makes them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_clip.errors import InputError, TargetError
from tests import builders
from tests.samples import picture

ALL = list(builders.BUILDERS)
READING_CLS = ("AlignModel", "AltCLIPModel", "ChineseCLIPModel", "FlavaModel")
TEXTS = ["a horse", "a dog and a red house."]


def own_text_features(built, texts):
    if type(built.model).__name__ == "SiglipModel":
        tokens = built.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
        return built.model.text_model(input_ids=tokens["input_ids"]).pooler_output
    if hasattr(built.model, "text_proj"):  # BLIP
        tokens = built.tokenizer(texts, padding=True, return_tensors="pt")
        return built.model.text_proj(built.model.text_encoder(**tokens)[0][:, 0])
    if hasattr(built.model, "text_model"):
        padding = "max_length" if type(built.model).__name__ == "Aimv2Model" else "longest"
        length = 77 if padding == "max_length" else None
        tokens = built.tokenizer(texts, padding=padding, max_length=length, return_tensors="pt")
        out = built.model.text_model(**tokens)
        row = out[0][:, 0] if type(built.model).__name__ in READING_CLS else out.pooler_output
        return getattr(built.model, "text_projection", torch.nn.Identity())(row)
    return built.model.encode_text(built.tokenizer(texts))


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_text_embeddings_are_the_librarys_own_in_unit_length(name):
    built = builders.BUILDERS[name]()
    embeddings = built.load().encode_text(TEXTS)
    expected = F.normalize(own_text_features(built, TEXTS), dim=-1)
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        built.load().encode_text(TEXTS[1]), embeddings[1:], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", ["hf_vit", "siglip", "open_clip_vit"])
def test_a_text_over_the_context_is_refused_with_its_length(name):
    clip = builders.BUILDERS[name]().load()
    assert clip.context_length == 77
    word = "a" if clip.tokenizer is builders.byte_tokenizer() else " horse"
    text = word * 75
    assert clip.tokenize(text) is not None
    longer = text + word
    with pytest.raises(TargetError, match=r"has 78 tokens .* takes 77; shorten it"):
        clip.tokenize(["a horse", longer])


@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
def test_a_tokenizer_of_another_model_is_refused(name):
    """OpenAI's tokens are 49,408, the small model's 259."""
    clip = builders.BUILDERS[name]().load(tokenizer=builders.open_clip_tokenizer())
    with pytest.raises(TargetError, match=r"tokens below 259, .* got 49407; pass its own"):
        clip.encode_text("a horse")


@torch.no_grad()
def test_transformers_models_take_a_plain_tokenizer_and_transform():
    built = builders.hf_vit()
    expected = built.load().encode_text(TEXTS)
    tokens = built.tokenizer(TEXTS, padding="max_length", max_length=30, return_tensors="pt")
    transform = builders.open_clip_vit().processor
    clip = built.load(tokenizer=lambda texts: tokens["input_ids"], processor=transform)
    torch.testing.assert_close(clip.encode_text(TEXTS), expected, atol=1e-6, rtol=0)
    assert torch.equal(clip.preprocess(picture()), transform(picture())[None])


@torch.no_grad()
def test_transformers_models_take_tokenizers_with_token_types():
    built = builders.hf_vit()
    tokens = built.tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens["token_type_ids"] = torch.zeros_like(tokens["input_ids"])
    clip = built.load(tokenizer=lambda texts: tokens)
    torch.testing.assert_close(clip.encode_text(TEXTS), built.load().encode_text(TEXTS))


def test_open_clip_models_take_a_tokenizer_of_transformers():
    clip = builders.open_clip_vit().load(tokenizer=builders.byte_tokenizer())
    tokens = clip.tokenize(["ab", "c"])
    assert tokens.shape == (2, 77)
    assert tokens[:, :5].tolist() == [
        [257, *builders.byte_tokenizer()("ab")["input_ids"][1:3], 258, 0],
        [257, builders.byte_tokenizer()("c")["input_ids"][1], 258, 0, 0],
    ]
    with pytest.raises(TargetError, match="78 tokens"):
        clip.tokenize("a" * 76)


@pytest.mark.parametrize("mode", [None, "clips"])
def test_open_clips_own_wrapper_of_tokenizers_is_counted(tmp_path, mode):
    from open_clip.tokenizer import HFTokenizer

    builders.byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=20, tokenizer_mode=mode)
    tokenizer.tokenizer.cls_token_id = 5
    clip = builders.open_clip_custom_vit().load(tokenizer=tokenizer)
    assert clip.context_length == 20
    longest = 18 if mode is None else 17
    assert clip.tokenize("a" * longest).shape == (1, 20)
    with pytest.raises(TargetError, match=r"has 21 tokens .* takes 20"):
        clip.tokenize("a" * (longest + 1))


def test_a_text_tower_without_a_table_of_positions_takes_what_its_tokenizer_makes(tmp_path):
    """mt5: OpenCLIP notes a context of 0, which is unknown."""
    from open_clip.tokenizer import HFTokenizer

    builders.byte_tokenizer().save_pretrained(tmp_path)
    model = builders.open_clip_custom_vit().model
    model.context_length = 0
    tokenizer = HFTokenizer(str(tmp_path), context_length=20)
    clip = builders.Small(model, None, tokenizer).load()
    assert clip.context_length == 20
    assert clip.tokenize("a horse").shape == (1, 20)
    clip = builders.Small(model, None, builders.byte_tokenizer()).load()
    assert clip.context_length is None
    assert clip.tokenize(["a horse", "a"]).shape == (2, 9)


@torch.no_grad()
def test_texts_are_padded_to_the_models_context_not_the_tokenizers():
    """CoCa takes 76 tokens, and OpenCLIP's usual tokenizer pads to 77."""
    built = builders.coca()
    clip = built.load()
    tokens = clip.tokenize(TEXTS)
    assert tokens.shape == (2, 76)
    expected = built.model.encode_text(tokens)
    torch.testing.assert_close(clip.encode_text(TEXTS), F.normalize(expected, dim=-1))


@pytest.mark.parametrize("name", ["hf_vit", "chinese_clip", "siglip", "blip"])
def test_text_pooling_is_what_the_text_tower_does(name):
    """The row that has a gradient, and whether a later token changes the rows before it."""
    clip = builders.BUILDERS[name]().load()
    tower = getattr(clip.model, "text_model", None) or clip.model.text_encoder
    seen = []
    tower.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    row, causal = clip.text_layout.row, clip.text_layout.causal
    features = [clip.encode_text(text) for text in ("abc", "abd")]
    ids = clip.tokenize("abc")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    (gradient,) = torch.autograd.grad(features[0].sum(), seen[0])
    read = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    end = ids[0].tolist().index(258)
    assert read == [{"first": 0, "end": end, "last": ids.shape[1] - 1}[row]]
    before = (seen[0] - seen[1])[0, : end - 1].abs().max()
    assert (before == 0) == causal


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_a_missing_tokenizer_is_asked_for_when_a_text_needs_it(name):
    built = builders.BUILDERS[name]()
    clip = built.load(tokenizer=None)
    assert clip.tokenizer is None
    with pytest.raises(InputError, match=r"has no tokenizer, .* pass `tokenizer` with"):
        clip.encode_text("a horse")


def test_texts_must_be_texts():
    clip = builders.hf_vit().load()
    with pytest.raises(TargetError, match="expected texts, got 3"):
        clip.tokenize(["a horse", 3])
    with pytest.raises(TargetError, match=r"a text or several, got \[\]"):
        clip.tokenize([])


def test_a_tokenizer_that_returns_something_else_is_named():
    clip = builders.hf_vit().load(tokenizer=lambda texts: [[1, 2]])
    with pytest.raises(InputError, match=r"from the tokenizer, got \[\[1, 2\]\]"):
        clip.tokenize("a horse")


def test_a_processor_with_a_tokenizer_serves_for_both():
    built = builders.hf_vit()

    class Both:
        image_processor, tokenizer = built.processor, built.tokenizer

    clip = built.load(processor=Both(), tokenizer=None)
    torch.testing.assert_close(clip.encode_text(TEXTS), built.load().encode_text(TEXTS))
    assert clip.preprocess(picture()).shape == (1, 3, 32, 32)
