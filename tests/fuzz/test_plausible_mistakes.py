"""What users hand over by mistake is answered by an error of ours, at the door."""

from __future__ import annotations

import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import ClipSimilarity, Explanation, explain, load_clip, maps, metrics, targets
from captum_clip.errors import CaptumClipError, InputError, TargetError
from captum_clip.models import ClipAdapter

ODD_TENSORS: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.zeros(1, 3, 32, 32, device="meta"),
    "sparse": lambda: torch.ones(1, 3, 32, 32).to_sparse(),
    "float8": lambda: torch.zeros(1, 3, 32, 32).to(torch.float8_e4m3fn),
    "complex": lambda: torch.zeros(1, 3, 32, 32, dtype=torch.complex64),
}


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/vit")


@pytest.fixture(scope="module")
def explanation(clip: ClipAdapter) -> Explanation:
    return explain(np.zeros((32, 32, 3), np.uint8), "a horse", model=clip)


@pytest.mark.parametrize("make", ODD_TENSORS.values(), ids=ODD_TENSORS)
@pytest.mark.parametrize(
    "take",
    [
        lambda clip, tensor: clip.preprocess(tensor),
        lambda clip, tensor: clip.preprocess([tensor]),
        lambda clip, tensor: clip.encode_image(tensor),
        lambda clip, tensor: clip.denormalize(tensor),
        lambda clip, tensor: ClipSimilarity(clip, targets.text(clip, "a horse"))(tensor),
        lambda clip, tensor: targets.embedding(tensor[0, 0]),
        lambda clip, tensor: maps.normalize(tensor),
        lambda clip, tensor: metrics.infidelity(lambda x: x.mean((1, 2, 3)), tensor, tensor),
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(
    clip: ClipAdapter, take: Callable[[ClipAdapter, Tensor], Any], make: Callable[[], Tensor]
) -> None:
    with pytest.raises((InputError, TargetError)):
        take(clip, make())


@pytest.mark.parametrize("verb", ["encode_image", "denormalize"])
@pytest.mark.parametrize(
    "images",
    [
        torch.full((1, 3, 224, 224), float("nan")),
        torch.zeros(3, 224, 224),
        torch.zeros(1, 1, 224, 224),
        torch.zeros(0, 3, 224, 224),
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
        np.zeros((1, 3, 224, 224), np.float32),
        None,
    ],
)
def test_adapters_check_images_wherever_they_take_them(
    clip: ClipAdapter, verb: str, images: Any
) -> None:
    with pytest.raises(InputError, match=f"^{verb}: "):
        getattr(clip, verb)(images)


def test_encode_image_says_where_images_and_model_are(clip: ClipAdapter) -> None:
    with pytest.raises(InputError, match="expected images as a tensor of plain numbers"):
        clip.encode_image(torch.zeros(1, 3, 224, 224, device="meta"))


@pytest.mark.parametrize("text", ["...", "\N{HORSE FACE}", " ?! ", "!" * 5000])
def test_texts_of_which_the_tokenizer_leaves_nothing_are_refused(
    clip: ClipAdapter, text: str
) -> None:
    with pytest.raises(TargetError, match="means as much as an empty text") as caught:
        targets.text(clip, ["a horse", text])
    assert len(str(caught.value)) < 500
    with pytest.raises(TargetError, match="means as much as an empty text"):
        targets.text(clip, text, templates="a photo of a {}")
    empty = targets.text(clip, "", allow_empty=True)
    assert torch.equal(targets.text(clip, text, allow_empty=True).bank, empty.bank)


@pytest.mark.parametrize("texts", [None, 3, object(), [3], [None], [b"a horse"]])
def test_encode_text_takes_texts_only(clip: ClipAdapter, texts: Any) -> None:
    with pytest.raises(TargetError, match="tokenize: expected "):
        clip.encode_text(texts)


@pytest.mark.parametrize("rgb", [None, 3, "red", (None, 0, 0), ("1", 0, 0), (0, 0), (0, 0, 2)])
def test_color_takes_three_numbers_only(clip: ClipAdapter, rgb: Any) -> None:
    with pytest.raises(InputError, match=r"color: expected three numbers in \[0, 1\]"):
        clip.color(rgb)


@pytest.mark.parametrize("key", [None, 1.5, True, object(), [None], [[0]]])
def test_indices_of_targets_are_whole_numbers_or_names(clip: ClipAdapter, key: Any) -> None:
    target = targets.text(clip, ["a horse", "a dog"])
    with pytest.raises(TargetError, match="Target: expected indices, a slice or a name"):
        target[key]


@pytest.mark.parametrize("key", [np.int64(1), np.array(1), np.array([1]), [np.int32(1)], (1,)])
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
    for _ in range(200):
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
    assert refused > 100


@pytest.mark.parametrize(
    "error", [zlib.error("a"), RuntimeError("encrypted"), MemoryError(), OverflowError("a")]
)
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
    with pytest.raises(CaptumClipError, match=r"is no file of Explanation\.save"):
        Explanation.load(path)
