"""Images of any kind -> RGB images -> preprocessed tensors."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checks import expect, expecting
from ..errors import InputError
from ..maps import check_tensor

Size = tuple[int, int]


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
