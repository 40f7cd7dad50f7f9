"""What commands share when they run: inputs checked early, models, progress bars, folders."""

import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..checks import check_destination, check_outputs, expand, find_file, find_folder, show
from ..errors import InputError, parse_json
from ..explaining.request import ENDINGS
from ..files import IMAGE_ENDINGS, as_pil, is_own_figure, make_folder, replace_file, slug
from .options import check_texts, read_texts

if TYPE_CHECKING:
    from ..models import ClipAdapter


INDEX = "index.html"
_OWN: Final = "it is a figure that captum-clip drew"
_NO_IMAGE: Final = "its ending is not that of an image"
_LISTED: Final = 20  # files that are left out, in a terminal
_SHORT: Final = ("a", "an", "the", "in", "of", "on", "and", "with")
"""What no one looks for alone: words of a text without its quotes."""


def read_image(name: str) -> Path:
    """The path of an image that can be read."""
    if "://" in name:
        raise InputError(f"{name} is a URL; download the image, then give the file.")
    path = find_file(name, what="image file")
    as_pil(path)
    return path


class Folder(NamedTuple):
    """A folder of images, the one that their figures go into, and the names of the images."""

    images: Path
    output: Path
    names: list[str]

    def files(self, kind: str, texts: Sequence[str]) -> dict[Path, Path]:
        """Where the figure of each image goes; with its ending where there are a.jpg and a.png."""
        stems = {name: str(PurePosixPath(name).with_suffix("")) for name in self.names}
        counts = Counter(stems.values())
        return {
            self.images / name: self.output
            / figure_name(stem if counts[stem] == 1 else name, kind, texts)
            for name, stem in stems.items()
        }


class Line(NamedTuple):
    """What a line names: images, or a folder of them; then texts, those of a file included."""

    images: list[Path]
    texts: list[str]
    folder: Folder | None


def read_line(
    args: Any,
    words: Sequence[str],
    *,
    command: str,
    kind: str,
    needs_image: bool = False,
    takes_folder: bool = True,
) -> Line:
    """Tell images, or a folder whose figures are of some kind, from the texts that follow them."""
    folder = find_images(words[0], args.output, kind) if words and takes_folder else None
    words = words[1:] if folder else words
    from PIL import Image

    endings = Image.registered_extensions()
    # a file that does not exist is meant as an image too
    looks = [
        "://" in word
        or os.path.isfile(os.path.expanduser(word))  # which takes what is too long for a name
        or Path(word).suffix.lower() in endings
        for word in words
    ]
    if needs_image and not folder and not looks[0]:
        raise InputError(f"{show(words[0])} is not an image; {command} takes images, then texts.")
    count = 0 if folder else [*looks, False].index(False)
    if True in looks[count:]:
        image, takes = words[looks.index(True, count)], "images or one folder"
        takes = takes if folder else "images"
        raise InputError(f"{image} is an image; {command} takes {takes}, then texts.")
    images = [read_image(word) for word in words[:count]]
    if needs_image:  # figures of earlier calls are left out, as where the line has ``*.png``
        own = {image: _OWN for image in images if is_own_figure(image)}
        report_skipped(own if len(own) < len(images) else {})
        images = [image for image in images if image not in own] or images
    hint_at_quotes(words[count:])
    return Line(images, check_texts(words[count:]) + read_texts(args.texts_file), folder)


def hint_at_quotes(texts: Sequence[str]) -> None:
    """Say that each of several texts stands alone, where one is a word of a text without quotes."""
    if any(text in _SHORT for text in texts) and len(texts) > 1:
        meant = f'"{" ".join(texts)}"'
        print(
            f"each TEXT is looked for by itself; to look for one text, quote it: {meant}",
            file=sys.stderr,
        )


def figure_name(image: str, kind: str, texts: Sequence[str]) -> str:
    """The name of a figure; one for other texts has another name."""
    return "-".join(filter(None, (image, kind, slug(*texts)))) + ".png"


def check_figures(
    images: Sequence[Path], output: Path | None, kind: str, texts: Sequence[str]
) -> dict[Path, Path]:
    """Where the figure of each of some images goes: one file, or a folder."""
    names = [figure_name(image.stem, kind, texts) for image in images]
    if len(images) == 1 and output is not None and output.suffix and not output.is_dir():
        return {images[0]: check_destination(output, ENDINGS)}
    if output is not None and (output.suffix.lower() in ENDINGS or output.is_file()):
        raise InputError(
            f"each of {len(images)} images gets its own file; {output} must name a folder."
        )
    folder = output or Path()
    check_outputs([folder / name for name in names], images)  # before a folder is made
    folder = make_folder(folder)
    files = [check_destination(folder / name, ENDINGS) for name in names]
    return dict(zip(images, files, strict=True))


def find_images(name: str, output: Path | None, kind: str) -> Folder | None:
    """A folder by its name, with figures in FOLDER-KIND by default; None if it is no folder."""
    if not os.path.isdir(os.path.expanduser(name)):
        return None
    from ..folders.storage import list_images, storage_of

    folder = find_folder(name)
    output = expand(output or Path(f"{folder.resolve().name}-{kind}"))
    if output.suffix.lower() in ENDINGS or output.is_file():
        raise InputError(
            f"{name} is a folder, and each of its images gets its own file; {output} must name a "
            "folder."
        )
    return Folder(folder, output, [*list_images(storage_of(folder), storage_of(output))])


def find_left_out(folder: Path, images: Iterable[Path], output: Path | None) -> dict[Path, str]:
    """Files of a folder besides the images, hidden files and results: path -> why."""
    from ..folders.storage import storage_of

    kept, base = set(images), folder.resolve()
    results = base if output is None else output.resolve()
    left_out = {}
    for name in sorted(storage_of(folder).files()):
        path, hidden = folder / name, name.startswith(".") or "/." in name
        is_result = results != base and (base / name).is_relative_to(results)
        if path not in kept and not hidden and not is_result:
            left_out[path] = _OWN if path.suffix.lower() in IMAGE_ENDINGS else _NO_IMAGE
    return left_out


def fitted_on(*files: Path | None) -> list[str]:
    """The models that emotion probes were fitted on; none where not all name one."""
    from ..models.names import check_stated
    from ..targets import EmotionProbe

    fitted = {file: EmotionProbe.load(file).model for file in files if file}
    return [check_stated(fitted[file], file) for file in fitted] if all(fitted.values()) else []


def read_classes(
    file: Path | None, templates: Sequence[str] | None, top: int | None
) -> tuple[list[str], list[str]]:
    """Names of classes and templates of their texts, from a file and the file beside it."""
    if file is None:
        return [], []
    from ..folders.storage import check_template, read_templates

    names = [*dict.fromkeys(line.replace("_", " ") for line in read_texts(file))]
    prompts = templates or read_templates(find_file(file).parent) or ["{}"]
    prompts = [*map(check_template, prompts)]
    if top is not None and top > len(names):
        raise InputError(f"expected --top up to {len(names)}, the classes of {file}, got {top}.")
    return names, prompts


def load_model(args: Any, name: str) -> "ClipAdapter":
    """Load a model, with the processor and the tokenizer of others where they are named."""
    from ..models import load_clip
    from ..models.loading import load_parts

    with step(f"loading {name}", quiet=args.quiet):
        processors = load_parts(args.processor, args.tokenizer)
        return load_clip(name, **processors, device=args.device, image_size=args.image_size)


def check_models(args: Any, names: Iterable[str]) -> None:
    """Raise InputError unless models, and those of the tools, are known, before torch is loaded."""
    from ..models.names import resolve

    tools = [name for name in (args.processor, args.tokenizer) if name]
    for name in (*names, *(tool for tool in tools if not expand(tool).is_dir())):
        resolve(name)


def shows_bars(quiet: bool) -> bool:
    """Whether somebody looks at a bar."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def step(task: str, *, quiet: bool) -> Iterator[None]:
    """Show on stderr what is being done, as long as it takes."""
    from tqdm import tqdm

    with tqdm(disable=not shows_bars(quiet), desc=task, bar_format="{desc}", leave=False):
        yield


@contextmanager
def images_bar(task: str, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr with the rate and the time left.

    A file or a pipe gets a line instead for each label that is new, and one a minute.
    """
    from tqdm import tqdm

    labels, started, shown = {""}, 0.0, 0.0
    with tqdm(disable=not shows_bars(quiet), desc=task, unit="image", leave=False) as bar:

        def progress(done: int, total: int, label: str = "") -> None:
            nonlocal started, shown
            now = time.monotonic()
            if bar.total != total:  # what an earlier run had done takes no part in the rate
                bar.total, bar.initial, bar.n = total, done, done
                started = shown = now
            bar.update(done - bar.n)
            if bar.disable and not quiet and (label not in labels or now - shown > 60):
                left = (now - started) / max(1, done - bar.initial) * (total - done)
                what, minutes = f"{task}, {label}" if label else task, math.ceil(left / 60)
                line = f"{what}: {done:,} of {total:,} images, about {minutes} min left"
                print(line, file=sys.stderr, flush=True)
                labels.add(label)
                shown = now

        try:
            yield progress
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on from here", file=sys.stderr)
            raise


def columns(
    rows: Iterable[Sequence[str]], justify: Callable[[str, int], str] = str.ljust
) -> Iterator[str]:
    """The lines of a table: its first column stands left, the others as they are justified."""
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(justify, others, widths[1:])]).rstrip()


def table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The lines of a table of numbers, with the names of its rows and columns."""
    cells = [["", *next(iter(rows.values()))]]
    for name, values in rows.items():
        texts = (f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in values.values())
        cells.append([name, *texts])
    return columns(cells, str.rjust)


def report_skipped(skipped: Mapping[Path, str]) -> None:
    """Print which files could not be read, and why; nothing if all could."""
    lines = [f"{path}: {reason.removeprefix(str(path))}" for path, reason in skipped.items()]
    lines = [" ".join(line.split()) for line in lines]
    if len(lines) == 1:
        print("1 file left out,", *lines, file=sys.stderr)
    elif lines:
        more = [f"and {len(lines) - _LISTED:,} more"] * (len(lines) > _LISTED)
        heading = f"{len(lines):,} files left out:"
        print(heading, *lines[:_LISTED], *more, sep="\n  ", file=sys.stderr)


def draw_folder(
    folder: Folder,
    figures: Mapping[Path, Path],
    draw: Callable[[Path, Path], object],
    clips: Sequence["ClipAdapter"],
    inputs: Sequence[Path | None],
    settings: Mapping[str, Any],
    *,
    scored: Collection[Path] | None = None,
    quiet: bool,
) -> dict[Path, str]:
    """Draw images that have no figure yet, or whose figure is not `scored`.

    It prints how many there are, and returns the files that were left out. A manifest
    keeps the models, digests of other `inputs`, and the settings, with their "targets".

    Raises:
        InputError: other models, inputs or settings made the figures that there are.
    """
    skipped, others = dict[Path, str](), find_left_out(folder.images, figures, folder.output)
    # `Path.exists` raises over a name that is too long, which drawing reports
    missing = [
        image
        for image, figure in figures.items()
        if not os.path.exists(figure) or (scored is not None and figure not in scored)
    ]
    existed = len(figures) - len(missing)
    models = [{"name": clip.name, "identity": clip.identity()} for clip in clips]
    read = [file.read_bytes() for file in inputs if file is not None and os.path.isfile(file)]
    digests = [hashlib.sha256(content).hexdigest()[:12] for content in read]
    made_by = json.dumps({**settings, "models": models, "digests": digests}, indent=1, default=str)
    name = figure_name("manifest", "", settings["targets"])
    manifest = make_folder(folder.output) / Path(name).with_suffix(".json")
    check_outputs([manifest], inputs)
    if existed or manifest.exists():
        from ..folders.storage import differences

        changes = ["the settings are not known"]
        with suppress(OSError, ValueError):
            changes = differences(parse_json(manifest.read_bytes()), json.loads(made_by))
        if changes:
            raise InputError(
                f"{manifest.parent} holds figures made with other settings "
                f"({'; '.join(changes[:3])}); give another -o, or delete the folder."
            )
    with images_bar("figures", quiet=quiet) as progress:
        progress(existed, len(figures))
        for done, image in enumerate(missing, existed + 1):
            make_folder(figures[image].parent)
            try:
                draw(image, figures[image])
                if not manifest.exists():  # not before there is a figure, and settings that work
                    replace_file(manifest, lambda file: file.write(made_by.encode()))
            except InputError as error:
                skipped[image] = error.reason
            progress(done, len(figures))
    if len(skipped) == len(figures):
        image, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(figures)} images could be drawn; {image}: {reason}")
    left_out = {**skipped, **others}
    report_skipped(left_out)
    there = f" ({existed:,} existed)" if existed else ""
    count = len(figures) - len(skipped)
    print(f"{count:,} figure{'s' * (count != 1)} in {folder.output}{there}")
    return left_out


def write_index(folder: Path, photos: Path, template: Path, **values: Any) -> None:
    """Write `index.html` of a folder of photos from a Jinja file, which may extend ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    values["title"] = photos.resolve().name
    values["photos"] = Path(os.path.relpath(photos.resolve(), folder.resolve())).as_posix()
    content = pages.get_template(template.name).render(values).encode(errors="replace")
    replace_file(folder / INDEX, lambda file: file.write(content))
