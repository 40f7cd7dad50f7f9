"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final

from typer import Argument, BadParameter, Option

from ..checks import check_outputs, find_file
from ..demo.catalog import FEELINGS
from ..errors import InputError, refuse
from ..explaining.request import (
    ENDINGS,
    LOADING,
    Conflict,
    Request,
    check_explain,
    default_sign,
    option,
)
from ..files import read_csv, read_field, replace_file, to_csv
from . import options, shared
from .options import Drawing, app, command

SCORES = "scores.csv"
_SCORE_COLUMNS: Final = ("image", "figure", "text", "score", "probability", "model", "method")
_Rows = list[dict[str, str]]

_FOR_TEXTS: Final[dict[str, Any]] = dict.fromkeys(("against", "reference", "words", "side"), ())
"""What goes with texts alone."""


def _threshold(text: str) -> str | float:
    with suppress(ValueError):
        if text in ("otsu", "mean") or 0 <= float(text) < 1:
            return text if text in ("otsu", "mean") else float(text)
    raise BadParameter(f"expected otsu, mean or a number in [0, 1), got {text}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Explain(Request, Drawing):
    """The arguments of `explain`, and the options that the command line adds."""

    rerun = ", with another -o"

    images: Annotated[list[str], Argument(metavar="IMAGE... [TEXT]...")]
    model: Any = field(default=None, metadata={"typed": list[str] | None})
    classes: Path | None = option(
        None,
        Conflict("names what to look for in the image", _FOR_TEXTS | {"emotions": ()}),
        one_model=True,
    )
    template: list[str] | None = option(needs=("classes",))
    top: Annotated[int | None, Option(min=1)] = option(needs=("classes",))
    emotions: Path | None = option(
        None,
        Conflict("looks for emotions, which have no words and no contrast", _FOR_TEXTS),
        one_model=True,
    )
    center: bool = option(False, needs=("emotions",))
    original: bool | None = None
    regions: Path | None = option(
        None, Conflict("marks places in the image", {"side": ("text",)}), one_model=True
    )
    threshold: Annotated[Any, Option(parser=_threshold, metavar="LEVEL")] = option(
        needs=("regions",)
    )
    output: Path | None = None


@command(
    app,
    "explain",
    'photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png',
    lists=options.methods,
)
def explain_command(args: Explain) -> None:
    """Draw where a model looks for each text; several models get a row each."""
    # All of the first part loads no torch: what is wrong with a line is said within a second.
    emotions, classes = args.emotions, args.classes
    line = shared.read_line(
        args, args.images, command="explain", kind="explained", needs_image=True
    )
    references = [find_file(other) for other in args.reference or []]
    refuse(_line_conflicts(args, line, references))
    others = options.check_texts([args.against] if args.against is not None else [])
    class_names, templates = shared.read_classes(classes, args.template, args.top)
    request: Any = replace(
        args,
        texts=line.texts or class_names or (list(FEELINGS) if emotions else None),
        reference=references[0] if len(references) == 1 else references or None,
        sign=default_sign(args.sign, args.against),
    )
    check_explain(request)
    options.check_method_name(request.method)
    named = [
        *line.texts,
        *(f"against {other}" for other in others),
        *["emotions"] * bool(emotions),
        *([classes.stem] if classes else []),
        *(path.stem for path in references),
    ]
    if line.folder is not None:
        figures = line.folder.files("explained", named)
    else:
        figures = shared.check_figures(line.images, args.output, "explained", named)
    inputs = [*references, emotions, args.texts_file, classes]
    check_outputs(figures.values(), [*figures, *inputs])
    shared.check_models(args, args.model or ())

    from ..explaining.explain import answer, check_choice_of, classify

    check_choice_of(request)
    models = args.model or shared.fitted_on(emotions) or [options.DEFAULT_MODEL]
    clips = [shared.load_model(args, name) for name in models]
    target = _make_target(clips[0], args, line.texts, class_names, templates)
    model: Any = clips if len(clips) > 1 else clips[0]
    request = replace(request, model=model, texts=target, **dict.fromkeys(LOADING))

    def draw(path: Path, file: Path) -> Any:
        if classes:
            how: Any = {n: getattr(request, n) for n in ("method", "sign", "whole", "hints", "top")}
            explanation = classify(path, target, model=model, templates=templates, **how)
        else:
            explanation = answer(replace(request, image=path))
        _write_results(args, line, path, file, explanation, inputs)
        return explanation

    if line.folder is not None:
        settings = {"figure": "explain", **{e.name: getattr(args, e.name) for e in fields(args)}}
        # a model counts by its identity, and what a limit left out can be added
        for free in ("model", "device", "output", "max_pixels", "quiet"):
            del settings[free]
        settings |= {"sign": request.sign, "template": templates}
        settings |= {"images": line.folder.images.resolve(), "targets": named}
        _draw_folder(line.folder, figures, draw, clips, inputs, settings, quiet=args.quiet)
        return
    kinds = "each --image" if references else "each "
    kinds += " and ".join(["text"] * bool(line.texts) + ["emotion"] * bool(emotions))
    for path, file in figures.items():
        with shared.step("explaining", quiet=args.quiet):
            drawn = draw(path, file)
        for explanation in drawn if len(clips) > 1 else [drawn]:
            _print_scores(explanation, kinds)
            for sentences in explanation.hints:
                print(*sentences, sep="\n", end="\n" * bool(sentences))
        print(file)


def _line_conflicts(
    args: Explain, line: shared.Line, references: Sequence[Path]
) -> Iterator[tuple[object, str]]:
    """What does not go together besides what the fields say."""
    args.check_file(args.output or Path())
    no_figure = args.output is not None and args.output.suffix.lower() in ENDINGS[-3:]
    several = len(args.model or []) > 1
    single = f"-o {args.output}" if no_figure else "a folder"
    yield (
        several and (no_figure or line.folder),
        f"{single} works with one --model; run each by itself, with another -o.",
    )
    nothing = not (line.texts or args.emotions or references or args.classes)
    yield args.classes and line.texts, "--classes FILE replaces TEXTs; leave one of the two out."
    yield nothing, "expected a TEXT, --emotions FILE or --image FILE, got none."
    is_pair = args.side == "pairs" and references
    yield is_pair and len(references) > 1, f"--side pairs takes one --image, got {len(references)}."
    yield (
        is_pair and args.original,
        "--side pairs draws two images as the model saw them; leave --original out.",
    )


def _make_target(
    clip: Any, args: Explain, texts: list[str], classes: list[str], templates: list[str]
) -> Any:
    """What is looked for: classes, or texts, with emotions after them."""
    from .. import targets
    from ..explaining.explain import of_classes

    if args.emotions is None:
        return of_classes(clip, classes, templates) if args.classes else texts or None
    from ..targets import EmotionProbe

    emotions = targets.emotion(clip, EmotionProbe.load(args.emotions), center=args.center)
    return targets.concatenate([*([targets.text(clip, texts)] if texts else []), emotions])


def _write_results(
    args: Explain,
    line: shared.Line,
    image: Path,
    file: Path,
    explanation: Any,
    inputs: Sequence[Path | None],
) -> None:
    """Write what is asked for of an image: regions, and the figure."""
    from ..explaining.regions import region_files, save_regions

    if args.regions is not None:
        folder = line.folder
        name = image.name * (len(line.images) > 1)
        name = image.relative_to(folder.images).as_posix() if folder else name
        level = "otsu" if args.threshold is None else args.threshold
        about = {"photo": name or str(image), "threshold": level}
        about |= {"model": explanation.model, "method": explanation.method}
        marked = explanation.regions(level)
        masks = [Path(args.regions, name, mask) for mask in region_files(marked)]
        check_outputs([*masks, file], [image, *inputs])
        save_regions(marked, Path(args.regions, name), about)
    explanation.save(file, original=args.original)


def _print_scores(explanation: Any, targets: str) -> None:
    is_pair = explanation.leave_one_out is not None
    kinds = {
        "the text, each word's share of it, and what is lost without it": is_pair,
        "the best classes, with their probabilities": explanation.calibration,
        "the difference of two texts": explanation.contrast,
        "the text, and to what each word adds": explanation.words,
        targets: True,
    }
    what = next(kind for kind, holds in kinds.items() if holds)
    source = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    source += [explanation.calibration]
    print(f"cosine similarity to {what} ({', '.join(filter(None, source))}):")
    [rows] = explanation.shown()
    for index, shown in enumerate(rows if explanation.reference is None else rows[:1]):
        title = shown.title + " (whole text)" * (is_pair and index == 0)
        detail = shown.detail.replace("\N{MINUS SIGN}", "-")
        print(f"  {explanation.scores[0, index]:6.3f}  {title}{'   ' * bool(detail)}{detail}")
        if explanation.text_maps:
            values = (f"{word} {value:+.3f}" for word, value in explanation.text_maps[index])
            print(f"          {'  '.join(values)}")


def _draw_folder(
    folder: shared.Folder,
    figures: Mapping[Path, Path],
    draw: Callable[[Path, Path], Any],
    *others: Any,
    quiet: bool,
) -> None:
    """Draw the images of a folder, with a line for each, a table of scores and a page of all."""
    from ..visualization.overlays import numbered

    photos, output = folder.images, folder.output
    scores, left_out = _read_scores(output, photos), dict[Path, str]()
    before = len(scores)

    def keep(image: Path, file: Path) -> None:
        explanation = draw(image, file)
        about = image.relative_to(photos).as_posix(), file.relative_to(output).as_posix()
        source = explanation.model, explanation.method
        values, shares = explanation.scores[0].tolist(), explanation.probabilities
        written = [""] * len(values) if shares is None else map("{:.6f}".format, shares[0].tolist())
        names = explanation.names if explanation.reference is None else explanation.names[:1]
        cells = zip(names, map("{:.6f}".format, values), written, strict=False)
        rows = [(*about, *of_text, *source) for of_text in cells]
        scores[file] = [dict(zip(_SCORE_COLUMNS, row, strict=True)) for row in rows]

    try:
        left_out = shared.draw_folder(folder, figures, keep, *others, scored=scores, quiet=quiet)
    finally:  # a run that is stopped goes on with what it has
        if len(scores) > before:
            _write_sheet(output, photos, scores, left_out)
    lines, ranked = {}, [["", "class", "cosine", "probability"]]
    for rows in (scores[file] for file in figures.values() if file in scores):
        names = numbered([row["text"] for row in rows])
        lines[rows[0]["image"]] = {
            name: float(row["score"]) for name, row in zip(names, rows, strict=True)
        }
        for name, row in zip(names, rows, strict=True):
            cells = (f"{float(row[column]):.3f}" for column in ("score", "probability"))
            ranked += [[row["image"], name, *cells]] if row["probability"] else []
    # each image has classes of its own
    print(*(shared.columns(ranked, str.rjust) if ranked[1:] else shared.table(lines)), sep="\n")
    print(output / SCORES, output / shared.INDEX, sep="\n")


def _read_scores(folder: Path, photos: Path) -> dict[Path, _Rows]:
    """The rows of each figure that is there as its photo is; none without a file of them."""
    scores: dict[Path, _Rows] = {}
    with suppress(InputError, ValueError):
        for values in read_csv(folder / SCORES)[1:]:
            row = dict(zip(_SCORE_COLUMNS, map(read_field, values), strict=True))
            figure = folder / row["figure"]
            if figure.is_file() and (photos / row["image"]).is_file():
                scores.setdefault(figure, []).append(row)
    return scores


def _write_sheet(
    folder: Path, photos: Path, scores: Mapping[Path, _Rows], left_out: Mapping[Path, str]
) -> None:
    """Write the table and the page into a folder of figures, with what has none, and why."""
    named = sorted(scores.values(), key=lambda rows: (rows[0]["image"], rows[0]["figure"]))
    cards = sorted(named, key=lambda rows: -max(float(row["score"]) for row in rows))
    rows = [row for card in named for row in card]
    table = to_csv({column: [row[column] for row in rows] for column in _SCORE_COLUMNS})
    replace_file(folder / SCORES, lambda file: file.write(table))
    why = {path.relative_to(photos): reason for path, reason in left_out.items()}
    page = Path(__file__).with_name("contact_sheet.html")
    shared.write_index(folder, photos, page, cards=cards, rows=rows, left_out=why, scores=SCORES)
