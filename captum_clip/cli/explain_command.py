"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from ..checks import check_outputs, find_file
from ..errors import refuse
from ..files import make_folder
from . import options
from .options import app, command
from .shared import (
    Folder,
    Line,
    check_figures,
    draw_folder,
    find_images,
    load_model,
    read_classes,
    read_line,
    read_probes,
    step,
    table,
    without_own_figures,
)

if TYPE_CHECKING:
    from ..explaining.explanation import Explanation
    from ..explaining.regions import LabelMap
    from ..maps import Threshold


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
    against: str | None = None,
    classes: Path | None = None,
    template: options.Several = None,
    top: Annotated[int | None, Option(min=1)] = None,
    model: options.Models = None,
    method: options.Method = None,
    words: Annotated[bool, Option("--words")] = False,
    side: Literal["image", "text", "both", "pairs"] = "image",
    reference: Annotated[options.Several, Option("--image")] = None,
    emotions: Path | None = None,
    centre: options.Centre = False,
    sign: options.Sign | None = None,
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
    dpi: options.Dpi = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw where a model looks for each text; several models get a row each.

    Args:
        images: image files, or a folder whose images each get a figure; then what to look for
        against: what to contrast one TEXT with: what speaks for the one rather than the other
        classes: a file of class names, one a line, instead of TEXTs: the most probable are drawn,
            with their probabilities by the model's own temperature
        template: a prompt for the --classes, such as "a photo of a {}"; of several the mean
            embedding counts (default: the lines of templates.txt next to the file, else the names)
        top: how many of the --classes are drawn (default: 3)
        words: split one TEXT, with a map for each of its words
        side: show where in the image, which words of the TEXTs, or both; words need a method
            without a grid (default: conservative). pairs: which word of one TEXT answers which
            region, or which region of --image
        reference: an image to compare with, instead of TEXTs; for --side pairs one
        sign: what supports the text, what contradicts it, or both (default: positive; with
            --against both)
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
        output: a .png, .jpg, .pdf or .svg figure, an .html page to point at words and regions, or
            .npz for the maps; for several images a folder of figures, for a folder too, where
            those that the same settings drew are kept (default: IMAGE-explained-TEXT.png, or
            FOLDER-explained, in the current folder)
    """
    settings = {"figure": "explain", **locals()}
    from .. import targets
    from ..explaining.classify import classify, of_classes
    from ..explaining.explain import Request, explain

    line = read_line(
        images, texts_file, output, command="explain", kind="explained", needs_image=True
    )
    if line.folder is None:
        line = line._replace(images=without_own_figures(line.images))
    references = [find_file(other) for other in reference or []]
    refuse(_conflicts(line, references, **settings))
    sign = sign or ("both" if against else "positive")
    several = len(model or []) > 1
    asked: dict[str, Any] = {"method": method, "sign": sign, "words": words, "side": side}
    asked |= {"against": against, "whole": whole, "hints": hints, "model": several and model}
    asked["reference"] = references[0] if len(references) == 1 else references or None
    Request(line.texts or (["an emotion"] if emotions or classes else None), **asked)
    names, templates = read_classes(classes, template, top)
    settings["template"] = templates
    probes, fitted = read_probes([emotions] if emotions else [])
    others = options.check_texts(None if against is None else [against])
    named = [
        *line.texts,
        *(f"against {other}" for other in others),
        *["emotions"] * bool(emotions),
        *([classes.stem] if classes else []),
        *(path.stem for path in references),
    ]
    inputs = [*references, emotions, texts_file, classes]
    figures, label_maps = _plan(line, named, output, label_map)
    check_outputs([*figures.values(), *label_maps.values()], [*figures, *inputs])
    results = _Results(label_maps, regions, threshold, original, dpi, line, inputs)
    clips = [
        load_model(name, processor, tokenizer, device, image_size, quiet=quiet)
        for name in model or fitted or [options.DEFAULT_MODEL]
    ]
    asked["model"] = clips if several else clips[0]
    target: Any = of_classes(clips[0], names, templates) if names else line.texts or None
    make: Any = partial(classify, top=top) if names else explain
    if probes:
        parts = [targets.emotion(clips[0], probes[0], centre=centre)]
        target = targets.concatenate([targets.text(clips[0], target), *parts] if target else parts)

    def draw(path: Path, file: Path) -> Any:
        found = make(path, target, **asked)
        results.write(path, file, found)
        return found

    if line.folder is not None:
        for free in ("model", "device", "output", "quiet"):  # a model counts by its identity
            del settings[free]
        settings |= {"sign": sign, "images": line.folder.images.resolve(), "targets": named}
        _draw_folder(line.folder, figures, draw, clips, inputs, settings, quiet=quiet)
        results.print_labels(label_map)
        return
    kinds = "each --image" if references else "each "
    kinds += " and ".join(["text"] * bool(line.texts) + ["emotion"] * bool(emotions))
    for path, file in figures.items():
        with step("explaining", quiet=quiet):
            found = draw(path, file)
        for explanation in found if several else [found]:
            _print_scores(explanation, kinds)
            for sentences in explanation.hints:
                print(*sentences, sep="\n", end="\n" * bool(sentences))
        print(file)
        results.print_labels(label_maps.get(path))


def _draw_folder(
    folder: Folder,
    figures: Mapping[Path, Path],
    draw: Callable[[Path, Path], "Explanation"],
    *others: Any,
    quiet: bool,
) -> None:
    """Draw the images of a folder, with a line for each, a table of scores and a page of all."""
    from ..visualization.overlays import numbered
    from .contact_sheet import INDEX, SCORES, read_scores, score_rows, write_sheet

    photos, output = folder.images, folder.output
    scores, left_out = read_scores(output, photos), dict[Path, str]()
    before = len(scores)

    def keep(image: Path, file: Path) -> None:
        found = draw(image, file)
        scores[file] = score_rows(image.relative_to(photos), file.relative_to(output), found)

    try:
        left_out = draw_folder(folder, figures, keep, *others, known=scores, quiet=quiet)
    finally:  # a run that is stopped goes on with what it has
        if len(scores) > before:
            write_sheet(output, photos, scores, left_out)
    lines = {}
    for rows in (scores[file] for file in figures.values() if file in scores):
        names = numbered([row["text"] for row in rows])
        numbers = [float(row["score"]) for row in rows]
        lines[rows[0]["image"]] = dict(zip(names, numbers, strict=True))
    if len({*map(tuple, lines.values())}) == 1:
        print(*table(lines), sep="\n")
    else:  # classes, of which each image has its own
        for image, of in lines.items():
            print(f"{image}  {', '.join(f'{text} {value:.3f}' for text, value in of.items())}")
    print(output / SCORES, output / INDEX, sep="\n")


def _conflicts(
    line: Line,
    references: Sequence[Path],
    *,
    model: Sequence[str] | None,
    words: bool,
    side: str,
    sign: str | None,
    hints: bool | None,
    against: str | None,
    classes: Path | None,
    template: Sequence[str] | None,
    top: int | None,
    emotions: Path | None,
    centre: bool,
    regions: Path | None,
    label_map: Path | None,
    threshold: Any,
    original: bool | None,
    dpi: int | None,
    output: Path | None,
    **_: Any,
) -> Iterator[tuple[object, str]]:
    """What does not go together on a line, besides what `explain` refuses itself."""
    no_figure = output is not None and output.suffix.lower() in (".npz", ".html")
    of_one: dict[str, Any] = {"--emotions": emotions, "--classes": classes, "--regions": regions}
    of_one |= {"--label-map": label_map, f"-o {output}": no_figure, "a folder": line.folder}
    single = len(model or []) > 1 and next(filter(of_one.get, of_one), None)
    yield single, f"{single} goes with one --model; take each by itself, with another -o."
    places = "--regions are" if regions else "--label-map is of"
    nothing = not (line.texts or emotions or references or classes)
    yield nothing, "expected a TEXT, --emotions FILE or --image FILE, got none."
    yield (template or top) and not classes, "--template and --top go with --classes FILE."
    others = line.texts or emotions or references or against or words or hints or side != "image"
    yield (
        classes and others,
        "--classes FILE stands for TEXTs, --emotions, --image and --against, where in the image; "
        "leave them, --words, --hints and --side out.",
    )
    yield emotions and against, "--against contrasts TEXTs; leave --emotions out."
    yield emotions and references, "--image FILE stands for --emotions; leave one of them out."
    yield (
        emotions and (words or side != "image"),
        "--emotions have no words; leave --words and --side out.",
    )
    yield centre and not emotions, "--centre goes with --emotions FILE."
    yield dpi and no_figure, f"--dpi is of a figure, and {output} is none; leave it out."
    yield (
        side == "text" and (regions or label_map),
        f"{places} places in the image; leave --side text out.",
    )
    yield (
        label_map and sign == "negative",
        "--label-map is of what supports a TEXT; leave --sign negative out.",
    )
    yield (
        threshold is not None and not (regions or label_map),
        "--threshold goes with --regions or --label-map.",
    )
    if side == "pairs" and references:
        yield len(references) > 1, f"--side pairs takes one --image, got {len(references)}."
        yield label_map, "--label-map is of TEXTs, words or images, not of cells; leave it out."
        yield (
            original,
            "--side pairs draws two images as the model saw them; leave --original out.",
        )


def _plan(
    line: Line, named: Sequence[str], output: Path | None, label_map: Path | None
) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Where the figure of each image goes, and its label map."""
    from ..explaining.explanation import FORMATS

    if line.folder is None:
        figures = check_figures(line.images, output, "explained", named, FORMATS)
        labels = label_map and check_figures(line.images, label_map, "labels", named, (".png",))
    else:
        figures = line.folder.files("explained", named)
        place = label_map and find_images(str(line.folder.images), label_map, "labels")
        labels = place and place.files("labels", named)
    return figures, labels or {}


@dataclass
class _Results:
    """What is written of each image besides its figure: regions, and a label map.

    None of the files may replace one of the `inputs`. `labels` is the last label map.
    """

    label_maps: dict[Path, Path]
    regions: Path | None
    threshold: Any
    original: bool | None
    dpi: int | None
    line: Line
    inputs: Sequence[Path | None]
    labels: "LabelMap | None" = None

    def write(self, image: Path, file: Path, explanation: "Explanation") -> None:
        """Write all that is asked for of an image."""
        from ..visualization import save_figure

        if self.regions is not None:
            self._write_regions(image, file, explanation)
        if label_map := self.label_maps.get(image):
            make_folder(label_map.parent)
            self.labels = explanation.label_map(self.threshold)[0]
            self.labels.save(label_map)
        if self.dpi is None:
            explanation.save(file, original=self.original)
        else:
            save_figure(explanation.plot(original=self.original), file, dpi=self.dpi)

    def print_labels(self, place: Path | None) -> None:
        """Print where a label map is, or the folder of several, and what its colours mean."""
        if self.labels is not None and place is not None:
            print(place)
            for color, name in zip(self.labels.colors(), self.labels.names, strict=True):
                print("  #{:02x}{:02x}{:02x}".format(*color), name)

    def _write_regions(self, image: Path, file: Path, explanation: "Explanation") -> None:
        from ..explaining.regions import region_files, save_regions

        assert self.regions is not None
        folder, several = self.line.folder, len(self.line.images) > 1
        name = image.relative_to(folder.images).as_posix() if folder else image.name * several
        level: Threshold = "otsu" if self.threshold is None else self.threshold
        about = {"photo": name or str(image), "threshold": level}
        about |= {"model": explanation.model, "method": explanation.method}
        marked = explanation.regions(level)
        masks = [Path(self.regions, name, mask) for mask in region_files(marked)]
        others = [file, *filter(None, [self.label_maps.get(image)])]
        check_outputs([*masks, *others], [image, *self.inputs])
        save_regions(marked, Path(self.regions, name), about)


def _print_scores(explanation: "Explanation", targets: str) -> None:
    from ..explaining.drawing import titles

    what = "the text, and to what each word adds" if explanation.words else targets
    what = "the difference of two texts" if explanation.contrast else what
    what = "the best classes, with their probabilities" if explanation.calibration else what
    parts = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    parts += [explanation.calibration]
    if explanation.leave_one_out is not None:
        what = "the text, each word's share of it, and what is lost without it"
    print(f"cosine similarity to {what} ({', '.join(filter(None, parts))}):")
    names = titles(explanation)
    shown = 1 if explanation.reference is not None else len(names)
    for index in range(shown):
        note = ""
        if explanation.leave_one_out is not None:
            note = f"   lost {explanation.leave_one_out[0, index]:+.3f}"
        elif explanation.contrast:
            difference = explanation.scores[0, index] * explanation.norms[index]
            note = f"   cosines differ by {difference:+.3f}"
        elif explanation.words and index > 0:
            note = f"   norm {explanation.norms[index]:.2f}"
        whole = " (whole text)" if explanation.leave_one_out is not None and index == 0 else ""
        print(f"  {explanation.scores[0, index]:6.3f}  {names[index]}{whole}{note}")
        if explanation.text_maps:
            values = (f"{word} {value:+.3f}" for word, value in explanation.text_maps[index])
            print(f"          {'  '.join(values)}")
