"""Explanations as a figure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .. import visualization
from ..checks import check_interval, check_nonempty, expect
from ..errors import InputError, public
from ..maps import Mode
from ..models.adapter import ImageLike
from ..visualization.colors import ALPHA, NEGATIVE, POSITIVE, blend_signed, ramp, signed_number
from ..visualization.grid import ROWS, Legend, Panel, grid, jpeg
from ..visualization.overlays import framed_batches
from . import photos


class Drawable:
    """What has a figure: an `Explanation`, or those of several models."""

    @public("plot")
    def plot(
        self,
        *,
        cmap: str | Colormap | None = None,
        alpha: float = ALPHA,
        interpolation: Mode = "bicubic",
        original: bool | ImageLike | Sequence[ImageLike] | None = None,
    ) -> Figure:
        """Draw the maps over the images, resized, and min-max normalized one by one.

        One row per image, or image and model, and one column per target. With words, one column per
        word, dimmed by its norm. With both signs, one row per image and target: positive next to
        negative evidence, on a scale that the two share. With the text side one row per text: the
        image, or its map, next to the words in their colors. A contrast with both signs is one map
        in two colors. More than 24 rows of one model become a contact sheet: images stand side by
        side. A pair of images has its matches, the positive ones where both signs are there, and
        takes no look. For another look pass the maps to :mod:`captum_clip.visualization` yourself.

        Args:
            cmap: color map, by name or as it is; by default inferno, blue for negative evidence
                alone, and orange and blue where both signs are drawn.
            alpha: opacity where a map is 1; where it is 0 the image shows through.
            interpolation: between the cells of a map: "bicubic", kept within the map's range,
                "bilinear", or "nearest", which shows the cells as they are.
            original: whether the maps lie on the whole photos, gray where the model did not see
                them, or on what the model saw. By default they lie on the explained photos, if any
                was cropped or padded. Or the photos themselves, if the explanation comes from a
                file. Drawn with 1024 pixels a side at most, 256 where there are many.

        Raises:
            InputError: an unknown color map or interpolation, an alpha that is not in [0, 1], no
                photos to lay the maps on, as where the images came as tensors, or a look of a pair.
        """
        several = self if isinstance(self, tuple) else (self,)
        return draw(several, cmap, alpha, interpolation, original)

    def save(self, path: str | Path, **look: Any) -> Path:
        """Write the figure (.png, .jpg, .pdf, .svg), in a look that :meth:`plot` takes."""
        return visualization.save_figure(self.plot(**look), path)

    def _repr_jpeg_(self) -> bytes | None:
        """The figure, which a notebook shows."""
        return jpeg(self.plot())


def draw(several: Sequence[Any], cmap: Any, alpha: float, mode: Mode, original: Any) -> Figure:
    """Draw an `Explanation`, or those of several models; the arguments are those of ``plot``."""
    alike = {(e.names, len(e), *e.maps) for e in several}
    expect(len(alike) == 1, "explanations of the same images and texts", [*several])
    first = several[0]
    check_nonempty("image", first.images)
    if first.reference is not None:
        is_plain = cmap is None and alpha == ALPHA and mode == "bicubic"
        if not is_plain or not (original is None or original is False):
            raise InputError(
                "each match of two images has a color of its own, on what the model "
                "saw; leave cmap, alpha, interpolation and original out."
            )
        return _draw_matches(first)
    # by `is`, since photos may be an array, which is neither true nor false
    if original is None:
        has_photos = all(e.photos and e.crops for e in several)
        original = has_photos and not all(crop.is_whole for e in several for crop in e.crops)
    laid = [
        (e.images, e.heatmap(interpolation=mode))
        if original is False
        else photos.lay_on_photos(photos.originals(e, original), e.crops, e.maps, mode)
        for e in several
    ]
    images = _mixed(pictures for pictures, _ in laid)
    heatmap: dict[Any, Any] = {
        sign: _mixed(heatmaps[sign] for _, heatmaps in laid) for sign in first.maps
    }
    scores = torch.stack(_mixed(e.scores for e in several))
    look: dict[str, Any] = {"alpha": alpha, "caption": " | ".join(map(caption, several))}
    if len(several) > 1:
        look["labels"] = [e.model for e in several] * len(first)
    if first.contrast and len(heatmap) == 2 and cmap is None:
        differences = torch.cat(_mixed(e.scores * e.norms for e in several)).tolist()
        return _draw_contrast(first.contrast, images, heatmap, differences, **look)
    has_cosines = not first.words and first.cells == (0, 0)  # a word's share is none
    if has_cosines and not first.text_maps and len(heatmap) == 2:
        look |= {} if cmap is None else {"cmaps": (cmap, cmap)}
        return visualization.signs(images, **heatmap, names=titles(first), scores=scores, **look)
    if cmap is not None or list(heatmap) == ["negative"]:
        look["cmap"] = visualization.NEGATIVE if cmap is None else cmap
    weights = _mixed(e.weights.expand(len(first), -1)[..., None, None] for e in several)
    dimmed = [[w * m for w, m in zip(weights, maps, strict=True)] for maps in heatmap.values()]
    upper, lower = (*dimmed, None, None)[:2]
    if first.text_maps:
        return visualization.sentences(
            images, first.text_maps, scores=scores, heatmap=upper, **look
        )
    return visualization.overlay(
        images,
        upper or [],
        negative=lower,
        names=titles(first),
        scores=scores if has_cosines else None,
        notes=_mixed(e.notes for e in several),
        **look,
    )


def _mixed(members: Iterable[Iterable[Any]]) -> list[Any]:
    """What the models have for each image, image by image."""
    return [*chain.from_iterable(zip(*members, strict=True))]


def _draw_matches(explanation: Any) -> Figure:
    shares = explanation.maps.get("positive", explanation.maps.get("negative"))
    return visualization.matches(
        explanation.images,
        [explanation.reference] * len(explanation),
        shares[:, 1:].reshape(len(explanation), *explanation.cells, *shares.shape[-2:]),
        scores=explanation.scores[:, 0],
        caption=caption(explanation),
    )


def _draw_contrast(
    texts: Sequence[str], images: Any, heatmap: Mapping[str, Any], differences: Any, **look: Any
) -> Figure:
    """Both signs of a difference of two texts in one map, with the difference of the cosines."""
    alpha, labels = look.pop("alpha"), look.pop("labels", [""] * len(differences))
    check_interval("alpha", alpha, "[0, 1]")
    pictures, (above, below) = framed_batches(images, list(heatmap.values()))
    text, other = texts
    rows, title = [], f"{text} rather than {other}"
    for image, up, down, by, label in zip(pictures, above, below, differences, labels, strict=True):
        drawn = blend_signed(image, up[0] - down[0], alpha)
        lead = Panel(image, "image", label=label)
        rows.append([lead, Panel(drawn, title, f"cosines differ by {signed_number(by)}")])
    bars = {f"for {text}": POSITIVE, f"for {other}": NEGATIVE}
    legends = [Legend(ramp(colors, alpha), label) for label, colors in bars.items()]
    return grid(rows, legends=legends, **look)


def titles(explanation: Any) -> list[str]:
    """The names of an `Explanation`, those of classes with their probabilities."""
    names, probabilities = explanation.names, explanation.probabilities
    if probabilities is None:
        return list(names)
    among = " among the named" * explanation.calibration.startswith("shares")
    # 0.0% would read as impossible, and a softmax never says so
    shares = ("below 0.1%" if p < 0.001 else f"{p:.1%}" for p in probabilities[0].tolist())
    return [f"{name}: {share}{among}" for name, share in zip(names, shares, strict=True)]


def caption(explanation: Any) -> str:
    """Model, method and scale of an `Explanation`, then its hints."""
    lines = [explanation.model, explanation.method]
    lines += ["all words on one scale"] * (explanation.leave_one_out is not None)
    lines += [explanation.calibration] * bool(explanation.calibration)
    lines += ["negative evidence"] * (list(explanation.maps) == ["negative"])
    count = len(explanation.hints)
    lines += [f"hints for {sum(map(bool, explanation.hints))} of {count} images"] * (count > ROWS)
    for number, sentences in enumerate(explanation.hints if count <= ROWS else (), 1):
        which = f"image {number}: " if count > 1 else ""
        lines += [which + sentence for sentence in sentences]
    return " \N{MIDDLE DOT} ".join(lines)
