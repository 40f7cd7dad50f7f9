"""Checks of arguments that several functions take: each once, with its one sentence.

None of them loads torch, so the command line may use them all. Tensors are checked by
:func:`captum_clip.maps.check_tensor`, and masks in `metrics/localization.py`.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, TypeVar

from .errors import (
    CaptumClipError,
    InputError,
    TargetError,
    UnsupportedModelError,
    argument,
    assigned,
    is_kind,
)

_T = TypeVar("_T")
Mode = Literal["bilinear", "bicubic", "nearest"]
max_pixels: Final = ContextVar[int | None]("max_pixels", default=None)
"""The limit that :func:`limit_pixels` sets."""
# The last words of the message for a data set of torch, which is not taken as images.
_WRITE_IMAGES: Final = """
    Path("images").mkdir()
    for number, (image, *_) in enumerate(dataset):
        image.save(f"images/{number:06}.png")  # a PIL image, so leave transforms out"""


@contextmanager
def error_context(context: str) -> Iterator[None]:
    """Put in front of an error of ours what was being done; once, at the outermost call.

    Raises:
        InputError: "context: error", from the error.

    Example:
        >>> with error_context("demo-words"):
        ...     check_choice("spark", ["local", "ray"], name="engine")
        Traceback (most recent call last):
        captum_clip.errors.InputError: demo-words: expected engine of local, ray, got 'spark'.
    """
    try:
        yield
    except CaptumClipError as error:
        raise InputError(f"{context}: {error.reason}") from error


@contextmanager
def torch_failures() -> Iterator[None]:
    """Explain in a sentence what checkpointing, a compiler or a missing kernel of torch cannot do.

    Raises:
        UnsupportedModelError: from torch's own error; others pass.
    """
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved" in str(error):
            raise UnsupportedModelError(
                "the model's weights were made under torch.inference_mode(), and no "
                "gradient passes through them; load the model outside of it."
            ) from error
        # The class is told by its module's name, since importing torch's compilers takes seconds.
        modules = ("torch.utils.checkpoint", "torch._dynamo", "torch._inductor")
        is_from_setup = type(error).__module__.startswith(modules)
        is_missing_kernel = isinstance(error, NotImplementedError)
        if not is_from_setup and not is_missing_kernel:
            raise
        first_paragraph = str(error).partition("\n\n")[0]
        one_line = " ".join(first_paragraph.split())
        reason = excerpt(one_line.rstrip("."), 200)
        raise UnsupportedModelError(
            f"the model cannot be computed as it is set up ({reason}); turn gradient "
            "checkpointing off, and use an attention that is not compiled, such as 'eager'."
        ) from error


def expect(
    holds: Any,
    expected: str,
    value: Any,
    advice: str = "",
    *,
    error: type[CaptumClipError] = InputError,
) -> None:
    """Raise an error unless a condition holds: what was expected, what was given, what to do.

    Example:
        >>> expect(False, "a size (H, W)", "large")
        Traceback (most recent call last):
        captum_clip.errors.InputError: expected a size (H, W), got 'large'.
    """
    if not holds:
        raise error(f"expected {expected}, got {describe(value)}{_with_advice(advice)}.")


def _with_advice(advice: str) -> str:
    """Return the end of a sentence that gives advice, if there is any."""
    return f"; {advice}" if advice else ""


@contextmanager
def expecting(
    expected: str, value: Any, advice: str = "", *, error: type[CaptumClipError] = InputError
) -> Iterator[None]:
    """Say what was expected where Python or a library refuses a value.

    Raises:
        InputError: as by :func:`expect`, with the library's reason, from its error.
    """
    try:
        yield
    # A disk that fails is no wrong argument.
    except (CaptumClipError, OSError):
        raise
    # Tokenizers and other libraries raise errors of no class of their own.
    except Exception as reason:
        first_line = str(reason).strip().partition("\n")[0]
        first_sentence = first_line.partition(". ")[0].rstrip(".")
        line = excerpt(first_sentence, 200)
        raise error(
            f"expected {expected}, got {describe(value)}; {line}{_with_advice(advice)}."
        ) from reason


def is_integer(value: Any, *, least: float = float("-inf")) -> TypeGuard[int]:
    """Tell whether a value is an integer of `least` or more; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a real number, NaN and infinity included, but not True or False."""
    return is_kind(value, float)


def _spelled(name: str) -> str:
    """Return the name of an argument as messages spell it; other words as they are."""
    # Callers also pass plain words, such as "a seed". An underscore is a sure sign of an argument.
    return argument(name) if "_" in name else name


def check_integer(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise InputError unless a value is an integer from `least` to `most`."""
    expect(is_integer(value, least=least), f"{_spelled(name)} of {least} or more", value)
    if most is not None:
        expect(value <= most, f"{_spelled(name)} up to {most}", value)


def check_flag(name: str, value: Any) -> None:
    """Raise InputError unless a value is True or False."""
    expect(isinstance(value, bool), f"{_spelled(name)} of True or False", value)


def check_interval(name: str, value: Any, interval: str) -> None:
    """Raise InputError unless a value is a number in an interval: "[0, 1)", or "(0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = is_number(value) and low <= value <= high
    # A parenthesis excludes the end of the interval.
    if interval.startswith("("):
        inside = inside and value != low
    if interval.endswith(")"):
        inside = inside and value != high
    expect(inside, f"{_spelled(name)} in {interval}", value)


def check_choice(value: Any, choices: Collection[str], *, name: str = "one") -> None:
    """Raise InputError unless a value is among the choices; `name` says what is chosen."""
    # If the choices are the letters of a string, its substrings must not count as well.
    is_choice = isinstance(value, str) and value in tuple(choices)
    expect(is_choice, f"{_spelled(name)} of {', '.join(choices)}", value)


def check_nonempty(name: str, values: Collection[Any]) -> None:
    """Raise InputError if there are no values; `name` says what a value is."""
    if not len(values):
        raise InputError(f"expected at least one {name}, got none.")


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return the name that was probably meant, as a question in brackets, or an empty text.

    If several names have the same letters, it is the first.

    Example:
        >>> suggestion("lastgrad", ["all-grad", "last-grad"]), suggestion("x", ["rollout"])
        (' (did you mean last-grad?)', '')
    """
    name_of_letters: dict[str, str] = {}
    for name in names:
        name_of_letters.setdefault(_letters(name), name)
    close = get_close_matches(_letters(word), name_of_letters, n=1)
    if not close:
        return ""
    name = name_of_letters[close[0]]
    return f" (did you mean {name}?)"


def _letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub("[^a-z0-9]", "", name.lower())


def find_repeated(values: Iterable[_T]) -> _T | None:
    """Return the first value that comes a second time, or None."""
    # A list, since values need not be hashable.
    before: list[_T] = []
    for value in values:
        if value in before:
            return value
        before.append(value)
    return None


def as_list(values: str | Iterable[_T]) -> list[str | _T]:
    """Return one text or several values as a list; InputError for anything else."""
    expect(isinstance(values, Iterable), "one value or several", values)
    if isinstance(values, str):
        return [values]
    return list(values)


def expand(path: str | Path) -> Path:
    """Return a path with its ``~`` expanded; the file need not exist.

    Raises:
        InputError: no file can have such a path: a part of it is too long, a character that no
            name has, an unknown user after ``~``, or links that lead in a circle.
    """
    expect(isinstance(path, (str, os.PathLike)), "a path", path)
    try:
        expanded = Path(path).expanduser()
        os.stat(expanded)
    # The file need not exist; the call only shows whether it could.
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise InputError(f"{excerpt(str(path))} cannot be a path: {reason}.") from error
    return expanded


def is_encodable(text: str) -> bool:
    """Tell whether a text can be written; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Any) -> list[str]:
    """Return one text or several as a list; TargetError for anything else, or for an empty list."""
    # The items of a set have no order, so their maps could not be told apart.
    is_ordered = isinstance(texts, Iterable) and not isinstance(texts, (Mapping, set, frozenset))
    advice = (
        "pass texts as they are, without a tokenizer, and embeddings as targets.embedding(rows)"
    )
    expect(is_ordered, "a text or several", texts, advice, error=TargetError)
    listed = as_list(texts)
    expect(listed, "a text or several", texts, error=TargetError)
    for text in listed:
        expect(isinstance(text, str), "texts", text, advice, error=TargetError)
        if not is_encodable(text):
            raise TargetError(f"{show(text)} holds half a character (a surrogate); take it out.")
    return listed


def show(value: Any) -> str:
    """Write a value for a message: its repr, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits.
        return f"a very large {type(value).__name__}"
    return _shortened(text, 100)


def _shortened(text: str, longest: int) -> str:
    """Cut a text that is too long, with an ellipsis at the cut."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def describe(value: Any) -> str:
    """Describe a value for a message: arrays by shape, type and device, objects by their class."""
    class_name = type(value).__name__
    if any(base.__module__.startswith("torch.utils.data") for base in type(value).__mro__):
        return f"a {class_name}; write its images as files, in three lines:{_WRITE_IMAGES}"
    if isinstance(value, (list, tuple)) and any(hasattr(item, "shape") for item in value):
        items = ", ".join(map(describe, value))
        return excerpt(f"[{items}]", 200)
    # Torch raises if it is asked for the shape of a nested tensor.
    if getattr(value, "is_nested", False) is True:
        return "a nested tensor"
    if isinstance(value, type):
        return show(value)
    shape = getattr(value, "shape", None)
    # A table of pandas has a shape, but no type of its numbers.
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        array = f"{class_name} {tuple(shape)} of {value.dtype}"
        device = str(getattr(value, "device", "cpu"))
        return array if device == "cpu" else f"{array} on {device}"
    text = show(value)
    # Such a repr is an address in memory or a whole page.
    if text.startswith("<") or "\n" in text:
        return class_name
    return text


def excerpt(text: str, longest: int = 80) -> str:
    """Return a text that fits into a message, with escapes if it cannot be printed."""
    short = _shortened(text, longest)
    return short if short.isprintable() else ascii(short)


def find_file(path: str | Path, *, what: str = "file") -> Path:
    """Return the path of a file that exists, ``~`` expanded; InputError if there is none."""
    file = expand(path)
    if file.is_file():
        return file
    # A path of blanks would not be seen in the message.
    name = path if str(path).strip() else repr(str(path))
    if file.is_dir():
        raise InputError(f"there is no {what} {name}, only a folder of that name.")
    raise InputError(f"there is no {what} {name}.")


def find_folder(path: str | Path, *, what: str = "folder") -> Path:
    """Return the path of a folder that exists, ``~`` expanded; InputError if there is none."""
    folder = expand(path)
    if not folder.is_dir():
        raise InputError(f"there is no {what} {path}.")
    return folder


def check_destination(path: str | Path, formats: tuple[str, ...]) -> Path:
    """Check before any work is done that a file can be written.

    Args:
        path: of the file.
        formats: endings that it may have.

    Returns:
        The path, ``~`` expanded.

    Raises:
        InputError: another ending, no such folder, a folder without permission to write, or a
            folder of the file's name.
    """
    path = expand(path)
    if path.suffix.lower() not in formats:
        raise InputError(f"cannot write {path}: the name must end in {', '.join(formats)}.")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first.")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable.")
    return path


def check_outputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise InputError unless each output is a file of its own, and none of the inputs."""
    input_of_identity = {_file_identity(path): path for path in inputs if path is not None}
    written = set()
    for path in outputs:
        identity = _file_identity(path)
        if identity in input_of_identity:
            replaced = input_of_identity[identity]
            raise InputError(f"{path} would replace the input {replaced}; give another name.")
        if identity in written:
            raise InputError(
                f"two outputs would be the file {path}; give each its own name, or make one at a "
                "time."
            )
        written.add(identity)


def _file_identity(path: str | Path) -> tuple[int, int] | str:
    """Return a value that is the same for every spelling of a file's path and every link to it."""
    path = os.path.expanduser(path)
    try:
        # Two names of a file may differ in case, so its number on the disk is compared.
        status = os.stat(path)
    except OSError:
        # An output need not exist yet, and then only its path can be compared.
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def limit_pixels(most: int | None) -> AbstractContextManager[None]:
    """Read images of up to so many pixels within the block; None leaves the limit as it is.

    It holds for this thread, and for those of :func:`captum_clip.folders.storage.read_ahead`.
    """
    if most is None:
        most = max_pixels.get()
    return assigned(max_pixels, most)
