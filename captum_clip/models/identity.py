"""What a model is, as numbers to compare: digests of its weights, summaries of its embeddings."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

BOUND: Final = 1e-3
"""The distance of numbers (root mean square) up to which two models count as the same.

It stands for 2e-3 between unit embeddings. Rounding moves embeddings by 1e-6, and another
implementation of the same resizing by up to 5e-4. Bilinear instead of bicubic resizing moves them
by 3e-3 or more.
"""
FIXED_TEXTS: Final = ("a photo of a dog", "The CAT, 3 birds", "")


def fixed_images(size: tuple[int, int] | None = None) -> list[Any]:
    """Three images of colored squares (H, W, 3); with a size, preprocessed noise (1, 3, H, W)."""
    # RandomState gives the same numbers in every release of NumPy; newer generators may not.
    generator = np.random.RandomState(0)
    if size is not None:
        noise = generator.standard_normal((3, 1, 3, *size))
        return list(torch.from_numpy(noise).float())
    # The annotations of newer releases do not accept the type in `randint`.
    dtype: Any = np.uint8
    images = []
    for height, width in ((6, 6), (15, 20), (25, 18)):
        squares = generator.randint(0, 256, (height, width, 3), dtype)
        images.append(squares.repeat(16, 0).repeat(16, 1))
    return images


def summary(embeddings: Iterable[Tensor]) -> str:
    """Map unit embeddings (1, E) to four numbers each, for comparison.

    A random projection keeps distances approximately (Johnson and Lindenstrauss).
    """
    numbers: list[str] = []
    for embedding in embeddings:
        [row] = embedding.float().cpu().numpy()
        projection = np.random.RandomState(0).standard_normal((4, len(row)))
        # Division by the root of 4, the count of numbers, keeps lengths as they are on average.
        projected = projection @ row / 2
        numbers += [f"{number:.5f}" for number in projected]
    return " ".join(numbers)


def weights_digest(values: Iterable[Any]) -> str:
    """SHA-256 over the floating-point tensors among the values of a state dict, in any order."""
    lines = []
    for value in values:
        # Releases of transformers add and drop buffers of whole numbers, such as position ids.
        if isinstance(value, Tensor) and value.is_floating_point():
            flat = value.detach().cpu().contiguous().reshape(-1)
            # NumPy has no bfloat16, so the bytes are read.
            content = flat.view(torch.uint8).numpy().data
            digest = hashlib.sha256(content).hexdigest()
            lines.append(f"{tuple(value.shape)} {value.dtype} {digest}\n")
    # Releases also rename parameters and change their order.
    lines.sort()
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def reproducible(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode, without gradients and in float32 at least, then undo these changes.

    In half precision, embeddings of two devices lie up to 1e-2 apart, in TF32 up to 9e-4.
    """
    # Each change is an object, the name of its attribute, and the value for the time being.
    changes: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        changes.append((module, "training", False))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16) and not tensor.is_inference():
            changes.append((tensor, "data", tensor.data.float()))
    cudnn: Any = torch.backends.cudnn
    # PyTorch 2.9 has this setting instead of `allow_tf32`.
    conv = getattr(cudnn, "conv", None)
    if conv:
        changes.append((conv, "fp32_precision", "ieee"))
    else:
        changes.append((cudnn, "allow_tf32", False))
    with torch.no_grad(), ExitStack() as undo:
        for owner, name, value in changes:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def part_agrees(first: str, second: str) -> bool:
    """Whether an entry of two identities is the same, or its numbers lie within the bound."""
    if first == second:
        return True
    try:
        numbers = list(map(float, first.split()))
        others = list(map(float, second.split()))
        return math.dist(numbers, others) <= BOUND * math.sqrt(len(numbers))
    except ValueError:
        # The entries are digests, or have different counts of numbers.
        return False


def differing_parts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Name the entries that both identities have and that differ."""
    differing = []
    for part in first:
        if part in second and not part_agrees(first[part], second[part]):
            differing.append(part.replace("_", " "))
    return differing
