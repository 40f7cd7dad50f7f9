"""``captum-clip explain``: an image, or each of a folder, with texts or emotions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import click

from ..checks import check_outputs, find_file
from ..demo.catalog import FEELINGS
from ..errors import InputError, refuse
from ..explaining.request import (
    LOADING,
    Conflict,
    Request,
    Side,
    Sign,
    check_explain,
    default_sign,
    rule,
)
from ..files import read_csv, read_field, replace_file, to_csv
from ..look import Look, current_look
from . import options, shared
from .application import PATH, Range, app, argument, option
from .options import Loading

SCORES: Final = "scores.csv"
_SCORE_COLUMNS: Final = ("image", "figure", "text", "score", "probability", "model", "method")
_NO_FIGURES: Final = (".npz", ".npy", ".html")
"""Endings of results that are no figures, and for one model at a time."""
_TEXTS: Final = "Texts"
_CLASSES: Final = "Classes and emotions"
_PICTURE: Final = "Picture"
_REGIONS: Final = "Regions"
_FOR_TEXTS: Final[dict[str, tuple[Any, ...]]] = {
    "against": (),
    "reference": (),
    "words": (),
    "side": (),
}
"""Arguments that only texts have."""
_Rows = list[dict[str, str]]
"""The rows of one figure in the table of scores, each by the names of its columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _LineRequest(Request):
    """A request with the arguments that the command line adds, and what each of them excludes."""

    rerun = ", with another -o"

    classes: Path | None = rule(
        None,
        Conflict("names what to look for in the image", {**_FOR_TEXTS, "emotions": ()}),
        one_model=True,
    )
    template: tuple[str, ...] = rule((), needs=("classes",))
    top: int | None = rule(needs=("classes",))
    emotions: Path | None = rule(
        None,
        Conflict("looks for emotions, which have no words and no contrast", _FOR_TEXTS),
        one_model=True,
    )
    center: bool = rule(False, needs=("emotions",))
    regions: Path | None = rule(
        None, Conflict("marks places in the image", {"side": ("text",)}), one_model=True
    )
    threshold: str | float | None = rule(needs=("regions",))


def _threshold(text: str) -> str | float:
    """Parse the value of --threshold."""
    if text in ("otsu", "mean"):
        return text
    with suppress(ValueError):
        share = float(text)
        if 0 <= share < 1:
            return share
    raise click.BadParameter(f"expected otsu, mean or a number in [0, 1), got {text}.")


@app.command(
    "explain",
    panel="Maps",
    example='photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png',
    lists=options.list_methods,
)
@argument(
    "images",
    nargs=-1,
    required=True,
    metavar="IMAGE... [TEXT]...",
    help="image files, or a folder whose images each get a figure; then what to look for",
)
@option(
    "--model",
    "-m",
    multiple=True,
    metavar="NAME",
    help="a name that 'captum-clip models' lists, a folder, or a model on the Hugging Face hub "
    "(default: ViT-B/32, or the one that --emotions was fitted on); may be repeated",
)
@option(
    "--method",
    metavar="METHOD",
    help="a method listed below, with options as in last-grad:heads=averaged, or mamooler: "
    "last-grad for ViTs, conservative for pooling heads, grad-cam for ResNets (default: direct; "
    "conservative for pooling heads such as SigLIP's)",
)
@option(
    "--output",
    "-o",
    type=PATH,
    metavar="FILE",
    help="a .png, .jpg, .pdf or .svg figure, an .html page to point at words and regions, .npz "
    "for the maps and all else, or .npy for the maps alone; for several images or a folder, a "
    "folder of figures (default: IMAGE-explained-TEXT.png, or FOLDER-explained, in the current "
    "folder); for a folder of images, figures that the same settings drew are kept",
)
@options.texts_file_option(section=_TEXTS)
@option(
    "--sign",
    type=click.Choice(get_args(Sign)),
    section=_TEXTS,
    help="show what supports the text, what contradicts it, or both (default: positive; with "
    "--against, both)",
)
@option(
    "--side",
    type=click.Choice(get_args(Side)),
    default="image",
    section=_TEXTS,
    help="explain where in the image, which words of the TEXTs, or both; words need a method "
    "without a grid (default: conservative); pairs: which word of one TEXT, or which region of "
    "--image, matches which region",
)
@option(
    "--words",
    is_flag=True,
    section=_TEXTS,
    help="split one TEXT into words, and draw a map for each",
)
@option(
    "--against",
    metavar="TEXT",
    section=_TEXTS,
    help="a text to contrast one TEXT with; the maps show what speaks for TEXT rather than for it",
)
@option(
    "--image",
    "reference",
    multiple=True,
    metavar="FILE",
    section=_TEXTS,
    help="an image to compare with, instead of TEXTs; only one with --side pairs; may be repeated",
)
@option(
    "--hints/--no-hints",
    default=None,
    section=_TEXTS,
    help="say which maps to doubt: those of a TEXT that fits no better than unrelated texts, and "
    "those that any text would get (default: for TEXTs, unless --sign negative or --side text)",
)
@option(
    "--classes",
    type=PATH,
    metavar="FILE",
    section=_CLASSES,
    help="a file of class names, one per line, instead of TEXTs; the most probable are drawn, "
    "with their probabilities among these classes at the model's own temperature (SigLIP: each "
    "by itself)",
)
@option(
    "--template",
    multiple=True,
    metavar="TEXT",
    section=_CLASSES,
    help='a prompt for the --classes, such as "a photo of a {}"; the embeddings of several '
    "prompts are averaged (default: the lines of templates.txt next to the file, else the "
    "names); may be repeated",
)
@option(
    "--top",
    type=Range(int, 1),
    metavar="N",
    section=_CLASSES,
    help="how many of the --classes to draw (default: 3)",
)
@option("--emotions", type=PATH, metavar="FILE", section=_CLASSES, help=options.PROBE)
@option(
    "--center",
    is_flag=True,
    section=_CLASSES,
    help="subtract the mean of all nine embeddings of --emotions from each of them",
)
@option(
    "--regions",
    type=PATH,
    metavar="FOLDER",
    section=_REGIONS,
    help="a folder for the regions that the maps mark: a PNG mask for each map, and its boxes "
    "and peak as JSON, in pixels of the image",
)
@option(
    "--threshold",
    type=_threshold,
    metavar="LEVEL",
    section=_REGIONS,
    help="--regions keep the values of a map above this level: otsu, mean, or a share of its "
    "maximum in [0, 1) (default: otsu)",
)
@option(
    "--whole",
    is_flag=True,
    section=_PICTURE,
    help="pad the image to a square, so that the model sees all of it, if its processor would "
    "otherwise crop it to the middle",
)
@option(
    "--original/--no-original",
    default=None,
    section=_PICTURE,
    help="draw the whole image, gray where the model did not see it, or only what the model saw "
    "(default: the whole image if it was cropped or padded)",
)
@option(
    "--maps",
    is_flag=True,
    section=_PICTURE,
    help="write the raw maps beside each figure, as .npy (images, TEXTs, height, width); "
    "signed with --sign both",
)
@options.drawing_options
@options.image_size_option
@options.loading_options
def explain_command(
    images: tuple[str, ...],
    model: tuple[str, ...],
    method: str | None,
    output: Path | None,
    texts_file: Path | None,
    sign: Sign | None,
    side: Side,
    words: bool,
    against: str | None,
    reference: tuple[str, ...],
    hints: bool | None,
    classes: Path | None,
    template: tuple[str, ...],
    top: int | None,
    emotions: Path | None,
    center: bool,
    maps: bool,
    regions: Path | None,
    threshold: str | float | None,
    whole: bool,
    original: bool | None,
    image_size: int | None,
    loading: Loading,
) -> None:
    """Draw where a model looks for each text; several models get a row each."""
    # Nothing loads torch until the whole line is checked, so a wrong one is refused at once.
    loading = replace(loading, image_size=image_size)
    line = shared.read_line(
        images,
        texts_file,
        output,
        command="explain",
        kind="explained",
        needs_image=True,
        skips_broken=True,
    )
    references = [find_file(file) for file in reference]
    current_look.get().check_file(output or Path())
    refuse(
        _line_conflicts(
            line,
            references,
            model=model,
            output=output,
            classes=classes,
            emotions=emotions,
            side=side,
            original=original,
            maps=maps,
        )
    )
    contrasted = options.check_texts([against] if against is not None else [])
    class_names, templates = shared.read_classes(classes, template, top)
    texts: Any = line.texts or class_names
    if emotions and not texts:
        # Until the probe is loaded, the emotions' names stand for the target, and are checked.
        texts = list(FEELINGS)
    request = _LineRequest(
        texts=texts or None,
        against=against,
        reference=references[0] if len(references) == 1 else references or None,
        model=model,
        method=method,
        sign=default_sign(sign, against),
        words=words,
        side=side,
        whole=whole,
        hints=hints,
        processor=loading.processor,
        tokenizer=loading.tokenizer,
        device=loading.device,
        image_size=image_size,
        classes=classes,
        template=template,
        top=top,
        emotions=emotions,
        center=center,
        regions=regions,
        threshold=threshold,
    )
    check_explain(request)
    options.check_method_name(method)
    targets = _name_targets(line.texts, contrasted, emotions, classes, references)
    if line.folder is None:
        figures = shared.check_figures(line.images, output, "explained", targets)
    else:
        figures = line.folder.files("explained", targets)
    inputs = [*references, emotions, texts_file, classes]
    arrays = [_maps_beside(figure) for figure in figures.values() if maps]
    check_outputs([*figures.values(), *arrays], [*figures, *inputs])
    shared.check_models(model, loading)

    from ..explaining.explain import check_choice_of

    check_choice_of(request)
    names = model or shared.fitted_on(emotions) or [options.DEFAULT_MODEL]
    clips = [shared.load_model(name, loading) for name in names]
    target = _make_target(clips[0], request, line.texts, class_names, templates)
    # The models are loaded by now, so the request no longer says how to load them.
    without_loading: dict[str, Any] = dict.fromkeys(LOADING)
    model_or_models = clips if len(clips) > 1 else clips[0]
    loaded = replace(request, model=model_or_models, texts=target, **without_loading)

    def explain_one(image: Path) -> Any:
        return _explain_image(loaded, image, templates)

    def write(explanation: Any, image: Path, file: Path) -> list[Path]:
        written = [file]
        if maps:
            beside = _maps_beside(file)
            _save_maps(explanation, beside)
            written.append(beside)
        if regions is not None:
            written += _write_regions(explanation, regions, threshold, line, image, file, inputs)
        # The figure is written last, so that one which exists has all that belongs to it.
        explanation.save(file, original=original)
        return written

    if line.folder is not None:
        settings = {
            "figure": "explain",
            **vars(current_look.get()),
            "texts_file": texts_file,
            "against": against,
            "reference": reference or None,
            "method": method,
            "sign": request.sign,
            "words": words,
            "side": side,
            "whole": whole,
            "hints": hints,
            # A limit of pixels is no setting, so that images which it left out can be added.
            "processor": loading.processor,
            "tokenizer": loading.tokenizer,
            "image_size": image_size,
            "images": line.folder.images.resolve(),
            "classes": classes,
            "template": templates,
            "top": top,
            "emotions": emotions,
            "center": center,
            "original": original,
            "maps": maps or None,
            "regions": regions,
            "threshold": threshold,
            "targets": targets,
        }

        def draw(image: Path, file: Path) -> Any:
            explanation = explain_one(image)
            write(explanation, image, file)
            return explanation

        _draw_folder(line.folder, figures, draw, clips, inputs, settings, quiet=loading.quiet)
        return
    compared = _name_compared(line.texts, emotions, references)
    several = len(clips) > 1
    _draw_listed(
        figures,
        explain_one,
        write,
        compared,
        line.left_out,
        several=several,
        quiet=loading.quiet,
    )


def _draw_listed(
    figures: Mapping[Path, Path],
    explain_one: Callable[[Path], Any],
    write: Callable[[Any, Path, Path], list[Path]],
    compared: str,
    unread: Mapping[Path, str],
    *,
    several: bool,
    quiet: bool,
) -> None:
    """Draw images that are listed, and print the scores of each by one or several models.

    Images that cannot be read or explained are left out, and the command then fails at its end.
    A file that cannot be written ends it at once.
    """
    failed: dict[Path, str] = {}
    for image, file in figures.items():
        try:
            with shared.step("explaining", quiet=quiet):
                explained = explain_one(image)
        except InputError as error:
            failed[image] = error.reason
            # Where no image can be explained, the line is at fault, not a file.
            if len(failed) == len(figures):
                raise
            continue
        with shared.step("drawing", quiet=quiet):
            written = write(explained, image, file)
        for explanation in explained if several else [explained]:
            _print_scores(explanation, compared)
        print(*written, sep="\n")
    left_out = {**unread, **failed}
    shared.report_skipped(left_out)
    if left_out:
        # The line names each of these images, so leaving one out is an error.
        raise click.exceptions.Exit(2)


def _save_maps(explanation: Any, file: Path) -> None:
    """Write the maps alone, to which the options of how a figure looks do not apply."""
    token = current_look.set(Look())
    try:
        explanation.save(file)
    finally:
        current_look.reset(token)


def _maps_beside(figure: Path) -> Path:
    """Name the file of raw maps of a figure."""
    return figure.with_suffix(".npy")


def _line_conflicts(
    line: shared.Line,
    references: Sequence[Path],
    *,
    model: Sequence[str],
    output: Path | None,
    classes: Path | None,
    emotions: Path | None,
    side: Side,
    original: bool | None,
    maps: bool,
) -> Iterator[tuple[object, str]]:
    """Yield conditions, and what to say where one holds, besides the rules of the request."""
    if maps and output is not None and output.suffix.lower() in _NO_FIGURES:
        yield True, f"--maps writes maps beside a figure; -o {output} is none, so leave it out."
    if maps and side == "text":
        yield True, "--maps writes maps of the image, which --side text has not; use --side both."
    if len(model) > 1:
        advice = "works with one --model; run each by itself, with another -o."
        is_figure = output is None or output.suffix.lower() not in _NO_FIGURES
        yield not is_figure, f"-o {output} {advice}"
        yield maps, f"--maps {advice}"
        yield line.folder, f"a folder {advice}"
    yield classes and line.texts, "--classes FILE replaces TEXTs; leave one of the two out."
    has_target = line.texts or emotions or references or classes
    yield not has_target, "expected a TEXT, --emotions FILE or --image FILE, got none."
    if side == "pairs" and references:
        count = len(references)
        yield count > 1, f"--side pairs takes one --image, got {count}."
        yield (
            original,
            "--side pairs draws two images as the model saw them; leave --original out.",
        )


def _name_targets(
    texts: Sequence[str],
    contrasted: Sequence[str],
    emotions: Path | None,
    classes: Path | None,
    references: Sequence[Path],
) -> list[str]:
    """Name what is looked for, as the names of the figures have it."""
    names = [*texts, *(f"against {text}" for text in contrasted)]
    if emotions is not None:
        names.append("emotions")
    if classes is not None:
        names.append(classes.stem)
    return names + [path.stem for path in references]


def _name_compared(texts: Sequence[str], emotions: Path | None, references: Sequence[Path]) -> str:
    """Name what an image is compared with, as its scores are headed."""
    if references:
        return "each --image"
    if texts and emotions is not None:
        return "each text and emotion"
    return "each text" if texts else "each emotion"


def _make_target(
    clip: Any, request: _LineRequest, texts: list[str], classes: list[str], templates: list[str]
) -> Any:
    """Make what is looked for: classes, or texts, with emotions after them."""
    from .. import targets
    from ..explaining.explain import of_classes
    from ..targets import EmotionProbe

    if request.classes is not None:
        return of_classes(clip, classes, templates)
    if request.emotions is None:
        return texts or None
    probe = EmotionProbe.load(request.emotions)
    emotions = targets.emotion(clip, probe, center=request.center)
    if not texts:
        return emotions
    return targets.concatenate([targets.text(clip, texts), emotions])


def _explain_image(request: _LineRequest, image: Path, templates: Sequence[str]) -> Any:
    """Explain an image: where the request has classes, its best classes."""
    from ..explaining.explain import answer, classify

    if request.classes is None:
        return answer(replace(request, image=image))
    return classify(
        image,
        request.texts,
        model=request.model,
        templates=templates,
        top=request.top,
        method=request.method,
        sign=request.sign,
        whole=request.whole,
        hints=request.hints,
    )


def _write_regions(
    explanation: Any,
    folder: Path,
    threshold: str | float | None,
    line: shared.Line,
    image: Path,
    file: Path,
    inputs: Sequence[Path | None],
) -> list[Path]:
    """Write the regions that the maps of an image mark, with a folder for each of several.

    Returns:
        The files.
    """
    from ..explaining.regions import region_files, save_regions

    # The regions of a single image lie in the folder itself.
    name = ""
    if line.folder is not None:
        name = image.relative_to(line.folder.images).as_posix()
    elif len(line.images) > 1:
        name = image.name
    level = "otsu" if threshold is None else threshold
    about = {
        "photo": name or str(image),
        "threshold": level,
        "model": explanation.model,
        "method": explanation.method,
    }
    marked = explanation.regions(level)
    files = [folder / name / file_name for file_name in region_files(marked)]
    check_outputs([*files, file], [image, *inputs])
    save_regions(marked, folder / name, about)
    return files


def _print_scores(explanation: Any, compared: str) -> None:
    """Print the cosine similarities of an image, what each is a similarity to, and the hints."""
    is_pair = explanation.leave_one_out is not None
    compared = _describe_scores(explanation) or compared
    source = [explanation.model, explanation.method, " and ".join(explanation.maps)]
    source.append(explanation.calibration)
    print(f"cosine similarity to {compared} ({', '.join(filter(None, source))}):")
    [rows] = explanation.shown()
    if explanation.reference is not None:
        # The other targets are the cells of the reference, too many to print.
        rows = rows[:1]
    for index, shown in enumerate(rows):
        title = " ".join(shown.title.split())  # A text may have several lines.
        if is_pair and index == 0:
            title += " (whole text)"
        if shown.detail:
            title += "   " + shown.detail.replace("\N{MINUS SIGN}", "-")
        print(f"  {explanation.scores[0, index]:6.3f}  {title}")
        if explanation.text_maps:
            values = [f"{word} {value:+.3f}" for word, value in explanation.text_maps[index]]
            print(f"          {'  '.join(values)}")
    for sentences in explanation.hints:
        for sentence in sentences:
            print(sentence)


def _describe_scores(explanation: Any) -> str:
    """Describe what the scores of an explanation compare, if that depends on its kind."""
    if explanation.leave_one_out is not None:
        return "the text, each word's share of it, and what is lost without it"
    if explanation.calibration:
        return "the best classes, with their probabilities"
    if explanation.contrast:
        return "the difference of two texts"
    if explanation.words:
        return "the text, and to what each word adds"
    return ""


def _draw_folder(
    folder: shared.Folder,
    figures: Mapping[Path, Path],
    draw: Callable[[Path, Path], Any],
    clips: Sequence[Any],
    inputs: Sequence[Path | None],
    settings: Mapping[str, Any],
    *,
    quiet: bool,
) -> None:
    """Draw the images of a folder, with a line for each, a table of scores and a page of all."""
    photos, output = folder.images, folder.output
    scores = _read_scores(output, photos)
    count_before = len(scores)
    left_out: dict[Path, str] = {}

    def draw_and_keep(image: Path, file: Path) -> None:
        explanation = draw(image, file)
        names = explanation.names if explanation.reference is None else explanation.names[:1]
        cosines = explanation.scores[0].tolist()
        probabilities = [None] * len(cosines)
        if explanation.probabilities is not None:
            probabilities = explanation.probabilities[0].tolist()
        rows = []
        # For a pair of images there is the name of the reference alone, without those of its cells.
        for name, cosine, probability in zip(names, cosines, probabilities, strict=False):
            rows.append(
                {
                    "image": image.relative_to(photos).as_posix(),
                    "figure": file.relative_to(output).as_posix(),
                    "text": name,
                    "score": f"{cosine:.6f}",
                    "probability": "" if probability is None else f"{probability:.6f}",
                    "model": explanation.model,
                    "method": explanation.method,
                }
            )
        scores[file] = rows

    try:
        left_out = shared.draw_folder(
            folder, figures, draw_and_keep, clips, inputs, settings, scored=scores, quiet=quiet
        )
    finally:
        # A run that was stopped goes on with the scores that it has.
        if len(scores) > count_before:
            _write_sheet(output, photos, scores, left_out)
    _print_folder([scores[file] for file in figures.values() if file in scores])
    written = [output / SCORES, output / shared.INDEX]
    if settings["regions"] is not None:
        # The images of a folder may have thousands of regions, so they are not listed.
        written.append(settings["regions"])
    print(*written, sep="\n")


def _print_folder(figures: Sequence[_Rows]) -> None:
    """Print the scores of each figure: a line for each image, or for each of its best classes."""
    from ..visualization.overlays import numbered

    cosines: dict[str, dict[str, float]] = {}
    ranked = [["", "class", "cosine", "probability"]]
    for rows in figures:
        image = rows[0]["image"]
        cosines[image] = {}
        for name, row in zip(numbered([row["text"] for row in rows]), rows, strict=True):
            cosine = float(row["score"])
            cosines[image][name] = cosine
            if row["probability"]:
                ranked.append([image, name, f"{cosine:.3f}", f"{float(row['probability']):.3f}"])
    # Each image has its own best classes, so they have no columns in common.
    has_classes = len(ranked) > 1
    lines = shared.columns(ranked, str.rjust) if has_classes else shared.table(cosines)
    for rows in figures[:1]:
        print(f"cosine similarity ({rows[0]['model']}, {rows[0]['method']}):")
    print(*lines, sep="\n")


def _read_scores(folder: Path, photos: Path) -> dict[Path, _Rows]:
    """Read the rows of each figure that still exists with its photo; none without the table."""
    scores: dict[Path, _Rows] = {}
    with suppress(InputError, ValueError):
        for values in read_csv(folder / SCORES)[1:]:
            row = dict(zip(_SCORE_COLUMNS, map(read_field, values), strict=True))
            figure = folder / row["figure"]
            # The user may have deleted either since.
            if figure.is_file() and (photos / row["image"]).is_file():
                scores.setdefault(figure, []).append(row)
    return scores


def _write_sheet(
    folder: Path, photos: Path, scores: Mapping[Path, _Rows], left_out: Mapping[Path, str]
) -> None:
    """Write the table and the page into a folder of figures, with what was left out, and why."""
    by_name = sorted(scores.values(), key=lambda rows: (rows[0]["image"], rows[0]["figure"]))
    by_score = sorted(by_name, key=lambda rows: -max(float(row["score"]) for row in rows))
    rows = [row for figure_rows in by_name for row in figure_rows]
    table = to_csv({column: [row[column] for row in rows] for column in _SCORE_COLUMNS})
    replace_file(folder / SCORES, lambda file: file.write(table))
    shared.write_index(
        folder,
        photos,
        Path(__file__).with_name("contact_sheet.html"),
        cards=by_score,
        rows=rows,
        left_out={path.relative_to(photos): reason for path, reason in left_out.items()},
        scores=SCORES,
    )
