"""Each click ends with new pictures or with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from captum_clip.app import handlers
from captum_clip.app.handlers import PageState, View, sentence
from captum_clip.app.html import WELCOME, problem
from captum_clip.app.model_cache import ModelCache
from captum_clip.app.queries import Query
from captum_clip.attr.registry import default_method, methods_for
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from tests import builders

IMAGE = draw_scene(0, objects=["horse", "dog"]).image


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    return ModelCache()


def ask(
    cache: ModelCache,
    texts: str,
    before: PageState | None = None,
    *,
    model: str = "demo/vit",
    view: View = "texts",
) -> PageState:
    query = Query(IMAGE, texts, model, default_method(cache.get(model).tower))
    return handlers.show(cache, query, before or PageState(), view)


def test_show_gives_cards_and_no_problem(cache: ModelCache) -> None:
    turn = ask(cache, "a horse")
    assert turn.result is not None
    assert (turn.problem, turn.layers) == ("", "")
    assert "horse" in turn.cards


def test_a_problem_leaves_the_maps_and_says_so(cache: ModelCache) -> None:
    first = ask(cache, "a unicorn")
    assert first.problem.startswith("The demo models do not know 'unicorn'")
    assert first.problem.endswith("they are listed below the questions.")
    assert (first.result, first.cards, first.layers) == (None, WELCOME, "")
    before = ask(cache, "a horse", view="layers")
    after = ask(cache, "a unicorn", before, view="layers")
    assert after.problem == f"{first.problem} The maps are still those of the query before."
    fields = ("result", "cards", "words", "layers", "heads")
    assert all(getattr(after, name) is getattr(before, name) for name in fields)
    assert ask(cache, "a dog", after).problem == ""


def test_show_fills_the_layer_view_where_it_is_open(cache: ModelCache) -> None:
    assert "layer 5" in ask(cache, "a horse", view="layers").layers
    turn = ask(cache, "a horse", model="demo/resnet", view="layers")
    assert "has none" in turn.layers
    assert turn.problem == ""
    assert turn.result is not None


def test_show_fills_the_view_of_heads_where_it_is_open(cache: ModelCache) -> None:
    state = ask(cache, "a horse", view="heads")
    assert "layer 3, head 2" in state.heads
    assert state.layers == ""
    assert "orange" in handlers.open_view(cache, state, "words").words.lower()
    other = handlers.open_view(cache, state, "layers")
    assert "layer 5" in other.layers
    assert other.heads == state.heads
    assert "head 4 of the pool" in ask(cache, "a horse", model="demo/resnet", view="heads").heads


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            builders.open_clip_vit_mean,
            "A mean of patches is read by no attention, so it has no heads to show.",
        ),
        (builders.align, "Average pooling has no heads; choose a vision transformer."),
    ],
)
def test_a_tower_without_heads_is_a_sentence_in_their_view(
    build: Callable[[], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps of the texts are there all the same."""
    monkeypatch.setattr("captum_clip.app.model_cache.load_clip", lambda *_, **__: build().load())
    state = ask(ModelCache(), "a horse", view="heads")
    assert state.heads == problem(said)
    assert state.problem == ""
    assert "horse" in state.cards


def test_a_word_that_cannot_be_shown_changes_nothing_else(cache: ModelCache) -> None:
    before = ask(cache, "a horse")
    after = handlers.pick_word(cache, before, 0, 7)
    assert "no longer there" in after.problem
    assert (after.result, after.cards) == (before.result, before.cards)
    assert handlers.pick_word(cache, after, 0, 2).problem == ""


def test_clicks_before_a_question_do_nothing(cache: ModelCache) -> None:
    empty = PageState()
    assert handlers.pick_word(cache, empty, 0, 1) == empty
    assert handlers.open_view(cache, empty, "layers").layers == WELCOME
    assert handlers.open_view(cache, empty, "heads").heads == WELCOME


def test_every_method_is_offered_for_its_tower(cache: ModelCache) -> None:
    for name in ("demo/vit", "demo/resnet"):
        tower = cache.get(name).tower
        assert sorted(handlers.offered_methods(tower).values()) == sorted(methods_for(tower.kind))
    for model in cache.names:
        methods, first, problem = handlers.methods_of(cache, model)
        assert first in methods.values()
        assert problem == ""


def test_a_model_that_cannot_be_loaded_is_said(cache: ModelCache) -> None:
    methods, first, problem = handlers.methods_of(cache, "nonsense")
    assert (methods, first) == ({}, "")
    assert problem.startswith("'nonsense' is not offered here")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("targets.text: 'x' is empty", "'x' is empty."),
        ("the text 'a: b' is long.", "The text 'a: b' is long."),
        ("two\n lines: here", "Two lines: here."),
        ("load_clip('x'): no model", "No model."),
        ("Take sign='positive', or wait.", "Take \u201cfor it\u201d, or wait."),
    ],
)
def test_sentence_is_one_sentence_without_the_caller(message: str, said: str) -> None:
    assert sentence(InputError(message)) == said
