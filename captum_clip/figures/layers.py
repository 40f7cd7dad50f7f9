"""A vision transformer layer by layer (the report's Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import visualization
from ..attr import LayerAttention
from ..errors import InputError, UnsupportedModelError
from ..models import ViTTower
from ..models.base import ImageLike
from ..similarity import ClipSimilarity
from . import subjects as common
from .subjects import DEFAULT_MODEL, Device, Images, Model

_ROWS: Final = {"cls": "row CLS", "sum": "sum of all rows"}
_SAID: Final = {"each": common.EACH, "shared": "one scale for all layers"}


def layers(
    image: ImageLike,
    texts: str | Sequence[str] = (),
    *,
    references: Images = (),
    model: Model = DEFAULT_MODEL,
    rows: Literal["cls", "sum"] = "cls",
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    """The attention of every layer, and for each target the gradient with respect to it.

    Heads are averaged, the gradient keeps its sign, and the image is masked: low is dark. See
    :class:`captum_clip.LayerAttention` for the maps and :func:`captum_clip.visualization.layers`
    for the picture.

    Args:
        image: one of what ``ClipAdapter.preprocess`` takes.
        texts: targets.
        references: images that are targets, after the texts; shown before their gradients.
        model: a name, a model or an adapter, with a vision transformer.
        rows: "cls", the row of the CLS token, or "sum" of all rows.
        scale: "each" map its own, or "shared" by all layers.
        cmap: lay the maps over the image in these colours, instead of masking it.
        device: where a model that is loaded by name goes.

    Raises:
        UnsupportedModelError: the model has no vision transformer.
        CaptumClipError: an image, a text or a model that cannot be worked with.

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.layers(image, "a horse", model="demo/vit")
    """
    caller = "figures.layers"
    common.check_scale(caller, scale, ("each", "shared"))
    if rows not in _ROWS:
        raise InputError(f"{caller}: expected rows of {', '.join(_ROWS)}, got {rows!r}.")
    [clip] = common.open_models(caller, model, device)
    if not isinstance(clip.tower, ViTTower):
        raise UnsupportedModelError(
            f"{caller}: {clip.name} has a {clip.kind} tower, which has no layers of attention; "
            "take a model with a vision transformer."
        )
    target, others = common.open_target(caller, clip, texts, references)
    pixels = clip.preprocess(image)
    forward = ClipSimilarity(clip, target)
    attention, gradients, scores = _maps(forward, len(clip.tower.layers), pixels, rows)
    row = _ROWS[rows] if clip.tower.pooling == "cls" or rows == "sum" else "mean of all rows"
    said = ("heads averaged", row, _SAID[scale])
    return visualization.layers(
        clip.denormalize(pixels).cpu(),
        attention,
        gradients,
        names=target.names,
        scores=scores,
        references=others,
        shared=scale == "shared",
        cmap=cmap,
        caption=" \N{MIDDLE DOT} ".join((clip.name, *said)),
    )


def _maps(
    forward: ClipSimilarity, count: int, pixels: Tensor, rows: Literal["cls", "sum"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention (B, L, h, w), gradients (B, K, L, h, w) and cosines (B, K)."""
    method = LayerAttention(forward)
    attention, gradients = [], []
    scores = pixels.new_empty(0)
    for index in range(count):
        seen = method.attribute_targets(pixels, [0], index=index, of="attention", rows=rows)
        slope, scores = method.attribute_targets(
            pixels, index=index, of="gradient", rows=rows, return_scores=True
        )
        attention.append(seen[:, 0].cpu())
        gradients.append(slope.cpu())
    return torch.stack(attention, dim=1), torch.stack(gradients, dim=2), scores.cpu()
