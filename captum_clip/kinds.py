"""Whether a value is what an annotation says: an argument, or what a file holds."""

import inspect
import json
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from io import IOBase
from numbers import Integral, Real
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

_NUMBERS: Final[dict[Any, type]] = {int: Integral, float: Real}


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
    name = re.sub(r"(\w+\.)+", "", inspect.formatannotation(kind))
    return name.replace("Tensor", "dense Tensor")


def type_names(value: Any) -> str:
    """The type of a value, with those of the values in it."""
    items = isinstance(value, (list, tuple, dict, set)) and {type(each).__name__ for each in value}
    return type(value).__name__ + (f" of {', '.join(sorted(items))}" if items else "")
