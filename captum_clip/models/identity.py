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
    draw = np.random.RandomState(0)  # whose numbers no release of NumPy changes
    if size is not None:
        return [*torch.from_numpy(draw.standard_normal((3, 1, 3, *size))).float()]
    kind: Any = np.uint8  # which the types of newer releases do not let through
    drawn = (draw.randint(0, 256, (*s, 3), kind) for s in ((6, 6), (15, 20), (25, 18)))
    return [image.repeat(16, 0).repeat(16, 1) for image in drawn]


def summary(embeddings: Iterable[Tensor]) -> str:
    """Map unit embeddings (1, E) to four numbers, as far apart (Johnson and Lindenstrauss)."""
    numbers: list[float] = []
    for embedding in embeddings:
        [row] = embedding.float().cpu().numpy()
        numbers += (np.random.RandomState(0).standard_normal((4, len(row))) @ row / 2).tolist()
    return " ".join(f"{number:.5f}" for number in numbers)


def weights_digest(values: Iterable[Any]) -> str:
    """SHA-256 over the floating-point tensors among the values of a state dict, in any order."""
    lines = []
    for value in values:
        # releases of transformers add and drop buffers of whole numbers, such as position ids
        if isinstance(value, Tensor) and value.is_floating_point():
            # as bytes, since NumPy has no bfloat16
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            lines.append(f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(flat).hexdigest()}\n")
    # sorted, since releases also rename parameters and change their order
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
    try:
        numbers = [[float(number) for number in text.split()] for text in (first, second)]
        return first == second or math.dist(*numbers) <= BOUND * len(numbers[0]) ** 0.5
    except ValueError:  # digests, or not as many numbers
        return first == second


def differing_parts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Name the entries that differ, of those that both identities have."""
    return [
        p.replace("_", " ") for p in first if p in second and not part_agrees(first[p], second[p])
    ]
