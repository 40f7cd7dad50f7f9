"""What the files of a model may ask of a library: no code, no other folder, no huge size."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from unittest.mock import patch

import torch
from torch import nn

from ..checks import excerpt, show
from ..demo import MODELS
from ..errors import InputError, argument

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
_NEVER: Final = "(?!)"  # matches no value
# The paths of keys -> the values that they may have. Both are patterns.
_ALLOWED_VALUES: Final = {
    r"tokenizer_kwargs\.(?!(clean|strip_sep_token|language|reduction_mask)$)": _NEVER,
    "trust_remote_code$": "False",
    # Any other name may be that of a kernel on the hub, which is code.
    r"\w*attn_implementation\b": "eager|sdpa|flex_attention",
    "(quantization_config|megatron_config)": _NEVER,
    "peft_type$": "(|ADA|RAND|V|VB)LORA|LOHA|LOKR|B?OFT|IA3|HRA|FOURIERFT|LN_TUNING",
    "timm_model_name$": r"[\w.]+",
    "layer_norm_eps$": r"[\d.e-]+",
    "((image_)?(mean|std)|rescale_factor)$": r"-?[\d.e-]+",
    r"((image_)?(mean|std)|rescale_factor)\.": _NEVER,
    # Other classes, such as `AutoTokenizer`, load more by themselves.
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
    # In a folder, OpenCLIP takes the tokenizer that is there, whatever name the configuration has.
    names = "hf_model_name$" if Path(where).is_dir() else "hf_(model|tokenizer)_name$"
    for file in _files(where):
        for key, value in _plain_values(json.loads(file.read_text("utf-8"))):
            is_name = _matches(names, key) and bool(value)
            is_refused = is_name and not _is_on_hub(str(value))
            if is_refused or not _is_allowed(key, value):
                fact = f"{file.name} says {show(value)} for {show(key[1:])}"
                raise InputError(
                    f"{argument('model', name)}: {fact}, which is never followed; {ADVICE}."
                )
            if is_name and value != where:
                check_files(name, value)


def _is_on_hub(name: str) -> bool:
    """Whether a name is that of a repository, and not of a folder here, which would be read."""
    return re.fullmatch(_HUB, name) is not None and not Path(name).exists()


def _is_allowed(key: str, value: Any) -> bool:
    """Whether a value is one that a configuration may have at its key."""
    for pattern, allowed in _ALLOWED_VALUES.items():
        if _matches(pattern, key) and not re.fullmatch(allowed, str(value)):
            return False
    for pattern, largest in _LARGEST_SIZES.items():
        if _matches(pattern, key) and value not in range(largest + 1):
            return False
    return True


def _files(where: str) -> list[Path]:
    """The configurations in a folder, or in a repository on the hub, which are downloaded."""
    from transformers.utils import cached_file

    folder = Path(where)
    if not folder.is_dir():
        revision = None
        for file in _CONFIGURATIONS:
            # A repository lacks some of them.
            with suppress(OSError):
                folder = Path(cached_file(where, file, revision=revision)).parent
                # The cache's folder is named after the commit, so all files are of one commit, and
                # the hub is not asked for it again.
                revision = folder.name
    return [folder / file for file in _CONFIGURATIONS if (folder / file).is_file()]


def _plain_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in a configuration after its keys, but None, the library's default."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            # An epsilon has no default: torch is called with None itself.
            if inner is not None or key == "layer_norm_eps":
                yield from _plain_values(inner, f"{path}.{key}")
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
    if not files:
        return
    held = sum(file.stat().st_size for file in files)
    most = max(held, _ALWAYS_FITS)
    numbers = least
    # If `least` is too much already, building the model would allocate it.
    if numbers <= most:
        # Some architectures read values while they are built, and on this device there are none.
        with suppress(RuntimeError), torch.device("meta"):
            model = build()
            numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if numbers > most:
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


@contextmanager
def no_code() -> Iterator[None]:
    """Let no library import code of a model, unpickle, or ask on standard input whether it may."""
    from transformers import dynamic_module_utils as own_code

    # A time of zero is transformers' own way to say that nobody is there to answer.
    refused = patch.multiple(own_code, TIME_OUT_REMOTE_CODE=0, get_class_in_module=_refuse_code)
    with ExitStack() as undo, refused:
        # The last callback runs first, so the user's own value of the variable comes back after it.
        undo.callback(os.environ.update, os.environ.copy())
        undo.callback(os.environ.pop, "TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
        # The variable holds wherever a library calls torch.load, also where OpenCLIP calls it again
        # without the option.
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        yield


def _refuse_code(*_: Any, **__: Any) -> NoReturn:
    raise InputError(f"{_OWN_CODE}.")


def reason_of(error: BaseException) -> str:
    """The first line of a library's error, or advice if it asks whether to run a model's code."""
    message = str(error)
    if "trust_remote_code" in message:
        return _OWN_CODE
    # torch ends its first line with a colon, and lists below it what does not fit.
    joined = re.sub(r":\s*\n\s*", ": ", message.strip())
    line = joined.partition("\n")[0].rstrip(".:")
    return excerpt(line, 300)
