"""Errors of captum_clip; each names what was given, what was expected and what to do.

A message calls arguments as its reader does, by :func:`argument`: in Python they stand in
backticks, as `words` or `sign='both'`; the command line writes --words and --sign both, the page
its own labels.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, TypeVar, cast, get_type_hints

from .kinds import is_kind, type_name, type_names

_Function = TypeVar("_Function", bound=Callable[..., Any])


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text with escapes for what would steer a terminal; lines stay lines."""
    return _CONTROL.sub(lambda letter: ascii(letter[0])[1:-1], text)


class CaptumClipError(Exception):
    """Base of every error that captum_clip raises itself.

    Attributes:
        function: the public function that was called; "" where none is known.
        reason: the sentence without it.
    """

    function = ""

    @property
    def reason(self) -> str:
        """What was given, what was expected and what to do."""
        return printable(super().__str__())

    def __str__(self) -> str:
        return f"{self.function}: {self.reason}" if self.function else self.reason


class UnsupportedModelError(CaptumClipError, TypeError):
    """A model, a tower or a combination of method and tower that is not supported."""


class TargetError(CaptumClipError, ValueError):
    """A target that means nothing: an empty text, an unknown word, an index out of range."""


class InputError(CaptumClipError, ValueError):
    """An image, a file, an option or a state of the model that cannot be worked with."""


class CaptureError(CaptumClipError, RuntimeError):
    """A forward function that did not run the tower in the way a recording needs."""


def _in_backticks(name: str, value: Any) -> str:
    return f"`{name}`" if value is None else f"`{name}={value!r:.100}`"


_spelling: Final = ContextVar[Callable[[str, Any], str]]("spelling", default=_in_backticks)


def argument(name: str, value: Any = None) -> str:
    """An argument, with its value where that matters, as the reader of a message writes it.

    Example:
        >>> argument("words"), argument("sign", "both")
        ('`words`', "`sign='both'`")
    """
    return _spelling.get()(name, value)


@contextmanager
def spelled(spelling: Callable[[str, Any], str]) -> Iterator[None]:
    """Have messages call arguments otherwise within the block, in this thread."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


@contextmanager
def naming(function: str) -> Iterator[None]:
    """Have errors name a function; the outermost one, which the user called."""
    try:
        yield
    except CaptumClipError as error:
        error.function = function
        raise


def public(name: str) -> Callable[[_Function], _Function]:
    """Decorate a public function: errors name it, and an argument of a wrong kind is one.

    Annotations are read only where it fails with an error of Python or torch, so its own sentences
    come first, and cost nothing. Where all arguments are as annotated, that error stays as it is.
    """

    def decorate(function: _Function) -> _Function:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with naming(name):
                try:
                    return function(*args, **options)
                except CaptumClipError:
                    raise
                except Exception as error:
                    check_kinds(function, args, options, error)
                    raise

        return cast("_Function", call)

    return decorate


def check_kinds(function: Any, args: Any, options: Mapping[str, Any], cause: Any = None) -> None:
    """Raise InputError unless the arguments of a function or dataclass are as annotated."""
    if function.__name__ == "__post_init__":  # they are fields by now
        function, args, options = type(args[0]), (), vars(args[0])
    # an annotation that its module imports for type checkers alone; an argument that is missing
    with suppress(NameError, TypeError):
        kinds, signature = get_type_hints(function), inspect.signature(function)
        for name, value in signature.bind(*args, **options).arguments.items():
            several = str(signature.parameters[name]).startswith("*")
            if name in kinds and not several and not is_kind(value, kinds[name]):
                expected = f"{argument(name)} as {type_name(kinds[name])}"
                raise InputError(f"expected {expected}, got {type_names(value)}.") from cause


def refuse(conflicts: Iterable[tuple[object, str]]) -> None:
    """Raise InputError with the first sentence whose condition holds."""
    for holds, sentence in conflicts:
        if holds:
            raise InputError(sentence)
