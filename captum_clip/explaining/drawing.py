"""An explanation as a figure."""

from collections.abc import Mapping
from typing import Any

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .. import visualization
from ..checks import check_interval
from ..errors import InputError
from ..maps import Mode
from ..visualization.colors import ALPHA, NEGATIVE, POSITIVE, blend_signed, ramp
from ..visualization.grid import ROWS, Legend, Panel, grid
from ..visualization.overlays import framed_batches
from . import photos


def draw(
    found: Any, cmap: str | Colormap | None, alpha: float, interpolation: Mode, original: Any
) -> Figure:
    """Draw an `Explanation`; the arguments and errors are those of its method ``plot``."""
    if found.reference is not None:
        plain = cmap is None and alpha == ALPHA and interpolation == "bicubic"
        if not plain or not (original is None or original is False):
            raise InputError(
                "each match of two images has a colour of its own, on what the model "
                "saw; leave cmap, alpha, interpolation and original out."
            )
        return _draw_matches(found)
    images: Any = found.images
    heatmap: Mapping[str, Any] = found.heatmap(interpolation=interpolation)
    if original is None:
        original = bool(found.photos) and not all(crop.is_whole for crop in found.crops)
    if original is not False:
        given = photos.originals(found, original)
        images, heatmap = photos.lay_on_photos(given, found.crops, found.maps, interpolation)
    shown: dict[str, Any] = {"alpha": alpha, "caption": caption(found)}
    if found.contrast and len(heatmap) == 2 and cmap is None:
        return _draw_contrast(found, images, heatmap, **shown)
    of_parts = found.words or found.cells != (0, 0)  # which have no cosines
    if not of_parts and not found.text_maps and len(heatmap) == 2:
        shown |= {} if cmap is None else {"cmaps": (cmap, cmap)}
        return visualization.signs(
            images, **heatmap, names=titles(found), scores=found.scores, **shown
        )
    if cmap is not None or list(heatmap) == ["negative"]:
        shown["cmap"] = visualization.NEGATIVE if cmap is None else cmap
    first, second = (*heatmap.values(), None, None)[:2]
    if found.text_maps:
        return visualization.sentences(
            images, found.text_maps, scores=found.scores, heatmap=first, **shown
        )
    weights = found.weights.expand(len(found), -1)[..., None, None]
    dimmed = [
        None if m is None else [w * values for w, values in zip(weights, m, strict=True)]
        for m in (first, second)
    ]
    return visualization.overlay(
        images,
        dimmed[0] or [],
        negative=dimmed[1],
        names=titles(found),
        scores=None if of_parts else found.scores,
        notes=found.notes,
        **shown,
    )


def _draw_matches(found: Any) -> Figure:
    shares = found.maps.get("positive", found.maps.get("negative"))
    return visualization.matches(
        found.images,
        [found.reference] * len(found),
        shares[:, 1:].reshape(len(found), *found.cells, *shares.shape[-2:]),
        scores=found.scores[:, 0],
        caption=caption(found),
    )


def _draw_contrast(
    found: Any, images: Any, heatmap: Mapping[str, Any], *, alpha: float, caption: str
) -> Figure:
    """Both signs of a difference of two texts in one map, with the difference of the cosines."""
    check_interval("alpha", alpha, "[0, 1]")
    pictures, (above, below) = framed_batches(images, list(heatmap.values()))
    one, other = found.contrast
    rows = []
    differences = (found.scores * found.norms)[:, 0].tolist()
    for image, up, down, by in zip(pictures, above, below, differences, strict=True):
        note = f"cosines differ by {by:+.3f}".replace("-", "\N{MINUS SIGN}")
        drawn = blend_signed(image, up[0] - down[0], alpha)
        rows.append([Panel(image, "image"), Panel(drawn, f"{one} rather than {other}", note)])
    bars = {f"for {one}": POSITIVE, f"for {other}": NEGATIVE}
    legends = [Legend(ramp(colors, alpha), label) for label, colors in bars.items()]
    return grid(rows, legends=legends, caption=caption)


def titles(found: Any) -> list[str]:
    """The names of an `Explanation`, those of classes with their probabilities."""
    if found.probabilities is None:
        return list(found.names)
    shares = ("below 0.1%" if p < 0.001 else f"{p:.1%}" for p in found.probabilities[0].tolist())
    return [f"{name}: {share}" for name, share in zip(found.names, shares, strict=True)]


def caption(found: Any) -> str:
    """Model, method and scale of an `Explanation`, then its hints."""
    said = f"{found.model} \N{MIDDLE DOT} {found.method}"
    if found.leave_one_out is not None:
        said += " \N{MIDDLE DOT} all words on one scale"
    if found.calibration:
        said += f" \N{MIDDLE DOT} {found.calibration}"
    if list(found.maps) == ["negative"]:
        said += " \N{MIDDLE DOT} negative evidence"
    if len(found.hints) > ROWS:
        doubted = sum(map(bool, found.hints))
        return f"{said} \N{MIDDLE DOT} hints for {doubted} of {len(found.hints)} images"
    for number, sentences in enumerate(found.hints, 1):
        which = f"image {number}: " if len(found.hints) > 1 and sentences else ""
        said += "".join(f" \N{MIDDLE DOT} {which}{sentence}" for sentence in sentences)
    return said
