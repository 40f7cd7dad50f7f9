"""Errors of captum_clip; each names what was given, what was expected and what to do.

Arguments stand in backticks, as `words` or `sign='both'`, so that whoever prints a sentence can
call them as the reader does: the command line writes --words and --sign both, the page
its own labels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
