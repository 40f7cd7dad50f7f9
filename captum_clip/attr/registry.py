"""The methods by name, a method with its options, and the maps of texts and of pairs."""

import inspect
import re
import warnings
from ast import literal_eval
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from itertools import product
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from .. import targets
from ..checks import check_flag, error_context, expect, show, suggestion
from ..errors import InputError, argument, public
from ..models import ClipAdapter
from ..models.towers import Kind, Tower, TransformerTower
from ..targets.similarity import ClipPairSimilarity, ClipSimilarity, TextSimilarity
from ._base import KINDS, ClipAttribution
from .contributions import DirectInteraction, InteractionRest

METHODS: Final[dict[str, type[Any]]] = {}
"""The methods by the names that :func:`captum_clip.explain` and the command line take."""

ENTRY_POINTS: Final = "captum_clip.methods"
"""Group of entry points in which other packages name their classes."""

MAMOOLER: Final = "mamooler"
"""Stands for :func:`report_method` of a tower wherever a method is named."""
_OF_REPORT: Final = {"vit": "last-grad", "text": "last-grad", "resnet": "grad-cam"}
_FLAGS: Final = ("signed", "needs_target", "costly")
# the caller's, no options
_RESERVED: Final = {"return_scores", "return_rest", "create_graph", "relu_attributions"}

_Class = TypeVar("_Class", bound=type[Any])
TextMap: TypeAlias = tuple[tuple[str, float], ...]
"""The words of a text, each with its value."""


@public("register")
def register(method: _Class) -> _Class:
    """Offer a class wherever methods are named: `explain`, command line, page, evaluation.

    It needs no more than a base of this package has; `signed`, `needs_target` and `costly` may be
    left out. May be used as a decorator. Where other processes have to know the class (Ray, the
    command line), name it in the entry point group ``captum_clip.methods`` of its package.

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
        name, towers = getattr(method, "name", None), getattr(method, "towers", None)
        is_name = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9-]*", name)
        expect(is_name, "a `name` of small letters, digits and hyphens", name)
        kinds, several = get_args(Kind), isinstance(towers, (tuple, list, set, frozenset))
        fits = several and towers and {*kinds} >= {*towers}
        expect(fits, f"`towers` among {', '.join(kinds)}", towers)
        for flag in (*_FLAGS, "listed"):
            check_flag(f"`{flag}`", getattr(method, flag, False))
        bases = "captum_clip.attr.ViTAttribution or ResNetAttribution, which have it"
        for needed in ("attribute", "attribute_targets"):
            function = getattr(method, needed, None)
            advice = f"derive the class from {bases}"
            expect(callable(function), f"a method {needed}", function, advice)
        # the same class may be defined anew, by a notebook's cell
        taken = METHODS.get(str(name), method)
        same = (taken.__module__, taken.__qualname__) == (method.__module__, method.__qualname__)
        other = "the report's methods" if name == MAMOOLER else taken.__name__
        expect(same and name != MAMOOLER, f"a `name` other than that of {other}", name)
    METHODS[method.name] = method
    return method


@cache
def _load_entry_points() -> None:
    """Register the methods of other packages, once a process; a broken package is left out."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:  # whatever somebody's import raises
            warnings.warn(
                f"the method {entry.name} of the package that defines {entry.value} cannot be "
                f"used ({type(error).__name__}: {error}).",
                stacklevel=2,
            )


def registered() -> dict[str, type[Any]]:
    """All methods by name, those of other packages included."""
    _load_entry_points()
    return METHODS


def methods_for(kind: str) -> tuple[str, ...]:
    """Names of the methods that are offered for a kind of tower."""
    methods = {n: m for n, m in registered().items() if getattr(m, "listed", True)}
    return tuple(name for name, method in methods.items() if kind in method.towers)


def default_method(tower: Tower) -> str:
    """The method where none is named: the one that points best (docs/appendix/measurements.md)."""
    has_pooling_head = isinstance(tower, TransformerTower) and tower.pooling == "attention"
    return "conservative" if has_pooling_head else "direct"


def report_method(tower: Tower) -> str:
    """The method of Mamooler's figures and tables, whose towers have no pooling head."""
    default = default_method(tower)
    return _OF_REPORT[tower.kind] if default == "direct" else default


def check_methods(names: Iterable[str]) -> None:
    """Raise InputError unless each name is a method, before a model is loaded."""
    for name in names:
        if name != MAMOOLER:
            MethodChoice.of(name)


def fitting_methods(
    methods: Iterable[str | type[Any]], tower: Tower, model: str
) -> "list[MethodChoice]":
    """Choose the methods, by default the tower's own, that explain a tower; else InputError."""
    named: list[str | type[Any] | None] = [*methods]
    choices = [MethodChoice.of(method, tower=tower) for method in named or [None]]
    fitting = [choice for choice in choices if choice.fits(tower.kind)]
    if not fitting:
        raise InputError(
            f"none of the methods {', '.join(choice.name for choice in choices)} fits "
            f"{model}, which has a {KINDS[tower.kind]}."
        )
    return fitting


def option_names(kind: type[Any]) -> tuple[list[str], bool]:
    """The options of a method's class, and whether it takes any others."""
    parameters = inspect.signature(kind.attribute_targets).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _RESERVED]
    takes_others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return names, takes_others


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
        """A class or a command-line name, with options from either side.

        On a tower None is its default method, and "mamooler" the report's. A `published` map is
        that of the paper, or with "sign=signed" less that of the negated target.
        """
        if tower is not None and method in (None, MAMOOLER):
            method = default_method(tower) if method is None else report_method(tower)
        stem, _, text = method.partition(":") if isinstance(method, str) else (method, "", "")
        kind = _class_named(method, stem, others)
        options = {**_parsed(str(method), text), **(options or {})}
        listed = ",".join(f"{name}={value}" for name, value in options.items())
        both_signs = published and options.get("sign") == "signed"
        if both_signs:
            del options["sign"]
        names, takes_others = option_names(kind)
        for option in options:
            if option in _RESERVED or not (takes_others or option in names):
                listed = ", ".join(names) or "none"
                raise InputError(f"{kind.name} has no option {option!r}; it has {listed}.")
        if published:
            options = {**getattr(kind, "paper_options", {}), **options}
        flags = {flag: getattr(kind, flag) for flag in _FLAGS if hasattr(kind, flag)}
        if issubclass(kind, ClipAttribution):
            kind.check_options(**options)
            flags |= kind.properties(**options)
        name = f"{kind.name}:{listed}" if listed else kind.name
        return cls(kind, options, name, **flags, both_signs=both_signs)

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
        """A map of each of K texts for one image (1, 3, H, W), and the cosines (1, K).

        A word's value is the sum over its tokens, below zero where it contradicts. With
        :math:`m(t)` for a method without signs it is :math:`m(t)` for the positive sign,
        :math:`-m(-t)` for the negative one, and :math:`m(t) - m(-t)` for both; a signed method
        gives both always.
        """
        expect(len(pixels) == 1, "words to explain for one image at a time", len(pixels))
        target = targets.image(clip, pixels)
        forward = TextSimilarity(clip, targets.concatenate([target, -target]))
        spans = [targets.word_tokens(clip, text) for text in texts]
        ids, mask = clip.text_inputs(texts)
        values, scores = self.method(forward).attribute_targets(
            ids, additional_forward_args=mask, return_scores=True, **self.options
        )
        if values.ndim != 3:
            raise InputError(f"{self.name} gives several values per token; leave `per` out.")
        positive, negative = values.cpu().unbind(1)  # (K, T)
        signed = -negative if sign == "negative" else positive - negative
        signed = positive if self.signed or sign == "positive" else signed
        maps = tuple(
            tuple((word, float(row[span.start : span.stop].sum())) for word, span in words)
            for row, words in zip(signed, spans, strict=True)
        )
        return maps, torch.as_tensor(scores[:, :1].T.cpu())


class PairMaps(NamedTuple):
    """Maps of a text and of each of its words, or of a reference image and of each of its cells.

    Attributes:
        names: of the K.
        maps: signed, (B, K, h, w): the whole first, then the shares of each part.
        scores: the cosine, then the share of each part, the sum of its map, (B, K).
        leave_one_out: what the cosine loses without the text, and without each word, (B, K); None
            of cells.
        norms: of these differences, (K,), 1 of the whole.
        cells: rows and columns of the reference's grid.
    """

    names: tuple[str, ...]
    maps: Tensor
    scores: Tensor
    leave_one_out: Tensor | None
    norms: Tensor
    cells: tuple[int, int] = (0, 0)


def pair_maps(clip: ClipAdapter, pixels: Tensor, other: str | Tensor, **options: Any) -> PairMaps:
    """The shares of images (B, 3, H, W) with one text, or with one image (1, 3, H, W).

    Start, end and padding of a text count in the whole alone.
    """
    side: Literal["text", "image"] = "text" if isinstance(other, str) else "image"
    method = DirectInteraction(ClipPairSimilarity(clip, side))
    others, mask = (other, None) if isinstance(other, Tensor) else clip.text_inputs(other)
    parts = method.attribute_pairs(pixels, others, mask, return_rest=True, **options)
    shares, rest = parts[0][:, 0], InteractionRest(*(share[:, 0] for share in parts[1]))
    cells = shares.flatten(1, -3)  # (B, T or h' w', h, w)
    whole = cells.sum(1) + rest.image
    cosine = whole.sum((-2, -1)) + rest.other.flatten(1).sum(1) + rest.constant
    norms, leave_one_out, size = torch.ones(1, device="cpu"), None, (0, 0)
    if isinstance(other, str):
        without = targets.words(clip, other)
        empty = targets.text(clip, "", allow_empty=True)
        gone = targets.concatenate([targets.text(clip, other) - empty, without])
        with torch.no_grad():
            leave_one_out = ClipSimilarity(clip, gone)(pixels) * gone.norms.to(pixels.device)
        spans = [span for _, span in targets.word_tokens(clip, other)]
        cells = torch.stack([cells[:, s.start : s.stop].sum(1) for s in spans], 1)
        names, norms = (other, *without.names), torch.cat([norms, without.norms.cpu()])
    else:
        size = (shares.shape[1], shares.shape[2])
        positions = product(*map(range, size))
        names = ("reference", *(f"row {row}, column {column}" for row, column in positions))
        norms = norms.expand(len(names))
    maps = torch.cat([whole[:, None], cells], 1).view(len(shares), -1, *shares.shape[-2:])
    scores = torch.cat([cosine[:, None], cells.sum((-2, -1))], 1)
    return PairMaps(names, maps, scores, leave_one_out, norms, size)


def _class_named(method: Any, stem: Any, others: Iterable[str]) -> type[Any]:
    """The class that is named by `stem`, or is it."""
    if stem == MAMOOLER:
        names = ", ".join(dict.fromkeys(_OF_REPORT.values()))
        raise InputError(
            f"method: {MAMOOLER} stands for each tower's own method in the report and takes no "
            f"options, got {method!r}; name the method itself ({names})."
        )
    methods = registered()
    named = {**methods, **{kind.__name__: kind for kind in methods.values()}}
    if stem in (*methods.values(), *named):
        return named[stem] if isinstance(stem, str) else stem
    hint = suggestion(str(stem), (*named, *others, MAMOOLER))
    listed = ", ".join(dict.fromkeys((*methods, *others)))
    raise InputError(
        f"method: expected one of {listed}, with options as in last-grad:heads=averaged, or a "
        f"class of captum_clip.attr; got {show(method)}{hint}."
    )


def _parsed(method: str, text: str) -> dict[str, Any]:
    """Options as on the command line: ``heads=averaged,start_layer=2``."""
    options: dict[str, Any] = {}
    for option in text.split(",") if text else []:
        name, equals, value = (piece.strip() for piece in option.partition("="))
        if not (name and equals and value):
            raise InputError(
                f"method: cannot read {option!r} in {method!r}; options look like "
                "last-grad:heads=averaged,start_layer=2."
            )
        options[name] = value
        with suppress(ValueError, SyntaxError):  # a number, a truth value or None, or else a text
            if isinstance(literal := literal_eval(value), (int, float, NoneType)):
                options[name] = literal
    return options
