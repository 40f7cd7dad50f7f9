"""`explain` is the flow written out, with everything checked at the door."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch

from captum_clip import explain, targets
from captum_clip.attr import (
    METHODS,
    AttentionRollout,
    ClipGradCam,
    DirectContribution,
    LastGradAttention,
    LayerAttention,
)
from captum_clip.errors import CaptumClipError, InputError, TargetError, UnsupportedModelError
from captum_clip.models import ClipAdapter
from captum_clip.targets.similarity import ClipSimilarity
from tests import builders
from tests.samples import picture

TEXTS = ["a horse", "a dog"]
BUILDERS: dict[str, Callable[[], builders.Small]] = {
    "vit": builders.hf_vit,
    "resnet": partial(builders.open_clip_resnet, seed=4),  # its maps have both signs
}


@pytest.fixture(scope="module", params=BUILDERS)
def clip(request: pytest.FixtureRequest) -> ClipAdapter:
    adapter: ClipAdapter = BUILDERS[request.param]().load()
    return adapter


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


@pytest.fixture(scope="module")
def resnet() -> ClipAdapter:
    adapter: ClipAdapter = BUILDERS["resnet"]().load()
    return adapter


@pytest.fixture
def method(clip: ClipAdapter) -> type[Any]:
    """Mamooler's, which on the ViT has no signs."""
    return {"vit": LastGradAttention, "resnet": ClipGradCam}[clip.kind]


def maps_of(
    method: type[Any], clip: ClipAdapter, images: torch.Tensor, target: targets.Target
) -> torch.Tensor:
    found: torch.Tensor = method(ClipSimilarity(clip, target)).attribute_targets(images)
    return found


def test_a_model_is_inspected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as an object, of which each call makes a new adapter."""
    built = builders.hf_vit()
    forward = type(built.model.vision_model).forward
    runs = []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(len(args[0] if args else kwargs["pixel_values"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(built.model.vision_model), "forward", counted)
    target = targets.embedding(torch.randn(2, built.load().embedding_dim), names=TEXTS)
    options: Any = {"model": built.model, "processor": built.processor, "hints": False}
    explain(built.images(2), target, **options)
    first = len(runs)
    explain(built.images(2), target, **options)
    assert len(runs) - first == first - 1


@pytest.mark.parametrize("bound", [MethodType, partial])
def test_a_model_that_was_explained_is_not_kept_alive(bound: Any) -> None:
    """Also with a forward of its own instance, which refers to it."""
    built = builders.hf_vit()
    built.model.forward = bound(type(built.model).forward, built.model)
    clip = built.load()
    target = targets.embedding(torch.randn(2, clip.embedding_dim))
    DirectContribution(ClipSimilarity(clip, target)).attribute_targets(built.images(2))
    reference = weakref.ref(built.model)
    del built, clip, target
    gc.collect()
    assert reference() is None


# What it computes


def test_explain_is_the_flow_written_out(clip: ClipAdapter) -> None:
    found = explain([picture(0), picture(1)], TEXTS, model=clip)  # with the default method
    images = clip.preprocess([picture(0), picture(1)])
    target = targets.text(clip, TEXTS)
    expected = maps_of(DirectContribution, clip, images, target).clamp(min=0)
    torch.testing.assert_close(found.maps["positive"], expected)
    torch.testing.assert_close(found.scores, ClipSimilarity(clip, target)(images).detach())
    torch.testing.assert_close(found.images, clip.denormalize(images))
    assert found.names == ("a horse", "a dog")
    assert found.method == "direct"
    assert found.model == clip.name
    assert not found.words


def test_the_negative_map_is_the_method_on_the_negated_target(
    clip: ClipAdapter, method: type[Any]
) -> None:
    found = explain(picture(), TEXTS, model=clip, sign="negative", method=method)
    images, target = clip.preprocess(picture()), targets.text(clip, TEXTS)
    expected = maps_of(method, clip, images, -target).clamp(min=0)
    torch.testing.assert_close(found.maps["negative"], expected)
    assert list(found.maps) == ["negative"]
    torch.testing.assert_close(found.scores, ClipSimilarity(clip, target)(images).detach())


def test_the_negative_map_of_a_signed_method_is_the_relu_of_the_negated_map(
    resnet: ClipAdapter,
) -> None:
    found = explain(picture(), TEXTS, model=resnet, sign="both")
    pixels, target = resnet.preprocess(picture()), targets.text(resnet, TEXTS)
    signed = maps_of(DirectContribution, resnet, pixels, target)
    assert (signed < 0).any()
    assert (signed > 0).any()
    torch.testing.assert_close(found.maps["positive"], signed.clamp(min=0))
    torch.testing.assert_close(found.maps["negative"], (-signed).clamp(min=0))


def test_both_signs_are_the_two_signs_from_one_forward_pass(
    clip: ClipAdapter, method: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = {
        sign: explain(picture(), TEXTS, model=clip, sign=sign, method=method)
        for sign in ("positive", "negative")
    }
    passes = []
    original = method.attribute_targets

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return original(self, *args, **kwargs)

    counted.__wrapped__ = original  # type: ignore[attr-defined]
    monkeypatch.setattr(method, "attribute_targets", counted)
    both = explain(picture(), TEXTS, model=clip, sign="both", method=method, hints=False)
    assert len(passes) == 1
    assert list(both.maps) == ["positive", "negative"]
    for sign, one in single.items():
        torch.testing.assert_close(both.maps[sign], one.maps[sign])
        torch.testing.assert_close(both.scores, one.scores)


def test_words_come_after_their_text_with_their_norms(clip: ClipAdapter) -> None:
    found = explain(picture(), "a horse, and a dog.", model=clip, words=True)
    rows = targets.words(clip, "a horse, and a dog.")
    assert found.names == ("a horse, and a dog.", "a", "horse", "and", "a", "dog")
    torch.testing.assert_close(found.norms[1:], rows.norms)
    torch.testing.assert_close(found.norms[0], torch.tensor(1.0))
    expected = maps_of(DirectContribution, clip, clip.preprocess(picture()), rows).clamp(min=0)
    torch.testing.assert_close(found.maps["positive"][:, 1:], expected)
    assert found.words


def test_a_target_is_taken_as_it_is(vit: ClipAdapter) -> None:
    target = targets.text(vit, "a horse") - targets.text(vit, "a dog")
    found = explain(picture(), target, model=vit)
    assert found.names == ("a horse - a dog",)
    torch.testing.assert_close(found.norms, target.norms)


def test_preprocessed_tensors_are_taken_as_they_are(vit: ClipAdapter) -> None:
    images = vit.preprocess([picture(0), picture(1)])
    one = explain(images, TEXTS, model=vit)
    other = explain([picture(0), picture(1)], TEXTS, model=vit)
    torch.testing.assert_close(one.maps["positive"], other.maps["positive"])


def test_a_model_object_is_taken_with_its_parts() -> None:
    small = builders.hf_vit()
    found = explain(
        picture(), "a", model=small.model, processor=small.processor, tokenizer=small.tokenizer
    )
    assert found.model == "CLIPModel"


def test_a_hub_model_is_the_default(monkeypatch: pytest.MonkeyPatch, vit: ClipAdapter) -> None:
    asked = []

    def load(model: str, **options: Any) -> ClipAdapter:
        asked.append((model, options))
        return vit

    monkeypatch.setattr("captum_clip.explaining.explain.load_clip", load)
    explain(picture(), "a", device="cpu")
    parts = dict.fromkeys(("processor", "tokenizer", "image_size"))
    assert asked == [("ViT-B/32", {**parts, "device": "cpu"})]


@pytest.mark.parametrize("options", [{}, {"return_tensors": "pt"}])
def test_what_a_processor_returns_is_taken(vit: ClipAdapter, options: dict[str, Any]) -> None:
    images = [picture(0), picture(1)]
    processed = vit.processor(images=images, **options)
    found = explain(processed, "a horse", model=vit, batch_size=1)
    assert torch.equal(found.scores, explain(images, "a horse", model=vit, batch_size=1).scores)


def test_an_explanation_has_the_length_and_the_parts_of_its_images(vit: ClipAdapter) -> None:
    found = explain([picture(0), picture(1), picture(2)], TEXTS, model=vit, sign="both")
    assert (len(found), len(found[-2:])) == (3, 2)
    with pytest.raises(IndexError):  # which ends a loop
        found[3]
    one = found[1]
    assert torch.equal(one.scores, found.scores[1:2])
    assert torch.equal(one.maps["negative"], found.maps["negative"][1:2])
    assert (one.photos, one.crops) == (found.photos[1:2], found.crops[1:2])


# Batches


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_batches_change_nothing(vit: ClipAdapter, size: int, as_tensor: bool) -> None:
    given: Any = [picture(seed) for seed in range(5)]
    given = vit.preprocess(given) if as_tensor else given
    whole = explain(given, TEXTS, model=vit, sign="both")
    parts = explain(given, TEXTS, model=vit, sign="both", batch_size=size)
    for name in ("scores", "images"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    for sign in whole.maps:
        torch.testing.assert_close(parts.maps[sign], whole.maps[sign])


def test_batches_of_different_sizes_are_refused(vit: ClipAdapter) -> None:
    images = [torch.zeros(3, 32, 32), torch.zeros(3, 40, 40)]
    with pytest.raises(InputError, match="differ in size"):
        explain(images, "a", model=vit, batch_size=1)


# Methods


def test_a_method_is_given_by_its_name_or_its_class(vit: ClipAdapter) -> None:
    by_name = explain(picture(), TEXTS, model=vit, method="all-grad")
    by_class = explain(picture(), TEXTS, model=vit, method=METHODS["all-grad"])
    assert by_name.method == by_class.method == "all-grad"
    assert torch.equal(by_name.maps["positive"], by_class.maps["positive"])


def test_options_come_with_the_name_or_as_keywords(vit: ClipAdapter) -> None:
    named = explain(picture(), "a", model=vit, method="last-grad:heads=averaged,start_layer=1")
    given = explain(
        picture(), "a", model=vit, method=LastGradAttention, heads="averaged", start_layer=1
    )
    assert named.method == given.method == "last-grad:heads=averaged,start_layer=1"
    assert explain(picture(), "a", model=vit, depth="all").method == "direct:depth=all"
    assert torch.equal(named.maps["positive"], given.maps["positive"])
    forward = ClipSimilarity(vit, targets.text(vit, "a"))
    expected = LastGradAttention(forward).attribute(
        vit.preprocess(picture()), heads="averaged", start_layer=1
    )
    torch.testing.assert_close(named.maps["positive"], expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "gradcam"}, InputError, "expected one of grad-cam, .*got 'gradcam'"),
        ({"method": dict}, InputError, "or a class of captum_clip.attr; got"),
        ({"method": LastGradAttention.__mro__[1]}, InputError, "or a class of captum_clip.attr"),
        ({"method": "last-grad:heads"}, InputError, "cannot read 'heads'"),
        ({"method": "last-grad:heads=mixed"}, InputError, "paired, averaged, got 'mixed'"),
        ({"method": "last-grad:head=paired"}, InputError, "no option 'head'; it has heads, start"),
        ({"method": "rollout", "return_scores": False}, InputError, "no option 'return_scores'"),
        ({"method": "rollout", "sign": "negative"}, InputError, "does not depend on the target"),
        ({"method": AttentionRollout, "sign": "both"}, InputError, "has no negative map"),
        ({"method": LayerAttention, "sign": "both"}, InputError, "has no negative map"),
        ({"method": "grad-cam"}, UnsupportedModelError, "ClipGradCam needs"),
        ({"sign": "minus"}, InputError, "positive, negative, both, got 'minus'"),
        ({"batch_size": 0}, InputError, "`batch_size` of 1 or more, got 0"),
        ({"batch_size": True}, InputError, "batch_size"),
        ({"max_pixels": 0}, InputError, "`max_pixels` of 1 or more, got 0"),
        ({"words": True}, TargetError, "`words` need exactly one text"),
        ({"processor": "one"}, InputError, "processor was given with an adapter"),
    ],
)
def test_explain_names_what_is_wrong(
    vit: ClipAdapter, options: dict[str, Any], error: type[CaptumClipError], message: str
) -> None:
    with pytest.raises(error, match=message):
        explain(picture(), TEXTS, model=vit, **options)


@pytest.mark.parametrize(
    ("image", "texts", "message"),
    [
        (None, {"input_ids": [[1]], "attention_mask": [[1]]}, "expected a text or several"),
        (None, {"a horse"}, "expected a text or several, got {'a horse'}; pass texts as they"),
        (None, " ", "' ' is empty.$"),
        ({"input_ids": [[1]]}, "a", r"expected files, PIL images, or what .*, got \['input_ids'\]"),
        ("https://a.b/c.jpg", "a", "https://a.b/c.jpg is a URL; download the image"),
        (3, "a", "expected a path, a PIL image"),
        ([], "a", "got no image at all"),
    ],
)
def test_explain_names_itself_for_what_it_hands_on(
    vit: ClipAdapter, image: Any, texts: Any, message: str
) -> None:
    with pytest.raises(CaptumClipError, match=f"^explain: {message}"):
        explain(picture() if image is None else image, texts, model=vit)


def test_the_words_of_a_target_are_refused(vit: ClipAdapter) -> None:
    with pytest.raises(TargetError, match="`words` need exactly one text"):
        explain(picture(), targets.text(vit, "a b"), model=vit, words=True)


def test_only_several_batches_have_a_progress_bar(
    vit: ClipAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, bar in ((None, False), (5, False), (2, True)):
        explain([picture(seed) for seed in range(3)], "a", model=vit, batch_size=size)
        assert ("2/2" in capsys.readouterr().err) == bar


def test_a_model_without_a_tokenizer_asks_for_one() -> None:
    small = builders.hf_vit()
    with pytest.raises(InputError, match=r"which is needed for a text; pass `tokenizer` with"):
        explain(picture(), "a", model=small.model, processor=small.processor)


def test_methods_of_vision_transformers_are_refused_on_a_resnet(resnet: ClipAdapter) -> None:
    for name in ("rollout", "all-grad", "last-grad", "attention-grad-cam"):
        with pytest.raises(
            UnsupportedModelError, match=r"needs a vision transformer.*, and this is a conv"
        ):
            explain(picture(), "a", model=resnet, method=name)


def test_a_wrong_method_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "captum_clip.explaining.explain.load_clip", lambda *_, **__: pytest.fail("was loaded")
    )
    with pytest.raises(InputError, match="gradcam"):
        explain(picture(), "a", method="gradcam")


@pytest.mark.parametrize(
    ("option", "meant"), [("modle", "model"), ("depht", "depth"), ("refrence", "reference")]
)
def test_a_misspelled_argument_is_told_before_a_model_is_loaded(option: str, meant: str) -> None:
    options: Any = {option: "demo/vit"}
    with pytest.raises(InputError, match=rf"no argument '{option}' \(did you mean {meant}\?\)"):
        explain(torch.rand(3, 8, 8), "a horse", model="no such model", **options)


@pytest.mark.parametrize("text", ["photo.jpg", "photos/dog.PNG", "https://example.org/a"])
def test_a_text_that_names_an_image_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="names an image; pass images first"):
        explain(torch.rand(3, 8, 8), ["a horse", text], model="no such model")
