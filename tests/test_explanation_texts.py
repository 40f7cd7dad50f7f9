"""One text of an explanation is had by its name, and all scores as a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_clip import Explanation, explain
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError

SCENES = [draw_scene(0, objects=["horse", "dog"]).image, draw_scene(1).image]
TEXTS = ["a horse", "a dog", "a rocket"]
SENTENCE = "a horse and a dog"


def asked(*texts: str, images: Any = SCENES, **options: Any) -> Explanation:
    return explain(images, list(texts), model="demo/vit", **options)


def lines_of(found: Explanation) -> str:
    return " | ".join(text.get_text() for axes in found.plot().axes for text in axes.texts)


@pytest.fixture(scope="module")
def found() -> Explanation:
    return asked(*TEXTS, sign="both", hints=True)


def test_a_text_is_had_by_its_name(found: Explanation) -> None:
    """With all images, which are what is counted and iterated over."""
    dog, alone = found["a dog"], asked("a dog", sign="both")
    every: Any = found
    assert (dog.names, len(dog), len(found), len(list(every))) == (("a dog",), 2, 2, 2)
    for sign in found.maps:
        assert torch.equal(dog.maps[sign], found.maps[sign][:, 1:2])
        torch.testing.assert_close(dog.maps[sign], alone.maps[sign])
    assert torch.equal(dog.scores, found.scores[:, 1:2])
    assert torch.equal(found[1]["a dog"].scores, found["a dog"][1].scores)
    assert "a rocket" in lines_of(found["a rocket"])
    assert "a rocket" in found["a rocket"].hints[0][0]
    assert dog.hints[0] == ()  # whose hint is about the rocket


def test_a_heatmap_of_one_text(found: Explanation) -> None:
    heatmap = found["a dog"].heatmap("bicubic")
    assert heatmap["positive"].shape == (2, 1, 224, 224)
    every = found.heatmap("bicubic")
    assert every["positive"].shape == (2, 3, 224, 224)
    assert torch.equal(every["negative"][:, 1:2], heatmap["negative"])


def test_a_missing_text_names_those_that_are_there(found: Explanation) -> None:
    message = "there is no text 'a cat'; the texts are 'a horse', 'a dog', 'a rocket'."
    with pytest.raises(InputError, match=f"^Explanation: {message}$"):
        found["a cat"]
    for mode in ("a cat", 0):
        with pytest.raises(InputError, match=r"^heatmap: expected a mode of bilinear, .*, got "):
            found.heatmap(mode)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        found[2]


def test_a_word_has_its_share_where_words_are_parts() -> None:
    pairs = asked(SENTENCE, side="pairs")
    dog = pairs["dog"]
    wanted = f"share {float(pairs.scores[0, 5]):+.3f}"
    assert dog.shown()[0][0].note == dog["dog"].shown()[0][0].note == wanted
    assert wanted in lines_of(dog)
    assert "lost" not in lines_of(dog)
    assert f"cosine {float(pairs.scores[0, 0]):.3f}" in lines_of(pairs[SENTENCE])
    matched = explain(SCENES[0], reference=SCENES[1], model="demo/vit", side="pairs")
    cell = matched["row 3, column 2"]
    assert torch.equal(cell.maps["positive"], matched.match(3, 2).maps["positive"])
    assert cell.shown() == matched.match(3, 2).shown()
    assert f"cosine {float(matched.scores[0, 0]):.3f}" in lines_of(matched["reference"])


def test_a_word_has_the_cosine_of_its_direction() -> None:
    words = asked(SENTENCE, words=True)
    assert f"cosine {float(words.scores[0, 2]):.3f}" in lines_of(words["horse"])
    assert torch.equal(words["a"].maps["positive"], words.maps["positive"][:, 1:2])  # the first
    both = asked(TEXTS[0], SENTENCE, side="both", images=SCENES[0])
    assert both[SENTENCE].text_maps == both.text_maps[1:]
