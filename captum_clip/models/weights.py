"""Weights in files: read without code, compared with a model, and loaded into it."""

import os
import pickle
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import expect
from ..errors import InputError, argument
from .published import available, openai_architecture


def read_weights(file: Path) -> dict[str, Tensor]:
    """The floating-point tensors in a file of safetensors or PyTorch, which runs no code of it."""
    try:
        is_pickle = file.suffix != ".safetensors"
        content: Any = torch.load(file, "cpu", weights_only=True) if is_pickle else load_file(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise InputError(
            f"{file} is damaged or holds more than weights; save them alone where the model loads, "
            "with torch.save(model.state_dict(), FILE)."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) else {}
    # Whole numbers are sizes that OpenAI's files note, and buffers that come and go with releases.
    return {
        str(key): value
        for key, value in content.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def fit_weights(
    model: nn.Module, weights: dict[str, Tensor], *, resample: bool = False
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The weights that a model takes, those that it lacks, and those that it does not have."""
    expected = model.state_dict()
    expected = {key: value for key, value in expected.items() if value.is_floating_point()}
    # Trainings put `module.`, `model.` or an attribute's name in front of every key. The longest
    # key of the model shows which, where it is the end of one key alone.
    anchor = max(expected, key=len)
    prefixes = [key.removesuffix(anchor) for key in weights if f".{key}".endswith(f".{anchor}")]
    if len(prefixes) == 1:
        weights = {key.removeprefix(prefixes[0]): value for key, value in weights.items()}
    if resample:
        from open_clip.model import resize_pos_embed

        resize_pos_embed(weights, model)
    fitting = {}
    for key, value in weights.items():
        if key in expected and value.shape == expected[key].shape:
            fitting[key] = value
    missing = [key for key in expected if key not in fitting]
    left_over = [key for key in weights if key not in expected]
    return fitting, missing, left_over


def load_weights(model: Any, name: str, file: Path, *, resample: bool = False) -> Any:
    """A model with the weights in a file; a warning of those that belong to none of its towers.

    `resample` fits the positions of an OpenCLIP ViT to the size that the model is made for.

    Raises:
        InputError: it lacks weights of the model, or holds others of its towers.
    """
    weights = read_weights(file)
    fitting, missing, left = fit_weights(model, weights, resample=resample)
    message = (
        f"{argument('model', name)}: weights of a {type(model).__name__} that the file lacks, or "
        f"has in another shape: {count_of(missing)}; left over in it: {count_of(left)}"
    )
    # Weights that are left over in a tower changed it in the training. Elsewhere they belong to a
    # head or a loss.
    if missing or {key.split(".")[0] for key in left} & dict(model.named_children()).keys():
        fits = list_architectures(architectures_of(weights)) if missing else ""
        raise InputError(f"{message}; {fits or 'build the model that was trained, and pass it'}.")
    if left:
        warnings.warn(f"{message}, which no tower reads.", stacklevel=2)
    model.load_state_dict(fitting, strict=False)
    return model


def list_architectures(architectures: list[str]) -> str:
    """Up to three architectures whose shapes weights have, for messages; "" for none."""
    names = ", ".join(architectures[:3])
    quick = ", quickgelu if the training began with OpenAI's weights" * ("quickgelu" in names)
    return f"its shapes fit {names}{quick}" * bool(names)


def architectures_of(weights: dict[str, Tensor]) -> list[str]:
    """Names of OpenCLIP's architectures that weights fit, and of OpenAI's in transformers."""
    import open_clip

    shapes = {tuple(value.shape) for value in weights.values()}
    names, is_timm = list[str](), any(".trunk." in key for key in weights)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text, vision = config["text_cfg"], config["vision_cfg"]
        words = (text.get("vocab_size", 49408), text.get("width", 512))
        kinds = ("timm_model_name" in vision, "hf_model_name" in text)
        if words not in shapes or kinds != (is_timm, False):
            continue  # to make them all takes half a minute, and needs the hub
        with suppress(Exception), torch.device("meta"):
            model = open_clip.create_model(name, load_weights=False, device="meta")
            names += [] if fit_weights(model, weights)[1] else [name]
    for row in available():
        if row.checkpoint.startswith("openai/") and any("vision_model." in key for key in weights):
            vision = open_clip.get_model_config(openai_architecture(row))["vision_cfg"]
            size, width, patch = map(vision.get, ("image_size", "width", "patch_size"))
            if {(width, 3, patch, patch), (1 + (size // patch) ** 2, width)} <= shapes:
                names.append(row.checkpoint.removeprefix("openai/"))
    return names


def count_of(keys: list[str]) -> str:
    """How many keys there are, with the first of them."""
    return f"{len(keys)}" + f" ({', '.join(keys[:5])})" * bool(keys)


def with_adapter(model: nn.Module, folder: Path) -> Any:
    """A model in peft's wrapper, with the adapter in a folder, which is not merged.

    Raises:
        InputError: the adapter is of another model, or its weights are missing or damaged.
    """
    import peft

    weights = [*map(read_weights, folder.glob("adapter_model.*"))]
    # Without any weights, peft would ask the hub.
    expect(weights, f"adapter_model.safetensors in {folder}", os.listdir(folder))
    wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(folder)))
    result = wrapped.load_adapter(str(folder), "default")
    # peft only warns of missing keys, and does not mention unexpected ones.
    keys = [*result.missing_keys, *result.unexpected_keys]
    if keys:
        raise InputError(
            f"the adapter in {folder} belongs to another base; weights missing or left over: "
            f"{count_of(keys)}."
        )
    return wrapped
