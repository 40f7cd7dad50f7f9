"""What happens at each click: inputs of the page -> what it shows next, or a sentence why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..attr.registry import MethodChoice, default_method, methods_for
from ..errors import CaptumClipError
from ..models.towers import Tower
from . import cards
from .answers import Answer, Question, ask, layers, pick, sentence
from .shelf import Shelf

_KNOWN_AS = {"last-grad": "report", "all-grad": "Chefer"}


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
class Turn:
    """What the page shows.

    Attributes:
        answer: what later clicks go on from; None where nothing was found.
        cards: HTML of the texts' maps.
        layers: HTML of the layer view.
        problem: a sentence, empty where all went well.
    """

    answer: Answer | None = None
    cards: str = cards.WELCOME
    layers: str = ""
    problem: str = ""


def show(shelf: Shelf, question: Question, *, with_layers: bool = False) -> Turn:
    """Answer a question; old maps do not stay beside the reason why there are no new ones."""

    def turn() -> Turn:
        answer = ask(shelf, question)
        found = Turn(answer, cards.cards(answer))
        return open_layers(shelf, found) if with_layers else found

    return _said(turn, Turn())


def pick_word(shelf: Shelf, before: Turn, text: int, word: int) -> Turn:
    """Show a word of a text; if that cannot be, all stays as it was."""

    def turn() -> Turn:
        if before.answer is None:
            return before
        answer = pick(shelf, before.answer, text, word)
        return replace(before, answer=answer, cards=cards.cards(answer), problem="")

    return _said(turn, before)


def open_layers(shelf: Shelf, before: Turn, text: int = 0) -> Turn:
    """Fill the layer view, with the reason where there is none."""
    if before.answer is None:
        return replace(before, layers=cards.WELCOME)
    try:
        found = layers(shelf, before.answer, text)
    except CaptumClipError as error:
        return replace(before, layers=cards.problem(sentence(error)))
    return replace(before, layers=cards.layer_rows(found))


def methods_of(shelf: Shelf, model: str) -> tuple[dict[str, str], str, str]:
    """The methods of a model, the one it starts with, and a sentence if it cannot be loaded."""
    try:
        tower = shelf.get(model).tower
    except CaptumClipError as error:
        return {}, "", sentence(error)
    return offered_methods(tower), default_method(tower), ""


def _said(turn: Callable[[], Turn], otherwise: Turn) -> Turn:
    try:
        return turn()
    except CaptumClipError as error:
        return replace(otherwise, problem=sentence(error))
