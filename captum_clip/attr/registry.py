"""The methods by name, and a method with its options."""

import inspect
import re
from ast import literal_eval
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, Final, TypeAlias, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from .. import targets
from ..checks import check_flag, error_context, expect, show, suggestion
from ..errors import InputError, argument, is_kind, public, type_name, warn
from ..models import ClipAdapter
from ..models.towers import Kind, Tower, TransformerTower
from ..targets.similarity import TextSimilarity
from ._base import KINDS, ClipAttribution

METHODS: Final[dict[str, type[Any]]] = {}
"""The methods by the names that :func:`captum_clip.explain` and the command line take."""

ENTRY_POINTS: Final = "captum_clip.methods"
"""Group of entry points in which other packages name their classes."""

MAMOOLER: Final = "mamooler"
"""Stands for :func:`report_method` of a tower wherever a method is named.

The report is CLIP Explainability (Mamooler, EPFL).
"""
_OF_REPORT: Final = {"vit": "last-grad", "text": "last-grad", "resnet": "grad-cam"}
_FLAGS: Final = ("signed", "needs_target", "costly")
# These keyword arguments of `attribute_targets` change what it returns. Code that calls it decides
# on them, so the name of a method cannot carry them as options.
_RESERVED: Final = {"return_scores", "return_rest", "create_graph", "relu_attributions"}

_Class = TypeVar("_Class", bound=type[Any])
TextMap: TypeAlias = tuple[tuple[str, float], ...]
"""The words of a text, each with its value."""


@public("register")
def register(method: _Class) -> _Class:
    """Offer a class wherever methods are named: `explain`, command line, page, evaluation.

    A class derived from a base of this package has all that is needed once it has a `name`. Any
    other class may leave out `signed`, `needs_target` and `costly`. The function may be used as a
    decorator. If other processes have to know the class (Ray, the command line), name it in the
    entry point group ``captum_clip.methods`` of its package.

    Args:
        method: a class with `name`, `towers` ("vit", "resnet", "text") and the methods `attribute`
            and `attribute_targets`, made from a forward function.

    Returns:
        The class.

    Raises:
        InputError: a property of the class is missing or wrong, or its name is taken.

    Example:
        >>> from captum_clip.attr import LastGradAttention, register
        >>> register(LastGradAttention) is LastGradAttention  # registered already: no change
        True
    """
    expect(isinstance(method, type), "a class", method)
    with error_context(method.__name__):
        name = getattr(method, "name", None)
        towers = getattr(method, "towers", None)
        is_name = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9-]*", name)
        expect(is_name, "a `name` of small letters, digits and hyphens", name)
        kinds = get_args(Kind)
        is_collection = isinstance(towers, (tuple, list, set, frozenset))
        are_kinds = is_collection and towers and set(towers) <= set(kinds)
        expect(are_kinds, f"`towers` among {', '.join(kinds)}", towers)
        for flag in (*_FLAGS, "listed"):
            check_flag(f"`{flag}`", getattr(method, flag, False))
        bases = "captum_clip.attr.ViTAttribution or ResNetAttribution, which have it"
        for needed in ("attribute", "attribute_targets"):
            function = getattr(method, needed, None)
            advice = f"derive the class from {bases}"
            expect(callable(function), f"a method {needed}", function, advice)
        expect(name != MAMOOLER, "a `name` other than that of the report's methods", name)
        taken = METHODS.get(str(name), method)
        # A notebook's cell that runs again defines the same class anew.
        is_same_module = taken.__module__ == method.__module__
        is_same = is_same_module and taken.__qualname__ == method.__qualname__
        expect(is_same, f"a `name` other than that of {taken.__name__}", name)
    METHODS[method.name] = method
    return method


@cache
def _load_entry_points() -> None:
    """Register the methods of other packages, once a process; a broken package is left out."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:  # The import of another package may raise anything.
            warn(
                f"the method {entry.name} of the package that defines {entry.value} cannot be "
                f"used ({type(error).__name__}: {error})."
            )


def registered() -> dict[str, type[Any]]:
    """All methods by name, those of other packages included."""
    _load_entry_points()
    return METHODS


def methods_for(kind: str) -> tuple[str, ...]:
    """Names of the methods that are offered for a kind of tower."""
    names = []
    for name, method in registered().items():
        if getattr(method, "listed", True) and kind in method.towers:
            names.append(name)
    return tuple(names)


def default_method(tower: Tower) -> str:
    """The method where none is named: the one that points best (docs/appendix/measurements.md)."""
    has_pooling_head = isinstance(tower, TransformerTower) and tower.pooling == "attention"
    return "conservative" if has_pooling_head else "direct"


def report_method(tower: Tower) -> str:
    """The method of Mamooler's figures and tables, whose towers have no pooling head."""
    default = default_method(tower)
    if default == "conservative":
        return default
    return _OF_REPORT[tower.kind]


def check_methods(names: Iterable[str]) -> None:
    """Raise InputError unless each name is a method, before a model is loaded."""
    for name in names:
        if name != MAMOOLER:
            MethodChoice.of(name)


def fitting_methods(
    methods: Iterable[str | type[Any]], tower: Tower, model: str
) -> "list[MethodChoice]":
    """Choose the methods that explain a tower, by default the tower's own.

    Raises:
        InputError: none of them does.
    """
    choices = [MethodChoice.of(method, tower=tower) for method in methods]
    if not choices:
        choices = [MethodChoice.of(None, tower=tower)]
    fitting = [choice for choice in choices if choice.fits(tower.kind)]
    if not fitting:
        names = ", ".join(choice.name for choice in choices)
        raise InputError(
            f"none of the methods {names} fits {model}, which has a {KINDS[tower.kind]}."
        )
    return fitting


def option_names(method: type[Any]) -> tuple[list[str], bool]:
    """The options of a method's class, and whether it takes any others."""
    names = []
    takes_others = False
    for parameter in inspect.signature(method.attribute_targets).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_others = True
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _RESERVED:
            names.append(parameter.name)
    return names, takes_others


def _check_option_types(method: type[Any], options: dict[str, Any]) -> None:
    """Raise InputError for an option whose value is not of the type that it is annotated with."""
    # The base class takes any options, and hands them to `_compute`, which annotates them.
    is_ours = issubclass(method, ClipAttribution)
    function = method._compute if is_ours else method.attribute_targets
    types: dict[str, Any] = {}
    # A module may import a type for type checkers alone, which is then no name.
    with suppress(NameError, TypeError):
        types = get_type_hints(function)
    for name, value in options.items():
        if name in types and not is_kind(value, types[name]):
            raise InputError(
                f"{method.name}: expected the option {name} as {type_name(types[name])}, got "
                f"{show(value)}."
            )


def maps_and_scores(
    explainer: Any, forward: Callable[[Tensor], Tensor], images: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Compute the maps (B, K, h, w) of all targets of some images, and their cosines (B, K).

    The cosines come from the same forward pass. They take a second pass if the explainer's class
    is of another package, and its ``attribute_targets`` does not take `return_scores`.
    """
    parameters = inspect.signature(explainer.attribute_targets).parameters.values()
    if any(part.name == "return_scores" or part.kind is part.VAR_KEYWORD for part in parameters):
        maps, scores = explainer.attribute_targets(images, return_scores=True, **options)
        return maps, scores
    maps = explainer.attribute_targets(images, **options)
    with torch.no_grad():
        return maps.detach(), forward(images)


@dataclass(frozen=True)
class MethodChoice:
    """A method with its options.

    Attributes:
        method: the class.
        options: keyword arguments of its ``attribute_targets``.
        name: the command-line name of both, as "last-grad:heads=averaged".
        signed: whether evidence against the target is negative in its maps.
        needs_target: whether its maps depend on the target.
        costly: whether it takes many forward passes per map.
        both_signs: whether the map of the negated target is to be subtracted.
    """

    method: type[Any]
    options: dict[str, Any]
    name: str
    signed: bool = False
    needs_target: bool = True
    costly: bool = False
    both_signs: bool = False

    @classmethod
    def of(
        cls,
        method: str | type[Any] | None,
        options: dict[str, Any] | None = None,
        tower: Tower | None = None,
        *,
        published: bool = False,
        others: Iterable[str] = (),
    ) -> "MethodChoice":
        """Make a choice of a class or a command-line name.

        Args:
            method: the class, or its name, which may have options as "last-grad:heads=averaged".
                With a tower, None stands for its default method, and "mamooler" for the report's.
            options: further options, which replace those of the name.
            tower: the tower to explain.
            published: take the options of the method's paper where none are given. With the option
                "sign=signed", the map of the negated target is to be subtracted.
            others: names that messages list beside those of the methods.

        Raises:
            InputError: there is no such method, or it has no such option or value.
        """
        if tower is not None and method is None:
            method = default_method(tower)
        elif tower is not None and method == MAMOOLER:
            method = report_method(tower)
        method_class, options_in_name = _parsed(method, others)
        options = options_in_name | (options or {})
        name = method_class.name
        if options:
            name += ":" + ",".join(f"{option}={value}" for option, value in options.items())
        both_signs = published and options.get("sign") == "signed"
        # No method has this option: the caller computes both maps.
        if both_signs:
            del options["sign"]
        known, takes_others = option_names(method_class)
        for option in options:
            if option in _RESERVED or not (takes_others or option in known):
                listed = ", ".join(known) or "none"
                raise InputError(f"{method_class.name} has no option {option!r}; it has {listed}.")
        if published:
            options = {**getattr(method_class, "paper_options", {}), **options}
        flags = {
            flag: getattr(method_class, flag) for flag in _FLAGS if hasattr(method_class, flag)
        }
        if issubclass(method_class, ClipAttribution):
            method_class.check_options(**options)
            flags |= method_class.properties(**options)
        _check_option_types(method_class, options)
        return cls(method_class, options, name, **flags, both_signs=both_signs)

    def fits(self, kind: str) -> bool:
        """Whether it explains a kind of tower."""
        return kind in self.method.towers

    def check_negative(self) -> None:
        """Raise InputError where the target does not change the map, which then has no negative."""
        if not self.needs_target:
            raise InputError(
                f"{self.name} does not depend on the target, so it has no negative map; take "
                f"{argument('sign', 'positive')}, or another method."
            )

    def text_maps(
        self, clip: ClipAdapter, pixels: Tensor, texts: Sequence[str], sign: str
    ) -> tuple[tuple[TextMap, ...], Tensor]:
        """Compute a map of each of K texts for one image (1, 3, H, W), and the cosines (1, K).

        A word's value is the sum over its tokens, negative if the word contradicts the image. For
        a method with maps :math:`m(t)` without signs, it is :math:`m(t)` with the positive sign,
        :math:`-m(-t)` with the negative one, and :math:`m(t) - m(-t)` with both. A signed method
        always gives both.

        Raises:
            InputError: there are several images, or the method gives several values per token.
        """
        expect(len(pixels) == 1, "words to explain for one image at a time", len(pixels))
        target = targets.image(clip, pixels)
        forward = TextSimilarity(clip, targets.concatenate([target, -target]))
        words_of_texts = [targets.word_tokens(clip, text) for text in texts]
        ids, mask = clip.text_inputs(texts)
        values, scores = self.method(forward).attribute_targets(
            ids, additional_forward_args=mask, return_scores=True, **self.options
        )
        if values.ndim != 3:
            raise InputError(f"{self.name} gives several values per token; leave `per` out.")
        # The texts are the batch here, and the image and its negative are the targets.
        positive, negative = values.cpu().unbind(1)  # (K, T)
        if self.signed or sign == "positive":
            token_values = positive
        elif sign == "negative":
            token_values = -negative
        else:
            token_values = positive - negative
        maps = []
        for row, words in zip(token_values, words_of_texts, strict=True):
            by_word = []
            for word, span in words:
                by_word.append((word, float(row[span.start : span.stop].sum())))
            maps.append(tuple(by_word))
        cosines: Tensor = scores[:, :1].T.cpu()
        return tuple(maps), cosines


def _parsed(method: Any, others: Iterable[str]) -> tuple[type[Any], dict[str, Any]]:
    """The class that `method` is or names, and the options that the name has."""
    if isinstance(method, str):
        name, _, options = method.partition(":")
        return _class_named(method, name, others), _parsed_options(method, options)
    if isinstance(method, type) and method in registered().values():
        return method, {}
    raise _no_method(method, str(method), others)


def _class_named(method: str, name: str, others: Iterable[str]) -> type[Any]:
    """The class of a command-line name, or of a class's own name, as `method` begins with it."""
    if name == MAMOOLER:
        names = ", ".join(dict.fromkeys(_OF_REPORT.values()))
        raise InputError(
            f"{argument('method')}: {MAMOOLER} stands for each tower's own method in the report "
            f"and takes no options, got {method!r}; name the method itself ({names})."
        )
    methods = _by_either_name()
    if name not in methods:
        raise _no_method(method, name, others)
    return methods[name]


def _by_either_name() -> dict[str, type[Any]]:
    """All methods by their command-line names and by the names of their classes."""
    methods = registered()
    return methods | {method.__name__: method for method in methods.values()}


def _no_method(method: Any, name: str, others: Iterable[str]) -> InputError:
    """The error for what is no method, with the name that it may have meant."""
    others = tuple(others)
    hint = suggestion(name, (*_by_either_name(), *others, MAMOOLER))
    listed = ", ".join(dict.fromkeys((*registered(), *others)))
    return InputError(
        f"{argument('method')}: expected one of {listed}, with options as in "
        f"last-grad:heads=averaged, or a class of captum_clip.attr; got {show(method)}{hint}."
    )


def _parsed_options(method: str, text: str) -> dict[str, Any]:
    """Read options as on the command line: ``heads=averaged,start_layer=2``."""
    options: dict[str, Any] = {}
    if not text:
        return options
    for option in text.split(","):
        name, equals, value = (piece.strip() for piece in option.partition("="))
        if not (name and equals and value):
            raise InputError(
                f"{argument('method')}: cannot read {option!r} in {method!r}; options look like "
                "last-grad:heads=averaged,start_layer=2."
            )
        options[name] = _literal(value)
    return options


def _literal(text: str) -> Any:
    """The number, truth value or None that a text spells, or else the text."""
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, NoneType)) else text
