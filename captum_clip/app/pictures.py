"""Pictures for a browser, which sets the opacity of a map by itself, and files to take home."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap, to_hex
from PIL import Image
from torch import Tensor

from .. import maps, visualization
from ..visualization.colors import HEAT, NEGATIVE, RISE, Array, soften
from .queries import Result


def photo(image: Tensor) -> str:
    """An image (3, H, W) as the maps lie on it, pale; a data URL."""
    return data_url(soften(image.permute(1, 2, 0).numpy()))


def layer(heatmap: Tensor, cmap: Colormap) -> Array:
    r"""The colours of a map (H, W) with their opacity, (H, W, 4).

    Over :func:`photo` with an overall opacity of :math:`\alpha` it is what
    ``visualization.overlay(..., alpha=alpha)`` draws, so the browser may change alpha by itself:

    .. math:: (1 - \alpha o) \, p + \alpha o \, c

    with the pale image p, the colour c and the opacity o of a pixel.
    """
    values = heatmap.numpy()
    opacity = values[..., None] ** RISE
    return np.concatenate([cmap(values)[..., :3], opacity], axis=-1, dtype=np.float32)


def signed_layer(positive: Tensor, negative: Tensor, cmaps: tuple[Colormap, Colormap]) -> Array:
    """Two maps (H, W) of which one is zero wherever the other is not, in one layer."""
    up, down = layer(positive, cmaps[0]), layer(negative, cmaps[1])
    return np.where((negative > 0).numpy()[..., None], down, up)


def signed_heat(raw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Signed maps (..., h, w) -> positive and negative ones (..., H, W) on one scale, in [0, 1]."""
    large = maps.upsample(raw, size, mode="bicubic", clamp=True)
    pair = torch.cat([maps.positive(large), maps.negative(large)], dim=-1)
    up, down = maps.normalize(pair).chunk(2, dim=-1)
    return up, down


def data_url(pixels: Array) -> str:
    """A PNG of pixels (H, W, 3 or 4) in [0, 1], as an address that holds its own data."""
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(file, "PNG")
    return as_url(file.getvalue(), "image/png")


def as_url(data: bytes, kind: str) -> str:
    """Bytes of a media type as an address that holds its own data."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def css_gradient(cmap: Colormap) -> str:
    """The colours of a map from low to high, as CSS."""
    return f"linear-gradient(90deg, {', '.join(to_hex(cmap(i / 8)) for i in range(9))})"


def picture(result: Result, opacity: float) -> bytes:
    """The cards with their opacity, as PNG."""
    shown, heatmap = result.shown(), result.heatmap()
    rows = zip(shown.names, shown.norms.tolist(), result.picks, strict=True)
    caption = f"{shown.model} \N{MIDDLE DOT} {shown.method}"
    if list(heatmap) == ["negative"]:
        caption += " \N{MIDDLE DOT} what speaks against"
    look: dict[str, Any] = {
        "names": [f"{name}, norm {norm:.2f}" if word else name for name, norm, word in rows],
        "scores": shown.scores,
        "alpha": opacity,
        "caption": caption,
    }
    if len(heatmap) == 2:
        figure = visualization.signs(shown.images, heatmap["positive"], heatmap["negative"], **look)
    else:
        [(sign, values)] = heatmap.items()
        cmap = HEAT if sign == "positive" else NEGATIVE
        figure = visualization.overlay(shown.images, values, cmap=cmap, **look)
    with tempfile.TemporaryDirectory() as folder:
        return visualization.save_figure(figure, Path(folder) / "maps.png").read_bytes()


def archive(result: Result) -> bytes:
    """The maps of the cards as :meth:`Explanation.save` writes them, NPZ."""
    with tempfile.TemporaryDirectory() as folder:
        return result.shown().save(Path(folder) / "maps.npz").read_bytes()
