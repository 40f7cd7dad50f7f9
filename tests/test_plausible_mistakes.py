"""What users hand over by mistake is answered by an error of ours, at the door."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from captum_clip import (
    ClipSimilarity,
    Explanation,
    LastGradAttention,
    explain,
    load_clip,
    maps,
    metrics,
    targets,
)
from captum_clip.errors import CaptureError, InputError, TargetError
from captum_clip.models import ClipAdapter

ODD_TENSORS: tuple[Callable[[], Tensor], ...] = (
    lambda: torch.zeros(1, 3, 32, 32, device="meta"),
    lambda: torch.ones(1, 3, 32, 32).to_sparse(),
    lambda: torch.zeros(1, 3, 32, 32).to(torch.float8_e4m3fn),
    lambda: torch.zeros(1, 3, 32, 32, dtype=torch.complex64),
)


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/vit")


@pytest.fixture(scope="module")
def explanation(clip: ClipAdapter) -> Explanation:
    return explain(np.zeros((32, 32, 3), np.uint8), "a horse", model=clip)


def test_a_way_is_named_for_several_methods_and_for_embeddings(clip: ClipAdapter) -> None:
    image: Any = np.zeros((32, 32, 3), np.uint8)
    methods: Any = ["direct", "legrad"]
    with pytest.raises(InputError, match=r"got \['direct', 'legrad'\]; .*figure compare"):
        explain(image, "a horse", model=clip, method=methods)
    embeddings: Any = clip.encode_text(["a horse"])
    with pytest.raises(TargetError, match=r"embeddings as targets.embedding\(rows\)"):
        explain(image, embeddings, model=clip)
    with pytest.raises(InputError, match=r"processor was given with an adapter.*to load_clip"):
        explain(image, "a horse", model=clip, processor=clip.processor)


def test_tensors_that_hold_no_plain_numbers_are_refused(clip: ClipAdapter) -> None:
    takers: list[Callable[[Tensor], Any]] = [
        clip.preprocess,
        lambda tensor: clip.preprocess([tensor]),
        clip.encode_image,
        clip.denormalize,
        ClipSimilarity(clip, targets.text(clip, "a horse")),
        lambda tensor: targets.embedding(tensor[0, 0]),
        maps.normalize,
        lambda tensor: metrics.masked_changes(lambda x: x.mean((1, 2, 3)), tensor, grid=(2, 2)),
    ]
    for take in takers:
        for make in ODD_TENSORS:
            with pytest.raises((InputError, TargetError)):
                take(make())


@pytest.mark.parametrize("verb", ["encode_image", "denormalize"])
def test_adapters_check_images_wherever_they_take_them(clip: ClipAdapter, verb: str) -> None:
    wrong: list[Any] = [
        torch.full((1, 3, 224, 224), float("nan")),
        torch.zeros(3, 224, 224),
        torch.zeros(1, 1, 224, 224),
        torch.zeros(0, 3, 224, 224),
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
        np.zeros((1, 3, 224, 224), np.float32),
        None,
    ]
    for images in wrong:
        with pytest.raises(InputError, match=f"^{verb}: "):
            getattr(clip, verb)(images)


@pytest.mark.parametrize("text", ["...", "!" * 5000])
def test_texts_of_which_the_tokenizer_leaves_nothing_are_refused(
    clip: ClipAdapter, text: str
) -> None:
    with pytest.raises(TargetError, match="is the same as an empty text") as caught:
        targets.text(clip, ["a horse", text])
    assert len(str(caught.value)) < 500
    with pytest.raises(TargetError, match="is the same as an empty text"):
        targets.text(clip, text, templates="a photo of a {}")
    empty = targets.text(clip, "", allow_empty=True)
    assert torch.equal(targets.text(clip, text, allow_empty=True).embeddings, empty.embeddings)


@pytest.mark.parametrize("key", [None, [[0]]])
def test_indices_of_targets_are_whole_numbers_or_names(clip: ClipAdapter, key: Any) -> None:
    target = targets.text(clip, ["a horse", "a dog"])
    with pytest.raises(TargetError, match="Target: expected indices, a slice or a name"):
        target[key]


@pytest.mark.parametrize("key", [np.int64(1), np.array([1])])
def test_integers_of_numpy_are_indices(clip: ClipAdapter, key: Any) -> None:
    target = targets.text(clip, ["a horse", "a dog"])
    assert target[key].names == ("a dog",)


@pytest.mark.parametrize("verb", ["attribute", "attribute_targets"])
def test_similarities_take_one_tensor_of_images_alone(clip: ClipAdapter, verb: str) -> None:
    """Captum hands a tuple of inputs, and additional arguments, over to the forward function."""
    forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
    images = torch.zeros(1, 3, 224, 224)
    call = getattr(LastGradAttention(forward), verb)
    with pytest.raises(InputError, match="expected one tensor of images alone, got 1 more"):
        call(images, additional_forward_args=3)
    with pytest.raises(InputError, match="expected one tensor of images alone, got 1 more"):
        call((images, images))
    with pytest.raises(InputError, match="expected one tensor of images alone, got 1 more"):
        IntegratedGradients(forward).attribute(images, target=0, additional_forward_args=3)


def test_scores_that_are_not_finite_are_reported(clip: ClipAdapter) -> None:
    """Of a forward function of the user's own, which would give a map of NaN without a word."""
    similarity = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))

    def forward(images: Tensor) -> Tensor:
        return similarity(images)[:, :1] * float("nan")

    method = LastGradAttention(forward, layer=clip.vision)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with pytest.raises(CaptureError, match="the forward function or its gradient holds NaN"):
        method.attribute(images)


def test_half_a_character_is_no_text(clip: ClipAdapter) -> None:
    for take in (partial(targets.text, clip), partial(targets.words, clip), clip.encode_text):
        with pytest.raises(TargetError, match=r"'a \\ud800' holds half a character"):
            take("a \ud800")


@pytest.mark.parametrize("target", [np.int64(1), [np.int32(1)]])
def test_integers_of_numpy_are_targets(clip: ClipAdapter, target: Any) -> None:
    method = LastGradAttention(ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"])))
    images = torch.zeros(1, 3, 224, 224)
    assert torch.equal(method.attribute(images, target=target), method.attribute(images, target=1))
    assert torch.equal(method.attribute_targets(images, target), method.attribute(images, target=1))


@pytest.mark.parametrize("target", [1.5, None, 10**50])
def test_what_is_no_target_is_said(clip: ClipAdapter, target: Any) -> None:
    method = LastGradAttention(ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"])))
    with pytest.raises(TargetError):
        method.attribute(torch.zeros(1, 3, 224, 224), target=target)
    if target is not None:
        with pytest.raises(TargetError):
            method.attribute_targets(torch.zeros(1, 3, 224, 224), target)
