"""Modules as their libraries build them, and what the files of a model may ask of a library."""

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..checks import excerpt, expect, show
from ..demo import MODELS
from ..errors import InputError, UnsupportedModelError, argument

AnyHook = TypeVar("AnyHook", bound=Callable[..., Any])

_OWN_HOOK = "_captum_clip_recording"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def mark_own_hook(hook: AnyHook) -> AnyHook:
    """Mark a hook of a recording, which does not change what other code computes."""
    setattr(hook, _OWN_HOOK, True)
    return hook


def has_no_foreign_hooks(module: nn.Module) -> bool:
    """Whether a module has neither a hook nor an attribute in place of a method."""
    # a copy, since another thread's recording may add hooks of ours meanwhile
    hooks = (hook for name in _HOOKS for hook in tuple(getattr(module, name).values()))
    if any(not hasattr(hook, _OWN_HOOK) for hook in hooks):
        return False
    kind, own = type(module), vars(module)
    return not any(
        callable(value) and hasattr(kind, name)
        for name, value in own.items()
        if name != "_compiled_call_impl"  # of torch.compile, which computes the same
    )


_LIBRARIES = ("torch.", "peft.", "sentence_transformers.", "transformers.")
_INNER = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "PeftModel": "base_model.model",  # but of prompts, which `base_model` is without a tuner for
    "SentenceTransformer": "0.model",
    "Owlv2ForObjectDetection": "owlv2",
    "OwlViTForObjectDetection": "owlvit",
    "CLIPSegForImageSegmentation": "clip",
}


def unwrapped(module: Any) -> Any:
    """The module inside what these libraries put around it, or itself.

    In a `Sequential` it is the first module; what follows is the tail of a forward function.
    """
    if type(module) is nn.Sequential and len(module):
        return unwrapped(module[0])
    # by name, since none of them should be imported for this
    for kind in type(module).__mro__:
        path = _INNER.get(kind.__name__)
        if path and kind.__module__.startswith(_LIBRARIES):
            with expect_library_parts(module):
                return unwrapped(attrgetter(path)(module))
    return module


def name_of(model: nn.Module) -> str:
    """The class of a model object, with its library or what it was loaded from where that is known.

    OpenCLIP's class is a plain "CLIP", and keeps no name; transformers' configurations do.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("open_clip."):
        return f"OpenCLIP's {name}"
    source = getattr(getattr(model, "config", None), "_name_or_path", None) or ""
    if Path(source).is_absolute():
        source = Path(source).name
    return f"{name} {source}".strip()


# attributes that hold the rate of something random -> its name; "" for that of the class
_RATES = {
    "p": "dropout",
    "prob": "patch dropout",
    "drop_prob": "",  # DropPath is no Dropout
    "attention_dropout": "attention dropout",  # often no module
    "dropout": "attention dropout",
}


def modules_of(module: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, several times as fast as `nn.Module.modules`."""
    modules = {id(module): module}
    new = [module]
    while new:
        children = [child for each in new for child in each._modules.values() if child is not None]
        new = [child for child in children if id(child) not in modules]
        modules.update((id(child), child) for child in new)
    return list(modules.values())


# modules of torch.ao that compute with floating-point weights, and fake or observe quantization
_PREPARED = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.")


def _path_of(layer: nn.Module, module: nn.Module) -> str:
    """The name of a module below another one."""
    names = (name for name, each in module.named_modules() if each is layer)
    return str(next(names))


def refuse_quantized(module: nn.Module) -> None:
    """Raise UnsupportedModelError where a weight of a tower is no plain floating-point number."""
    for layer in modules_of(module):
        library = type(layer).__module__
        if library.startswith(_PREPARED):
            raise UnsupportedModelError(
                f"the {type(layer).__name__} {_path_of(layer, module)} of a tower is prepared for "
                "quantization: its forward rounds weights or activations and observes their "
                "range, so what runs is not what the weights say. Explain the model before "
                "torch.ao.quantization prepares it, with the trained weights loaded."
            )
        # torch.ao packs the weights of its modules away from their parameters
        plain = not library.startswith("torch.ao.")
        for weight in layer._parameters.values():
            if weight is None:
                continue
            if weight.is_meta and getattr(layer, "_hf_hook", None) is not None:
                raise UnsupportedModelError(
                    "the weights of a tower exist only while its modules run (accelerate's "
                    "cpu_offload), so they cannot be read; load the whole model into memory."
                )
            if type(weight).__module__.startswith("torch.distributed."):
                raise UnsupportedModelError(
                    f"the {type(layer).__name__} {_path_of(layer, module)} of a tower has its "
                    f"weights in a {type(weight).__name__}, spread over processes as FSDP2 or "
                    "tensor parallelism do, so no map can be made of one process's part. Gather "
                    "them with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
                    "StateDictOptions(full_state_dict=True), and load them into a plain model."
                )
            plain &= type(weight) is nn.Parameter and weight.is_floating_point()
        if not plain:
            raise UnsupportedModelError(
                f"the {type(layer).__name__} {_path_of(layer, module)} of a tower is quantized, so "
                "gradients do not pass it, and its result may depend on the batch; load the model "
                "in float32, float16 or bfloat16."
            )


def refuse_not_finite(module: nn.Module) -> None:
    """Raise InputError where a weight of a tower is NaN or infinite."""
    for name, weight in module.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                f"the weight {name} of a tower holds NaN or infinity, so its scores do, too; "
                "expected finite weights. Load a checkpoint from before its training diverged."
            )


def running_state(module: nn.Module) -> list[Any]:
    """What a forward function may exchange for its own forward alone, in order.

    That is the parameters, by torch.func.functional_call, and the switch of peft's adapters.
    """
    state: list[Any] = []
    for layer in modules_of(module):
        state += layer._parameters.values()
        state.append(vars(layer).get("_disable_adapters"))
    return state


def refuse_meta(module: nn.Module) -> None:
    """Raise UnsupportedModelError where a weight of a tower has no value."""
    for layer in modules_of(module):
        for name, weight in layer._parameters.items():
            if weight is not None and weight.is_meta:
                raise UnsupportedModelError(
                    f"the {name} of the {type(layer).__name__} of a tower is on the meta device, "
                    "so it has no values; expected weights on the CPU or an accelerator. Load them "
                    "first, such as with model.load_state_dict(weights, assign=True)."
                )


@contextmanager
def expect_library_parts(owner: object) -> Iterator[None]:
    """Raise UnsupportedModelError for a module that is not what its library puts there."""
    try:
        yield
    except AttributeError as error:
        raise UnsupportedModelError(
            f"a module of the {type(owner).__name__} is not the library's own ({error}); put the "
            "library's module back, and watch it by a forward hook instead of a wrapper."
        ) from error


def nondeterminism(module: nn.Module) -> str | None:
    """What makes two forwards differ, or changes a buffer, in training mode, if anything."""
    for layer in filter(attrgetter("training"), modules_of(module)):
        if isinstance(layer, _BatchNorm):
            return "BatchNorm"
        for name, what in _RATES.items():
            rate = getattr(layer, name, None)
            # elsewhere `p` is another number, such as the power of a pool
            if name == "p" and not isinstance(layer, _DropoutNd):
                continue
            if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0:
                return f"{what or type(layer).__name__} {rate:g}"
    return None


def checkpoints(module: nn.Module) -> bool:
    """Whether blocks are run again in the backward, where no hook would be left to see them."""
    return any(
        getattr(layer, "grad_checkpointing", False)
        or (getattr(layer, "gradient_checkpointing", False) and layer.training)
        for layer in module.modules()
    )


LARGEST_SIDE: Final = 4096  # side in pixels of an image; more patches than fit into a memory
_CONFIGURATIONS: Final = (
    *("config.json", "open_clip_config.json", "adapter_config.json"),
    *("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"),
)
ADVICE: Final = "load the model yourself, and pass the object with its processor and tokenizer"
_ALWAYS_FITS: Final = 2**26  # numbers that any memory holds, whatever is in the files
_OWN_CODE: Final = f"it comes with code of its own, which is never run; {ADVICE}"
_FILE_NAME: Final = r"\w[\w.-]*"
_HUB: Final = rf"{_FILE_NAME}(/{_FILE_NAME})?"
_NEVER: Final = "(?!)"
# path of a key -> its values; None mostly stands for the library's default
_ALLOWED_VALUES: Final = {
    r"tokenizer_kwargs\.(?!(clean|strip_sep_token|language|reduction_mask)$)": _NEVER,
    "trust_remote_code$": "False",
    # a kernel on the hub is code
    r"\w*attn_implementation\b": "eager|sdpa|flex_attention",
    "(quantization_config|megatron_config)": _NEVER,
    "peft_type$": "(|ADA|RAND|V|VB)LORA|LOHA|LOKR|B?OFT|IA3|HRA|FOURIERFT|LN_TUNING",
    "timm_model_name$": r"[\w.]+",
    "layer_norm_eps$": r"[\d.e-]+",
    "((image_)?(mean|std)|rescale_factor)$": r"-?[\d.e-]+",
    r"((image_)?(mean|std)|rescale_factor)\.": _NEVER,
    # of these classes alone; others load more by themselves
    "tokenizer_class$": r"(?!Auto|Rag)\w+(Tokenizer|TokenizerFast|Backend)",
    "(image_processor|feature_extractor)_type$": (
        r"(?!Auto)\w+(ImageProcessor|FeatureExtractor)(Fast|Pil)?"
    ),
}
_LARGEST_SIZES: Final = {
    r"(image_size|size|crop_size)\b": LARGEST_SIDE,
    "max_num_patches": (LARGEST_SIDE // 16) ** 2,
    r"((init_|target_)?r$|rank_pattern\.)": LARGEST_SIDE,  # of adapters
    r"((num_hidden_)?layers|depths?)\b": 1000,
}


def check_files(name: str, where: str) -> None:
    """Raise InputError where a folder or a repository asks for code, other folders or huge sizes.

    A text tower and a tokenizer that OpenCLIP's configuration takes from elsewhere are checked too.
    """
    # in a folder OpenCLIP takes the tokenizer that is there, whatever its name
    names = "hf_model_name$" if Path(where).is_dir() else "hf_(model|tokenizer)_name$"
    for file in _files(where):
        for key, value in _plain_values(json.loads(file.read_text("utf-8"))):
            is_name = _matches(names, key) and bool(value)
            is_hub = re.fullmatch(_HUB, str(value)) and not Path(str(value)).exists()
            fits: list[object] = [is_hub or not is_name]
            fits += [
                re.fullmatch(v, str(value)) for k, v in _ALLOWED_VALUES.items() if _matches(k, key)
            ]
            fits += [value in range(n + 1) for k, n in _LARGEST_SIZES.items() if _matches(k, key)]
            if not all(fits):
                fact = f"{file.name} says {show(value)} for {show(key[1:])}"
                raise InputError(
                    f"{argument('model', name)}: {fact}, which is never followed; {ADVICE}."
                )
            if is_name and value != where:
                check_files(name, value)


def _files(where: str) -> list[Path]:
    """The configurations in a folder, or in a repository on the hub, which are downloaded."""
    from transformers.utils import cached_file

    folder, revision = Path(where), None
    if not folder.is_dir():
        for file in _CONFIGURATIONS:
            with suppress(OSError):  # a repository has some of them
                folder = Path(cached_file(where, file, revision=revision)).parent
                revision = folder.name  # with which no more requests are needed
    return [folder / file for file in _CONFIGURATIONS if (folder / file).is_file()]


def _plain_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in a configuration after its keys, but None, the library's default."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            is_default = inner is None and key != "layer_norm_eps"  # which torch calls with
            yield from () if is_default else _plain_values(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _plain_values(inner, path)
    else:
        yield path, value


def _matches(pattern: str, path: str) -> bool:
    return re.search(rf"\.({pattern})", path) is not None


def check_weights(
    name: str, build: Callable[[], nn.Module], place: str | Path, least: float = 0
) -> None:
    """Raise InputError where a model has more numbers than its files have bytes.

    A library allocates and draws them all before it compares a single shape with the files.

    Args:
        name: of the model, in the message.
        build: makes it, without weights.
        place: a folder or a file of weights; a repository on the hub is not compared.
        least: how many numbers it surely has.
    """
    place = Path(place)
    if place in MODELS.values() or not place.exists():
        return
    files = _weights_in(place) if place.is_dir() else [place]
    held, numbers = sum(file.stat().st_size for file in files), least
    most = max(held, _ALWAYS_FITS)
    if files and numbers <= most:
        # some architectures read values while they are built, which have none here
        with suppress(RuntimeError), torch.device("meta"):
            model = build()
            numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if files and numbers > most:
        raise InputError(
            f"{argument('model', name)}: its configuration describes {numbers:,.0f} numbers, and "
            f"its weights have {held:,} bytes; restore the configuration that they were saved with."
        )


def _weights_in(folder: Path) -> list[Path]:
    """The weights in a folder; InputError where an index of them names a file elsewhere."""
    for index in folder.glob("*.index.json"):
        for file in json.loads(index.read_text("utf-8"))["weight_map"].values():
            if not re.fullmatch(_FILE_NAME, file):
                raise InputError(f"{index} names {show(file)}, which lies outside of its folder.")
    return [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pth")]


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
    # whole numbers are sizes that OpenAI's files note, and buffers that come and go with releases
    weights = ((key, v) for key, v in content.items() if isinstance(v, Tensor))
    return {str(key): value for key, value in weights if value.is_floating_point()}


def fit_weights(
    model: nn.Module, weights: dict[str, Tensor], *, resample: bool = False
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The weights that a model takes, those that it lacks, and those that it does not have."""
    own = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    # trainings put `module.`, `model.` or an attribute's name in front of every key
    anchor = max(own, key=len)
    prefixes = [key.removesuffix(anchor) for key in weights if f".{key}".endswith(f".{anchor}")]
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    if resample:
        from open_clip.model import resize_pos_embed

        resize_pos_embed(weights, model)
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    missing = [key for key in own if key not in fitting]
    return fitting, missing, [key for key in weights if key not in own]


@contextmanager
def no_code() -> Iterator[None]:
    """Let no library import code of a model, unpickle, or ask on standard input whether it may."""
    from transformers import dynamic_module_utils as own_code

    # zero is transformers' own way to say that nobody is there to answer
    refused = patch.multiple(own_code, TIME_OUT_REMOTE_CODE=0, get_class_in_module=_refuse_code)
    with ExitStack() as undo, refused:
        undo.callback(os.environ.update, os.environ.copy())
        undo.callback(os.environ.pop, "TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
        # wherever a library calls torch.load; OpenCLIP calls it again without the option
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        yield


def _refuse_code(*_: Any, **__: Any) -> NoReturn:
    raise InputError(f"{_OWN_CODE}.")


def reason_of(error: BaseException) -> str:
    """The first sentence of a library's error; of a question whether to run code, what to do."""
    # torch lists what does not fit below a line that ends so
    line = re.sub(r":\s*\n\s*", ": ", str(error).strip()).partition("\n")[0].rstrip(".:")
    if "trust_remote_code" in str(error):
        return _OWN_CODE
    return excerpt(line, 300)


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
    # without any, peft would ask the hub
    expect(weights, f"adapter_model.safetensors in {folder}", os.listdir(folder))
    wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(folder)))
    result = wrapped.load_adapter(str(folder), "default")
    # peft only warns of the former, and says nothing of the latter
    if keys := [*result.missing_keys, *result.unexpected_keys]:
        raise InputError(
            f"the adapter in {folder} belongs to another base; weights missing or left over: "
            f"{count_of(keys)}."
        )
    return wrapped
