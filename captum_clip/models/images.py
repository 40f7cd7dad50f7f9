"""Images of any kind -> RGB images -> preprocessed tensors."""

import io
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checks import excerpt, expect, expecting
from ..errors import InputError, argument
from ..maps import check_tensor, unsupported_reason

Size = tuple[int, int]
_CHANNELS = (1, 2, 3, 4)
_HEIC = (".heic", ".heif")
NARROW: Final = 200
"""How often the shorter side of an image may go into the longer one."""
_max_pixels: Final = ContextVar[int | None]("max_pixels", default=None)

# what Pillow's readers raise on broken files
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError),
    struct.error,
)
_SENTENCES: dict[type[Exception], str] = {
    Image.DecompressionBombError: "{0} unpacks to more than {most} pixels, perhaps a decompression "
    "bomb; make it smaller, or raise {option} if you trust it.",
    FileNotFoundError: "there is no image file {0}.",
    IsADirectoryError: "{0} is a folder; pass its files, as in sorted(Path({0!r}).glob('*.jpg')).",
    UnidentifiedImageError: "{0} is not an image that Pillow can read{heic}.",
}
_OF_DAMAGE = "{0} cannot be read, it may be truncated or damaged ({reason})."


def pixels_of(images: Any) -> Any:
    """Take the images of a DataLoader or a Dataset, and what a processor of transformers returned.

    Others stay as they are. If an item has several values, the first is the image.
    """
    if isinstance(images, (DataLoader, Dataset)):
        # a Dataset need not end an iteration
        loader: Any = images if isinstance(images, DataLoader) else DataLoader(images, None)
        return [pixels_of(item[0] if isinstance(item, (tuple, list)) else item) for item in loader]
    if not isinstance(images, Mapping):
        return images
    taken = "files, PIL images, or what processor(images=...) returns"
    expect("pixel_values" in images, taken, list(images))
    values = images["pixel_values"]
    return values if isinstance(values, Tensor) else torch.tensor(np.array(values, np.float32))


def is_preprocessed(images: Any) -> TypeGuard[Tensor | Sequence[Tensor]]:
    """Whether it is a floating tensor, or several, to be batched; InputError for a mixture."""
    if isinstance(images, Tensor):
        return images.is_floating_point()
    if not isinstance(images, Sequence) or isinstance(images, str) or not images:
        return False
    floating = [isinstance(image, Tensor) and image.is_floating_point() for image in images]
    if any(floating) and not all(floating):
        raise InputError(
            "got preprocessed (floating-point) tensors and other images in one list; "
            "preprocess them in two calls and join the results with torch.cat."
        )
    return all(floating)


Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the channels."""


def check_images(images: Any, made_by: Statistics | None = None, tolerance: float = 0) -> None:
    """Raise InputError unless images are a floating tensor (B, 3, H, W), all finite.

    With the statistics of their preprocessing, raise it also if more than a share `tolerance` of
    their colors leaves [-.5, 1.5], or any leaves [-10, 10]. Warn if all values lie in [0, 1], as
    pixels do. That spares colors that are steps of 1/255, as those of a bright image of 8 bits are,
    and baselines, which have few values.
    """
    made = "clip.preprocess(images) makes them of any, and images[None] adds the batch dimension"
    check_tensor("images", images, "(B, 3, H, W)", made)
    if made_by is None:
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()
    bounds = [((-0.5 - mean) / std, (1.5 - mean) / std) for mean, std in zip(*made_by, strict=True)]
    is_unit = 0 <= low < high <= 1
    if not is_unit and all(least <= low and high <= most for least, most in bounds):
        return
    values = images.detach().cpu().double().movedim(1, -1)
    mean, std = map(values.new_tensor, made_by)
    how = "pass pixels as uint8, (255 * x).round().byte() of those in [0, 1], to be preprocessed"
    colors = values * std + mean
    distance = (colors - 0.5).abs()
    said = f"floating-point images count as preprocessed, and these hold {low:.3g} to {high:.3g}, "
    if not is_unit and (distance.max() > 10 or (distance > 1).double().mean() > tolerance):
        raise InputError(f"{said}which this model's preprocessing does not make; {how}.")
    if is_unit and max(*mean, 1 - std.min()) > 0.01:  # else the model takes pixels in [0, 1]
        distinct = 255 * torch.cat([torch.unique(colors[..., channel]) for channel in range(3)])
        steps = (distinct - distinct.round()).abs() < 0.1
        # half of all pixels are steps for SigLIP, and a baseline may be three other values
        if (~steps).sum() > 3 + steps.sum() / 4:
            warnings.warn(
                f"{said}all in [0, 1] as pixels are; if they are pixels, scores and maps are "
                f"wrong: {how}.",
                stacklevel=2,
            )


def as_pil(images: Any) -> list[Image.Image]:
    """One or several images -> RGB images, the right way up.

    Args:
        images: one or a sequence of: path, PIL image, array or uint8 tensor, (H, W), (H, W, C) or
            (C, H, W). With a batch dimension in front of C or H it is several. C is 1 (gray), 2
            (gray, alpha), 3 or 4 (with alpha). What is transparent becomes white.

    Raises:
        InputError: an image cannot be read or has no sensible shape or type.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    with quiet():
        converted = [
            picture for image in (images if several else [images]) for picture in _as_pil(image)
        ]
    if not converted:
        raise InputError("got no image at all.")
    return converted


def _as_pil(image: Any) -> list[Image.Image]:
    """The image of a path or a PIL image, or those of an array."""
    if isinstance(image, (Tensor, np.ndarray)):
        return _arrays_to_pil(image)
    if isinstance(image, (str, Path)):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(image)):
            raise InputError(f"{image} is a URL; download the image, then pass its file.")
        return [decode_file(read_file(Path(image)), str(image))]
    is_image = isinstance(image, Image.Image)
    expect(is_image, "a path, a PIL image, an array or a uint8 tensor, or several", image)
    with pillow_errors("the PIL image"):
        return [_to_rgb(image, "the PIL image")]


def read_file(path: Path, name: str = "") -> bytes:
    """The content of an image file; an InputError that calls it by its name where there is none."""
    source = excerpt(name or str(path), 300)
    with pillow_errors(source):
        # a named pipe would wait for ever
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{source} is not a file but a pipe or a device.")
        return path.read_bytes()


def decode_file(content: bytes, name: str) -> Image.Image:
    """The RGB image in the content of a file, the right way up; else InputError.

    Safe to call from several threads, best inside of :func:`quiet`.
    """
    with _opened(io.BytesIO(content), name) as image:
        return _to_rgb(image, excerpt(name, 300))


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image as it is stored, for masks and numbers; what cannot be read is an InputError."""
    with quiet(), _opened(path, str(path)) as image:
        yield image


@contextmanager
def _opened(file: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    if name.lower().endswith(_HEIC):
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()
    with pillow_errors(excerpt(name, 300)), Image.open(file) as image:
        check_size(*image.size, excerpt(name, 300))
        yield image


@contextmanager
def limit_pixels(most: int | None) -> Iterator[None]:
    """Read images of up to so many pixels within the block; None leaves the limit as it is.

    It holds for this thread, and for those of :func:`captum_clip.evaluation.read_ahead`.
    """
    token = _max_pixels.set(_max_pixels.get() if most is None else most)
    try:
        yield
    finally:
        _max_pixels.reset(token)


def check_size(width: int, height: int, name: str, most: int | None = None) -> None:
    """Refuse an image by its size alone, before it is unpacked.

    Args:
        width: in pixels.
        height: in pixels.
        name: what the message calls the image.
        most: pixels that it may have; by default those of :func:`limit_pixels`, else those of
            ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        InputError: it has no pixels or too many, or one side is over `NARROW` times the other.
    """
    if not width or not height:
        raise InputError(f"{name} has no pixels, {width} x {height}.")
    # a processor would make 224 x 13,440,000 pixels of 1 x 60,000
    if max(width, height) > NARROW * min(width, height):
        raise InputError(
            f"{name} is too long and narrow, {width} x {height}; crop it "
            f"so that one side is at most {NARROW} times the other."
        )
    limit, option = most or _max_pixels.get(), argument("max_pixels")
    if limit is None:  # up to twice its limit Pillow only warns
        limit, option = Image.MAX_IMAGE_PIXELS, f"{option} or PIL.Image.MAX_IMAGE_PIXELS"
    if limit is not None and width * height > limit:
        sentence = _SENTENCES[Image.DecompressionBombError]
        raise InputError(sentence.format(name, most=limit, option=option))


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings, of broken metadata and the like.

    Filters of warnings are those of the whole process, so no thread of a pool may change them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def is_io_error(error: BaseException | None) -> bool:
    """Whether an image could not be read because its disk refused, and not for what it holds."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


@contextmanager
def pillow_errors(source: str) -> Iterator[None]:
    """One clear error for what Pillow raises."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, *_DAMAGED) as error:
        sentence = _SENTENCES.get(type(error), _OF_DAMAGE)
        reason = getattr(error, "strerror", None) or error  # without the path once more
        heic = "; pip install pillow-heif adds HEIC" * source.lower().endswith(_HEIC)
        # Pillow's own limit, which holds besides
        limit = {"most": 2 * (Image.MAX_IMAGE_PIXELS or 0), "option": "PIL.Image.MAX_IMAGE_PIXELS"}
        raise InputError(sentence.format(source, **limit, reason=reason, heic=heic)) from error


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    """The right way up, RGB, on white where transparent."""
    check_size(*image.size, source)
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright)
        if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() <= 65535:
            raise InputError(
                "the image holds floating-point values, or integers outside 0 ... 65535, "
                "of unknown range; scale it to uint8, or pass a preprocessed tensor."
            )
        return Image.fromarray(_to_eight_bits(values.astype(np.uint16))).convert("RGB")
    if upright.mode == "La":
        upright = upright.convert("LA")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in upright.info:
        colors = upright.convert("RGBA")
        white = Image.new("RGBA", colors.size, "white")
        return Image.alpha_composite(white, colors).convert("RGB")
    return upright.convert("RGB")  # a new image, or with mode RGB a copy


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)  # 65535 / 255


def _arrays_to_pil(array: Tensor | np.ndarray) -> list[Image.Image]:
    """(H, W), (H, W, C), (C, H, W) or a batch of the latter two -> RGB images."""
    if isinstance(array, Tensor) and (reason := unsupported_reason(array)):
        raise InputError(f"expected a tensor of plain numbers, got {reason}.")
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        values = _to_eight_bits(values)
    if values.dtype != np.uint8:
        raise InputError(
            f"got an array or tensor of {array.dtype} and shape {tuple(array.shape)}; "
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
    shapes = "(H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, or a batch of the latter two"
    expect(sensible, shapes, array)
    images = (image[..., 0] if image.shape[-1] == 1 else image for image in values)
    return [_to_rgb(Image.fromarray(image), "the array or tensor") for image in images]


def image_processor(processor: Any) -> Any:
    """The part for images of a processor that has one for texts as well."""
    return getattr(processor, "image_processor", processor)


def is_processor(candidate: Any) -> bool:
    """Whether it is known by its parts to make tensors of images; of a function nothing is."""
    return hasattr(image_processor(candidate), "image_mean") or hasattr(candidate, "transforms")


def process(processor: Any, images: list[Image.Image]) -> Tensor:
    """RGB images -> (B, 3, H, W), float32 on the CPU; InputError where they differ in size.

    The processor is from transformers, or a function from an image to a tensor (3, H, W) such as
    OpenCLIP's transforms.
    """
    inner = image_processor(processor)
    sizes = [image.size for image in images]
    if hasattr(inner, "image_mean"):
        with expecting(f"images that {type(inner).__name__} can prepare", sizes):
            tensors = list(inner(images=images, return_tensors="pt")["pixel_values"])
    else:
        tensors = [inner(image) for image in images]
    for tensor in tensors:
        fits = isinstance(tensor, Tensor) and tensor.ndim == 3 and tensor.shape == tensors[0].shape
        made = f"a tensor (3, H, W) of each image from {type(inner).__name__}, all of one size"
        expect(fits, made, tensor)
    return torch.stack(tensors).float()
