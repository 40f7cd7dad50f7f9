"""Checks of arguments that several functions take: each once, with its one sentence.

None of them loads torch, so the command line may use them all. Tensors are checked by
:func:`captum_clip.maps.check_tensor` and by those of `metrics/localization.py`.
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
"""What :func:`limit_pixels` sets."""
_WRITTEN = """
    Path("images").mkdir()
    for number, (image, *_) in enumerate(dataset):
        image.save(f"images/{number:06}.png")  # a PIL image, so leave transforms out"""


@contextmanager
def error_context(context: str) -> Iterator[None]:
    """Say in front of an error of ours what was being done; once, at the outermost call.

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
    """Tell in a sentence what checkpointing, a compiler or a missing kernel of torch cannot do.

    Raises:
        UnsupportedModelError: from torch's own error; others pass.
    """
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved" in str(error):
            raise UnsupportedModelError(
                "the model's weights were made under torch.inference_mode(), and no "
                "gradient passes through them; load the model outside of it, or use a method "
                "without gradients, such as direct."
            ) from error
        # by the module's name, since an import of torch's compilers takes seconds
        kinds = ("torch.utils.checkpoint", "torch._dynamo", "torch._inductor")
        if not (isinstance(error, NotImplementedError) or type(error).__module__.startswith(kinds)):
            raise
        reason = excerpt(" ".join(str(error).partition("\n\n")[0].split()).rstrip("."), 200)
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
        raise error(f"expected {expected}, got {describe(value)}{advice and f'; {advice}'}.")


@contextmanager
def expecting(
    expected: str, value: Any, advice: str = "", *, error: type[CaptumClipError] = InputError
) -> Iterator[None]:
    """Say what was expected where Python or a library refuses what was given.

    Raises:
        InputError: as of :func:`expect`, with the library's reason, from its error.
    """
    try:
        yield
    except (CaptumClipError, OSError):  # a disk that fails is no wrong argument
        raise
    except Exception as reason:  # tokenizers and others have none of their own
        line = excerpt(str(reason).strip().partition("\n")[0].partition(". ")[0].rstrip("."), 200)
        sentence = f"expected {expected}, got {describe(value)}; {line}{advice and f'; {advice}'}."
        raise error(sentence) from reason


def is_integer(value: Any, *, least: float = float("-inf")) -> TypeGuard[int]:
    """Whether a value is a whole number of `least` or more; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number, NaN and infinity included; True and False do not count."""
    return is_kind(value, float)


def _argument(name: str) -> str:
    """The name of an argument as messages call it; other words as they are."""
    return argument(name) if "_" in name else name


def check_integer(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise InputError unless a value is a whole number from `least` to `most`."""
    expect(is_integer(value, least=least), f"{_argument(name)} of {least} or more", value)
    expect(most is None or value <= most, f"{_argument(name)} up to {most}", value)


def check_flag(name: str, value: Any) -> None:
    """Raise InputError unless a value is True or False."""
    expect(isinstance(value, bool), f"{_argument(name)} of True or False", value)


def check_interval(name: str, value: Any, interval: str) -> None:
    """Raise InputError unless a value is a number in an interval: "[0, 1)", or "(0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = is_number(value) and low <= value <= high
    open_ends = ([low] if interval[0] == "(" else []) + ([high] if interval[-1] == ")" else [])
    expect(inside and value not in open_ends, f"{_argument(name)} in {interval}", value)


def check_choice(value: Any, choices: Collection[str], *, name: str = "one") -> None:
    """Raise InputError unless a value is among the choices; `name` is what is chosen."""
    # a tuple, since a string holds every substring of itself
    is_choice = isinstance(value, str) and value in tuple(choices)
    expect(is_choice, f"{_argument(name)} of {', '.join(choices)}", value)


def check_nonempty(name: str, values: Collection[Any]) -> None:
    """Raise InputError if there are no values; `name` says what a value is."""
    if not len(values):
        raise InputError(f"expected at least one {name}, got none.")


def suggestion(word: str, names: Iterable[str]) -> str:
    """The name that was probably meant, as a question in brackets, or an empty text.

    >>> suggestion("lastgrad", ["all-grad", "last-grad"]), suggestion("x", ["rollout"])
    (' (did you mean last-grad?)', '')
    """
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in names}
    close = get_close_matches(re.sub("[^a-z0-9]", "", word.lower()), plain, n=1)
    return f" (did you mean {plain[close[0]]}?)" if close else ""


def find_repeated(values: Iterable[_T]) -> _T | None:
    """The first value that comes a second time, or None."""
    listed = list(values)
    return next((value for index, value in enumerate(listed) if value in listed[:index]), None)


def as_list(values: str | Iterable[_T]) -> list[str | _T]:
    """One text or several, as a list; InputError for what is neither."""
    expect(isinstance(values, Iterable), "one value or several", values)
    return [values] if isinstance(values, str) else list(values)


def expand(path: str | Path) -> Path:
    """A path with its ``~`` expanded, of a file that may or may not be there.

    Raises:
        InputError: no file can have such a path: a part of it is too long, a character that no
            name has, an unknown user after ``~``, or links that lead in a circle.
    """
    expect(isinstance(path, (str, os.PathLike)), "a path", path)
    try:
        expanded = Path(path).expanduser()
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise InputError(f"{excerpt(str(path))} cannot be a path: {reason}.") from error
    return expanded


def is_encodable(text: str) -> bool:
    """Whether a text can be written, as one with half of a surrogate pair in it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Any) -> list[str]:
    """One text or several, as a list; TargetError for anything else, and for an empty list."""
    several = isinstance(texts, Iterable) and not isinstance(texts, (Mapping, set, frozenset))
    as_they_are = "pass texts as they are, without a tokenizer"
    expect(several, "a text or several", texts, as_they_are, error=TargetError)
    listed = as_list(texts)
    expect(listed, "a text or several", texts, error=TargetError)
    for text in listed:
        expect(isinstance(text, str), "texts", text, as_they_are, error=TargetError)
        if not is_encodable(text):
            raise TargetError(f"{show(text)} holds half a character (a surrogate); take it out.")
    return listed


def show(value: Any, longest: int = 100) -> str:
    """A value for a message: its repr, shortened, also of a number with thousands of digits."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}..."


def describe(value: Any) -> str:
    """A value for a message: an array by shape, type and device, an object by its class."""
    if any(kind.__module__.startswith("torch.utils.data") for kind in type(value).__mro__):
        return f"a {type(value).__name__}; write its images as files, in three lines:{_WRITTEN}"
    if isinstance(value, (list, tuple)) and any(hasattr(item, "shape") for item in value):
        return excerpt(f"[{', '.join(map(describe, value))}]", 200)
    if getattr(value, "is_nested", False) is True:  # whose shape torch cannot tell
        return "a nested tensor"
    shape = None if isinstance(value, type) else getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):  # a table of pandas has none
        device = str(getattr(value, "device", "cpu"))
        kind = f"{type(value).__name__} {tuple(shape)} of {value.dtype}"
        return kind + f" on {device}" * (device != "cpu")
    text = show(value)
    has_value = isinstance(value, type) or not (text.startswith("<") or "\n" in text)
    return text if has_value else type(value).__name__


def excerpt(text: str, longest: int = 80) -> str:
    """A text that fits into a message, with escapes for what cannot be printed."""
    short = text if len(text) <= longest else f"{text[:longest]}..."
    return short if short.isprintable() else ascii(short)


def find_file(path: str | Path, *, what: str = "file") -> Path:
    """A file that exists, ``~`` expanded; InputError where there is none."""
    file = expand(path)
    if not file.is_file():
        folder = ", only a folder of that name" * file.is_dir()
        name = path if str(path).strip() else repr(str(path))
        raise InputError(f"there is no {what} {name}{folder}.")
    return file


def find_folder(path: str | Path, *, what: str = "folder") -> Path:
    """A folder that exists, ``~`` expanded; InputError where there is none."""
    folder = expand(path)
    if not folder.is_dir():
        raise InputError(f"there is no {what} {path}.")
    return folder


def check_destination(path: str | Path, formats: tuple[str, ...]) -> Path:
    """See before any work is done whether a file can be written.

    Args:
        path: of the file.
        formats: endings that it may have.

    Returns:
        The path, ``~`` expanded.

    Raises:
        InputError: another ending, no such folder, a folder without leave to write, or a folder of
            the file's name.
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
    read, written = {_identity(path): path for path in inputs if path is not None}, set()
    for path in outputs:
        if (key := _identity(path)) in read:
            raise InputError(f"{path} would replace the input {read[key]}; give another name.")
        if key in written:
            raise InputError(
                f"two outputs would be the file {path}; give each its own name, or make one at a "
                "time."
            )
        written.add(key)


def _identity(path: str | Path) -> tuple[int, int] | str:
    """Return the same for every spelling of a file and every link to it, also where none is yet."""
    path = os.path.expanduser(path)
    try:
        status = os.stat(path)  # a name alone may differ in case
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def limit_pixels(most: int | None) -> AbstractContextManager[None]:
    """Read images of up to so many pixels within the block; None leaves the limit as it is.

    It holds for this thread, and for those of :func:`captum_clip.folders.storage.read_ahead`.
    """
    return assigned(max_pixels, max_pixels.get() if most is None else most)
