"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError
from .command import CENTRE, EMOTIONS, LOADING, METHOD, MODEL, OUTPUT, TEXTS, Command, Option
from .inputs import check_folder, check_output, is_folder, load_model, read_image, read_probe
from .output import draw_pictures, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..emotions import EmotionProbe
    from ..explanation import Explanation
    from ..models import ClipAdapter
    from ..targets import Target


def _run(arguments: Namespace) -> None:
    """Explain the image, or each of a folder, and say where the pictures are."""
    _check_together(arguments)
    probe, model = read_probe(arguments)
    if is_folder(arguments.image):
        _explain_folder(arguments, model, probe)
    else:
        _explain_image(arguments, model, probe)


def _explain_image(arguments: Namespace, model: str, probe: EmotionProbe | None) -> None:
    from ..explanation import FORMATS

    image = read_image(arguments.image)
    output = check_output(arguments.output, f"{image.stem}-explained.png", FORMATS, [image])
    clip = load_model(arguments, model)
    with steps(arguments, 2) as begin:
        begin("explaining")
        explanation = _explain(arguments, image, clip, _target(arguments, clip, probe))
        begin("drawing")
        explanation.save(output, original=_draws_original(arguments, explanation))
    _print_scores(arguments, explanation)
    for sentences in explanation.hints:
        print(*sentences, sep="\n", end="\n" * bool(sentences))
    print(output)


def _explain_folder(arguments: Namespace, model: str, probe: EmotionProbe | None) -> None:
    folder, output = check_folder(arguments, arguments.image)
    clip = load_model(arguments, model)
    target = _target(arguments, clip, probe)

    def draw(path: Path) -> Figure:
        name = path.resolve().relative_to(folder.resolve())
        explanation = _explain(arguments, path, clip, target, name)
        return explanation.plot(original=_draws_original(arguments, explanation))

    draw_pictures(arguments, folder, output, draw)


def _explain(
    arguments: Namespace,
    image: Path,
    clip: ClipAdapter,
    target: list[str] | Target,
    name: Path | None = None,
) -> Explanation:
    """Explain an image, of a folder by its name there, and write its regions if they are wanted."""
    from ..explanation import explain
    from ..regions import save_regions

    side, sign = arguments.side, arguments.sign
    explanation = explain(
        image,
        target,
        model=clip,
        method=arguments.method,
        sign=sign,
        words=arguments.words,
        side=side,
        whole=arguments.whole,
        hints=arguments.emotions is None and side != "text" and sign != "negative",
    )
    if arguments.regions is not None:
        about = {
            "photo": str(name or arguments.image),
            "model": explanation.model,
            "method": explanation.method,
            "threshold": arguments.threshold,
        }
        regions = explanation.regions(arguments.threshold)
        save_regions(regions, Path(arguments.regions, name or ""), about)
    return explanation


def _draws_original(arguments: Namespace, explanation: Explanation) -> bool:
    """Whether to draw the whole photo: as is asked for, else where the model saw another."""
    if arguments.original is not None:
        return bool(arguments.original)
    return not all(crop.is_whole for crop in explanation.crops)


def _threshold(typed: str) -> Any:
    if typed in ("otsu", "mean"):
        return typed
    try:
        level = float(typed)
    except ValueError:
        level = -1
    if not 0 <= level < 1:
        raise ArgumentTypeError(f"expected otsu, mean or a number in [0, 1), got {typed}")
    return level


def _check_together(arguments: Namespace) -> None:
    """What is asked for fits together."""
    side, words, texts = arguments.side, arguments.words, arguments.texts
    if side == "text" and arguments.regions is not None:
        raise InputError("--regions are places in the image; leave --side text out.")
    if side != "image" and (words or arguments.emotions is not None):
        option = "--words" if words else "--emotions"
        raise InputError(f"--side {side} explains whole TEXTs; leave {option} out.")
    if arguments.emotions is not None:
        if words:
            raise InputError("--words takes a TEXT apart; leave it out, or leave --emotions out.")
    elif arguments.centre:
        raise InputError("--centre goes with --emotions FILE.")
    elif not texts:
        raise InputError("the following arguments are required: TEXT, or --emotions FILE.")
    elif words and len(texts) != 1:
        raise InputError(f"--words takes one TEXT apart, got {len(texts)}.")


def _target(
    arguments: Namespace, clip: ClipAdapter, probe: EmotionProbe | None
) -> list[str] | Target:
    """The texts, or texts and emotions as one target."""
    texts: list[str] = arguments.texts
    if probe is None:
        return texts
    from .. import targets

    parts = [targets.emotion(clip, probe, centre=arguments.centre)]
    return targets.concatenate([targets.text(clip, texts), *parts] if texts else parts)


def _print_scores(arguments: Namespace, explanation: Explanation) -> None:
    rows = "to each text"
    if explanation.words:
        rows = "to the text, and to what each word adds"
    elif arguments.emotions is not None:
        rows = "to each text and emotion" if arguments.texts else "to each emotion"
    parts = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    print(f"cosine similarity {rows} ({', '.join(filter(None, parts))}):")
    targets = zip(explanation.names, explanation.scores[0], explanation.norms, strict=True)
    for index, (name, score, norm) in enumerate(targets):
        length = f"   norm {norm:.2f}" if explanation.words and index > 0 else ""
        print(f"  {score:6.3f}  {name}{length}")
        if explanation.text_maps:
            values = (f"{word} {value:+.3f}" for word, value in explanation.text_maps[index])
            print(f"          {'  '.join(values)}")


COMMAND: Final = Command(
    "explain",
    "draw where a model looks for each text",
    'captum-clip explain photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png',
    Option(
        "image IMAGE",
        "an image file, or a folder of which each image gets a figure, unless there is one",
    ),
    *TEXTS,
    MODEL,
    METHOD,
    Option("--words", "take one TEXT apart, with a map for each of its words", default=False),
    Option(
        "--side",
        "where in the image, which words of the TEXTs, or both; words are explained by "
        "conservative, or by a --method that needs no grid",
        choices=("image", "text", "both"),
    ),
    replace(
        EMOTIONS,
        help=f"{EMOTIONS.help}: a map for each of its eight emotions, after those of the TEXTs, if "
        "any",
    ),
    CENTRE,
    (
        Option(
            "--sign",
            "what speaks for the text, against it, or both",
            choices=("positive", "negative", "both"),
        ),
        Option("--negative", "the same as --sign negative", sets=("sign", "negative")),
    ),
    Option(
        "--whole",
        "pad the image to a square, so that the model sees all of it; otherwise its processor may "
        "cut off what is beside the middle",
        default=False,
    ),
    (
        Option(
            "--original",
            "draw the whole image, grey where the model saw nothing of it (default where it was "
            "cropped or padded)",
            sets=("original", True),
        ),
        Option("--no-original", "draw what the model saw", sets=("original", False)),
    ),
    Option(
        "--regions FOLDER",
        "a folder for what the maps mark: a mask for each as PNG, its boxes and its peak as JSON, "
        "in pixels of the image",
    ),
    Option(
        "--threshold LEVEL",
        "what --regions takes of a map: otsu, mean, or a share of its maximum in [0, 1)",
        default="otsu",
        type=_threshold,
    ),
    *LOADING,
    replace(
        OUTPUT,
        help="a .png, .jpg, .pdf or .svg picture, or .npz for the maps themselves; for a folder of "
        "images a folder of pictures",
        otherwise="IMAGE-explained.png, or FOLDER-explained, in the current folder",
    ),
    run=_run,
)
