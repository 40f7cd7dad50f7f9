"""Images of any kind -> RGB images -> preprocessed tensors, by the processor of any library."""

from __future__ import annotations

import io
import re
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..checks import excerpt
from ..errors import InputError
from ..maps import unusable

_CHANNELS = (1, 2, 3, 4)
NARROW: Final = 200
"""How often the shorter side of an image may go into the longer one."""

# what Pillow's readers raise on broken files
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError),
    struct.error,
)


def is_preprocessed(images: Any) -> TypeGuard[Tensor | Sequence[Tensor]]:
    """Whether it is a floating tensor, or several, to be batched; InputError for a mixture."""
    if isinstance(images, Tensor):
        return images.is_floating_point()
    if not isinstance(images, Sequence) or isinstance(images, str) or not images:
        return False
    floating = [isinstance(image, Tensor) and image.is_floating_point() for image in images]
    if any(floating) and not all(floating):
        raise InputError(
            "preprocess: got preprocessed (floating-point) tensors and other images in one list; "
            "preprocess them in two calls and join the results with torch.cat."
        )
    return all(floating)


def check_images(images: Any, caller: str) -> None:
    """Raise InputError unless images are a floating tensor (B, 3, H, W), all finite."""
    made = "clip.preprocess(images) makes them of any images"
    if not isinstance(images, Tensor):
        got = type(images).__name__
        raise InputError(f"{caller}: expected preprocessed images (B, 3, H, W), got {got}; {made}.")
    if reason := unusable(images):
        raise InputError(f"{caller}: expected images as a tensor of plain numbers, got {reason}.")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise InputError(
            f"{caller}: expected images of shape (B, 3, H, W), got {shape}; {made}, and "
            "images[None] adds the batch dimension."
        )
    if not images.is_floating_point():
        raise InputError(
            f"{caller}: expected floating-point (preprocessed) images, got {images.dtype}; {made}."
        )
    # One pass decides almost always; a sum may overflow where every value is finite.
    values = images.detach()
    total = values.sum(dtype=torch.promote_types(images.dtype, torch.float32))
    if not torch.isfinite(total) and not torch.isfinite(values).all():
        raise InputError(
            f"{caller}: the images {shape} hold NaN or infinity; look for a division by zero or an "
            "overflow in half precision before this call."
        )


def as_pil(images: Any) -> list[Image.Image]:
    """One or several images -> RGB images, the right way up.

    Args:
        images: one or a sequence of: path, PIL image, array or uint8 tensor; (H, W), (H, W, C) or
            (C, H, W), with a batch dimension in front of C or H it is several; C is 1 (grey), 2
            (grey, alpha), 3 or 4 (with alpha). What is transparent becomes white.

    Raises:
        InputError: an image cannot be read or has no sensible shape or type.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    converted = [one for image in (images if several else [images]) for one in _as_pil(image)]
    if not converted:
        raise InputError("preprocess: got no image at all.")
    return converted


def _as_pil(image: Any) -> list[Image.Image]:
    """The image of a path or a PIL image, or those of an array."""
    if isinstance(image, (Tensor, np.ndarray)):
        return _arrays_to_pil(image)
    if isinstance(image, (str, Path)):
        return [decode_file(read_file(Path(image)), Path(image))]
    if isinstance(image, Image.Image):
        with guarded("the PIL image"):
            return [_to_rgb(image, "the PIL image")]
    raise InputError(
        "preprocess: expected a path, a PIL image, an array or a uint8 tensor, or several of them, "
        f"got {type(image).__name__}."
    )


def read_file(path: Path) -> bytes:
    """The content of an image file; InputError where it cannot be read."""
    source = excerpt(str(path), 300)
    with guarded(source):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a named pipe would wait for ever
            raise InputError(f"preprocess: {source} is not a file but a pipe or a device.")
        return path.read_bytes()


def decode_file(content: bytes, path: Path) -> Image.Image:
    """The RGB image in the content of a file, the right way up; else InputError."""
    source = excerpt(str(path), 300)
    with guarded(source), Image.open(io.BytesIO(content)) as image:
        return _to_rgb(image, source)


def is_away(error: BaseException | None) -> bool:
    """Whether an image could not be read because its disk refused, and not for what it holds."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


@contextmanager
def guarded(source: str) -> Iterator[None]:
    """One clear error for what Pillow raises or only warns about."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"preprocess: {source} unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, perhaps a "
            "decompression bomb; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS where you "
            "trust it."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"preprocess: there is no image file {source}.") from error
    except IsADirectoryError as error:
        raise InputError(f"preprocess: {source} is a folder; expected an image file.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"preprocess: {source} is not an image that Pillow can read.") from error
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error  # without the path once more
        raise InputError(
            f"preprocess: {source} cannot be read, it may be truncated or damaged ({reason})."
        ) from error


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    """The right way up, RGB, on white where transparent."""
    # before it is unpacked: a processor would make 224 x 13,440,000 pixels of 1 x 60,000
    if not all(image.size):
        raise InputError(f"preprocess: {source} has no pixels, {image.width} x {image.height}.")
    if max(image.size) > NARROW * min(image.size):
        raise InputError(
            f"preprocess: {source} is too long and narrow, {image.width} x {image.height}; crop it "
            f"so that one side is at most {NARROW} times the other."
        )
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _grey_to_pil(np.asarray(upright))
    if upright.mode == "La":
        upright = upright.convert("LA")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in upright.info:
        colors = upright.convert("RGBA")
        white = Image.new("RGBA", colors.size, "white")
        return Image.alpha_composite(white, colors).convert("RGB")
    return upright.convert("RGB")  # a new image, or with mode RGB a copy


def _grey_to_pil(values: np.ndarray) -> Image.Image:
    """One channel (H, W) of 16 bits, in whatever type Pillow keeps it."""
    if values.dtype.kind == "f" or (values.size and not 0 <= values.min() <= values.max() <= 65535):
        raise InputError(
            "preprocess: the image holds floating-point values, or integers outside 0 ... 65535, "
            "of unknown range; scale it to uint8, or pass a preprocessed tensor."
        )
    return Image.fromarray(_to_eight_bits(values.astype(np.uint16))).convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)  # 65535 / 255


def _arrays_to_pil(array: Tensor | np.ndarray) -> list[Image.Image]:
    """(H, W), (H, W, C), (C, H, W) or a batch of the latter two -> RGB images."""
    if isinstance(array, Tensor) and (reason := unusable(array)):
        raise InputError(f"preprocess: expected a tensor of plain numbers, got {reason}.")
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        values = _to_eight_bits(values)
    if values.dtype != np.uint8:
        raise InputError(
            f"preprocess: got an array or tensor of {array.dtype} and shape {tuple(array.shape)}; "
            "accepted are arrays and tensors of uint8 or uint16 as images, and floating-point "
            "tensors as preprocessed images. For values in [0, 1] pass (255 * x).round() as uint8; "
            "for preprocessed ones torch.from_numpy(x)."
        )
    if values.ndim in (2, 3):
        values = values[None]
    if values.ndim == 4 and values.shape[3] not in _CHANNELS and values.shape[1] in _CHANNELS:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim == 3:
        values = values[..., None]
    sensible = values.ndim == 4 and values.shape[3] in _CHANNELS and 0 not in values.shape[1:]
    if not sensible:
        raise InputError(
            f"preprocess: got an array or tensor of shape {tuple(array.shape)}; expected (H, W), "
            "(H, W, C) or (C, H, W) with 1 to 4 channels, or a batch of the latter two."
        )
    images = (image[..., 0] if image.shape[-1] == 1 else image for image in values)
    pil = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
    return [_to_rgb(image, "the array or tensor") for image in pil]


def image_processor(processor: Any) -> Any:
    """The part for images of a processor that has one for texts as well."""
    return getattr(processor, "image_processor", processor)


def process(processor: Any, images: list[Image.Image]) -> Tensor:
    """RGB images -> (B, 3, H, W), float32 on the CPU; InputError where they differ in size.

    The processor is one of transformers, or a function from an image to a tensor (3, H, W) such as
    OpenCLIP's transforms.
    """
    inner = image_processor(processor)
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


def describe(processor: Any) -> str:
    """A text that changes when the preprocessing does, and not from run to run."""
    inner = image_processor(processor)
    if hasattr(inner, "image_mean"):
        return repr(sorted(inner.to_dict().items()))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(inner))


def is_transformers_tokenizer(tokenizer: Any) -> bool:
    """Whether it is called as the tokenizers of transformers are."""
    return hasattr(tokenizer, "pad_token_id") and hasattr(tokenizer, "model_max_length")
