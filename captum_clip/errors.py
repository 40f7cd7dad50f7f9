"""Errors of captum_clip; each names what was given, what was expected and what to do.

A message calls arguments as its reader does, by :func:`argument`: in Python they stand in
backticks, as `words` or `sign='both'`; the command line writes --words and --sign both, the page
its own labels.
"""

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from fractions import Fraction
from functools import wraps
from io import IOBase
from numbers import Integral, Real
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_Public = TypeVar("_Public", bound=Callable[..., Any])
_Value = TypeVar("_Value")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NUMBERS: Final[dict[Any, type]] = {int: Integral, float: Real}


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
def assigned(variable: ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Give a variable of this thread a value within the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def spelled(spelling: Callable[[str, Any], str]) -> AbstractContextManager[None]:
    """Have messages call arguments otherwise within the block, in this thread."""
    return assigned(_spelling, spelling)


@contextmanager
def naming(function: str) -> Iterator[None]:
    """Have errors name a function; the outermost one, which the user called."""
    try:
        yield
    except CaptumClipError as error:
        error.function = function
        raise


def public(name: str) -> Callable[[_Public], _Public]:
    """Decorate a public function: errors name it, and an argument of a wrong kind is one.

    Annotations are read only where it fails with an error of Python or torch, so its own sentences
    come first, and cost nothing. Where all arguments are as annotated, that error stays as it is.
    """

    def decorate(function: _Public) -> _Public:
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

        return cast("_Public", call)

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


def is_kind(value: Any, kind: Any) -> bool:
    """Whether a value, and each value in it, is of an annotated type.

    A number of NumPy is one, True and a fraction are none, and a tensor has dense values. What
    cannot be told, such as the arguments of a callable, counts as right.

    Example:
        >>> is_kind(["a", 3], list[str]), is_kind({"a": 1.5}, dict[str, float | None])
        (False, True)
    """
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if isinstance(kind, TypeVar):
        inner = kind.__constraints__ or (kind.__bound__ or Any,)
    if outer in (Union, UnionType) or isinstance(kind, TypeVar):
        return any(is_kind(value, each) for each in inner)
    if outer is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if outer is Any or not isinstance(outer, type):
        return True
    if not isinstance(value, _NUMBERS.get(outer, outer)) or isinstance(value, IOBase):
        return False
    return _holds(value, outer, inner)


def _holds(value: Any, outer: type, inner: tuple[Any, ...]) -> bool:
    """Whether a value of a type has the right ones in it."""
    if outer in _NUMBERS:
        return not isinstance(value, (bool, Fraction))
    if hasattr(value, "is_nested"):  # a tensor; torch may not be loaded
        dense = str(value.layout) == "torch.strided" and not value.is_nested
        if not dense or value.is_meta or value.is_complex():
            return False
    if hasattr(value, "shape"):  # an array has all that a collection needs, and is none of texts
        return not inspect.isabstract(outer)
    if outer is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(is_kind, value, inner))
    if issubclass(outer, Mapping) and inner:
        return all(is_kind(k, inner[0]) and is_kind(v, inner[1]) for k, v in value.items())
    return not (inner and issubclass(outer, Collection)) or all(is_kind(v, inner[0]) for v in value)


def parse_json(text: str | bytes, kind: Any = dict[str, Any]) -> Any:
    """The value that a text of JSON holds; ValueError where there is none of an annotated type."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it has too many brackets") from error
    if not is_kind(value, kind):
        raise ValueError(f"expected {type_name(kind)}, got {type_names(value)}")
    return value


def type_name(kind: Any) -> str:
    """An annotation, without its modules."""
    return re.sub(r"(\w+\.)+", "", inspect.formatannotation(kind)).replace("Tensor", "dense Tensor")


def type_names(value: Any) -> str:
    """The type of a value, with those of the values in it."""
    items = isinstance(value, (list, tuple, dict, set)) and {type(each).__name__ for each in value}
    return type(value).__name__ + (f" of {', '.join(sorted(items))}" if items else "")
