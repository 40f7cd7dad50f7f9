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

_BINS = 256  # of Otsu's histogram, as in scikit-image
_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unsupported_reason(tensor: Tensor) -> str:
    """The reason why a tensor cannot be computed with; "" for a tensor of plain numbers."""
    if tensor.is_meta:
        return "a tensor without values, on the meta device"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in _COMPUTED):
        return f"a tensor of {tensor.dtype}"
    return ""


def is_vmapped(value: Any) -> bool:
    """Whether a value is a tensor whose batch torch.vmap hides."""
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: half precision is too coarse to compute maps in."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


_NOTHING_TO_DISABLE: Final = nullcontext()


def autocast_disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device."""
    kind = tensor.device.type
    # most calls are not under autocast, and torch's context costs more than what runs in it
    on = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else _NOTHING_TO_DISABLE


@public("upsample")
def upsample(
    maps: Tensor, size: tuple[int, int], *, mode: Mode = "bilinear", clamp: bool = False
) -> Tensor:
    """Resize maps (..., h, w) to (..., H, W).

    Pixel centers are kept in place (``align_corners=False``), as when an image is resized; the
    nearest mode takes the cell that a pixel's center lies in.

    Args:
        maps: (..., h, w).
        size: (H, W) in pixels.
        mode: "bilinear", "bicubic" (may leave the range of the values) or "nearest".
        clamp: keep every map within the range that it had.

    Returns:
        (..., H, W), same type and device; differentiable.

    Raises:
        InputError: no such tensor, NaN or infinity, a size that is not two positive numbers, or an
            unknown mode.

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
    # the mode "nearest" of torch asks for the corner of a pixel
    resized = F.interpolate(
        planes, (height, width), mode="nearest-exact" if mode == "nearest" else mode
    )
    if clamp:
        resized = resized.clamp(planes.amin((-2, -1), True), planes.amax((-2, -1), True))
    return resized.reshape(*maps.shape[:-2], height, width)


@public("uncrop")
def uncrop(
    maps: Tensor, box: Box, size: tuple[int, int], *, mode: Mode = "bilinear", clamp: bool = False
) -> Tensor:
    """Lay maps (..., h, w) of a part of an image on the whole, (..., H, W), zero elsewhere.

    The map is resized as by :func:`upsample`, so that its edges lie on those of the box.

    Args:
        maps: (..., h, w).
        box: edges of the part in pixels, not rounded; it may reach beyond the image, as where it
            was padded.
        size: (H, W) of the image.
        mode: as of :func:`upsample`.
        clamp: keep every map within the range that it had.

    Raises:
        InputError: as :func:`upsample`, or a box without an area or outside of the image.

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
    y, x = (
        (
            (2 * torch.arange(cut.start, cut.stop, device=maps.device).double() + 1 - 2 * low)
            / (high - low)
        ).to(maps)
        for cut, low, high in ((rows, box[1], box[3]), (columns, box[0], box[2]))
    )
    where = torch.stack([(x - 1).expand(len(y), -1), (y - 1)[:, None].expand(-1, len(x))], dim=-1)
    planes = maps.reshape(1, -1, *maps.shape[-2:])  # (1, N, h, w)
    inner = F.grid_sample(
        planes, where[None], mode=mode, padding_mode="border", align_corners=False
    )
    if clamp:
        inner = inner.clamp(planes.amin((-2, -1), True), planes.amax((-2, -1), True))
    whole = maps.new_zeros(*maps.shape[:-2], height, width)
    whole[..., rows, columns] = inner.reshape(*maps.shape[:-2], len(y), len(x))
    return whole


def inside(box: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and the columns of an image (H, W) whose centers lie in a box, one at least.

    Raises:
        InputError: the box has no area in the image.

    Example:
        >>> from captum_clip import maps
        >>> maps.inside((0.2, -1, 2.6, 3), (4, 4))
        (slice(0, 3, None), slice(0, 3, None))
    """
    left, top, right, bottom = box
    ends = []
    for low, high, length in ((top, bottom, size[0]), (left, right, size[1])):
        low, high = max(low, 0), min(high, length)
        expect(low < high, f"a box that overlaps an image {size}", box)
        start, stop = (math.ceil(end - 0.5) for end in (low, high))
        if start == stop:  # narrower than a pixel
            start, stop = int(low), int(low) + 1
        ends.append(slice(start, stop))
    return ends[0], ends[1]


@public("normalize")
def normalize(maps: Tensor) -> Tensor:
    r"""Stretch each map (h, w) to [0, 1].

    .. math:: m' = \frac{m - \min m}{\max m - \min m}

    A constant map has nothing to show and gives zeros; so does one that varies by no more than the
    rounding of its values.

    Args:
        maps: (..., h, w).

    Returns:
        The same shape, type and device.

    Raises:
        InputError: no such tensor, NaN or infinity.

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
    scaled = maps / torch.where(largest > 0, largest, 1)  # so that no difference overflows
    low = scaled.amin((-2, -1), keepdim=True)
    span = scaled.amax((-2, -1), keepdim=True) - low
    varies = span > 8 * torch.finfo(maps.dtype).eps
    return torch.where(varies, (scaled - low) / torch.where(varies, span, 1), 0)


@public("positive")
def positive(maps: Tensor) -> Tensor:
    r"""Positive evidence, which supports the target: :math:`m^+ = \max(m, 0)`, of signed maps.

    Raises:
        InputError: no such tensor, NaN or infinity.

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
    r"""Negative evidence, which contradicts the target: :math:`m^- = \max(-m, 0)`, of signed maps.

    Raises:
        InputError: no such tensor, NaN or infinity.

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

    .. math:: a_{bcij} = \frac{m_{b, p, q}}{3 \, n_{pq}}, \quad
              p = \lfloor i h / H \rfloor, \; q = \lfloor j w / W \rfloor

    where :math:`n_{pq}` is the number of pixels of cell (p, q). For `captum.metrics.infidelity`,
    which multiplies attributions with perturbations of the same shape: moving a whole cell by one
    then counts its value once.

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
    belong = maps.ndim == 4 and maps.shape[1] == 1 and len(maps) == len(images)
    finer = images.shape[2] >= maps.shape[-2] and images.shape[3] >= maps.shape[-1]
    expect(belong and finer, f"maps (B, 1, h, w) no finer than images {tuple(images.shape)}", maps)
    row, row_count = _cell_of_pixels(images.shape[2], maps.shape[2], maps)
    column, column_count = _cell_of_pixels(images.shape[3], maps.shape[3], maps)
    share = maps / (images.shape[1] * row_count[:, None] * column_count)
    spread = share[..., row[:, None], column]  # (B, 1, H, W)
    return spread.expand(-1, images.shape[1], -1, -1).contiguous()


def _cell_of_pixels(pixels: int, cells: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each pixel on one axis, and the number of pixels of each cell."""
    owner = torch.arange(pixels, device=like.device) * cells // pixels
    return owner, torch.bincount(owner, minlength=cells).to(like.dtype)


def check_maps(maps: Any, *, what: str = "maps") -> None:
    """Maps are finite floating-point tensors (..., h, w).

    Raises:
        InputError: no such tensor, an empty one, NaN or infinity.
    """
    check_tensor(what, maps, "(..., h, w)")


def check_tensor(what: str, value: Any, dims: str, advice: str = "") -> None:
    """Raise InputError unless a value is a finite floating-point tensor of a shape.

    The shape is written as in docstrings, "(B, 3, H, W)" or with any number of others in front
    "(..., h, w)"; `advice` says what makes such a tensor.
    """
    check_shape(what, value, dims, advice)
    expect(value.is_floating_point(), f"{what} as a floating-point tensor", value, advice)
    if is_vmapped(value):
        raise InputError(
            f"the {what} {tuple(value.shape)} were given inside torch.vmap, which hides the batch; "
            "expected all of them at once. Call this on the whole batch, without vmap."
        )
    # A sum takes a fiftieth of the time, but may overflow where every value is finite.
    total = value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float32))
    if not math.isfinite(total.item()) and not torch.isfinite(value.detach()).all():
        raise InputError(
            f"the {what} {tuple(value.shape)} hold NaN or infinity; look for a division by zero or "
            "an overflow in half precision before this call, or leave those out."
        )


def check_shape(
    what: str, value: Any, dims: str, advice: str = "", error: type[CaptumClipError] = InputError
) -> None:
    """Raise an error unless a value is a tensor of numbers of a shape, without an empty side."""
    expect(isinstance(value, Tensor), f"{what} as a tensor {dims}", value, advice, error=error)
    if reason := unsupported_reason(value):
        raise error(f"expected {what} as a tensor of plain numbers, got {reason}.")
    names = dims.strip("()").split(", ")
    fits = value.ndim == len(names) or (names[0] == "..." and value.ndim >= len(names) - 1)
    sizes = zip(reversed(names), reversed(value.shape), strict=False)
    fits &= all(size == int(name) for name, size in sizes if name.isdigit())
    expected = f"{what} of shape {dims}" + ", none of them empty" * (0 in value.shape)
    expect(fits and 0 not in value.shape, expected, value, advice, error=error)


def _checked_size(size: Any) -> tuple[int, int]:
    expected = "a size (H, W) of 1 pixel and up"
    with expecting(expected, size):
        height, width = map(int, size)
    expect(min(height, width) > 0, expected, size)
    return height, width


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension, (..., N) -> (...); NaN for a constant.

    SciPy's takes a constant whose mean is rounded for a variable.
    """
    columns = first.double(), second.double()
    varies = [
        x.amax(-1) - x.amin(-1) > 8 * torch.finfo(x.dtype).eps * x.abs().amax(-1) for x in columns
    ]
    x, y = (column - column.mean(-1, keepdim=True) for column in columns)
    size = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(varies[0] & varies[1], ((x * y).sum(-1) / size).clamp(-1, 1), torch.nan)


def threshold_level(heatmap: Tensor, threshold: Threshold) -> Tensor:
    """The threshold (N,) of each map (N, H, W) in [0, 1]."""
    if isinstance(threshold, str) and threshold in ("mean", "otsu"):  # an array would be compared
        return heatmap.mean((-2, -1)) if threshold == "mean" else _otsu(heatmap.flatten(1))
    inside = is_number(threshold) and 0 <= threshold < 1
    expect(inside, 'threshold "mean", "otsu" or a number in [0, 1)', threshold)
    return heatmap.new_full((len(heatmap),), float(threshold))


def _otsu(values: Tensor) -> Tensor:
    """Otsu's threshold (N,) of values (N, P) in [0, 1]: the center of the last bin below it.

    All maps at once, and of a constant map too, which scikit-image refuses.
    """
    bins = (values * _BINS).long().clamp(max=_BINS - 1)
    counts = torch.zeros(len(values), _BINS, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    centers = (torch.arange(_BINS, device=values.device, dtype=torch.float64) + 0.5) / _BINS
    low, moment = counts.cumsum(1), (counts * centers).cumsum(1)
    high = low[:, -1:] - low
    gap = moment / low.clamp(min=1) - (moment[:, -1:] - moment) / high.clamp(min=1)
    between = low * high * gap**2
    return centers[between[:, :-1].argmax(1)].to(values.dtype)


@public("outside_share")
def outside_share(maps: Tensor, masks: Tensor) -> Tensor:
    r"""The share of what the cells of each map contribute, of either sign, outside of a mask.

    .. math:: \frac{\sum_j |m_j| \, (1 - c_j)}{\sum_j |m_j|}

    with :math:`c_j` the share of cell j that the mask covers. Penalize its mean over the images
    that have a mask.

    Args:
        maps: (B, K, h, w), with a graph; without one under ``torch.no_grad()`` alone.
        masks: (B, H, W), of which 0 is outside, over what the model sees: pixels of the
            preprocessed images, or cells of the grid. An image's K maps have one mask.

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
    (height, width), (h, w) = masks.shape[1:], maps.shape[2:]
    # a patch has as many pixels on either side; some towers leave a few at an edge out
    fits = len(masks) == len(maps) and height // h == width // w > 0
    expected = f"masks of the {len(maps)} preprocessed images, which the model sees as {h} x {w}"
    expect(fits, f"{expected} cells", masks, "crop and resize them as the images")
    covered = F.interpolate(masks[:, None].bool().to(maps.dtype), (h, w), mode="area")
    _refuse_empty("masks", covered)
    size = maps.abs()
    total = size.sum((-2, -1)).clamp(min=torch.finfo(maps.dtype).tiny)
    return (size * (1 - covered)).sum((-2, -1)) / total


@public("agreement")
def agreement(maps: Tensor, expected: Tensor) -> Tensor:
    r"""The cosine of each map and the one that it should be, such as a person's or a teacher's.

    .. math:: \frac{\sum_j m_j w_j}{|m| \, |w|}

    A loss is ``1 - agreement(maps, expected)``. Neither map's scale counts; signs do.

    Args:
        maps: (B, K, h, w), with a graph; without one under ``torch.no_grad()`` alone.
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
    expect(expected.shape == maps.shape, f"expected maps of shape {tuple(maps.shape)}", expected)
    _refuse_empty("expected maps", expected)
    return F.cosine_similarity(maps.flatten(2), expected.to(maps).flatten(2), dim=-1)


def _check_graph(maps: Tensor) -> None:
    """Raise InputError for what are no maps (B, K, h, w) in a graph."""
    check_tensor("maps", maps, "(B, K, h, w)")
    if torch.is_grad_enabled() and not maps.requires_grad:
        raise InputError("the maps have no graph to train; make them with create_graph=True.")


def _refuse_empty(what: str, values: Tensor) -> None:
    """Raise InputError where (B, K, h, w) hold nothing but zeros of an image."""
    if empty := (~values.flatten(2).any(-1)).any(1).nonzero().flatten().tolist():
        raise InputError(f"the {what} of the images {empty} are empty; leave these images out.")
