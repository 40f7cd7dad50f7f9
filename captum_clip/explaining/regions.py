"""What maps mark in an image: masks, boxes and labels, as other tools take them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .. import maps
from ..checks import check_destination, check_interval
from ..errors import InputError, public
from ..files import MARK, make_folder, replace_file, slug
from ..maps import Box, Threshold, threshold_level

_SAMPLE = 2**20  # pixels that a threshold is computed from, at most
_MOST_LABELS = 255
SPREAD = 0.7
"""Cells over which maps are spread for labels without a threshold, where nothing else is asked."""


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


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The text that supports each pixel of an image most, as data sets for segmentation have it.

    Attributes:
        labels: (H, W) uint8, 0 where no text supports a pixel, else k for the k-th of `names`.
        names: "none", then those of the texts.
    """

    labels: Tensor
    names: tuple[str, ...]

    def save(self, path: str | Path) -> Path:
        """Write a palette PNG, with the names as JSON in its text chunk "names".

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = check_destination(path, (".png",))
        # a palette keeps the numbers; of RGB each reader would have to guess them from colors
        image = Image.fromarray(self.labels.numpy()).convert("P")
        image.putpalette([channel for color in self.colors() for channel in color])
        about = PngInfo()
        about.add_text("names", json.dumps(self.names))
        about.add_text("Comment", MARK)
        replace_file(path, partial(image.save, format="PNG", pnginfo=about))
        return path

    def colors(self) -> list[tuple[int, int, int]]:
        """The color (red, green, blue) of each of `names` in the PNG, channels in 0 to 255."""
        return [(0, 0, 0), *(_color(number) for number in range(len(self.names) - 1))]


def spread_out(positive: Tensor, cells: float) -> Tensor:
    """Spread each cell of maps (..., h, w) over its neighbors, each map's sum kept.

    By a Gaussian with a standard deviation in cells. For regions and labels alone: what a model
    tells apart in single cells is noise to an outline, but it is what an attribution says.
    """
    check_interval("spread", cells, "[0, inf)")
    for _ in "hw" if cells else "":  # along the last dimension, then along what becomes it
        places = torch.arange(positive.shape[-1]).to(positive)
        near = torch.exp(-(places[:, None] - places).square() / (2 * cells**2))
        positive = (positive @ (near / near.sum(1, keepdim=True))).mT
    return positive


@public("label_map")
def label_map(
    heatmap: Tensor, box: Box, threshold: Threshold | None, names: Sequence[str]
) -> LabelMap:
    """The largest of K positive maps (K, H, W) at each pixel, above a threshold of the largest.

    The threshold is computed over a box, what the model saw; None is above zero.
    """
    # labels are bytes, as data sets have them, and 0 is none
    if len(names) > _MOST_LABELS:
        raise InputError(f"expected at most {_MOST_LABELS} texts, got {len(names)}.")
    largest, labels = heatmap.max(0)
    marked = largest > 0
    if threshold is not None:
        rows, columns = maps.inside(box, (heatmap.shape[1], heatmap.shape[2]))
        seen = maps.normalize(largest[rows, columns])
        marked[rows, columns] &= seen > threshold_level(seen[None], threshold)
    return LabelMap(torch.where(marked, labels + 1, 0).to(torch.uint8), ("none", *names))


def _color(number: int) -> tuple[int, int, int]:
    """Twenty colors in turn, the strong ones first."""
    number = 2 * (number % 10) + number // 10 % 2  # matplotlib has each next to its light one
    red, green, blue = (round(255 * channel) for channel in colormaps["tab20"](number)[:3])
    return red, green, blue


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
