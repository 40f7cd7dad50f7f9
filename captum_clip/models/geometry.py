"""Where a processor puts the pixels of an image: the way that masks take, too."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..checks import expect, expecting
from ..errors import UnsupportedModelError, public
from ..maps import Box
from .images import Size, image_processor

Scalar = TypeVar("Scalar", bound=np.generic)

# Patterns of names of classes. Owlv2's is missing: it pads before it resizes.
_FAMILIES = "CLIP|Siglip|ChineseCLIP|ViT|OwlViT|EfficientNet|Blip|Flava"
_HUGGING_FACE = f"({_FAMILIES})ImageProcessor(Fast|Pil)?"
_NAFLEX = "Siglip2ImageProcessor(Fast|Pil)?"
_RESIZING = "Resize|ResizeKeepRatio"
_CROPPING = "CenterCrop|CenterCropOrPad"
_STILL = "ToTensor|PILToTensor|ToImage|ToDtype|Normalize|MaybeConvertMode"
_TO_RGB = ("_convert_to_rgb", "_convert_image_to_rgb")  # of OpenCLIP, of OpenAI's package


@dataclass(frozen=True)
class Crop:
    """The place of a preprocessed image in a photo; InputError where it shows nothing of it."""

    size: Size  # height and width of the photo, the right way up, in pixels
    box: Box  # of the image in pixels of the photo, outside of it where the image is padded

    @public("Crop")
    def __post_init__(self) -> None:
        (height, width), (left, top, right, bottom) = self.size, self.box
        overlap = max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)
        fits = overlap and np.isfinite(self.box).all()
        expect(fits, f"a box that shows something of a photo {self.size}", self.box)

    @property
    def is_whole(self) -> bool:
        """Whether the image shows the photo and nothing else."""
        height, width = self.size
        return self.box == (0, 0, width, height)

    def scaled(self, size: Size) -> Box:
        """The box on the photo resized to a height and width."""
        # width, height, width, height, as the edges have them
        edges = zip(self.box, size[::-1] * 2, self.size[::-1] * 2, strict=True)
        left, top, right, bottom = (edge * new / old for edge, new, old in edges)
        return left, top, right, bottom

    def of_photo(self, size: Size) -> Box:
        """The photo's box on the image, of a height and width; outside of it where it was cut."""
        (height, width), (left, top, right, bottom) = self.size, self.box
        down, across = size[0] / (bottom - top), size[1] / (right - left)
        return -left * across, -top * down, (width - left) * across, (height - top) * down

    def cut(self, arrays: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Cut a box of whole pixels from arrays (..., H, W) of the photo's size; 0 in padding."""
        (height, width), (left, top, right, bottom) = self.size, self.box
        # negative margins are cut off
        margins = [int(margin) for margin in (-left, right - width, -top, bottom - height)]
        cut: npt.NDArray[Scalar] = F.pad(torch.from_numpy(arrays), margins).numpy()
        return cut


def crop_of(processor: Any, size: Size) -> Crop:
    """The part of a photo (height, width) that a processor shows; errors as :func:`geometry_of`."""
    return Crop(size, geometry_of(processor, size).scaled(size))


@public("resize_masks")
def resize_masks(
    processor: Any, masks: npt.NDArray[np.bool_], size: Size | None = None
) -> npt.NDArray[np.bool_]:
    """Resize and crop masks (..., H, W) to (..., h, w) as a processor does with their image.

    Nearest neighbor: each pixel shows the mask at its center. Padding is outside. A mask may come
    out empty or full where the crop shows nothing of its object, or nothing else. `size` is that of
    the preprocessed image, if it is known, to compare with: InputError where they differ.
    """
    masks = np.asarray(masks)
    expect(masks.ndim >= 2 and 0 not in masks.shape[-2:], "an array (..., H, W)", masks)
    geometry = geometry_of(processor, (masks.shape[-2], masks.shape[-1]))
    left, top, right, bottom = geometry.box
    result = (bottom - top, right - left)
    expected = f"an array of the image's own size, which becomes {size}, not {result}"
    expect(size is None or result == tuple(size), expected, masks)
    rows, columns = map(_centers, masks.shape[-2:], geometry.size)
    return geometry.cut(masks[..., rows[:, None], columns].astype(bool))


def geometry_of(processor: Any, size: Size) -> Crop:
    """Find out what a processor resizes an image to, and which pixels of that it shows.

    Nothing is assumed of how it crops, in which libraries and their versions differ by a pixel: it
    is asked to crop an array of row and column numbers.

    The processor is that of transformers for a CLIP or SigLIP, NaFlex too. Or it is torchvision's
    `Compose` of resizing, center crops and steps that move no pixel, as OpenCLIP's is. Any other
    raises an UnsupportedModelError. `size` is the image's, height and width.
    """
    inner = image_processor(processor)
    if _is_a(inner, _HUGGING_FACE):
        with expecting(f"an image that {type(inner).__name__} can crop", size):
            return _of_hugging_face(inner, size)
    if _is_a(inner, _NAFLEX):
        image = np.zeros((*size, 3), dtype=np.uint8)
        patches = inner(images=[image], return_tensors="np")["spatial_shapes"][0]
        height, width = (int(count) * inner.patch_size for count in patches)
        return Crop((height, width), (0, 0, width, height))
    supported = (
        "an image processor of transformers for a CLIP or SigLIP, or a Compose of torchvision, as "
        "OpenCLIP's is, for masks"
    )
    expect(_is_a(inner, "Compose"), supported, inner, error=UnsupportedModelError)
    return _of_steps(inner.transforms, size)


def _centers(whole: int, resized: int) -> npt.NDArray[np.int64]:
    """The pixel out of `whole` that the center of each of `resized` pixels falls into."""
    return (2 * np.arange(resized, dtype=np.int64) + 1) * whole // (2 * resized)


def _of_hugging_face(processor: Any, size: Size) -> Crop:
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


def _of_steps(steps: Iterable[Any], size: Size) -> Crop:
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
                f"it is not known what the preprocessing step {step!r} does to an image; masks "
                "need Resize, then CenterCrop, then steps that move no pixel."
            )
    return _read(resized, numbers)


def _is_a(thing: Any, names: str) -> bool:
    """Whether it is of a class with a name of this pattern, which not every version may have."""
    return any(re.fullmatch(names, kind.__name__) for kind in type(thing).__mro__)


def _numbers(size: Size) -> Tensor:
    """(2, H, W): of each pixel -1 - row and -1 - column; what is padded later will not be < 0."""
    rows, columns = (-1.0 - torch.arange(length) for length in size)
    return torch.stack([rows[:, None].expand(size), columns.expand(size)])


def _read(resized: Size, numbers: Tensor) -> Crop:
    """The crop in the processed :func:`_numbers`, the same along a row but for padding."""
    edges = []
    for axis in (1, 0):
        places = -1 - numbers[axis].amin(1 - axis).clamp(max=0).long()
        first = int((places >= 0).int().argmax())
        edges.append((int(places[first]) - first, int(places[first]) - first + len(places)))
    (left, right), (top, bottom) = edges
    return Crop(resized, (left, top, right, bottom))
