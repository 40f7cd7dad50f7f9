"""How figures look, set for all that draws in a thread. It loads no torch, as checks do not."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args

from .checks import Mode, check_choice, check_flag, check_interval, expect, expecting, is_number
from .errors import InputError, argument, assigned

_Drawing = TypeVar("_Drawing", bound=Callable[..., Any])
_UNITS: Final = {"in": 1, "pt": 72.27, "cm": 2.54, "mm": 25.4}
_WIDTH: Final = "a width in inches, or as in 246pt or 8.6cm"
_SCALES: Final = "a scale of own, shared or a number above zero"
_TAKEN: Final = {".html": ["cmap", "alpha", "interpolation"], ".npz": [], ".npy": []}
"""What files that are no figure have of a look."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How figures look: keywords of all that draws, and options of the command line.

    matplotlib's rcParams give the font, the colors of the text and of the page, and the size of
    the text where no `font_size` does: names have .8 of ``font.size``.

    Attributes:
        cmap: color map, by name or as it is; by default inferno, blue for negative evidence alone,
            and orange and blue where both signs are drawn. One map of both signs takes the upper
            half of a `cmap` for the positive and the lower for the negative values.
        alpha: opacity where a map is 1; where it is 0 the image shows through.
        interpolation: between the cells of a map: "bicubic", kept within the map's range,
            "bilinear", or "nearest", which shows the cells as they are.
        scale: "own" stretches each map from its least to its largest value. "shared" draws zero as
            0 and the largest value of all maps of a model as 1, so that images and texts can be
            compared. A number is the value that is drawn as 1, so that figures can be compared.
        vector: draw maps as filled contours, which stay sharp in PDF and SVG.
        width: of the figure, in inches or with its unit: "246pt" (72.27 an inch, as TeX prints
            its column width), "8.6cm", "86mm".
        font_size: of the names in points; scores and caption are an eighth smaller.
        titles: whether names, scores and the caption are written.
        colorbar: whether bars of colors stand below.
        dpi: pixels an inch, such as 300 for print; by default sized for a screen.
        transparent: whether the page has no color, in PNG, PDF and SVG.
    """

    cmap: Any = field(default=None, metadata={"typed": str | None})
    alpha: float = 0.9
    interpolation: Mode = "bicubic"
    scale: Any = field(default="own", metadata={"typed": str})
    vector: bool = False
    width: Any = field(default=None, metadata={"typed": str | None})
    font_size: float | None = None
    titles: bool = True
    colorbar: bool = True
    dpi: float | None = None
    transparent: bool = False

    def __post_init__(self) -> None:
        check_interval("alpha", self.alpha, "[0, 1]")
        check_choice(self.interpolation, get_args(Mode), name="a mode")
        for name in ("vector", "titles", "colorbar", "transparent"):
            check_flag(name, getattr(self, name))
        # with fewer pixels no letter has one
        for name, value, least in (("font_size", self.font_size, 1), ("dpi", self.dpi, 10)):
            if value is not None:
                check_interval(name, value, f"[{least}, inf)")
        expect(self.inches is None or 0 < self.inches < inf, _WIDTH, self.width)
        expect(self.top is None or 0 < self.top < inf, _SCALES, self.scale)

    @property
    def inches(self) -> float | None:
        """The width of the figure."""
        if self.width is None or is_number(self.width):
            return self.width
        with expecting(_WIDTH, self.width):
            number, unit = self.width[:-2], self.width[-2:]
            return float(number) / _UNITS[unit] if unit in _UNITS else float(self.width)

    @property
    def top(self) -> float | None:
        """The value that is drawn as 1; None where it follows from the maps."""
        with expecting(_SCALES, self.scale):
            return None if str(self.scale) in ("own", "shared") else float(self.scale)

    def changed(self) -> list[str]:
        """The fields that are not at their default."""
        names = (entry.name for entry in fields(Look))
        return [name for name in names if repr(getattr(self, name)) != repr(getattr(Look, name))]

    def check_file(self, path: Path) -> None:
        """Raise InputError where a file that is no figure has not all of this."""
        taken = _TAKEN.get(path.suffix, self.changed())
        if names := [name for name in self.changed() if name not in taken]:
            listed = ", ".join(map(argument, names))
            raise InputError(f"{path.name} takes no {listed}; leave it out, or write a .png.")


current_look: Final = ContextVar("look", default=Look())
"""How what is drawn in this thread looks."""


def draws(function: _Drawing) -> _Drawing:
    """Decorate what draws: it takes the fields of :class:`Look` as keywords, and draws in it."""
    parameters = [p for p in signature(function).parameters.values() if p.name != "_"]
    own = {parameter.name for parameter in parameters}
    looks = {entry.name: entry.default for entry in fields(Look) if entry.name not in own}
    names = [p.name for p in parameters if p.name != "self"] + [*looks]

    @wraps(function)
    def draw(*args: Any, **options: Any) -> Any:
        for name in options.keys() - {*names}:
            raise InputError(f"expected {', '.join(names)}, got {name!r}.")
        chosen = {name: options.pop(name) for name in looks if name in options}
        with assigned(current_look, replace(current_look.get(), **chosen)):
            return function(*args, **options)

    parameters += [Parameter(n, Parameter.KEYWORD_ONLY, default=d) for n, d in looks.items()]
    draw.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return cast("_Drawing", draw)
