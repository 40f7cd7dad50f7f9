"""``captum-clip figure``: Mamooler's figures, and attention heads, on the user's own images."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from typer import Argument, Context, Option

from ..checks import check_choice, check_destination, check_outputs, expand
from ..errors import InputError
from . import options
from .options import app, command
from .shared import (
    check_folder,
    draw_folder,
    figure_name,
    load_model,
    name_figures,
    read_image,
    read_probes,
    split_words,
    step,
)

_SINGLE: Final = ("layers", "heads")  # of one image and one model
_OTHERS: Final = (
    *(
        "context",
        "figure",
        "words",
        "texts_file",
        "scene",
        "model",
        "processor",
        "tokenizer",
        "device",
    ),
    *("output", "quiet"),
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
        scales = get_args(get_type_hints(draw)["scale"])
        check_choice(f"figure {figure}", scale, scales, name="a scale")
    words = words or []
    if figure == "average":
        if not words:
            raise InputError("figure average needs an output folder of 'captum-clip study'.")
        studies = [expand(study) for study in words]
        default = f"{studies[0].resolve().name}-average.png"
        file = check_destination(output or default, FORMATS)
        print(save_figure(draw(studies, **settings), file))
        return
    options.check_emotions(names or [])
    loaded, fitted = read_probes(settings.pop("probes", ()))
    models = model or fitted or ["demo/vit" if scene else options.DEFAULT_MODEL]
    folder = check_folder(words[0], output, figure) if words and not scene else None
    words = words[1:] if folder else words
    paths, texts = split_words(words, f"figure {figure}", image_first=False)
    texts += options.read_texts(texts_file)
    if folder and paths:
        raise InputError(f"{paths[0]} is an image; figure {figure} takes one folder, then texts.")
    images = [*paths, *(_draw_scene(one) for one in scene or ())]
    seen = [read_image(name) for name in references or ()]
    shown, looked_for = 1 if folder else len(images), len(texts) + len(seen)
    if not shown:
        raise InputError("expected an IMAGE, or --scene SEED, got neither.")
    if figure in _SINGLE and shown + len(models) > 2:
        raise InputError(
            f"figure {figure} takes one image and one model, got {shown} and {len(models)}."
        )
    if figure == "emotions":
        if texts:
            raise InputError(f"figure emotions takes no texts, got {texts[0]!r}.")
        if len(loaded) != len(models):
            raise InputError(
                f"expected an --emotions FILE for each of the {len(models)} models "
                f"({', '.join(models)}), in the same order, got {len(loaded)}."
            )
    elif not looked_for:
        raise InputError(f"figure {figure} needs a target: a TEXT, or --image FILE.")
    elif looked_for > 1 and figure in ("words", "heads"):
        raise InputError(f"figure {figure} takes one target, got {looked_for}.")
    targets: Any = loaded or (texts[0] if figure == "words" else texts)
    named = [*texts, *(path.stem for path in seen), *(names or ())]
    if folder is None:
        stem = paths[0].stem if paths else f"scene-{(scene or [''])[0].partition(':')[0]}"
        file = check_destination(output or figure_name(stem, figure, named), FORMATS)
    files = name_figures(folder, "", named) if folder else {}
    inputs = [*seen, *(probes or ()), texts_file]
    check_outputs(files.values() if folder else [file], [*files, *paths, *inputs])
    clips = [load_model(name, processor, tokenizer, device, quiet=quiet) for name in models]

    def save(image: Any, file: Path) -> None:
        which = {"model": clips[0]} if figure in _SINGLE else {"models": clips}
        save_figure(draw(image, targets, **which, **settings), file)

    if folder is not None:
        about = {"figure": figure, **settings, "images": folder[0].resolve(), "targets": named}
        draw_folder(files, folder[1], save, clips, inputs, about, quiet=quiet)
        return
    with step("drawing", quiet=quiet):
        save(images[0] if figure in _SINGLE else images, file)
    print(file)


def _draw_scene(text: str) -> Any:
    """Draw an image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo.scenes import draw_scene

    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
