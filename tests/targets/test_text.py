"""Targets of texts, templates, images and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captum_clip import targets
from captum_clip.errors import InputError, TargetError
from captum_clip.targets.similarity import ClipSimilarity
from tests.attr import cases

LIBRARIES = ["hf_vit", "open_clip_vit", "open_clip_resnet"]


@pytest.fixture
def clip():
    """An adapter of transformers."""
    return cases.adapter("hf_vit")


@pytest.fixture(params=LIBRARIES)
def each(request):
    """An adapter of each library."""
    return cases.adapter(request.param)


def encoded(clip, texts):
    """The library's own unit encodings."""
    with torch.no_grad():
        if hasattr(clip.model, "visual"):
            features = clip.model.encode_text(clip.tokenizer(texts))
        else:
            tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
            features = clip.model.get_text_features(**tokens)
            features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=1, keepdim=True)


def test_text_gives_a_unit_embedding_a_text(each):
    """They are the library's own encodings, the names the texts."""
    texts = ["a horse", "a dog and a cat"]
    target = targets.text(each, texts)
    torch.testing.assert_close(target.embeddings, encoded(each, texts), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(target.norms, torch.ones(2))
    assert target.names == ("a horse", "a dog and a cat")
    assert len(target) == 2


def test_single_text_gives_one_embedding(clip):
    """A text that is no list is one text, not its letters."""
    target = targets.text(clip, "a horse")
    assert target.embeddings.shape == (1, 24)
    assert target.names == ("a horse",)
    assert torch.allclose(target.embeddings, targets.text(clip, ("a horse",)).embeddings)


def test_embedding_does_not_depend_on_its_neighbors(each):
    """Padding to a longer text changes nothing."""
    alone = targets.text(each, "a dog")
    both = targets.text(each, ["a dog", "a dog next to a much longer text about a horse"])
    torch.testing.assert_close(both.embeddings[:1], alone.embeddings, atol=1e-6, rtol=1e-5)


def test_templates_average_unit_encodings(clip):
    """Mean of the unit embeddings, normalized again; the norm says how much they agree."""
    templates = ["a photo of a {}.", "{}", "the {} of the day"]
    target = targets.text(clip, ["horse", "dog"], templates=templates)
    for row, norm, word in zip(target.embeddings, target.norms, ["horse", "dog"], strict=True):
        mean = encoded(clip, [template.format(word) for template in templates]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm, mean.norm(), atol=1e-6, rtol=1e-5)
    assert target.names == ("horse", "dog")


@pytest.mark.parametrize("template", ["a horse", "{} and {}", 3])
def test_template_without_one_place_is_refused(clip, template):
    """The template is named."""
    with pytest.raises(TargetError, match=r"one \{\} for the text, got"):
        targets.text(clip, "horse", templates=[template])


def test_no_template_is_refused(clip):
    """An empty list is no way to say 'none'."""
    with pytest.raises(
        TargetError, match=r"expected templates with one \{\} for the text, got \[\]"
    ):
        targets.text(clip, "horse", templates=[])


@pytest.mark.parametrize("texts", ["", "  \t\n", ["a horse", ""]])
def test_empty_text_is_refused(clip, texts):
    """Unless it is meant."""
    with pytest.raises(TargetError, match=r"is empty"):
        targets.text(clip, texts)


def test_empty_text_may_be_meant(clip):
    """The empty prompt is a baseline."""
    target = targets.text(clip, ["a horse", ""], allow_empty=True)
    torch.testing.assert_close(
        target.embeddings, encoded(clip, ["a horse", ""]), atol=1e-6, rtol=1e-5
    )
    assert target.names == ("a horse", "")


def test_no_text_is_refused(clip):
    """An empty list is no target."""
    with pytest.raises(TargetError, match=r"a text or several, got \[\]"):
        targets.text(clip, [])


@pytest.mark.parametrize(("texts", "kind"), [([3], "3"), (["a", None], "None"), ([b"a"], "b'a'")])
def test_what_is_no_text_is_refused(clip, texts, kind):
    """The type is named."""
    with pytest.raises(TargetError, match=f"expected texts, got {kind}"):
        targets.text(clip, texts)


@pytest.mark.parametrize("texts", [None, 3])
def test_what_is_no_list_of_texts_is_refused(clip, texts):
    """A TargetError, as for everything else."""
    with pytest.raises(TargetError, match=f"expected a text or several, got {texts}"):
        targets.text(clip, texts)


def test_long_text_says_how_many_tokens_it_has(each):
    """Nothing is cut off in silence."""
    clip = each
    if clip.tokenizer is cases.adapter("hf_vit").tokenizer:
        fitting, longer = "x" * 75, "x" * 76  # a token of each byte, start and end
    else:
        fitting, longer = "horse " * 75, "horse " * 76
    assert len(targets.text(clip, fitting)) == 1
    with pytest.raises(
        TargetError, match=r"has 78 tokens with start and end, .* takes 77; shorten"
    ):
        targets.text(clip, longer)
    with pytest.raises(TargetError, match=r"has 78 tokens"):
        targets.words(clip, longer)


def test_image_gives_its_unit_embedding(each):
    """A reference image is a target; a float tensor counts as preprocessed."""
    clip = each
    images = cases.images(next(n for n in LIBRARIES if cases.adapter(n) is clip))
    target = targets.image(clip, images)
    with torch.no_grad():
        wanted = F.normalize(cases.embed(clip.model, images), dim=-1)
    torch.testing.assert_close(target.embeddings, wanted, atol=1e-6, rtol=1e-5)
    assert target.names == ("image 0", "image 1", "image 2")
    with torch.no_grad():
        similarity = ClipSimilarity(clip, target)(images)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(3))
    assert targets.image(clip, images[:2], names=["left", "right"]).names == ("left", "right")
    assert targets.image(clip, images[0], names="one").names == ("one",)
    assert targets.image(clip, [images[0], images[1]]).names == ("image 0", "image 1")


def test_image_file_is_named_after_itself(clip, tmp_path):
    """A path gives its stem as the name."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "red_horse.png"
    Image.fromarray(pixels).save(path)
    target = targets.image(clip, [path, str(path)])
    assert target.names == ("red_horse", "red_horse")
    torch.testing.assert_close(target.embeddings[0], target.embeddings[1])
    assert targets.image(clip, Image.fromarray(pixels)).names == ("image 0",)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_embedding_is_normalized(kind):
    """Tensors, arrays and lists of numbers, of any length."""
    target = targets.embedding(kind([[3.0, 4.0], [0.0, -2.0]]), ["a", "b"])
    torch.testing.assert_close(
        target.embeddings.double(), torch.tensor([[0.6, 0.8], [0, -1]]).double()
    )
    torch.testing.assert_close(target.norms.double(), torch.tensor([5.0, 2.0]).double())
    assert target.names == ("a", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3), "'embedding 0' has no direction"),
        (torch.tensor([[1.0, float("nan")]]), "'embedding 0' holds NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), "holds NaN or infinity"),
        (torch.zeros(2, 3, 4), r"shape \(K, D\), got Tensor \(2, 3, 4\)"),
        (torch.zeros(0, 3), r"shape \(K, D\), none of them empty, got Tensor \(0, 3\)"),
        (torch.tensor(1.0), r"shape \(K, D\), got Tensor \(\)"),
        ("a horse", "expected numbers .* got 'a horse'; "),
        ([[1.0], [2.0, 3.0]], "expected numbers .* got \\[\\[1.0\\], \\[2.0, 3.0\\]\\]; "),
        (None, "expected numbers .* got None; "),
    ],
    ids=str,
)
def test_bad_embedding_is_refused(given, message):
    """Each with its reason."""
    with pytest.raises(TargetError, match=message):
        targets.embedding(given)


def test_single_template_is_a_prompt(clip):
    """A template that is no list is one template."""
    target = targets.text(clip, "horse", templates="a photo of a {}.")
    wanted = targets.text(clip, "a photo of a horse.")
    torch.testing.assert_close(target.embeddings, wanted.embeddings, atol=1e-6, rtol=1e-5)


def test_text_with_braces_is_no_template(clip):
    """Braces in the text are text."""
    target = targets.text(clip, "{} {0} {name}", templates=["a {}"])
    torch.testing.assert_close(
        target.embeddings, targets.text(clip, "a {} {0} {name}").embeddings, atol=1e-6, rtol=1e-5
    )


def test_texts_may_be_the_keys_of_a_dict(clip):
    """They have an order, which a set has not."""
    keys: Any = {"a horse": 1, "a dog": 2}.keys()
    assert targets.text(clip, keys).names == ("a horse", "a dog")


def test_image_wants_as_many_names(clip):
    """One name per image."""
    with pytest.raises(TargetError, match=r"3 names of as many embeddings, got \['one'\]"):
        targets.image(clip, cases.images("hf_vit"), names=["one"])


def test_image_that_is_not_there_is_refused(clip):
    """The adapter's error comes through."""
    with pytest.raises(InputError, match=r"no image file nowhere.png"):
        targets.image(clip, "nowhere.png")


def test_embedding_takes_a_vector():
    """(D,) is one embedding."""
    target = targets.embedding(torch.tensor([0, 3]), "up")
    assert torch.equal(target.embeddings, torch.tensor([[0.0, 1.0]]))
    assert target.names == ("up",)
    assert targets.embedding(torch.eye(2)).names == ("embedding 0", "embedding 1")


def test_embedding_wants_as_many_names():
    """One name per embedding."""
    with pytest.raises(TargetError, match=r"2 names of as many embeddings, got \['a', 'b', 'c'\]"):
        targets.embedding(torch.eye(2), ["a", "b", "c"])
