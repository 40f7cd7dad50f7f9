"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from ..checks import check_outputs, find_file
from ..errors import InputError
from ..files import make_folder
from . import options
from .options import app, command
from .shared import (
    check_figures,
    check_folder,
    draw_folder,
    load_model,
    name_figures,
    read_probes,
    split_words,
    step,
    without_own_figures,
)

if TYPE_CHECKING:
    from ..explaining.explanation import Explanation
    from ..maps import Threshold
    from ..targets import Target


def _threshold(typed: str) -> str | float:
    with suppress(ValueError):
        if typed in ("otsu", "mean") or 0 <= float(typed) < 1:
            return typed if typed in ("otsu", "mean") else float(typed)
    raise BadParameter(f"expected otsu, mean or a number in [0, 1), got {typed}.")


@command(
    app,
    "explain",
    'photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png',
    lists=options.methods,
)
def explain_command(
    images: Annotated[list[str], Argument(metavar="IMAGE... [TEXT]...")],
    texts_file: options.TextsFile = None,
    model: options.Model = None,
    method: options.Method = None,
    words: Annotated[bool, Option("--words")] = False,
    side: Literal["image", "text", "both", "pairs"] = "image",
    others: Annotated[options.Several, Option("--image")] = None,
    emotions: Path | None = None,
    centre: options.Centre = False,
    sign: options.Sign = "positive",
    whole: Annotated[bool, Option("--whole")] = False,
    original: bool | None = None,
    hints: bool | None = None,
    regions: Path | None = None,
    label_map: Path | None = None,
    threshold: Annotated[Any, Option(parser=_threshold, metavar="LEVEL")] = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    image_size: int | None = None,
    device: str | None = None,
    output: options.Output = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw where a model looks for each text.

    Args:
        images: image files, or a folder whose images each get a figure; then what to look for
        words: split one TEXT, with a map for each of its words
        side: show where in the image, which words of the TEXTs, or both; words need a method
            without a grid (default: conservative). pairs: which word of one TEXT answers which
            region, or which region of --image
        others: an image to compare with, instead of TEXTs; for --side pairs one
        sign: what supports the text, what contradicts it, or both
        whole: pad the image to a square, so that the model sees all of it, where its processor
            would crop it to the middle
        original: draw the whole image, grey where the model did not see it, or what the model saw
            (default: the whole image where it was cropped or padded)
        hints: say which maps to doubt: if a TEXT fits no better than unrelated ones, or if its map
            is that of any text (default: of TEXTs, unless --sign negative or --side text)
        regions: a folder for what the maps mark: a mask for each as PNG, its boxes and its peak as
            JSON, in pixels of the image
        label_map: a .png of the TEXT or word that supports each pixel most; for several images a
            folder of them
        threshold: what --regions and --label-map take of a map: otsu, mean, or a share of its
            maximum in [0, 1) (default: otsu; for --label-map, above zero)
        output: a .png, .jpg, .pdf or .svg figure, or .npz for the maps themselves; for several
            images a folder of figures, for a folder too, where those that the same settings drew
            are kept (default: IMAGE-explained-TEXT.png, or FOLDER-explained, in the current folder)
    """
    settings = {"figure": "explain", **locals()}
    from .. import targets
    from ..attr.registry import MAMOOLER, MethodChoice
    from ..explaining.explain import explain
    from ..explaining.explanation import FORMATS
    from ..explaining.regions import region_files, save_regions

    references = [find_file(other, caller="--image") for other in others or []]
    folder = check_folder(images[0], output, "explained")
    given = images[1:] if folder else images
    paths, texts = split_words(given, "explain", image_first=folder is None)
    texts += options.read_texts(texts_file)
    if folder and paths:
        raise InputError(f"{paths[0]} is an image; explain takes images or one folder, then texts.")
    if method not in (None, MAMOOLER) and sign != "positive":
        MethodChoice.of(method).check_negative()
    if references and (texts or emotions):
        raise InputError("--image FILE stands for the TEXTs; leave them and --emotions out.")
    if side == "text" and (regions or label_map):
        option = "--regions are" if regions else "--label-map is of"
        raise InputError(f"{option} places in the image; leave --side text out.")
    if label_map and sign == "negative":
        raise InputError("--label-map is of what supports a TEXT; leave --sign negative out.")
    if threshold is not None and not (regions or label_map):
        raise InputError("--threshold goes with --regions or --label-map.")
    if words and (side == "pairs" or references):
        reason = "--image has no words" if references else "--side pairs splits the TEXT into words"
        raise InputError(f"{reason}; leave --words out.")
    if label_map and references and side == "pairs":
        raise InputError("--label-map is of TEXTs, words or images, not of cells; leave it out.")
    if side != "image" and (words or emotions):
        option = "--words" if words else "--emotions"
        raise InputError(f"--side {side} explains whole TEXTs; leave {option} out.")
    if words and (emotions or len(texts) != 1):
        got = "--emotions" if emotions else len(texts)
        raise InputError(f"--words takes one TEXT apart, got {got}.")
    if centre and not emotions:
        raise InputError("--centre goes with --emotions FILE.")
    if not (texts or emotions or references):
        raise InputError("expected a TEXT, --emotions FILE or --image FILE, got none.")
    if side == "pairs" and len(references) > 1:
        raise InputError(f"--side pairs compares with one --image, got {len(references)}.")
    if side == "pairs" and not references and len(texts) != 1:
        raise InputError(f"--side pairs takes one TEXT apart, got {len(texts)}.")
    if references and side in ("text", "both"):
        raise InputError("a reference image has no words; take --side image or --side pairs.")
    if references and side == "pairs" and original:
        raise InputError(
            "--side pairs draws two images as the model saw them; leave --original out."
        )
    probes, fitted = read_probes([emotions] if emotions else [])
    named = [*texts, *["emotions"] * bool(emotions), *(path.stem for path in references)]
    if folder is None:
        paths = without_own_figures(paths)
        files = check_figures(paths, output, "explained", named, FORMATS)
        labels = check_figures(paths, label_map, "labels", named, (".png",)) if label_map else {}
    else:
        files = name_figures(folder, "", named)
        place = check_folder(images[0], label_map, "labels") if label_map else None
        labels = name_figures(place, "labels", named) if place else {}
    inputs = [*references, emotions, texts_file]
    check_outputs([*files.values(), *labels.values()], [*files, *inputs])
    name = model or next(iter(fitted), options.DEFAULT_MODEL)
    clip = load_model(name, processor, tokenizer, device, image_size, quiet=quiet)
    target: list[str] | Target | None = texts or None
    if probes:
        parts = [targets.emotion(clip, probes[0], centre=centre)]
        target = targets.concatenate([targets.text(clip, texts), *parts] if texts else parts)

    def save(path: Path, file: Path) -> "Explanation":
        """Explain an image, and write the figure and the regions."""
        explanation = explain(
            path,
            target,
            reference=references[0] if len(references) == 1 else references or None,
            model=clip,
            method=method,
            sign=sign,
            words=words,
            side=side,
            whole=whole,
            hints=hints,
        )
        if regions is not None:
            name = path.name if len(paths) > 1 else ""
            if folder:
                name = path.relative_to(folder[0]).as_posix()
            level: Threshold = "otsu" if threshold is None else threshold
            about = {"photo": name or str(path), "threshold": level}
            about |= {"model": explanation.model, "method": explanation.method}
            found = explanation.regions(level)
            marked = [Path(regions, name, mask) for mask in region_files(found)]
            drawn = [file, labels[path]] if path in labels else [file]
            check_outputs([*marked, *drawn], [path, *inputs])
            save_regions(found, Path(regions, name), about)
        if path in labels:
            make_folder(labels[path].parent)
            explanation.label_map(threshold)[0].save(labels[path])
        explanation.save(file, original=original)
        return explanation

    if folder is not None:
        for free in ("model", "device", "output", "quiet"):  # a model counts by its identity
            del settings[free]
        settings |= {"images": folder[0].resolve(), "targets": named}
        draw_folder(files, folder[1], save, [clip], inputs, settings, quiet=quiet)
        return
    kinds = "each --image" if references else "each "
    kinds += " and ".join(["text"] * bool(texts) + ["emotion"] * bool(emotions))
    for path, file in files.items():
        with step("explaining", quiet=quiet):
            explanation = save(path, file)
        _print_scores(explanation, kinds)
        for sentences in explanation.hints:
            print(*sentences, sep="\n", end="\n" * bool(sentences))
        print(file)


def _print_scores(explanation: "Explanation", targets: str) -> None:
    what = "the text, and to what each word adds" if explanation.words else targets
    parts = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    if explanation.lost is not None:
        what = "the text, each word's share of it, and what is lost without it"
    print(f"cosine similarity to {what} ({', '.join(filter(None, parts))}):")
    shown = 1 if explanation.reference is not None else len(explanation.names)
    for index in range(shown):
        note = ""
        if explanation.lost is not None:
            note = f"   lost {explanation.lost[0, index]:+.3f}"
        elif explanation.words and index > 0:
            note = f"   norm {explanation.norms[index]:.2f}"
        whole = " (whole text)" if explanation.lost is not None and index == 0 else ""
        print(f"  {explanation.scores[0, index]:6.3f}  {explanation.names[index]}{whole}{note}")
        if explanation.text_maps:
            values = (f"{word} {value:+.3f}" for word, value in explanation.text_maps[index])
            print(f"          {'  '.join(values)}")
