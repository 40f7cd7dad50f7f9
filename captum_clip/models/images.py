"""Images -> RGB images -> preprocessed tensors, and where a processor puts their pixels."""

import re
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
from ..errors import InputError, UnsupportedModelError, public, warn
from ..files import is_transparent, opaque
from ..maps import Box, check_tensor

Scalar = TypeVar("Scalar", bound=np.generic)

# These are patterns of class names. Owlv2's is missing, because it pads before it resizes.
_HUGGING_FACE_KINDS = "CLIP|Siglip|ChineseCLIP|ViT|OwlViT|EfficientNet|Blip|Flava"
_HUGGING_FACE = f"({_HUGGING_FACE_KINDS})ImageProcessor(Fast|Pil)?"
_NAFLEX = "Siglip2ImageProcessor(Fast|Pil)?"
_RESIZING = "Resize|ResizeKeepRatio"
_CROPPING = "CenterCrop|CenterCropOrPad"
_STILL = "ToTensor|PILToTensor|ToImage|ToDtype|Normalize|MaybeConvertMode"
_RANDOM = "Random.*|RandAugment|AutoAugment|TrivialAugment.*|AugMix.*|(Color|Scale)Jitter|"
_RANDOM += "ElasticTransform|GaussianNoise"
# These transforms are random only where the two ends of the attribute's range differ.
_RANGED = {"GaussianBlur": "sigma", "JPEG": "quality"}
# OpenCLIP's transform has the first of these functions, and OpenAI's has the second.
_TO_RGB = ("_convert_to_rgb", "_convert_image_to_rgb")

Size = tuple[int, int]

_dropping: Final[WeakKeyDictionary[Any, bool]] = WeakKeyDictionary()
"""Whether a processor drops transparency, for each processor that was tried."""


def pixels_of(images: Any) -> Any:
    """Take the images out of a DataLoader, a Dataset, or the result of a processor of transformers.

    Others stay as they are. If an item has several values, the first is the image.
    """
    if isinstance(images, Dataset):
        # A Dataset may have indices without an end; a DataLoader stops at its length.
        images = DataLoader(images, None)
    if isinstance(images, DataLoader):
        pixels = []
        for item in images:
            image = item[0] if isinstance(item, (tuple, list)) else item
            pixels.append(pixels_of(image))
        return pixels
    if not isinstance(images, Mapping):
        return images
    expected = "files, PIL images, or what processor(images=...) returns"
    expect("pixel_values" in images, expected, list(images))
    values = images["pixel_values"]
    if isinstance(values, Tensor):
        return values
    return torch.tensor(np.array(values, np.float32))


def is_preprocessed(images: Any) -> TypeGuard[Tensor | Sequence[Tensor]]:
    """Whether images are a floating-point tensor or several; InputError for a mixture."""
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
    pixels do. There is no warning for colors that are steps of 1/255, as a bright image of 8 bits
    has them, nor for baselines, which have few values.
    """
    advice = "clip.preprocess(images) makes them of any, and images[None] adds the batch dimension"
    check_tensor("images", images, "(B, 3, H, W)", advice)
    if made_by is None:
        return
    # One transfer from the device reads both ends.
    low, high = torch.stack(images.detach().aminmax()).tolist()
    is_unit = 0 <= low < high <= 1
    if not is_unit and _is_plausible(low, high, made_by):
        return
    values = images.detach().cpu().double().movedim(1, -1)
    mean, std = map(values.new_tensor, made_by)
    colors = values * std + mean
    fact = f"floating-point images count as preprocessed, and these hold {low:.3g} to {high:.3g}, "
    how = "pass pixels as uint8, (255 * x).round().byte() of those in [0, 1], to be preprocessed"
    if not is_unit:
        distance = (colors - 0.5).abs()
        if distance.max() > 10 or (distance > 1).double().mean() > tolerance:
            raise InputError(f"{fact}which this model's preprocessing does not make; {how}.")
        return
    # With a mean of 0 and a deviation of 1 the model itself takes pixels in [0, 1].
    is_standardized = max(*mean, 1 - std.min()) > 0.01
    if is_standardized and not _is_eight_bit(colors):
        warn(
            f"{fact}all in [0, 1] as pixels are; if they are pixels, scores and maps are "
            f"wrong: {how}."
        )


def _is_plausible(low: float, high: float, made_by: ChannelStats) -> bool:
    """Whether colors between [-.5, 1.5] may give values between low and high in every channel."""
    for mean, std in zip(*made_by, strict=True):
        is_within = (-0.5 - mean) / std <= low and high <= (1.5 - mean) / std
        if not is_within:
            return False
    return True


def _is_eight_bit(colors: Tensor) -> bool:
    """Whether the distinct colors (..., 3) of each channel are mostly multiples of 1/255."""
    distinct = [torch.unique(colors[..., channel]) for channel in range(3)]
    levels = 255 * torch.cat(distinct)
    is_step = (levels - levels.round()).abs() < 0.1
    # Pixels that were taken for SigLIP's values become steps of 1/510, half of which count here. A
    # baseline's three values need not be steps.
    return bool((~is_step).sum() <= 3 + is_step.sum() / 4)


def image_processor(processor: Any) -> Any:
    """The part for images of a processor that has one for texts as well."""
    return getattr(processor, "image_processor", processor)


def is_processor(candidate: Any) -> bool:
    """Whether an object has the attributes of a processor; a plain function never has them."""
    return hasattr(image_processor(candidate), "image_mean") or hasattr(candidate, "transforms")


def process(processor: Any, images: list[Image.Image]) -> Tensor:
    """Images -> (B, 3, H, W), float32 on the CPU; InputError where they differ in size.

    The processor is from transformers, or a function from an image to a tensor (3, H, W) such as
    OpenCLIP's transforms.
    """
    inner = image_processor(processor)
    _refuse_random(inner)
    tensors = _run(inner, as_it_takes(processor, images))
    expected = f"a tensor (3, H, W) of each image from {type(inner).__name__}, all of one size"
    for tensor in tensors:
        expect(isinstance(tensor, Tensor) and tensor.ndim == 3, expected, tensor)
        expect(tensor.shape == tensors[0].shape, expected, tensor)
    return torch.stack(tensors).float()


def _refuse_random(step: Any) -> None:
    """Raise InputError for a transform that makes something else of an image each time.

    It may be the processor itself, or lie in a `Compose` or a `Sequential` at any depth.
    """
    class_name = type(step).__name__
    value_range = getattr(step, _RANGED.get(class_name, ""), ())
    is_ranged = isinstance(value_range, (list, tuple)) and len(set(value_range)) > 1
    if is_ranged or _is_a(step, _RANDOM):
        raise InputError(
            f"the processor has a {class_name}, which is for training: it makes another image at "
            "each call. Pass the transform for evaluation, the third value of "
            "open_clip.create_model_and_transforms."
        )
    is_sequential = isinstance(step, torch.nn.Sequential)
    inner_steps = step if is_sequential else getattr(step, "transforms", ())
    if isinstance(inner_steps, Iterable):
        for inner_step in inner_steps:
            _refuse_random(inner_step)


def _run(inner: Any, images: list[Image.Image]) -> list[Any]:
    """The tensor of each image, from a processor of transformers or from a function."""
    if not hasattr(inner, "image_mean"):
        return [inner(image) for image in images]
    sizes = [image.size for image in images]
    with expecting(f"images that {type(inner).__name__} can prepare", sizes):
        return list(inner(images=images, return_tensors="pt")["pixel_values"])


def as_it_takes(processor: Any, images: list[Image.Image]) -> list[Image.Image]:
    """Images of any mode as a processor takes them: unchanged if it makes RGB of them itself.

    It may convert them after it resizes them, which gives other colors. Every other processor gets
    RGB images, on white where transparent.
    """
    if not _makes_rgb(image_processor(processor)):
        return [opaque(image) for image in images]
    # The call is made for its warning.
    drops_transparency(processor, *images)
    return images


def drops_transparency(processor: Any, *images: Image.Image) -> bool:
    """Whether a processor drops the transparency of an image; the first time there is a warning."""
    inner = image_processor(processor)
    if not _makes_rgb(inner) or not any(map(is_transparent, images)):
        return False
    if inner not in _dropping:
        # Releases of transformers differ in this, so the processor is tried.
        size = (64, 64)
        trials = [Image.new("RGBA", size), Image.new("RGB", size, "white")]
        clear, white = _run(inner, trials)
        _dropping[inner] = not torch.allclose(clear, white, atol=1e-3)
        if _dropping[inner]:
            warn(
                "this model's own preprocessing drops transparency, which leaves hidden colors or "
                "black; to lay an image on white, explain Image.alpha_composite("
                "Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))."
            )
    return _dropping[inner]


def _makes_rgb(inner: Any) -> bool:
    """Whether a processor converts images of other modes to RGB itself."""
    if getattr(inner, "do_convert_rgb", False):
        return True
    for step in getattr(inner, "transforms", ()):
        name = getattr(step, "__name__", type(step).__name__)
        if name in (*_TO_RGB, "MaybeConvertMode"):
            return True
    return False


def to_patches(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, h w, side side 3), as NaFlex processors order them."""
    batch, channels, height, width = images.shape
    pieces = images.reshape(batch, channels, height // side, side, width // side, side)
    return pieces.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def from_patches(patches: Tensor, rows: int, side: int) -> Tensor:
    """Images of patches, the inverse of :func:`to_patches`."""
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
        height, width = self.size
        left, top, right, bottom = self.box
        overlaps_across = max(left, 0) < min(right, width)
        overlaps_down = max(top, 0) < min(bottom, height)
        fits = overlaps_across and overlaps_down and np.isfinite(self.box).all()
        expect(fits, f"a box that shows something of a photo {self.size}", self.box)

    @property
    def is_whole(self) -> bool:
        """Whether the image shows the photo and nothing else."""
        height, width = self.size
        return self.box == (0, 0, width, height)

    def scaled(self, size: Size) -> Box:
        """The box on the photo resized to a height and width."""
        new_height, new_width = size
        height, width = self.size
        left, top, right, bottom = self.box
        # The product comes first: whole pixels stay whole where they divide evenly.
        return (
            left * new_width / width,
            top * new_height / height,
            right * new_width / width,
            bottom * new_height / height,
        )

    def of_photo(self, size: Size) -> Box:
        """Where the photo lies on its image of a size (H, W), beyond the edges that cut it."""
        height, width = self.size
        left, top, right, bottom = self.box
        down = size[0] / (bottom - top)
        across = size[1] / (right - left)
        return -left * across, -top * down, (width - left) * across, (height - top) * down

    def cut(self, arrays: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Cut a box of whole pixels from arrays (..., H, W) of the photo's size; 0 in padding."""
        height, width = self.size
        left, top, right, bottom = self.box
        # The padding of torch takes negative margins, and cuts them off.
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
    out empty or full where the crop shows nothing of its object, or nothing else. If the `size` of
    the preprocessed image is given, an InputError says where the masks' result differs from it.
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

    Libraries and their versions crop differently by a pixel, so nothing is assumed: the processor
    crops an array of row and column numbers.

    The processor comes from transformers, for a CLIP or SigLIP, NaFlex too. Or it is torchvision's
    `Compose` of resizing, center crops and steps that move no pixel, as OpenCLIP's is. Any other
    raises an UnsupportedModelError. `size` is the height and width of the image.
    """
    inner = image_processor(processor)
    if _is_a(inner, _HUGGING_FACE):
        with expecting(f"an image that {type(inner).__name__} can crop", size):
            return _of_hugging_face(inner, size)
    if _is_a(inner, _NAFLEX):
        image = np.zeros((*size, 3), dtype=np.uint8)
        prepared = inner(images=[image], return_tensors="np")
        rows, columns = prepared["spatial_shapes"][0]
        height = int(rows) * inner.patch_size
        width = int(columns) * inner.patch_size
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
    """See which row and column numbers a processor of transformers keeps."""
    # Numbers must come out as they went in. EfficientNet's processor divides by the standard
    # deviation once more with `include_top`, whatever `do_normalize` is.
    value_steps = ("do_rescale", "do_normalize", "do_convert_rgb", "include_top")
    fixed: dict[str, Any] = {step: False for step in value_steps if hasattr(processor, step)}
    fixed |= {"input_data_format": "channels_first", "return_tensors": "pt"}

    def run(image: Tensor, **steps: bool) -> Tensor:
        prepared = processor(images=[image.numpy()], **fixed, **steps)
        pixels: Tensor = prepared["pixel_values"][0]
        return pixels

    no_crop = {"do_center_crop": False} if hasattr(processor, "do_center_crop") else {}
    blank = torch.zeros(3, *size, dtype=torch.uint8)
    height, width = run(blank, **no_crop).shape[-2:]
    rows, columns = _pixel_numbers((height, width))
    # The processor takes three channels, and the third one repeats the second.
    cropped = run(torch.stack([rows, columns, columns]), do_resize=False)
    return _crop_in((height, width), cropped)


def _of_steps(steps: Iterable[Any], size: Size) -> Crop:
    """Follow the numbers of rows and columns through the steps of a `Compose`."""
    resized = size
    numbers = _pixel_numbers(size)
    is_cropped = False
    for step in steps:
        # A resizing starts the numbers anew, so after a crop it is refused below.
        if _is_a(step, _RESIZING) and not is_cropped:
            # Pillow has the width first.
            blank = Image.new("RGB", resized[::-1])
            resized = step(blank).size[::-1]
            numbers = _pixel_numbers(resized)
        elif _is_a(step, _CROPPING):
            numbers = step(numbers)
            is_cropped = True
        elif not _is_a(step, _STILL) and getattr(step, "__name__", "") not in _TO_RGB:
            raise UnsupportedModelError(
                f"it is not known what the preprocessing step {step!r} does to an image; masks "
                "need Resize, then CenterCrop, then steps that move no pixel."
            )
    return _crop_in(resized, numbers)


def _is_a(thing: Any, names: str) -> bool:
    """Whether one of the classes of an object has a name of this pattern."""
    # The classes themselves cannot be imported: not every version of a library has all of them.
    return any(re.fullmatch(names, base.__name__) for base in type(thing).__mro__)


def _pixel_numbers(size: Size) -> Tensor:
    """(2, H, W): -1 - row and -1 - column of each pixel."""
    # All are negative, so that they differ from the zeros of padding.
    rows, columns = (-1.0 - torch.arange(length) for length in size)
    return torch.stack([rows[:, None].expand(size), columns.expand(size)])


def _crop_in(resized: Size, numbers: Tensor) -> Crop:
    """The crop that processed :func:`_pixel_numbers` (2, h, w) show."""
    left, right = _edges(numbers[1].amin(0))
    top, bottom = _edges(numbers[0].amin(1))
    return Crop(resized, (left, top, right, bottom))


def _edges(numbers: Tensor) -> tuple[int, int]:
    """Where an axis starts and ends in the resized image, from the numbers along it.

    The minimum over the other axis has left out the padding there.
    """
    index = -1 - numbers.clamp(max=0).long()
    first = int((index >= 0).int().argmax())
    start = int(index[first]) - first
    return start, start + len(index)
