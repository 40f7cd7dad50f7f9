"""Steps between a raw saliency map and a figure or a metric: pure functions of tensors."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import Mode, check_choice, expect, expecting, is_number
from .errors import CaptumClipError, InputError, public

Threshold = float | Literal["mean", "otsu"]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels of an image."""

# Otsu's histogram has as many bins as that of scikit-image.
_BINS: Final = 256
_ROUNDING_STEPS: Final = 8
"""Values that lie within so many machine epsilons of each other are equal but for rounding."""
_SUPPORTED_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unsupported_reason(tensor: Tensor) -> str:
    """Say why a tensor cannot be computed with; "" for a tensor of plain numbers."""
    if tensor.is_meta:
        return "a tensor without values, on the meta device"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    # Floats of 8 bits can be stored, but torch has hardly any arithmetic for them.
    is_narrow_float = tensor.is_floating_point() and tensor.dtype not in _SUPPORTED_DTYPES
    if tensor.is_complex() or is_narrow_float:
        return f"a tensor of {tensor.dtype}"
    return ""


def is_vmapped(value: Any) -> bool:
    """Tell whether a value is a tensor whose batch torch.vmap hides."""
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)


def to_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32: half precision is too coarse to compute maps in."""
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.float()


_NOTHING_TO_DISABLE: Final = nullcontext()


def autocast_disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device."""
    device_type = tensor.device.type
    # Most calls are not under autocast, and torch's context costs more than what runs in it.
    if not torch.is_autocast_enabled(device_type):
        return _NOTHING_TO_DISABLE
    return torch.autocast(device_type, enabled=False)


@public("upsample")
def upsample(
    maps: Tensor, size: tuple[int, int], *, mode: Mode = "bilinear", clamp: bool = False
) -> Tensor:
    """Resize maps (..., h, w) to (..., H, W).

    Pixel centers are kept in place (``align_corners=False``), as when an image is resized. The
    nearest mode takes the cell that a pixel's center lies in.

    Args:
        maps: (..., h, w).
        size: (H, W) in pixels.
        mode: "bilinear", "bicubic" (may leave the range of the values) or "nearest".
        clamp: keep every map within the range that it had.

    Returns:
        (..., H, W), same type and device; differentiable.

    Raises:
        InputError: maps of another type or shape, NaN or infinity in them, a size that is not two
            positive numbers, or an unknown mode.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> maps.upsample(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    check_maps(maps)
    height, width = _checked_size(size)
    check_choice(mode, get_args(Mode), name="a mode")
    planes = maps.reshape(-1, 1, *maps.shape[-2:])  # (N, 1, h, w)
    # The mode "nearest" of torch takes the cell at the corner of a pixel, not at its center.
    torch_mode = "nearest-exact" if mode == "nearest" else mode
    resized = F.interpolate(planes, (height, width), mode=torch_mode)
    if clamp:
        resized = _clamp_to_range(resized, planes)
    return resized.reshape(*maps.shape[:-2], height, width)


def _clamp_to_range(resized: Tensor, maps: Tensor) -> Tensor:
    """Clamp each resized map (..., H, W) to the range of the map (..., h, w) that it was."""
    least = maps.amin((-2, -1), keepdim=True)
    largest = maps.amax((-2, -1), keepdim=True)
    return resized.clamp(least, largest)


@public("uncrop")
def uncrop(
    maps: Tensor, box: Box, size: tuple[int, int], *, mode: Mode = "bilinear", clamp: bool = False
) -> Tensor:
    """Lay maps (..., h, w) of a part of an image on the whole, (..., H, W), zero elsewhere.

    The map is resized as by :func:`upsample`, so that its edges lie on those of the box.

    Args:
        maps: (..., h, w).
        box: edges of the part in pixels, not rounded. The box may reach beyond the image, as it
            does if the image was padded.
        size: (H, W) of the image.
        mode: as in :func:`upsample`.
        clamp: keep every map within the range that it had.

    Returns:
        (..., H, W), same type and device.

    Raises:
        InputError: as in :func:`upsample`, or a box without an area or outside of the image.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> maps.uncrop(torch.tensor([[1.0, 2.0]]), (1, 0, 3, 1), (1, 4))
        tensor([[0., 1., 2., 0.]])
    """
    height, width = _checked_size(size)
    if tuple(box) == (0, 0, width, height):
        return upsample(maps, size, mode=mode, clamp=clamp)
    check_maps(maps)
    check_choice(mode, get_args(Mode), name="a mode")
    rows, columns = inside(box, size)
    left, top, right, bottom = box
    x = _sampling_positions(columns, left, right, maps)
    y = _sampling_positions(rows, top, bottom, maps)
    positions = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    planes = maps.reshape(1, -1, *maps.shape[-2:])  # (1, N, h, w)
    inner = F.grid_sample(
        planes, positions[None], mode=mode, padding_mode="border", align_corners=False
    )
    if clamp:
        inner = _clamp_to_range(inner, planes)
    whole = maps.new_zeros(*maps.shape[:-2], height, width)
    whole[..., rows, columns] = inner.reshape(*maps.shape[:-2], len(y), len(x))
    return whole


def _sampling_positions(pixels: slice, low: float, high: float, maps: Tensor) -> Tensor:
    """Return where the centers of pixels lie between the edges of a box, -1 to 1 on one axis."""
    indices = torch.arange(pixels.start, pixels.stop, device=maps.device)
    # The map's own type may be half precision, which cannot tell the pixels of a photo apart.
    centers = indices.double() + 0.5
    share = (centers - low) / (high - low)
    return (2 * share).to(maps) - 1


def inside(box: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image (H, W) whose centers lie in a box, at least one each.

    Raises:
        InputError: the box has no area in the image.

    Example:
        >>> from captum_clip import maps
        >>> maps.inside((0.2, -1, 2.6, 3), (4, 4))
        (slice(0, 3, None), slice(0, 3, None))
    """
    left, top, right, bottom = box
    height, width = size
    pixels = []
    for near, far, length in ((top, bottom, height), (left, right, width)):
        low = max(near, 0)
        high = min(far, length)
        expect(low < high, f"a box that overlaps an image {size}", box)
        # The center of pixel i lies at i + 0.5.
        start = math.ceil(low - 0.5)
        stop = math.ceil(high - 0.5)
        # A box narrower than a pixel may hold no center, and then takes the pixel it begins in.
        if start == stop:
            start = int(low)
            stop = start + 1
        pixels.append(slice(start, stop))
    rows, columns = pixels
    return rows, columns


@public("normalize")
def normalize(maps: Tensor) -> Tensor:
    r"""Stretch each map (h, w) to [0, 1].

    .. math:: m' = \frac{m - \min m}{\max m - \min m}

    A constant map has nothing to show and gives zeros. So does a map that varies by no more than
    the rounding of its values.

    Args:
        maps: (..., h, w).

    Returns:
        The same shape, type and device.

    Raises:
        InputError: maps of another type or shape, NaN or infinity in them.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> maps.normalize(torch.tensor([[[-1.0, 3.0]], [[5.0, 5.0]]]))
        tensor([[[0., 1.]],
        <BLANKLINE>
                [[0., 0.]]])
    """
    check_maps(maps)
    largest = maps.abs().amax((-2, -1), keepdim=True)
    # The difference of two large values of opposite sign would overflow.
    scaled = maps / torch.where(largest > 0, largest, 1)
    low = scaled.amin((-2, -1), keepdim=True)
    span = scaled.amax((-2, -1), keepdim=True) - low
    varies = span > _ROUNDING_STEPS * torch.finfo(maps.dtype).eps
    return torch.where(varies, (scaled - low) / torch.where(varies, span, 1), 0)


@public("positive")
def positive(maps: Tensor) -> Tensor:
    r"""Keep the positive evidence of signed maps, which supports the target.

    .. math:: m^+ = \max(m, 0)

    Args:
        maps: (..., h, w).

    Returns:
        The same shape, type and device.

    Raises:
        InputError: maps of another type or shape, NaN or infinity in them.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> maps.positive(torch.tensor([[-2.0, 3.0]]))
        tensor([[0., 3.]])
    """
    check_maps(maps)
    return maps.clamp(min=0)


@public("negative")
def negative(maps: Tensor) -> Tensor:
    r"""Keep the negative evidence of signed maps, which contradicts the target.

    .. math:: m^- = \max(-m, 0)

    Args:
        maps: (..., h, w).

    Returns:
        The same shape, type and device.

    Raises:
        InputError: maps of another type or shape, NaN or infinity in them.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> maps.negative(torch.tensor([[-2.0, 3.0]]))
        tensor([[2., 0.]])
    """
    check_maps(maps)
    return (-maps).clamp(min=0)


@public("expand_to_input")
def expand_to_input(maps: Tensor, images: Tensor) -> Tensor:
    r"""Spread maps (B, 1, h, w) over the pixels and channels of the images, keeping their sums.

    .. math:: a_{bcij} = \frac{m_{b, p, q}}{C \, n_{pq}}, \quad
              p = \lfloor i h / H \rfloor, \; q = \lfloor j w / W \rfloor

    where :math:`n_{pq}` is the number of pixels of cell (p, q). This is for
    `captum.metrics.infidelity`, which multiplies attributions with perturbations of the same shape.
    If all pixels of a cell are changed by one, the cell's value is counted once.

    Args:
        maps: (B, 1, h, w).
        images: (B, C, H, W) with H >= h and W >= w, C = 3 as a rule.

    Returns:
        (B, C, H, W), contiguous, type and device of the maps.

    Raises:
        InputError: shapes that do not belong together, or NaN or infinity in the maps.

    Example:
        >>> import torch
        >>> from captum_clip import maps
        >>> spread = maps.expand_to_input(torch.ones(1, 1, 2, 2), torch.zeros(1, 3, 5, 5))
        >>> spread.shape, spread.sum()
        (torch.Size([1, 3, 5, 5]), tensor(4.))
    """
    check_maps(maps)
    check_shape("images", images, "(B, C, H, W)")
    channels, height, width = images.shape[1:]
    is_one_per_image = maps.ndim == 4 and maps.shape[1] == 1 and len(maps) == len(images)
    is_no_finer = maps.shape[-2] <= height and maps.shape[-1] <= width
    expected = f"maps (B, 1, h, w) no finer than images {tuple(images.shape)}"
    expect(is_one_per_image and is_no_finer, expected, maps)
    row, row_count = _cell_of_pixels(height, maps.shape[2], maps)
    column, column_count = _cell_of_pixels(width, maps.shape[3], maps)
    share = maps / (channels * row_count[:, None] * column_count)
    spread = share[..., row[:, None], column]  # (B, 1, H, W)
    return spread.expand(-1, channels, -1, -1).contiguous()


def _cell_of_pixels(pixel_count: int, cell_count: int, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cell of each pixel on one axis, and the number of pixels of each cell."""
    cell = torch.arange(pixel_count, device=maps.device) * cell_count // pixel_count
    pixels_per_cell = torch.bincount(cell, minlength=cell_count)
    return cell, pixels_per_cell.to(maps.dtype)


def check_maps(maps: Any) -> None:
    """Check that maps are a finite floating-point tensor (..., h, w).

    Raises:
        InputError: another type or shape, an empty tensor, NaN or infinity.
    """
    check_tensor("maps", maps, "(..., h, w)")


def check_tensor(what: str, value: Any, dims: str, advice: str = "") -> None:
    """Raise InputError unless a value is a finite floating-point tensor of a shape.

    The shape is written as in docstrings: "(B, 3, H, W)", or "(..., h, w)" with any number of
    dimensions in front. `advice` says how such a tensor is made.
    """
    check_shape(what, value, dims, advice)
    expect(value.is_floating_point(), f"{what} as a floating-point tensor", value, advice)
    if is_vmapped(value):
        raise InputError(
            f"the {what} {tuple(value.shape)} were given inside torch.vmap, which hides the batch; "
            "expected all of them at once. Call this on the whole batch, without vmap."
        )
    # A sum takes a fiftieth of the time that a look at every value takes. Since it may overflow
    # although every value is finite, a sum that is not finite settles nothing.
    values = value.detach()
    total = values.sum(dtype=torch.promote_types(value.dtype, torch.float32))
    if not math.isfinite(total.item()) and not torch.isfinite(values).all():
        raise InputError(
            f"the {what} {tuple(value.shape)} hold NaN or infinity; look for a division by zero or "
            "an overflow in half precision before this call, or leave those out."
        )


def check_shape(
    what: str, value: Any, dims: str, advice: str = "", error: type[CaptumClipError] = InputError
) -> None:
    """Raise an error unless a value is a tensor of numbers of a shape, without an empty side."""
    expect(isinstance(value, Tensor), f"{what} as a tensor {dims}", value, advice, error=error)
    reason = unsupported_reason(value)
    if reason:
        raise error(f"expected {what} as a tensor of plain numbers, got {reason}.")
    sides = dims.strip("()").split(", ")
    fits = value.ndim == len(sides)
    if sides[0] == "...":
        fits = value.ndim >= len(sides) - 1
    # Sides are compared from the last one on, since "..." is any number of them in front.
    for side, length in zip(reversed(sides), reversed(value.shape), strict=False):
        if side.isdigit():
            fits = fits and length == int(side)
    expected = f"{what} of shape {dims}"
    if 0 in value.shape:
        fits = False
        expected += ", none of them empty"
    expect(fits, expected, value, advice, error=error)


def _checked_size(size: Any) -> tuple[int, int]:
    """Return a height and width; InputError unless they are two positive numbers."""
    expected = "a size (H, W) of 1 pixel and up"
    with expecting(expected, size):
        height, width = map(int, size)
    expect(min(height, width) > 0, expected, size)
    return height, width


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation along the last dimension, (..., N) -> (...); NaN for a constant.

    SciPy's function is not used, because it gives a number for a constant whose mean is rounded: it
    correlates the rounding errors.
    """
    x = first.double()
    y = second.double()
    both_vary = _varies(x) & _varies(y)
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    norms = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    cosine = ((x * y).sum(-1) / norms).clamp(-1, 1)
    return torch.where(both_vary, cosine, torch.nan)


def _varies(values: Tensor) -> Tensor:
    """Tell (...) whether values (..., N) differ by more than their rounding."""
    span = values.amax(-1) - values.amin(-1)
    return span > _ROUNDING_STEPS * torch.finfo(values.dtype).eps * values.abs().amax(-1)


def threshold_level(heatmap: Tensor, threshold: Threshold) -> Tensor:
    """Return the threshold (N,) of each map (N, H, W) in [0, 1]."""
    # An array must not be compared with a name, since it answers for each of its values.
    if isinstance(threshold, str):
        if threshold == "mean":
            return heatmap.mean((-2, -1))
        if threshold == "otsu":
            return _otsu(heatmap.flatten(1))
    is_share = is_number(threshold) and 0 <= threshold < 1
    expect(is_share, 'threshold "mean", "otsu" or a number in [0, 1)', threshold)
    return heatmap.new_full((len(heatmap),), float(threshold))


def _otsu(values: Tensor) -> Tensor:
    """Return Otsu's threshold (N,) of values (N, P) in [0, 1]: the center of the last bin below it.

    It takes all maps at once, and also a constant map, which scikit-image refuses.
    """
    bins = (values * _BINS).long().clamp(max=_BINS - 1)
    counts = torch.zeros(len(values), _BINS, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    centers = (torch.arange(_BINS, device=values.device, dtype=torch.float64) + 0.5) / _BINS
    low_count = counts.cumsum(1)
    high_count = low_count[:, -1:] - low_count
    low_sum = (counts * centers).cumsum(1)
    high_sum = low_sum[:, -1:] - low_sum
    # Where a side has no value its sum is zero, and so is its mean instead of NaN.
    low_mean = low_sum / low_count.clamp(min=1)
    high_mean = high_sum / high_count.clamp(min=1)
    between_variance = low_count * high_count * (low_mean - high_mean) ** 2
    # The last bin has no value above it, so no threshold lies there.
    last_bin_below = between_variance[:, :-1].argmax(1)
    return centers[last_bin_below].to(values.dtype)


@public("outside_share")
def outside_share(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Return the share of each map's absolute contributions that lies outside of a mask.

    .. math:: \frac{\sum_j |m_j| \, (1 - c_j)}{\sum_j |m_j|}

    with :math:`c_j` the share of cell j that the mask covers. Penalize its mean over the images
    that have a mask.

    Args:
        maps: (B, K, h, w) with a graph, which may be missing only under ``torch.no_grad()``.
        masks: (B, H, W), zero outside, over what the model sees: pixels of the preprocessed
            images, or cells of the grid. An image's K maps have one mask.

    Returns:
        (B, K), in [0, 1]; 0 for a map of zeros.

    Raises:
        InputError: maps without a graph, masks of another number or size than the images, or an
            empty mask.

    Example:
        >>> import torch
        >>> from captum_clip.maps import outside_share
        >>> maps = torch.tensor([[[[3.0, -1.0]]]], requires_grad=True)
        >>> outside_share(maps, torch.tensor([[[True, False]]]))
        tensor([[0.2500]], grad_fn=<DivBackward0>)
    """
    _check_graph(maps)
    check_shape("masks", masks, "(B, H, W)")
    height, width = masks.shape[1:]
    h, w = maps.shape[2:]
    # Patches are square, and some towers leave out a few pixels at an edge.
    patch_side = height // h
    fits = len(masks) == len(maps) and patch_side == width // w and patch_side > 0
    expected = (
        f"masks of the {len(maps)} preprocessed images, which the model sees as {h} x {w} cells"
    )
    expect(fits, expected, masks, "crop and resize them as the images")
    mask_planes = masks[:, None].bool().to(maps.dtype)  # (B, 1, H, W)
    covered = F.interpolate(mask_planes, (h, w), mode="area")
    _refuse_empty("masks", covered)
    magnitude = maps.abs()
    # The bound keeps a map of zeros from a division by zero.
    total = magnitude.sum((-2, -1)).clamp(min=torch.finfo(maps.dtype).tiny)
    outside = (magnitude * (1 - covered)).sum((-2, -1))
    return outside / total


@public("agreement")
def agreement(maps: Tensor, expected: Tensor) -> Tensor:
    r"""Return the cosine of each map and the map expected of it, a person's or a teacher's.

    .. math:: \frac{\sum_j m_j w_j}{|m| \, |w|}

    A loss is ``1 - agreement(maps, expected)``. The scales of the maps do not count; signs do.

    Args:
        maps: (B, K, h, w) with a graph, which may be missing only under ``torch.no_grad()``.
        expected: (B, K, h, w), not all zero.

    Returns:
        (B, K), in [-1, 1]; 0 for a map of zeros.

    Raises:
        InputError: maps without a graph, or `expected` of another shape, or empty.

    Example:
        >>> import torch
        >>> from captum_clip.maps import agreement
        >>> maps = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
        >>> agreement(maps, torch.tensor([[[[2.0, 0.0]]]])).item()
        0.6000000238418579
    """
    _check_graph(maps)
    check_tensor("expected maps", expected, "(B, K, h, w)")
    expect(expected.shape == maps.shape, f"maps of shape {tuple(maps.shape)}", expected)
    _refuse_empty("expected maps", expected)
    return F.cosine_similarity(maps.flatten(2), expected.to(maps).flatten(2), dim=-1)


def _check_graph(maps: Tensor) -> None:
    """Raise InputError unless maps are (B, K, h, w) in a graph."""
    check_tensor("maps", maps, "(B, K, h, w)")
    if torch.is_grad_enabled() and not maps.requires_grad:
        raise InputError("the maps have no graph to train; make them with create_graph=True.")


def _refuse_empty(what: str, values: Tensor) -> None:
    """Raise InputError if values (B, K, h, w) of an image hold nothing but zeros."""
    is_empty = ~values.flatten(2).any(-1)  # (B, K)
    empty_images = is_empty.any(1).nonzero().flatten().tolist()
    if empty_images:
        raise InputError(
            f"the {what} of the images {empty_images} are empty; leave these images out."
        )
