"""What users hand over by mistake is answered by an error of ours, at the door."""

from __future__ import annotations

import random
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from matplotlib.figure import Figure
from PIL import Image
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
from captum_clip.apps.search import ImageIndex
from captum_clip.bench.run import StudyConfig
from captum_clip.checks import as_list
from captum_clip.errors import CaptumClipError, CaptureError, InputError, TargetError
from captum_clip.files import make_folder
from captum_clip.models import ClipAdapter
from captum_clip.visualization import save_figure

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


def test_encode_image_says_where_images_and_model_are(clip: ClipAdapter) -> None:
    with pytest.raises(InputError, match="expected images as a tensor of plain numbers"):
        clip.encode_image(torch.zeros(1, 3, 224, 224, device="meta"))


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


@pytest.mark.parametrize("texts", [None, [3], [b"a horse"]])
def test_encode_text_takes_texts_only(clip: ClipAdapter, texts: Any) -> None:
    with pytest.raises(TargetError, match="encode_text: expected "):
        clip.encode_text(texts)


@pytest.mark.parametrize("rgb", ["red", (None, 0, 0), (0, 0, 2)])
def test_color_takes_three_numbers_only(clip: ClipAdapter, rgb: Any) -> None:
    with pytest.raises(InputError, match=r"color: expected three numbers in \[0, 1\]"):
        clip.color(rgb)


@pytest.mark.parametrize("key", [None, [[0]]])
def test_indices_of_targets_are_whole_numbers_or_names(clip: ClipAdapter, key: Any) -> None:
    target = targets.text(clip, ["a horse", "a dog"])
    with pytest.raises(TargetError, match="Target: expected indices, a slice or a name"):
        target[key]


@pytest.mark.parametrize("key", [np.int64(1), np.array([1])])
def test_integers_of_numpy_are_indices(clip: ClipAdapter, key: Any) -> None:
    target = targets.text(clip, ["a horse", "a dog"])
    assert target[key].names == ("a dog",)


def test_numbers_with_thousands_of_digits_are_answered(clip: ClipAdapter) -> None:
    """Python itself refuses to write them."""
    target = targets.text(clip, "a horse")
    with pytest.raises(IndexError, match="a very large int"):
        target[10**5000]
    with pytest.raises(InputError, match="a very large int"):
        explain(np.zeros((32, 32, 3), np.uint8), "a", model=clip, batch_size=-(10**5000))


def damage(content: bytes, generator: random.Random) -> bytes:
    """The same with a few bytes changed, and perhaps cut off."""
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        damaged[generator.randrange(min(len(damaged), 2000))] = generator.randrange(256)
    return bytes(damaged[: generator.choice([len(damaged), len(damaged), len(damaged) // 2])])


@pytest.mark.filterwarnings("ignore:Glyph .* missing")  # of a damaged name or hint
@pytest.mark.parametrize("inside", [False, True])
def test_damaged_explanations_raise_nothing_else(
    explanation: Explanation, tmp_path: Path, inside: bool
) -> None:
    """Bytes of the file, or of an array in it whose checksum is right."""
    whole = explanation.save(tmp_path / "whole.npz")
    with zipfile.ZipFile(whole) as file:
        arrays = {name: file.read(name) for name in file.namelist()}
    generator = random.Random(0)
    path = tmp_path / "damaged.npz"
    refused = 0
    for _ in range(60):
        if inside:
            name = generator.choice(list(arrays))
            with zipfile.ZipFile(path, "w") as file:
                for other, content in arrays.items():
                    damaged = damage(content, generator) if other == name else content
                    file.writestr(other, damaged)
        else:
            path.write_bytes(damage(whole.read_bytes(), generator))
        try:
            Explanation.load(path).plot()
        except InputError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("error", [zlib.error("a"), MemoryError()])
def test_what_numpy_raises_over_a_damaged_file_is_an_input_error(
    explanation: Explanation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = explanation.save(tmp_path / "a.npz")
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(CaptumClipError, match=r"not a file of Explanation\.save"):
        Explanation.load(path)


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


@pytest.mark.parametrize("option", ["processor", "tokenizer"])
def test_what_is_no_processor_or_tokenizer_is_said_at_once(option: str) -> None:
    options: dict[str, Any] = {option: 3}
    with pytest.raises(InputError, match=f"expected .* as {option}, got 3"):
        load_clip(load_clip("demo/vit").model, **options)


@pytest.mark.parametrize("name", ["images", "output"])
def test_studies_need_folders(name: str) -> None:
    """None would be a folder of that name."""
    for value in (None, "", 3):
        places: dict[str, Any] = {"images": "images", "output": "out", name: value}
        with pytest.raises(InputError, match=f"expected {name} as a folder or a URL, got {value}"):
            StudyConfig(**places, texts=("a horse",))


def test_half_a_character_is_no_text(clip: ClipAdapter) -> None:
    for take in (partial(targets.text, clip), partial(targets.words, clip), clip.encode_text):
        with pytest.raises(TargetError, match=r"'a \\ud800' holds half a character"):
            take("a \ud800")


def test_the_callers_random_numbers_stay(tmp_path: Path) -> None:
    before = torch.random.get_rng_state().clone()
    clip = load_clip("demo/resnet")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    ImageIndex.build(clip, tmp_path, tmp_path / "a.lance").search("a horse")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_forward_functions_of_metrics_get_copies() -> None:
    def forward(images: Tensor) -> Tensor:
        return images.mul_(0).mean((1, 2, 3))

    images = torch.ones(1, 3, 8, 8)
    metrics.masked_changes(forward, images, grid=(2, 2))
    assert torch.equal(images, torch.ones(1, 3, 8, 8))


def test_a_url_is_no_folder_for_results() -> None:
    for folder in ("s3://bucket/found", Path("s3://bucket/found")):
        with pytest.raises(InputError, match="is a URL; give a folder of this machine"):
            make_folder(folder)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_svg_files_are_well_formed_whatever_the_texts_hold(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    for letter in "\x01\x0b\ufffe":
        figure.text(0, 0, f"a{letter}b")
    content = save_figure(figure, tmp_path / "a.svg").read_text("utf-8")
    assert ElementTree.fromstring(content).tag.endswith("svg")
    assert content.count("a\ufffdb") >= 3


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


def test_explain_by_words_needs_a_text(clip: ClipAdapter) -> None:
    texts: Any = 3
    with pytest.raises(InputError, match="expected one value or several, got"):
        explain(np.zeros((32, 32, 3), np.uint8), texts, model=clip, words=True)


def test_as_list_takes_what_can_be_listed_only() -> None:
    assert as_list("a") == ["a"]
    assert as_list(("a", "b")) == ["a", "b"]
    with pytest.raises(InputError, match="expected one value or several, got 3"):
        as_list(3)  # type: ignore[arg-type]
