"""The attention heads that a score comes from: which ones, and where they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from .. import visualization
from ..attr import DirectContribution
from ..checks import check_choice, check_integer
from ..errors import InputError
from ..explanation import Sign
from ..models import ClipAdapter, ViTTower, load_clip
from ..models.adapter import ImageLike
from ..similarity import ClipSimilarity
from ..targets import Target
from .report import DEFAULT_MODEL
from .subjects import DOT, EACH, Device, Images, Model, as_list, ask

COUNT: Final = 8
"""Heads that are shown where nobody says how many."""


@dataclass(frozen=True, eq=False)
class ScoreParts:
    """A score as a sum of M parts: the strongest heads first, then all others where there are any.

    The sum of a map is what its part adds; the rest is what no position does: the class token,
    MLPs, biases.
    """

    labels: tuple[str, ...]
    maps: Tensor  # (M, h, w), signed and raw
    rest: float


def heads(
    image: ImageLike,
    text: str | Sequence[str] = (),
    *,
    references: Images = (),
    model: Model = DEFAULT_MODEL,
    count: int = COUNT,
    sign: Sign = "positive",
    scale: Literal["each", "shared"] = "each",
    cmap: str | Colormap | None = None,
    device: Device = None,
) -> Figure:
    """The heads that add most to a score, each with its map, and all that is left of the sum.

    The maps are those of :class:`captum_clip.DirectContribution`, so they add up: under each is
    its sum and the share of the cosine; all other heads are one map, and the rest is what no
    position adds. A tower that reads CLS has the heads of every layer, a pooling head and the
    attention pool of a ResNet their own.

    Arguments are as in :func:`layers`, but for the target, which is one text or one reference, then
    shown in place of the image. `count` is the most heads to show, `sign` "positive" for those that
    add most, "negative" for those that take most away, "both" for `count` of each. By default
    orange adds to the cosine and blue takes away from it; `cmap` lays all maps over the image.

    Raises:
        InputError: not one image and one target, an argument that is none, or a tower whose
            embedding no attention reads: a mean of patches, or average pooling.

    Source: Gandelsman et al. 2024 (arXiv:2310.05916).

    Example:
        >>> from captum_clip import figures
        >>> from captum_clip.demo.scenes import draw_scene
        >>> image = draw_scene(0, objects=["horse", "dog"]).image
        >>> figure = figures.heads(image, "a horse", model="demo/vit")
        >>> len(figure.axes)  # the image, eight heads, the others and the rest
        11
    """
    caller = "figures.heads"
    check_choice(caller, scale, ("each", "shared"), name="a scale")
    check_choice(caller, sign, get_args(Sign), name="a sign")
    check_integer(caller, "count", count)
    if len(as_list(text)) + len(as_list(references)) > 1:
        raise InputError(
            f"{caller}: expected one text or one image to explain, got several; draw one figure "
            "for each."
        )
    clip = load_clip(model, device=device)
    question = ask(caller, clip, text, references)
    pixels = clip.preprocess(image)
    if len(pixels) != 1:
        raise InputError(
            f"{caller}: expected one image, got {len(pixels)}; draw one figure for each."
        )
    parts = score_parts(clip, question.target, pixels, count=count, sign=sign)
    said = {"each": EACH, "shared": "one scale for all maps"}[scale]
    return visualization.heads(
        clip.denormalize(pixels).cpu(),
        parts.maps[None],
        parts.rest,
        labels=parts.labels,
        name=question.target.names[0],
        reference=question.references[0],
        shared=scale == "shared",
        cmap=cmap,
        caption=f"{clip.name} ({DirectContribution.name}){DOT}{said}",
    )


def score_parts(
    clip: ClipAdapter,
    target: Target,
    pixels: Tensor,
    *,
    count: int = COUNT,
    sign: Sign = "positive",
) -> ScoreParts:
    """Take the score of one image (1, 3, H, W) and one target apart into its heads."""
    method = DirectContribution(ClipSimilarity(clip, target))
    maps, rest = method.attribute(pixels, target=0, per="head", return_rest=True)
    by_layer = maps[0, 0].cpu()  # (n, H, h, w)
    per_layer = by_layer.shape[1]
    every = by_layer.flatten(0, 1)
    sums = every.sum((-2, -1))
    order = sums.argsort(descending=True, stable=True).tolist()
    adding = [head for head in order if sums[head] > 0][:count]
    taking = [head for head in reversed(order) if sums[head] < 0][:count]
    shown = {"positive": adding, "negative": taking, "both": adding + taking}[sign]
    others = sorted({*order} - {*shown})
    reads_cls = isinstance(clip.tower, ViTTower) and clip.tower.pooling == "cls"
    label = "layer {}, head {}" if reads_cls else "head {1} of the pool"
    labels = [label.format(*divmod(head, per_layer)) for head in shown]
    parts = every[shown]
    if others:
        labels.append(f"{len(others)} other head{'s' * (len(others) > 1)}")
        parts = torch.cat([parts, every[others].sum(0, keepdim=True)])
    return ScoreParts(tuple(labels), parts, rest.item())
