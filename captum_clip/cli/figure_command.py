"""``captum-clip figure``: Mamooler's figures, and attention heads, on the user's own images."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_type_hints

from typer import Argument, Option

from ..checks import check_choice, check_integer, expand
from ..errors import InputError
from . import options
from .inputs import check_figure, check_folder, is_file, load_model, read_image, read_probes
from .options import app, command
from .output import draw_folder, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SINGLE: Final = ("layers", "heads")  # of one image and one model
_TYPED: Final = {
    **{"references": "image", "methods": "method", "cmap": "colormap"},
    **{"names": "emotion or --target", "probes": "emotions"},
}
"""What the functions of :mod:`captum_clip.figures` call an option -> its name here."""


def _check_colormap(name: str | None) -> str | None:
    if name not in (None, "mask"):
        from ..visualization.colors import colormap

        colormap(name)
    return name


@command(app, "figure", 'layers photo.jpg "a horse" -o layers.png', lists=options.methods)
def figure_command(
    figure: Literal["layers", "compare", "average", "signs", "emotions", "words", "heads"],
    given: Annotated[options.Several, Argument(metavar="[IMAGE]... [TEXT]...")] = None,
    scene: options.Several = None,
    text: options.Text = None,
    image: options.Several = None,
    model: options.Several = None,
    method: options.Methods = None,
    emotions: list[Path] | None = None,
    emotion: options.Several = None,
    centre: options.Centre = False,
    target: options.Several = None,
    rows: Literal["cls", "sum"] | None = None,
    count: int | None = None,
    sign: options.Sign | None = None,
    scale: Literal["each", "shared", "norm"] | None = None,
    colormap: Annotated[str | None, Option(callback=_check_colormap)] = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    output: options.Output = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw one of Mamooler's figures on your own images, or the heads behind a score.

    Args:
        figure: layers, the attention of every layer and the gradient with respect to it (Figures 2,
            3); compare, a column for each method (4, 5); average, the mean maps of studies (6, 12);
            signs, what supports each target and what contradicts it (7 to 10); emotions, a column
            for each (11); words, a column for each word of a text (13); heads, the attention heads
            that add most to the score
        given: image files, or a folder of which each image gets a figure; then what to look for;
            for average the output folders of 'captum-clip study'
        scene: SEED or SEED:THING,THING, a scene drawn for the embedded models in place of an IMAGE
        image: an image to look for instead of a text
        emotion: of the figure emotions (default: all eight)
        target: a text or emotion of the studies, for average (default: all)
        rows: of the attention in layers, that of the CLS token or the sum of all (default: cls)
        count: the most heads to show (default: 8)
        sign: of heads, those that add most, those that subtract most, or both (default: positive)
        scale: of the colours, each map its own, shared by maps that can be compared (default for
            signs), or norm for words dimmed by how much they matter (default for words)
        colormap: of matplotlib, such as viridis or jet (Mamooler's, which is not perceptually
            uniform); for layers also mask, as Mamooler drew them, the image multiplied by each map
        output: a .png, .jpg, .pdf or .svg figure; for a folder of images a folder of figures
            (default: IMAGE-FIGURE.png, or FOLDER-FIGURE, in the current folder)
    """
    from .. import figures
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS

    draw: Any = getattr(figures, figure)
    if count is not None:
        check_integer("figure heads", "--count", count)
    references = [read_image(name) for name in image or ()]
    settings = {
        **{"references": references, "methods": method, "cmap": colormap, "scale": scale},
        **{"rows": rows, "count": count, "sign": sign, "centre": centre},
        "names": options.check_emotions([*(emotion or ())]) or target,
    }
    settings = {name: value for name, value in settings.items() if value}
    _check_options(figure, draw, {**settings, "probes": emotions} if emotions else settings)
    if figure == "average":
        folders = [expand(study) for study in given or ()]
        if not folders:
            raise InputError("figure average needs an output folder of 'captum-clip study'.")
        file = check_figure(output, f"{folders[0].resolve().name}-average.png", FORMATS, [])
        print(save_figure(draw(folders, **settings), file))
        return
    probes, fitted = read_probes(emotions or ())
    models = model or fitted or [options.DEFAULT_MODEL]
    scenes = [_draw_scene(seed, models) for seed in scene or ()]
    words = given or []
    folder = check_folder(words[0], output, figure) if words and not scene else None
    paths, texts = _split(figure, words[1:] if folder else words, folder is not None)
    texts += text or []
    images = [*paths, *scenes]
    shown = 1 if folder else len(images)
    looked_for = len(texts) + len(references)
    if not shown:
        raise InputError("expected an IMAGE, or --scene SEED, got neither.")
    if figure in _SINGLE and shown + len(models) > 2:
        raise InputError(
            f"figure {figure} takes one image and one model, got {shown} and {len(models)}."
        )
    if figure == "emotions":
        if texts:
            raise InputError(f"figure emotions takes no texts, got {texts[0]!r}.")
        if len(probes) != len(models):
            raise InputError(
                f"expected an --emotions FILE for each of the {len(models)} models "
                f"({', '.join(models)}), in the same order, got {len(probes)}."
            )
    elif not looked_for:
        raise InputError(f"figure {figure} needs a target: a TEXT, or --image FILE.")
    elif looked_for > 1 and figure in ("words", "heads"):
        raise InputError(f"figure {figure} takes one target, got {looked_for}.")
    if folder is None:
        stem = paths[0].stem if paths else f"scene-{(scene or [''])[0].partition(':')[0]}"
        file = check_figure(output, f"{stem}-{figure}.png", FORMATS, [*paths, *references])
    clips = [load_model(name, processor, tokenizer, device, quiet=quiet) for name in models]
    targets: Any = probes or (texts[0] if figure == "words" else texts)

    def save(images: Sequence[Any], file: Path) -> Path:
        if figure in _SINGLE:
            return save_figure(draw(images[0], targets, model=clips[0], **settings), file)
        return save_figure(draw(images, targets, models=clips, **settings), file)

    if folder is not None:
        draw_folder(*folder, lambda path, file: save([path], file), quiet=quiet)
        return
    with steps(1, quiet=quiet) as begin:
        begin("drawing")
        save(images, file)
    print(file)


def _check_options(figure: str, draw: "Callable[..., Figure]", options: Mapping[str, Any]) -> None:
    """Refuse options that a figure does not have, and a scale that it does not know."""
    for name in options:
        if name not in inspect.signature(draw).parameters:
            raise InputError(f"figure {figure} has no option --{_TYPED.get(name, name)}.")
    if "scale" in options:
        scales = get_args(get_type_hints(draw)["scale"])
        check_choice(f"figure {figure}", options["scale"], scales, name="a scale")


def _split(figure: str, words: Sequence[str], folder: bool) -> tuple[list[Path], list[str]]:
    """Tell images from the texts that follow them; after a folder there are only texts."""
    from PIL import Image

    endings = Image.registered_extensions()
    # a file that does not exist is meant as an image too
    is_image = [
        "://" in word or is_file(word) or Path(word).suffix.lower() in endings for word in words
    ]
    count = 0 if folder else [*is_image, False].index(False)
    for word, image in zip(words[count:], is_image[count:], strict=True):
        if image:
            kind = "one folder" if folder else "images"
            raise InputError(f"{word} is an image; figure {figure} takes {kind}, then texts.")
    return [read_image(word) for word in words[:count]], options.check_texts([*words[count:]])


def _draw_scene(text: str, models: Sequence[str]) -> Any:
    """Draw an image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo import MODELS
    from ..demo.scenes import draw_scene

    others = [model for model in models if model not in MODELS]
    if others:
        raise InputError(
            f"--scene draws for the embedded models, and {others[0]} is none; add --model "
            f"{' or --model '.join(MODELS)}, or give an IMAGE."
        )
    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
