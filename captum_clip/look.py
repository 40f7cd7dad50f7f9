"""How figures look: one set of options for all figures that are drawn in a thread.

It loads no torch, since the command line checks its options with it.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args

from .checks import Mode, check_choice, check_flag, check_interval, expect, expecting, is_number
from .errors import InputError, argument, assigned

_Drawing = TypeVar("_Drawing", bound=Callable[..., Any])
_UNITS_PER_INCH: Final = {"in": 1, "pt": 72.27, "cm": 2.54, "mm": 25.4}
_EXPECTED_WIDTH: Final = "in inches, or as in 246pt or 8.6cm"
_EXPECTED_SCALE: Final = "of own, shared or a number above zero"
_FIELDS_OF_FILES: Final = {".html": ["cmap", "alpha", "interpolation"], ".npz": [], ".npy": []}
"""The fields of a look that apply to files that are no figures."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How figures look: keywords of all functions that draw, and options of the command line.

    matplotlib's rcParams give the font and the colors of the text and of the page. Without a
    `font_size` they also give the size of the text: names have .8 of ``font.size``.

    Attributes:
        cmap: color map, by name or as an object. By default it is inferno, blue for negative
            evidence alone, and orange and blue if both signs are drawn. One map of both signs takes
            the upper half of a `cmap` for the positive and the lower for the negative values.
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

    cmap: Any = None
    alpha: float = 0.9
    interpolation: Mode = "bicubic"
    scale: Any = "own"
    vector: bool = False
    width: Any = None
    font_size: float | None = None
    titles: bool = True
    colorbar: bool = True
    dpi: float | None = None
    transparent: bool = False

    def __post_init__(self) -> None:
        check_interval(argument("alpha"), self.alpha, "[0, 1]")
        check_choice(self.interpolation, get_args(Mode), name="a mode")
        for name in ("vector", "titles", "colorbar", "transparent"):
            check_flag(name, getattr(self, name))
        if self.font_size is not None:
            check_interval("font_size", self.font_size, "[1, inf)")
        if self.dpi is not None:
            # At fewer pixels an inch, a letter would have less than one.
            check_interval(argument("dpi"), self.dpi, "[10, inf)")
        has_width = self.inches is None or 0 < self.inches < inf
        expect(has_width, f"{argument('width')} {_EXPECTED_WIDTH}", self.width)
        has_scale = self.top is None or 0 < self.top < inf
        expect(has_scale, f"{argument('scale')} {_EXPECTED_SCALE}", self.scale)

    @property
    def inches(self) -> float | None:
        """The width of the figure in inches; None where it follows from the images."""
        if self.width is None or is_number(self.width):
            return self.width
        with expecting(f"{argument('width')} {_EXPECTED_WIDTH}", self.width):
            unit = self.width[-2:]
            if unit in _UNITS_PER_INCH:
                return float(self.width[:-2]) / _UNITS_PER_INCH[unit]
            return float(self.width)

    @property
    def top(self) -> float | None:
        """The value that is drawn as 1; None where it follows from the maps."""
        if str(self.scale) in ("own", "shared"):
            return None
        with expecting(f"{argument('scale')} {_EXPECTED_SCALE}", self.scale):
            return float(self.scale)

    def changed(self) -> list[str]:
        """Return the names of the fields that are not at their default."""
        changed_names = []
        for entry in fields(Look):
            # Color maps and arrays have no plain comparison, but all values have a repr.
            if repr(getattr(self, entry.name)) != repr(entry.default):
                changed_names.append(entry.name)
        return changed_names

    def check_file(self, path: Path) -> None:
        """Raise InputError for a changed field that does not apply to a file of this kind."""
        changed = self.changed()
        # A file of another ending is a figure, to which every field applies.
        applying = _FIELDS_OF_FILES.get(path.suffix, changed)
        refused = [name for name in changed if name not in applying]
        if refused:
            listed = ", ".join(map(argument, refused))
            raise InputError(f"{path.name} takes no {listed}; leave it out, or write a .png.")


current_look: Final = ContextVar("look", default=Look())
"""The look of all that is drawn in this thread."""


def draws(function: _Drawing) -> _Drawing:
    """Decorate a function that draws: it takes the fields of :class:`Look` as keywords.

    The function has a parameter ``**_`` in their place, and reads them from `current_look`.
    """
    parameters = [p for p in signature(function).parameters.values() if p.name != "_"]
    own_names = [parameter.name for parameter in parameters]
    # A parameter of the function's own stands for the field of the same name.
    look_fields = [entry for entry in fields(Look) if entry.name not in own_names]
    look_names = [entry.name for entry in look_fields]
    keywords = [name for name in own_names if name != "self"] + look_names

    @wraps(function)
    def draw(*args: Any, **options: Any) -> Any:
        for name in options.keys() - {*keywords}:
            raise InputError(f"expected {', '.join(keywords)}, got {name!r}.")
        # What remains in `options` are the parameters of the function itself.
        chosen = {name: options.pop(name) for name in look_names if name in options}
        with assigned(current_look, replace(current_look.get(), **chosen)):
            return function(*args, **options)

    # Help and editors show the fields in place of ``**_``.
    for entry in look_fields:
        parameters.append(Parameter(entry.name, Parameter.KEYWORD_ONLY, default=entry.default))
    draw.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return cast("_Drawing", draw)
