"""Masks of an image -> its regions, and why some of them cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...errors import InputError
from ..sample import Mask, Region


def usable_regions(
    sample: str, size: tuple[int, int], masks: Iterable[tuple[str, Callable[[], Mask]]]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """Read masks, and keep those that can be used.

    Args:
        sample: its name, for the messages.
        size: (width, height) of the image, as Pillow has it.
        masks: text of each region, and what reads its mask.

    Returns:
        The regions, and a reason for each mask that was left out: it cannot be read, has another
        size than its image, is empty or full, or its text was there already.

    Raises:
        InputError: no region is left.
    """
    regions: list[Region] = []
    dropped: list[str] = []
    for text, read in masks:
        try:
            mask = read()
            _check(mask, size)
            if any(region.text == text for region in regions):
                raise InputError("the image has another region of the same text.")
        except InputError as error:
            dropped.append(f"{sample}, {text!r}: {str(error).rstrip('.')}")
        else:
            regions.append(Region(text, mask))
    if not regions:
        reason = "; ".join(dropped) or f"{sample} has no mask"
        raise InputError(f"there is no region to compare a map with: {reason}.")
    return tuple(regions), tuple(dropped)


def _check(mask: Mask, size: tuple[int, int]) -> None:
    width, height = size
    if mask.shape != (height, width):
        shape = " x ".join(map(str, mask.shape))
        raise InputError(f"the mask has {shape} pixels, its image {height} x {width}.")
    if not mask.any():
        raise InputError("the mask is empty.")
    if mask.all():
        raise InputError("the mask is full.")
