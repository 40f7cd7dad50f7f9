"""What every command is given, checked before a model is loaded; and the loading of models."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import as_list, check_destination, find_file, find_folder
from ..errors import InputError
from .command import DEFAULT_MODEL

if TYPE_CHECKING:
    from ..emotions import EmotionProbe
    from ..models import ClipAdapter


def check_arguments(arguments: Namespace) -> None:
    """Refuse a text, a method or a device that no model could take.

    Raises:
        InputError: a blank text, no such method or option of it, no such device.
    """
    for text in getattr(arguments, "texts", None) or ():
        if not text.strip():
            raise InputError(f"the text {text!r} is empty; say what to look for.")
    methods = getattr(arguments, "method", None)
    if methods and arguments.command != "evaluate":  # which has more of them
        from ..attr.registry import MethodChoice

        for choice in map(MethodChoice.of, as_list(methods)):
            if getattr(arguments, "sign", "positive") != "positive":
                choice.check_negative()
    if getattr(arguments, "device", None) is not None:
        from ..models.loading import choose_device

        choose_device(arguments.device)


def looks_like_image(name: str) -> bool:
    """Whether a word names an image, there or not, rather than being a text."""
    from PIL import Image

    endings = Image.registered_extensions()
    return "://" in name or is_file(name) or Path(name).suffix.lower() in endings


def is_file(name: str) -> bool:
    """Whether there is such a file; a text may be too long for the name of one."""
    return os.path.isfile(os.path.expanduser(name))


def is_folder(name: str) -> bool:
    """Whether there is such a folder."""
    return os.path.isdir(os.path.expanduser(name))


def read_image(name: str) -> Path:
    """The path of an image that can be read.

    Raises:
        InputError: there is none, or it is no image.
    """
    from ..models.images import as_pil

    if "://" in name:
        raise InputError(f"{name} is a URL; download the image, then give the file.")
    path = find_file(name, what="image file")
    as_pil(path)
    return path


def read_folder(name: str | Path) -> Path:
    """The path of a folder.

    Raises:
        InputError: there is none.
    """
    if ":/" in str(name):
        raise InputError(f"{name} is a URL; give a folder of this machine.")
    return find_folder(name)


def check_output(
    output: Path | None, default: str, formats: tuple[str, ...], images: Sequence[Path]
) -> Path:
    """Where a picture goes, seen to before a model is loaded.

    Raises:
        InputError: it cannot be written, or would replace one of the images.
    """
    path = check_destination(output or Path(default), formats)
    for image in images:
        if path.exists() and path.samefile(image):
            raise InputError(f"the picture would replace the image {image}; give another --output.")
    return path


def check_emotions(names: Sequence[str] | None) -> None:
    """Refuse what is the name of no emotion."""
    from ..checks import check_choice
    from ..emotions import CLASSES

    for name in names or ():
        check_choice("--emotion", name, CLASSES)


def load_probe(file: str | Path | None) -> EmotionProbe | None:
    """A probe of emotions where one is given."""
    if file is None:
        return None
    from ..emotions import EmotionProbe

    return EmotionProbe.load(file)


def model_name(model: str | None, probe: EmotionProbe | None) -> str:
    """The model that is asked for, else the one that the probe was fitted on, else the default."""
    return model or (probe.model if probe is not None else "") or DEFAULT_MODEL


def model_names(
    models: Sequence[str] | None, probes: Sequence[Any], default: Sequence[str]
) -> list[str]:
    """The same for several models and probes."""
    named = [probe.model for probe in probes]
    return list(models or (named if named and all(named) else default))


def load_model(arguments: Namespace, name: str) -> ClipAdapter:
    """A model with the processor, the tokenizer and the device that are asked for."""
    from ..models import load_clip
    from ..models.loading import load_processor, load_tokenizer

    return load_clip(
        name,
        processor=load_processor(arguments.processor),
        tokenizer=load_tokenizer(arguments.tokenizer),
        device=arguments.device,
    )


def count_gpus(arguments: Namespace) -> int:
    """The number of GPUs that --gpus or --device ask for; one where there is CUDA otherwise."""
    if arguments.gpus is not None:
        gpus: int = arguments.gpus
        return gpus
    from ..models.loading import choose_device

    if ":" in (arguments.device or ""):
        raise InputError(f"--device {arguments.device}: expected cpu or cuda, without a number.")
    return int(choose_device(arguments.device).type == "cuda")
