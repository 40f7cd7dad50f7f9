"""Images -> RGB images -> preprocessed tensors, and where a processor puts their pixels."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..checks import expect, expecting
from ..errors import InputError, UnsupportedModelError, public
from ..files import is_transparent, opaque
from ..maps import Box, check_tensor

Scalar = TypeVar("Scalar", bound=np.generic)

# Patterns of names of classes. Owlv2's is missing: it pads before it resizes.
_HUGGING_FACE_KINDS = "CLIP|Siglip|ChineseCLIP|ViT|OwlViT|EfficientNet|Blip|Flava"
_HUGGING_FACE = f"({_HUGGING_FACE_KINDS})ImageProcessor(Fast|Pil)?"
_NAFLEX = "Siglip2ImageProcessor(Fast|Pil)?"
_RESIZING = "Resize|ResizeKeepRatio"
_CROPPING = "CenterCrop|CenterCropOrPad"
_STILL = "ToTensor|PILToTensor|ToImage|ToDtype|Normalize|MaybeConvertMode"
_RANDOM = "Random.*|RandAugment|AutoAugment|TrivialAugment.*|AugMix.*|(Color|Scale)Jitter|"
_RANDOM += "ElasticTransform|GaussianNoise"
_RANGED = {"GaussianBlur": "sigma", "JPEG": "quality"}  # random where their two ends differ
_TO_RGB = ("_convert_to_rgb", "_convert_image_to_rgb")  # of OpenCLIP, of OpenAI's package

Size = tuple[int, int]

_dropping: Final[WeakKeyDictionary[Any, bool]] = WeakKeyDictionary()
"""Whether processors drop transparency, of those that were asked."""


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


ChannelStats = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the channels."""


def check_images(images: Any, made_by: ChannelStats | None = None, tolerance: float = 0) -> None:
    """Raise InputError unless images are a floating tensor (B, 3, H, W), all finite.

    With the statistics of their preprocessing, raise it also if more than a share `tolerance` of
    their colors leaves [-.5, 1.5], or any leaves [-10, 10]. Warn if all values lie in [0, 1], as
    pixels do. That spares colors that are steps of 1/255, as those of a bright image of 8 bits are,
    and baselines, which have few values.
    """
    advice = "clip.preprocess(images) makes them of any, and images[None] adds the batch dimension"
    check_tensor("images", images, "(B, 3, H, W)", advice)
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
    fact = f"floating-point images count as preprocessed, and these hold {low:.3g} to {high:.3g}, "
    if not is_unit and (distance.max() > 10 or (distance > 1).double().mean() > tolerance):
        raise InputError(f"{fact}which this model's preprocessing does not make; {how}.")
    if is_unit and max(*mean, 1 - std.min()) > 0.01:  # else the model takes pixels in [0, 1]
        distinct = 255 * torch.cat([torch.unique(colors[..., channel]) for channel in range(3)])
        steps = (distinct - distinct.round()).abs() < 0.1
        # half of all pixels are steps for SigLIP, and a baseline may be three other values
        if (~steps).sum() > 3 + steps.sum() / 4:
            warnings.warn(
                f"{fact}all in [0, 1] as pixels are; if they are pixels, scores and maps are "
                f"wrong: {how}.",
                stacklevel=2,
            )


def image_processor(processor: Any) -> Any:
    """The part for images of a processor that has one for texts as well."""
    return getattr(processor, "image_processor", processor)


def is_processor(candidate: Any) -> bool:
    """Whether it is known by its parts to make tensors of images; of a function nothing is."""
    return hasattr(image_processor(candidate), "image_mean") or hasattr(candidate, "transforms")


def process(processor: Any, images: list[Image.Image]) -> Tensor:
    """Images -> (B, 3, H, W), float32 on the CPU; InputError where they differ in size.

    The processor is from transformers, or a function from an image to a tensor (3, H, W) such as
    OpenCLIP's transforms.
    """
    inner = image_processor(processor)
    _refuse_random(inner)
    tensors = _run(inner, as_it_takes(processor, images))
    for tensor in tensors:
        fits = isinstance(tensor, Tensor) and tensor.ndim == 3 and tensor.shape == tensors[0].shape
        expected = f"a tensor (3, H, W) of each image from {type(inner).__name__}, all of one size"
        expect(fits, expected, tensor)
    return torch.stack(tensors).float()


def _refuse_random(step: Any) -> None:
    """Raise InputError for a transform that makes something else of an image each time.

    It may be the processor itself, or lie in a `Compose` or a `Sequential` at any depth.
    """
    kind = type(step).__name__
    ends = getattr(step, _RANGED.get(kind, ""), ())
    is_ranged = isinstance(ends, (list, tuple)) and len({*ends}) > 1
    if is_ranged or _is_a(step, _RANDOM):
        raise InputError(
            f"the processor has a {kind}, which is for training: it makes another image at each "
            "call. Pass the transform for evaluation, the third value of "
            "open_clip.create_model_and_transforms."
        )
    inner = step if isinstance(step, torch.nn.Sequential) else getattr(step, "transforms", ())
    if isinstance(inner, Iterable):
        for each in inner:
            _refuse_random(each)


def _run(inner: Any, images: list[Image.Image]) -> list[Any]:
    if not hasattr(inner, "image_mean"):
        return [inner(image) for image in images]
    sizes = [image.size for image in images]
    with expecting(f"images that {type(inner).__name__} can prepare", sizes):
        return list(inner(images=images, return_tensors="pt")["pixel_values"])


def as_it_takes(processor: Any, images: list[Image.Image]) -> list[Image.Image]:
    """Images of any mode as a processor takes them: as they are if it makes RGB of them itself.

    It may do so after it resizes them, which gives other colors. All others get RGB images, on
    white where transparent.
    """
    if not _makes_rgb(image_processor(processor)):
        return [opaque(image) for image in images]
    drops_transparency(processor, *images)  # which tells the user
    return images


def drops_transparency(processor: Any, *images: Image.Image) -> bool:
    """Whether a processor drops the transparency of an image; the first time there is a warning."""
    inner = image_processor(processor)
    if not _makes_rgb(inner) or not any(map(is_transparent, images)):
        return False
    if inner not in _dropping:
        # which releases of transformers do
        cards = [Image.new("RGBA", (64, 64)), Image.new("RGB", (64, 64), "white")]
        clear, white = _run(inner, cards)
        _dropping[inner] = not torch.allclose(clear, white, atol=1e-3)
        if _dropping[inner]:
            warnings.warn(
                "this model's own preprocessing drops transparency, which leaves hidden colors or "
                "black; to lay an image on white, explain Image.alpha_composite("
                "Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).",
                stacklevel=2,
            )
    return _dropping[inner]


def _makes_rgb(inner: Any) -> bool:
    steps = [getattr(s, "__name__", type(s).__name__) for s in getattr(inner, "transforms", ())]
    converting = {*_TO_RGB, "MaybeConvertMode"}
    return getattr(inner, "do_convert_rgb", False) or not converting.isdisjoint(steps)


def to_patches(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, h w, side side 3), as NaFlex processors order them."""
    batch, channels, height, width = images.shape
    pieces = images.reshape(batch, channels, height // side, side, width // side, side)
    return pieces.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def from_patches(patches: Tensor, rows: int, side: int) -> Tensor:
    """The images of such patches."""
    batch, count, _ = patches.shape
    pieces = patches.reshape(batch, rows, count // rows, side, side, -1)
    return pieces.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * side, count // rows * side)


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
    rows, columns = _pixel_numbers(resized)
    return _crop_in(resized, ask(torch.stack([rows, columns, columns]), do_resize=False))


def _of_steps(steps: Iterable[Any], size: Size) -> Crop:
    """Follow the numbers of rows and columns through the steps of a `Compose`."""
    resized, numbers, cropped = size, _pixel_numbers(size), False
    for step in steps:
        if _is_a(step, _RESIZING) and not cropped:
            resized = step(Image.new("RGB", resized[::-1])).size[::-1]
            numbers = _pixel_numbers(resized)
        elif _is_a(step, _CROPPING):
            numbers, cropped = step(numbers), True
        elif not _is_a(step, _STILL) and getattr(step, "__name__", "") not in _TO_RGB:
            raise UnsupportedModelError(
                f"it is not known what the preprocessing step {step!r} does to an image; masks "
                "need Resize, then CenterCrop, then steps that move no pixel."
            )
    return _crop_in(resized, numbers)


def _is_a(thing: Any, names: str) -> bool:
    """Whether it is of a class with a name of this pattern, which not every version may have."""
    return any(re.fullmatch(names, kind.__name__) for kind in type(thing).__mro__)


def _pixel_numbers(size: Size) -> Tensor:
    """(2, H, W): of each pixel -1 - row and -1 - column; what is padded later will not be < 0."""
    rows, columns = (-1.0 - torch.arange(length) for length in size)
    return torch.stack([rows[:, None].expand(size), columns.expand(size)])


def _crop_in(resized: Size, numbers: Tensor) -> Crop:
    """The crop in the processed :func:`_pixel_numbers`, the same along a row but for padding."""
    edges = []
    for axis in (1, 0):
        index = -1 - numbers[axis].amin(1 - axis).clamp(max=0).long()
        first = int((index >= 0).int().argmax())
        edges.append((int(index[first]) - first, int(index[first]) - first + len(index)))
    (left, right), (top, bottom) = edges
    return Crop(resized, (left, top, right, bottom))
