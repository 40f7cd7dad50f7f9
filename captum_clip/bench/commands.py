"""The commands ``study``, ``evaluate``, ``check``, ``emotions fit`` and ``figure``."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from ..checks import check_destination, check_outputs, error_context, expand, find_folder
from ..cli import options, shared
from ..cli.application import PATH, Group, app, argument, option
from ..cli.options import DEFAULT_MODEL, Computing, Loading
from ..errors import InputError, refuse
from ..errors import argument as spell_argument
from ..files import replace_file
from ..look import current_look

TASKS: Final = (
    "thirds",
    "identical",
    "localization",
    "signs",
    "segmentation",
    "effect",
    "words",
    "grid",
    "perturbation",
    "faithfulness",
    "sanity",
    "pairs",
)
"""What --help lists; :mod:`captum_clip.bench.tasks`, which knows them too, would load torch."""
DATA_SETS: Final = (
    "demo",
    "demo-objects",
    "demo-mosaics",
    "demo-thirds",
    "demo-identical",
    "masks:FOLDER",
    "coco:FILE",
    "samples:FILE",
)


@app.command(
    "study",
    panel="Many images",
    example='statistics photos "a horse" -o horses',
    lists=options.list_methods,
)
@argument(
    "study",
    type=click.Choice(("statistics", "emotions")),
    help="statistics: mean maps with their spread, entropies and biases, for any texts and "
    "emotions; emotions: eight emotions, plain and centered, for a ViT and a ResNet",
)
@argument("images", metavar="FOLDER", help="a folder of images, searched recursively")
@argument("texts", nargs=-1, metavar="[TEXT]...", help="what to look for")
@option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="as in 'explain' (default: those that --emotions were fitted on, or ViT-B/32, and RN101 "
    "too for the study of emotions); may be repeated",
)
@option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="as in 'explain' (default: the same); may be repeated",
)
@option("--output", "-o", required=True, metavar="FOLDER", help="a folder for these results alone")
@options.texts_file_option()
@option(
    "--emotions",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help=f"{options.PROBE}; may be repeated",
)
@option("--limit", type=int, metavar="N", help="study a sample of this many images")
@option("--seed", type=int, default=0, metavar="N", help="the seed of that sample")
@option("--value-entropy", is_flag=True, help="also measure the entropy of values (slow)")
@options.computing_options(batch_size=16)
def study_command(
    study: str,
    images: str,
    texts: tuple[str, ...],
    models: tuple[str, ...],
    output: str,
    texts_file: Path | None,
    emotions: tuple[Path, ...],
    computing: Computing,
    **settings: Any,
) -> None:
    """Average maps over a folder of images, and measure them.

    Run it again after an interruption, and it resumes.
    """
    all_texts = [*options.check_texts(texts), *options.read_texts(texts_file)]
    if "://" not in images:
        find_folder(images)
    shared.check_models(models, computing.loading)
    from .. import bench

    if study == "emotions" and (all_texts or not emotions):
        raise InputError(
            "study emotions takes an --emotions FILE for each model, such as --emotions demo/vit, "
            "and no texts."
        )
    make_config: Any = bench.emotions_study if study == "emotions" else bench.StudyConfig
    # What is left out has the default of the settings' dataclass.
    config = make_config(
        images=images,
        output=output,
        **options.given(
            texts=tuple(all_texts),
            models=models or tuple(shared.fitted_on(*emotions)),
            emotions=emotions,
            **settings,
        ),
        **computing.settings(),
    )
    quiet = computing.loading.quiet
    with shared.images_bar("study", quiet=quiet) as progress:
        result = bench.run_study(config, progress=progress)
    folder = output.rstrip("/")
    print(f"statistics  {folder}/statistics.csv\nmean maps   {folder}/mean_maps.png")
    if result.skipped:
        print(
            f"skipped     {len(result.skipped)} of {result.images} images; the reasons are in "
            f"{folder}/manifest.json"
        )


@app.command(
    "evaluate",
    panel="Many images",
    example="--model demo/vit -o evaluation",
    lists=lambda: {**options.list_methods(), "tasks": TASKS, "data sets": DATA_SETS},
)
@options.model_option()
@option("--output", "-o", required=True, metavar="FOLDER", help="a folder for these results alone")
@option(
    "--data",
    multiple=True,
    metavar="DATA",
    help="a data set listed below, with its folder or file (default for embedded models: those "
    "that begin with demo; other models need --data); may be repeated",
)
@option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="a method listed below, with options as in last-grad:heads=averaged, or mamooler "
    '(default: those that fit the tower, and baselines); "all" adds variants, more baselines, '
    "and Captum's integrated-gradients and occlusion, which take most of the time; may be "
    "repeated",
)
@option(
    "--maps",
    multiple=True,
    metavar="FOLDER",
    help="a folder of maps made elsewhere: for each image IMAGE_STEM.npz with maps (K, h, w) and "
    "names (K,); may be repeated",
)
@option(
    "--task",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="a task listed below (default: all that the data support, except pairs); may be repeated",
)
@option(
    "--reference",
    metavar="METHOD",
    help="the method to compare all others with (default: last-grad for ViTs, "
    "grad-cam for ResNets, conservative for pooling heads)",
)
@option(
    "--against",
    type=click.Choice(("text", "image")),
    default="text",
    help="explain each region by its text, or by another image",
)
@option(
    "--images",
    type=int,
    metavar="N",
    help="how many images of each data set to use, at most (default: 100; 300 of "
    "demo-thirds and demo-identical)",
)
@option(
    "--slow-images",
    type=int,
    default=16,
    metavar="N",
    help="the same for what is slow: sensitivity, sanity, and Captum's own methods",
)
@option("--seed", type=int, default=0, metavar="N", help="the seed of every random choice")
@option(
    "--draws",
    type=int,
    default=32,
    metavar="N",
    help="random masks per image for faithfulness and infidelity",
)
@option(
    "--chunk-size",
    type=int,
    default=32,
    metavar="N",
    help="images per unit of work; an interrupted run repeats at most one unit",
)
@option(
    "--resamples",
    type=int,
    default=2000,
    metavar="N",
    help="the number of resamples of the bootstrap",
)
@option(
    "--fill",
    "fills",
    multiple=True,
    metavar="FILL",
    help="what removed pixels become: mean, black or blur (default: mean); may be repeated",
)
@option(
    "--template",
    metavar="TEXT",
    help='makes texts from class names, such as "a photo of a {}" (for coco and samples)',
)
@options.computing_options(workers="processes of Ray (default: one for each GPU, or one)")
def evaluate_command(
    model: str, output: str, data: tuple[str, ...], computing: Computing, **settings: Any
) -> None:
    """Measure which map is right: methods by metrics, with intervals."""
    from .. import bench
    from ..demo import MODELS

    shared.check_models([model], computing.loading)
    folder = output.rstrip("/")
    # What is left out has the default of the settings' dataclass.
    config = bench.EvaluationConfig(
        model=model,
        output=output,
        data=data,
        **options.given(**settings),
        **computing.settings(),
    )
    if not data and model not in MODELS:
        raise InputError(
            "without --data, evaluate uses scenes drawn for the embedded models, and "
            f"{model} is not one of them ({', '.join(MODELS)}); give --data, such as "
            "coco:FILE,FOLDER or samples:FILE, or --data demo to use the scenes anyway."
        )
    with shared.images_bar("evaluate", quiet=computing.loading.quiet) as progress:
        result = bench.evaluate(config, progress=progress)
    written = {"report.html": "report", "results.md": "tables", "results.csv": "figures"}
    written |= dict.fromkeys(result.curves, "curves")
    for name, content in written.items():
        print(f"{content:8} {folder}/{name}")
    for name, entries in result.skipped.items():
        if entries:
            what = "sample, region or map" if len(entries) == 1 else "samples, regions or maps"
            print(
                f"skipped  {len(entries)} {what} of {name}; the reasons are in "
                f"{folder}/manifest.json"
            )
    print("", *result.findings, sep="\n")


_LEGEND: Final = """\
adds up   largest error of map and remainder against the score; blank if no such sum is meant
oracle    largest error against the method's equation; blank if only the package's tests compare it
forwards  operations of a map, in forward passes; then its kernels and the memory of its tensors"""


@app.command("check", panel="Models", example="demo/vit -o check.json")
@argument("name", help="a model, as in --model of 'explain'")
@argument("image", type=PATH, required=False, help="an image to use in place of a drawn scene")
@option(
    "--output",
    "-o",
    type=PATH,
    metavar="FILE",
    help="a .json file with the table, versions, the device and a digest of the weights",
)
@options.loading_options
def check_command(name: str, image: Path | None, output: Path | None, loading: Loading) -> None:
    """See which methods hold on a model, and what a map costs here.

    The file of --output holds no path. Attach it to an issue to verify the model for others.
    """
    file = None if output is None else check_destination(output, (".json",))
    photo = None if image is None else shared.read_image(str(image))
    from ..explaining.check import check

    clip = shared.load_model(name, loading)
    with shared.step("checking", quiet=loading.quiet):
        checked = check(clip, photo)
    for line in shared.columns(checked.rows, str.rjust):
        print(line)
    print(f"\n{_LEGEND}\n")
    results = [row["result"] for row in checked.methods.values()]
    counts = [f"{results.count(result)} {result}" for result in dict.fromkeys(results)]
    print(f"methods for its tower: {', '.join(counts)}")
    for method, row in checked.methods.items():
        if "why" in row:
            print(f"{method}: {row['why']}")
    if checked.scores:
        print("\ncosine similarity to each text:")
    for text, score in checked.scores.items():
        print(f"{score:8.4f}  {text}")
    if file is not None:
        replace_file(file, lambda opened: opened.write(checked.json))
        print(file)


@app.group(
    "emotions",
    cls=Group,
    panel="Many images",
    no_args_is_help=False,
    help="Fit an emotion probe on a model's features.",
)
def emotions_group() -> None:
    """Hold the one command below."""


@emotions_group.command(
    "fit", panel="Commands", example="art --model ViT-B/32 -o emotions.safetensors"
)
@argument(
    "folder",
    type=PATH,
    help="a folder with artemis_dataset_release_v0.csv and images/ART_STYLE/PAINTING.jpg",
)
@options.model_option(default=None, required=True)
@option("--output", "-o", type=PATH, required=True, metavar="FILE", help="a .safetensors file")
@option("--csv", type=PATH, metavar="FILE", help="the annotations, if they are not in FOLDER")
@option("--images", type=PATH, metavar="FOLDER", help="the images, if they are not in FOLDER")
@option("--test", type=PATH, metavar="FOLDER", help="a second data set to score the probe on")
@option(
    "--held-out",
    type=float,
    default=0.2,
    metavar="SHARE",
    help="the share of the paintings kept for the scores",
)
@option(
    "--strength",
    type=float,
    default=1e-3,
    metavar="X",
    help="the strength of the penalty on the weights",
)
@option(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="the seed of the split into paintings to fit on and paintings to score",
)
@options.read_ahead_option
@options.loading_options
def fit_command(
    folder: Path,
    model: str,
    output: Path,
    csv: Path | None,
    images: Path | None,
    test: Path | None,
    held_out: float,
    strength: float,
    seed: int,
    workers: int,
    loading: Loading,
) -> None:
    """Fit a linear probe from a model's image features to the votes of ArtEmis."""
    if csv is None or images is None:
        find_folder(folder)
    file = check_destination(output, (".safetensors",))
    weights = Path(model).glob("*") if os.path.isdir(model) else ()
    check_outputs([file], [csv, *weights])
    shared.check_models([model], loading)
    from ..folders.workers import image_features
    from .emotions import check_fit, find_artemis, fit_emotions, read_artemis

    check_fit(seed=seed, held_out=held_out, strength=strength)
    if csv is None or images is None:
        default_csv, default_images = find_artemis(folder)
        csv = csv or default_csv
        images = images or default_images
    # The annotations that were found in the folder must not be overwritten either.
    check_outputs([file], [csv])
    data = read_artemis(csv, images)
    # The test may be the same folder, whose own files are then read.
    data_sets = {folder: data}
    if test is not None:
        data_sets[test] = read_artemis(*find_artemis(test))
    for name, data_set in data_sets.items():
        print(f"{name}: {data_set}")
    clip = shared.load_model(model, loading)
    shows_bars = shared.shows_bars(loading.quiet)
    probe, skipped = fit_emotions(
        clip,
        data_sets[folder],
        seed=seed,
        held_out=held_out,
        strength=strength,
        workers=workers,
        progress=shows_bars,
    )
    scores = {}
    if probe.scores is not None:
        scores[f"held out of {folder}"] = probe.scores
    if test is not None:
        features = image_features(
            clip, data_sets[test].images, workers=workers, progress=shows_bars
        )
        votes = data_sets[test].votes[features.indices]
        scores[str(test)] = probe.score(features.embeddings, votes)
        skipped |= features.skipped
    probe.save(file)
    shared.report_skipped(skipped)
    rows = {}
    for title, score in scores.items():
        rows[f"{title}, all"] = vars(score.all)
        rows[f"{title}, over half agree"] = vars(score.agreed)
    if rows:
        print("", *shared.table(rows), "", sep="\n")
    print(file)


@app.command(
    "figure",
    panel="Maps",
    example='compare photo.jpg "a horse" -o compare.png',
    lists=options.list_methods,
)
@argument(
    "figure",
    type=click.Choice(("compare", "average")),
    help="compare: a column for each method (Figures 4 and 5 of Mamooler's report); average: the "
    "mean maps of studies (its 6 and 12); 'explain' draws its others, but for 2 and 3, which "
    "docs/gallery/plot_10_layers.py draws",
)
@argument(
    "words",
    nargs=-1,
    metavar="[IMAGE]... [TEXT]...",
    help="image files, or a folder whose images each get a figure; then what to look for; for "
    "average, the output folders of 'captum-clip study'",
)
@option(
    "--model",
    "-m",
    multiple=True,
    metavar="NAME",
    help="as in 'explain'; may be repeated",
)
@option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="as in 'explain' (default: all that fit); may be repeated",
)
@option(
    "--output",
    "-o",
    type=PATH,
    metavar="FILE",
    help="a .png, .jpg, .pdf or .svg figure; for a folder of images, a folder of figures "
    "(default: IMAGE-FIGURE-TEXT.png, or FOLDER-FIGURE, in the current folder)",
)
@options.texts_file_option()
@option(
    "--image",
    "references",
    multiple=True,
    metavar="FILE",
    help="an image to look for instead of a text; may be repeated",
)
@option(
    "--scene",
    multiple=True,
    metavar="SCENE",
    help="SEED or SEED:THING,THING: draw a scene that the embedded models know, instead of an "
    "IMAGE; the default of --model is then demo/vit; may be repeated",
)
@option(
    "--target",
    "names",
    multiple=True,
    metavar="NAME",
    help="for average, a target of the studies (default: all); may be repeated",
)
@options.drawing_options
@options.loading_options
def figure_command(
    figure: str,
    words: tuple[str, ...],
    model: tuple[str, ...],
    methods: tuple[str, ...],
    output: Path | None,
    texts_file: Path | None,
    references: tuple[str, ...],
    scene: tuple[str, ...],
    names: tuple[str, ...],
    loading: Loading,
) -> None:
    """Draw a figure of Mamooler's report (CLIP Explainability) on your own images."""
    if figure == "average":
        shared.check_models(model, loading)
        _refuse_options(figure, references=references, methods=methods)
        _draw_average(words, names, output)
        return
    line = shared.read_line(
        words,
        texts_file,
        output,
        command="figure compare",
        kind="compare",
        takes_folder=not scene,
    )
    shared.check_models(model, loading)
    _refuse_options(figure, names=names)
    from ..attr.registry import check_methods
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS
    from .figures import compare_methods

    check_methods(methods)
    others = [shared.read_image(name) for name in references]
    images = [*line.images, *map(_draw_scene, scene)]
    refuse(_missing_parts(figure, line, images, [*line.texts, *others]))
    targets = [*line.texts, *(path.stem for path in others)]
    inputs = [*others, texts_file]
    settings = options.given(references=references, methods=methods)
    if line.folder is not None:
        files = line.folder.files(figure, targets)
        check_outputs(files.values(), [*files, *inputs])
    else:
        stems = [path.stem for path in line.images]
        stems += [f"scene-{text.partition(':')[0]}" for text in scene]
        file = check_destination(output or shared.figure_name(stems[0], figure, targets), FORMATS)
        check_outputs([file], [*line.images, *inputs])
    names_of_models = model or ("demo/vit" if scene else DEFAULT_MODEL,)
    clips = [shared.load_model(name, loading) for name in names_of_models]

    def save(image: Any, file: Path) -> None:
        save_figure(compare_methods(image, line.texts, models=clips, **settings), file)

    if line.folder is None:
        with shared.step("drawing", quiet=loading.quiet):
            save(images, file)
        print(file)
        return
    made_by = {
        "figure": figure,
        **settings,
        "targets": targets,
        **vars(current_look.get()),
        "images": line.folder.images.resolve(),
    }
    shared.draw_folder(line.folder, files, save, clips, inputs, made_by, quiet=loading.quiet)


def _draw_average(words: Sequence[str], names: Sequence[str], output: Path | None) -> None:
    """Draw the mean maps of studies."""
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS
    from .figures import draw_average

    if not words:
        raise InputError("figure average needs an output folder of 'captum-clip study'.")
    studies = [expand(study) for study in words]
    file = check_destination(output or f"{studies[0].resolve().name}-average.png", FORMATS)
    print(save_figure(draw_average(studies, names=names or None), file))


def _refuse_options(figure: str, **values: Sequence[str]) -> None:
    """Refuse options that a figure does not have."""
    for name, value in values.items():
        if value:
            raise InputError(f"figure {figure} has no option {spell_argument(name)}.")


def _missing_parts(
    figure: str, line: shared.Line, images: Sequence[Any], targets: Sequence[Any]
) -> Iterator[tuple[object, str]]:
    """Yield whether a line lacks images or targets, each with the message."""
    yield not (images or line.folder), "expected an IMAGE, or --scene SEED, got neither."
    yield not targets, f"figure {figure} needs a target: a TEXT, or --image FILE."


def _draw_scene(text: str) -> Any:
    """Draw an image (H, W, 3) of the embedded models' world, from SEED or SEED:THING,THING."""
    from ..demo.scenes import draw_scene

    seed, _, things = text.partition(":")
    if not (seed.isascii() and seed.isdecimal()):
        raise InputError(f"--scene: expected SEED or SEED:THING,THING as in 0:horse, got {text!r}.")
    objects = [thing.strip() for thing in things.split(",")] if things else None
    with error_context("--scene"):
        return draw_scene(int(seed), objects=objects).image
