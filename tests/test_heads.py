"""What heads say: TextSpan against the paper's equations, its control, ablation, ranks, figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip import load_clip, targets
from captum_clip.apps import heads
from captum_clip.attr import HeadVectors
from captum_clip.demo.catalog import concept_texts
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import CaptumClipError, InputError
from captum_clip.folders.storage import readable_images
from tests import builders
from tests.figure_parts import lines_of

RANDOM = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RANDOM, dtype=torch.float64)


def pool_of(rows: Tensor) -> targets.Target:
    return targets.embedding(rows, names=[f"text {index}" for index in range(len(rows))])


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    return [draw_scene(seed).image for seed in range(20)]


@pytest.fixture(scope="module")
def vectors(scenes: list[Any]) -> HeadVectors:
    return heads.head_vectors(load_clip("demo/vit"), scenes, batch_size=7)


def plain_span(outputs: Any, texts: Any, count: int) -> tuple[list[int], list[float]]:
    """Algorithm 1 of Gandelsman et al., one text and one image after the other, in float64.

    The chosen texts, and the share of the outputs' variance that their removal took.
    """
    outputs = outputs - outputs.mean(axis=0)
    span = np.linalg.pinv(outputs) @ outputs  # projects on the rows of the outputs
    texts = texts @ span
    whole, chosen, shares = np.square(outputs).sum(), [], []
    for _ in range(count):
        variances = [np.var([output @ text for output in outputs]) for text in texts]
        best = int(np.argmax(variances))
        direction = texts[best].copy()
        length = direction @ direction
        outputs = np.array([o - (o @ direction) / length * direction for o in outputs])
        texts = np.array([t - (t @ direction) / length * direction for t in texts])
        chosen.append(best)
        shares.append(1 - np.square(outputs).sum() / whole)
    return chosen, shares


@pytest.mark.parametrize("rank", [3, 8, 12])
def test_text_span_equals_the_algorithm_of_the_paper(rank: int) -> None:
    """Of outputs that fill the space, or lie in a part of it, away from zero."""
    outputs = normal(30, rank) @ normal(rank, 12) + 5
    pool = pool_of(normal(20, 12))
    found = heads.text_span(outputs, pool, 3)
    chosen, shares = plain_span(outputs.numpy(), pool.embeddings.numpy(), 3)
    assert found.texts == tuple(f"text {index}" for index in chosen)
    np.testing.assert_allclose(found.shares, shares, rtol=1e-9, atol=1e-12)


def test_text_span_of_a_head_of_a_model_equals_the_algorithm_of_the_paper(
    vectors: HeadVectors,
) -> None:
    pool = targets.text(load_clip("demo/vit"), concept_texts())
    for layer, head in ((5, 0), (3, 1), (0, 2)):
        outputs = vectors.heads[:, layer, head]
        found = heads.text_span(outputs, pool, 6)
        rows = pool.embeddings.double().numpy()
        chosen, shares = plain_span(outputs.double().numpy(), rows, 6)
        assert found.texts == tuple(pool.names[index] for index in chosen)
        np.testing.assert_allclose(found.shares, shares, rtol=0, atol=1e-6)


def test_text_span_finds_texts_that_were_planted_and_beats_random_ones() -> None:
    texts = torch.eye(16, dtype=torch.float64)
    weights = normal(40, 3) * torch.tensor([9.0, 3.0, 1.0])
    found = heads.text_span(weights @ texts[[4, 9, 1]] + 1, pool_of(texts), 5)
    assert found.texts == ("text 4", "text 9", "text 1")  # then nothing is left
    assert found.shares[-1] == pytest.approx(1)
    assert found.random < 0.6


def test_random_control_is_the_mean_share_of_as_many_random_texts() -> None:
    """By least squares on each draw, and the same again with the same seed."""
    outputs, pool = normal(30, 12), pool_of(normal(20, 12))
    found = heads.text_span(outputs, pool, 4, seed=3)
    generator, centered = torch.Generator().manual_seed(3), (outputs - outputs.mean(0)).numpy()
    shares = []
    for _ in range(16):
        rows = pool.embeddings[torch.randperm(20, generator=generator)[:4]].numpy()
        left = centered - centered @ rows.T @ np.linalg.inv(rows @ rows.T) @ rows
        shares.append(1 - np.square(left).sum() / np.square(centered).sum())
    assert found.random == pytest.approx(np.mean(shares), rel=1e-9)
    again, other = (heads.text_span(outputs, pool, 4, seed=seed) for seed in (3, 4))
    assert again.random == found.random
    assert other.texts == found.texts
    assert other.random != found.random


def test_heads_are_ranked_by_what_they_add(vectors: HeadVectors) -> None:
    """Along one direction, one for each image, or by their variance."""
    many = torch.nn.functional.normalize(vectors.embeddings.flip(0), dim=-1)
    for direction in (many[0], many):
        found = heads.rank_heads(vectors, direction)
        assert [*found.values()] == sorted(found.values(), reverse=True)
        for layer, head in ((0, 0), (2, 3), (5, 1)):
            rows = direction.expand(20, -1)
            added = [vectors.heads[i, layer, head] @ rows[i] for i in range(20)]
            assert found[layer, head] == pytest.approx(float(sum(added)) / 20, abs=1e-6)
    spread = heads.rank_heads(vectors)
    layer, head = next(iter(spread))
    whole = np.var(vectors.embeddings.numpy(), axis=0).sum()
    share = np.var(vectors.heads[:, layer, head].numpy(), axis=0).sum() / whole
    assert spread[layer, head] == pytest.approx(share, rel=1e-5)
    assert len(spread) == 24


def test_head_of_backgrounds_is_described_by_backgrounds() -> None:
    """In demo/vit the last layer's first head varies along backgrounds, others along things."""
    clip = load_clip("demo/vit")
    vectors = heads.head_vectors(clip, (draw_scene(seed).image for seed in range(60)))
    spans = heads.describe_heads(vectors, targets.text(clip, concept_texts()), count=4)
    backgrounds = {"grass", "sand", "sky", "snow", "water", "brick"}
    assert {*spans[5, 0].texts} <= backgrounds
    assert not {*spans[4, 1].texts} & backgrounds
    assert all(span.shares[-1] > span.random for span in spans.values())
    assert [span.value for span in spans.values()] == [*heads.rank_heads(vectors).values()]


def test_figure_and_table_have_the_texts_of_each_head(scenes: list[Any], vectors: Any) -> None:
    clip = load_clip("demo/vit")
    pool = targets.text(clip, concept_texts())
    spans = heads.describe_heads(vectors, pool, count=2)
    few = {head: spans[head] for head in ((5, 0), (4, 2))}
    written = " ".join(lines_of(heads.heads_figure(clip, scenes, vectors, few, examples=2)))
    for (layer, head), span in few.items():
        words = ", ".join(span.texts)
        assert f"layer {layer}, head {head}: {words}" in written
        added = vectors.heads[:, layer, head] @ targets.text(clip, span.texts[0]).embeddings[0]
        for value in added.sort(descending=True).values[:2]:
            assert f"{span.texts[0]} {value:+.3f}" in written
    lines = heads.heads_table(spans).decode().splitlines()
    first, span = next(iter(spans.items()))
    assert len(lines) == 1 + 2 * 24
    numbers = f"{first[0]},{first[1]},{span.value:.10g},{span.random:.10g}"
    assert lines[1] == f"{numbers},{span.texts[0]},{span.shares[0]:.10g}"


@pytest.mark.parametrize("head", [3, (1,)])
def test_what_is_no_head_has_no_label(head: Any) -> None:
    with pytest.raises(InputError, match="head_label: expected a layer and a head of it"):
        heads.head_label(load_clip("demo/vit"), head)


def test_long_texts_of_heads_leave_room_for_each_other(vectors: HeadVectors) -> None:
    clip, images = load_clip("demo/vit"), [draw_scene(seed).image for seed in range(20)]
    texts = ("a horse", *("a horse and a dog and a red heart and a car" for _ in range(20)))
    spans = {(5, head): heads.TextSpan(texts, (0.5,), 0.1) for head in range(2)}
    figure = heads.heads_figure(clip, images, vectors, spans, examples=1)
    texts_of: list[Any] = [text for axes in figure.axes for text in axes.texts]
    labels = [text for text in texts_of if text.get_ha() == "right"]
    first, second = (label.get_window_extent() for label in labels if label.get_text())
    assert second.y1 < first.y0 < first.y1 < figure.bbox.y1


def test_images_that_cannot_be_read_are_left_out(tmp_path: Any, scenes: list[Any]) -> None:
    for number in range(2):
        Image.fromarray(scenes[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    skipped: dict[Any, str] = {}
    paths = [tmp_path / name for name in ("0.png", "bad.png", "1.png", "none.png")]
    images = readable_images(paths, skipped, workers=2)
    found = heads.head_vectors(load_clip("demo/vit"), images)
    assert len(found.rest) == 2
    assert [*skipped] == [paths[1], paths[3]]
    with pytest.raises(InputError, match=r"none of the 2 images .*bad\.png"):
        list(readable_images([paths[1], paths[1]], {}))


WRONG: list[tuple[Any, str]] = [
    (lambda v: heads.text_span(v.heads[:1, 0, 0], pool_of(normal(3, 128)), 2), "two images or"),
    (lambda v: heads.text_span(v.heads, pool_of(normal(3, 128)), 2), "two images or more"),
    (lambda v: heads.text_span(v.heads[:, 0, 0], pool_of(normal(3, 128)), 0), "count of 1 or more"),
    (lambda v: heads.text_span(v.heads[:, 0, 0].half(), pool_of(normal(3, 128)), 2), "in float32"),
    (lambda v: heads.text_span(v.heads[:, 0, 0], pool_of(normal(3, 64)), 2), "texts in 128 dimens"),
    (lambda v: heads.describe_heads(v, v.rest), "a Target of texts in 128 dimensions, got T"),
    (lambda v: heads.rank_heads(v, normal(64)), "expected a direction .E,. or .N, E."),
    (lambda _: heads.head_vectors(load_clip("demo/vit"), []), "at least one image, got none"),
    (lambda _: heads.head_vectors(load_clip("demo/vit"), "a.png"), "images, in a list or one af"),
    (lambda _: heads.head_vectors(load_clip("demo/vit"), np.ones((9, 9, 3))), "images, in a list"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_heads_name_what_is_wrong(vectors: HeadVectors, call: Any, message: str) -> None:
    with pytest.raises(CaptumClipError, match=message):
        call(vectors)


def test_a_model_without_heads_is_refused() -> None:
    small = builders.open_clip_vit_mean()
    with pytest.raises(
        InputError, match="head_vectors: per: no attention, and so no head, reads a mean"
    ):
        heads.head_vectors(small.load(), small.images(1))
