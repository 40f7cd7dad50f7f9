"""Files written whole or not at all, CSV, the images of a folder, and images of any kind as RGB."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import secrets
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from .checks import excerpt, expand, expect, expecting, max_pixels
from .errors import InputError, argument

if TYPE_CHECKING:  # the command line loads this file, and NumPy with the first image only
    import numpy as np
    import numpy.typing as npt

IMAGE_ENDINGS: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
"""Endings of the files that are taken for images."""

MARK: Final = "figure of captum-clip"
"""What every image that this package writes says in its metadata."""

DAMAGED: Final = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error),
    *(SyntaxError, tokenize.TokenError, IndexError, AttributeError),  # NumPy reads headers as code
)
"""All that zipfile and NumPy raise over bits that are not theirs."""

_CHANNELS = (1, 2, 3, 4)
_HEIC = (".heic", ".heif")
NARROW: Final = 200
"""How often the shorter side of an image may go into the longer one."""
_STRIP: Final = 128  # rows, of which 8 x 8 may become one

# what Pillow's readers raise on broken files
_PILLOW_DAMAGE = (
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
_FORMULA: Final = re.compile(r"\s*'*[=+@\t\r-](?!\d+(\.\d+)?$)")


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write next to the file, then put it in its place; after a failure nothing is left."""
    if path.is_symlink():  # its file is replaced, and not the link
        path = Path(os.path.realpath(path))
    # a name may have 255 bytes, and this one is longer
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # a name must never outlive its content
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # it would hide the reason
            temporary.unlink(missing_ok=True)


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file in UTF-8 that are not blank; InputError where it is none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # strict: else an open quote would swallow all the rows that follow it
            return [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error


def to_csv(*tables: Mapping[str, Any]) -> bytes:
    """Tables as one, the same on every machine: numbers to ten digits, an empty field for NaN.

    A column is an array or a list, or one value for all rows. Names of files need not be UTF-8. An
    apostrophe before a text that looks like a formula keeps a spreadsheet from running it.
    """
    import numpy as np

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(tables[0])
    for columns in tables:
        rows = zip(*np.broadcast_arrays(*columns.values()), strict=True)
        writer.writerows(map(_field, row) for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_field(field: str) -> str:
    """A text as it was before :func:`to_csv` wrote it."""
    return field[1:] if field[:1] == "'" and _FORMULA.match(field[1:]) else field


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value + 0.0:.10g}"  # + 0.0: no minus zero


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8 that have something in them, stripped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text in UTF-8 ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def image_names(names: Iterable[str]) -> list[str]:
    """Find the images among names that are relative to one folder, sorted.

    Hidden files and folders are left out, and so are the figures of earlier studies (all that is
    in a folder with their ``manifest.json`` and ``images.csv``).

    Example:
        >>> image_names(["b.png", "a/c.JPG", "notes.txt", ".cache/d.png"])
        ['a/c.JPG', 'b.png']
    """
    paths = {PurePosixPath(name) for name in names}
    manifests = [path for path in paths if path.name == "manifest.json"]
    studies = {path.parent for path in manifests if path.with_name("images.csv") in paths}
    return sorted(
        str(path)
        for path in paths
        if path.suffix.lower() in IMAGE_ENDINGS
        and not any(name.startswith(".") for name in path.parts)
        and not studies.intersection(path.parents)
    )


def is_own_figure(path: Path) -> bool:
    """Whether an image was written by this package: its metadata say so in its first bytes."""
    with suppress(OSError):
        if path.is_file():  # a named pipe would wait for ever
            with open(path, "rb") as file:
                return MARK.encode() in file.read(4096)
    return False


def slug(*texts: str, longest: int = 40) -> str:
    """Texts as a part of a file's name, their letters and digits; what is cut off has a digest.

    Example:
        >>> slug("A horse!", "a dog"), slug("the quick brown fox jumps over the lazy dog")
        ('a-horse_a-dog', 'the-quick-brown-fox-jumps-over-the-lazy-05c6e08f')
    """
    words = "_".join(re.sub(r"[\W_]+", "-", text.lower()).strip("-") for text in texts)
    if len(words) <= longest and words.strip("_"):
        return words
    digest = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{words[:longest].strip('-_')}-{digest}".strip("-") if texts else ""


def draw_names(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """A sample of names, in their order; None is all.

    Those whose SHA-256 together with the seed is smallest: the same on every machine, and a larger
    sample holds the smaller one.
    """
    names = list(names)
    return names if limit is None else [names[i] for i in sorted(draw_order(names, seed)[:limit])]


def draw_order(names: Sequence[str], seed: int) -> list[int]:
    """Indices of all names, those that the smaller samples of :func:`draw_names` hold first."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{names[index]}".encode("utf-8", "surrogateescape")).digest()

    return sorted(range(len(names)), key=rank)


@contextmanager
def filled_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder for results; where none comes, it goes again with those made above it."""
    folder = expand(folder)
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield make_folder(folder)
    finally:
        with suppress(OSError):  # it holds something
            for each in new:
                each.rmdir()


def make_folder(folder: str | Path) -> Path:
    """Make a folder where there is none, with those above it; one that can be written to."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        raise InputError(f"{folder} is a URL; give a folder of this machine.")
    folder = expand(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} is not writable.")
    return folder


def as_pil(images: Any, large: int | None = None, *, keep_mode: bool = False) -> list[Image.Image]:
    """One or several images -> RGB images, the right way up.

    Args:
        images: one or a sequence of: path, PIL image, array or uint8 tensor, (H, W), (H, W, C) or
            (C, H, W). With a batch dimension in front of C or H it is several. C is 1 (gray), 2
            (gray, alpha), 3 or 4 (with alpha). What is transparent becomes white.
        large: files of more pixels come at a half, a quarter, ... of their width and height, which
            takes less memory than all of their pixels: a JPEG is not even unpacked at its size.
        keep_mode: keep modes of eight bits, for a processor that makes RGB of them itself.

    Raises:
        InputError: an image cannot be read or has no sensible shape or type.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    with quiet():
        converted = [
            picture
            for image in (images if several else [images])
            for picture in _as_pil(image, large, keep_mode)
        ]
    if not converted:
        raise InputError("got no image at all.")
    return converted


def _as_pil(image: Any, large: int | None, keep_mode: bool) -> list[Image.Image]:
    """The image of a path or a PIL image, or those of an array."""
    import numpy as np

    if hasattr(image, "detach"):  # a tensor; torch may not be loaded
        with expecting("a tensor of uint8", image):
            image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        arrays = (Image.fromarray(array) for array in _eight_bit_arrays(image))
        return [_upright(array, "the array or tensor", None, keep_mode) for array in arrays]
    if isinstance(image, (str, Path)):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(image)):
            raise InputError(f"{image} is a URL; download the image, then pass its file.")
        return [decode_file(read_file(Path(image)), str(image), large, keep_mode)]
    is_image = isinstance(image, Image.Image)
    expect(is_image, "a path, a PIL image, an array or a uint8 tensor, or several", image)
    with pillow_errors("the PIL image"):
        return [_upright(image, "the PIL image", None, keep_mode)]


def read_file(path: Path, name: str = "") -> bytes:
    """The content of an image file; an InputError that calls it by its name where there is none."""
    source = excerpt(name or str(path), 300)
    with pillow_errors(source):
        # a named pipe would wait for ever
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{source} is not a file but a pipe or a device.")
        return path.read_bytes()


def decode_file(
    content: bytes, name: str, large: int | None = None, keep_mode: bool = False
) -> Image.Image:
    """The image in the content of a file, as :func:`as_pil` makes it.

    Safe to call from several threads, best inside of :func:`quiet`.
    """
    with _opened_image(io.BytesIO(content), name) as image:
        return _upright(image, excerpt(name, 300), large, keep_mode)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image as it is stored, for masks and numbers; what cannot be read is an InputError."""
    with quiet(), _opened_image(path, str(path)) as image:
        yield image


@contextmanager
def _opened_image(file: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
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
    except (Image.DecompressionBombError, *_PILLOW_DAMAGE) as error:
        sentence = _SENTENCES.get(type(error), _OF_DAMAGE)
        reason = getattr(error, "strerror", None) or error  # without the path once more
        heic = "; save HEIC as JPEG or PNG first" * source.lower().endswith(_HEIC)
        # Pillow's own limit, which holds besides
        limit = {"most": 2 * (Image.MAX_IMAGE_PIXELS or 0), "option": "PIL.Image.MAX_IMAGE_PIXELS"}
        raise InputError(sentence.format(source, **limit, reason=reason, heic=heic)) from error


def _upright(image: Image.Image, source: str, large: int | None, keep_mode: bool) -> Image.Image:
    """A new image as :func:`as_pil` makes it."""
    check_size(*image.size, source, math.inf)  # a file's pixels are checked where it is opened
    width, height, scale = *image.size, 1
    while large is not None and width * height > large * scale**2:
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))  # of JPEGs alone
        scale = max(1, scale * image.width // width)
    image.load()
    if scale == 1:
        upright = _eight_bits(ImageOps.exif_transpose(image))
        return upright if keep_mode else opaque(upright)
    # as strips, since the image in other modes would take as much memory again, or more
    mode = "RGBA" if keep_mode and image.has_transparency_data else "RGB"
    reduced = Image.new(mode, (-(-image.width // scale), -(-image.height // scale)))
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        colors = strip.convert(mode) if mode == "RGBA" else opaque(_eight_bits(strip))
        reduced.paste(colors.reduce(scale), (0, top // scale))
    reduced.info = {k: v for k, v in image.info.items() if k != "transparency"}  # which way is up
    return ImageOps.exif_transpose(reduced)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image in a mode of eight bits that processors know, whether it has color or not."""
    import numpy as np

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() <= 65535:
            raise InputError(
                "the image holds floating-point values, or integers outside 0 ... 65535, "
                "of unknown range; scale it to uint8, or pass a preprocessed tensor."
            )
        return Image.fromarray(_to_eight_bits(values.astype(np.uint16)))
    # transformers takes colors times alpha for colors
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has a pixel that is not opaque."""
    alphas = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    return alphas is not None and any(alphas.histogram()[:255])


def opaque(image: Image.Image, *, drop: bool = False) -> Image.Image:
    """An image of any mode -> RGB, a new one, on white where transparent.

    With `drop` transparent colors are as OpenCLIP leaves them, which resizes them times alpha.
    """
    if drop:
        if image.mode in ("RGBA", "LA"):
            image = image.convert(image.mode[:-1] + "a").convert(image.mode)
        image = image.copy()
        image.info.pop("transparency", None)  # of which Pillow would warn
    elif image.has_transparency_data:
        colors = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors).convert("RGB")
    return image.convert("RGB")  # a new image, or with mode RGB a copy


def as_numbers(what: str, values: Any, shape: Sequence[int | str]) -> npt.NDArray[np.float32]:
    """Finite numbers of a shape, whose letters are sides of one and up."""
    import numpy as np

    with expecting(f"{what} as a tensor or an array", values), np.errstate(over="ignore"):
        raw = np.asarray(values)
        if raw.dtype.kind not in "biufO":
            raise TypeError(f"its numbers are of {raw.dtype}")
        array = raw.astype(np.float32, copy=False)
    pairs, sides = zip_longest(shape, array.shape), ", ".join(map(str, shape))
    fits = all(side == n or (isinstance(n, str) and side) for n, side in pairs)
    expect(fits, f"{what} of shape ({sides})", array.shape)
    if not np.isfinite(array).all():
        raise InputError(f"the {what} hold NaN or infinity.")
    return array


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    import numpy as np

    if 0 < values.max() < 2**14:
        warnings.warn(
            "a 16-bit image uses less than a quarter of its range, as 12-bit data do, and comes "
            "out dark; stretch it first, as in (image * (255 / image.max())).astype('uint8').",
            stacklevel=2,
        )
    return np.round(values / 257).astype(np.uint8)  # 65535 / 255


def _eight_bit_arrays(array: np.ndarray) -> list[np.ndarray]:
    """(H, W), (H, W, C), (C, H, W) or a batch of the latter two -> (H, W) or (H, W, C) each."""
    import numpy as np

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
    return [image[..., 0] if image.shape[-1] == 1 else image for image in values]


def is_image_name(word: str) -> bool:
    """Whether a word means an image, also one that does not exist."""
    from PIL import Image

    # `Path.is_file` raises for a name that is too long.
    is_file = os.path.isfile(os.path.expanduser(word))
    has_ending = os.path.splitext(word)[1].lower() in Image.registered_extensions()
    return "://" in word or is_file or has_ending
