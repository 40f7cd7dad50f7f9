"""Photos, the part of them that a model sees, and the regions that maps mark in them."""

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

_SAMPLE: Final = 2**20
"""About as many pixels of a map give its threshold, usually less than four times as many."""
_DRAWN_SIDE: Final = 1024
"""The longer side of a drawn photo, in pixels, at most; several photos are smaller."""
_LEAST_SIDE: Final = 256
"""The least that this limit becomes, however many photos there are."""
_PADDED_SIDE: Final = 2048
"""The longer side of a photo before it is padded: a long narrow one would fill the memory."""
_TO_GRAY: Final = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
"""The weights of red, green and blue in gray (ITU-R BT.601), (3, 1, 1)."""
_UNSEEN_CONTRAST: Final = 0.3
"""The contrast of the parts of a photo that the model did not see, around middle gray."""

Scaling = tuple[Mode, float | None]
"""The interpolation of maps, and the value that becomes 1; None for min-max normalized ones."""


class PreprocessedImages(NamedTuple):
    """Preprocessed images (B, 3, H, W), their places in the photos, and the photos as given.

    Tensors have no photos, and images of an unknown processor have no crops.
    """

    pixels: Tensor
    crops: tuple[Crop, ...] = ()
    photos: tuple[ImageLike, ...] = ()


def preprocess(clip: ClipAdapter, images: Any, *, whole: bool = False) -> PreprocessedImages:
    """Preprocess images for a model, and note what it sees of each.

    With `whole`, each is first padded to a square with the mean color, so that nothing is cut off.
    Tensors are preprocessed already, so with them `whole` is an InputError.
    """
    if is_preprocessed(images):
        if whole:
            raise InputError(
                f"{argument('whole', True)} pads images before preprocessing, and these are "
                "preprocessed tensors; pass files, PIL images or uint8 arrays."
            )
        return PreprocessedImages(clip.preprocess(images))
    # Opened images are turned as their EXIF says. With the sizes in the file itself, the crops of
    # upright photos would lie on their side.
    opened = as_pil(images, keep_mode=True)
    has_several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    photos = tuple(images) if has_several else (images,)
    drop = drops_transparency(clip.processor, *opened)
    if drop:
        # Photos are drawn with the colors that the model saw.
        photos = tuple(opaque(image, drop=True) for image in opened)
    sizes = [_size(image) for image in opened]
    try:
        # The crop is computed once per size, since a folder has few, and asking a processor takes
        # time.
        crop_by_size = {size: _crop(clip, size, whole) for size in set(sizes)}
        crops = tuple(crop_by_size[size] for size in sizes)
    except UnsupportedModelError:
        crops = ()
    if whole:
        # The mean color is zero after normalization, so it affects a model least.
        mean = clip.denormalize(torch.zeros(1, 3, 1, 1, device=clip.device)).flatten()
        color = tuple((255 * mean).round().int().tolist())
        opened = [_padded(opaque(image, drop=drop), color) for image in opened]
    return PreprocessedImages(clip.preprocess(opened), crops, photos)


def _size(image: Image.Image) -> Size:
    return image.height, image.width


def _crop(clip: ClipAdapter, size: Size, whole: bool) -> Crop:
    """The crop of a photo of a size; with `whole`, that of its padded square."""
    if not whole:
        return crop_of(clip.processor, size)
    height, width = _fitting_size(size, _PADDED_SIDE)
    side = max(height, width)
    left, top, right, bottom = crop_of(clip.processor, (side, side)).box
    # The crop is that of the padded square; without its margins, and scaled, it is the photo's.
    x_margin = (side - width) // 2
    y_margin = (side - height) // 2
    # Height and width are rounded one by one, so each has a scale of its own.
    x_scale = size[1] / width
    y_scale = size[0] / height
    box = (
        (left - x_margin) * x_scale,
        (top - y_margin) * y_scale,
        (right - x_margin) * x_scale,
        (bottom - y_margin) * y_scale,
    )
    return Crop(size, box)


def _fitting_size(size: Size, longest: int) -> Size:
    """Shrink a height and width so that neither is above `longest`."""
    scale = min(1.0, longest / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _padded(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """An image in the middle of a square."""
    height, width = _fitting_size(_size(image), _PADDED_SIDE)
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
    """The photos to draw on: those of an `Explanation` if `original` is True, else `original`."""
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
    photos: Sequence[ImageLike], crops: Sequence[Crop], raw: Mapping[str, Tensor], scaling: Scaling
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Lay raw maps (B, K, h, w) on photos: photos (3, H, W), and sign -> maps (K, H, W).

    The photos are gray where the model did not see them; the maps are in [0, 1], as
    :meth:`captum_clip.Explanation.heatmap` gives them. InputError if the photos differ from those
    explained in number or size.
    """
    # Photos stand about in a square, so a side of the figure shows the root of their number.
    longest = max(_LEAST_SIDE, _DRAWN_SIDE // math.ceil(math.sqrt(len(crops))))
    explained_sizes = [crop.size for crop in crops]
    sizes = []
    images = []
    # Photos that were explained under a limit of their own may be read again.
    most = max([Image.MAX_IMAGE_PIXELS or 0, *map(math.prod, explained_sizes)])
    with limit_pixels(most):
        # Only one photo is open at a time.
        for photo in photos:
            for image in as_pil(photo):
                height, width = _fitting_size(_size(image), longest)
                sizes.append(_size(image))
                images.append(image.resize((width, height)))
    if sizes != explained_sizes:
        raise InputError(
            f"the explained photos have heights and widths {explained_sizes}, but the photos to "
            f"draw on have {sizes}; pass the same photos."
        )
    drawn = []
    heatmap: dict[str, list[Tensor]] = {sign: [] for sign in raw}
    for index, (image, crop) in enumerate(zip(images, crops, strict=True)):
        size = _size(image)
        box = crop.scaled(size)
        drawn.append(_gray_outside(image, box))
        of_image = {sign: values[index] for sign, values in raw.items()}
        for sign, values in normalized(of_image, size, scaling, box).items():
            heatmap[sign].append(values)
    return drawn, heatmap


def _gray_outside(image: Image.Image, box: Box) -> Tensor:
    """An image as (3, H, W) in [0, 1], pale and gray outside of a box."""
    colors = torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, 0) / 255
    gray = (_TO_GRAY * colors).sum(0, keepdim=True)
    drawn = (0.5 + _UNSEEN_CONTRAST * (gray - 0.5)).repeat(3, 1, 1)
    rows, columns = maps.inside(box, _size(image))
    drawn[:, rows, columns] = colors[:, rows, columns]
    return drawn


def normalized(
    raw: Mapping[str, Tensor], size: Size, scaling: Scaling, box: Box, visible: Box | None = None
) -> dict[str, Tensor]:
    """Lay raw maps (..., h, w) of a box on its image: (..., H, W) in [0, 1], zero elsewhere.

    Each map is min-max normalized over the pixels that lie in the box, or in `visible` where that
    is given; its signs share one scale. If `scaling` has a value that becomes 1, zero is 0.
    """
    # An explanation of the text side has no maps, and torch.cat needs one.
    if not raw:
        return {}
    # Pixels that the model did not see would be the minimum of every map.
    rows, columns = maps.inside(box if visible is None else visible, size)
    mode, top = scaling
    # Bicubic values overshoot, and below zero they would be evidence of the other sign.
    clamp = mode == "bicubic"
    resized = {}
    for sign, values in raw.items():
        resized[sign] = maps.uncrop(values, box, size, mode=mode, clamp=clamp)
    # The signs are stretched side by side, as one map.
    joined = torch.cat([values[..., rows, columns] for values in resized.values()], dim=-1)
    stretched = maps.normalize(joined) if top is None else (joined / top).clamp(max=1)
    heatmap = {}
    for sign, inner in zip(raw, stretched.chunk(len(raw), dim=-1), strict=True):
        heatmap[sign] = torch.zeros_like(resized[sign])
        heatmap[sign][..., rows, columns] = inner
    return heatmap


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
    """Mark the pixels above a threshold of a map (H, W) in [0, 1], which is zero outside of a box.

    The model saw what lies in the box, so the threshold is computed there.
    """
    rows, columns = maps.inside(box, (heatmap.shape[0], heatmap.shape[1]))
    seen = heatmap[rows, columns]
    # A threshold needs no more than some rows and columns of a photo of 50 million pixels.
    step = max(1, int((seen.numel() / _SAMPLE) ** 0.5))
    mask = heatmap > threshold_level(seen[None, ::step, ::step], threshold)
    peak = None
    if heatmap.any():
        y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
        # Pixel x covers x to x + 1, so its center is at x + 0.5.
        peak = (x + 0.5, y + 0.5)
    return Region(image, target, sign, mask, _boxes(mask), peak)


def _boxes(mask: Tensor) -> Tensor:
    """The boxes (N, 4) of the parts of a mask (H, W), the largest part first."""
    from scipy import ndimage

    # With this structure, parts that touch by a corner are one part.
    labels, count = ndimage.label(mask.numpy(), np.ones((3, 3)))
    # Slices are half-open, as edges are: the box of one pixel is one wide.
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]  # without the background
    largest_first = np.argsort(-sizes, kind="stable").tolist()
    return torch.tensor([boxes[index] for index in largest_first]).reshape(-1, 4).float()


def region_files(regions: Sequence[Region]) -> list[str]:
    """The names of the files of :func:`save_regions`: the mask of each region, then the JSON."""
    names = []
    for index, region in enumerate(regions):
        names.append(f"{index:03}-{slug(region.target)}-{region.sign}.png")
    return [*names, "regions.json"]


@public("save_regions")
def save_regions(
    regions: Sequence[Region], folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write regions into a folder: the masks as PNG, white on black, the rest as ``regions.json``.

    Args:
        regions: of one or several images.
        folder: created where there is none; files of the same names are replaced.
        about: further entries of the JSON, such as model and method.

    Returns:
        The path of the JSON: {..., "regions": [{"image", "target", "sign", "size": [H, W],
        "boxes": [[left, top, right, bottom], ...], "peak": [x, y] or null, "mask"}, ...]}.

    Raises:
        InputError: a folder that cannot be written to.
    """
    path = make_folder(folder)
    mark = PngInfo()
    mark.add_text("Comment", MARK)
    *masks, listing = region_files(regions)
    rows = []
    for name, region in zip(masks, regions, strict=True):
        image = Image.fromarray(region.mask.numpy())
        replace_file(path / name, partial(image.save, format="PNG", pnginfo=mark))
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
    # The list is written last, so that every mask that it names is there.
    text = json.dumps({**(about or {}), "regions": rows}, indent=1, ensure_ascii=False)
    replace_file(path / listing, lambda file: file.write(text.encode()))
    return path / listing
