"""One picture of how the price grows: a panel for each thing that does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from captum_clip.visualization.colors import FONT, NOTE_COLOR, NOTE_SIZE, TEXT_COLOR, TEXT_SIZE
from captum_clip.visualization.grid import save_figure

from .growth import Point, Sweep
from .jobs import PLAIN

# Okabe and Ito's colors, told apart with any kind of color vision; the marks tell as well.
LOOKS: Final = {
    "AllGradAttention": ("#d55e00", "s"),
    "AttentionRollout": ("#009e73", "D"),
    "LastGradAttention": ("#0072b2", "o"),
    "AttentionGradCam": ("#56b4e9", "^"),
    "ClipGradCam": ("#cc79a7", "v"),
}
APART: Final = 0.065  # of two labels, over the height of a panel


def draw(sweeps: Sequence[Sweep], points: Sequence[Point], batch: int) -> Figure:
    """Small multiples with one scale of forwards."""
    figure = Figure(figsize=(9, 6.4), dpi=150, layout="constrained")
    figure.set_facecolor("white")
    said = (
        "Cost of a map and its score on ViT-B/32 of transformers (ClipGradCam: RN101 of OpenCLIP)"
    )
    figure.suptitle(said, size=TEXT_SIZE + 1, color=TEXT_COLOR, x=0.01, ha="left", family=FONT)
    panels = figure.subplots(2, 2, sharey=True, squeeze=False).flat
    shares = [point.forwards for point in points if point.method != PLAIN]
    low, high = min(0.8, *shares) / 1.15, max(2.0, *shares) * 1.15
    for index, (panel, sweep) in enumerate(zip(panels, sweeps, strict=False)):
        panel.set_yscale("log", base=2)
        panel.set_ylim(low, high)
        chosen = [p for p in points if p.sweep == sweep.name and p.method != PLAIN]
        _panel(panel, sweep, chosen)
        what = "" if sweep.name == "batch" else f", batch {batch}"
        panel.set_title(
            f"By {sweep.label}{what}", size=TEXT_SIZE, color=TEXT_COLOR, loc="left", family=FONT
        )
        if index % 2 == 0:
            panel.set_ylabel("relative to one forward", size=NOTE_SIZE, color=NOTE_COLOR)
    for panel in list(panels)[len(sweeps) :]:
        panel.set_visible(False)
    return figure


def _panel(panel: Any, sweep: Sweep, points: Sequence[Point]) -> None:
    panel.axhline(1, color=NOTE_COLOR, linewidth=0.8, linestyle=(0, (4, 3)))
    if sweep.values[-1] >= 8 * sweep.values[0]:
        panel.set_xscale("log", base=2)
    ends = {}
    for name, (color, mark) in LOOKS.items():
        line = [(point.value, point.forwards) for point in points if point.method == name]
        if line:
            panel.plot(*zip(*line, strict=True), color=color, marker=mark, markersize=4, lw=1.4)
            ends[name] = line[-1]
    panel.xaxis.set_major_locator(FixedLocator(sweep.values))
    panel.xaxis.set_minor_locator(NullLocator())
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.tick_params(labelsize=NOTE_SIZE, colors=NOTE_COLOR, labelleft=True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#cccccc")
    _label(panel, ends, sweep.values[-1])


def _label(panel: Any, ends: dict[str, tuple[int, float]], last: int) -> None:
    """Names at the right of the lines' ends, pushed apart where they would lie on each other."""
    to_axes = panel.transData + panel.transAxes.inverted()
    heights = {name: to_axes.transform(end)[1] for name, end in ends.items() if end[0] == last}
    names = sorted(heights, key=heights.__getitem__)
    places = spread([heights[name] for name in names], APART)
    for name, place in zip(names, places, strict=True):
        panel.text(1.02, place, name, transform=panel.transAxes, **_text(name), va="center")
    for name, end in ends.items():
        if end[0] != last:  # the line stops before the others
            panel.annotate(
                name, end, (6, 0), textcoords="offset points", **_text(name), va="center"
            )


def _text(name: str) -> dict[str, Any]:
    return {"color": LOOKS[name][0], "size": NOTE_SIZE, "family": FONT, "clip_on": False}


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Ascending places, moved as groups so that no two are closer than `apart`."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _low(groups[-1], apart) - _high(groups[-2], apart) < apart:
            last = groups.pop()
            groups[-1] += last
    return [_low(group, apart) + apart * i for group in groups for i in range(len(group))]


def _low(group: list[float], apart: float) -> float:
    return sum(group) / len(group) - apart * (len(group) - 1) / 2


def _high(group: list[float], apart: float) -> float:
    return sum(group) / len(group) + apart * (len(group) - 1) / 2


def save(path: Path, sweeps: Sequence[Sweep], points: Sequence[Point], batch: int) -> None:
    """Draw, write, and say where."""
    save_figure(draw(sweeps, points, batch), path)
    print(f"\nwritten: {path}")
