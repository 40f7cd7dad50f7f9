"""Images of any kind -> RGB images, none of them too large: without torch."""

import io
import math
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .checks import excerpt, expect, expecting, max_pixels
from .errors import InputError, argument

_CHANNELS = (1, 2, 3, 4)
_HEIC = (".heic", ".heif")
NARROW: Final = 200
"""How often the shorter side of an image may go into the longer one."""
_STRIP: Final = 128  # rows, of which 8 x 8 may become one

# what Pillow's readers raise on broken files
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError),
    struct.error,
)
_SENTENCES: dict[type[Exception], str] = {
    Image.DecompressionBombError: "{0} unpacks to more than {most:,} pixels, perhaps a "
    "decompression bomb; make it smaller, or raise {option} if you trust it.",
    FileNotFoundError: "there is no image file {0}.",
    IsADirectoryError: "{0} is a folder; pass its files, as in sorted(Path({0!r}).glob('*.jpg')).",
    UnidentifiedImageError: "{0} is not an image that Pillow can read{heic}.",
}
_OF_DAMAGE = "{0} cannot be read, it may be truncated or damaged ({reason})."


def as_pil(images: Any, large: int | None = None) -> list[Image.Image]:
    """One or several images -> RGB images, the right way up.

    Args:
        images: one or a sequence of: path, PIL image, array or uint8 tensor, (H, W), (H, W, C) or
            (C, H, W). With a batch dimension in front of C or H it is several. C is 1 (gray), 2
            (gray, alpha), 3 or 4 (with alpha). What is transparent becomes white.
        large: files of more pixels come at a half, a quarter, ... of their width and height, which
            takes less memory than all of their pixels: a JPEG is not even unpacked at its size.

    Raises:
        InputError: an image cannot be read or has no sensible shape or type.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    with quiet():
        converted = [
            picture
            for image in (images if several else [images])
            for picture in _as_pil(image, large)
        ]
    if not converted:
        raise InputError("got no image at all.")
    return converted


def _as_pil(image: Any, large: int | None) -> list[Image.Image]:
    """The image of a path or a PIL image, or those of an array."""
    if hasattr(image, "detach"):  # a tensor; torch may not be loaded
        with expecting("a tensor of uint8", image):
            image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _arrays_to_pil(image)
    if isinstance(image, (str, Path)):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(image)):
            raise InputError(f"{image} is a URL; download the image, then pass its file.")
        return [decode_file(read_file(Path(image)), str(image), large)]
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


def decode_file(content: bytes, name: str, large: int | None = None) -> Image.Image:
    """The RGB image in the content of a file, the right way up; `large` as in :func:`as_pil`.

    Safe to call from several threads, best inside of :func:`quiet`.
    """
    with _opened(io.BytesIO(content), name) as image:
        return _to_rgb(image, excerpt(name, 300), large)


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


def check_size(width: int, height: int, name: str, most: float | None = None) -> None:
    """Refuse an image by its size alone, before it is unpacked.

    Args:
        width: in pixels.
        height: in pixels.
        name: what the message calls the image.
        most: pixels that it may have; by default those of `limit_pixels`, else those of
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
    limit, option = most or max_pixels.get(), argument("max_pixels")
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


def _to_rgb(image: Image.Image, source: str, large: int | None = None) -> Image.Image:
    """The right way up, RGB, on white where transparent; `large` as in :func:`as_pil`."""
    check_size(*image.size, source, math.inf)  # a file's pixels are checked where it is opened
    width, height, scale = *image.size, 1
    while large is not None and width * height > large * scale**2:
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))  # of JPEGs alone
        scale = max(1, scale * image.width // width)
    image.load()
    if scale == 1:
        return _colors(ImageOps.exif_transpose(image))
    # as strips, since the image in other modes would take as much memory again, or more
    reduced = Image.new("RGB", (-(-image.width // scale), -(-image.height // scale)))
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        reduced.paste(_colors(strip).reduce(scale), (0, top // scale))
    reduced.info = image.info  # which way is up
    return ImageOps.exif_transpose(reduced)


def _colors(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB, a new one."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() <= 65535:
            raise InputError(
                "the image holds floating-point values, or integers outside 0 ... 65535, "
                "of unknown range; scale it to uint8, or pass a preprocessed tensor."
            )
        return Image.fromarray(_to_eight_bits(values.astype(np.uint16))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        colors = image.convert("RGBA")
        white = Image.new("RGBA", colors.size, "white")
        return Image.alpha_composite(white, colors).convert("RGB")
    return image.convert("RGB")  # a new image, or with mode RGB a copy


def as_numbers(
    what: str, values: Any, shape: Sequence[int | str], kinds: str = "biufO"
) -> npt.NDArray[np.float32]:
    """Finite numbers of a shape, whose letters are sides of one and up, and of kinds of NumPy."""
    with expecting(f"{what} as a tensor or an array", values), np.errstate(over="ignore"):
        raw = np.asarray(values)
        if raw.dtype.kind not in kinds:
            raise TypeError(f"its numbers are of {raw.dtype}")
        array = raw.astype(np.float32, copy=False)
    pairs, sides = zip_longest(shape, array.shape), ", ".join(map(str, shape))
    fits = all(side == n or (isinstance(n, str) and side) for n, side in pairs)
    expect(fits, f"{what} of shape ({sides})", array.shape)
    if not np.isfinite(array).all():
        raise InputError(f"the {what} hold NaN or infinity.")
    return array


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)  # 65535 / 255


def _arrays_to_pil(array: np.ndarray) -> list[Image.Image]:
    """(H, W), (H, W, C), (C, H, W) or a batch of the latter two -> RGB images."""
    values = array
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        values = _to_eight_bits(values)
    if values.dtype != np.uint8:
        raise InputError(
            f"got an array or tensor of {array.dtype} and shape {tuple(array.shape)}; "
            "accepted are arrays and tensors of uint8 or uint16 as images, and floating-point "
            "tensors as preprocessed images. For values in [0, 1] pass (255 * x).round() as uint8; "
            "for preprocessed ones torch.from_numpy(x), or `vectors` of an exported model."
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
