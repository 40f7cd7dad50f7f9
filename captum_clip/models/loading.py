"""`load_clip`: a name, a folder or a model -> an adapter."""

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..checks import check_integer, error_context, expand, expect, find_folder
from ..demo import MODELS
from ..demo.catalog import DemoTokenizer
from ..errors import CaptumClipError, InputError, UnsupportedModelError, argument, public
from .adapter import ClipAdapter, is_tokenizer
from .families import adapter_of, tower_of, transformers_class
from .images import image_processor, is_processor
from .library import name_of, unwrapped
from .names import ACCEPTED, NO_NETWORK, ModelSource, resolve
from .open_clip import resample_pool
from .safety import LARGEST_SIDE, check_files, check_weights, no_code, reason_of
from .weights import (
    architectures_of,
    count_of,
    list_architectures,
    load_weights,
    read_weights,
    with_adapter,
)

# loading changes settings of the whole process, and two threads would restore each other's
_ONE_AT_A_TIME = threading.RLock()


@runtime_checkable
class Pipeline(Protocol):
    """What holds a model with its parts, such as a pipeline of transformers."""

    model: Any
    image_processor: Any
    tokenizer: Any


@public("load_clip")
def load_clip(
    name_or_model: str | Path | nn.Module | ClipAdapter | Pipeline,
    *,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    image_size: int | None = None,
) -> ClipAdapter:
    """Load a CLIP model with its preprocessing and tokenizer behind one face.

    A name is looked up in this order. First the models of the report and the embedded ones
    (:func:`available`). Then an existing folder (of transformers, OpenCLIP, peft or
    sentence-transformers). Then ``ARCH:FILE``, the weights in a file for an architecture of
    OpenCLIP, OpenAI or transformers, or ``BASE:FOLDER``, an adapter of peft for a base that its
    folder does not name. Then ``hf-hub:ORG/NAME`` (OpenCLIP), an ``ARCHITECTURE/TAG``
    that OpenCLIP lists, and last a transformers repository on the hub. A file is read without
    running code of it. Where OpenCLIP lists weights as trained with QuickGELU (OpenAI's, DFN's,
    MetaCLIP's and others), it is switched on: ``RN50/openai`` means ``RN50-quickgelu/openai``.

    Args:
        name_or_model: a name, a folder, or a model object, which is used as it is: never copied,
            moved or changed; a ``pipeline("zero-shot-image-classification")`` of transformers, or
            a ``SentenceTransformer``, is one with its processor and tokenizer. An adapter is
            returned as it is.
        processor: makes tensors of images (an image processor of transformers or a function from
            a PIL image to a tensor); for a name the model's own is the default. Kept as given.
        tokenizer: makes tokens of texts; for a name the model's own is the default. Kept as given.
        device: for a name; None is CUDA if there is one, else the CPU.
        dtype: for a name; None is float32, whatever the precision of the stored weights.
        image_size: for a name; the side in pixels of the images that its processor makes, at most
            4096. Positions are resampled as the model's library does it (for a ResNet's pool, as
            OpenCLIP does it for a ViT), so that a map has more cells. None is the size that it was
            trained with.

    Returns:
        The adapter. A model loaded by name is in eval mode.

    Raises:
        InputError: the name means nothing; its files cannot be found, reached or read; its weights
            do not fit. Or a processor or tokenizer is none, an option does not go with a model
            object, or the model cannot take the size.
        UnsupportedModelError: this kind of model is not supported.

    Example:
        >>> clip = load_clip("demo/vit")
        >>> clip.kind, clip.grid(224, 224)
        ('vit', (7, 7))
    """
    name_or_model, processor, tokenizer = _unpack(name_or_model, processor, tokenizer)
    tools: dict[str, Any] = {"processor": processor, "tokenizer": tokenizer}
    changes = {"device": device, "dtype": dtype, "image_size": image_size}
    if isinstance(name_or_model, ClipAdapter):
        return _as_it_is("an adapter", name_or_model, {**tools, **changes})
    for option, tool in tools.items():
        _check_tool(option, tool)
    if isinstance(name_or_model, nn.Module):
        clip = adapter_of(name_or_model, name=name_of(unwrapped(name_or_model)), **tools)
        return _as_it_is("a model object", clip, changes)
    is_name, expected = isinstance(name_or_model, (str, Path)), "a name, a folder or a CLIP model"
    expect(is_name, expected, name_or_model, error=UnsupportedModelError)
    if isinstance(name_or_model, Path) and not expand(name_or_model).is_file():
        find_folder(name_or_model)
    source, device = resolve(str(name_or_model)), choose_device(device)
    expect(dtype is None or dtype.is_floating_point, "a floating-point dtype", dtype)
    if image_size is not None:
        check_integer("image_size", image_size, most=LARGEST_SIDE)
    if source.file is not None and not source.where:
        with _loading(source):
            source = _with_architecture(source, source.file)
    failures = {}
    # Parameters made under inference_mode could never take part in a gradient.
    # Weights are drawn at random before they are loaded: the caller's random numbers stay.
    with _loading(source), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        model = _model(source, image_size)
        model.to(device=device, dtype=dtype or torch.float32).eval()
        for option in [option for option in tools if tools[option] is None]:
            try:
                tools[option] = _LOADERS[option](source, model)
            except Exception as error:  # told once it is needed: tensors need no processor
                failures[option] = reason_of(error)
        clip = adapter_of(model, name=source.name, **tools)
    clip.failures = failures
    if image_size is not None:
        option = argument("image_size", image_size)
        with error_context(f"{argument('model', source.name)}, {option}"):
            _resize(clip, image_size)
    return clip


def _unpack(model: Any, processor: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """A model with the tools that its wrapper has for it, where others were not given."""
    if isinstance(model, Pipeline) and not isinstance(model, nn.Module):
        return model.model, processor or model.image_processor, tokenizer or model.tokenizer
    if type(model).__name__ == "SentenceTransformer":
        processor = processor or getattr(model[0], "processor", None)
    return model, processor, tokenizer


def _resize(clip: ClipAdapter, size: int) -> None:
    """Set the size that an image processor of transformers makes; OpenCLIP's has the model's."""
    patch, processor = clip.tower.patch[0], image_processor(clip.processor)
    low = max(1, size // patch) * patch
    near = f"such as {low} or {low + patch}"
    expect(size % patch == 0, f"a multiple of {patch}, the side of a patch, {near}", size)
    clip.grid(size, size)  # which names the sizes that it takes
    if hasattr(processor, "max_num_patches"):  # NaFlex
        processor.max_num_patches = (size // patch) ** 2
    for name in ("size", "crop_size"):
        if now := getattr(processor, name, None):
            sides = {side: size for side in ("shortest_edge", "height", "width") if side in now}
            setattr(processor, name, sides)


_TOOLS = {
    "processor": ("an image processor, or a function of one image, as processor", is_processor),
    "tokenizer": ("a tokenizer, or a function of a list of texts, as tokenizer", is_tokenizer),
}


def _check_tool(option: str, tool: Any) -> None:
    # an object that only holds an image processor, as a processor of both does, serves too
    serves = callable(tool) or (option == "processor" and hasattr(tool, "image_processor"))
    expected, is_own = _TOOLS[option]
    expect(tool is None or (serves and not isinstance(tool, type)), expected, tool)
    for other, (_, is_other) in _TOOLS.items():
        advice = f"the two seem swapped, pass it as {argument(other)}"
        expect(is_own(tool) or not is_other(tool), expected, tool, advice)


def _as_it_is(model: str, clip: ClipAdapter, options: Mapping[str, Any]) -> ClipAdapter:
    """The adapter of an object; InputError where an option would change it, and what to do."""
    for name, value in options.items():
        if value is None:
            continue
        shown = name
        advice = "set it yourself beforehand, for example model.to(device), or load by name"
        if name == "image_size":
            shown, tower = argument("image_size", value), clip.tower
            advice = f"it takes images of {' x '.join(map(str, tower.native))} pixels only"
            if tower.resizable:
                by_name = f"take one by name, with {shown}"
                advice = f"pass a processor that makes such images, or {by_name}"
            elif tower.remade_by:
                advice = f"make another one {tower.remade(value)}"
        raise InputError(f"{shown} was given with {model}, which is used as it is; {advice}.")
    return clip


def choose_device(device: torch.device | str | None) -> torch.device:
    """A device by name; None is CUDA if there is one, else the CPU. InputError if there is none."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"PyTorch cannot compute on {argument('device', str(device))} here; expected 'cpu', "
            "'cuda' or the like; leave it out to use what there is."
        ) from error
    return torch.device(device)


def load_parts(processor: str | None, tokenizer: str | None) -> dict[str, Any]:
    """The processor and the tokenizer of other models, as options of :func:`load_clip`.

    Each is named by a folder or a repository of transformers, or a name of the report that leads to
    one; None for none. InputError where it holds none, or cannot be reached.
    """
    named = {"processor": processor, "tokenizer": tokenizer}
    return {o: None if name is None else _load_tool(o, name) for o, name in named.items()}


def _load_tool(option: str, name: str) -> Any:
    folder = expand(name)
    if folder.is_dir():  # which may hold a processor alone
        source = ModelSource(name, "transformers", str(folder), local=True)
    else:
        source = resolve(name)
    if source.library != "transformers":
        raise InputError(
            f"{name!r} is a model of OpenCLIP; expected a folder or a repository of transformers "
            "with an image processor or a tokenizer."
        )
    with _loading(source):
        return _LOADERS[option](source, None)


def _model(source: ModelSource, image_size: int | None) -> Any:
    is_open_clip = source.library == "open_clip"
    model = _open_clip_model(source, image_size) if is_open_clip else _transformers_model(source)
    return model if source.adapter is None else with_adapter(model, source.adapter)


def _open_clip_model(source: ModelSource, image_size: int | None) -> Any:
    import open_clip

    vision = (open_clip.get_model_config(source.where) or {}).get("vision_cfg", {})
    is_resnet, is_timm = isinstance(vision.get("layers"), list), "timm_model_name" in vision
    options: dict[str, Any] = {"pretrained": source.tag, "require_pretrained": True}
    if source.file is not None:
        options = {"load_weights": False, "pretrained_text": False}
    build = partial(open_clip.create_model, source.where, precision="fp32")
    empty = partial(build, load_weights=False, pretrained_text=False, device="meta")
    check_weights(source.name, empty, source.where.removeprefix("local-dir:"), _positions(vision))
    model = build(
        **options,
        device="cpu",
        # which resamples no positions of a ResNet's pool, and timm's too early for those of a file
        force_image_size=None if is_resnet or is_timm else image_size,
        force_quick_gelu=source.quick_gelu,
    )
    if source.file is not None:
        load_weights(model, source.name, source.file, resample=image_size is not None)
    if is_resnet and image_size is not None:
        resample_pool(model.visual, image_size)
    elif is_timm and image_size is not None:
        model.visual.set_input_size(image_size)
    return model


def _with_architecture(source: ModelSource, file: Path) -> ModelSource:
    """The one architecture that weights in a file fit, after a warning; InputError for several."""
    fits = architectures_of(read_weights(file))
    if len(fits) != 1:
        kinds = "ARCH is one of OpenCLIP's, or the folder or name of the transformers model"
        way = f"Write 'ARCH:{file}'; {list_architectures(fits) or kinds}"
        raise InputError(f"{argument('model', source.name)}: which architecture? {way}.")
    full = f"{fits[0]}:{file}"
    reason = f"its shapes fit {fits[0]} alone, so it is loaded as {full}"
    warnings.warn(f"{argument('model', str(file))}: {reason}.", stacklevel=2)
    name = full if source.adapter is None else source.name
    return resolve(full)._replace(name=name, adapter=source.adapter)


def _positions(vision: Mapping[str, Any]) -> float:
    """How many numbers an OpenCLIP ViT's positions are, which NumPy may compute in the memory."""
    sides = vision.get("image_size", 0)
    side = max(sides) if isinstance(sides, list) else sides
    patch, width = vision.get("patch_size") or side or 1, vision.get("width") or 768
    return float((side / patch) ** 2 * width)


def _transformers_model(source: ModelSource) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.where, trust_remote_code=False)
    name = transformers_class(source.name, config.to_dict())
    kind = getattr(transformers, name)
    check_weights(source.name, partial(kind, config), source.file or source.where)
    if source.file is not None:
        return load_weights(kind(config), source.name, source.file)
    # with its configuration, since that of an adapter's base would be read where there is one
    model, info = kind.from_pretrained(
        source.where,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # else its error names none of them
        trust_remote_code=False,
    )
    wrong = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    message = f"weights of a {name} that the checkpoint lacks, or has in another shape"
    if wrong:
        raise InputError(f"{argument('model', source.name)}: {message}: {count_of(wrong)}.")
    return model


def _processor(source: ModelSource, model: Any) -> Any:
    if source.library == "open_clip":
        from open_clip.pretrained import get_pretrained_cfg
        from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

        # with weights of a file OpenCLIP takes CLIP's, also for the architecture of a SigLIP
        published = get_pretrained_cfg(source.where, source.tag or "")
        settings = merge_preprocess_dict(model.visual.preprocess_cfg, published)
        # OpenCLIP notes 256 for ViTamin-XL-384, whose trunk takes 384
        settings["size"] = tower_of(model).native
        return image_transform_v2(PreprocessCfg(**settings), is_train=False)
    from transformers import AutoImageProcessor, CLIPImageProcessor

    config: Any = getattr(unwrapped(model), "config", None)
    is_bare = source.local and not any(Path(source.where).glob("*processor_config.json"))
    if is_bare and getattr(config, "model_type", None) == "clip":  # other kinds have several
        side = config.vision_config.image_size
        why = f"no preprocessor_config.json, so images become {side} x {side} as for OpenAI's CLIP"
        warnings.warn(f"{argument('model', source.name)}: {why}.", stacklevel=2)
        return CLIPImageProcessor(size=side, crop_size=side)
    return AutoImageProcessor.from_pretrained(source.where, trust_remote_code=False)


def _tokenizer(source: ModelSource, model: Any) -> Any:
    if source.where.removeprefix("local-dir:") in map(str, MODELS.values()):
        return DemoTokenizer()
    if source.library == "open_clip":
        from open_clip import get_tokenizer

        return get_tokenizer(source.where)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers 5 makes one of nothing where the files are missing
        raise FileNotFoundError(f"{source.where} holds no vocabulary")
    return tokenizer


_LOADERS = {"processor": _processor, "tokenizer": _tokenizer}


@contextmanager
def _loading(source: ModelSource) -> Iterator[None]:
    """Load the files of a model, from its folder or the hub; failures become an InputError."""
    from huggingface_hub import constants

    online = not source.local and _hub_answers()
    try:
        with _ONE_AT_A_TIME, _quiet_libraries(online), no_code():
            for where in _unchecked_places(source):
                check_files(source.name, where)
            yield
    except CaptumClipError:
        raise
    except Exception as error:  # whatever libraries make of files that somebody else wrote
        checkpoint = f"{source.where}/{source.tag}" if source.tag else source.where
        advice = "" if source.local else f" {ACCEPTED}"
        if not source.local and not online:
            advice = (
                f" {constants.ENDPOINT} cannot be reached, or HF_HUB_OFFLINE is set. Connect once "
                f"to download the model, copy the cache {constants.HF_HUB_CACHE} from another "
                f"machine, or pass a local folder; {NO_NETWORK}."
            )
        raise InputError(
            f"{argument('model', source.name)}: {checkpoint} cannot be loaded: "
            f"{type(error).__name__}, {reason_of(error)}.{advice}"
        ) from error


def _unchecked_places(source: ModelSource) -> Iterator[str]:
    """The folders and repositories whose configurations are a stranger's."""
    schema, _, place = source.where.rpartition(":")
    if schema or source.library == "transformers":  # else an architecture of OpenCLIP
        yield place
    if source.adapter is not None:
        yield str(source.adapter)


def _hub_answers() -> bool:
    """Whether the hub answers once; its client would try for half a minute a file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of one of several clients, by version, or since HF_HUB_OFFLINE is set
        return False
    return True


@contextmanager
def _quiet_libraries(online: bool) -> Iterator[None]:
    """Silence the libraries' remarks on loading, since errors are raised.

    OpenCLIP calls `logging.info`, which sets up the root logger where no one did. Progress bars of
    downloads stay; without a connection the hub's client takes its cache at once.
    """
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    def is_not_open_clips(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root, handler = logging.getLogger(), logging.NullHandler()
    with ExitStack() as undo:
        undo.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity(logging.CRITICAL)
        root.addFilter(is_not_open_clips)
        undo.callback(root.removeFilter, is_not_open_clips)
        root.addHandler(handler)
        undo.callback(root.removeHandler, handler)
        if not online:
            undo.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
            constants.HF_HUB_OFFLINE = True
            if transformers_logging.is_progress_bar_enabled():
                transformers_logging.disable_progress_bar()
                undo.callback(transformers_logging.enable_progress_bar)
        yield
