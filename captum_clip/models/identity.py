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
"""How far numbers of one model may lie apart (root mean square), 2e-3 between unit embeddings.

Rounding moves embeddings by 1e-6, other code for the same resizing by up to 5e-4; bilinear in the
place of bicubic resizing by 3e-3 or more.
"""
FIXED_TEXTS: Final = ("a photo of a dog", "The CAT, 3 birds", "")


def fixed_images(size: tuple[int, int] | None = None) -> list[Any]:
    """Three images of colored squares (H, W, 3); with a size preprocessed noise (1, 3, H, W)."""
    # No release of NumPy changes the numbers of RandomState, as those of its newer generators may.
    generator = np.random.RandomState(0)
    if size is not None:
        return [*torch.from_numpy(generator.standard_normal((3, 1, 3, *size))).float()]
    # The annotations of newer releases do not accept the type here.
    dtype: Any = np.uint8
    images = []
    for height, width in ((6, 6), (15, 20), (25, 18)):
        squares = generator.randint(0, 256, (height, width, 3), dtype)
        images.append(squares.repeat(16, 0).repeat(16, 1))
    return images


def summary(embeddings: Iterable[Tensor]) -> str:
    """Map unit embeddings (1, E) to four numbers, as far apart (Johnson and Lindenstrauss)."""
    numbers: list[float] = []
    for embedding in embeddings:
        [row] = embedding.float().cpu().numpy()
        projection = np.random.RandomState(0).standard_normal((4, len(row)))
        numbers += (projection @ row / 2).tolist()
    return " ".join(f"{number:.5f}" for number in numbers)


def weights_digest(values: Iterable[Any]) -> str:
    """SHA-256 over the floating-point tensors among the values of a state dict, in any order."""
    lines = []
    for value in values:
        # Releases of transformers add and drop buffers of whole numbers, such as position ids.
        if isinstance(value, Tensor) and value.is_floating_point():
            # NumPy has no bfloat16, so the bytes are read.
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
            lines.append(f"{tuple(value.shape)} {value.dtype} {digest}\n")
    # Releases also rename parameters and change their order, so lines are sorted.
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@contextmanager
def reproducible(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode, without gradients and in float32 at least, then put all back.

    In half precision, embeddings of two devices lie up to 1e-2 apart, in TF32 up to 9e-4.
    """
    changes: list[Any] = [(module, "training", False) for module in model.modules()]
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16) and not tensor.is_inference():
            changes.append((tensor, "data", tensor.data.float()))
    cudnn: Any = torch.backends.cudnn
    conv = getattr(cudnn, "conv", None)  # since PyTorch 2.9
    changes.append((conv, "fp32_precision", "ieee") if conv else (cudnn, "allow_tf32", False))
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
        # They are digests, or have different numbers of entries.
        return False


def differing_parts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Name the entries that differ, of those that both identities have."""
    shared = [part for part in first if part in second]
    differing = [part for part in shared if not part_agrees(first[part], second[part])]
    return [part.replace("_", " ") for part in differing]
