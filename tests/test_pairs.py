"""explain(side="pairs"): which word, or which region of another image, answers which region."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import (
    ClipPairSimilarity,
    ClipSimilarity,
    DirectContribution,
    DirectInteraction,
    Explanation,
    explain,
    load_clip,
    targets,
    visualization,
)
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptumClipError, InputError
from captum_clip.visualization.charts import _strongest_matches

TEXT = "a horse and a dog"
SCENE = draw_scene(3, objects=["horse", "dog"])
OTHER = draw_scene(8, objects=["dog", "donut"])


@pytest.fixture(scope="module")
def clip() -> Any:
    return load_clip("demo/vit")


@pytest.fixture(scope="module")
def pairs(clip: Any) -> Explanation:
    return explain([SCENE.image, OTHER.image], TEXT, model=clip, side="pairs", sign="both")


@pytest.fixture(scope="module")
def matched(clip: Any) -> Explanation:
    return explain(SCENE.image, reference=OTHER.image, model=clip, side="pairs")


def test_words_have_their_shares_and_what_is_lost_without_them(
    clip: Any, pairs: Explanation
) -> None:
    """Words are sums over their tokens, the whole is the direct map, and the rest is in no word."""
    assert pairs.names == (TEXT, "a", "horse", "and", "a", "dog")
    pixels = clip.preprocess([SCENE.image, OTHER.image])
    ids, mask = clip.text_inputs([TEXT] * 2)
    method = DirectInteraction(ClipPairSimilarity(clip))
    shares = method.attribute((pixels, ids), None, mask)
    signed = pairs.maps["positive"] - pairs.maps["negative"]
    for index, (_, span) in enumerate(targets.word_tokens(clip, TEXT), 1):
        own = shares[:, span.start : span.stop].sum(1)
        torch.testing.assert_close(signed[:, index], own)
        torch.testing.assert_close(pairs.scores[:, index], own.sum((-2, -1)))
    forward = ClipSimilarity(clip, targets.text(clip, TEXT))
    direct = DirectContribution(forward).attribute(pixels)[:, 0]
    torch.testing.assert_close(signed[:, 0], direct, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pairs.scores[:, :1], forward(pixels).detach())
    assert pairs.leave_one_out is not None
    unit = clip.encode_image(pixels).detach()
    less = clip.encode_text(["a horse a dog", "a horse and a"]).detach()
    gone = pairs.scores[:, :1] - unit @ less.T
    torch.testing.assert_close(pairs.leave_one_out[:, [3, 5]], gone, rtol=1e-3, atol=1e-5)


def test_a_noun_lies_on_its_object(pairs: Explanation) -> None:
    for column, thing in ((2, 0), (5, 1)):
        large = pairs.heatmap("bilinear")["positive"][0, column]
        y, x = divmod(int(large.argmax()), 224)
        assert SCENE.objects[thing].mask[y, x]


def test_notes_have_both_numbers_and_weights_are_of_one_scale(pairs: Explanation) -> None:
    assert pairs.leave_one_out is not None
    share, lost = float(pairs.scores[1, 2]), float(pairs.leave_one_out[1, 2])
    wanted = f"share {share:+.3f}, lost {lost:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert pairs.shown()[1][2].note == wanted
    peaks = torch.maximum(*pairs.maps.values()).amax((-2, -1))[:, 1:]
    torch.testing.assert_close(
        torch.tensor([[s.weight for s in row[1:]] for row in pairs.shown()]),
        peaks / peaks.amax(1, keepdim=True),
    )
    drawn = [text.get_text() for axes in pairs.plot().axes for text in axes.texts]
    assert any(wanted in text for text in drawn)


def test_images_have_a_map_for_each_cell_of_the_reference(clip: Any, matched: Explanation) -> None:
    pixels, other = clip.preprocess(SCENE.image), clip.preprocess(OTHER.image)
    shares = DirectInteraction(ClipPairSimilarity(clip, "image")).attribute((pixels, other))
    assert matched.cells == shares.shape[1:3] == (7, 7)
    torch.testing.assert_close(matched.maps["positive"][:, 1:], shares.flatten(1, 2).clamp(min=0))
    one = matched.match(3, 2)
    assert one.names == ("row 3, column 2",)
    torch.testing.assert_close(one.maps["positive"][:, 0], shares[:, 3, 2].clamp(min=0))
    wanted = f"share {float(one.scores):+.3f}"
    drawn = [text.get_text() for axes in one.plot().axes for text in axes.texts]
    assert any(wanted.replace("-", "\N{MINUS SIGN}") in text for text in drawn)
    assert not any("cosine" in text for text in drawn)
    torch.testing.assert_close(matched.reference, clip.denormalize(other)[0])
    for place in ((7, 0), (0, -1), (0, 1.5)):
        with pytest.raises(InputError, match="from 0 to 6"):
            matched.match(*place)


def test_a_cell_is_counted_along_the_rows_of_the_references_grid() -> None:
    found = Explanation(
        maps={"positive": torch.arange(7.0).view(1, 7, 1, 1)},
        scores=torch.arange(7.0)[None],
        names=tuple("0123456"),
        norms=torch.ones(7),
        model="",
        method="",
        images=torch.rand(1, 3, 8, 8),
        reference=torch.rand(3, 8, 12),
        cells=(2, 3),
    )
    assert [found.match(row, column).names for row in (0, 1) for column in (0, 2)] == [
        ("1",),
        ("3",),
        ("4",),
        ("6",),
    ]


def test_the_strongest_match_of_two_images_is_what_both_show(matched: Explanation) -> None:
    shares = matched.maps["positive"][0, 1:].unflatten(0, matched.cells).numpy()
    on_other, on_image = next(_strongest_matches(shares))
    for region, scene, thing in ((on_other, OTHER, 0), (on_image, SCENE, 1)):
        row, column = divmod(int(region.argmax()), 7)
        cell = scene.objects[thing].mask[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert cell.mean() > 0.1


def test_matches_are_connected_cells_half_as_large_or_more_and_never_meet() -> None:
    shares = torch.zeros(3, 3, 4, 4)
    shares[0, 0, 1, 1], shares[0, 0, 1, 2], shares[0, 0, 3, 3] = 8, 4, 5  # (3, 3) is apart
    shares[0, 1, 1, 1], shares[2, 2, 0, 0] = 3, 4
    shares[2, 0, 1, 2] = 6  # the image's cell belongs to the first match
    shares[1, 2, 3, 0] = 1.9  # less than a quarter of the strongest
    found = list(_strongest_matches(shares.numpy()))
    cells = [[np.argwhere(part).tolist() for part in match] for match in found]
    assert cells == [[[[0, 0]], [[1, 1], [1, 2]]], [[[2, 2]], [[0, 0]]]]
    assert list(_strongest_matches(-shares.numpy())) == []


def test_each_image_has_its_cosine_with_the_reference_under_it(clip: Any) -> None:
    found = explain([SCENE.image, OTHER.image], reference=OTHER.image, model=clip, side="pairs")
    drawn = " ".join(text.get_text() for axes in found.plot().axes for text in axes.texts)
    for score in found.scores[:, 0].tolist():
        assert f"cosine {score:.3f}" in drawn
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"expected scores of shape \(1\), got \(2,\)"):
        visualization.matches(x, x, torch.ones(1, 2, 2, 2, 2), scores=found.scores[:, 0])


def test_pairs_come_back_from_a_file_and_by_index(
    pairs: Explanation, matched: Explanation, tmp_path: Path
) -> None:
    for number, found in enumerate((pairs, matched)):
        again = Explanation.load(found.save(tmp_path / f"{number}.npz"))
        for part in ("leave_one_out", "reference"):
            own, other = getattr(found, part), getattr(again, part)
            assert (own is None) == (other is None)
            assert own is None or torch.equal(own, other)
        assert again.cells == found.cells
        assert found.save(tmp_path / f"{number}.png").stat().st_size > 10_000
    assert pairs[1].leave_one_out is not None
    assert pairs.leave_one_out is not None
    assert torch.equal(pairs[1].leave_one_out, pairs.leave_one_out[1:])
    assert len(repr(matched)) < 500


def test_batches_and_options_are_those_of_the_method(clip: Any, pairs: Explanation) -> None:
    images = [SCENE.image, OTHER.image]
    apart = explain(images, TEXT, model=clip, side="pairs", sign="both", batch_size=1)
    torch.testing.assert_close(apart.maps["positive"], pairs.maps["positive"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(apart.leave_one_out, pairs.leave_one_out, rtol=1e-4, atol=1e-6)
    deep = explain(images, TEXT, model=clip, side="pairs", sign="both", depth="all")
    assert not torch.allclose(deep.maps["positive"], pairs.maps["positive"], atol=1e-3)
    assert deep.method == "direct interaction:depth=all"
    named = explain(images, TEXT, model=clip, side="pairs", sign="both", method="direct:depth=all")
    assert torch.equal(named.maps["positive"], deep.maps["positive"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": [TEXT, "a cat"]}, "takes one text apart, got"),
        ({}, "expected either texts or `reference`, got neither"),
        ({"texts": TEXT, "reference": OTHER.image}, "got both"),
        ({"texts": 3}, "takes one text apart, got 3"),
        ({"texts": b"a dog"}, "takes one text apart, got b'a dog'"),
        ({"texts": TEXT, "method": "last-grad"}, "got the method last-grad; leave the method out"),
        ({"texts": TEXT, "heads": "paired"}, "has no option 'heads'; it has baseline, start_layer"),
        ({"texts": TEXT, "hints": True}, "`hints=True` compares positive maps of texts"),
        ({"texts": TEXT, "words": True}, "whole texts word by word; leave `words=True` out"),
        ({"reference": OTHER.image, "side": "text"}, "`reference` has no words"),
        ({"reference": [OTHER.image] * 2}, "expected one reference image, got 2"),
        ({"texts": "a horse " * 20}, "the text has 42 tokens"),
    ],
)
def test_what_makes_no_pair_is_refused(clip: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptumClipError, match=message):
        explain(SCENE.image, **{"model": clip, "side": "pairs", **given})


def test_only_a_pair_of_images_has_matches(pairs: Explanation) -> None:
    with pytest.raises(InputError, match="explanation has no pair of images"):
        pairs.match(0, 0)
    image = torch.rand(1, 3, 8, 8)
    shares: Any
    for shares, message in (
        (torch.rand(1, 2, 2, 2), "expected shares"),
        (torch.rand(1, 0, 2, 2, 2), "expected shares"),
        ("words", "expected shares as a tensor or an array, got 'words'"),
        (torch.full((1, 2, 2, 2, 2), torch.nan), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            visualization.matches(image, image, shares)


def test_parts_of_pairs_must_belong_together(pairs: Explanation, matched: Explanation) -> None:
    whole: Any
    parts: Any
    wrong = (
        (pairs, {"leave_one_out": torch.zeros(1, 1)}),
        *((matched, {"cells": (n, n)}) for n in (3, -7)),
    )
    for whole, parts in wrong:
        with pytest.raises(InputError, match="do not belong together"):
            replace(whole, **parts)
