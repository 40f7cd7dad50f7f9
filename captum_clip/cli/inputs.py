"""What every command is given, checked before a model is loaded; and the loading of models."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..checks import as_list, check_choice, check_destination, find_file, find_folder
from ..errors import InputError
from .command import DEFAULT_MODEL
from .output import steps

if TYPE_CHECKING:
    from ..emotions import EmotionProbe
    from ..models import ClipAdapter

_NO_FIELDS: Final = ("run", "command", "quiet", "device")
"""Arguments that are none of a configuration's."""


def check_arguments(arguments: Namespace) -> None:
    """Refuse a text, a method or a device that no model could take."""
    for text in getattr(arguments, "texts", None) or ():
        check_text(text)
    methods = getattr(arguments, "method", None)
    if methods and arguments.command != "evaluate":  # which has more of them
        from ..attr.registry import MethodChoice

        for choice in map(MethodChoice.of, as_list(methods)):
            if getattr(arguments, "sign", "positive") != "positive":
                choice.check_negative()
    if getattr(arguments, "device", None) is not None:
        from ..models.loading import choose_device

        choose_device(arguments.device)


def check_text(text: str) -> None:
    """Refuse a blank text."""
    if not text.strip():
        raise InputError(f"the text {text!r} is empty; say what to look for.")


def check_emotions(names: Sequence[str] | None) -> None:
    """Refuse what is the name of no emotion."""
    from ..emotions import CLASSES

    for name in names or ():
        check_choice("--emotion", name, CLASSES)


def is_file(name: str) -> bool:
    """Whether there is such a file; a text may be too long for the name of one."""
    return os.path.isfile(os.path.expanduser(name))


def is_folder(name: str) -> bool:
    """Whether there is such a folder."""
    return os.path.isdir(os.path.expanduser(name))


def read_image(name: str) -> Path:
    """The path of an image, which can be read."""
    from ..models.images import as_pil

    if "://" in name:
        raise InputError(f"{name} is a URL; download the image, then give the file.")
    path = find_file(name, what="image file")
    as_pil(path)
    return path


def read_folder(name: str | Path) -> Path:
    """The path of a folder, which is there."""
    if ":/" in str(name):
        raise InputError(f"{name} is a URL; give a folder of this machine.")
    return find_folder(name)


def check_output(
    output: Path | None, default: str, formats: tuple[str, ...], images: Sequence[Path]
) -> Path:
    """Where a picture goes: it can be written, and replaces none of the images."""
    path = check_destination(output or Path(default), formats)
    for image in images:
        if path.exists() and path.samefile(image):
            raise InputError(f"the picture would replace the image {image}; give another --output.")
    return path


def check_folder(arguments: Namespace, name: str) -> tuple[Path, Path]:
    """The folder of images, which holds one, and that of their pictures."""
    from ..evaluation.image_batches import list_images
    from ..evaluation.storage import storage_of
    from ..explanation import FORMATS

    folder = read_folder(name)
    ending = "explained" if arguments.command == "explain" else arguments.command
    output: Path = arguments.output or Path(f"{folder.resolve().name}-{ending}")
    if output.suffix.lower() in FORMATS or output.is_file():
        raise InputError(
            f"{name} is a folder, of which each image gets a picture; -o {output} must name a "
            "folder for them."
        )
    list_images(storage_of(folder), storage_of(output))
    return folder, output


def read_probe(arguments: Namespace) -> tuple[EmotionProbe | None, str]:
    """The probe of emotions, if any, and a model: as is asked for, the probe's, or the default."""
    probes, [fitted] = read_probes([] if arguments.emotions is None else [arguments.emotions])
    return probes[0] if probes else None, arguments.model or fitted


def read_probes(
    files: Sequence[str | Path], default: Sequence[str] = (DEFAULT_MODEL,)
) -> tuple[list[EmotionProbe], list[str]]:
    """Probes of emotions, and the models that all were fitted on, else the default ones."""
    from ..emotions import EmotionProbe

    probes = [EmotionProbe.load(file) for file in files]
    fitted = [probe.model for probe in probes]
    return probes, fitted if fitted and all(fitted) else list(default)


def load_model(arguments: Namespace, name: str) -> ClipAdapter:
    """A model with the processor, the tokenizer and the device that are asked for."""
    from ..models import load_clip
    from ..models.loading import load_processor, load_tokenizer

    with steps(arguments, 1) as begin:
        begin(f"loading {name}")
        return load_clip(
            name,
            processor=load_processor(arguments.processor),
            tokenizer=load_tokenizer(arguments.tokenizer),
            device=arguments.device,
        )


def config_fields(arguments: Namespace, **names: str) -> dict[str, Any]:
    """All that is given, for the configuration of a long run; `names` of fields named otherwise."""
    fields = {
        names.get(option, option): tuple(value) if isinstance(value, list) else value
        for option, value in vars(arguments).items()
        if option not in _NO_FIELDS and value is not None and value != []
    }
    return fields | {"gpus": _count_gpus(arguments)}


def _count_gpus(arguments: Namespace) -> int:
    """The number of GPUs that --gpus or --device ask for; one where there is CUDA otherwise."""
    if arguments.gpus is not None:
        return int(arguments.gpus)
    from ..models.loading import choose_device

    if ":" in (arguments.device or ""):
        raise InputError(f"--device {arguments.device}: expected cpu or cuda, without a number.")
    return int(choose_device(arguments.device).type == "cuda")
