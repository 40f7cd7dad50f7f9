"""`load_clip`: an object, a folder or a name -> an adapter, tried in this order."""

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from ..checks import check_integer, error_context, expand, expect, find_folder
from ..demo.catalog import DemoTokenizer
from ..errors import CaptumClipError, InputError, UnsupportedModelError, argument, public, warn
from .adapter import ClipAdapter, is_tokenizer
from .families import adapter_of, tower_of, transformers_class
from .images import image_processor, is_processor
from .library import name_of, unwrapped
from .names import ACCEPTED, NO_NETWORK, ModelSource, resolve
from .open_clip import resample_pool
from .safety import LARGEST_SIDE, check_files, check_weights, no_code, reason_of
from .towers import Tower
from .weights import (
    architectures_of,
    count_of,
    list_architectures,
    load_weights,
    read_weights,
    with_adapter,
)

# Loading changes settings of the whole process, and two threads would restore each other's.
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
    model, processor, tokenizer = _unpack(name_or_model, processor, tokenizer)
    tools: dict[str, Any] = {"processor": processor, "tokenizer": tokenizer}
    changes = {"device": device, "dtype": dtype, "image_size": image_size}
    if isinstance(model, ClipAdapter):
        _refuse_options("an adapter", model, {**tools, **changes})
        return model
    for option, tool in tools.items():
        _check_tool(option, tool)
    if isinstance(model, nn.Module):
        return _load_object(model, tools, changes)
    is_name = isinstance(model, (str, Path))
    expected = "a name, a folder or a CLIP model"
    # One may pass all that OpenCLIP's create_model_and_transforms returns.
    advice = f"pass what prepares images as {argument('processor')}" if callable(model) else ""
    expect(is_name, expected, model, advice, error=UnsupportedModelError)
    # A Path that is missing must not be looked up as a name on the hub.
    if isinstance(model, Path) and not expand(model).is_file():
        find_folder(model)
    source = resolve(str(model))
    settings = _checked_settings(device, dtype, image_size)
    if source.local:
        return _load_folder(source, tools, settings)
    return _load_name(source, tools, settings)


def _unpack(model: Any, processor: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Take a model out of its wrapper, with the wrapper's tools where no others were given."""
    if isinstance(model, Pipeline) and not isinstance(model, nn.Module):
        return model.model, processor or model.image_processor, tokenizer or model.tokenizer
    if type(model).__name__ == "SentenceTransformer":
        processor = processor or getattr(model[0], "processor", None)
    return model, processor, tokenizer


_TOOLS = {
    "processor": ("an image processor, or a function of one image, as processor", is_processor),
    "tokenizer": ("a tokenizer, or a function of a list of texts, as tokenizer", is_tokenizer),
}
"""What is expected of each tool, and the function that recognizes it."""


def _check_tool(option: str, tool: Any) -> None:
    """Raise InputError unless a tool is None or can serve as `option`."""
    expected, recognizes = _TOOLS[option]
    # A processor for images and texts is not always callable, but it holds an image processor.
    holds_processor = option == "processor" and hasattr(tool, "image_processor")
    serves = (callable(tool) or holds_processor) and not isinstance(tool, type)
    expect(tool is None or serves, expected, tool)
    if recognizes(tool):
        return
    for other, (_, recognizes_other) in _TOOLS.items():
        advice = f"the two seem swapped, pass it as {argument(other)}"
        expect(not recognizes_other(tool), expected, tool, advice)


def _load_object(
    model: nn.Module, tools: Mapping[str, Any], changes: Mapping[str, Any]
) -> ClipAdapter:
    """Put an adapter around a model object, which is used as it is."""
    clip = adapter_of(model, name=name_of(unwrapped(model)), **tools)
    _refuse_options("a model object", clip, changes)
    return clip


def _refuse_options(given: str, clip: ClipAdapter, options: Mapping[str, Any]) -> None:
    """Raise InputError where an option would change a model that is used as it is."""
    for name, value in options.items():
        if value is None:
            continue
        shown = name
        advice = "set it yourself beforehand, for example model.to(device), or load by name"
        if name == "image_size":
            shown = argument("image_size", value)
            advice = _advice_on_size(clip.tower, value)
        elif name in ("processor", "tokenizer"):
            advice = "pass it to load_clip, which makes the adapter"
        raise InputError(f"{shown} was given with {given}, which is used as it is; {advice}.")


def _advice_on_size(tower: Tower, size: int) -> str:
    """How a model object can be had for images of another size."""
    if tower.resizable:
        by_name = f"take one by name, with {argument('image_size', size)}"
        return f"pass a processor that makes such images, or {by_name}"
    if tower.remade_by:
        return f"make another one {tower.remade(size)}"
    height, width = tower.native
    return f"it takes images of {height} x {width} pixels only"


class _Settings(NamedTuple):
    """What a model is loaded for."""

    device: torch.device
    dtype: torch.dtype
    image_size: int | None


def _checked_settings(device: Any, dtype: torch.dtype | None, image_size: Any) -> _Settings:
    """The settings of a loaded model with their defaults; InputError where one cannot be."""
    device = choose_device(device)
    expect(dtype is None or dtype.is_floating_point, "a floating-point dtype", dtype)
    if image_size is not None:
        check_integer("image_size", image_size, most=LARGEST_SIDE)
    return _Settings(device, dtype or torch.float32, image_size)


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


def _load_folder(source: ModelSource, tools: Mapping[str, Any], settings: _Settings) -> ClipAdapter:
    """Load files on this machine: those of a folder, or weights for an architecture."""
    is_bare_file = not source.where
    if is_bare_file:
        with _loading(source, online=False):
            source = _with_architecture(source)
    # The architecture that a file fits may be on the hub.
    if not source.local:
        return _load_name(source, tools, settings)
    return _read_model(source, tools, settings, online=False)


def _with_architecture(source: ModelSource) -> ModelSource:
    """The one architecture that weights in a file fit, after a warning; InputError for several."""
    assert source.file is not None
    fits = architectures_of(read_weights(source.file))
    if len(fits) != 1:
        kinds = "ARCH is one of OpenCLIP's, or the folder or name of the transformers model"
        way = f"Write 'ARCH:{source.file}'; {list_architectures(fits) or kinds}"
        raise InputError(f"{argument('model', source.name)}: which architecture? {way}.")
    [architecture] = fits
    full = f"{architecture}:{source.file}"
    reason = f"its shapes fit {architecture} alone, so it is loaded as {full}"
    warn(f"{argument('model', str(source.file))}: {reason}.")
    # The file may be the base of an adapter, which keeps its own name.
    name = full if source.adapter is None else source.name
    return resolve(full)._replace(name=name, adapter=source.adapter)


def _load_name(source: ModelSource, tools: Mapping[str, Any], settings: _Settings) -> ClipAdapter:
    """Load a model from the hub, or from its cache where the hub does not answer."""
    return _read_model(source, tools, settings, online=_hub_answers())


def _read_model(
    source: ModelSource, tools: Mapping[str, Any], settings: _Settings, *, online: bool
) -> ClipAdapter:
    """Read a model, and the tools that were not given, from its files."""
    tools = dict(tools)
    failures = {}
    # Parameters made under inference_mode could never take part in a gradient.
    no_inference = torch.inference_mode(False)
    # Weights are drawn at random before they are loaded, which must not change the caller's random
    # numbers.
    same_random = torch.random.fork_rng(devices=[])
    with _loading(source, online=online), no_inference, same_random:
        if source.library == "open_clip":
            model = _open_clip_model(source, settings.image_size)
        else:
            model = _transformers_model(source)
        if source.adapter is not None:
            model = with_adapter(model, source.adapter)
        model.to(device=settings.device, dtype=settings.dtype).eval()
        for option, load in _LOADERS.items():
            if tools[option] is not None:
                continue
            try:
                tools[option] = load(source, model)
            except Exception as error:
                # Tensors need no processor, so the reason is only told once the tool is needed.
                failures[option] = reason_of(error)
        clip = adapter_of(model, name=source.name, **tools)
    clip.failures = failures
    if settings.image_size is not None:
        option = argument("image_size", settings.image_size)
        with error_context(f"{argument('model', source.name)}, {option}"):
            _resize(clip, settings.image_size)
    return clip


def _open_clip_model(source: ModelSource, image_size: int | None) -> Any:
    import open_clip

    config = open_clip.get_model_config(source.where) or {}
    vision = config.get("vision_cfg", {})
    is_resnet = isinstance(vision.get("layers"), list)
    is_timm = "timm_model_name" in vision
    build = partial(open_clip.create_model, source.where, precision="fp32")
    build_empty = partial(build, load_weights=False, pretrained_text=False, device="meta")
    # Only a folder's name is left as a path; weights on the hub are not checked here.
    place = source.where.removeprefix("local-dir:")
    check_weights(source.name, build_empty, place, _count_positions(vision))
    options: dict[str, Any] = {"pretrained": source.tag, "require_pretrained": True}
    if source.file is not None:
        options = {"load_weights": False, "pretrained_text": False}
    if not (is_resnet or is_timm):
        # OpenCLIP resamples no positions of a ResNet's pool. Those of timm it resamples before it
        # loads weights, too early for those of a file.
        options["force_image_size"] = image_size
    model = build(**options, device="cpu", force_quick_gelu=source.quick_gelu)
    if source.file is not None:
        load_weights(model, source.name, source.file, resample=image_size is not None)
    if image_size is not None:
        if is_resnet:
            resample_pool(model.visual, image_size)
        elif is_timm:
            model.visual.set_input_size(image_size)
    return model


def _count_positions(vision: Mapping[str, Any]) -> float:
    """How many numbers the positions of an OpenCLIP ViT are, by its configuration.

    OpenCLIP may compute them in NumPy, which allocates them even where torch would not.
    """
    side = vision.get("image_size", 0)
    if isinstance(side, list):
        side = max(side)
    patch = vision.get("patch_size") or side or 1
    width = vision.get("width") or 768
    return float((side / patch) ** 2 * width)


def _transformers_model(source: ModelSource) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.where, trust_remote_code=False)
    class_name = transformers_class(source.name, config.to_dict())
    model_class = getattr(transformers, class_name)
    check_weights(source.name, partial(model_class, config), source.file or source.where)
    if source.file is not None:
        return load_weights(model_class(config), source.name, source.file)
    model, info = model_class.from_pretrained(
        source.where,
        # Without its configuration, transformers would read that of an adapter's base.
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        # Its own error for weights of another shape names none of them; the one below does.
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    wrong = sorted(mismatched.union(info["missing_keys"]))
    if wrong:
        message = f"weights of a {class_name} that the checkpoint lacks, or has in another shape"
        raise InputError(f"{argument('model', source.name)}: {message}: {count_of(wrong)}.")
    return model


def _load_processor(source: ModelSource, model: Any) -> Any:
    if source.library == "open_clip":
        return _open_clip_transform(source, model)
    from transformers import AutoImageProcessor, CLIPImageProcessor

    config: Any = getattr(unwrapped(model), "config", None)
    is_clip = getattr(config, "model_type", None) == "clip"
    has_none = source.local and not any(Path(source.where).glob("*processor_config.json"))
    # Models of another type do not all have the same preprocessing.
    if has_none and is_clip:
        side = config.vision_config.image_size
        why = f"no preprocessor_config.json, so images become {side} x {side} as for OpenAI's CLIP"
        warn(f"{argument('model', source.name)}: {why}.")
        return CLIPImageProcessor(size=side, crop_size=side)
    return AutoImageProcessor.from_pretrained(source.where, trust_remote_code=False)


def _open_clip_transform(source: ModelSource, model: Any) -> Any:
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    # With weights of a file, OpenCLIP takes CLIP's settings, even for a SigLIP.
    published = get_pretrained_cfg(source.where, source.tag or "")
    settings = merge_preprocess_dict(model.visual.preprocess_cfg, published)
    # OpenCLIP notes 256 for ViTamin-XL-384, whose trunk takes 384.
    settings["size"] = tower_of(model).native
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)


def _load_tokenizer(source: ModelSource, model: Any) -> Any:
    if source.is_embedded:
        return DemoTokenizer()
    if source.library == "open_clip":
        from open_clip import get_tokenizer

        return get_tokenizer(source.where)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # Where the files are missing, transformers 5 makes a tokenizer without words.
        raise FileNotFoundError(f"{source.where} holds no vocabulary")
    return tokenizer


_LOADERS = {"processor": _load_processor, "tokenizer": _load_tokenizer}


def _resize(clip: ClipAdapter, size: int) -> None:
    """Make a processor of transformers return images of a size, which the tower must take.

    OpenCLIP's transform was made with the size of the resized model.
    """
    patch = clip.tower.patch[0]
    smaller = max(1, size // patch) * patch
    advice = f"such as {smaller} or {smaller + patch}"
    expect(size % patch == 0, f"a multiple of {patch}, the side of a patch, {advice}", size)
    # A tower that cannot take the size raises an error that names those it takes.
    clip.grid(size, size)
    processor = image_processor(clip.processor)
    if hasattr(processor, "max_num_patches"):  # NaFlex
        processor.max_num_patches = (size // patch) ** 2
    for name in ("size", "crop_size"):
        sides = getattr(processor, name, None)
        if sides:
            kept = [side for side in ("shortest_edge", "height", "width") if side in sides]
            setattr(processor, name, dict.fromkeys(kept, size))


def load_parts(processor: str | None, tokenizer: str | None) -> dict[str, Any]:
    """The processor and the tokenizer of other models, as options of :func:`load_clip`.

    Each is named by a folder or a repository of transformers, or a name of the report that leads to
    one; None for none. InputError where it holds none, or cannot be reached.
    """
    parts: dict[str, Any] = {"processor": None, "tokenizer": None}
    if processor is not None:
        parts["processor"] = _load_tool("processor", processor)
    if tokenizer is not None:
        parts["tokenizer"] = _load_tool("tokenizer", tokenizer)
    return parts


def _load_tool(option: str, name: str) -> Any:
    folder = expand(name)
    if folder.is_dir():
        # The folder may hold a processor alone, so it need not be one of a model.
        source = ModelSource(name, "transformers", str(folder), local=True)
    else:
        source = resolve(name)
    if source.library != "transformers":
        raise InputError(
            f"{name!r} is a model of OpenCLIP; expected a folder or a repository of transformers "
            "with an image processor or a tokenizer."
        )
    with _loading(source, online=not source.local and _hub_answers()):
        return _LOADERS[option](source, None)


@contextmanager
def _loading(source: ModelSource, *, online: bool) -> Iterator[None]:
    """Let the libraries read the files of a model; what they raise becomes an InputError."""
    from huggingface_hub import constants

    try:
        with _ONE_AT_A_TIME, _quiet_libraries(online), no_code():
            for place in _unchecked_places(source):
                check_files(source.name, place)
            yield
    except CaptumClipError:
        raise
    except Exception as error:  # Libraries raise anything for files that somebody else wrote.
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
    """The folders and repositories whose configurations a stranger may have written."""
    place = source.where
    # Only OpenCLIP has schemas. The path of a folder may have a colon of its own.
    if source.library == "open_clip":
        place = re.sub("^(hf-hub|local-dir):", "", place)
    # Without a schema, OpenCLIP's name is that of an architecture of its own.
    has_schema = place != source.where
    has_files = has_schema or source.library == "transformers"
    if has_files and not source.is_embedded:
        yield place
    if source.adapter is not None:
        yield str(source.adapter)


def _hub_answers() -> bool:
    """Whether the hub answers once; its client would try for half a minute a file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # The client's errors differ by version, and HF_HUB_OFFLINE has its own.
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
