"""Errors of captum_clip; each names what was given, what was expected and what to do.

A message spells arguments as its reader does, by :func:`argument`. In Python they stand in
backticks, as `words` or `sign='both'`. The command line writes --words and --sign both, and the
page its own labels.
"""

import inspect
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from fractions import Fraction
from functools import wraps
from io import IOBase
from numbers import Integral, Real
from types import FrameType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_Public = TypeVar("_Public", bound=Callable[..., Any])
_Value = TypeVar("_Value")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BETWEEN: Final = ("captum_clip", "captum", "torch", "contextlib", "functools")
"""Packages and modules whose code may run between a user's line and the reason of a warning."""
_NUMBERS: Final[dict[Any, type]] = {int: Integral, float: Real}


def printable(text: str) -> str:
    """Escape the characters of a text that would steer a terminal; lines stay lines."""
    # The slice takes away the quotes around the escape.
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class CaptumClipError(Exception):
    """Base of every error that captum_clip raises itself.

    Attributes:
        function: the public function that was called; "" if none is known.
        reason: the message without the function.
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


class CaptumClipWarning(UserWarning):
    """Every warning of captum_clip: the call went on, but its result may not be what is wanted."""


def warn(message: str) -> None:
    """Warn at the line of the user that led here.

    So a warning that several places give for one call is shown once, as Python shows each warning
    of a line.
    """
    depth = 1
    frame = inspect.currentframe()
    while frame is not None and _package_of(frame) in _BETWEEN:
        depth += 1
        frame = frame.f_back
    warnings.warn(message, CaptumClipWarning, stacklevel=depth)


def _package_of(frame: FrameType) -> str:
    """The name of the package, or of the module in none, whose code runs in a frame."""
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0]


def _in_backticks(name: str, value: Any) -> str:
    """Spell an argument as in Python."""
    if value is None:
        return f"`{name}`"
    return f"`{name}={value!r:.100}`"


_spelling: Final = ContextVar[Callable[[str, Any], str]]("spelling", default=_in_backticks)


def argument(name: str, value: Any = None) -> str:
    """Spell an argument, with its value if that matters, as the reader of a message writes it.

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
    """Have messages spell arguments in another way within the block, in this thread."""
    return assigned(_spelling, spelling)


@contextmanager
def naming(function: str) -> Iterator[None]:
    """Have errors name a function; the outermost one counts, which the user called."""
    try:
        yield
    except CaptumClipError as error:
        error.function = function
        raise


def public(name: str) -> Callable[[_Public], _Public]:
    """Decorate a public function: errors name it, and an argument of a wrong type is an InputError.

    Annotations are read only after the function fails with an error of Python or torch. So its own
    messages come first, and a call that succeeds pays nothing. If all arguments are as annotated,
    the error stays as it is.
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
    if function.__name__ == "__post_init__":
        # A dataclass checks itself in this method, where its arguments have become its fields.
        instance = args[0]
        function = type(instance)
        args = ()
        options = vars(instance)
    # A module may import a type for type checkers alone (NameError), and an argument may be missing
    # (TypeError). Then the error of Python stands.
    with suppress(NameError, TypeError):
        types = get_type_hints(function)
        signature = inspect.signature(function)
        for name, value in signature.bind(*args, **options).arguments.items():
            # The annotation of *args or **options is that of each value.
            parameter = signature.parameters[name]
            is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if is_variadic or name not in types or is_kind(value, types[name]):
                continue
            expected = f"{argument(name)} as {type_name(types[name])}"
            raise InputError(f"expected {expected}, got {type_names(value)}.") from cause


def refuse(conflicts: Iterable[tuple[object, str]]) -> None:
    """Raise InputError with the first sentence whose condition holds."""
    for holds, sentence in conflicts:
        if holds:
            raise InputError(sentence)


def is_kind(value: Any, kind: Any) -> bool:
    """Tell whether a value, and each value in it, is of an annotated type.

    NumPy's numbers count as numbers, but True and a fraction do not, and a tensor must have dense
    values. Types that cannot be checked, such as the arguments of a callable, count as right.

    Example:
        >>> is_kind(["a", 3], list[str]), is_kind({"a": 1.5}, dict[str, float | None])
        (False, True)
    """
    if isinstance(kind, TypeVar):
        alternatives = kind.__constraints__ or (kind.__bound__ or Any,)
        return any(is_kind(value, alternative) for alternative in alternatives)
    outer = get_origin(kind) or kind
    inner = get_args(kind)
    if outer in (Union, UnionType):
        return any(is_kind(value, alternative) for alternative in inner)
    if outer is Literal:
        # True equals 1, so the types are compared as well.
        return any(type(value) is type(literal) and value == literal for literal in inner)
    if outer is Any or not isinstance(outer, type):
        return True
    expected_type = _NUMBERS.get(outer, outer)
    # An open file iterates over its lines, which nobody means by an iterable.
    if not isinstance(value, expected_type) or isinstance(value, IOBase):
        return False
    if outer in _NUMBERS:
        return not isinstance(value, (bool, Fraction))
    return _holds(value, outer, inner)


def _holds(value: Any, outer: type, inner: tuple[Any, ...]) -> bool:
    """Tell whether the values in a value of type `outer` are of the types `inner`."""
    # Only a tensor has this attribute, and torch may not be loaded.
    if hasattr(value, "is_nested"):
        is_dense = str(value.layout) == "torch.strided" and not value.is_nested
        if not is_dense or value.is_meta or value.is_complex():
            return False
    # Abstract types such as Collection take an array for their own, since it has their methods. It
    # is no collection of texts all the same, and counts only where its own class is expected.
    if hasattr(value, "shape"):
        return not inspect.isabstract(outer)
    if not inner:
        return True
    if outer is tuple and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(is_kind, value, inner))
    # A Counter is annotated by its keys alone.
    if issubclass(outer, Mapping) and len(inner) == 2:
        key_type, value_type = inner
        return all(is_kind(k, key_type) and is_kind(v, value_type) for k, v in value.items())
    if issubclass(outer, Collection):
        return all(is_kind(item, inner[0]) for item in value)
    return True


def parse_json(text: str | bytes, kind: Any = dict[str, Any]) -> Any:
    """Read a value of an annotated type from a text of JSON; ValueError for any other text."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it has too many brackets") from error
    if not is_kind(value, kind):
        raise ValueError(f"expected {type_name(kind)}, got {type_names(value)}")
    return value


def type_name(kind: Any) -> str:
    """Write an annotation for a message, without its modules."""
    annotation = inspect.formatannotation(kind)
    without_modules = re.sub(r"(\w+\.)+", "", annotation)
    # `is_kind` refuses sparse and nested tensors, so the message has to exclude them.
    return without_modules.replace("Tensor", "dense Tensor")


def type_names(value: Any) -> str:
    """Name the type of a value, with the types of the values in it."""
    name = type(value).__name__
    if not isinstance(value, (list, tuple, dict, set)) or not value:
        return name
    item_names = {type(item).__name__ for item in value}
    return f"{name} of {', '.join(sorted(item_names))}"
