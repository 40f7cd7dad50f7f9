"""Losses on maps that lie in the graph of the model, with ``create_graph=True``.

A loss is a pure function of tensors; the training around it is yours. docs/training.md has one in
forty lines.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import expect
from .errors import InputError, public
from .maps import check_shape, check_tensor


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
        >>> from captum_clip.training import outside_share
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
def agreement(maps: Tensor, wanted: Tensor) -> Tensor:
    r"""The cosine of each map and the one that is wanted, such as a person's or a teacher's.

    .. math:: \frac{\sum_j m_j w_j}{|m| \, |w|}

    A loss is ``1 - agreement(maps, wanted)``. Neither map's scale counts; signs do.

    Args:
        maps: (B, K, h, w), with a graph; without one under ``torch.no_grad()`` alone.
        wanted: (B, K, h, w), not all zero.

    Returns:
        (B, K), in [-1, 1]; 0 for a map of zeros.

    Raises:
        InputError: maps without a graph, or `wanted` of another shape, or empty.

    Example:
        >>> import torch
        >>> from captum_clip.training import agreement
        >>> maps = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
        >>> agreement(maps, torch.tensor([[[[2.0, 0.0]]]])).item()
        0.6000000238418579
    """
    _check_graph(maps)
    check_tensor("wanted maps", wanted, "(B, K, h, w)")
    expect(wanted.shape == maps.shape, f"wanted maps of shape {tuple(maps.shape)}", wanted)
    _refuse_empty("wanted maps", wanted)
    return F.cosine_similarity(maps.flatten(2), wanted.to(maps).flatten(2), dim=-1)


def _check_graph(maps: Tensor) -> None:
    """Raise InputError for what are no maps (B, K, h, w) in a graph."""
    check_tensor("maps", maps, "(B, K, h, w)")
    if torch.is_grad_enabled() and not maps.requires_grad:
        raise InputError("the maps have no graph to train; make them with create_graph=True.")


def _refuse_empty(what: str, values: Tensor) -> None:
    """Raise InputError where (B, K, h, w) hold nothing but zeros of an image."""
    if empty := (~values.flatten(2).any(-1)).any(1).nonzero().flatten().tolist():
        raise InputError(f"the {what} of the images {empty} are empty; leave these images out.")
