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
from .progress import steps

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


def load_probe(file: str | Path | None) -> EmotionProbe | None:
    """A probe of emotions where one is given."""
    if file is None:
        return None
    from ..emotions import EmotionProbe

    return EmotionProbe.load(file)


def model_name(model: str | None, probe: EmotionProbe | None) -> str:
    """The model that is asked for, else the one that the probe was fitted on, else the default."""
    return model or (probe.model if probe is not None else "") or DEFAULT_MODEL


def model_names(probes: Sequence[Any], default: Sequence[str] = (DEFAULT_MODEL,)) -> list[str]:
    """The models that all probes were fitted on, else the default ones."""
    named = [probe.model for probe in probes]
    return named if named and all(named) else list(default)


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
