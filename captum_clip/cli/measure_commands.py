"""``captum-clip heads``, ``change``, ``study``, ``evaluate``, ``emotions fit``: over folders."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from typer import Typer

from ..checks import check_destination, check_outputs, expect, find_folder
from ..errors import InputError
from . import shared
from .options import (
    DEFAULT_MODEL,
    OPTIONS,
    Computing,
    Count,
    Loading,
    Texts,
    Workers,
    app,
    check_texts,
    command,
    methods,
    read_texts,
)

_emotions = Typer(help="Fit an emotion probe on a model's features.")
app.add_typer(_emotions, name="emotions")


def _lists() -> dict[str, Iterable[str]]:
    return methods() | {name: OPTIONS["listed"][name] for name in ("tasks", "data sets")}


@dataclass(frozen=True, kw_only=True)
class _Folder(Loading):
    folder: Path
    output: Path
    texts: Texts = None
    texts_file: Path | None = None
    top: Count = 8
    workers: Workers = 0


@dataclass(frozen=True, kw_only=True)
class Heads(_Folder):
    """What describes heads, and which."""

    model: str = DEFAULT_MODEL


class _Plan:
    """The images of a folder, what is written about them, and texts to describe heads by."""

    def __init__(self, typed: _Folder, model: str, *names: str) -> None:
        from ..demo import MODELS
        from ..demo.captions import concept_texts
        from ..evaluation.image_batches import list_images
        from ..evaluation.storage import storage_of

        self.typed, self.folder = typed, find_folder(typed.folder)
        pool = [*dict.fromkeys(read_texts(typed.texts_file))]
        self.pool = pool or concept_texts() * (model in MODELS)
        listed = list_images(storage_of(self.folder), storage_of(typed.output))
        self.files, self.skipped = [self.folder / name for name in listed], dict[Path, str]()
        self.results = [typed.output / name for name in names]
        check_outputs(self.results, [typed.texts_file, *self.files])

    def images(self) -> Iterator[Any]:
        """The images that can be read, then a report of the others."""
        from ..evaluation.image_batches import readable_images

        bar = type(self.typed).__name__.lower() * shared.shows_bars(self.typed.quiet)
        yield from readable_images(
            self.files, self.skipped, workers=self.typed.workers, progress=bar
        )
        others = shared.find_left_out(self.folder, self.files, self.typed.output)
        shared.report_skipped(self.skipped | others)
        self.files = [file for file in self.files if file not in self.skipped]


@command(app, "heads", "photos --texts words.txt -o heads")
def heads_command(typed: Heads) -> None:
    """Describe each attention head by the texts that it varies along over a folder of images."""
    from .. import heads, targets
    from ..explaining.classify import of_classes
    from ..files import filled_folder, replace_file
    from ..visualization import save_figure

    texts, model = check_texts(typed.texts or ()), typed.model
    if len(texts) > 2 or len({*texts}) < len(texts):
        raise InputError(f"heads takes one TEXT, or two that differ, got {texts}.")
    plan = _Plan(typed, model, "heads.csv", "heads.png")
    if not plan.pool:
        raise InputError(f"heads needs --texts FILE for {model}: the texts to choose from.")
    with filled_folder(typed.output):
        clip = shared.load_model(typed, model)
        words = of_classes(clip, plan.pool)  # before the images, which take their time
        rows = targets.text(clip, texts).embeddings if texts else None
        direction = None if rows is None else rows[0] - rows[1:].sum(0)
        vectors = heads.head_vectors(clip, plan.images())
        spans = heads.describe_heads(vectors, words, direction)
        replace_file(plan.results[0], lambda file: file.write(heads.heads_table(spans)))
        shown = dict(islice(spans.items(), typed.top))
        save_figure(heads.heads_figure(clip, plan.files, vectors, shown), plan.results[1])
    for head, span in shown.items():
        print(f"{span.value:6.3f}  {heads.head_label(clip, head, ', '.join(span.texts))}")
    print(*plan.results, sep="\n")


@dataclass(frozen=True, kw_only=True)
class Change(_Folder):
    """What is compared, and on which images."""

    models: Texts = None
    actual: str | None = None
    predicted: str | None = None


@command(app, "change", 'photos "a horse" -m BEFORE -m AFTER -o change')
def change_command(typed: Change) -> None:
    """Show what training changed: the scores of two models by heads, MLPs and regions."""
    from ..change import Moved, compare
    from ..evaluation.units import to_csv
    from ..explaining.classify import of_classes
    from ..files import filled_folder, replace_file
    from ..visualization import save_figure
    from .contact_sheet import INDEX, write_page

    models, cell = typed.models or [], [*filter(None, (typed.actual, typed.predicted))]
    texts = [*dict.fromkeys(check_texts([*(typed.texts or ()), *cell]))]
    expect(len(models) == 2, "-m BEFORE and -m AFTER", models)
    expect(texts and len(cell) != 1, "a TEXT, or --from TEXT and --to TEXT", texts)
    plan = _Plan(typed, models[0], "change.csv", "heads.csv", "change.png", INDEX)
    with filled_folder(typed.output):
        clips = [shared.load_model(typed, name) for name in models]
        pool = of_classes(clips[0], plan.pool) if plan.pool else None
        whole = compare(clips[0], clips[1], plan.images(), texts)
        change, right = whole.confusion(*cell) if cell else (whole, None)
        rows = change.table(right)
        spans = whole.describe(pool) if pool and whole.vectors else {}
        words: Any = {head: ", ".join(span.texts) for head, span in spans.items()}
        photos = [file.relative_to(plan.folder).as_posix() for file in plan.files]
        columns = zip(texts, *whole.scores.mT.tolist(), strict=True)
        pairs = [(t, *row) for t, *both in columns for row in zip(photos, *both, strict=True)]
        scores = sorted(pairs, key=lambda row: -abs(row[3] - row[2]))
        places = [(*row, words.get(row[2:4], "")) for row in rows]
        by_image = zip(("text", "image", "before", "after"), zip(*scores, strict=True), strict=True)
        by_place = zip((*Moved._fields, "words"), zip(*places, strict=True), strict=True)
        replace_file(plan.results[0], lambda file: file.write(to_csv(dict(by_image))))
        replace_file(plan.results[1], lambda file: file.write(to_csv(dict(by_place))))
        if "regions" not in whole.refused:
            save_figure(change.plot(count=typed.top), plan.results[2])
        about: Any = {"change": change, "right": right, "cell": cell, "rows": rows, "words": words}
        about |= {"scores": scores, "count": len(photos), "top": typed.top}
        write_page(typed.output, plan.folder, "change.html", **about)
    shown = [row for row in rows if row.what in ("score", "head")][: len(texts) + typed.top]
    for what, text, *place, mean, low, high, _ in shown:
        where = " ".join(str(each) for each in (what, *place) if each is not None)
        print(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]  {text}: {where}")
    print(*plan.results, sep="\n")


@dataclass(frozen=True, kw_only=True)
class Study(Computing):
    """What is studied, and on which images."""

    study: Literal["statistics", "corner-bias", "emotions"]
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


@command(app, "study", 'statistics photos "a horse" -o horses', lists=methods)
def study_command(typed: Study) -> None:
    """Average maps over a folder of images, and measure them.

    Run it again after an interruption, and it resumes.
    """
    texts = [*check_texts(typed.texts or ()), *read_texts(typed.texts_file)]
    from .. import evaluation

    presets: dict[str, Any] = {
        "statistics": evaluation.StudyConfig,
        "corner-bias": evaluation.corner_bias_study,
        "emotions": evaluation.emotions_study,
    }
    if typed.study == "corner-bias" and typed.emotions:
        raise InputError("study corner-bias takes texts; leave --emotions out.")
    if typed.study == "emotions" and (texts or not typed.emotions):
        raise InputError("study emotions takes an --emotions FILE for each model, and no texts.")
    settings = typed.settings("study", "texts", "texts_file") | ({"texts": texts} if texts else {})
    if not typed.models and (fitted := shared.fitted_on(*typed.emotions or ())):
        settings["models"] = fitted
    config = presets[typed.study](**settings)
    with shared.images_bar("study", quiet=typed.quiet) as progress:
        result = evaluation.run_study(config, progress=progress)
    folder = typed.output.rstrip("/")
    print(f"statistics  {folder}/statistics.csv\nmean maps   {folder}/mean_maps.png")
    if result.skipped:
        print(
            f"skipped     {len(result.skipped)} of {result.images} images; the reasons are in "
            f"{folder}/manifest.json"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Computing):
    """What is measured, on which images, and how often."""

    output: str | None = None
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
    suite: str | None = None
    compare: tuple[str, str] | None = None
    template: str | None = None
    void: Literal["out", "background"] | None = None


@command(app, "evaluate", "--model demo/vit -o evaluation", lists=_lists)
def evaluate_command(typed: Evaluate) -> None:
    """Measure which map is right: methods by metrics, with intervals."""
    from .. import evaluation
    from ..demo import MODELS

    if typed.compare:
        print(*shared.table(evaluation.compare_suites(*typed.compare)), sep="\n")
        return
    if typed.output is None:
        raise InputError("evaluate needs --output, a folder for these results alone.")
    config = evaluation.EvaluationConfig(**typed.settings("suite", "compare"))
    if typed.suite:
        _run_suite(typed.suite, config, quiet=typed.quiet)
        return
    if not config.data and typed.model not in MODELS:
        raise InputError(
            "without --data, evaluate uses scenes drawn for the embedded models, and "
            f"{typed.model} is not one of them ({', '.join(MODELS)}); give --data, such as "
            "voc:FOLDER or classes:FOLDER, or --data demo to use the scenes anyway."
        )
    with shared.images_bar("evaluate", quiet=typed.quiet) as progress:
        result = evaluation.evaluate(config, progress=progress)
    folder = typed.output.rstrip("/")
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

    with shared.images_bar(f"suite {name}", quiet=quiet) as progress:
        content = run_suite(name, config, progress=progress)
    stem = f"{config.output.rstrip('/')}/suite_{name}"
    print(*content["verdict"], f"values   {stem}.json", sep="\n")


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
def fit_command(typed: Fit) -> None:
    """Fit a linear probe from a model's image features to the votes of ArtEmis."""
    from ..emotions import check_fit, find_artemis, read_artemis
    from ..evaluation import fit_emotions, image_features

    file = check_destination(typed.output, (".safetensors",))
    split: Any = {name: getattr(typed, name) for name in ("seed", "held_out", "strength")}
    check_fit(**split)
    folder, test, csv, images = typed.folder, typed.test, typed.csv, typed.images
    if csv is None or images is None:
        default_csv, default_images = find_artemis(folder)
        csv, images = csv or default_csv, images or default_images
    weights = Path(typed.model).glob("*") if os.path.isdir(typed.model) else ()
    check_outputs([file], [csv, *weights])
    sets = {folder: read_artemis(csv, images)}
    if test is not None:
        sets[test] = read_artemis(*find_artemis(test))
    for name, data in sets.items():
        print(f"{name}: {data}")
    clip = shared.load_model(typed, typed.model)
    reading: dict[str, Any] = {"workers": typed.workers, "progress": shared.shows_bars(typed.quiet)}
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
