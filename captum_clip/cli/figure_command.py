"""``captum-clip figure``: Mamooler's figures, and attention heads, on the user's own images."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from typer import Argument, Context, Option

from ..checks import check_choice, check_destination, check_outputs, expand
from ..errors import InputError, refuse
from . import options
from .options import app, command
from .shared import (
    Line,
    draw_folder,
    figure_name,
    load_model,
    read_image,
    read_line,
    read_probes,
    step,
)

_SINGLE: Final = ("layers", "heads")  # of one image and one model
_OTHERS: Final = (
    *("context", "figure", "words", "texts_file", "scene", "model", "processor"),
    *("tokenizer", "device", "output", "dpi", "quiet"),
)
"""Options that are no keywords of the functions of :mod:`captum_clip.figures`."""


def _check_colormap(name: str | None) -> str | None:
    if name not in (None, "mask"):
        from ..visualization.colors import colormap

        colormap(name)
    return name


@command(app, "figure", 'layers photo.jpg "a horse" -o layers.png', lists=options.methods)
def figure_command(
    context: Context,
    figure: Literal["layers", "compare", "average", "signs", "emotions", "words", "heads"],
    words: Annotated[options.Several, Argument(metavar="[IMAGE]... [TEXT]...")] = None,
    scene: options.Several = None,
    references: Annotated[options.Several, Option("--image")] = None,
    model: options.Models = None,
    methods: options.Methods = None,
    texts_file: options.TextsFile = None,
    probes: Annotated[list[Path] | None, Option("--emotions")] = None,
    centre: options.Centre = False,
    names: Annotated[options.Several, Option("--target")] = None,
    rows: Literal["cls", "sum"] | None = None,
    count: Annotated[int | None, Option(min=1)] = None,
    sign: options.Sign | None = None,
    scale: Literal["each", "shared", "norm"] | None = None,
    cmap: Annotated[str | None, Option("--colormap", callback=_check_colormap)] = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    output: options.Output = None,
    dpi: options.Dpi = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw one of Mamooler's figures on your own images, or the heads behind a score.

    Args:
        figure: layers: the attention of every layer and the gradient with respect to it (Figures 2,
            3); compare: a column for each method (4, 5); average: the mean maps of studies (6, 12);
            signs: what supports each target and what contradicts it (7 to 10); emotions: a column
            for each (11); words: a column for each word of a text (13); heads: the attention heads
            that add most to the score
        words: image files, or a folder whose images each get a figure; then what to look for; for
            average, the output folders of 'captum-clip study'
        scene: SEED or SEED:THING,THING, a scene drawn for the embedded models, in place of an
            IMAGE; then demo/vit is the default of --model
        probes: for the figure emotions, a probe for each model, as in 'explain'
        references: an image to look for instead of a text
        names: an emotion to show, or for average a target of the studies (default: all)
        rows: for layers, the row of the CLS token or the sum of all rows (default: cls)
        count: the most heads to show (default: 8)
        sign: for heads, those that add most, that subtract most, or both (default: positive)
        scale: of the colours: each map its own; shared by maps that can be compared (default for
            signs); or norm, words dimmed by how much they matter (default for words)
        cmap: a colour map of matplotlib, such as viridis or jet (Mamooler's, which is not
            perceptually uniform); for layers also mask, the image multiplied by each map
        output: a .png, .jpg, .pdf or .svg figure; for a folder of images a folder of figures
            (default: IMAGE-FIGURE-TEXT.png, or FOLDER-FIGURE, in the current folder)
    """
    settings = options.given(locals(), *_OTHERS)
    from .. import figures
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS

    draw: Any = getattr(figures, figure)
    for option in context.command.params:
        if option.name in settings and option.name not in inspect.signature(draw).parameters:
            raise InputError(f"figure {figure} has no option {option.opts[0]}.")
    if scale:
        check_choice(scale, get_args(get_type_hints(draw)["scale"]), name="a scale")
    if figure == "average":
        _draw_average(draw, words or [], output, dpi, settings)
        return
    options.check_emotions(names or [])
    loaded, fitted = read_probes(settings.pop("probes", ()))
    models = model or fitted or ["demo/vit" if scene else options.DEFAULT_MODEL]
    line = read_line(
        [] if words is None else words,
        texts_file,
        output,
        command=f"figure {figure}",
        kind=figure,
        needs_image=False,
        takes_folder=not scene,
    )
    others = [read_image(name) for name in references or ()]
    images = [*line.images, *(_draw_scene(one) for one in scene or ())]
    refuse(_conflicts(figure, line, len(images), [*line.texts, *others], models, loaded))
    named = [*line.texts, *(path.stem for path in others), *(names or ())]
    inputs = [*others, *(probes or ()), texts_file]
    if line.folder is None:
        scenes = [f"scene-{one.partition(':')[0]}" for one in scene or ()]
        stem = [*(path.stem for path in line.images), *scenes][0]
        file = check_destination(output or figure_name(stem, figure, named), FORMATS)
    files = line.folder.files(figure, named) if line.folder else {}
    check_outputs(files.values() if files else [file], [*files, *line.images, *inputs])
    clips = [load_model(name, processor, tokenizer, device, quiet=quiet) for name in models]
    which: dict[str, Any] = {"model": clips[0]} if figure in _SINGLE else {"models": clips}
    targets: Any = loaded or (line.texts[0] if figure == "words" else line.texts)

    def save(image: Any, file: Path) -> None:
        save_figure(draw(image, targets, **which, **settings), file, dpi=dpi)

    if line.folder is not None:
        about = {"figure": figure, **settings, "targets": named, "dpi": dpi}
        about["images"] = line.folder.images.resolve()
        draw_folder(line.folder, files, save, clips, inputs, about, quiet=quiet)
        return
    with step("drawing", quiet=quiet):
        save(images[0] if figure in _SINGLE else images, file)
    print(file)


def _draw_average(
    draw: Any, words: list[str], output: Path | None, dpi: int | None, settings: Any
) -> None:
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS

    if not words:
        raise InputError("figure average needs an output folder of 'captum-clip study'.")
    studies = [expand(study) for study in words]
    file = check_destination(output or f"{studies[0].resolve().name}-average.png", FORMATS)
    print(save_figure(draw(studies, **settings), file, dpi=dpi))


def _conflicts(
    figure: str,
    line: Line,
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
