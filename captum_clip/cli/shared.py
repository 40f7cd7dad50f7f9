"""What commands share when they run: inputs checked early, models, progress bars, folders."""

import hashlib
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..checks import check_destination, check_outputs, expand, find_file, find_folder, show
from ..errors import InputError, parse_json
from ..explaining.request import ENDINGS
from ..files import (
    IMAGE_ENDINGS,
    as_pil,
    is_image_name,
    is_own_figure,
    make_folder,
    replace_file,
    slug,
)
from .options import Loading, check_texts, read_texts

if TYPE_CHECKING:
    from ..models import ClipAdapter


INDEX: Final = "index.html"
_OWN_FIGURE: Final = "it is a figure that captum-clip drew"
_NO_IMAGE: Final = "its ending is not that of an image"
_MOST_LISTED: Final = 20
"""Files that are left out, of which a terminal shows so many."""
_SHORT_WORDS: Final = ("a", "an", "the", "in", "of", "on", "and", "with")
"""Nobody looks for these alone: they are words of a text without its quotes."""


def read_image(name: str) -> Path:
    """Return the path of an image that can be read."""
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
        """Return where the figure of each image goes."""
        stems = {name: str(PurePosixPath(name).with_suffix("")) for name in self.names}
        counts = Counter(stems.values())
        files = {}
        for name, stem in stems.items():
            # The figures of a.jpg and a.png differ by the ending of the image.
            unique = stem if counts[stem] == 1 else name
            files[self.images / name] = self.output / figure_name(unique, kind, texts)
        return files


class Line(NamedTuple):
    """The inputs of a command line: images, or a folder of them, and texts, with those of a file.

    Attributes:
        images: files, each of which can be read; none with a folder.
        texts: those of the line, then those of the file.
        folder: the folder of images, if the line names one.
        left_out: why other images of the line cannot be read.
    """

    images: list[Path]
    texts: list[str]
    folder: Folder | None
    left_out: dict[Path, str]


def read_line(
    words: Sequence[str],
    texts_file: Path | None,
    output: Path | None,
    *,
    command: str,
    kind: str,
    needs_image: bool = False,
    takes_folder: bool = True,
    skips_broken: bool = False,
) -> Line:
    """Tell images, or a folder of them, from the texts that follow them.

    Args:
        words: the arguments of the command.
        texts_file: a file of more texts.
        output: the folder of the figures, if the first word is a folder of images.
        command: the name for messages.
        kind: stands in the names of the figures.
        needs_image: whether the first word must be an image or a folder.
        takes_folder: whether it may be a folder.
        skips_broken: whether broken files among several images are left out.
    """
    folder = find_images(words[0], output, kind) if words and takes_folder else None
    if folder is not None:
        words = words[1:]
    are_images = [is_image_name(word) for word in words]
    if needs_image and not folder and not are_images[0]:
        has_ending = re.search(r"\.\w+$", words[0])
        # `Path.exists` raises for a name that is too long.
        is_misspelled = has_ending and not os.path.exists(os.path.expanduser(words[0]))
        problem = "does not exist" if is_misspelled else "is not an image"
        raise InputError(f"{show(words[0])} {problem}; {command} takes images, then texts.")
    # The images end at the first word that is none, or at the end of the line.
    image_count = 0
    if folder is None:
        image_count = [*are_images, False].index(False)
    texts = words[image_count:]
    for word, is_image in zip(texts, are_images[image_count:], strict=True):
        if is_image:
            taken = "images or one folder" if folder else "images"
            raise InputError(f"{word} is an image; {command} takes {taken}, then texts.")
    images, left_out = _read_images(words[:image_count], skips_broken=skips_broken)
    if needs_image:
        images = _without_own_figures(images)
    hint_at_quotes(texts)
    return Line(images, check_texts(texts) + read_texts(texts_file), folder, left_out)


def _read_images(words: Sequence[str], *, skips_broken: bool) -> tuple[list[Path], dict[Path, str]]:
    """Return the images that can be read, and why others cannot."""
    images: list[Path] = []
    left_out: dict[Path, str] = {}
    for word in words:
        try:
            images.append(read_image(word))
        except InputError as error:
            # Among several, a broken file is left out, as in a folder, but a misspelled name is an
            # error.
            if not skips_broken or len(words) == 1 or not os.path.isfile(expand(word)):
                raise
            left_out[Path(word)] = error.reason
    if left_out and not images:
        path, reason = next(iter(left_out.items()))
        raise InputError(f"none of the {len(words)} images can be read; {path}: {reason}")
    return images, left_out


def _without_own_figures(images: list[Path]) -> list[Path]:
    """Leave out figures of earlier calls, which ``*.png`` matches too, unless there are no others.

    They are reported as left out.
    """
    figures = [image for image in images if is_own_figure(image)]
    if len(figures) == len(images):
        return images
    report_skipped(dict.fromkeys(figures, _OWN_FIGURE))
    return [image for image in images if image not in figures]


def hint_at_quotes(texts: Sequence[str]) -> None:
    """Say that each of several texts stands alone, if one is a word of a text without quotes."""
    if len(texts) > 1 and any(text in _SHORT_WORDS for text in texts):
        meant = f'"{" ".join(texts)}"'
        print(
            f"each TEXT is looked for by itself; to look for one text, quote it: {meant}",
            file=sys.stderr,
        )


def figure_name(image: str, kind: str, texts: Sequence[str]) -> str:
    """Return the name of a figure, which depends on the texts."""
    return "-".join(filter(None, (image, kind, slug(*texts)))) + ".png"


def check_figures(
    images: Sequence[Path], output: Path | None, kind: str, texts: Sequence[str]
) -> dict[Path, Path]:
    """Return where the figure of each image goes: one file, or a folder."""
    names = [figure_name(image.stem, kind, texts) for image in images]
    # A name with an ending is a file, unless there is a folder with that name.
    if len(images) == 1 and output is not None and output.suffix and not output.is_dir():
        return {images[0]: check_destination(output, ENDINGS)}
    if output is not None and (output.suffix.lower() in ENDINGS or output.is_file()):
        raise InputError(
            f"each of {len(images)} images gets its own file; {output} must name a folder."
        )
    folder = output or Path()
    # No folder is made for a line that is refused.
    check_outputs([folder / name for name in names], images)
    folder = make_folder(folder)
    files = [check_destination(folder / name, ENDINGS) for name in names]
    return dict(zip(images, files, strict=True))


def find_images(name: str, output: Path | None, kind: str) -> Folder | None:
    """Find a folder of images, with figures in FOLDER-KIND by default; None if it is no folder."""
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
    """Return the files of a folder that are not among the images, each with the reason.

    Hidden files and results are not counted.
    """
    from ..folders.storage import storage_of

    kept = set(images)
    base = folder.resolve()
    results = base if output is None else output.resolve()
    left_out = {}
    for name in sorted(storage_of(folder).files()):
        path = folder / name
        is_hidden = name.startswith(".") or "/." in name
        is_result = results != base and (base / name).is_relative_to(results)
        if path in kept or is_hidden or is_result:
            continue
        # An image that is not used can only be a figure, which the search for images leaves out.
        is_image = path.suffix.lower() in IMAGE_ENDINGS
        left_out[path] = _OWN_FIGURE if is_image else _NO_IMAGE
    return left_out


def fitted_on(*files: Path | None) -> list[str]:
    """Return the models that emotion probes were fitted on; none unless each probe names one."""
    from ..models.names import check_stated
    from ..targets import EmotionProbe

    names = {file: EmotionProbe.load(file).model for file in files if file}
    if not all(names.values()):
        return []
    return [check_stated(name, file) for file, name in names.items()]


def read_classes(
    file: Path | None, templates: Sequence[str], top: int | None
) -> tuple[list[str], list[str]]:
    """Read the names of classes and the templates of their texts.

    Args:
        file: the names, one per line; without it there are neither.
        templates: as given; else those of templates.txt beside the file, or the names alone.
        top: how many of the classes will be shown.
    """
    if file is None:
        return [], []
    from ..folders.storage import check_template, read_templates

    names = list(dict.fromkeys(line.replace("_", " ") for line in read_texts(file)))
    prompts = templates or read_templates(find_file(file).parent) or ["{}"]
    checked = [check_template(prompt) for prompt in prompts]
    if top is not None and top > len(names):
        raise InputError(f"expected --top up to {len(names)}, the classes of {file}, got {top}.")
    return names, checked


def load_model(name: str, loading: Loading) -> "ClipAdapter":
    """Load a model, with the processor and the tokenizer of others if they are named."""
    from ..models import load_clip
    from ..models.loading import load_parts

    with step(f"loading {name}", quiet=loading.quiet):
        processors = load_parts(loading.processor, loading.tokenizer)
        return load_clip(name, **processors, device=loading.device, image_size=loading.image_size)


def check_models(names: Iterable[str], loading: Loading) -> None:
    """Raise InputError unless all models are known, before torch is loaded.

    Those whose processor or tokenizer is used may be folders with nothing else in them.
    """
    from ..models.names import resolve

    for name in names:
        resolve(name)
    for other in (loading.processor, loading.tokenizer):
        if other and not expand(other).is_dir():
            resolve(other)


def shows_bars(quiet: bool) -> bool:
    """Whether somebody looks at a bar."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def step(task: str, *, quiet: bool) -> Iterator[None]:
    """Show on stderr what is being done, as long as it takes."""
    from tqdm import tqdm

    with tqdm(disable=not shows_bars(quiet), desc=task, bar_format="{desc}", leave=False):
        yield


@dataclass
class _ImageProgress:
    """A bar of images; without a terminal, a line for each new label, and one a minute."""

    task: str
    bar: Any
    prints_lines: bool

    def __post_init__(self) -> None:
        # A label has its first line at once; the empty one stands for none.
        self.labels = {""}
        self.started = 0.0
        self.last_line = 0.0

    def __call__(self, done: int, total: int, label: str = "") -> None:
        now = time.monotonic()
        # The first call says how many images there are, and how many an earlier run had done.
        if self.bar.total != total:
            # Those take no part in the rate.
            self.bar.total = total
            self.bar.initial = done
            self.bar.n = done
            self.started = now
            self.last_line = now
        self.bar.update(done - self.bar.n)
        is_due = label not in self.labels or now - self.last_line > 60
        if self.prints_lines and is_due:
            done_now = max(1, done - self.bar.initial)
            seconds_left = (now - self.started) / done_now * (total - done)
            task = f"{self.task}, {label}" if label else self.task
            print(
                f"{task}: {done:,} of {total:,} images, "
                f"about {math.ceil(seconds_left / 60)} min left",
                file=sys.stderr,
                flush=True,
            )
            self.labels.add(label)
            self.last_line = now


@contextmanager
def images_bar(task: str, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr with the rate and the time left, or lines in a file or a pipe."""
    from tqdm import tqdm

    shows_bar = shows_bars(quiet)
    with tqdm(disable=not shows_bar, desc=task, unit="image", leave=False) as bar:
        try:
            yield _ImageProgress(task, bar, prints_lines=not shows_bar and not quiet)
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on from here", file=sys.stderr)
            raise


def columns(
    rows: Iterable[Sequence[str]], justify: Callable[[str, int], str] = str.ljust
) -> Iterator[str]:
    """Yield the lines of a table: the first column stands left, the others as justified."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for first, *others in listed:
        cells = [first.ljust(widths[0]), *map(justify, others, widths[1:])]
        yield "  ".join(cells).rstrip()


def table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of a table of numbers, with the names of its rows and columns."""
    first_row = next(iter(rows.values()))
    cells = [["", *first_row]]
    for name, values in rows.items():
        texts = [f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in values.values()]
        cells.append([name, *texts])
    return columns(cells, str.rjust)


def report_skipped(skipped: Mapping[Path, str]) -> None:
    """Print which files could not be read, and why; nothing if all could."""
    lines = []
    for path, reason in skipped.items():
        # Some reasons begin with the name of the file.
        line = reason if reason.startswith(str(path)) else f"{path}: {reason}"
        lines.append(" ".join(line.rstrip(".").split()))
    if len(lines) == 1:
        print("1 file left out,", lines[0], file=sys.stderr)
    elif lines:
        print(f"{len(lines):,} files left out:", file=sys.stderr)
        for line in lines[:_MOST_LISTED]:
            print(f"  {line}", file=sys.stderr)
        if len(lines) > _MOST_LISTED:
            print(f"  and {len(lines) - _MOST_LISTED:,} more", file=sys.stderr)


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
    """Draw the images that have no figure yet, or whose figure is not `scored`.

    It prints how many figures there are, and returns the files that were left out. A manifest
    keeps the models, digests of other `inputs`, and the settings, with their "targets".

    Raises:
        InputError: other models, inputs or settings made the figures that exist.
    """
    others = find_left_out(folder.images, figures, folder.output)
    missing = []
    for image, figure in figures.items():
        # `Path.exists` raises for a name that is too long, which drawing reports.
        if not os.path.exists(figure) or (scored is not None and figure not in scored):
            missing.append(image)
    count_existing = len(figures) - len(missing)
    made_by = _describe_run(clips, inputs, settings)
    name = figure_name("manifest", "", settings["targets"])
    # Figures for other texts have other names, and so a manifest of their own.
    manifest = make_folder(folder.output) / Path(name).with_suffix(".json")
    check_outputs([manifest], inputs)
    if count_existing or manifest.exists():
        _check_manifest(manifest, made_by)
    skipped: dict[Path, str] = {}
    with images_bar("figures", quiet=quiet) as progress:
        progress(count_existing, len(figures))
        for done, image in enumerate(missing, count_existing + 1):
            make_folder(figures[image].parent)
            try:
                draw(image, figures[image])
                # The manifest is written after a figure, since settings may turn out not to work.
                if not manifest.exists():
                    replace_file(manifest, lambda file: file.write(made_by.encode()))
            except InputError as error:
                skipped[image] = error.reason
            progress(done, len(figures))
    if len(skipped) == len(figures):
        image, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(figures)} images could be drawn; {image}: {reason}")
    left_out = {**skipped, **others}
    report_skipped(left_out)
    count = len(figures) - len(skipped)
    existed = f" ({count_existing:,} existed)" if count_existing else ""
    print(f"{count:,} figure{'' if count == 1 else 's'} in {folder.output}{existed}")
    return left_out


def _describe_run(
    clips: Sequence["ClipAdapter"], inputs: Sequence[Path | None], settings: Mapping[str, Any]
) -> str:
    """Describe by what figures are made, as JSON."""
    digests = []
    for file in inputs:
        if file is not None and os.path.isfile(file):
            digests.append(hashlib.sha256(file.read_bytes()).hexdigest()[:12])
    models = [{"name": clip.name, "identity": clip.identity()} for clip in clips]
    described = {**settings, "models": models, "digests": digests}
    return json.dumps(described, indent=1, default=str)


def _check_manifest(manifest: Path, made_by: str) -> None:
    """Raise InputError if the figures of a folder were made otherwise."""
    from ..folders.storage import differences

    # A manifest that is missing or damaged leaves this as the reason.
    changes = ["the settings are not known"]
    with suppress(OSError, ValueError):
        changes = differences(parse_json(manifest.read_bytes()), json.loads(made_by))
    if changes:
        raise InputError(
            f"{manifest.parent} holds figures made with other settings "
            f"({'; '.join(changes[:3])}); give another -o, or delete the folder."
        )


def write_index(folder: Path, photos: Path, template: Path, **values: Any) -> None:
    """Write `index.html` of a folder of photos from a Jinja file, which may extend ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    relative = os.path.relpath(photos.resolve(), folder.resolve())
    values["title"] = photos.resolve().name
    values["photos"] = Path(relative).as_posix()
    content = pages.get_template(template.name).render(values).encode(errors="replace")
    replace_file(folder / INDEX, lambda file: file.write(content))
