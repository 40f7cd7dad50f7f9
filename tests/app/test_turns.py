"""Each click ends with new pictures or with a sentence."""

from __future__ import annotations

import pytest

from captum_clip.app import turns
from captum_clip.app.answers import Question
from captum_clip.app.cards import WELCOME
from captum_clip.app.shelf import Shelf
from captum_clip.attr.registry import default_method, methods_for
from captum_clip.demo.scenes import draw_scene

IMAGE = draw_scene(0, objects=["horse", "dog"]).image


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf()


def ask(shelf: Shelf, texts: str, *, model: str = "demo/vit", layered: bool = False) -> turns.Turn:
    question = Question(IMAGE, texts, model, default_method(shelf.get(model).tower))
    return turns.show(shelf, question, with_layers=layered)


def test_show_gives_cards_and_no_problem(shelf: Shelf) -> None:
    turn = ask(shelf, "a horse")
    assert turn.answer is not None
    assert (turn.problem, turn.layers) == ("", "")
    assert "horse" in turn.cards


def test_show_leaves_no_old_maps_beside_a_problem(shelf: Shelf) -> None:
    turn = ask(shelf, "a unicorn")
    assert turn.problem.startswith("The demo models do not know 'unicorn'")
    assert (turn.answer, turn.cards, turn.layers) == (None, WELCOME, "")


def test_show_fills_the_layer_view_where_it_is_open(shelf: Shelf) -> None:
    assert "layer 5" in ask(shelf, "a horse", layered=True).layers
    turn = ask(shelf, "a horse", model="demo/resnet", layered=True)
    assert "has none of" in turn.layers
    assert turn.problem == ""
    assert turn.answer is not None


def test_a_word_that_cannot_be_shown_changes_nothing_else(shelf: Shelf) -> None:
    before = ask(shelf, "a horse")
    after = turns.pick_word(shelf, before, 0, 7)
    assert "no longer there" in after.problem
    assert (after.answer, after.cards) == (before.answer, before.cards)
    assert turns.pick_word(shelf, after, 0, 2).problem == ""


def test_clicks_before_a_question_do_nothing(shelf: Shelf) -> None:
    empty = turns.Turn()
    assert turns.pick_word(shelf, empty, 0, 1) == empty
    assert turns.open_layers(shelf, empty).layers == WELCOME


def test_every_method_is_offered_for_its_tower(shelf: Shelf) -> None:
    for name in ("demo/vit", "demo/resnet"):
        tower = shelf.get(name).tower
        assert sorted(turns.offered_methods(tower).values()) == sorted(methods_for(tower.kind))
    for model in shelf.names:
        methods, first, problem = turns.methods_of(shelf, model)
        assert first in methods.values()
        assert problem == ""


def test_a_model_that_cannot_be_loaded_is_said(shelf: Shelf) -> None:
    methods, first, problem = turns.methods_of(shelf, "nonsense")
    assert (methods, first) == ({}, "")
    assert problem.startswith("'nonsense' is not offered here")
