"""The commands of the bench: ``study``, ``evaluate``, ``emotions fit`` and ``figure``."""

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from typer import Argument, Typer

from ..checks import check_destination, check_outputs, current_look, expand, find_folder
from ..cli import options, shared
from ..cli.options import DEFAULT_MODEL, Computing, Drawing, Loading, Texts, Workers, app, command
from ..errors import InputError, argument, refuse
from ..files import replace_file

_LISTED: Final = {name: options.OPTIONS["listed"][name] for name in ("tasks", "data sets")}
_KEYWORDS: Final = ("references", "methods", "names")
"""Options that are keywords of functions of :mod:`captum_clip.bench.figures`."""


_emotions = Typer(help="Fit an emotion probe on a model's features.")
app.add_typer(_emotions, name="emotions")


@dataclass(frozen=True, kw_only=True)
class Study(Computing):
    """What is studied, and on which images."""

    study: Literal["statistics", "emotions"]
    images: str
    output: str
    texts: Texts = None
    texts_file: Path | None = None
    models: Texts = None
    methods: Texts = None
    emotions: list[Path] | None = None
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    value_entropy: bool = False


@command(app, "study", 'statistics photos "a horse" -o horses', lists=options.methods)
def study_command(args: Study) -> None:
    """Average maps over a folder of images, and measure them.

    Run it again after an interruption, and it resumes.
    """
    texts = [*options.check_texts(args.texts or ()), *options.read_texts(args.texts_file)]
    if "://" not in args.images:
        find_folder(args.images)
    shared.check_models(args, args.models or ())
    from .. import bench

    presets: dict[str, Any] = {
        "statistics": bench.StudyConfig,
        "emotions": bench.emotions_study,
    }
    if args.study == "emotions" and (texts or not args.emotions):
        raise InputError("study emotions takes an --emotions FILE for each model, and no texts.")
    settings = args.settings("study", "texts", "texts_file") | ({"texts": texts} if texts else {})
    if not args.models and (fitted := shared.fitted_on(*args.emotions or ())):
        settings["models"] = fitted
    config = presets[args.study](**settings)
    with shared.images_bar("study", quiet=args.quiet) as progress:
        result = bench.run_study(config, progress=progress)
    folder = args.output.rstrip("/")
    print(f"statistics  {folder}/statistics.csv\nmean maps   {folder}/mean_maps.png")
    if result.skipped:
        print(
            f"skipped     {len(result.skipped)} of {result.images} images; the reasons are in "
            f"{folder}/manifest.json"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Computing):
    """What is measured, on which images, and how often."""

    output: str
    model: str = DEFAULT_MODEL
    data: Texts = None
    methods: Texts = None
    maps: Texts = None
    tasks: Texts = None
    reference: str | None = None
    against: Literal["text", "image"] = "text"
    images: int | None = None
    slow_images: int = 16
    seed: int = 0
    draws: int = 32
    chunk_size: int = 32
    resamples: int = 2000
    fills: Texts = None
    template: str | None = None


@command(
    app, "evaluate", "--model demo/vit -o evaluation", lists=lambda: options.methods() | _LISTED
)
def evaluate_command(args: Evaluate) -> None:
    """Measure which map is right: methods by metrics, with intervals."""
    from .. import bench
    from ..demo import MODELS

    shared.check_models(args, [args.model])
    folder = args.output.rstrip("/")
    config = bench.EvaluationConfig(**args.settings())
    if not config.data and args.model not in MODELS:
        raise InputError(
            "without --data, evaluate uses scenes drawn for the embedded models, and "
            f"{args.model} is not one of them ({', '.join(MODELS)}); give --data, such as "
            "coco:FILE,FOLDER or samples:FILE, or --data demo to use the scenes anyway."
        )
    with shared.images_bar("evaluate", quiet=args.quiet) as progress:
        result = bench.evaluate(config, progress=progress)
    written = {"report.html": "report", "results.md": "tables", "results.csv": "figures"}
    for name, what in (written | dict.fromkeys(result.curves, "curves")).items():
        print(f"{what:8} {folder}/{name}")
    for name, entries in result.skipped.items():
        if entries:
            print(f"skipped  {len(entries)} of {name}; the reasons are in {folder}/manifest.json")
    print("", *result.findings, sep="\n")


@dataclass(frozen=True, kw_only=True)
class Checked(Loading):
    """Which model is checked, on which image."""

    name: str
    image: Annotated[Path | None, Argument()] = None
    output: Path | None = None


@command(app, "check", "demo/vit -o check.json")
def check_command(args: Checked) -> None:
    """See which methods hold on a model, and what a map costs here.

    The file of --output holds no path. Attach it to an issue to verify the model for others.
    """
    file = args.output and check_destination(args.output, (".json",))
    image = args.image and shared.read_image(str(args.image))
    from ..explaining.check import check

    clip = shared.load_model(args, args.name)
    with shared.step("checking", quiet=args.quiet):
        checked = check(clip, image)
    reasons = [f"{name}: {row['why']}" for name, row in checked.methods.items() if "why" in row]
    print(*shared.columns(checked.rows, str.rjust), "", *reasons, sep="\n")
    for text, score in checked.scores.items():
        print(f"{score:.4f}  {text}")
    if file:
        replace_file(file, lambda opened: opened.write(checked.json))
        print(file)


@dataclass(frozen=True, kw_only=True)
class Fit(Loading):
    """What a probe is fitted on, and how."""

    folder: Path
    model: str
    output: Path
    csv: Path | None = None
    images: Path | None = None
    test: Path | None = None
    held_out: float = 0.2
    strength: float = 1e-3
    seed: int = 0
    workers: Workers = 0


@command(_emotions, "fit", "art --model ViT-B/32 -o emotions.safetensors")
def fit_command(args: Fit) -> None:
    """Fit a linear probe from a model's image features to the votes of ArtEmis."""
    if args.csv is None or args.images is None:
        find_folder(args.folder)
    file = check_destination(args.output, (".safetensors",))
    weights = Path(args.model).glob("*") if os.path.isdir(args.model) else ()
    check_outputs([file], [args.csv, *weights])
    shared.check_models(args, [args.model])
    from ..folders.workers import image_features
    from .emotions import check_fit, find_artemis, fit_emotions, read_artemis

    split: Any = {name: getattr(args, name) for name in ("seed", "held_out", "strength")}
    check_fit(**split)
    folder, test, csv, images = args.folder, args.test, args.csv, args.images
    if csv is None or images is None:
        default_csv, default_images = find_artemis(folder)
        csv, images = csv or default_csv, images or default_images
    check_outputs([file], [csv])
    sets = {folder: read_artemis(csv, images)}
    if test is not None:
        sets[test] = read_artemis(*find_artemis(test))
    for name, data in sets.items():
        print(f"{name}: {data}")
    clip = shared.load_model(args, args.model)
    reading: dict[str, Any] = {"workers": args.workers, "progress": shared.shows_bars(args.quiet)}
    probe, skipped = fit_emotions(clip, sets[folder], **split, **reading)
    scores = {} if probe.scores is None else {f"held out of {folder}": probe.scores}
    if test is not None:
        features = image_features(clip, sets[test].images, **reading)
        scores[str(test)] = probe.score(features.embeddings, sets[test].votes[features.indices])
        skipped |= features.skipped
    probe.save(file)
    shared.report_skipped(skipped)
    scored = {
        f"{title}, {painted}": vars(votes)
        for title, score in scores.items()
        for painted, votes in (("all", score.all), ("over half agree", score.agreed))
    }
    if scored:
        print("", *shared.table(scored), "", sep="\n")
    print(file)


@dataclass(frozen=True, kw_only=True)
class Figure(Loading, Drawing):
    """Which figure is drawn, of what, and how it looks."""

    figure: Literal["compare", "average"]
    words: Annotated[list[str] | None, Argument(metavar="[IMAGE]... [TEXT]...")] = None
    scene: list[str] | None = None
    references: list[str] | None = None
    model: list[str] | None = None
    methods: list[str] | None = None
    names: list[str] | None = None
    output: Path | None = None


@command(app, "figure", 'compare photo.jpg "a horse" -o compare.png', lists=options.methods)
def figure_command(args: Figure) -> None:
    """Draw a figure of the report on your own images."""
    figure, words = args.figure, args.words or []
    about: Any = {"command": f"figure {figure}", "kind": figure, "takes_folder": not args.scene}
    line: Any = None if figure == "average" else shared.read_line(args, words, **about)
    shared.check_models(args, args.model or ())
    from ..attr.registry import check_methods
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS
    from . import figures

    draw: Any = figures.compare_methods if figure == "compare" else figures.draw_average
    settings = {name: value for name in _KEYWORDS if (value := getattr(args, name))}
    for name in settings:
        if name not in inspect.signature(draw).parameters:
            raise InputError(f"figure {figure} has no option {argument(name)}.")
    check_methods(args.methods or ())
    if figure == "average":
        if not words:
            raise InputError("figure average needs an output folder of 'captum-clip study'.")
        studies = [expand(study) for study in words]
        output = args.output or f"{studies[0].resolve().name}-average.png"
        file = check_destination(output, FORMATS)
        print(save_figure(draw(studies, **settings), file))
        return
    models = args.model or ["demo/vit" if args.scene else DEFAULT_MODEL]
    others = [shared.read_image(name) for name in args.references or ()]
    images = [*line.images, *map(_draw_scene, args.scene or ())]
    refuse(_conflicts(figure, line, images, [*line.texts, *others]))
    named = [*line.texts, *(path.stem for path in others)]
    inputs = [*others, args.texts_file]
    files = line.folder.files(figure, named) if line.folder else {}
    if line.folder is None:
        scenes = [f"scene-{scene.partition(':')[0]}" for scene in args.scene or ()]
        stem = [*(path.stem for path in line.images), *scenes][0]
        output = args.output or shared.figure_name(stem, figure, named)
        file = check_destination(output, FORMATS)
    check_outputs(files.values() if files else [file], [*files, *line.images, *inputs])
    clips = [shared.load_model(args, name) for name in models]

    def save(image: Any, file: Path) -> None:
        save_figure(draw(image, line.texts, models=clips, **settings), file)

    if line.folder is not None:
        kept = {"figure": figure, **settings, "targets": named, **vars(current_look.get())}
        kept["images"] = line.folder.images.resolve()
        shared.draw_folder(line.folder, files, save, clips, inputs, kept, quiet=args.quiet)
        return
    with shared.step("drawing", quiet=args.quiet):
        save(images, file)
    print(file)


def _conflicts(
    figure: str, line: shared.Line, images: Sequence[Any], targets: Sequence[Any]
) -> Iterator[tuple[object, str]]:
    """What does not go together on a line."""
    yield not (images or line.folder), "expected an IMAGE, or --scene SEED, got neither."
    yield not targets, f"figure {figure} needs a target: a TEXT, or --image FILE."


def _draw_scene(text: str) -> Any:
    """Draw an image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo.scenes import draw_scene

    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    return draw_scene(int(seed), objects=objects).image
