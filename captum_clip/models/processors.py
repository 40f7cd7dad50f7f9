"""Processors and tokenizers, whichever library they come from, each asked in its own way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .hub import first_line


class Deferred:
    """A processor or tokenizer that is loaded when first needed; `reason` says what failed."""

    def __init__(self, load: Callable[[], Any], description: str) -> None:
        self._load, self._description, self.reason = load, description, ""
        self._value: Any = None
        self._is_loaded = False

    @property
    def value(self) -> Any:
        """What was loaded; None where that failed."""
        # No `cached_property`: before Python 3.12 all of a class share one lock, which a thread
        # would hold while it waits for the one that loads a model and needs that lock in turn.
        if not self._is_loaded:
            try:
                self._value = self._load()
            except (OSError, ValueError, TypeError, RuntimeError, ImportError, KeyError) as error:
                self.reason = f"{self._description} could not be loaded: {first_line(error)}"
            self._is_loaded = True
        return self._value


def image_processor(processor: Any) -> Any:
    """The part for images of a processor that has one for texts as well."""
    return getattr(processor, "image_processor", processor)


def process(processor: Any, images: list[Image.Image]) -> Tensor:
    """RGB pictures -> (B, 3, H, W), float32 on the CPU; InputError where they differ in size.

    The processor is one of transformers, or a function from a picture to a tensor (3, H, W) such as
    OpenCLIP's transforms.
    """
    inner = image_processor(processor)
    for image in images:
        _check_resized(inner, image)
    if hasattr(inner, "image_mean"):
        tensors = list(inner(images=images, return_tensors="pt")["pixel_values"])
    else:
        tensors = [inner(image) for image in images]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape != tensors[0].shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(
                f"preprocess: the processor {type(inner).__name__} returned {got} for an image; "
                "expected one tensor (3, H, W) an image, all of the same size."
            )
    return torch.stack(tensors).float()


def _check_resized(processor: Any, image: Image.Image) -> None:
    """Refuse a picture that keeps its shape and becomes larger than Pillow would open."""
    size: Any = getattr(processor, "size", None)  # a dictionary or what behaves as one
    shorter = size.get("shortest_edge") if hasattr(size, "get") else size
    for step in getattr(processor, "transforms", ()):  # torchvision's Compose
        if type(step).__name__ in ("Resize", "ResizeKeepRatio"):
            shorter = step.size
    most = Image.MAX_IMAGE_PIXELS
    if isinstance(shorter, int) and most is not None:
        longer = shorter * max(image.size) // min(image.size)
        if shorter * longer > most:
            raise InputError(
                f"preprocess: resized so that its shorter side is {shorter} pixels, a picture of "
                f"{image.width} x {image.height} has {shorter * longer} pixels, more than {most}; "
                "crop it, or raise PIL.Image.MAX_IMAGE_PIXELS where you trust it."
            )


def statistics(processor: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of the three channels; None where the processor does not tell."""
    inner = image_processor(processor)
    for step in reversed(getattr(inner, "transforms", [])):  # torchvision's Compose
        if hasattr(step, "mean") and hasattr(step, "std"):
            return tuple(map(float, step.mean)), tuple(map(float, step.std))
    if not hasattr(inner, "image_mean"):
        return None
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if getattr(inner, "do_normalize", True):
        mean, std = tuple(inner.image_mean), tuple(inner.image_std)
    # EfficientNet's (ALIGN) may map to [-1, 1] first and divide by the standard deviation twice
    scale = 255 * (inner.rescale_factor if getattr(inner, "do_rescale", True) else 1)
    offset = 1 if getattr(inner, "rescale_offset", False) else 0
    divisor = std if getattr(inner, "include_top", False) else (1.0, 1.0, 1.0)
    means = tuple((m + offset) / scale for m in mean)
    return means, tuple(s * d / scale for s, d in zip(std, divisor, strict=True))


def describe(processor: Any) -> str:
    """A text that changes when the preprocessing does, and not from run to run."""
    inner = image_processor(processor)
    if hasattr(inner, "image_mean"):
        return repr(sorted(inner.to_dict().items()))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(inner))


def is_transformers_tokenizer(tokenizer: Any) -> bool:
    """Whether it is called as the tokenizers of transformers are."""
    return hasattr(tokenizer, "pad_token_id") and hasattr(tokenizer, "model_max_length")


def call_tokenizer(tokenizer: Any, texts: list[str], length: int | None) -> Any:
    """Tokens by one of transformers, padded to a length; None for the longest text's."""
    padding = True if length is None else "max_length"
    return tokenizer(texts, padding=padding, max_length=length, return_tensors="pt")


def count_tokens(tokenizer: Any, text: str) -> int | None:
    """Tokens of a text with start and end, uncut; None where the tokenizer cannot say."""
    if is_transformers_tokenizer(tokenizer):
        return len(tokenizer(text, verbose=False)["input_ids"])
    if hasattr(tokenizer, "count"):  # the embedded model's
        return int(tokenizer.count(text))
    clean = getattr(tokenizer, "clean_fn", None)
    if clean is not None and hasattr(tokenizer, "tokenizer"):  # OpenCLIP's HFTokenizer
        own = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # adds start, end and class
        options = {"add_special_tokens": not own, "verbose": False}
        return 3 * own + len(tokenizer.tokenizer(clean(text), **options)["input_ids"])
    if clean is not None and hasattr(tokenizer, "encode"):  # OpenCLIP's SimpleTokenizer
        return 2 + len(tokenizer.encode(text))
    return None
