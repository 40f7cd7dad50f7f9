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
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from .checks import excerpt, expand, expect, expecting, max_pixels
from .errors import InputError, argument, warn

if TYPE_CHECKING:  # the command line loads this file, and NumPy with the first image only
    import numpy as np
    import numpy.typing as npt

_HEIC: Final = (".heic", ".heif")
IMAGE_ENDINGS: Final = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    *_HEIC,
)
"""Endings of the files that are taken for images."""

MARK: Final = "figure of captum-clip"
"""What every image that this package writes says in its metadata."""

DAMAGED: Final = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    # NumPy reads headers as code.
    SyntaxError,
    tokenize.TokenError,
    IndexError,
    AttributeError,
)
"""All that zipfile and NumPy raise for a file that is damaged or of another format."""

NARROW: Final = 200
"""The largest ratio of an image's longer side to its shorter one."""
_CHANNELS: Final = (1, 2, 3, 4)
# A large image is reduced in strips of so many rows. Scales are powers of two, so that up to 128 no
# pixel spans two strips.
_STRIP: Final = 128
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/")
# Spreadsheets run a text that begins with such a character, unless it is a plain number.
_FORMULA: Final = re.compile(r"\s*'*[=+@\t\r-](?!\d+(\.\d+)?$)")

# Pillow's readers raise these errors for broken files.
_PILLOW_DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    struct.error,
)
_SENTENCES: Final[dict[type[Exception], str]] = {
    Image.DecompressionBombError: "{0} unpacks to more than {most:,} pixels, perhaps a "
    "decompression bomb; make it smaller, or raise {option} if you trust it.",
    FileNotFoundError: "there is no image file {0}.",
    IsADirectoryError: "{0} is a folder; pass its files, as in sorted(Path({0!r}).glob('*.jpg')).",
    UnidentifiedImageError: "{0} is not an image that Pillow can read{heic}.",
}
_DAMAGE_SENTENCE: Final = "{0} cannot be read, it may be truncated or damaged ({reason})."


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write next to the file, then put it in its place; after a failure nothing is left."""
    # A link is kept, and the file that it leads to is replaced.
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    # A name may have 255 bytes, and the temporary one is longer than the file's own.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
            # After a crash of the machine, the name must not stand for a file without content.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        # An error here would hide the first one.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_csv(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file in UTF-8 that are not blank; InputError for any other file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Without `strict`, an open quote would swallow all rows that follow it.
            return [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error


def to_csv(*tables: Mapping[str, Any]) -> bytes:
    """Join tables to one, the same on every machine: numbers to ten digits, NaN as an empty field.

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
    """Return a text as it was before :func:`to_csv` wrote it."""
    if field.startswith("'") and _FORMULA.match(field[1:]):
        return field[1:]
    return field


def _field(value: Any) -> Any:
    """Return a value as the CSV writer takes it."""
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return ""
    # Adding zero makes a plain zero of minus zero.
    return f"{value + 0.0:.10g}"


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text in UTF-8, stripped, without empty ones."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text in UTF-8 ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def image_names(names: Iterable[str]) -> list[str]:
    """Find the images among names that are relative to one folder, sorted.

    Hidden files and folders are left out. So are the figures of earlier studies, which are all
    images below a folder with a ``manifest.json`` and an ``images.csv``.

    Example:
        >>> image_names(["b.png", "a/c.JPG", "notes.txt", ".cache/d.png"])
        ['a/c.JPG', 'b.png']
    """
    paths = {PurePosixPath(name) for name in names}
    manifests = [path for path in paths if path.name == "manifest.json"]
    studies = {path.parent for path in manifests if path.with_name("images.csv") in paths}
    images = []
    for path in paths:
        is_image = path.suffix.lower() in IMAGE_ENDINGS
        is_hidden = any(name.startswith(".") for name in path.parts)
        is_figure = not studies.isdisjoint(path.parents)
        if is_image and not is_hidden and not is_figure:
            images.append(str(path))
    return sorted(images)


def is_own_figure(path: Path) -> bool:
    """Tell whether this package wrote an image, from the metadata in its first bytes."""
    with suppress(OSError):
        # Opening a named pipe would wait forever.
        if path.is_file():
            with open(path, "rb") as file:
                return MARK.encode() in file.read(4096)
    return False


def slug(*texts: str, longest: int = 40) -> str:
    """Make a part of a file's name from the letters and digits of texts.

    A digest of the texts stands in for what is cut off.

    Example:
        >>> slug("A horse!", "a dog"), slug("the quick brown fox jumps over the lazy dog")
        ('a-horse_a-dog', 'the-quick-brown-fox-jumps-over-the-lazy-05c6e08f')
    """
    if not texts:
        return ""
    words = "_".join(re.sub(r"[\W_]+", "-", text.lower()).strip("-") for text in texts)
    if len(words) <= longest and words.strip("_"):
        return words
    digest = _digest("\n".join(texts)).hex()[:8]
    beginning = words[:longest].strip("-_")
    return f"{beginning}-{digest}".strip("-")


def _digest(text: str) -> bytes:
    """Return the SHA-256 of a text, which may be a file's name that is not UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def draw_names(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """Draw a sample of `limit` names and return them in their order; None draws all.

    The names are those whose SHA-256 together with the seed is smallest. The sample is the same on
    every machine, and a larger one holds it.
    """
    names = list(names)
    if limit is None:
        return names
    drawn = draw_order(names, seed)[:limit]
    return [names[index] for index in sorted(drawn)]


def draw_order(names: Sequence[str], seed: int) -> list[int]:
    """Return the indices of all names in the order in which :func:`draw_names` draws them."""
    return sorted(range(len(names)), key=lambda index: _digest(f"{seed}/{names[index]}"))


@contextmanager
def filled_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder for results; if it stays empty, remove it and the folders made above it."""
    folder = expand(folder)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield make_folder(folder)
    finally:
        # A folder that holds something cannot be removed, and neither can those above it.
        with suppress(OSError):
            for path in new_folders:
                path.rmdir()


def make_folder(folder: str | Path) -> Path:
    """Make a folder with those above it, unless it is there; InputError if it is not writable."""
    if _URL.match(str(folder)):
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
    """Convert one or several images to RGB images, the right way up.

    Args:
        images: an image or a sequence of images, each a path, a PIL image, an array or a uint8
            tensor. Arrays and tensors are (H, W), (H, W, C) or (C, H, W), and several images with a
            batch dimension in front of C or H. C is 1 (gray), 2 (gray, alpha), 3 or 4 (with alpha).
            Transparent parts become white.
        large: files of more pixels are read at a half, a quarter, ... of their width and height,
            which takes less memory. A JPEG is not even unpacked at its full size.
        keep_mode: keep modes of eight bits, for a processor that converts them to RGB itself.

    Raises:
        InputError: an image cannot be read or has no sensible shape or type.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        images = [images]
    converted: list[Image.Image] = []
    with quiet():
        for image in images:
            converted += _as_pil(image, large, keep_mode)
    if not converted:
        raise InputError("got no image at all.")
    return converted


def _as_pil(image: Any, large: int | None, keep_mode: bool) -> list[Image.Image]:
    """Convert the image of a path, a PIL image, or the images of an array."""
    import numpy as np

    # Only a tensor has this method, and torch may not be loaded.
    if hasattr(image, "detach"):
        with expecting("a tensor of uint8", image):
            image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        pictures = map(Image.fromarray, _eight_bit_arrays(image))
        return [_upright(picture, "the array or tensor", None, keep_mode) for picture in pictures]
    if isinstance(image, (str, Path)):
        if _URL.match(str(image)):
            raise InputError(f"{image} is a URL; download the image, then pass its file.")
        content = read_file(Path(image))
        return [decode_file(content, str(image), large, keep_mode)]
    is_image = isinstance(image, Image.Image)
    expect(is_image, "a path, a PIL image, an array or a uint8 tensor, or several", image)
    with pillow_errors("the PIL image"):
        return [_upright(image, "the PIL image", None, keep_mode)]


def read_file(path: Path, name: str = "") -> bytes:
    """Read the content of an image file, which errors call `name`, by default its path."""
    source = excerpt(name or str(path), 300)
    with pillow_errors(source):
        # Reading a named pipe would wait forever.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{source} is not a file but a pipe or a device.")
        return path.read_bytes()


def decode_file(
    content: bytes, name: str, large: int | None = None, keep_mode: bool = False
) -> Image.Image:
    """Decode the content of a file to an image, as :func:`as_pil` makes it.

    Several threads may call it at once, best inside of :func:`quiet`.
    """
    with _opened_image(io.BytesIO(content), name) as image:
        return _upright(image, excerpt(name, 300), large, keep_mode)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image as it is stored, for masks and numbers; InputError if it cannot be read."""
    with quiet(), _opened_image(path, str(path)) as image:
        yield image


@contextmanager
def _opened_image(file: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """Open an image of an allowed size, without unpacking its pixels."""
    source = excerpt(name, 300)
    with pillow_errors(source), Image.open(file) as image:
        check_size(*image.size, source)
        yield image


def check_size(width: int, height: int, name: str, most: float | None = None) -> None:
    """Refuse an image by its size alone, before it is unpacked.

    Args:
        width: in pixels.
        height: in pixels.
        name: the image's name in the message.
        most: pixels that it may have; by default those of `limit_pixels`, else those of
            ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        InputError: it has no pixels or too many, or one side is over `NARROW` times the other.
    """
    if not width or not height:
        raise InputError(f"{name} has no pixels, {width} x {height}.")
    # A processor scales the shorter side to 224, so 1 x 60,000 would become 224 x 13,440,000.
    if max(width, height) > NARROW * min(width, height):
        raise InputError(
            f"{name} is too long and narrow, {width} x {height}; crop it "
            f"so that one side is at most {NARROW} times the other."
        )
    limit = most or max_pixels.get()
    option = argument("max_pixels")
    if limit is None:
        # Pillow itself only warns of an image that has up to twice as many pixels.
        limit = Image.MAX_IMAGE_PIXELS
        option = f"{option} or PIL.Image.MAX_IMAGE_PIXELS"
    if limit is not None and width * height > limit:
        sentence = _SENTENCES[Image.DecompressionBombError]
        raise InputError(sentence.format(name, most=limit, option=option))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, such as those of broken metadata.

    The filters of warnings belong to the whole process, so no thread of a pool may change them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def is_io_error(error: BaseException | None) -> bool:
    """Tell whether an image could not be read because of its disk, and not of its content."""
    # Pillow raises an OSError for damaged content too, but only errors of the system have a number.
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


@contextmanager
def pillow_errors(source: str) -> Iterator[None]:
    """Raise one clear InputError for all that Pillow raises."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, *_PILLOW_DAMAGE) as error:
        sentence = _SENTENCES.get(type(error), _DAMAGE_SENTENCE)
        # The whole text of an OSError would name the path once more.
        reason = getattr(error, "strerror", None) or error
        heic = ""
        if source.lower().endswith(_HEIC):
            heic = "; save HEIC as JPEG or PNG first"
        # Pillow refuses over twice its own limit of pixels, also where `limit_pixels` allows more.
        message = sentence.format(
            source,
            most=2 * (Image.MAX_IMAGE_PIXELS or 0),
            option="PIL.Image.MAX_IMAGE_PIXELS",
            reason=reason,
            heic=heic,
        )
        raise InputError(message) from error


def _upright(image: Image.Image, source: str, large: int | None, keep_mode: bool) -> Image.Image:
    """Make a new image as :func:`as_pil` makes it."""
    # The number of a file's pixels is checked where the file is opened, its sides here.
    check_size(*image.size, source, math.inf)
    width, height = image.size
    scale = 1
    while large is not None and width * height > large * scale**2:
        scale *= 2
    if scale > 1:
        # JPEGs can be unpacked at a fraction of their size; for other formats this does nothing.
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
        # The draft may have done a part of the reduction, or all of it.
        scale = max(1, scale * image.width // width)
    image.load()
    if scale > 1:
        return ImageOps.exif_transpose(_reduced(image, scale, keep_mode))
    upright = _eight_bits(ImageOps.exif_transpose(image))
    return upright if keep_mode else opaque(upright)


def _reduced(image: Image.Image, scale: int, keep_mode: bool) -> Image.Image:
    """Make an image whose width and height are smaller by an integer factor, rounded up."""
    has_alpha = keep_mode and image.has_transparency_data
    mode = "RGBA" if has_alpha else "RGB"
    width = math.ceil(image.width / scale)
    height = math.ceil(image.height / scale)
    reduced = Image.new(mode, (width, height))
    # The whole image converted to another mode would take its memory again, or more.
    for top in range(0, image.height, _STRIP):
        bottom = min(top + _STRIP, image.height)
        strip = image.crop((0, top, image.width, bottom))
        colors = strip.convert(mode) if has_alpha else opaque(_eight_bits(strip))
        reduced.paste(colors.reduce(scale), (0, top // scale))
    # The metadata say which way is up. A transparency stands for a color of the former mode.
    reduced.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return reduced


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to a mode of eight bits that processors know, in gray or in color."""
    import numpy as np

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() <= 65535:
            raise InputError(
                "the image holds floating-point values, or integers outside 0 ... 65535, "
                "of unknown range; scale it to uint8, or pass a preprocessed tensor."
            )
        return Image.fromarray(_to_eight_bits(values.astype(np.uint16)))
    # In these modes colors are multiplied by alpha, which transformers does not know.
    if image.mode in ("La", "RGBa"):
        return image.convert(image.mode.upper())
    return image


def is_transparent(image: Image.Image) -> bool:
    """Tell whether an image has a pixel that is not opaque."""
    if not image.has_transparency_data:
        return False
    counts = image.convert("RGBA").getchannel("A").histogram()
    return any(counts[:255])


def opaque(image: Image.Image, *, drop: bool = False) -> Image.Image:
    """Convert an image of any mode to RGB, a new image, on white where it is transparent.

    With `drop` there is no white: the alpha channel is dropped, and the colors below it are those
    that OpenCLIP gets, which multiplies them by alpha to resize an image and divides them again.
    """
    if drop:
        if image.mode in ("RGBA", "LA"):
            multiplied_by_alpha = image.convert(image.mode[:-1] + "a")
            image = multiplied_by_alpha.convert(image.mode)
        image = image.copy()
        # Pillow would warn of a transparency that the conversion to RGB loses.
        image.info.pop("transparency", None)
    elif image.has_transparency_data:
        colors = image.convert("RGBA")
        white = Image.new("RGBA", colors.size, "white")
        return Image.alpha_composite(white, colors).convert("RGB")
    # Pillow converts an image of mode RGB to a copy of itself.
    return image.convert("RGB")


def as_numbers(what: str, values: Any, shape: Sequence[int | str]) -> npt.NDArray[np.float32]:
    """Return finite numbers of a shape; a letter in it is a side of any length from one on."""
    import numpy as np

    with expecting(f"{what} as a tensor or an array", values), np.errstate(over="ignore"):
        raw = np.asarray(values)
        # Objects may be numbers as well, such as fractions. The block adds what was expected.
        if raw.dtype.kind not in "biufO":
            raise TypeError(f"its numbers are of {raw.dtype}")
        array = raw.astype(np.float32, copy=False)
    fits = array.ndim == len(shape)
    for side, length in zip(shape, array.shape, strict=False):
        side_fits = length > 0 if isinstance(side, str) else length == side
        fits = fits and side_fits
    sides = ", ".join(map(str, shape))
    expect(fits, f"{what} of shape ({sides})", array.shape)
    if not np.isfinite(array).all():
        raise InputError(f"the {what} hold NaN or infinity.")
    return array


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale values of 16 bits to 8 bits."""
    import numpy as np

    if 0 < values.max() < 2**14:
        warn(
            "a 16-bit image uses less than a quarter of its range, as 12-bit data do, and comes "
            "out dark; stretch it first, as in (image * (255 / image.max())).astype('uint8')."
        )
    # 65,535 / 257 is 255.
    return np.round(values / 257).astype(np.uint8)


def _eight_bit_arrays(array: np.ndarray) -> list[np.ndarray]:
    """Part (H, W), (H, W, C), (C, H, W) or a batch of the latter two into (H, W) or (H, W, C)."""
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
        values = values[None]  # (1, H, W), (1, H, W, C) or (1, C, H, W)
    # Where both sides could be channels, they are last, as Pillow and NumPy have them.
    if values.ndim == 4 and values.shape[3] not in _CHANNELS and values.shape[1] in _CHANNELS:
        values = values.transpose(0, 2, 3, 1)  # (N, H, W, C)
    if values.ndim == 3:
        values = values[..., None]  # (1, H, W, 1)
    is_image = values.ndim == 4 and values.shape[3] in _CHANNELS and 0 not in values.shape[1:]
    shapes = "(H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, or a batch of the latter two"
    expect(is_image, shapes, array)
    # Pillow takes a gray image without a side of channels.
    return [image[..., 0] if image.shape[-1] == 1 else image for image in values]


def is_image_name(word: str) -> bool:
    """Tell whether a word names an image, which need not exist."""
    # `Path.is_file` raises for a name that is too long.
    is_file = os.path.isfile(os.path.expanduser(word))
    has_ending = os.path.splitext(word)[1].lower() in Image.registered_extensions()
    return "://" in word or is_file or has_ending
