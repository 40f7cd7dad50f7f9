"""Images of any kind -> RGB images -> preprocessed tensors, and the way of their pixels there.

Masks and maps of fixations take the same way.
"""

import io
import re
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from ..checks import excerpt
from ..errors import InputError, UnsupportedModelError, public
from ..maps import Box, unusable

Size = tuple[int, int]
Positions = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

# Patterns of names of classes. Owlv2's is missing: it pads before it resizes.
_FAMILIES = "CLIP|Siglip|ChineseCLIP|ViT|OwlViT|EfficientNet|Blip|Flava"
_HUGGING_FACE = f"({_FAMILIES})ImageProcessor(Fast|Pil)?"
_NAFLEX = "Siglip2ImageProcessor(Fast|Pil)?"
_RESIZING = "Resize|ResizeKeepRatio"
_CROPPING = "CenterCrop|CenterCropOrPad"
_STILL = "ToTensor|PILToTensor|ToImage|ToDtype|Normalize|MaybeConvertMode"
_TO_RGB = ("_convert_to_rgb", "_convert_image_to_rgb")  # of OpenCLIP, of OpenAI's package

_CHANNELS = (1, 2, 3, 4)
NARROW: Final = 200
"""How often the shorter side of an image may go into the longer one."""

# what Pillow's readers raise on broken files
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, NotImplementedError),
    struct.error,
)
_SENTENCES: dict[type[Exception], str] = {
    Image.DecompressionBombError: "{0} unpacks to more than {most} pixels, perhaps a decompression "
    "bomb; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS where you trust it.",
    FileNotFoundError: "there is no image file {0}.",
    IsADirectoryError: "{0} is a folder; pass its files, as in sorted(Path({0!r}).glob('*.jpg')).",
    UnidentifiedImageError: "{0} is not an image that Pillow can read.",
}
_OF_DAMAGE = "{0} cannot be read, it may be truncated or damaged ({reason})."


def pixels_of(images: Any) -> Any:
    """What an image processor of transformers returned as a tensor; anything else as it is."""
    if not isinstance(images, Mapping):
        return images
    if "pixel_values" not in images:
        raise InputError(
            f"expected images, got {type(images).__name__} of {list(images)}; pass "
            "files, PIL images, or what processor(images=...) returns."
        )
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


def check_images(images: Any) -> None:
    """Raise InputError unless images are a floating tensor (B, 3, H, W), all finite."""
    made = "clip.preprocess(images) makes them of any images"
    if not isinstance(images, Tensor):
        got = type(images).__name__
        raise InputError(f"expected preprocessed images (B, 3, H, W), got {got}; {made}.")
    if reason := unusable(images):
        raise InputError(f"expected images as a tensor of plain numbers, got {reason}.")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise InputError(
            f"expected images of shape (B, 3, H, W), got {shape}; {made}, and "
            "images[None] adds the batch dimension."
        )
    if not images.is_floating_point():
        raise InputError(
            f"expected floating-point (preprocessed) images, got {images.dtype}; {made}."
        )
    if not torch.isfinite(images).all():
        raise InputError(
            f"the images {shape} hold NaN or infinity; look for a division by zero or an "
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
    with quiet():
        converted = [one for image in (images if several else [images]) for one in _as_pil(image)]
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
    if isinstance(image, Image.Image):
        with pillow_errors("the PIL image"):
            return [_to_rgb(image, "the PIL image")]
    raise InputError(
        "expected a path, a PIL image, an array or a uint8 tensor, or several of them, "
        f"got {type(image).__name__}."
    )


def read_file(path: Path, name: str = "") -> bytes:
    """The content of an image file; an InputError that calls it by its name where there is none."""
    source = excerpt(name or str(path), 300)
    with pillow_errors(source):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a named pipe would wait for ever
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
    with pillow_errors(excerpt(name, 300)), Image.open(file) as image:
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and image.width * image.height > most:  # up to twice it Pillow warns
            raise Image.DecompressionBombError
        yield image


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
        message = sentence.format(source, most=Image.MAX_IMAGE_PIXELS, reason=reason)
        raise InputError(message) from error


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    """The right way up, RGB, on white where transparent."""
    # before it is unpacked: a processor would make 224 x 13,440,000 pixels of 1 x 60,000
    if not all(image.size):
        raise InputError(f"{source} has no pixels, {image.width} x {image.height}.")
    if max(image.size) > NARROW * min(image.size):
        raise InputError(
            f"{source} is too long and narrow, {image.width} x {image.height}; crop it "
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
            "the image holds floating-point values, or integers outside 0 ... 65535, "
            "of unknown range; scale it to uint8, or pass a preprocessed tensor."
        )
    return Image.fromarray(_to_eight_bits(values.astype(np.uint16))).convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)  # 65535 / 255


def _arrays_to_pil(array: Tensor | np.ndarray) -> list[Image.Image]:
    """(H, W), (H, W, C), (C, H, W) or a batch of the latter two -> RGB images."""
    if isinstance(array, Tensor) and (reason := unusable(array)):
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
    if not sensible:
        raise InputError(
            f"got an array or tensor of shape {tuple(array.shape)}; expected (H, W), "
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
                f"the processor {type(inner).__name__} returned {got} for an image; "
                "expected one tensor (3, H, W) an image, all of the same size."
            )
    return torch.stack(tensors).float()


def is_transformers_tokenizer(tokenizer: Any) -> bool:
    """Whether it is called as the tokenizers of transformers are."""
    return hasattr(tokenizer, "pad_token_id") and hasattr(tokenizer, "model_max_length")


@dataclass(frozen=True, eq=False)
class Geometry:
    """Resizing and cropping as numbers."""

    resized: Size  # height and width before the crop
    rows: Positions  # (h,), the row of the resized image that each row shows; -1 is padding
    columns: Positions  # (w,), the same for columns

    def crop(self, resized: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Crop arrays (..., H, W) of the resized image's size; 0 in the padding."""
        rows = self.rows[:, None]
        cropped = resized[..., rows, self.columns]
        cropped[..., (rows < 0) | (self.columns < 0)] = 0
        return cropped


@dataclass(frozen=True)
class Crop:
    """The place of a preprocessed image in its photo; InputError where it shows nothing of it."""

    size: Size  # height and width of the photo, the right way up, in pixels
    box: Box  # of the image in pixels of the photo, outside of it where the image is padded

    @public("Crop")
    def __post_init__(self) -> None:
        (height, width), (left, top, right, bottom) = self.size, self.box
        overlap = max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)
        if not overlap or not np.isfinite(self.box).all():
            raise InputError(f"{self.box} shows nothing of a photo {self.size}.")

    @property
    def is_whole(self) -> bool:
        """Whether the image shows the photo and nothing else."""
        height, width = self.size
        return self.box == (0, 0, width, height)

    def scaled(self, size: Size) -> Box:
        """The box on the photo resized to a height and width."""
        down, across = (new / old for new, old in zip(size, self.size, strict=True))
        left, top, right, bottom = self.box
        return left * across, top * down, right * across, bottom * down

    def of_photo(self, size: Size) -> Box:
        """The photo's box on the image, of a height and width; outside of it where it was cut."""
        (height, width), (left, top, right, bottom) = self.size, self.box
        down, across = size[0] / (bottom - top), size[1] / (right - left)
        return -left * across, -top * down, (width - left) * across, (height - top) * down


def crop_of(processor: Any, size: Size) -> Crop:
    """The part of a photo (height, width) that a processor shows; errors as :func:`geometry_of`."""
    geometry = geometry_of(processor, size)
    edges = []
    axes = zip(size, geometry.resized, (geometry.rows, geometry.columns), strict=True)
    for length, resized, places in axes:
        first = int((places >= 0).argmax())
        start = int(places[first]) - first
        edges.append([at * length / resized for at in (start, start + len(places))])
    (top, bottom), (left, right) = edges
    return Crop(size, (left, top, right, bottom))


@public("resize_masks")
def resize_masks(
    processor: Any, masks: npt.NDArray[np.bool_], size: Size | None = None
) -> npt.NDArray[np.bool_]:
    """Resize and crop masks (..., H, W) to (..., h, w) as a processor does with their image.

    Nearest neighbour: each pixel shows the mask at its centre. Padding is outside. A mask may come
    out empty or full where the crop shows nothing of its object, or nothing else. `size` is that of
    the preprocessed image, if it is known, to compare with: InputError where they differ.
    """
    masks = np.asarray(masks)
    geometry = _fitting(processor, masks, size)
    rows, columns = map(_centres, masks.shape[-2:], geometry.resized)
    return geometry.crop(masks[..., rows[:, None], columns].astype(bool))


@public("resize_density")
def resize_density(
    processor: Any, density: npt.NDArray[np.floating[Any]], size: Size | None = None
) -> npt.NDArray[np.float64]:
    """Resize and crop densities of fixations as a processor does with their image.

    Bilinear, over the whole area that a smaller pixel covers (antialiased); 0 in the padding.
    Densities (..., H, W) become (..., h, w), not scaled to any sum. The other arguments and the
    errors are those of :func:`resize_masks`.
    """
    density = np.asarray(density, dtype=np.float64)
    geometry = _fitting(processor, density, size)
    channels = torch.from_numpy(density.reshape(1, -1, *density.shape[-2:]))
    resized = F.interpolate(channels, geometry.resized, mode="bilinear", antialias=True)
    return geometry.crop(resized.numpy().reshape(*density.shape[:-2], *geometry.resized))


@public("resize_points")
def resize_points(
    processor: Any, points: npt.NDArray[np.bool_], size: Size | None = None
) -> npt.NDArray[np.bool_]:
    """Move fixated pixels as a processor moves those of their image.

    Every point stays one point: it goes to the pixel that its centre falls into. Points that fall
    together count once, and those outside the crop are gone, which may be all of them. Arguments,
    result and errors are those of :func:`resize_masks`, with points (..., H, W) for the masks.
    """
    points = np.asarray(points)
    geometry = _fitting(processor, points, size)
    *planes, rows, columns = np.nonzero(points)
    down, across = map(_centres, geometry.resized, points.shape[-2:])
    moved = np.zeros((*points.shape[:-2], *geometry.resized), dtype=bool)
    moved[(*planes, down[rows], across[columns])] = True
    return geometry.crop(moved)


def geometry_of(processor: Any, size: Size) -> Geometry:
    """Find out where a processor puts the pixels of an image.

    Nothing is assumed of how it crops, in which libraries and their versions differ by a pixel: it
    is asked to crop an array of row and column numbers.

    The processor is one of transformers for a CLIP or SigLIP, NaFlex too, or torchvision's
    `Compose` of resizing, centre crops and steps that move no pixel, as OpenCLIP's is; for another
    one there is an UnsupportedModelError. `size` is the image's, height and width.
    """
    inner = image_processor(processor)
    if _is_a(inner, _HUGGING_FACE):
        return _of_hugging_face(inner, size)
    if _is_a(inner, _NAFLEX):
        image = np.zeros((*size, 3), dtype=np.uint8)
        patches = inner(images=[image], return_tensors="np")["spatial_shapes"][0]
        resized = (int(patches[0]) * inner.patch_size, int(patches[1]) * inner.patch_size)
        return Geometry(resized, *map(np.arange, resized))
    if _is_a(inner, "Compose"):
        return _of_steps(inner.transforms, size)
    raise UnsupportedModelError(
        f"how a {type(inner).__name__} resizes and crops is not known; for masks and fixations "
        "expected an image processor of transformers for a CLIP or SigLIP, or a Compose of "
        "torchvision, as OpenCLIP's is."
    )


def _fitting(processor: Any, array: npt.NDArray[Any], size: Size | None) -> Geometry:
    """The geometry for arrays of an image's size; InputError where the result has another size."""
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise InputError(f"expected an array (..., H, W), got {array.shape}.")
    geometry = geometry_of(processor, (array.shape[-2], array.shape[-1]))
    result = (len(geometry.rows), len(geometry.columns))
    if size is not None and result != tuple(size):
        raise InputError(
            f"an array of {array.shape[-2]} x {array.shape[-1]} becomes one of "
            f"{result[0]} x {result[1]}, but the preprocessed image has {size[0]} x {size[1]}; "
            "give an array of the image's own size."
        )
    return geometry


def _centres(whole: int, resized: int) -> Positions:
    """The pixel out of `whole` that the centre of each of `resized` pixels falls into."""
    return (2 * np.arange(resized, dtype=np.int64) + 1) * whole // (2 * resized)


def _of_hugging_face(processor: Any, size: Size) -> Geometry:
    # EfficientNet's divides once more by the standard deviation, whatever `do_normalize` is
    values = ("do_rescale", "do_normalize", "do_convert_rgb", "include_top")
    kept = {step: False for step in values if hasattr(processor, step)}
    no_crop = {"do_center_crop": False} if hasattr(processor, "do_center_crop") else {}

    def ask(image: Tensor, **steps: bool) -> Tensor:
        options = {**kept, **steps, "input_data_format": "channels_first", "return_tensors": "pt"}
        pixels: Tensor = processor(images=[image.numpy()], **options)["pixel_values"][0]
        return pixels

    shape = ask(torch.zeros(3, *size, dtype=torch.uint8), **no_crop).shape
    resized = (shape[-2], shape[-1])
    rows, columns = _numbers(resized)
    return _read(resized, ask(torch.stack([rows, columns, columns]), do_resize=False))


def _of_steps(steps: Iterable[Any], size: Size) -> Geometry:
    """Follow the numbers of rows and columns through the steps of a `Compose`."""
    resized, numbers, cropped = size, _numbers(size), False
    for step in steps:
        if _is_a(step, _RESIZING) and not cropped:
            resized = step(Image.new("RGB", resized[::-1])).size[::-1]
            numbers = _numbers(resized)
        elif _is_a(step, _CROPPING):
            numbers, cropped = step(numbers), True
        elif not _is_a(step, _STILL) and getattr(step, "__name__", "") not in _TO_RGB:
            raise UnsupportedModelError(
                f"what the step {step!r} of the preprocessing does to an image is not known; for "
                "masks and fixations expected Resize, then CenterCrop, then steps that move no "
                "pixel."
            )
    return _read(resized, numbers)


def _is_a(thing: Any, names: str) -> bool:
    """Whether it is of a class with a name of this pattern, which not every version may have."""
    return any(re.fullmatch(names, kind.__name__) for kind in type(thing).__mro__)


def _numbers(size: Size) -> Tensor:
    """(2, H, W): of each pixel -1 - row and -1 - column; what is padded later will not be < 0."""
    rows, columns = (-1.0 - torch.arange(length) for length in size)
    return torch.stack([rows[:, None].expand(size), columns.expand(size)])


def _read(resized: Size, numbers: Tensor) -> Geometry:
    """The geometry in the processed :func:`_numbers`, the same along a row but for padding."""
    rows = -1 - numbers[0].amin(1).clamp(max=0)
    columns = -1 - numbers[1].amin(0).clamp(max=0)
    return Geometry(resized, rows.long().numpy(), columns.long().numpy())
