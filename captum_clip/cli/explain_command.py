"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from typer import Argument, BadParameter, Option

from ..checks import check_outputs, find_file
from ..errors import refuse
from ..explaining.request import LOADING, Conflict, Request, default_sign
from ..files import make_folder
from . import options, shared
from .options import Drawing, app, command, ruled

if TYPE_CHECKING:
    from ..explaining.explanation import Explanation
    from ..explaining.regions import LabelMap
    from ..maps import Threshold

_FOR_TEXTS: Final[dict[str, Any]] = dict.fromkeys(("against", "reference", "words", "side"), ())
"""What goes with texts alone."""
_IN_IMAGE = Conflict("marks places in the image", {"side": ("text",)})


def _threshold(typed: str) -> str | float:
    with suppress(ValueError):
        if typed in ("otsu", "mean") or 0 <= float(typed) < 1:
            return typed if typed in ("otsu", "mean") else float(typed)
    raise BadParameter(f"expected otsu, mean or a number in [0, 1), got {typed}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Explain(Request, Drawing):
    """What `explain` can be asked, and what is typed besides."""

    apart = ", with another -o"

    images: Annotated[list[str], Argument(metavar="IMAGE... [TEXT]...")]
    model: Any = field(default=None, metadata={"typed": list[str] | None})
    classes: Path | None = ruled(
        None,
        Conflict("names what to look for in the image", _FOR_TEXTS | {"emotions": ()}),
        one_model=True,
    )
    template: list[str] | None = ruled(needs=("classes",))
    top: Annotated[int | None, Option(min=1)] = ruled(needs=("classes",))
    emotions: Path | None = ruled(
        None,
        Conflict("looks for emotions, which have no words and no contrast", _FOR_TEXTS),
        one_model=True,
    )
    original: bool | None = None
    regions: Path | None = ruled(None, _IN_IMAGE, one_model=True)
    label_map: Path | None = ruled(
        None,
        _IN_IMAGE,
        Conflict("shows what supports a TEXT", {"sign": ("negative",)}),
        one_model=True,
    )
    threshold: Annotated[Any, Option(parser=_threshold, metavar="LEVEL")] = ruled(
        needs=("regions", "label_map")
    )
    output: Path | None = None


@command(
    app,
    "explain",
    'photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png',
    lists=options.methods,
)
def explain_command(typed: Explain) -> None:
    """Draw where a model looks for each text; several models get a row each."""
    from .. import targets
    from ..emotions import EmotionProbe
    from ..explaining.classify import classify, of_classes
    from ..explaining.explain import answer, check

    emotions, classes = typed.emotions, typed.classes
    line = shared.read_line(
        typed, typed.images, command="explain", kind="explained", needs_image=True
    )
    if line.folder is None:
        line = line._replace(images=shared.without_own_figures(line.images))
    references = [find_file(other) for other in typed.reference or []]
    request: Any = replace(
        typed,
        texts=line.texts or None,
        reference=references[0] if len(references) == 1 else references or None,
        sign=default_sign(typed.sign, typed.against),
    )
    refuse(_conflicts(request, line, references))
    others = options.check_texts([typed.against] if typed.against is not None else [])
    request = replace(
        request, texts=line.texts or (["an emotion"] if emotions or classes else None)
    )
    check(request)
    names, templates = shared.read_classes(classes, typed.template, typed.top)
    probes = [EmotionProbe.load(emotions)] if emotions else []
    named = [
        *line.texts,
        *(f"against {other}" for other in others),
        *["emotions"] * bool(emotions),
        *([classes.stem] if classes else []),
        *(path.stem for path in references),
    ]
    inputs = [*references, emotions, typed.texts_file, classes]
    figures, label_maps = _plan(line, named, typed)
    check_outputs([*figures.values(), *label_maps.values()], [*figures, *inputs])
    results = _Results(typed, label_maps, line, inputs)
    models = typed.model or shared.fitted_on(emotions) or [options.DEFAULT_MODEL]
    clips = [shared.load_model(typed, name) for name in models]
    loaded = dict.fromkeys(LOADING)
    request = replace(request, model=clips if len(clips) > 1 else clips[0], **loaded)
    target: Any = of_classes(clips[0], names, templates) if names else line.texts or None
    if probes:
        emotional = [targets.emotion(clips[0], probes[0], center=typed.center)]
        target = targets.concatenate(
            [targets.text(clips[0], target), *emotional] if target else emotional
        )

    def draw(path: Path, file: Path) -> Any:
        if names:
            how: Any = {"method": request.method, "sign": request.sign, "whole": request.whole}
            how |= {"templates": templates, "hints": request.hints}
            explanation = classify(path, target, model=clips[0], top=typed.top, **how)
        else:
            explanation = answer(replace(request, image=path, texts=target))
        results.write(path, file, explanation)
        return explanation

    if line.folder is not None:
        settings: dict[str, Any] = {"figure": "explain"}
        settings |= {entry.name: getattr(typed, entry.name) for entry in fields(typed)}
        # a model counts by its identity, and what a limit left out can be added
        for free in ("model", "device", "output", "max_pixels", "quiet"):
            del settings[free]
        settings |= {"sign": request.sign, "template": templates}
        settings |= {"images": line.folder.images.resolve(), "targets": named}
        _draw_folder(line.folder, figures, draw, clips, inputs, settings, quiet=typed.quiet)
        results.print_labels(typed.label_map)
        return
    kinds = "each --image" if references else "each "
    kinds += " and ".join(["text"] * bool(line.texts) + ["emotion"] * bool(emotions))
    for path, file in figures.items():
        with shared.step("explaining", quiet=typed.quiet):
            drawn = draw(path, file)
        for explanation in drawn if len(clips) > 1 else [drawn]:
            _print_scores(explanation, kinds)
            for sentences in explanation.hints:
                print(*sentences, sep="\n", end="\n" * bool(sentences))
        print(file)
        results.print_labels(label_maps.get(path))


def _draw_folder(
    folder: shared.Folder,
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
        explanation = draw(image, file)
        names = image.relative_to(photos), file.relative_to(output)
        scores[file] = score_rows(*names, explanation)

    try:
        left_out = shared.draw_folder(folder, figures, keep, *others, scored=scores, quiet=quiet)
    finally:  # a run that is stopped goes on with what it has
        if len(scores) > before:
            write_sheet(output, photos, scores, left_out)
    lines, ranked = {}, [["", "class", "cosine", "probability"]]
    for rows in (scores[file] for file in figures.values() if file in scores):
        names = numbered([row["text"] for row in rows])
        numbers = [float(row["score"]) for row in rows]
        lines[rows[0]["image"]] = dict(zip(names, numbers, strict=True))
        shares = [row["probability"] for row in rows]
        for name, number, share in zip(names, numbers, filter(None, shares), strict=False):
            ranked.append([rows[0]["image"], name, f"{number:.3f}", f"{float(share):.3f}"])
    # each image has classes of its own
    print(*(shared.columns(ranked, str.rjust) if ranked[1:] else shared.table(lines)), sep="\n")
    print(output / SCORES, output / INDEX, sep="\n")


def _conflicts(
    typed: Explain, line: shared.Line, references: Sequence[Path]
) -> Iterator[tuple[object, str]]:
    """What does not go together besides what the fields say."""
    no_figure = typed.output is not None and typed.output.suffix.lower() in (".npz", ".html")
    several = len(typed.model or []) > 1
    single = f"-o {typed.output}" if no_figure else "a folder"
    yield (
        several and (no_figure or line.folder),
        f"{single} works with one --model; run each by itself, with another -o.",
    )
    nothing = not (line.texts or typed.emotions or references or typed.classes)
    yield typed.classes and line.texts, "--classes FILE replaces TEXTs; leave one of the two out."
    yield nothing, "expected a TEXT, --emotions FILE or --image FILE, got none."
    yield (
        typed.dpi and no_figure,
        f"--dpi is for figures, and {typed.output} is not one; leave it out.",
    )
    if typed.side == "pairs" and references:
        yield len(references) > 1, f"--side pairs takes one --image, got {len(references)}."
        yield (
            typed.label_map,
            "--label-map shows TEXTs, words or images, not cells; leave it out.",
        )
        yield (
            typed.original,
            "--side pairs draws two images as the model saw them; leave --original out.",
        )


def _plan(
    line: shared.Line, named: Sequence[str], typed: Explain
) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Where the figure of each image goes, and its label map."""
    from ..explaining.explanation import FORMATS

    label_map = typed.label_map
    if line.folder is None:
        figures = shared.check_figures(line.images, typed.output, "explained", named, FORMATS)
        labels = label_map and shared.check_figures(
            line.images, label_map, "labels", named, (".png",)
        )
    else:
        figures = line.folder.files("explained", named)
        place = label_map and shared.find_images(str(line.folder.images), label_map, "labels")
        labels = place and place.files("labels", named)
    return figures, labels or {}


@dataclass
class _Results:
    """What is written of each image besides its figure: regions, and a label map.

    None of the files may replace one of the `inputs`. `labels` is the last label map.
    """

    typed: Explain
    label_maps: dict[Path, Path]
    line: shared.Line
    inputs: Sequence[Path | None]
    labels: "LabelMap | None" = None

    def write(self, image: Path, file: Path, explanation: "Explanation") -> None:
        """Write all that is asked for of an image."""
        from ..visualization import save_figure

        if self.typed.regions is not None:
            self._write_regions(image, file, explanation)
        if label_map := self.label_maps.get(image):
            make_folder(label_map.parent)
            self.labels = explanation.label_map(self.typed.threshold)[0]
            self.labels.save(label_map)
        if self.typed.dpi is None:
            explanation.save(file, original=self.typed.original)
        else:
            save_figure(explanation.plot(original=self.typed.original), file, dpi=self.typed.dpi)

    def print_labels(self, place: Path | None) -> None:
        """Print where a label map is, or the folder of several, and what its colors mean."""
        if self.labels is not None and place is not None:
            print(place)
            for color, name in zip(self.labels.colors(), self.labels.names, strict=True):
                print("  #{:02x}{:02x}{:02x}".format(*color), name)

    def _write_regions(self, image: Path, file: Path, explanation: "Explanation") -> None:
        from ..explaining.regions import region_files, save_regions

        assert self.typed.regions is not None
        folder, several = self.line.folder, len(self.line.images) > 1
        name = image.relative_to(folder.images).as_posix() if folder else image.name * several
        level: Threshold = "otsu" if self.typed.threshold is None else self.typed.threshold
        about = {"photo": name or str(image), "threshold": level}
        about |= {"model": explanation.model, "method": explanation.method}
        marked = explanation.regions(level)
        masks = [Path(self.typed.regions, name, mask) for mask in region_files(marked)]
        others = [file, *filter(None, [self.label_maps.get(image)])]
        check_outputs([*masks, *others], [image, *self.inputs])
        save_regions(marked, Path(self.typed.regions, name), about)


def _print_scores(explanation: "Explanation", targets: str) -> None:
    from ..explaining.drawing import titles

    what = "the text, and to what each word adds" if explanation.words else targets
    what = "the difference of two texts" if explanation.contrast else what
    what = "the best classes, with their probabilities" if explanation.calibration else what
    source = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    source += [explanation.calibration]
    if explanation.leave_one_out is not None:
        what = "the text, each word's share of it, and what is lost without it"
    print(f"cosine similarity to {what} ({', '.join(filter(None, source))}):")
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
