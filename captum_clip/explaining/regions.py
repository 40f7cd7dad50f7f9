"""Photos and what a model sees of them, and what maps mark in them: masks and boxes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .. import maps
from ..checks import Mode, limit_pixels
from ..errors import InputError, UnsupportedModelError, argument, public
from ..files import MARK, as_pil, make_folder, opaque, replace_file, slug
from ..maps import Box, Threshold, threshold_level
from ..models import ClipAdapter
from ..models.adapter import ImageLike
from ..models.images import Crop, Size, crop_of, drops_transparency, is_preprocessed

__all__ = ["Region", "region", "region_files", "save_regions"]

_SAMPLE = 2**20  # pixels that a threshold is computed from, at most
_DRAWN_SIDE: Final = 1024
"""Pixels that the longer side of a photo is drawn with, at most; where it is not alone, fewer."""
_LEAST_SIDE: Final = 256
_PADDED_SIDE: Final = 2048
"""Pixels of that side before a photo is padded: a long narrow one would fill the memory."""
_TO_GRAY: Final = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
_CONTRAST, _GRAY = 0.3, 0.5  # of what the model did not see


Scaling = tuple[Mode, float | None]
"""The interpolation of maps, and the value that becomes 1; None for min-max normalized ones."""


class PreprocessedImages(NamedTuple):
    """Preprocessed images (B, 3, H, W), where they lie in their photos, and these as given.

    There are no photos of tensors, and no crops by a processor that is not known.
    """

    pixels: Tensor
    crops: tuple[Crop, ...] = ()
    photos: tuple[ImageLike, ...] = ()


def preprocess(clip: ClipAdapter, images: Any, *, whole: bool = False) -> PreprocessedImages:
    """Images as the model takes them, with what it sees of each.

    With `whole` each is padded to a square with the mean color first, so that nothing is cut away;
    InputError for tensors, which are preprocessed already.
    """
    if is_preprocessed(images):
        if whole:
            raise InputError(
                f"{argument('whole', True)} pads images before preprocessing, and these are "
                "preprocessed tensors; pass files, PIL images or uint8 arrays."
            )
        return PreprocessedImages(clip.preprocess(images))
    # Opened images stand as their EXIF says. Sizes of the file itself would turn the crops of
    # upright photos on their side.
    opened = as_pil(images, keep_mode=True)
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    photos = tuple(images) if several else (images,)
    if drop := drops_transparency(clip.processor, *opened):  # which is how they are drawn
        photos = tuple(opaque(image, drop=True) for image in opened)
    sizes = [_size(image) for image in opened]
    try:
        # once a size, since a folder has few, and asking a processor takes time
        crop_by_size = {size: _crop(clip, size, whole) for size in set(sizes)}
        crops = tuple(crop_by_size[size] for size in sizes)
    except UnsupportedModelError:
        crops = ()
    if whole:
        # after normalization the mean color is zero, the least that padding can say to a model
        mean = clip.denormalize(torch.zeros(1, 3, 1, 1, device=clip.device)).flatten()
        color = tuple((255 * mean).round().int().tolist())
        opened = [_padded(opaque(image, drop=drop), color) for image in opened]
    return PreprocessedImages(clip.preprocess(opened), crops, photos)


def _size(image: Image.Image) -> Size:
    return image.height, image.width


def _crop(clip: ClipAdapter, size: Size, whole: bool) -> Crop:
    if not whole:
        return crop_of(clip.processor, size)
    (height, width), side = _small(size), max(_small(size))
    # height and width are rounded one by one, so that each has a scale of its own
    across, down = size[1] / width, size[0] / height
    x, y = (side - width) // 2, (side - height) // 2
    left, top, right, bottom = crop_of(clip.processor, (side, side)).box
    box = ((left - x) * across, (top - y) * down, (right - x) * across, (bottom - y) * down)
    return Crop(size, box)


def _small(size: Size, longest: int = _PADDED_SIDE) -> Size:
    """A height and width made to fit."""
    scale = min(1.0, longest / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _padded(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """An image in the middle of a square."""
    height, width = _small(_size(image))
    side = max(height, width)
    square = Image.new("RGB", (side, side), color)
    square.paste(image.resize((width, height)), ((side - width) // 2, (side - height) // 2))
    return square


def check_crops(explanation: Any) -> None:
    """Raise InputError where an `Explanation` does not know the crops of its photos."""
    if not explanation.crops:
        reason = "the images came as preprocessed tensors; explain files, PIL images or arrays"
        if explanation.photos:
            reason = f"it is not known how the processor of {explanation.model} crops them"
        raise InputError(f"a map cannot be laid on the original photos: {reason}.")


def originals(explanation: Any, original: Any) -> Sequence[ImageLike]:
    """The photos of an `Explanation`, those that are given where they are not True."""
    check_crops(explanation)
    if original is not True:
        return list(original) if isinstance(original, (list, tuple)) else [original]
    if not explanation.photos:
        raise InputError(
            "this explanation comes from a file without photos; plot(original='photo.jpg')."
        )
    photos: Sequence[ImageLike] = explanation.photos
    return photos


def lay_on_photos(
    photos: Sequence[ImageLike], crops: Sequence[Crop], raw: Mapping[str, Tensor], how: Scaling
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Photos (3, H, W), and sign -> maps (K, H, W) of raw maps (B, K, h, w) of their crops.

    The photos are gray where the model saw nothing of them; the maps are in [0, 1], as
    :meth:`captum_clip.Explanation.heatmap` gives them. InputError if the photos differ from those
    explained in number or size.
    """
    longest = max(_LEAST_SIDE, _DRAWN_SIDE // math.ceil(math.sqrt(len(crops))))
    sizes, images = [], []
    explained = [crop.size for crop in crops]
    # what was explained may be read again, also where that was with a limit of its own
    most = max([Image.MAX_IMAGE_PIXELS or 0, *map(math.prod, explained)])
    with limit_pixels(most):
        for image in (image for photo in photos for image in as_pil(photo)):  # one open at a time
            sizes.append(_size(image))
            images.append(image.resize(_small(sizes[-1], longest)[::-1]))
    if sizes != explained:
        raise InputError(
            f"the explained photos have heights and widths {explained}, but the photos to draw on "
            f"have {sizes}; pass the same photos."
        )
    drawn: list[Tensor] = []
    heatmap: dict[str, list[Tensor]] = {sign: [] for sign in raw}
    for index, (image, crop) in enumerate(zip(images, crops, strict=True)):
        size = _size(image)
        box = crop.scaled(size)
        colors = torch.from_numpy(np.array(image, dtype=np.float32))
        colors = colors.movedim(-1, 0) / 255
        gray = _GRAY + _CONTRAST * ((_TO_GRAY * colors).sum(0, keepdim=True) - 0.5).expand(
            3, -1, -1
        )
        seen = (slice(None), *maps.inside(box, size))
        gray[seen] = colors[seen]
        drawn.append(gray)
        of_image = {sign: values[index] for sign, values in raw.items()}
        for sign, values in normalized(of_image, size, how, box).items():
            heatmap[sign].append(values)
    return drawn, heatmap


def normalized(
    raw: Mapping[str, Tensor], size: Size, how: Scaling, box: Box, visible: Box | None = None
) -> dict[str, Tensor]:
    """Raw maps (..., h, w) of a box of an image -> (..., H, W) in [0, 1], zero elsewhere.

    Each map is min-max normalized over the pixels that lie in the box, and in `visible`
    where there is one; its signs share one scale. With a `top` that value is 1, and zero is 0.
    """
    # an explanation of the text side has no maps, and torch.cat needs one
    if not raw:
        return {}
    # what the model did not see would be the minimum of every map
    rows, columns = maps.inside(box if visible is None else visible, size)
    # bicubic overshoots: below zero there would be evidence of the other sign
    mode, top = how
    clamp = mode == "bicubic"
    large = [maps.uncrop(each, box, size, mode=mode, clamp=clamp) for each in raw.values()]
    # side by side, so that the signs are stretched as one map
    joined = torch.cat([values[..., rows, columns] for values in large], dim=-1)
    joined = maps.normalize(joined) if top is None else (joined / top).clamp(max=1)
    heatmap = [torch.zeros_like(values) for values in large]
    for whole, inner in zip(heatmap, joined.chunk(len(heatmap), dim=-1), strict=True):
        whole[..., rows, columns] = inner
    return dict(zip(raw, heatmap, strict=True))


@dataclass(frozen=True, eq=False)
class Region:
    """The part of an image that one map marks.

    Attributes:
        image: its position among the images.
        target: its name.
        sign: "positive" or "negative".
        mask: (H, W) bool.
        boxes: (N, 4) left, top, right and bottom edge in pixels of each part of the mask, the
            largest part first; parts touch by a side or a corner. (0, 4) for an empty map.
        peak: x and y of the map's maximum, the center of its pixel; None for an empty map.
    """

    image: int
    target: str
    sign: str
    mask: Tensor
    boxes: Tensor
    peak: tuple[float, float] | None


def region(
    heatmap: Tensor, box: Box, threshold: Threshold, *, image: int, target: str, sign: str
) -> Region:
    """Mark what is above a threshold of a map (H, W) in [0, 1], zero outside of a box.

    The box is what the model saw, over which the threshold is computed.
    """
    rows, columns = maps.inside(box, (heatmap.shape[0], heatmap.shape[1]))
    seen = heatmap[rows, columns]
    # every n-th row and column: a threshold needs no more of a photo of 50 million pixels
    step = max(1, int((seen.numel() / _SAMPLE) ** 0.5))
    mask = heatmap > threshold_level(seen[None, ::step, ::step], threshold)
    # pixel x covers x to x + 1, so that its center is at x + 0.5
    y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
    peak = (x + 0.5, y + 0.5) if bool(heatmap.any()) else None
    return Region(image, target, sign, mask, _boxes(mask), peak)


def _boxes(mask: Tensor) -> Tensor:
    """The boxes (N, 4) of the parts of a mask (H, W), the largest part first."""
    from scipy import ndimage

    labels, count = ndimage.label(mask.numpy(), np.ones((3, 3)))  # corners touch as well
    # slices are half-open, as edges are: the box of one pixel is one wide
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest_first = np.argsort(-sizes, kind="stable").tolist()
    return torch.tensor([boxes[index] for index in largest_first]).reshape(-1, 4).float()


def region_files(regions: Sequence[Region]) -> list[str]:
    """Names of the files of :func:`save_regions`: the mask of each region, then the JSON."""
    masks = [f"{i:03}-{slug(r.target)}-{r.sign}.png" for i, r in enumerate(regions)]
    return [*masks, "regions.json"]


@public("save_regions")
def save_regions(
    regions: Sequence[Region], folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write regions into a folder: the masks as PNG, white on black, all else as ``regions.json``.

    Args:
        regions: of one or several images.
        folder: made where there is none; files of the same names are replaced.
        about: further entries of the JSON, such as model and method.

    Returns:
        The path of the JSON: {..., "regions": [{"image", "target", "sign", "size": [H, W],
        "boxes": [[left, top, right, bottom], ...], "peak": [x, y] or null, "mask"}, ...]}.

    Raises:
        InputError: a folder that cannot be written to.
    """
    path = make_folder(folder)
    rows, about_file = [], PngInfo()
    about_file.add_text("Comment", MARK)
    *masks, listing = region_files(regions)
    for name, region in zip(masks, regions, strict=True):
        image = Image.fromarray(region.mask.numpy())
        replace_file(path / name, partial(image.save, format="PNG", pnginfo=about_file))
        rows.append(
            {
                "image": region.image,
                "target": region.target,
                "sign": region.sign,
                "size": list(region.mask.shape),
                "boxes": region.boxes.long().tolist(),
                "peak": region.peak,
                "mask": name,
            }
        )
    # written last: every mask that the list names is there
    text = json.dumps({**(about or {}), "regions": rows}, indent=1, ensure_ascii=False)
    replace_file(path / listing, lambda file: file.write(text.encode()))
    return path / listing
