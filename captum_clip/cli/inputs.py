"""What a command is given, checked before a model is loaded, and the loading of models."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_destination, find_file, find_folder
from ..errors import InputError
from .output import steps

if TYPE_CHECKING:
    from ..emotions import EmotionProbe
    from ..models import ClipAdapter


def is_file(name: str) -> bool:
    """Whether there is such a file; a text may be too long for the name of one."""
    return os.path.isfile(os.path.expanduser(name))


def read_image(name: str) -> Path:
    """The path of an image that can be read."""
    from ..models.images import as_pil

    if "://" in name:
        raise InputError(f"{name} is a URL; download the image, then give the file.")
    path = find_file(name, what="image file")
    as_pil(path)
    return path


def check_figure(
    output: Path | None, default: str, formats: tuple[str, ...], images: Sequence[Path]
) -> Path:
    """Where a figure goes: a path that can be written, and that is none of the images."""
    path = check_destination(output or Path(default), formats)
    for image in images:
        if path.exists() and path.samefile(image):
            raise InputError(f"the figure would replace the image {image}; give another --output.")
    return path


def check_folder(name: str, output: Path | None, kind: str) -> tuple[Path, Path, list[str]] | None:
    """The folder of a name, that of its figures (FOLDER-KIND by default), the names of its images.

    None where the name is that of no folder.
    """
    from ..evaluation.image_batches import list_images
    from ..evaluation.storage import storage_of
    from ..explanation import FORMATS

    if not os.path.isdir(os.path.expanduser(name)):
        return None
    folder = find_folder(name)
    output = output or Path(f"{folder.resolve().name}-{kind}")
    if output.suffix.lower() in FORMATS or output.is_file():
        raise InputError(
            f"{name} is a folder, of which each image gets a figure; -o {output} must name a "
            "folder for them."
        )
    return folder, output, [*list_images(storage_of(folder), storage_of(output))]


def read_probes(files: Sequence[Path]) -> "tuple[list[EmotionProbe], list[str]]":
    """Emotion probes, and the models that they were fitted on; none where not all name one."""
    from ..emotions import EmotionProbe

    probes = [EmotionProbe.load(file) for file in files]
    fitted = [probe.model for probe in probes]
    return probes, fitted if all(fitted) else []


def load_model(
    name: str, processor: str | None, tokenizer: str | None, device: str | None, *, quiet: bool
) -> "ClipAdapter":
    """Load a model, with the processor and the tokenizer of others where they are named."""
    from ..models import load_clip
    from ..models.loading import load_processor, load_tokenizer

    with steps(1, quiet=quiet) as begin:
        begin(f"loading {name}")
        parts = {"processor": load_processor(processor), "tokenizer": load_tokenizer(tokenizer)}
        return load_clip(name, **parts, device=device)


def count_gpus(gpus: int | None, device: str | None) -> int:
    """The number of GPUs that --gpus or --device ask for; one where CUDA is available otherwise."""
    if gpus is not None:
        return gpus
    from ..models.loading import choose_device

    if ":" in (device or ""):
        raise InputError(f"--device {device}: expected cpu or cuda, without a number.")
    return int(choose_device(device).type == "cuda")
