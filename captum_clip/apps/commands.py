"""Commands of the apps: ``heads``, ``change``, ``index``, ``search``, ``app``."""

from collections.abc import Iterator, Sequence, Sized
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, get_args

import click

from ..checks import check_outputs, expect, find_folder, show
from ..cli import options, shared
from ..cli.application import PATH, Range, app, argument, option
from ..cli.options import Computing, Loading
from ..errors import InputError, refuse
from ..explaining.request import Sign, default_sign
from ..files import filled_folder, replace_file, to_csv


class _Photos:
    """The images of a folder, and the files of results that are written about them.

    Attributes:
        folder: where they lie.
        files: all image files at first; once :meth:`read` has ended, those that could be read.
        results: the files that are written.
    """

    def __init__(
        self, folder: Path, output: Path, results: list[str], *inputs: Path | None
    ) -> None:
        from ..folders.storage import list_images, storage_of

        self.folder = find_folder(folder)
        self.files = [
            self.folder / name for name in list_images(storage_of(self.folder), storage_of(output))
        ]
        self.results = [output / name for name in results]
        self._output = output
        check_outputs(self.results, [*inputs, *self.files])

    def read(self, task: str, *, workers: int, quiet: bool) -> Iterator[Any]:
        """Yield the images that can be read, then report the others."""
        from ..folders.storage import readable_images

        skipped: dict[Path, str] = {}
        bar = task if shared.shows_bars(quiet) else ""
        yield from readable_images(self.files, skipped, workers=workers, progress=bar)
        others = shared.find_left_out(self.folder, self.files, self._output)
        shared.report_skipped({**skipped, **others})
        self.files = [file for file in self.files if file not in skipped]


def _read_descriptions(file: Path | None, model: str) -> list[str]:
    """Read the texts to describe heads by; embedded models have some of their own."""
    from ..demo import MODELS
    from ..demo.catalog import concept_texts

    texts = list(dict.fromkeys(options.read_texts(file)))
    if not texts and model in MODELS:
        return concept_texts()
    return texts


@app.command("heads", panel="Models", example="photos --texts words.txt -o heads")
@argument("folder", type=PATH, help="a folder of images, searched recursively")
@argument(
    "texts",
    nargs=-1,
    metavar="[TEXT]...",
    help="rank heads by what they add to the score of this text, or to the first of two minus "
    "the second (default: by how much they vary)",
)
@options.model_option()
@option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    metavar="FOLDER",
    help="a folder for these results alone",
)
@options.texts_file_option(
    "a file with the texts to choose from, one per line (default for embedded models: what they "
    "know)"
)
@option(
    "--top",
    type=Range(int, 1),
    default=8,
    metavar="N",
    help="how many heads to draw",
)
@options.read_ahead_option
@options.loading_options
def heads_command(
    folder: Path,
    texts: tuple[str, ...],
    model: str,
    output: Path,
    texts_file: Path | None,
    top: int,
    workers: int,
    loading: Loading,
) -> None:
    """Describe each attention head by the texts that it varies along over a folder of images."""
    ranked_by = options.check_texts(texts)
    if len(ranked_by) > 2 or len(set(ranked_by)) < len(ranked_by):
        raise InputError(f"heads takes one TEXT, or two that differ, got {ranked_by}.")
    photos = _Photos(folder, output, ["heads.csv", "heads.png"], texts_file)
    descriptions = _read_descriptions(texts_file, model)
    if not descriptions:
        raise InputError(f"heads needs --texts FILE for {model}: the texts to choose from.")
    shared.check_models([model], loading)
    from .. import targets
    from ..explaining.explain import of_classes
    from ..visualization import save_figure
    from . import heads

    table, figure = photos.results
    with filled_folder(output):
        clip = shared.load_model(model, loading)
        # The texts come before the images, which take their time.
        words = of_classes(clip, descriptions)
        direction = None
        if ranked_by:
            embeddings = targets.text(clip, ranked_by).embeddings
            # There are one or two texts, so this is the text, or the first minus the second.
            direction = embeddings[0] - embeddings[1:].sum(0)
        images = photos.read("heads", workers=workers, quiet=loading.quiet)
        vectors = heads.head_vectors(clip, images)
        spans = heads.describe_heads(vectors, words, direction)
        replace_file(table, lambda file: file.write(heads.heads_table(spans)))
        shown = dict(islice(spans.items(), top))
        save_figure(heads.heads_figure(clip, photos.files, vectors, shown), figure)
    print(f"{_describe_values(ranked_by)} ({clip.name}, {_count(photos.files)}):")
    for head, span in shown.items():
        print(f"{span.value:6.3f}  {heads.head_label(clip, head, ', '.join(span.texts))}")
    print(table, figure, sep="\n")


def _describe_values(texts: Sequence[str]) -> str:
    """Describe the number that 'heads' prints for each head."""
    if not texts:
        return "share of the variance of the embedding, by head"
    cosines = " minus that with ".join(map(show, texts))
    return f"mean part of the cosine similarity with {cosines}, by head"


def _count(images: Sized) -> str:
    """Write the number of images."""
    return f"{len(images):,} image{'' if len(images) == 1 else 's'}"


@app.command("change", panel="Models", example='photos "a horse" -m BEFORE -m AFTER -o change')
@argument("folder", type=PATH, help="a folder of images, searched recursively")
@argument("texts", nargs=-1, metavar="[TEXT]...", help="the texts whose scores to compare")
@option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="the model before the training, then the one after, as in 'explain'; may be repeated",
)
@option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    metavar="FOLDER",
    help="a folder for these results alone",
)
@options.texts_file_option(
    "a file with texts that describe the heads, one per line (default for embedded models: what "
    "they know)"
)
@option(
    "--from",
    "actual",
    metavar="TEXT",
    help="what the images show, if the second model mistakes some of them for --to",
)
@option(
    "--to",
    "predicted",
    metavar="TEXT",
    help="the wrong text that the second model gives some images; these are compared with the "
    "images that it gets right",
)
@option(
    "--top",
    type=Range(int, 1),
    default=8,
    metavar="N",
    help="how many heads to list, and how many images to draw at most",
)
@options.read_ahead_option
@options.drawing_options
@options.loading_options
def change_command(
    folder: Path,
    texts: tuple[str, ...],
    models: tuple[str, ...],
    output: Path,
    texts_file: Path | None,
    actual: str | None,
    predicted: str | None,
    top: int,
    workers: int,
    loading: Loading,
) -> None:
    """Show what training changed: the scores of two models by heads, MLPs and regions."""
    cell = [text for text in (actual, predicted) if text]
    compared = list(dict.fromkeys(options.check_texts([*texts, *cell])))
    expect(len(models) == 2, "-m BEFORE and -m AFTER", list(models))
    expect(compared and len(cell) != 1, "a TEXT, or --from TEXT and --to TEXT", compared)
    results = ["change.csv", "heads.csv", "change.png", shared.INDEX]
    photos = _Photos(folder, output, results, texts_file)
    descriptions = _read_descriptions(texts_file, models[0])
    shared.check_models(models, loading)
    from ..explaining.explain import of_classes
    from ..visualization import save_figure
    from .change import Moved, compare
    from .heads import head_label

    score_table, head_table, figure, page = photos.results
    with filled_folder(output):
        before, after = (shared.load_model(name, loading) for name in models)
        pool = of_classes(before, descriptions) if descriptions else None
        images = photos.read("change", workers=workers, quiet=loading.quiet)
        whole = compare(before, after, images, compared)
        # With --from and --to, the images that are wrong are compared with those that are right.
        change = whole
        right = None
        if cell:
            change, right = whole.confusion(*cell)
        rows = change.table(right)
        words = _describe_heads(whole, pool)
        names = [file.relative_to(photos.folder).as_posix() for file in photos.files]
        scores = []
        scores_before, scores_after = whole.scores.tolist()  # N lists of K scores each
        for k, text in enumerate(compared):
            for name, old, new in zip(names, scores_before, scores_after, strict=True):
                scores.append((text, name, old[k], new[k]))
        scores.sort(key=lambda row: -abs(row[3] - row[2]))
        _write_table(score_table, ("text", "image", "before", "after"), scores)
        described = [(*row, words.get((row.layer, row.head), "")) for row in rows]
        _write_table(head_table, (*Moved._fields, "words"), described)
        written = [score_table, head_table]
        if "regions" not in whole.refused:
            written.append(save_figure(change.plot(count=top), figure))
        shared.write_index(
            output,
            photos.folder,
            Path(__file__).with_name("change.html"),
            change=change,
            right=right,
            cell=cell,
            rows=rows,
            words=words,
            scores=scores,
            count=len(names),
            top=top,
        )
        written.append(page)
    print(f"{_describe_means(change, right, cell)}, with 95 % intervals:")
    listed = [row for row in rows if row.what in ("score", "head")]
    for row in listed[: len(compared) + top]:
        place = row.what
        if row.layer is not None and row.head is not None:
            place = head_label(before, (row.layer, row.head))
        print(f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}]  {row.text}: {place}")
    print(*change.doubts, *written, sep="\n")


def _describe_means(change: Any, right: Any, cell: Sequence[str]) -> str:
    """Describe the means that 'change' prints: of a change, or of the model after alone."""
    before, after = change.models
    if not cell:
        return f"mean change of the cosine similarity, {after} minus {before}, {_count(change)}"
    actual, predicted = map(show, cell)
    wrong = f"mean contrast by {after} over {_count(change)} called {predicted}"
    # Without an image that is right, the means of those that are wrong stand alone.
    return f"{wrong}, minus that over {_count(right)} called {actual}" if len(right) else wrong


def _describe_heads(change: Any, pool: Any) -> dict[Any, str]:
    """Describe heads by the texts of a pool that they vary along; none if no head varies."""
    if not pool or not change.vectors:
        return {}
    # In one image, or if training left the heads alone, there is no variance to describe.
    if not change.vectors.heads.var(0, correction=0).any():
        return {}
    return {head: ", ".join(span.texts) for head, span in change.describe(pool).items()}


def _write_table(file: Path, columns: tuple[str, ...], rows: list[Any]) -> None:
    """Write rows as CSV; there is at least one."""
    values = zip(*rows, strict=True)
    content = to_csv(dict(zip(columns, values, strict=True)))
    replace_file(file, lambda opened: opened.write(content))


@app.command("index", panel="Many images", example="photos -o photos.lance --model ViT-B/32")
@argument("folder", help="a folder of images or its URL, searched recursively")
@options.model_option()
@option(
    "--output",
    "-o",
    required=True,
    metavar="TABLE",
    help="a LanceDB table, whose name ends in .lance",
)
@option(
    "--method",
    default="direct",
    metavar="METHOD",
    help="direct, with options as in direct:depth=token",
)
@option(
    "--precision",
    type=click.Choice(("int8", "float16")),
    default="int8",
    help="how the vectors are stored; int8 takes half the space",
)
@option(
    "--chunk-size",
    type=int,
    default=512,
    metavar="N",
    help="images written at a time; an interrupted run reads at most this many again",
)
@options.computing_options()
def index_command(
    folder: str,
    model: str,
    output: str,
    method: str,
    precision: Any,
    chunk_size: int,
    computing: Computing,
) -> None:
    """Read a folder of images once, for 'search'.

    Run it again to add new images, to replace those that changed, or to resume after a stop.
    """
    from ..folders.storage import find_index

    options.check_method_name(method)
    find_index(output, exists=False)
    if "://" not in folder:
        folder = str(find_folder(folder))
    shared.check_models([model], computing.loading)
    from ..attr.registry import check_methods
    from .search import ImageIndex

    check_methods([method])
    settings = computing.settings()
    clip = shared.load_model(model, computing.loading)
    with shared.images_bar("index", quiet=computing.loading.quiet) as progress:
        index = ImageIndex.build(
            clip,
            folder,
            output,
            method=method,
            precision=precision,
            chunk_size=chunk_size,
            progress=progress,
            **settings,
        )
    skipped = {Path(index.folder, name): reason for name, reason in index.skipped.items()}
    if "://" not in folder:
        read = [*skipped, *(Path(index.folder, name) for name in index.files)]
        skipped |= shared.find_left_out(Path(index.folder), read, Path(output))
    shared.report_skipped(skipped)
    print(f"{_count(index)} in {output}")


@app.command(
    "search", panel="Many images", example='photos.lance "a horse in the snow" --top 20 -o found'
)
@argument("index", help="a table made by 'captum-clip index'")
@argument(
    "texts",
    nargs=-1,
    metavar="[TEXT]...",
    help="what to look for; several texts count by their mean cosine",
)
@options.model_option(
    "the model that the index was made with (default: found by its name, unless that is a folder "
    "or file)",
    default=None,
)
@option(
    "--output",
    "-o",
    type=PATH,
    metavar="FOLDER",
    help="a folder for a table and a figure with the maps (default: print the best)",
)
@option(
    "--top",
    type=Range(int, 1),
    default=12,
    metavar="N",
    help="how many images to find, at most",
)
@option(
    "--against",
    metavar="TEXT",
    help="a text to contrast one TEXT with; the maps show what speaks for TEXT rather than for it",
)
@option(
    "--sign",
    type=click.Choice(get_args(Sign)),
    help="let the maps show what supports the text, what contradicts it, or both (default: "
    "positive; with --against, both)",
)
@option(
    "--emotion",
    metavar="NAME",
    help="what the images should evoke, such as awe, alone or together with TEXTs; --emotions "
    "names the file that knows it",
)
@option(
    "--emotions",
    type=PATH,
    metavar="FILE",
    help=f"the file that knows the --emotion: {options.PROBE}",
)
@option(
    "--weight",
    type=Range(float, 0, 1),
    metavar="SHARE",
    help="the share of --emotion in the score next to TEXTs (default: 0.5)",
)
@option(
    "--images",
    default="",
    metavar="URL",
    show_default=False,
    help="the URL of the images, if they are not in the same store as the index",
)
@options.drawing_options
@options.loading_options
def search_command(
    index: str,
    texts: tuple[str, ...],
    model: str | None,
    output: Path | None,
    top: int,
    against: str | None,
    sign: Sign | None,
    emotion: str | None,
    emotions: Path | None,
    weight: float | None,
    images: str,
    loading: Loading,
) -> None:
    """Find the images of an index that fit TEXTs, an emotion or both, and show why."""
    sought_texts = options.check_texts(texts)
    has_emotion = emotion is not None
    has_contrast = against is not None
    refuse(
        [
            (emotions and not has_emotion, "--emotions goes with --emotion."),
            (has_emotion and not emotions, "--emotion goes with --emotions."),
            (
                has_emotion and has_contrast,
                "--emotion is not contrasted; leave --against out.",
            ),
            (
                not sought_texts and not emotion,
                "expected a TEXT or an --emotion to look for, got none.",
            ),
            (
                has_contrast and len(sought_texts) != 1,
                "--against contrasts one TEXT; leave further TEXTs out.",
            ),
            (
                weight is not None and not (emotion and sought_texts),
                "--weight needs both a TEXT and an --emotion.",
            ),
        ]
    )
    shared.hint_at_quotes(sought_texts)
    options.check_emotions([emotion] if emotion else [])
    from ..folders.storage import find_index

    if output is not None:
        check_outputs([output / "search.csv", output / "search.png"], [emotions])
    find_index(index)
    shared.check_models([model] if model else [], loading)
    from .. import targets
    from ..models.loading import load_parts
    from ..targets import EmotionProbe
    from .search import ImageIndex

    probe = EmotionProbe.load(emotions) if emotions else None
    with shared.step(f"opening {index}", quiet=loading.quiet):
        opened = ImageIndex.open(
            index,
            model,
            **load_parts(loading.processor, loading.tokenizer),
            device=loading.device,
            images=images,
        )
        sought: Any = sought_texts
        if against is not None:
            sought = targets.text(opened.clip, sought_texts) - targets.text(opened.clip, against)
        elif probe is not None:
            sought = targets.emotion(opened.clip, probe, emotion)
            if sought_texts:
                sought = targets.concatenate([targets.text(opened.clip, sought_texts), sought])
    weights = None
    if sought_texts and probe is not None:
        share = 0.5 if weight is None else weight
        text_share = (1 - share) / len(sought_texts)
        weights = [text_share] * len(sought_texts) + [share]
    best = opened.search(sought, top, weights=weights, sign=default_sign(sign, against))
    shared.report_skipped(
        {Path(opened.folder, name): reason for name, reason in best.skipped.items()}
    )
    written = list(best.save(output)) if output else []
    explanation = best.explanation
    names = ", ".join(map(repr, explanation.names))
    print(f"{names}, best of {best.compared:,} images ({explanation.model}, {explanation.method}):")
    for rank, (file, score) in enumerate(zip(best.files, best.scores, strict=True), start=1):
        line = f"{rank:4d}  {score:6.3f}"
        if len(explanation.names) > 1:
            cosines = explanation.scores[rank - 1].tolist()
            line += "".join(f"  {cosine:6.3f}" for cosine in cosines)
        print(f"{line}  {file}")
    for last in (*best.doubts, *written):
        print(last)


@app.command("app", panel="Maps", example="--model demo/vit --port 7860")
@option(
    "--model",
    "-m",
    multiple=True,
    metavar="NAME",
    help="a model to offer; the first loads at the start, others when they are chosen; the "
    "embedded models are always offered (default: demo/vit); may be repeated",
)
@option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="the address to listen on; 0.0.0.0 lets every machine that can reach this one connect",
)
@option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="a host name that the page is reached by, such as that of a proxy; may be repeated",
)
@option(
    "--port",
    type=int,
    default=7860,
    metavar="N",
    help="the port to listen on; 0 takes any free one",
)
@options.processor_option
@options.tokenizer_option
@options.device_option
@option(
    "--max-pixels",
    type=Range(int, 1),
    metavar="N",
    section="Model and images",
    help="pixels that an uploaded image may have (default: 50 million)",
)
@options.quiet_option
def app_command(
    model: tuple[str, ...],
    host: str,
    allow_host: tuple[str, ...],
    port: int,
    processor: str | None,
    tokenizer: str | None,
    device: str | None,
    max_pixels: int | None,
    quiet: bool,
) -> None:
    """Open a page in the browser: drop an image, type texts, see their maps."""
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'gradio>=6.29'")
    shared.check_models(model, Loading(processor=processor, tokenizer=tokenizer))
    from .answers import Models
    from .page import LOCAL, find_port, serving

    models = Models(model, device, processor=processor, tokenizer=tokenizer, max_pixels=max_pixels)
    free_port = find_port(host, port)
    with shared.step(f"loading {models.names[0]}", quiet=quiet):
        models.get(models.names[0])
    with serving(models, host, free_port, allow_host) as address:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if host not in LOCAL:
            print(
                "everyone who can reach this machine over the network can use the page", flush=True
            )
        # Nobody sets this event: the server works in a thread of its own until Ctrl-C.
        Event().wait()
