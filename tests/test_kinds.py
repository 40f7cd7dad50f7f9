"""Values of wrong kinds: what an annotation takes, and what a public function says of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip import explain, load_clip, metrics, targets
from captum_clip.apps import heads
from captum_clip.errors import InputError, TargetError, is_kind, public
from captum_clip.models import ClipAdapter

PHOTO = np.zeros((32, 32, 3), np.uint8)
NESTED = [[1.0, 2.0], [3.0]]


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/vit")


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, [3, np.int64(3)], [True, 1.5, "3", None]),
        (float, [3, 1.5, float("nan"), np.float32(1)], [True, 1j, "1.5"]),
        (str | None, ["a", None], [b"a", Path("a")]),
        (Literal["a", 1], ["a", 1], ["b", True]),
        (Sequence[str], [["a"], ("a",), [], "a"], [["a", 3], {"a"}, np.array(["a"]), 3]),
        (Collection[int], [{1}, range(3)], [np.zeros(3), torch.zeros(3), io.BytesIO()]),
        (tuple[int, str], [(3, "a")], [(3,), (3, 4), [3, "a"]]),
        (tuple[int, ...], [(), (1, 2)], [(1, "a")]),
        (Mapping[str, list[int]], [{}, {"a": [1]}], [[], {"a": 1}, {1: [1]}]),
        (Callable[[int], str], [str, print], [3]),
        (Tensor, [torch.zeros(2)], [torch.eye(2).to_sparse(), torch.zeros(2, device="meta")]),
        (Image.Image | Any, [3], []),
    ],
)
def test_is_kind_follows_the_annotation(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not is_kind(value, kind)] == []
    assert [value for value in wrong if is_kind(value, kind)] == []


@public("halve")
def halve(numbers: Sequence[int], divide: Callable[[int], float] = lambda n: n / 2) -> list[float]:
    return [divide(number) for number in numbers]


def test_a_public_function_names_the_argument_of_a_wrong_kind() -> None:
    assert halve([4]) == [2]
    wrong: list[Any] = [None, ["4"]]
    kinds = ["NoneType", "list of str"]
    for value, kind in zip(wrong, kinds, strict=True):
        with pytest.raises(InputError, match=rf"^halve: expected `numbers` as .*, got {kind}\.$"):
            halve(value)


HOSTILE: dict[str, Callable[[ClipAdapter], Any]] = {
    "an adapter that is none": lambda clip: targets.text(3, "a horse"),  # type: ignore[arg-type]
    "device=True": lambda clip: load_clip("demo/vit", device=True),  # type: ignore[arg-type]
    "metrics of lists": lambda clip: metrics.infidelity(NESTED, NESTED),  # type: ignore[arg-type]
    "a nested tensor": lambda _: load_clip("demo/vit", processor=_nested()),
    "an array as an index": lambda clip: explain(PHOTO, "a", model=clip)[np.array([0])],  # type: ignore[index]
    "an array as texts": lambda clip: targets.text(clip, np.array(3)),  # type: ignore[arg-type]
    "a closed file": lambda clip: heads.head_vectors(clip, _closed()),
}


def _nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def _closed() -> Any:
    file = io.BytesIO()
    file.close()
    return file


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", HOSTILE)
def test_arguments_of_wrong_kinds_are_our_errors(clip: ClipAdapter, kind: str) -> None:
    with pytest.raises((InputError, TargetError), match=": expected "):
        HOSTILE[kind](clip)
