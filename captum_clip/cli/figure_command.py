"""``captum-clip figure``: the report's figures, and attention heads, on the user's own images."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from typer import Argument, Option

from ..checks import check_choice, check_destination, check_outputs, expand
from ..errors import InputError, argument, refuse
from ..explaining.request import Sign
from . import shared
from .options import DEFAULT_MODEL, Drawing, Loading, app, check_emotions, command, methods

_SINGLE: Final = ("layers", "heads")  # of one image and one model
_KEYWORDS: Final = (
    *("references", "methods", "probes", "center", "names", "rows", "count", "sign"),
    *("scale", "cmap"),
)
"""Options that are keywords of functions of :mod:`captum_clip.figures`."""


@dataclass(frozen=True, kw_only=True)
class Figure(Loading, Drawing):
    """Which figure is drawn, of what, and how it looks."""

    figure: Literal["layers", "compare", "average", "signs", "emotions", "words", "heads"]
    words: Annotated[list[str] | None, Argument(metavar="[IMAGE]... [TEXT]...")] = None
    scene: list[str] | None = None
    references: list[str] | None = None
    model: list[str] | None = None
    methods: list[str] | None = None
    probes: list[Path] | None = None
    names: list[str] | None = None
    rows: Literal["cls", "sum"] | None = None
    count: Annotated[int | None, Option(min=1)] = None
    sign: Sign | None = None
    scale: Literal["each", "shared", "norm"] | None = None
    cmap: str | None = None
    output: Path | None = None


@command(app, "figure", 'layers photo.jpg "a horse" -o layers.png', lists=methods)
def figure_command(typed: Figure) -> None:
    """Draw a figure of the report on your own images, or the heads behind a score."""
    from .. import figures
    from ..emotions import EmotionProbe
    from ..visualization import save_figure
    from ..visualization.colors import colormap
    from ..visualization.grid import FORMATS

    figure, output, texts_file = typed.figure, typed.output, typed.texts_file
    draw: Any = getattr(figures, figure)
    values = {name: getattr(typed, name) for name in _KEYWORDS}
    settings = {name: value for name, value in values.items() if value}
    for name in settings:
        if name not in inspect.signature(draw).parameters:
            raise InputError(f"figure {figure} has no option {argument(name)}.")
    if typed.scale:
        check_choice(typed.scale, get_args(get_type_hints(draw)["scale"]), name="a scale")
    if typed.cmap not in (None, "mask"):
        colormap(typed.cmap)
    shared.check_methods(typed.methods or ())
    if figure == "average":
        _draw_average(draw, typed, settings)
        return
    check_emotions(typed.names or ())
    loaded = [*map(EmotionProbe.load, settings.pop("probes", ()))]
    models = typed.model or shared.fitted_on(*typed.probes or ())
    models = models or ["demo/vit" if typed.scene else DEFAULT_MODEL]
    line = shared.read_line(
        typed,
        typed.words or [],
        command=f"figure {figure}",
        kind=figure,
        takes_folder=not typed.scene,
    )
    others = [shared.read_image(name) for name in typed.references or ()]
    images = [*line.images, *(_draw_scene(scene) for scene in typed.scene or ())]
    refuse(_conflicts(figure, line, len(images), [*line.texts, *others], models, loaded))
    named = [*line.texts, *(path.stem for path in others), *(typed.names or ())]
    inputs = [*others, *(typed.probes or ()), texts_file]
    if line.folder is None:
        scenes = [f"scene-{scene.partition(':')[0]}" for scene in typed.scene or ()]
        stem = [*(path.stem for path in line.images), *scenes][0]
        file = check_destination(output or shared.figure_name(stem, figure, named), FORMATS)
    files = line.folder.files(figure, named) if line.folder else {}
    check_outputs(files.values() if files else [file], [*files, *line.images, *inputs])
    clips = [shared.load_model(typed, name) for name in models]
    which: dict[str, Any] = {"model": clips[0]} if figure in _SINGLE else {"models": clips}
    targets: Any = loaded or (line.texts[0] if figure == "words" else line.texts)

    def save(image: Any, file: Path) -> None:
        save_figure(draw(image, targets, **which, **settings), file, dpi=typed.dpi)

    if line.folder is not None:
        about = {"figure": figure, **settings, "targets": named, "dpi": typed.dpi}
        about["images"] = line.folder.images.resolve()
        shared.draw_folder(line.folder, files, save, clips, inputs, about, quiet=typed.quiet)
        return
    with shared.step("drawing", quiet=typed.quiet):
        save(images[0] if figure in _SINGLE else images, file)
    print(file)


def _draw_average(draw: Any, typed: Figure, settings: Any) -> None:
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS

    if not typed.words:
        raise InputError("figure average needs an output folder of 'captum-clip study'.")
    studies = [expand(study) for study in typed.words]
    file = check_destination(typed.output or f"{studies[0].resolve().name}-average.png", FORMATS)
    print(save_figure(draw(studies, **settings), file, dpi=typed.dpi))


def _conflicts(
    figure: str,
    line: shared.Line,
    images: int,
    targets: Sequence[Any],
    models: Sequence[str],
    probes: Sequence[Any],
) -> Iterator[tuple[object, str]]:
    """What does not go together on a line."""
    images = 1 if line.folder else images
    yield not images, "expected an IMAGE, or --scene SEED, got neither."
    yield (
        figure in _SINGLE and images + len(models) > 2,
        f"figure {figure} takes one image and one model, got {images} and {len(models)}.",
    )
    if figure == "emotions":
        yield line.texts, f"figure emotions takes no texts, got {line.texts[:1]}."
        yield (
            len(probes) != len(models),
            f"expected an --emotions FILE for each of the {len(models)} models "
            f"({', '.join(models)}), in the same order, got {len(probes)}.",
        )
    else:
        yield not targets, f"figure {figure} needs a target: a TEXT, or --image FILE."
        yield (
            len(targets) > 1 and figure in ("words", "heads"),
            f"figure {figure} takes one target, got {len(targets)}.",
        )


def _draw_scene(text: str) -> Any:
    """Draw an image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo.scenes import draw_scene

    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
