"""A changed model is explained as it computes, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captum_clip import ClipSimilarity, LastGradAttention, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import UnsupportedModelError
from tests.attr import running
from tests.attr.causes import CAUSES
from tests.attr.changes import placed
from tests.attr.judged import judge, methods_of, similarity_of


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # where a graph begins
@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_of_wrong_maps_is_explained_as_it_computes_or_refused(cause: str) -> None:
    change = CAUSES[cause]
    answers = {method: judge(change, method) for method in methods_of(change)}
    wrong = {m: a for m, a in answers.items() if a not in ("right", "refused", "unknown")}
    assert wrong == {}


@pytest.mark.parametrize(
    "cause", [n for n, c in CAUSES.items() if c.instead and not c.scores and not c.before]
)
def test_what_has_the_right_maps_computes_the_same_scores(cause: str) -> None:
    change, scores = CAUSES[cause], []
    assert change.instead is not None
    for make in (change.make, change.instead):
        with placed(running.shared(change.tower), "") as place, torch.no_grad():
            make(place)
            scores.append(similarity_of(change.tower)(change.pixels))
    torch.testing.assert_close(*scores, rtol=change.tolerance, atol=change.tolerance)


def test_a_function_of_torch_that_is_replaced_after_a_call_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is of the kind of a look, though no module changed."""
    clip = load_clip("demo/vit")
    forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
    images, method = clip.preprocess([draw_scene(0).image]), LastGradAttention(forward)
    method.attribute(images)
    plain = F.scaled_dot_product_attention
    rolled = lambda *args, **options: plain(*args, **options).roll(1, -2)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", rolled)
    with pytest.raises(UnsupportedModelError, match="what follows the attention of layer 0"):
        method.attribute(images)
