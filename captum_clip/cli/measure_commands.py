"""``captum-clip heads``, ``study``, ``evaluate`` and ``emotions fit``: over folders of images."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option, Typer

from ..checks import check_destination, check_outputs, find_folder
from ..errors import InputError
from . import options
from .options import app, command
from .shared import (
    count_gpus,
    find_left_out,
    images_bar,
    load_model,
    read_probes,
    report_skipped,
    shows_bars,
    table,
)

_emotions = Typer(help="Fit an emotion probe on a model's features.")
app.add_typer(_emotions, name="emotions")


@command(app, "heads", "photos --texts words.txt -o heads")
def heads_command(
    folder: Path,
    output: Annotated[Path, Option("--output", "-o")],
    texts: options.Texts = None,
    texts_file: options.TextsFile = None,
    model: Annotated[str, Option("--model", "-m")] = options.DEFAULT_MODEL,
    top: Annotated[int, Option(min=1)] = 8,
    workers: options.Workers = 0,
    processor: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    quiet: options.Quiet = False,
) -> None:
    """Describe each attention head by the texts that it varies along over a folder of images.

    Args:
        folder: a folder of images, searched recursively
        texts: rank heads by what they add to this text, or to the first of two less the second
            (default: by how much they vary)
        texts_file: texts to choose from, one per line (default: what an embedded model knows)
        model: as in 'explain'
        top: how many heads to draw
    """
    from .. import heads, targets
    from ..demo import MODELS
    from ..demo.captions import concept_texts
    from ..evaluation.image_batches import list_images, readable_images
    from ..evaluation.storage import storage_of
    from ..explaining.classify import of_classes
    from ..files import filled_folder, replace_file
    from ..visualization import save_figure

    if texts and (len(texts) > 2 or len({*texts}) < len(texts)):
        raise InputError(f"heads takes one TEXT, or two that differ, got {texts}.")
    pool = [*dict.fromkeys(options.read_texts(texts_file))] or concept_texts() * (model in MODELS)
    if not pool:
        raise InputError(f"heads of {model} needs --texts FILE, the texts to choose from.")
    folder, skipped = find_folder(folder), dict[Path, str]()
    files = [folder / name for name in list_images(storage_of(folder), storage_of(output))]
    results = [output / "heads.csv", output / "heads.png"]
    check_outputs(results, [texts_file, *files])
    with filled_folder(output):
        clip = load_model(model, processor, tokenizer, device, quiet=quiet)
        words = of_classes(clip, pool)  # before the images, which take their time
        rows = targets.text(clip, texts).embeddings if texts else None
        direction = None if rows is None else rows[0] - rows[1:].sum(0)
        bar = "heads" * shows_bars(quiet)
        images = readable_images(files, skipped, workers=workers, progress=bar)
        vectors = heads.head_vectors(clip, images)
        report_skipped({**skipped, **find_left_out(folder, files, output)})
        spans = heads.describe_heads(vectors, words, direction)
        replace_file(results[0], lambda file: file.write(heads.heads_table(spans)))
        shown = dict(islice(spans.items(), top))
        read = [file for file in files if file not in skipped]
        save_figure(heads.heads_figure(clip, read, vectors, shown), results[1])
    for head, span in shown.items():
        print(f"{span.value:6.3f}  {heads.head_label(clip, head, ', '.join(span.texts))}")
    print(*results, sep="\n")


@command(app, "study", 'statistics photos "a horse" -o horses', lists=options.methods)
def study_command(
    study: Literal["statistics", "corner-bias", "emotions"],
    images: str,
    output: options.Results,
    texts: options.Texts = None,
    texts_file: options.TextsFile = None,
    models: options.Models = None,
    methods: options.Methods = None,
    emotions: list[Path] | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    value_entropy: Annotated[bool, Option("--value-entropy")] = False,
    workers: int | None = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    image_size: int | None = None,
    device: str | None = None,
    engine: Literal["local", "ray"] = "local",
    gpus: int | None = None,
    threads: int | None = None,
    quiet: options.Quiet = False,
) -> None:
    """Average maps over a folder of images, and measure them.

    Rerun after an interruption, it resumes.

    Args:
        study: statistics: mean maps with their spread, entropies and biases, for any texts and
            emotions; corner-bias: whether three methods favour the corners, for a happy and a sad
            text; emotions: eight emotions, plain and centred, for a ViT and a ResNet
        images: a folder of images, searched recursively
        models: as in 'explain' (default: those that --emotions were fitted on, or
            ViT-B/32, and RN101 too for the study of emotions)
        limit: study a sample of this many images
        seed: of that sample
        value_entropy: also measure the entropy of values (slow)
        workers: batches read ahead at a time (local, default 2), or processes of Ray (default 1)
    """
    texts = [*(texts or []), *options.read_texts(texts_file)]
    settings = options.given(locals(), "study", "texts_file", "device", "quiet")
    from .. import evaluation

    presets: dict[str, Any] = {
        "statistics": evaluation.StudyConfig,
        "corner-bias": evaluation.corner_bias_study,
        "emotions": evaluation.emotions_study,
    }
    if study == "corner-bias" and emotions:
        raise InputError("study corner-bias takes texts; leave --emotions out.")
    if study == "emotions" and (texts or not emotions):
        raise InputError("study emotions takes an --emotions FILE for each model, and no texts.")
    if not models and (fitted := read_probes(emotions or ())[1]):
        settings["models"] = fitted
    config = presets[study](**settings | {"gpus": count_gpus(gpus, device)})
    with images_bar("study", quiet=quiet) as progress:
        result = evaluation.run_study(config, progress=progress)
    folder = output.rstrip("/")
    print(f"statistics  {folder}/statistics.csv\nmean maps   {folder}/mean_maps.png")
    if result.skipped:
        print(
            f"skipped     {len(result.skipped)} of {result.images} images; the reasons are in "
            f"{folder}/manifest.json"
        )


def _evaluation_lists() -> dict[str, Iterable[str]]:
    from ..evaluation import TASKS
    from ..evaluation.data import forms

    return {**options.methods(), "tasks": TASKS, "data sets": forms()}


@command(app, "evaluate", "--model demo/vit -o evaluation", lists=_evaluation_lists)
def evaluate_command(
    output: Annotated[str | None, Option("--output", "-o")] = None,
    model: Annotated[str, Option("--model", "-m")] = options.DEFAULT_MODEL,
    data: options.Several = None,
    methods: Annotated[options.Several, Option("--method")] = None,
    maps: options.Several = None,
    tasks: Annotated[options.Several, Option("--task")] = None,
    reference: str | None = None,
    against: Literal["text", "image"] = "text",
    images: int = 100,
    slow_images: int = 16,
    seed: int = 0,
    draws: int = 32,
    batch_size: int = 32,
    chunk_size: int = 32,
    resamples: int = 2000,
    fills: Annotated[options.Several, Option("--fill")] = None,
    suite: str | None = None,
    compare: tuple[str, str] | None = None,
    template: str | None = None,
    void: Literal["out", "background"] | None = None,
    workers: int | None = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    image_size: int | None = None,
    device: str | None = None,
    engine: Literal["local", "ray"] = "local",
    gpus: int | None = None,
    threads: int | None = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure which map is right: methods by metrics, with intervals.

    Args:
        model: as in 'explain'
        data: a data set of those below, with its folder or file (default: demo,
            demo-objects and demo-mosaics, for embedded models)
        methods: one of those below, with options as in last-grad:heads=averaged, or mamooler
            (default: those that fit the tower); "all" adds variants, more baselines, and Captum's
            integrated-gradients, noise-tunnel and occlusion, which take most of the time;
            baselines stand beside them
        maps: a folder of maps made elsewhere, IMAGE_STEM.npz with maps (K, h, w) and names (K,)
        tasks: one of those below (default: all that the data support but pairs)
        reference: the method that all others are compared with (default: Mamooler's)
        against: explain regions by their text, or by another image
        images: the most images of each data set
        slow_images: the same for slow measures: sensitivity, sanity, Captum's own
        seed: of every random choice
        draws: random masks per image for faithfulness and infidelity
        chunk_size: images per unit of work; a stop costs at most one unit
        resamples: the number of resamples of the bootstrap
        fills: what removed pixels become: mean, black or blur (default: mean)
        suite: v1, frozen scenes, tasks and seeds: one file to submit, or to compare
        compare: two files of a suite, side by side with paired intervals; nothing is measured
        template: makes texts of class names, such as "a photo of a {}" (classes, labels)
        void: leave out the pixels that Pascal VOC marks as void, or count them as background
            (default: out)
        workers: processes of Ray (default: one for each GPU, or one)
    """
    settings = options.given(locals(), "device", "quiet", "suite", "compare")
    from .. import evaluation
    from ..demo import MODELS

    if compare:
        print(*table(evaluation.compare_suites(*compare)), sep="\n")
        return
    if output is None:
        raise InputError("evaluate needs --output, a folder for these results alone.")
    config = evaluation.EvaluationConfig(**settings | {"gpus": count_gpus(gpus, device)})
    if suite:
        _run_suite(suite, config, quiet=quiet)
        return
    if not config.data and model not in MODELS:
        raise InputError(
            f"the data sets used without --data are scenes drawn for the embedded models, and "
            f"{model} is none of {', '.join(MODELS)}; give --data, such as voc:FOLDER or "
            "classes:FOLDER, or --data demo for the scenes all the same."
        )
    with images_bar("evaluate", quiet=quiet) as progress:
        result = evaluation.evaluate(config, progress=progress)
    folder = output.rstrip("/")
    print(f"report   {folder}/report.html")
    print(f"tables   {folder}/results.md")
    print(f"figures  {folder}/results.csv")
    for name in result.curves:
        print(f"curves   {folder}/{name}")
    for name, entries in result.skipped.items():
        if entries:
            print(f"skipped  {len(entries)} of {name}; the reasons are in {folder}/manifest.json")
    print("", *result.findings, sep="\n")


def _run_suite(name: str, config: Any, *, quiet: bool) -> None:
    from ..evaluation import run_suite

    with images_bar(f"suite {name}", quiet=quiet) as progress:
        content = run_suite(name, config, progress=progress)
    stem = f"{config.output.rstrip('/')}/suite_{name}"
    print(*content["verdict"], f"values   {stem}.json", sep="\n")


@command(_emotions, "fit", "art --model ViT-B/32 -o emotions.safetensors")
def fit_command(
    folder: Path,
    model: Annotated[str, Option("--model", "-m")],
    output: Annotated[Path, Option("--output", "-o")],
    csv: Path | None = None,
    images: Path | None = None,
    test: Path | None = None,
    held_out: float = 0.2,
    strength: float = 1e-3,
    seed: int = 0,
    workers: options.Workers = 0,
    processor: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    quiet: options.Quiet = False,
) -> None:
    """Fit a linear probe from a model's image features to the votes of ArtEmis.

    Args:
        folder: with artemis_dataset_release_v0.csv and images/ART_STYLE/PAINTING.jpg in it
        output: a .safetensors file
        csv: the annotations, if they are not in FOLDER
        images: the images, if they are not in FOLDER
        test: a second data set to score the probe on
        held_out: share of the paintings kept for the scores
        strength: strength of the penalty on the weights
        seed: of the split into paintings to fit on and to score
    """
    from ..emotions import check_fit, find_artemis, read_artemis
    from ..evaluation import fit_emotions, image_features

    file = check_destination(output, (".safetensors",))
    check_fit(seed=seed, held_out=held_out, strength=strength)
    if csv is None or images is None:
        default_csv, default_images = find_artemis(folder)
        csv, images = csv or default_csv, images or default_images
    weights = Path(model).glob("*") if os.path.isdir(model) else ()
    check_outputs([file], [csv, *weights])
    sets = {folder: read_artemis(csv, images)}
    if test is not None:
        sets[test] = read_artemis(*find_artemis(test))
    for name, data in sets.items():
        print(f"{name}: {data}")
    clip = load_model(model, processor, tokenizer, device, quiet=quiet)
    reading: dict[str, Any] = {"workers": workers, "progress": shows_bars(quiet)}
    split: dict[str, Any] = {"seed": seed, "held_out": held_out, "strength": strength}
    probe, skipped = fit_emotions(clip, sets[folder], **split, **reading)
    scores = {} if probe.scores is None else {f"held out of {folder}": probe.scores}
    if test is not None:
        features = image_features(clip, sets[test].images, **reading)
        scores[str(test)] = probe.score(features.embeddings, sets[test].votes[features.indices])
        skipped |= features.skipped
    probe.save(file)
    report_skipped(skipped)
    parts = {
        f"{title}, {painted}": vars(part)
        for title, score in scores.items()
        for painted, part in (("all", score.all), ("over half agree", score.agreed))
    }
    if parts:
        print("", *table(parts), "", sep="\n")
    print(file)
