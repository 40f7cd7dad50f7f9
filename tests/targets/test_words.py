"""Targets of the words of a text: by position, punctuation kept, never by regular expression."""

from __future__ import annotations

import pytest
import torch

from captum_clip import targets
from captum_clip.errors import TargetError
from tests.attr import cases
from tests.targets.test_text import encoded


@pytest.fixture
def clip():
    """An adapter of transformers."""
    return cases.adapter("hf_vit")


def assert_differences(clip, target, text, without):
    """The embeddings are enc(t) - enc(t without w), both unit; the norms their lengths."""
    rows = encoded(clip, [text]) - encoded(clip, without)
    lengths = rows.norm(dim=1)
    torch.testing.assert_close(target.norms, lengths, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target.embeddings, rows / lengths[:, None], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(target.embeddings.norm(dim=1), torch.ones(len(without)))


def test_every_word_gives_a_direction(clip):
    """All words by default, in order."""
    target = targets.words(clip, "a horse and a dog")
    assert target.names == ("a", "horse", "and", "a", "dog")
    without = [
        "horse and a dog",
        "a and a dog",
        "a horse a dog",
        "a horse and dog",
        "a horse and a",
    ]
    assert_differences(clip, target, "a horse and a dog", without)


def test_letter_a_does_not_touch_and(clip):
    """A word is a word, not a string inside others."""
    target = targets.words(clip, "a cat and banana", "a")
    assert target.names == ("a",)
    assert_differences(clip, target, "a cat and banana", ["cat and banana"])


def test_punctuation_stays_with_the_other_words(clip):
    """Names lose the outer punctuation, the text keeps that of its other words."""
    text = '"A horse," she said, (a big one)!'
    target = targets.words(clip, text, ["horse", "A", "one", "said"])
    assert target.names == ("horse", "A", "one", "said")
    without = [
        '"A she said, (a big one)!',
        'horse," she said, (a big one)!',
        '"A horse," she said, (a big',
        '"A horse," she (a big one)!',
    ]
    assert_differences(clip, target, text, without)


@pytest.mark.parametrize(
    ("text", "word", "without"),
    [
        ("learn c++ now", "c++", "learn now"),
        ("a (b and c", "(b", "a and c"),
        ("a [z] and .* b", ".*", "a [z] and b"),
        ("it costs $5 a+b", "a+b", "it costs $5"),
        ("a\\d b", "a\\d", "b"),
        ("the cat's dog", "cat's", "the dog"),
        ("a well-known dog", "well-known", "a dog"),
    ],
)
def test_characters_of_regular_expressions_are_characters(clip, text, word, without):
    """Nothing is a pattern."""
    target = targets.words(clip, text, [word])
    assert len(target) == 1
    assert_differences(clip, target, text, [without])


def test_span_gives_one_direction(clip):
    """Several words that stand together, found by their words."""
    text = "a woman with red hair, red shoes and red hair."
    target = targets.words(clip, text, ["red hair", "red shoes"])
    assert target.names == ("red hair", "red hair", "red shoes")
    without = [
        "a woman with red shoes and red hair.",
        "a woman with red hair, red shoes and",
        "a woman with red hair, and red hair.",
    ]
    assert_differences(clip, target, text, without)


def test_positions_pick_words(clip):
    """(start, stop) as in slices."""
    target = targets.words(clip, "a dog and a dog", [(4, 5), (0, 2), "and"])
    assert target.names == ("dog", "a dog", "and")
    assert_differences(clip, target, "a dog and a dog", ["a dog and a", "and a dog", "a dog a dog"])


def test_last_word_leaves_the_empty_text(clip):
    """Where nothing is left, the empty encoding is subtracted."""
    target = targets.words(clip, "horse")
    assert target.names == ("horse",)
    assert_differences(clip, target, "horse", [""])
    assert_differences(clip, targets.words(clip, "a horse", [(0, 2)]), "a horse", [""])


def test_white_space_does_not_matter(clip):
    """Split at any; what is left stays as it was written, here for a tokenizer of bytes."""
    text = " a  horse\tand\na\u00a0dog "
    target = targets.words(clip, text, ["a", "horse", "dog", (1, 5), (0, 5)])
    assert target.names == ("a", "a", "horse", "dog", "horse and a dog", "a horse and a dog")
    without = [
        "horse\tand\na\u00a0dog ",
        " a  horse\tand\u00a0dog ",
        " a\tand\na\u00a0dog ",
        " a  horse\tand\na ",
        " a ",
        "",
    ]
    assert_differences(clip, target, text, without)


@pytest.mark.parametrize("span", [(0, 0), (-1, 1), (0, 6), (0.0, 1), (0,), 3, (0, True)])
def test_bad_positions_are_refused(clip, span):
    """The text's length is said."""
    with pytest.raises(
        TargetError, match=r"in the text.*\(start, stop\) with 0 <= start < stop <= 5"
    ):
        targets.words(clip, "a dog and a cat", [span])


@pytest.mark.parametrize("text", ["", "   "])
def test_empty_text_has_no_words(clip, text):
    """Nothing to take away."""
    with pytest.raises(TargetError, match=r"is empty"):
        targets.words(clip, text)


@pytest.mark.parametrize("words", [[], ""])
def test_no_word_is_refused(clip, words):
    """An empty list is no way to say 'all'."""
    with pytest.raises(TargetError, match=r"words is empty|'' is not in the text"):
        targets.words(clip, "a dog", words)


def test_what_is_no_text_is_refused(clip):
    """A list of texts is not a text."""
    with pytest.raises(TargetError, match=r"expected texts, got \['a dog'\]"):
        targets.words(clip, ["a dog"])  # type: ignore[arg-type]


def test_word_whose_removal_changes_nothing_is_refused():
    """A zero direction names the word; OpenAI's tokenizer takes an HTML space as white space."""
    clip = cases.adapter("open_clip_vit")
    assert torch.equal(clip.tokenizer("a dog &nbsp;"), clip.tokenizer("a dog"))
    with pytest.raises(TargetError, match=r"'nbsp' has no direction.*nothing to explain"):
        targets.words(clip, "a dog &nbsp;", ["&nbsp;"])


def test_repeated_word_gives_a_direction_each(clip):
    """Each occurrence alone is left out."""
    target = targets.words(clip, "a dog and a dog", ["dog"])
    assert target.names == ("dog", "dog")
    assert_differences(clip, target, "a dog and a dog", ["a and a dog", "a dog and a"])


def test_part_of_a_word_is_not_in_the_text(clip):
    """Neither "well" nor "do" is a word of "a well-known dog"."""
    for word in ("well", "do", "dogs", "DOG", "."):
        with pytest.raises(TargetError, match=r"is not in the text, whose words are.*'dog'"):
            targets.words(clip, "a well-known dog", [word])


def test_punctuation_alone_is_a_word(clip):
    """A dash between spaces keeps its name."""
    target = targets.words(clip, "a dog - a cat", ["-"])
    assert target.names == ("-",)
    assert_differences(clip, target, "a dog - a cat", ["a dog a cat"])


def test_unicode_words_are_found(clip):
    """Letters of any script, typographic quotes, and an emoji."""
    text = "ein „großer“ Hund 🐶 и собака"
    target = targets.words(clip, text, ["großer", "собака", "🐶"])
    assert target.names == ("großer", "собака", "🐶")
    without = ["ein Hund 🐶 и собака", "ein „großer“ Hund 🐶 и", "ein „großer“ Hund и собака"]
    assert_differences(clip, target, text, without)


def test_span_across_a_comma_is_found(clip):
    """Inner punctuation of a span does not count either."""
    target = targets.words(clip, "a dog, a cat", ["dog a"])
    assert_differences(clip, target, "a dog, a cat", ["a cat"])
