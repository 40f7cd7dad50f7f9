"""`load_clip`: a name or a model -> an adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import expand, show
from ..errors import InputError, UnsupportedModelError
from . import hub
from .base import ClipAdapter
from .families import adapter_of, transformers_class
from .processors import Deferred
from .resolve import Source, resolve


def load_clip(
    name_or_model: str | Path | nn.Module | ClipAdapter,
    *,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ClipAdapter:
    """A CLIP model with its preprocessing and tokenizer behind one face.

    A name is looked up in this order: Mamooler's and the embedded models (:func:`available`), an
    existing folder (of transformers or OpenCLIP), ``hf-hub:ORG/NAME`` (OpenCLIP), an
    ``ARCHITECTURE/TAG`` that OpenCLIP lists, else a transformers repository on the hub. Where
    OpenCLIP lists weights as trained with QuickGELU (OpenAI's, DFN's, MetaCLIP's and others), it is
    switched on: ``RN50/openai`` means ``RN50-quickgelu/openai``.

    Args:
        name_or_model: a name, a folder, or a model object, which is used as it is: never copied,
            moved or changed. An adapter is returned as it is.
        processor: makes tensors of pictures (an image processor of transformers or a function from
            a PIL image to a tensor); for a name the model's own is the default. Kept as given.
        tokenizer: makes tokens of texts; for a name the model's own is the default. Kept as given.
        device: for a name; None is CUDA if there is one, else the CPU.
        dtype: for a name; None is float32, whatever the precision of the stored weights.

    Returns:
        The adapter. A model loaded by name is in eval mode.

    Raises:
        InputError: the name means nothing, its files cannot be found, reached or read, a processor
            or tokenizer is none, or an option does not go with a model object.
        UnsupportedModelError: the model is of a kind that is not supported.

    Example:
        >>> clip = load_clip("demo/vit")
        >>> clip.kind, clip.grid(224, 224)
        ('vit', (7, 7))
    """
    if isinstance(name_or_model, ClipAdapter):
        _refuse("an adapter", processor=processor, tokenizer=tokenizer, device=device, dtype=dtype)
        return name_or_model
    _check_part("processor", processor, "an image processor, or a function of one picture,")
    _check_part("tokenizer", tokenizer, "a tokenizer, or a function of a list of texts,")
    if isinstance(name_or_model, nn.Module):
        _refuse("a model object", device=device, dtype=dtype)
        name = _name_of(name_or_model)
        return adapter_of(name_or_model, name=name, processor=processor, tokenizer=tokenizer)
    if not isinstance(name_or_model, (str, Path)):
        raise UnsupportedModelError(
            f"load_clip: expected a name, a folder or a CLIP model, got "
            f"{type(name_or_model).__name__}."
        )
    if isinstance(name_or_model, Path) and not expand(name_or_model).is_dir():
        raise InputError(f"load_clip: there is no folder {name_or_model}.")
    return _load(resolve(str(name_or_model)), processor, tokenizer, device, dtype)


def _check_part(option: str, part: Any, wanted: str) -> None:
    # an object that only holds an image processor, as a processor of both does, serves too
    serves = callable(part) or (option == "processor" and hasattr(part, "image_processor"))
    if part is not None and (isinstance(part, type) or not serves):
        raise InputError(f"load_clip: expected {wanted} as {option}, got {show(part)}.")


def _name_of(model: nn.Module) -> str:
    """The class of a model object, with its library or what it was loaded from where that is known.

    OpenCLIP's class is a plain "CLIP", and keeps no name; transformers' configurations do.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("open_clip."):
        name = f"OpenCLIP's {name}"
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not isinstance(source, str) or not source:
        return name
    return f"{name} {Path(source).name if Path(source).is_absolute() else source}"


def _refuse(model: str, **options: Any) -> None:
    name = next((name for name, value in options.items() if value is not None), None)
    if name is not None:
        raise InputError(
            f"load_clip: {name} was given with {model}, which is used as it is; set it "
            "yourself beforehand, for example model.to(device), or load by name."
        )


def _load(
    source: Source,
    processor: Any,
    tokenizer: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> ClipAdapter:
    device = choose_device(device)
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"load_clip: expected a floating-point dtype, got {dtype}.")
    # Parameters made under inference_mode could never take part in a gradient.
    # Weights are drawn at random before they are loaded: the caller's random numbers stay.
    with source.loading(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        is_hugging_face = source.library == "transformers"
        model = _transformers_model(source) if is_hugging_face else _open_clip_model(source)
        model.to(device=device, dtype=dtype or torch.float32).eval()
        if tokenizer is None:
            tokenizer = Deferred(partial(_tokenizer, source), "its tokenizer")
        if processor is None:
            processor = Deferred(partial(_processor, source, model), "its processor")
        for deferred in (processor, tokenizer):
            if isinstance(deferred, Deferred) and not source.local:
                _ = deferred.value  # now, so that all of it is in the hub's cache
    return adapter_of(model, name=source.name, processor=processor, tokenizer=tokenizer)


def choose_device(device: torch.device | str | None) -> torch.device:
    """A device by name; None is CUDA if there is one, else the CPU. InputError if there is none."""
    cuda = torch.cuda.is_available()
    try:
        chosen = torch.device(device or ("cuda" if cuda else "cpu"))
    except RuntimeError as error:
        raise InputError(
            f"load_clip: {device!r} is not a device of PyTorch; expected 'cpu', 'cuda' or the like."
        ) from error
    if chosen.type == "cuda" and not cuda:
        raise InputError(
            f"load_clip: device={device!r} was asked for, but PyTorch sees no CUDA device; leave "
            "device out to take what there is."
        )
    if (chosen.index or 0) >= max(1, torch.cuda.device_count()):
        raise InputError(f"load_clip: there is no device '{chosen}'; their numbers begin at 0.")
    if chosen.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=chosen).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(
                f"load_clip: PyTorch cannot compute on {str(chosen)!r} here; expected 'cpu', "
                "'cuda' or the like."
            ) from error
    return chosen


def load_processor(name: str | None) -> Any:
    """The image processor of another model, for a checkpoint that was saved without one.

    `name` is a folder or a repository of transformers, or a name of Mamooler's that leads to one;
    None for none. InputError where it holds none, or cannot be reached.
    """
    return None if name is None else _part_of(name, partial(_processor, model=None))


def load_tokenizer(name: str | None) -> Any:
    """The tokenizer of another model; as :func:`load_processor`."""
    return None if name is None else _part_of(name, _tokenizer)


def _part_of(name: str, load: Callable[[Source], Any]) -> Any:
    folder = expand(name)
    if folder.is_dir():  # which may hold a processor alone
        source = Source(name, "transformers", str(folder), local=True)
    else:
        source = resolve(name)
    if source.library != "transformers":
        raise InputError(
            f"{name!r} is a model of OpenCLIP; expected a folder or a repository of transformers "
            "with an image processor or a tokenizer."
        )
    with source.loading():
        return load(source)


def _transformers_model(source: Source) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.where)
    name = transformers_class(source.name, config.model_type, config.architectures or ())
    model: nn.Module
    model, info = getattr(transformers, name).from_pretrained(
        source.where, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"load_clip({source.name!r}): the checkpoint lacks {len(missing)} weights of a "
            f"{name}, such as {missing[0]}."
        )
    return model


def _open_clip_model(source: Source) -> nn.Module:
    import open_clip

    from .open_clip import check_architecture

    config = open_clip.factory.get_model_config(source.open_clip_name)
    if config is not None:  # else the next line says what is wrong with it
        check_architecture(source.name, config)
    model: nn.Module = open_clip.create_model(
        source.open_clip_name,
        pretrained=source.tag,
        precision="fp32",
        device="cpu",
        force_quick_gelu=source.quick_gelu,
        require_pretrained=True,
    )
    return model


def native_size(visual: Any) -> tuple[int, int]:
    """Height and width of the images that a tower of OpenCLIP was made for."""
    # OpenCLIP notes 256 for ViTamin-XL-384, whose trunk takes 384
    embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(embed, "img_size", None) or visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _processor(source: Source, model: Any) -> Any:
    if source.library == "open_clip":
        from open_clip.transform import PreprocessCfg, image_transform_v2

        settings = {**model.visual.preprocess_cfg, "size": native_size(model.visual)}
        return image_transform_v2(PreprocessCfg(**settings), is_train=False)
    from transformers import AutoImageProcessor

    with hub.quiet():
        return AutoImageProcessor.from_pretrained(source.where)


def _tokenizer(source: Source) -> Any:
    if source.tokenizer is not None:
        return source.tokenizer()
    with hub.quiet():
        if source.library == "open_clip":
            from open_clip import get_tokenizer

            return get_tokenizer(source.open_clip_name)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.where)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers 5 makes one of nothing where the files are missing
        raise FileNotFoundError(f"{source.where} holds no vocabulary")
    return tokenizer
