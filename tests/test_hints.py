"""Hints are given of maps that mean little, and not of those that are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captum_clip import explain, load_clip, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from captum_clip.explaining.explanation import Explanation
from captum_clip.explaining.hints import SHARE, UNRELATED, compare
from captum_clip.models import ClipAdapter
from tests.experiments import printed
from tests.figure_parts import lines_of

SCENE = draw_scene(0, objects=["horse", "dog"]).image
LOW = "{:.0%} of unrelated texts fit better than “a rocket”: its map may mean little."


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    return load_clip("demo/vit")


def found(clip: ClipAdapter, texts: Any, **options: Any) -> Explanation:
    return explain(SCENE, texts, model=clip, hints=True, **options)


def test_texts_that_fit_have_no_hint(clip: ClipAdapter) -> None:
    assert found(clip, ["a horse", "a dog", "a horse and a dog"]).hints == ((),)


def test_a_text_that_does_not_fit_is_said_with_its_rank(clip: ClipAdapter) -> None:
    explanation = found(clip, ["a horse", "a rocket"])
    image = clip.encode_image(clip.preprocess(SCENE))
    cosines = (image @ clip.encode_text(UNRELATED).T)[0]
    share = float((cosines > explanation.scores[0, 1]).float().mean())
    assert share > SHARE
    assert explanation.hints == ((LOW.format(share),),)
    assert LOW.format(share) in " ".join(lines_of(explanation.plot()))
    several = found(clip, ["a rocket", "a taco"])  # each with a number of its own
    texts = [hint.partition("better than ")[2].partition(":")[0] for hint in several.hints[0]]
    assert texts == ["“a rocket”", "“a taco”"]
    assert several["a taco"].hints == ((several.hints[0][1],),)


def test_texts_that_share_a_word_are_not_unrelated(clip: ClipAdapter) -> None:
    raw, scores = torch.ones(1, 1, 7, 7), torch.tensor([[-2.0]])
    choice, images = MethodChoice.of("direct"), clip.preprocess(SCENE)
    for text in ("a rocket", "a Tiger, an owl."):
        [[share]], [[correlation]] = compare(clip, choice, images, [text], raw, scores)
        assert (share, correlation) == (1, 0)  # all others score higher; a constant map


def test_a_map_of_any_text_is_said(clip: ClipAdapter) -> None:
    [sentences] = found(clip, "a horse", method="rollout").hints
    assert sentences == (
        "The map of “a horse” is almost that of unrelated texts (correlation 1.00).",
    )


@pytest.mark.parametrize("method", ["direct", "last-grad"])
def test_the_correlation_is_that_with_the_mean_map_of_eight_unrelated_texts(
    clip: ClipAdapter, method: str
) -> None:
    images, choice = clip.preprocess(SCENE), MethodChoice.of(method)
    raw = explain(images, "a horse", model=clip, method=method)
    others = explain(images, list(UNRELATED[:8]), model=clip, method=method).maps["positive"]
    pair = torch.stack([raw.maps["positive"].flatten(), others.mean(1).flatten()])
    _, alike = compare(clip, choice, images, ["a horse"], raw.maps["positive"], raw.scores)
    assert alike.item() == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-5)


def test_each_image_has_its_own_hints(clip: ClipAdapter, tmp_path: Path) -> None:
    other = draw_scene(1, objects=["rocket"]).image
    explanation = explain([SCENE, other], "a rocket", model=clip, hints=True, batch_size=1)
    assert [len(sentences) for sentences in explanation.hints] == [1, 0]
    assert "unrelated texts fit better than “a rocket”" in " ".join(lines_of(explanation.plot()))
    assert Explanation.load(explanation.save(tmp_path / "a.npz")).hints == explanation.hints


@pytest.mark.parametrize(
    "one", [{"hints": False}, {"sign": "negative"}, {"side": "text"}, {"texts": "target"}]
)
def test_hints_are_of_one_image_unless_told_otherwise(
    clip: ClipAdapter, one: dict[str, Any]
) -> None:
    """Of several they are left out, and where there are none."""
    default = explain(SCENE, "a rocket", model=clip, sign="both")
    assert default.hints == found(clip, "a rocket").hints != ((),)
    assert explain([SCENE, SCENE], "a rocket", model=clip).hints == ()
    texts: Any = "a rocket"
    if one.pop("texts", None):
        texts = targets.text(clip, texts)
    assert explain(SCENE, texts, model=clip, **one).hints == ()


def test_a_tokenizer_of_few_words_costs_the_hints_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_clip("demo/vit")
    tokenize = clip.tokenize

    def refusing(texts: Any) -> Any:
        return tokenize(texts) if len(texts) < 32 else [{}[text] for text in texts]

    monkeypatch.setattr(clip, "tokenize", refusing)
    assert explain(SCENE, "a rocket", model=clip).hints == ()
    with pytest.raises(KeyError):
        explain(SCENE, "a rocket", model=clip, hints=True)


@pytest.mark.parametrize("options", [{"side": "text"}, {"sign": "negative"}, {"texts": "target"}])
def test_what_has_no_hints_is_refused(clip: ClipAdapter, options: dict[str, Any]) -> None:
    texts = options.pop("texts", "a horse")
    with pytest.raises(InputError, match="`hints=True` compares positive maps of texts"):
        found(clip, targets.text(clip, "a horse") if texts == "target" else texts, **options)


@pytest.mark.slow
def test_hints_are_right_on_scenes_that_nothing_was_chosen_on() -> None:
    """The table of docs/appendix/measurements.md, from fewer scenes."""
    script = Path(__file__).parents[1] / "docs" / "examples" / "hints.py"
    rows = [line.strip("| ").split(" | ") for line in printed(script, "--scenes", "5")[2:]]
    assert {row[0] for row in rows} == {"demo/vit", "demo/resnet"}
    for _, method, shown, absent, alike in rows:
        assert float(shown) <= 0.2
        assert float(absent) >= 0.6
        assert (float(alike) > 0.5) == (method == "rollout")
