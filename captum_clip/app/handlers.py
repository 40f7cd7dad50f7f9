"""What happens at each click: inputs of the page -> what it shows next, or a sentence why not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ..attr.registry import MethodChoice, default_method, methods_for
from ..errors import CaptumClipError
from ..models.towers import Tower
from . import html
from .model_cache import ModelCache
from .queries import Query, Result, ask, heads, layers, pick, words

Detail = Literal["words", "layers", "heads"]
"""The tabs that are filled when they are opened, for one text at a time."""
View = Detail | Literal["texts"]
"""The tabs of the page."""

_KNOWN_AS: Final = {"last-grad": "Mamooler", "all-grad": "Chefer"}

_SPOKEN: Final = {
    "captum-clip models --vocabulary lists them": "they are listed below the questions",
    "sign='positive'": "\u201cfor it\u201d",
    "so there is nothing to keep per head; leave it out": "so it has no heads to show",
    "leave it out, or take a ViT": "choose a vision transformer",
}
"""What an error says to those who type commands or Python -> to those who look at the page."""


def offered_methods(tower: Tower) -> dict[str, str]:
    """The methods for a tower, its default first: as they are offered, as they are called.

    Those that follow the text stand before those that do not.
    """
    default = default_method(tower)
    choices = [MethodChoice.of(name) for name in methods_for(tower.kind)]
    choices.sort(key=lambda choice: (choice.name != default, not choice.needs_target, choice.name))
    notes = {c.name: _KNOWN_AS.get(c.name, "" if c.needs_target else "no text") for c in choices}
    return {f"{name} ({note})" if note else name: name for name, note in notes.items()}


@dataclass(frozen=True, eq=False)
class PageState:
    """The HTML that the page shows in each of its tabs, and a sentence of what went wrong."""

    result: Result | None = None  # what later clicks go on from
    cards: str = html.WELCOME
    words: str = ""
    layers: str = ""
    heads: str = ""
    problem: str = ""


def show(cache: ModelCache, query: Query, before: PageState, view: View = "texts") -> PageState:
    """Answer a query; if that cannot be, the maps of the one before stay, and it is said.

    Of the other views the one that is open is filled too.
    """
    try:
        result = ask(cache, query)
    except CaptumClipError as error:
        kept = "" if before.result is None else " The maps are still those of the query before."
        return replace(before, problem=f"{sentence(error)}{kept}")
    state = PageState(result, html.cards(result))
    return state if view == "texts" else open_view(cache, state, view)


def pick_word(cache: ModelCache, before: PageState, text: int, word: int) -> PageState:
    """Show a word of a text; if that cannot be, all stays as it was."""
    if before.result is None:
        return before
    try:
        result = pick(cache, before.result, text, word)
    except CaptumClipError as error:
        return replace(before, problem=sentence(error))
    return replace(before, result=result, cards=html.cards(result), problem="")


def open_view(cache: ModelCache, before: PageState, view: Detail, text: int = 0) -> PageState:
    """Fill the view of a text's words, layers or heads, with the reason where there are none."""
    result = before.result
    try:
        if result is None:
            shown = html.WELCOME
        elif view == "words":
            shown = html.word_row(result, text, words(cache, result, text))
        elif view == "heads":
            shown = html.head_cards(result, text, heads(cache, result, text))
        else:
            shown = html.layer_rows(result, text, *layers(cache, result, text))
    except CaptumClipError as error:
        shown = html.problem(sentence(error))
    details: dict[str, Any] = {view: shown}
    return replace(before, **details)


def methods_of(cache: ModelCache, model: str) -> tuple[dict[str, str], str, str]:
    """The methods of a model, the one it starts with, and a sentence if it cannot be loaded."""
    try:
        tower = cache.get(model).tower
    except CaptumClipError as error:
        return {}, "", sentence(error)
    return offered_methods(tower), default_method(tower), ""


def sentence(error: Exception) -> str:
    """An error as it is said in the page: without the name of the function that raised it."""
    text = " ".join(str(error).split())
    for typed, spoken in _SPOKEN.items():
        text = text.replace(typed, spoken)
    caller, colon, rest = text.partition(": ")
    if colon and " " not in caller and rest:
        text = rest
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
