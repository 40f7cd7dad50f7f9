"""``captum-clip index`` and ``search``: images that were read once answer every later text."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from ..checks import check_outputs, find_folder
from ..errors import InputError
from . import options
from .options import app, command
from .shared import (
    count_gpus,
    find_left_out,
    hint_at_quotes,
    images_bar,
    load_model,
    read_probes,
    report_skipped,
    step,
)


@command(app, "index", "photos -o photos.lance --model ViT-B/32")
def index_command(
    folder: str,
    output: options.Results,
    model: Annotated[str, Option("--model", "-m")] = options.DEFAULT_MODEL,
    method: Annotated[str, Option(callback=options.check_methods)] = "direct",
    precision: Literal["int8", "float16"] = "int8",
    batch_size: int = 32,
    chunk_size: int = 512,
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
    """Read a folder of images once, for 'search'.

    Run again, it adds new images, replaces those that changed and goes on after a stop.

    Args:
        folder: a folder of images or its URL, searched recursively
        output: a table of LanceDB, ending in .lance
        model: as in 'explain'
        method: direct, with options as in direct:depth=token
        precision: what the vectors are kept in; int8 takes half the room
        chunk_size: images that are written at a time; a stop costs at most so many
        workers: batches read ahead at a time (local, default 2), or processes of Ray (default 1)
    """
    settings = options.given(
        locals(), "folder", "output", "model", "method", "precision", "device", "quiet"
    )
    from ..search import ImageIndex
    from ..search.table import Table

    Table(output)  # what cannot be one fails before the model is loaded
    if "://" not in folder:
        folder = str(find_folder(folder))
    settings |= {"gpus": count_gpus(gpus, device)}
    clip = load_model(model, processor, tokenizer, device, image_size, quiet=quiet)
    kept: dict[str, Any] = {"method": method, "precision": precision}
    with images_bar("index", quiet=quiet) as progress:
        index = ImageIndex.build(clip, folder, output, **kept, progress=progress, **settings)
    skipped = {Path(index.folder, name): reason for name, reason in index.skipped.items()}
    if "://" not in folder:
        read = [*skipped, *(Path(index.folder, name) for name in index.files)]
        skipped |= find_left_out(Path(index.folder), read, Path(output))
    report_skipped(skipped)
    print(f"{len(index):,} image{'s' * (len(index) != 1)} in {output}")


@command(app, "search", 'photos.lance "a horse in the snow" --top 20 -o found')
def search_command(
    index: str,
    texts: options.Texts = None,
    against: str | None = None,
    emotions: Path | None = None,
    emotion: str | None = None,
    weight: Annotated[float | None, Option(min=0, max=1)] = None,
    sign: options.Sign | None = None,
    top: Annotated[int, Option(min=1)] = 12,
    regions: Path | None = None,
    model: options.Model = None,
    processor: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    output: options.Output = None,
    quiet: options.Quiet = False,
) -> None:
    """Find the images of an index that fit TEXTs, an emotion or both, and show why.

    Args:
        index: a table of 'captum-clip index'
        texts: what to look for; of several the mean cosine counts
        against: what to contrast one TEXT with: what speaks for the one rather than the other
        emotion: what the images should evoke, alone or together with TEXTs
        weight: the share of --emotion in the score next to TEXTs (default: 0.5)
        sign: of the maps: what supports the text, what contradicts it, or both (default: positive;
            with --against both)
        top: how many images to find
        regions: a folder for what the maps mark, as in 'explain'
        model: the one that the index was made with (default: it is found by its name)
        output: a folder for a table and a figure with the maps (default: print the best)
    """
    texts = texts or []
    if (emotions is None) != (emotion is None):
        raise InputError("--emotions FILE and --emotion NAME go together.")
    if not texts and not emotion:
        raise InputError("expected a TEXT or an --emotion to look for, got none.")
    if against is not None and (emotion or len(texts) != 1):
        raise InputError("--against contrasts one TEXT; leave --emotion and further TEXTs out.")
    if weight is not None and not (emotion and texts):
        raise InputError("--weight goes with a TEXT and an --emotion.")
    hint_at_quotes(texts)
    options.check_emotions([emotion] if emotion else [])
    from .. import targets
    from ..explaining.regions import save_regions
    from ..models.loading import load_parts
    from ..search import ImageIndex
    from ..search.result import FIGURE, TABLE

    if output:
        check_outputs([output / name for name in (TABLE, FIGURE)], [emotions])
    probes, _ = read_probes([emotions] if emotions else [])
    with step(f"opening {index}", quiet=quiet):
        lent = load_parts(processor, tokenizer)
        opened = ImageIndex.open(index, model, **lent, device=device)
        parts = [targets.text(opened.clip, texts)] if texts else []
        if against is not None:
            parts = [parts[0] - targets.text(opened.clip, against)]
        parts += [targets.emotion(opened.clip, probe, emotion) for probe in probes]
    both = bool(texts and probes)
    share = 0.5 if weight is None else weight
    weights = [(1 - share) / len(texts)] * len(texts) + [share] if both else None
    shown = sign or ("both" if against else "positive")
    found = opened.search(targets.concatenate(parts), top, weights=weights, sign=shown)
    report_skipped({Path(opened.folder, name): why for name, why in found.skipped.items()})
    written = [*found.save(output)] if output else []
    for number, file in enumerate(found.files if regions else ()):
        one = found.explanation[number]
        about = {"photo": file, "threshold": "otsu", "model": one.model, "method": one.method}
        written.append(save_regions(one.regions(), Path(f"{regions}/{file}"), about))
    explanation = found.explanation
    names = ", ".join(map(repr, explanation.names))
    source = f"({explanation.model}, {explanation.method})"
    print(f"{names}, best of {found.compared:,} images {source}:")
    for number, (file, score) in enumerate(zip(found.files, found.scores, strict=True), 1):
        each = "".join(f"  {cosine:6.3f}" for cosine in explanation.scores[number - 1].tolist())
        print(f"{number:4d}  {score:6.3f}{each * (len(explanation.names) > 1)}  {file}")
    print(*written, sep="\n", end="\n" * bool(written))
