"""Weights in files: read without code, compared with a model, and loaded into it."""

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import expect
from ..errors import InputError, argument, warn
from .published import available, openai_architecture


def read_weights(file: Path) -> dict[str, Tensor]:
    """The floating-point tensors in a file of safetensors or PyTorch, without running its code."""
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)
        else:
            content = torch.load(file, "cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise InputError(
            f"{file} is damaged or holds more than weights; save them alone where the model loads, "
            "with torch.save(model.state_dict(), FILE)."
        ) from error
    # Trainings store the weights under one of these keys, beside other things.
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping):
            content = content.get(key, content)
    if not isinstance(content, Mapping):
        return {}
    # Whole numbers are sizes that OpenAI's files note, and buffers that come and go with releases.
    return {
        str(key): value
        for key, value in content.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def fit_weights(
    model: nn.Module, weights: dict[str, Tensor], *, resample: bool = False
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights for a model, the keys that they lack, and their keys that the model does not have."""
    expected = {k: value for k, value in model.state_dict().items() if value.is_floating_point()}
    # Trainings put `module.`, `model.` or an attribute's name in front of every key. The longest
    # key of the model shows which, if one key alone ends with it.
    longest = max(expected, key=len)
    with_prefix = [key for key in weights if f".{key}".endswith(f".{longest}")]
    if len(with_prefix) == 1:
        prefix = with_prefix[0].removesuffix(longest)
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
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
    """Load the weights in a file into a model; warn of those that no tower reads.

    `resample` fits the positions of an OpenCLIP ViT to the size that the model is made for.

    Raises:
        InputError: the file lacks weights of the model, or has others for its towers.
    """
    weights = read_weights(file)
    fitting, missing, left_over = fit_weights(model, weights, resample=resample)
    message = (
        f"{argument('model', name)}: weights of a {type(model).__name__} that the file lacks, or "
        f"has in another shape: {count_of(missing)}; left over in it: {count_of(left_over)}"
    )
    # Weights left over in a tower are of parts that the training added to it. Elsewhere they belong
    # to a head or a loss.
    towers = {child_name for child_name, _ in model.named_children()}
    changes_tower = any(key.split(".")[0] in towers for key in left_over)
    if missing or changes_tower:
        advice = list_architectures(architectures_of(weights)) if missing else ""
        raise InputError(f"{message}; {advice or 'build the model that was trained, and pass it'}.")
    if left_over:
        warn(f"{message}, which no tower reads.")
    model.load_state_dict(fitting, strict=False)
    return model


def list_architectures(architectures: list[str]) -> str:
    """Up to three architectures whose shapes weights have, for messages; "" for none."""
    if not architectures:
        return ""
    names = ", ".join(architectures[:3])
    text = f"its shapes fit {names}"
    if "quickgelu" in names:
        text += " (-quickgelu if the training began with OpenAI's weights)"
    return text


def architectures_of(weights: dict[str, Tensor]) -> list[str]:
    """Names of OpenCLIP's architectures that weights fit, and of OpenAI's in transformers."""
    import open_clip

    names = []
    shapes = {tuple(value.shape) for value in weights.values()}
    is_timm = any(".trunk." in key for key in weights)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        vision = config["vision_cfg"]
        word_table = (text.get("vocab_size", 49408), text.get("width", 512))
        # Making all models takes half a minute, and those with a text model of transformers need
        # the hub.
        if word_table not in shapes or "hf_model_name" in text:
            continue
        if ("timm_model_name" in vision) != is_timm:
            continue
        # An architecture may need a package that is missing, and then it does not count.
        with suppress(Exception), torch.device("meta"):
            model = open_clip.create_model(name, load_weights=False, device="meta")
            _, missing, _ = fit_weights(model, weights)
            if not missing:
                names.append(name)
    is_transformers = any("vision_model." in key for key in weights)
    if not is_transformers:
        return names
    for row in available():
        if row.checkpoint.startswith("openai/"):
            # OpenCLIP knows the sizes of the same model without asking the hub.
            vision = open_clip.get_model_config(openai_architecture(row))["vision_cfg"]
            width = vision["width"]
            patch = vision["patch_size"]
            patch_count = (vision["image_size"] // patch) ** 2
            patch_map = (width, 3, patch, patch)
            position_table = (1 + patch_count, width)
            if patch_map in shapes and position_table in shapes:
                names.append(row.checkpoint.removeprefix("openai/"))
    return names


def count_of(keys: list[str]) -> str:
    """How many keys there are, with the first of them."""
    if not keys:
        return "0"
    return f"{len(keys)} ({', '.join(keys[:5])})"


def with_adapter(model: nn.Module, folder: Path) -> Any:
    """A model in peft's wrapper, with the adapter in a folder, which is not merged.

    Raises:
        InputError: the adapter is for another model, or its weights are missing or damaged.
    """
    import peft

    files = list(folder.glob("adapter_model.*"))
    # Without any weights, peft would ask the hub.
    expect(files, f"adapter_model.safetensors in {folder}", os.listdir(folder))
    # This raises an error for a damaged file, or one that would run code.
    for file in files:
        read_weights(file)
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
