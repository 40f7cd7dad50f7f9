"""Options that several commands share, each once, and checks of what they are given.

Options that always go together are one decorator. The function below it takes them as one object:
`loading` for how models are loaded, `computing` for work over many images. Those of
:func:`drawing_options` set how figures look while the function runs.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, get_args

import click

from ..checks import Mode, check_choice, find_file, limit_pixels, suggestion
from ..errors import InputError, argument, assigned
from ..explaining.request import Request
from ..files import read_lines
from ..look import Look, current_look
from .application import PATH, Range, option

_Function = Callable[..., None]
_Decorator = Callable[[_Function], _Function]
DEFAULT_MODEL: Final[str] = Request.model
VIT_METHODS: Final = (
    "attention-grad-cam",
    "rollout",
    "all-grad",
    "last-grad",
    "direct",
    "conservative",
    "removal",
    "legrad",
    "grad-eclip",
    "patches",
)
"""What --help lists, and what is refused before the registry is asked, which loads torch."""
RESNET_METHODS: Final = ("grad-cam", "direct", "removal")
PROBE: Final = (
    "a probe made by 'captum-clip emotions fit', or that of an embedded model, such as demo/vit"
)
"""The help of options for a file of emotions."""
_MODEL: Final = "Model and images"
_COMPUTING: Final = "Computing"
_PICTURE: Final = "Picture"

processor_option: Final = option(
    "--processor",
    metavar="NAME",
    section=_MODEL,
    help="a model whose image processor to use, for a checkpoint without one",
)
tokenizer_option: Final = option(
    "--tokenizer",
    metavar="NAME",
    section=_MODEL,
    help="a model whose tokenizer to use, for a checkpoint without one",
)
image_size_option: Final = option(
    "--image-size",
    type=int,
    metavar="N",
    section=_MODEL,
    help="the side of the model's images in pixels, larger for finer maps (default: its own)",
)
max_pixels_option: Final = option(
    "--max-pixels",
    type=Range(int, 1),
    metavar="N",
    section=_MODEL,
    help="pixels that an image file may have, since a small file may unpack to gigabytes "
    "(default: 89 million)",
)
device_option: Final = option(
    "--device",
    metavar="NAME",
    section=_MODEL,
    help="the device, such as cpu or cuda (default: CUDA if available)",
)
quiet_option: Final = option(
    "--quiet",
    is_flag=True,
    help="hide progress: the bars in a terminal, the lines in a file",
)
read_ahead_option: Final = option(
    "--workers",
    type=Range(int, 0),
    default=0,
    metavar="N",
    help="images read ahead at a time",
)


def model_option(
    help: str = "as in 'explain'", *, default: str | None = DEFAULT_MODEL, required: bool = False
) -> _Decorator:
    """``--model`` of a command that takes one."""
    declared: _Decorator = option(
        "--model",
        "-m",
        multiple=True,
        callback=_only_model,
        default=None if default is None else [default],
        required=required,
        metavar="NAME",
        help=help,
    )
    return declared


def _only_model(context: click.Context, _: click.Parameter, names: Sequence[str]) -> str | None:
    """Refuse a second model, of which click would silently take the last."""
    if len(names) > 1:
        raise InputError(
            f"{context.command.name} takes one --model, got {len(names)}; run each by itself."
        )
    return names[0] if names else None


def texts_file_option(
    help: str = "a file with more texts to look for, one per line", *, section: str = "Options"
) -> _Decorator:
    """``--texts`` with a file, where the texts themselves are arguments."""
    declared: _Decorator = option(
        "--texts", "texts_file", type=PATH, metavar="FILE", section=section, help=help
    )
    return declared


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How models are loaded; the defaults hold for the options that a command does not have."""

    processor: str | None = None
    tokenizer: str | None = None
    device: str | None = None
    image_size: int | None = None
    quiet: bool = False


def loading_options(function: _Function) -> _Function:
    """Declare how models are loaded; the function takes it as `loading`.

    No image is read beyond --max-pixels while the function runs.
    """

    @processor_option
    @tokenizer_option
    @device_option
    @max_pixels_option
    @quiet_option
    @wraps(function)
    def run(
        *,
        processor: str | None,
        tokenizer: str | None,
        device: str | None,
        max_pixels: int | None,
        quiet: bool,
        **others: Any,
    ) -> None:
        loading = Loading(processor=processor, tokenizer=tokenizer, device=device, quiet=quiet)
        with limit_pixels(max_pixels):
            function(loading=loading, **others)

    return run


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How work over many images is done."""

    loading: Loading
    batch_size: int
    workers: int | None
    engine: str
    gpus: int | None
    threads: int | None

    def settings(self) -> dict[str, Any]:
        """Return the settings of :class:`captum_clip.folders.workers.RunConfig` that were given."""
        return given(
            batch_size=self.batch_size,
            workers=self.workers,
            engine=self.engine,
            gpus=self._count_gpus(),
            threads=self.threads,
            processor=self.loading.processor,
            tokenizer=self.loading.tokenizer,
            image_size=self.loading.image_size,
        )

    def _count_gpus(self) -> int:
        from ..models.loading import choose_device

        if self.gpus is not None:
            return self.gpus
        device = self.loading.device
        if ":" in (device or ""):
            raise InputError(f"--device {device}: expected cpu or cuda, without a number.")
        return int(choose_device(device).type == "cuda")


def given(**settings: Any) -> dict[str, Any]:
    """Leave out the settings that a line does not name, so that a dataclass keeps its defaults."""
    return {
        name: value
        for name, value in settings.items()
        # Zero is a value: `workers=0` reads nothing ahead.
        if value is not None and value is not False and value != ()
    }


def computing_options(
    *,
    batch_size: int = 32,
    workers: str = "batches read ahead (local, default 2), or Ray processes (default 1)",
) -> _Decorator:
    """Declare how work over many images is done; the function takes it as `computing`.

    Args:
        batch_size: the default.
        workers: the help of --workers.
    """

    def decorate(function: _Function) -> _Function:
        @option(
            "--batch-size",
            type=int,
            default=batch_size,
            metavar="N",
            section=_COMPUTING,
            help="images per forward pass",
        )
        @option("--workers", type=int, metavar="N", section=_COMPUTING, help=workers)
        @option(
            "--engine",
            type=click.Choice(("local", "ray")),
            default="local",
            section=_COMPUTING,
            help="this machine, or Ray: several processes or a cluster",
        )
        @option(
            "--gpus",
            type=int,
            metavar="N",
            section=_COMPUTING,
            help="GPUs that the workers share; 0 is the CPU (default: by --device)",
        )
        @option(
            "--threads",
            type=int,
            metavar="N",
            section=_COMPUTING,
            help="the number of threads of each computing process",
        )
        @image_size_option
        @loading_options
        @wraps(function)
        def run(
            *,
            loading: Loading,
            image_size: int | None,
            batch_size: int,
            workers: int | None,
            engine: str,
            gpus: int | None,
            threads: int | None,
            **others: Any,
        ) -> None:
            computing = Computing(
                loading=replace(loading, image_size=image_size),
                batch_size=batch_size,
                workers=workers,
                engine=engine,
                gpus=gpus,
                threads=threads,
            )
            function(computing=computing, **others)

        return run

    return decorate


def drawing_options(function: _Function) -> _Function:
    """Declare how figures look, which holds while the function runs."""

    @option(
        "--colormap",
        "cmap",
        metavar="NAME",
        section=_PICTURE,
        help="a matplotlib color map, such as viridis (default: inferno; orange and blue for both "
        "signs, of which another color map gives its two halves)",
    )
    @option(
        "--alpha",
        type=float,
        default=Look.alpha,
        metavar="SHARE",
        section=_PICTURE,
        help="opacity of the maps where they are 1, in [0, 1]",
    )
    @option(
        "--interpolation",
        type=click.Choice(get_args(Mode)),
        default=Look.interpolation,
        section=_PICTURE,
        help="between the cells of a map; nearest shows the cells",
    )
    @option(
        "--scale",
        default=Look.scale,
        metavar="SCALE",
        section=_PICTURE,
        help="own: each map from its lowest to its highest value; shared: the highest value of "
        "all maps in the figure is 1; or the value that is 1, to compare figures",
    )
    @option(
        "--vector",
        is_flag=True,
        section=_PICTURE,
        help="draw the maps as filled contours, which stay sharp in PDF and SVG",
    )
    @option(
        "--width",
        metavar="WIDTH",
        section=_PICTURE,
        help="the width of the figure in inches, or with a unit, as in 246pt or 8.6cm "
        "(default: two inches per image)",
    )
    @option(
        "--font-size",
        type=float,
        metavar="POINTS",
        section=_PICTURE,
        help="the size of the names in points (default: 8, or by matplotlib's settings)",
    )
    @option(
        "--titles/--no-titles",
        default=Look.titles,
        section=_PICTURE,
        help="write names, scores and the caption",
    )
    @option(
        "--colorbar/--no-colorbar",
        default=Look.colorbar,
        section=_PICTURE,
        help="draw the bars of colors",
    )
    @option(
        "--transparent",
        is_flag=True,
        section=_PICTURE,
        help="leave the background of a PNG, PDF or SVG transparent",
    )
    @option(
        "--dpi",
        type=float,
        metavar="N",
        section=_PICTURE,
        help="pixels per inch of the figures, such as 300 for print (default: sized for a screen)",
    )
    @wraps(function)
    def run(
        *,
        cmap: str | None,
        alpha: float,
        interpolation: Mode,
        scale: str,
        vector: bool,
        width: str | None,
        font_size: float | None,
        titles: bool,
        colorbar: bool,
        transparent: bool,
        dpi: float | None,
        **others: Any,
    ) -> None:
        # An unknown color map is refused before any work; the figure would find it after the maps.
        if cmap:
            from ..visualization.colors import colormap  # loads matplotlib

            colormap(cmap)
        look = Look(
            cmap=cmap,
            alpha=alpha,
            interpolation=interpolation,
            scale=scale,
            vector=vector,
            width=width,
            font_size=font_size,
            titles=titles,
            colorbar=colorbar,
            dpi=dpi,
            transparent=transparent,
        )
        with assigned(current_look, look):
            function(**others)

    return run


def list_methods() -> dict[str, Iterable[str]]:
    """List the methods for --help without the registry, which loads torch."""
    lists: dict[str, Iterable[str]] = {
        "methods for ViTs": (*VIT_METHODS, "layer:index=-1"),
        "methods for ResNets": RESNET_METHODS,
        "methods for both": ("classes of pytorch-grad-cam as cam:variant=LayerCAM",),
    }
    others = entry_points(group="captum_clip.methods").names
    if others:
        lists["methods of other packages"] = sorted(others)
    return lists


def check_method_name(name: str | None) -> None:
    """Refuse a method that nobody has registered, before the registry loads torch."""
    if name is None or "captum_clip.attr.registry" in sys.modules:
        # A program may have registered methods of its own, which the registry alone knows.
        return
    registered = ("grad-cam", *VIT_METHODS, "layer", "cam")  # in the registry's order
    others = entry_points(group="captum_clip.methods").names
    # A class may be named too; dir() lists the lazy names and loads none.
    classes = dir(sys.modules["captum_clip"])
    known = (*registered, *others, "mamooler", *classes)
    stem = name.partition(":")[0]
    if stem not in known:
        raise InputError(
            f"{argument('method')}: expected one of {', '.join(registered)}, with options as in "
            "last-grad:heads=averaged, or a class of captum_clip.attr; got "
            f"{name!r}{suggestion(stem, known)}."
        )


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list; InputError if one is empty."""
    listed = list(texts)
    for text in listed:
        if not text.strip():
            raise InputError(f"the text {text!r} is empty; name what to look for.")
    return listed


def read_texts(file: Path | None) -> list[str]:
    """Return the texts of a file, one per line; none without a file."""
    if file is None:
        return []
    texts = read_lines(find_file(file))
    if not texts:
        raise InputError(f"{file} holds no text; write one per line.")
    return texts


def check_emotions(names: Iterable[str]) -> None:
    """Raise InputError unless each name is an emotion."""
    from ..demo.catalog import CLASSES

    for name in names:
        check_choice(name, CLASSES, name="an emotion")
