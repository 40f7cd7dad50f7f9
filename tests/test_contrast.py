"""`explain(image, a, against=b)` is the target ``a - b``, in one map of two colors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import explain, targets
from captum_clip.attr import DirectContribution
from captum_clip.errors import CaptumClipError, InputError, TargetError
from captum_clip.explaining.explanation import Explanation
from captum_clip.models import ClipAdapter
from captum_clip.targets.similarity import ClipSimilarity
from captum_clip.visualization import NEGATIVE, POSITIVE
from captum_clip.visualization.colors import blend
from tests import builders
from tests.samples import picture

CAT, DOG = "a cat", "a dog"


@pytest.fixture(scope="module")
def clip() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


@pytest.fixture(scope="module")
def found(clip: ClipAdapter) -> Explanation:
    return explain([picture(0), picture(1)], CAT, against=DOG, model=clip)


def test_it_is_the_map_of_the_difference_of_two_unit_embeddings(
    clip: ClipAdapter, found: Explanation
) -> None:
    a, b = clip.encode_text([CAT, DOG]).detach()
    images = clip.preprocess([picture(0), picture(1)])
    target = targets.embedding(a - b)
    signed = DirectContribution(ClipSimilarity(clip, target)).attribute_targets(images)
    torch.testing.assert_close(found.maps["positive"], signed.clamp(min=0))
    torch.testing.assert_close(found.maps["negative"], (-signed).clamp(min=0))
    image = clip.encode_image(images).detach()
    torch.testing.assert_close((found.scores * found.norms)[:, 0], image @ a - image @ b)
    by_hand = targets.text(clip, CAT) - targets.text(clip, DOG)
    assert found.names == by_hand.names == ("a cat - a dog",)
    same = explain([picture(0), picture(1)], by_hand, sign="both", model=clip)
    torch.testing.assert_close(same.maps, found.maps)


def test_the_picture_has_both_signs_in_one_map_and_names_both_texts(found: Explanation) -> None:
    figure = found.plot(alpha=0.5, original=False)
    assert len(figure.axes) == 4  # two images, with a map each
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["for a cat", "for a dog"]
    difference = float(found.scores[0] * found.norms)
    written = [text.get_text().replace("\n", " ") for text in figure.axes[1].texts]
    assert "a cat rather than a dog" in written
    assert f"cosines differ by {difference:+.3f}".replace("-", "−") in written
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    image, one = figure.axes[0].images[0].get_array(), found[0].heatmap(interpolation="bicubic")
    above, below = (one[sign][0, 0].numpy() for sign in ("positive", "negative"))
    pixels = np.asarray(image, dtype=np.float32)
    for up, down, colors in ((above, below, POSITIVE), (below, above, NEGATIVE)):
        only = (up > 0) & (down == 0)
        assert only.any()
        np.testing.assert_allclose(drawn[only], blend(pixels, up, colors, 0.5)[only], atol=1e-6)


def test_one_sign_is_drawn_as_that_of_a_text(clip: ClipAdapter) -> None:
    one = explain(picture(), CAT, against=DOG, sign="positive", model=clip)
    assert list(one.maps) == ["positive"]
    [legend] = one.plot().legends
    assert [text.get_text() for text in legend.get_texts()] == ["low to high"]


def test_a_file_keeps_the_two_texts(found: Explanation, tmp_path: Path) -> None:
    again = Explanation.load(found.save(tmp_path / "found.npz"))
    assert again.contrast == (CAT, DOG)
    assert len(again.plot().axes) == 4


@pytest.mark.parametrize(
    ("texts", "options", "error", "said"),
    [
        ([CAT, "sky"], {}, TargetError, r"`against` needs exactly one text, got \['a cat', 'sky'"),
        (CAT, {"side": "text"}, InputError, "`against` contrasts two texts"),
        (CAT, {"words": True}, InputError, "in the image; leave `words=True` out"),
        (CAT, {"against": [DOG]}, TargetError, "expected one text as `against`, got"),
        (CAT, {"against": CAT}, TargetError, "'a cat - a cat' has no direction"),
        (CAT, {"against": " "}, TargetError, "' ' is empty"),
        (CAT, {"hints": True}, InputError, "`hints=True` compares"),
        (CAT, {"method": "rollout"}, InputError, "does not depend on the target"),
        (None, {"reference": picture()}, InputError, "leave `reference`"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(
    clip: ClipAdapter,
    texts: Any,
    options: dict[str, Any],
    error: type[CaptumClipError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        explain(picture(), texts, model=clip, **{"against": DOG, **options})
