"""A map depends on nothing of a score that the image does not change: map(a y + b) = a map(y)."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, TextSimilarity, attr, load_clip, targets
from captum_clip.attr import registry
from captum_clip.demo.scenes import draw_scene
from tests.attr import cases

Score = Callable[[Tensor], Tensor]
TOWERS = ["hf_vit", "open_clip_vit_mean", "siglip", "open_clip_resnet"]
CHAINED = ("all-grad", "last-grad")
"""Equations 5 and 6 chain gradients, so a factor of the score changes their maps."""

torch.manual_seed(3)
TEXTS = cases.embeddings(3)
PRIOR = torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)
PROBE = nn.Linear(24, 3).double()
MLP = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 3)).double()


def cosine(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=-1) @ TEXTS.T


HEADS: dict[str, Score] = {
    "cosine": cosine,
    "logits per image": lambda embedding: 117.3 * cosine(embedding) - 12.9,
    "cosine and prior": lambda embedding: cosine(embedding) + PRIOR,
    "probe with bias": PROBE,
    "cosine and probe": lambda embedding: cosine(embedding) + PROBE(embedding),
    "MLP": MLP,
}
"""What people score an embedding with."""


def forward_of(name: str, head: Score) -> Score:
    """A user's own forward function."""
    model = cases.built(name, torch.float64).model
    return lambda images: head(cases.embed(model, images))


@cache
def methods(name: str) -> list[str]:
    kind = cases.adapter(name).tower.kind
    return [each for each in registry.methods_for(kind) if not each.startswith("cam")]


def explained(name: str, method: str, head: Score) -> tuple[Tensor, Tensor]:
    """Maps (B, K, h, w), and the rest (B, K) of a method that has one."""
    model = cases.built(name, torch.float64).model
    attribution = attr.METHODS[method](forward_of(name, head), model)
    images = cases.images(name, torch.float64, 2)
    if not attribution.additive:
        return attribution.attribute_targets(images), torch.zeros(())
    maps, rest = attribution.attribute_targets(images, return_rest=True)
    return maps, rest


def off(maps: Tensor, wanted: Tensor) -> float:
    return float((maps - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize(
    ("name", "method", "kind"),
    [
        *(("hf_vit", method, kind) for method in methods("hf_vit") for kind in HEADS),
        *(
            (name, method, kind)
            for name in TOWERS[1:]
            for method in methods(name)
            for kind in ("logits per image", "MLP")
        ),
    ],
)
def test_a_factor_scales_a_map_and_a_constant_leaves_it(name: str, method: str, kind: str) -> None:
    draw = random.Random(f"{name} {method} {kind}")
    factor, constant = 10 ** draw.uniform(-1, 2), draw.uniform(-50, 50)
    if method in CHAINED:
        factor = 1.0
    maps, rest = explained(name, method, HEADS[kind])
    changed = explained(name, method, lambda e: factor * HEADS[kind](e) + constant)
    needs_target = attr.METHODS[method].needs_target
    assert off(changed[0], factor * maps if needs_target else maps) < 1e-8
    if attr.METHODS[method].additive:
        torch.testing.assert_close(changed[1], factor * rest + constant, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["logits per image", "cosine and prior"])
@pytest.mark.parametrize("method", ["direct", "conservative", "removal", "patches", "legrad"])
@pytest.mark.parametrize("name", ["hf_vit"])
def test_what_is_a_cosine_but_for_a_constant_has_the_map_of_the_cosine(
    name: str, method: str, kind: str
) -> None:
    factor = 117.3 if kind == "logits per image" else 1.0
    images = cases.images(name, torch.float64, 2)
    similarity = cases.similarity(name, torch.float64, 3)
    wanted = attr.METHODS[method](similarity).attribute_targets(images)
    assert off(explained(name, method, HEADS[kind])[0], factor * wanted) < 1e-9


def test_the_direction_of_a_probe_is_its_weight_whatever_its_bias() -> None:
    clip, images = cases.adapter("hf_vit", torch.float64), cases.images("hf_vit", torch.float64, 2)
    similarity = cases.similarity("hf_vit", torch.float64)
    vectors = attr.DirectContribution(similarity).vectors(images)  # (B, h, w, E), of unit length
    lengths = cases.embed(clip.model, images).norm(dim=-1)
    wanted = torch.einsum("bhwe,ke,b->bkhw", vectors, PROBE.weight, lengths)
    assert off(explained("hf_vit", "direct", PROBE)[0], wanted.detach()) < 1e-9


@pytest.mark.parametrize("method", ["direct", "conservative"])
def test_an_mlp_is_followed_along_its_gradient_alone(method: str) -> None:
    """What the gradient leaves of the score is in the rest."""
    images = cases.images("hf_vit", torch.float64, 2)[:1].expand(2, -1, -1, -1)
    model = cases.built("hf_vit", torch.float64).model
    embedding = cases.embed(model, images).detach().requires_grad_()
    values = MLP(embedding)
    (slope,) = torch.autograd.grad(values[0, 1], embedding)
    linear = attr.METHODS[method](forward_of("hf_vit", lambda e: (e * slope[0]).sum(-1)), model)
    own = attr.METHODS[method](forward_of("hf_vit", MLP), model)
    assert off(own.attribute(images, target=1), linear.attribute(images)) < 1e-9


class Counted:
    """A cosine with a bias that may change, and a count of its calls."""

    def __init__(self, bias: float = 0.0) -> None:
        self.model = cases.built("hf_vit", torch.float64).model
        self.texts = TEXTS
        self.bias = bias
        self.calls = 0

    def __call__(self, images: Tensor, *prior: Tensor) -> Tensor:
        self.calls += 1
        cosine: Tensor = F.normalize(cases.embed(self.model, images), dim=-1) @ self.texts.T
        return cosine + self.bias + (prior[0] if prior else torch.zeros(()))


IMAGES = cases.images("hf_vit", torch.float64, 2)


def test_later_calls_cost_one_forward_and_know_the_constant() -> None:
    score = Counted(bias=3.0)
    attribution = attr.DirectContribution(score, score.model)
    first = attribution.attribute_targets(IMAGES)
    before = score.calls
    again = attribution.attribute_targets(IMAGES)
    single = attribution.attribute(IMAGES[1:], target=2)
    assert score.calls == before + 3  # the look at a single image takes one
    assert off(again, first) < 1e-12
    assert off(single, first[1:, 2:]) < 1e-9


def test_a_constant_that_was_trained_between_two_calls_is_noticed() -> None:
    """Nor does a scale or a text that changes leave the map of the one before."""
    score = Counted(bias=3.0)
    attribution = attr.DirectContribution(score, score.model)
    wanted = attribution.attribute_targets(IMAGES)
    score.bias = 2.9
    assert off(attribution.attribute_targets(IMAGES), wanted) < 1e-9
    score.texts = score.texts.flip(0)
    assert off(attribution.attribute_targets(IMAGES), wanted.flip(1)) < 1e-9


def test_a_prior_of_each_image_is_no_part_of_its_map() -> None:
    score = Counted()
    attribution = attr.ReaderRemoval(score, score.model)
    wanted = attribution.attribute_targets(IMAGES)
    prior = torch.tensor([[1.0], [-7.0]], dtype=torch.float64)
    maps = attribution.attribute_targets(IMAGES, additional_forward_args=prior)
    assert off(maps, wanted) < 1e-9


def test_a_probe_that_trains_costs_one_forward_a_call() -> None:
    """A linear score's direction is its gradient, so its bias need not be known."""
    model, probe, calls = cases.built("hf_vit", torch.float64).model, copy.deepcopy(PROBE), []

    def score(images: Tensor) -> Tensor:
        calls.append(1)
        return probe(cases.embed(model, images))

    attribution = attr.DirectContribution(score, model)
    wanted = attribution.attribute_targets(IMAGES)
    calls.clear()
    with torch.no_grad():
        probe.bias.add_(2)
    assert off(attribution.attribute_targets(IMAGES), wanted) < 1e-12
    assert len(calls) == 1


def test_a_score_that_cannot_take_a_turned_embedding_follows_its_gradient() -> None:
    """A forward function may refuse what no image gives."""
    first = cases.embed(cases.built("hf_vit", torch.float64).model, IMAGES[:1]).detach()

    def head(embedding: Tensor) -> Tensor:
        if (embedding @ first.T).mean() < 0:
            raise ValueError("no such image")
        return cosine(embedding)

    maps, rest = explained("hf_vit", "direct", head)
    torch.testing.assert_close(maps.sum((-2, -1)) + rest, forward_of("hf_vit", cosine)(IMAGES))


@pytest.mark.parametrize("method", ["direct", "conservative"])
def test_texts_have_the_law_too(method: str) -> None:
    clip = load_clip("demo/vit")
    target = targets.image(clip, draw_scene(0).image)
    ids, mask = clip.text_inputs(["a horse and a dog", "a car"])

    class Logits(TextSimilarity):
        def forward(self, *args: Any) -> Tensor:
            return 10 * super().forward(*args) - 10

    maps = [
        attr.METHODS[method](forward).attribute(ids, additional_forward_args=mask)
        for forward in (TextSimilarity(clip, target), Logits(clip, target))
    ]
    assert off(maps[1], 10 * maps[0]) < 1e-5


def test_pairs_of_images_and_texts_have_the_law_too() -> None:
    """A text of its own for each image, as SigLIP's loss has it."""
    model = cases.built("hf_vit", torch.float64).model
    texts = cases.embeddings(2)

    def pairs(images: Tensor, rows: Tensor) -> Tensor:
        return 117.3 * (F.normalize(cases.embed(model, images), dim=-1) * rows).sum(-1) - 12.9

    attribution = attr.ConservativePropagation(pairs, model)
    maps = attribution.attribute(IMAGES, additional_forward_args=texts)
    similarity = ClipSimilarity(cases.adapter("hf_vit", torch.float64), targets.embedding(texts))
    wanted = attr.ConservativePropagation(similarity).attribute(IMAGES, target=[0, 1])
    assert off(maps, 117.3 * wanted) < 1e-9


def test_a_map_in_the_graph_has_no_derivative_by_a_constant() -> None:
    score = Counted()
    bias = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def forward(images: Tensor) -> Tensor:
        return scale * score(images) + bias

    attribution = attr.DirectContribution(forward, score.model)
    for _ in range(2):
        maps, rest = attribution.attribute(IMAGES, target=1, create_graph=True, return_rest=True)
        slopes = torch.autograd.grad(maps.square().sum(), [scale, bias], retain_graph=True)
        torch.testing.assert_close(slopes[0], maps.square().sum())  # 2 m dm/da, with a = 2
        assert abs(float(slopes[1])) < 1e-12
        (of_rest,) = torch.autograd.grad(rest.sum(), bias)
        assert float(of_rest) == pytest.approx(2.0)
