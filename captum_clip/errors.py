"""Errors of captum_clip; each names what was given, what was expected and what to do.

A message calls arguments as its reader does, by :func:`argument`: in Python they stand in
backticks, as `words` or `sign='both'`; the command line writes --words and --sign both, the page
its own labels.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final


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
        return super().__str__()

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
    return f"`{name}`" if value is None else f"`{name}={value!r}`"


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
def public(name: str) -> Iterator[None]:
    """Decorate a public function: errors name the outermost one, which the user called."""
    try:
        yield
    except CaptumClipError as error:
        error.function = name
        raise


def refuse(conflicts: Iterable[tuple[object, str]]) -> None:
    """Raise InputError with the first sentence whose condition holds."""
    for holds, sentence in conflicts:
        if holds:
            raise InputError(sentence)
