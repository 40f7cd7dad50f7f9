"""Commands of the apps: ``heads``, ``change``, ``index``, ``search``, ``app``."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

from typer import Option

from ..checks import Look, check_outputs, expect, find_folder
from ..cli import options, shared
from ..cli.options import DEFAULT_MODEL, Computing, Count, Loading, Texts, Workers, app, command
from ..errors import InputError
from ..explaining.request import Conflict, Sign, check_request, default_sign, option
from ..files import filled_folder, replace_file, to_csv


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

    def __init__(self, args: _Folder, model: str, *names: str) -> None:
        from ..demo import MODELS
        from ..demo.catalog import concept_texts
        from ..folders.storage import list_images, storage_of

        self.args, self.folder = args, find_folder(args.folder)
        pool = [*dict.fromkeys(options.read_texts(args.texts_file))]
        self.pool = pool or concept_texts() * (model in MODELS)
        listed = list_images(storage_of(self.folder), storage_of(args.output))
        self.files, self.skipped = [self.folder / name for name in listed], dict[Path, str]()
        self.results = [args.output / name for name in names]
        check_outputs(self.results, [args.texts_file, *self.files])

    def images(self) -> Iterator[Any]:
        """The images that can be read, then a report of the others."""
        from ..folders.storage import readable_images

        bar = type(self.args).__name__.lower() * shared.shows_bars(self.args.quiet)
        yield from readable_images(
            self.files, self.skipped, workers=self.args.workers, progress=bar
        )
        others = shared.find_left_out(self.folder, self.files, self.args.output)
        shared.report_skipped(self.skipped | others)
        self.files = [file for file in self.files if file not in self.skipped]


@command(app, "heads", "photos --texts words.txt -o heads")
def heads_command(args: Heads) -> None:
    """Describe each attention head by the texts that it varies along over a folder of images."""
    texts, model = options.check_texts(args.texts or ()), args.model
    if len(texts) > 2 or len({*texts}) < len(texts):
        raise InputError(f"heads takes one TEXT, or two that differ, got {texts}.")
    plan = _Plan(args, model, "heads.csv", "heads.png")
    if not plan.pool:
        raise InputError(f"heads needs --texts FILE for {model}: the texts to choose from.")
    shared.check_models(args, [model])
    from .. import targets
    from ..explaining.explain import of_classes
    from ..visualization import save_figure
    from . import heads

    with filled_folder(args.output):
        clip = shared.load_model(args, model)
        words = of_classes(clip, plan.pool)  # before the images, which take their time
        rows = targets.text(clip, texts).embeddings if texts else None
        direction = None if rows is None else rows[0] - rows[1:].sum(0)
        vectors = heads.head_vectors(clip, plan.images())
        spans = heads.describe_heads(vectors, words, direction)
        replace_file(plan.results[0], lambda file: file.write(heads.heads_table(spans)))
        shown = dict(islice(spans.items(), args.top))
        save_figure(heads.heads_figure(clip, plan.files, vectors, shown), plan.results[1])
    for head, span in shown.items():
        print(f"{span.value:6.3f}  {heads.head_label(clip, head, ', '.join(span.texts))}")
    print(*plan.results, sep="\n")


@dataclass(frozen=True, kw_only=True)
class Change(_Folder, Look):
    """What is compared, and on which images."""

    models: Texts = None
    actual: str | None = None
    predicted: str | None = None


@command(app, "change", 'photos "a horse" -m BEFORE -m AFTER -o change')
def change_command(args: Change) -> None:
    """Show what training changed: the scores of two models by heads, MLPs and regions."""
    models, cell = args.models or [], [*filter(None, (args.actual, args.predicted))]
    texts = [*dict.fromkeys(options.check_texts([*(args.texts or ()), *cell]))]
    expect(len(models) == 2, "-m BEFORE and -m AFTER", models)
    expect(texts and len(cell) != 1, "a TEXT, or --from TEXT and --to TEXT", texts)
    plan = _Plan(args, models[0], "change.csv", "heads.csv", "change.png", shared.INDEX)
    shared.check_models(args, models)
    from ..explaining.explain import of_classes
    from ..visualization import save_figure
    from .change import Moved, compare

    with filled_folder(args.output):
        clips = [shared.load_model(args, name) for name in models]
        pool = of_classes(clips[0], plan.pool) if plan.pool else None
        whole = compare(clips[0], clips[1], plan.images(), texts)
        change, right = whole.confusion(*cell) if cell else (whole, None)
        rows = change.table(right)
        varies = pool and whole.vectors and whole.vectors.heads.var(0, correction=0).any()
        spans = whole.describe(pool) if pool and varies else {}
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
        figure = plan.results.pop(2)
        if "regions" not in whole.refused:
            plan.results.insert(2, save_figure(change.plot(count=args.top), figure))
        about: Any = {"change": change, "right": right, "cell": cell, "rows": rows, "words": words}
        about |= {"scores": scores, "count": len(photos), "top": args.top}
        shared.write_index(
            args.output, plan.folder, Path(__file__).with_name("change.html"), **about
        )
    shown = [row for row in rows if row.what in ("score", "head")][: len(texts) + args.top]
    for what, text, *place, mean, low, high, _ in shown:
        where = " ".join(str(each) for each in (what, *place) if each is not None)
        print(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]  {text}: {where}")
    print(*change.doubts, *plan.results, sep="\n")


@dataclass(frozen=True, kw_only=True)
class Index(Computing):
    """What is read, and how it is kept."""

    folder: str
    output: str
    model: str = DEFAULT_MODEL
    method: str = "direct"
    precision: Literal["int8", "float16"] = "int8"
    chunk_size: int = 512


@command(app, "index", "photos -o photos.lance --model ViT-B/32")
def index_command(args: Index) -> None:
    """Read a folder of images once, for 'search'.

    Run it again to add new images, to replace those that changed, or to resume after a stop.
    """
    from ..folders.storage import find_index

    options.check_method_name(args.method)
    find_index(args.output, exists=False)
    folder = args.folder if "://" in args.folder else str(find_folder(args.folder))
    shared.check_models(args, [args.model])
    from ..attr.registry import check_methods
    from .search import ImageIndex

    check_methods([args.method])
    settings = args.settings("folder", "output", "model")
    clip = shared.load_model(args, args.model)
    with shared.images_bar("index", quiet=args.quiet) as progress:
        index = ImageIndex.build(clip, folder, args.output, progress=progress, **settings)
    skipped = {Path(index.folder, name): reason for name, reason in index.skipped.items()}
    if "://" not in folder:
        read = [*skipped, *(Path(index.folder, name) for name in index.files)]
        skipped |= shared.find_left_out(Path(index.folder), read, Path(args.output))
    shared.report_skipped(skipped)
    print(f"{len(index):,} image{'s' * (len(index) != 1)} in {args.output}")


@dataclass(frozen=True, kw_only=True)
class Search(Loading, Look):
    """What is looked for, and what is written of it."""

    index: str
    texts: Texts = None
    against: str | None = None
    emotions: Path | None = option(needs=("emotion",))
    emotion: str | None = option(
        None, Conflict("is not contrasted", {"against": ()}), needs=("emotions",)
    )
    weight: Annotated[float | None, Option(min=0, max=1)] = None
    sign: Sign | None = None
    top: Count = 12
    images: str = ""
    model: str | None = None
    output: Path | None = None


@command(app, "search", 'photos.lance "a horse in the snow" --top 20 -o found')
def search_command(args: Search) -> None:
    """Find the images of an index that fit TEXTs, an emotion or both, and show why."""
    texts, emotion, against = options.check_texts(args.texts or ()), args.emotion, args.against
    check_request(args)
    if not texts and not emotion:
        raise InputError("expected a TEXT or an --emotion to look for, got none.")
    if against is not None and len(texts) != 1:
        raise InputError("--against contrasts one TEXT; leave further TEXTs out.")
    if args.weight is not None and not (emotion and texts):
        raise InputError("--weight needs both a TEXT and an --emotion.")
    shared.hint_at_quotes(texts)
    options.check_emotions([emotion] if emotion else [])
    from ..folders.storage import find_index

    if args.output:
        check_outputs([args.output / n for n in ("search.csv", "search.png")], [args.emotions])
    find_index(args.index)
    shared.check_models(args, [args.model] if args.model else [])
    from .. import targets
    from ..models.loading import load_parts
    from ..targets import EmotionProbe
    from .search import ImageIndex

    probes = [EmotionProbe.load(args.emotions)] if args.emotions else []
    with shared.step(f"opening {args.index}", quiet=args.quiet):
        processors = load_parts(args.processor, args.tokenizer)
        loading = {**processors, "device": args.device, "images": args.images}
        index = ImageIndex.open(args.index, args.model, **loading)
        looked_for = [targets.text(index.clip, texts)] if texts else []
        if against is not None:
            looked_for = [looked_for[0] - targets.text(index.clip, against)]
        looked_for += [targets.emotion(index.clip, probe, emotion) for probe in probes]
    share = 0.5 if args.weight is None else args.weight
    weights = [(1 - share) / len(texts)] * len(texts) + [share] if texts and probes else None
    how: Any = {"weights": weights, "sign": default_sign(args.sign, against)}
    sought: Any = targets.concatenate(looked_for) if probes or against is not None else texts
    best = index.search(sought, args.top, **how)
    shared.report_skipped({Path(index.folder, name): why for name, why in best.skipped.items()})
    written = [*best.save(args.output)] if args.output else []
    explanation = best.explanation
    names = ", ".join(map(repr, explanation.names))
    print(f"{names}, best of {best.compared:,} images ({explanation.model}, {explanation.method}):")
    for number, (file, score) in enumerate(zip(best.files, best.scores, strict=True), 1):
        each = "".join(f"  {cosine:6.3f}" for cosine in explanation.scores[number - 1].tolist())
        print(f"{number:4d}  {score:6.3f}{each * (len(explanation.names) > 1)}  {file}")
    print(*best.doubts, *written, sep="\n", end="\n" * bool(best.doubts or written))


@dataclass(frozen=True, kw_only=True)
class Page(Loading):
    """What the page offers, and to whom."""

    host: str = "127.0.0.1"
    allow_host: list[str] | None = None
    port: int = 7860
    model: list[str] | None = None


@command(app, "app", "--model demo/vit --port 7860")
def app_command(args: Page) -> None:
    """Open a page in the browser: drop an image, type texts, see their maps."""
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'gradio>=6.29'")
    shared.check_models(args, args.model or ())
    from .answers import Models
    from .page import LOCAL, find_port, serving

    own: Any = {"processor": args.processor, "tokenizer": args.tokenizer}
    own |= {"max_pixels": args.max_pixels}
    models = Models(args.model or (), args.device, **own)
    port = find_port(args.host, args.port)
    with shared.step(f"loading {models.names[0]}", quiet=args.quiet):
        models.get(models.names[0])
    with serving(models, args.host, port, args.allow_host or ()) as address:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if args.host not in LOCAL:
            print(
                "everyone who can reach this machine over the network can use the page", flush=True
            )
        Event().wait()
