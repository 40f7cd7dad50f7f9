"""``captum-clip index`` and ``search``: images that were read once answer every later text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from ..checks import check_outputs, find_folder
from ..errors import InputError
from ..explaining.request import Conflict, Sign, check_request, default_sign
from . import shared
from .options import (
    DEFAULT_MODEL,
    Computing,
    Count,
    Loading,
    Texts,
    app,
    check_emotions,
    check_texts,
    command,
    ruled,
)


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
def index_command(typed: Index) -> None:
    """Read a folder of images once, for 'search'.

    Run it again to add new images, to replace those that changed, or to resume after a stop.
    """
    from ..search import ImageIndex
    from ..search.table import Table

    shared.check_methods([typed.method])
    Table(typed.output)  # what cannot be one fails before the model is loaded
    folder = typed.folder if "://" in typed.folder else str(find_folder(typed.folder))
    settings = typed.settings("folder", "output", "model")
    clip = shared.load_model(typed, typed.model)
    with shared.images_bar("index", quiet=typed.quiet) as progress:
        index = ImageIndex.build(clip, folder, typed.output, progress=progress, **settings)
    skipped = {Path(index.folder, name): reason for name, reason in index.skipped.items()}
    if "://" not in folder:
        read = [*skipped, *(Path(index.folder, name) for name in index.files)]
        skipped |= shared.find_left_out(Path(index.folder), read, Path(typed.output))
    shared.report_skipped(skipped)
    print(f"{len(index):,} image{'s' * (len(index) != 1)} in {typed.output}")


@dataclass(frozen=True, kw_only=True)
class Search(Loading):
    """What is looked for, and what is written of it."""

    index: str
    texts: Texts = None
    against: str | None = None
    emotions: Path | None = ruled(needs=("emotion",))
    emotion: str | None = ruled(
        None, Conflict("is not contrasted", {"against": ()}), needs=("emotions",)
    )
    weight: Annotated[float | None, Option(min=0, max=1)] = None
    sign: Sign | None = None
    top: Count = 12
    min_score: Annotated[float, Option(min=-1, max=1)] = -1
    regions: Path | None = None
    images: str = ""
    model: str | None = None
    output: Path | None = None


@command(app, "search", 'photos.lance "a horse in the snow" --top 20 -o found')
def search_command(typed: Search) -> None:
    """Find the images of an index that fit TEXTs, an emotion or both, and show why."""
    texts, emotion, against = check_texts(typed.texts or ()), typed.emotion, typed.against
    check_request(typed)
    if not texts and not emotion:
        raise InputError("expected a TEXT or an --emotion to look for, got none.")
    if against is not None and len(texts) != 1:
        raise InputError("--against contrasts one TEXT; leave further TEXTs out.")
    if typed.weight is not None and not (emotion and texts):
        raise InputError("--weight needs both a TEXT and an --emotion.")
    shared.hint_at_quotes(texts)
    check_emotions([emotion] if emotion else [])
    from .. import targets
    from ..emotions import EmotionProbe
    from ..explaining.regions import save_regions
    from ..models.loading import load_parts
    from ..search import ImageIndex
    from ..search.result import FIGURE, TABLE

    if typed.output:
        check_outputs([typed.output / name for name in (TABLE, FIGURE)], [typed.emotions])
    probes = [EmotionProbe.load(typed.emotions)] if typed.emotions else []
    with shared.step(f"opening {typed.index}", quiet=typed.quiet):
        processors = load_parts(typed.processor, typed.tokenizer)
        loading = {**processors, "device": typed.device, "images": typed.images}
        index = ImageIndex.open(typed.index, typed.model, **loading)
        looked_for = [targets.text(index.clip, texts)] if texts else []
        if against is not None:
            looked_for = [looked_for[0] - targets.text(index.clip, against)]
        looked_for += [targets.emotion(index.clip, probe, emotion) for probe in probes]
    share = 0.5 if typed.weight is None else typed.weight
    weights = [(1 - share) / len(texts)] * len(texts) + [share] if texts and probes else None
    how: Any = {"weights": weights, "sign": default_sign(typed.sign, against)}
    how |= {"min_score": typed.min_score}
    best = index.search(targets.concatenate(looked_for), typed.top, **how)
    shared.report_skipped({Path(index.folder, name): why for name, why in best.skipped.items()})
    written = [*best.save(typed.output)] if typed.output else []
    explanation = best.explanation
    for number, file in enumerate(best.files if typed.regions else ()):
        about = {"photo": file, "threshold": "otsu"}
        about |= {"model": explanation.model, "method": explanation.method}
        regions = explanation[number].regions()
        written.append(save_regions(regions, Path(f"{typed.regions}/{file}"), about))
    names = ", ".join(map(repr, explanation.names))
    print(f"{names}, best of {best.compared:,} images ({explanation.model}, {explanation.method}):")
    for number, (file, score) in enumerate(zip(best.files, best.scores, strict=True), 1):
        each = "".join(f"  {cosine:6.3f}" for cosine in explanation.scores[number - 1].tolist())
        print(f"{number:4d}  {score:6.3f}{each * (len(explanation.names) > 1)}  {file}")
    print(*written, sep="\n", end="\n" * bool(written))
