"""`attr.check_method`: what keeps the laws passes, and each law is seen to be broken."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor

from captum_clip import attr
from captum_clip.attr import check_method
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from tests.attr import cases

NAME = "hf_vit"
BASE = ["same twice", "image alone", "target alone", "target of each image"]


class Plain:
    """A method that another package could have: Captum's Saliency, channels added up."""

    name, towers = "plain-saliency", ("vit", "resnet")
    calls: ClassVar[int] = 0

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        leaf = images.detach().clone().requires_grad_()
        found: Tensor = Saliency(self.forward).attribute(leaf, target=target)
        return found

    def attribute_targets(self, images: Tensor) -> Tensor:
        columns = range(len(self.forward.target))
        return torch.stack([self.attribute(images, c).sum(1) for c in columns], 1)


class Mixing(Plain):
    def attribute_targets(self, images: Tensor) -> Tensor:
        maps = super().attribute_targets(images)
        return maps + maps.mean(0, keepdim=True)


class Drifting(Plain):
    def attribute_targets(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        return super().attribute_targets(images) * self.calls


class OneTarget(Plain):
    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        return super().attribute(images, 0 if isinstance(target, list) else target)


class Unsigned(Plain):
    signed = True


class Centered(Plain):
    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        maps = super().attribute(images, target)
        return maps - maps.mean((-3, -2, -1), keepdim=True)


class Leaking(Plain):
    def attribute_targets(self, images: Tensor) -> Tensor:
        self.forward.clip.model.requires_grad_(False)
        return super().attribute_targets(images)


class Graph(Plain):
    def attribute_targets(self, images: Tensor) -> Tensor:
        return super().attribute_targets(images).requires_grad_()


class Flat(Plain):
    def attribute_targets(self, images: Tensor) -> Tensor:
        return super().attribute_targets(images).flatten(2)


class Lossy(Plain):
    additive = True

    def attribute_targets(self, images: Tensor, return_rest: bool = False) -> Any:
        maps = super().attribute_targets(images)
        return (maps, torch.zeros(maps.shape[:2])) if return_rest else maps


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("direct", ["negated target", "adds up"]),
        ("rollout", ["negated target", "not below zero"]),
        ("last-grad", ["not below zero"]),
    ],
)
def test_a_method_of_the_package_keeps_the_laws_that_it_declares(method: str, more: Any) -> None:
    laws = check_method(attr.METHODS[method], cases.similarity(NAME), cases.images(NAME))
    assert [*laws] == [*BASE, *more, "model"]
    assert max(laws.values()) < 1e-5


def test_a_method_of_another_package_needs_no_base() -> None:
    laws = check_method(Plain, cases.similarity(NAME), cases.images(NAME))
    assert [*laws] == [*BASE, "not below zero", "model"]
    assert max(laws.values()) < 1e-5


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        (Mixing, r"image alone \(.*target alone"),
        (Drifting, "same twice"),
        (OneTarget, "target of each image"),
        (Unsigned, "negated target"),
        (Centered, "not below zero"),
        (Leaking, r"model \(1.0e\+00\)"),
        (Lossy, "adds up"),
    ],
)
def test_a_broken_law_is_named(method: Any, broken: str) -> None:
    small = cases.BUILDERS[NAME]()  # which Leaking changes
    forward = type(cases.similarity(NAME))(small.load(), cases.similarity(NAME).target)
    message = f"{method.__name__} breaks laws of all methods by more than 1e-03: .*{broken}"
    with pytest.raises(CaptureError, match=message):
        check_method(method, forward, cases.images(NAME))
    small.model.requires_grad_(True)


@pytest.mark.parametrize("method", [Graph, Flat])
def test_maps_have_a_shape_and_no_graph(method: Any) -> None:
    message = rf"{method.__name__} to give maps \(3, 4, h, w\), detached, got Tensor"
    with pytest.raises(CaptureError, match=message):
        check_method(method, cases.similarity(NAME), cases.images(NAME))


def test_an_oracle_is_compared() -> None:
    call = attr.LastGradAttention, cases.similarity(NAME), cases.images(NAME)
    wanted = cases.expected(NAME, cases.Case("LastGradAttention", {}))
    assert check_method(*call, wanted=wanted)["oracle"] < 1e-5
    with pytest.raises(CaptureError, match=r"by more than 1e-01: oracle \(5.0e-01\)"):
        check_method(*call, wanted=wanted / 2, tolerance=0.1)
    with pytest.raises(InputError, match=r"`wanted` of shape \(3, 4, .*, got Tensor \(3, 1, "):
        check_method(*call, wanted=wanted[:, :1])


def test_what_cannot_be_checked_is_refused() -> None:
    forward, images = cases.similarity(NAME), cases.images(NAME)
    with pytest.raises(InputError, match="two images and two targets, or more, got"):
        check_method(Plain, forward, images[:1])
    with pytest.raises(InputError, match="two images and two targets, or more, got"):
        check_method(Plain, type(forward)(forward.clip, forward.target[:1]), images)
    with pytest.raises(UnsupportedModelError, match="ClipGradCam needs a convolutional tower"):
        check_method(attr.ClipGradCam, forward, images)


class OwnMethod(attr.extend.ViTAttribution):
    """A method that returns what it is told to return."""

    name = "own"
    returned: ClassVar[Any] = None

    def _compute(self, call: Any) -> Any:
        observer = attr.extend.Kernels([0])
        run = call.run(attr.extend.observe(self._tower, observer))
        return self.returned(run)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda run: None, r"expected OwnMethod\._compute to return a Computed, got None"),
        (lambda run: torch.zeros(3, 2, 17), r"to return a Computed, got Tensor \(3, 2, 17\)"),
        (
            lambda run: run.computed(torch.zeros(3, 2, run.record.count - 1)),
            r"expected values \(K', B, 17\) for all tokens .* got Tensor \(3, 2, 16\) .* a zero",
        ),
    ],
)
def test_a_method_of_your_own_that_returns_something_else_is_named(
    monkeypatch: Any, returned: Any, message: str
) -> None:
    monkeypatch.setattr(OwnMethod, "returned", staticmethod(returned))
    method = OwnMethod(cases.similarity(NAME))
    with pytest.raises(InputError, match=message):
        method.attribute_targets(cases.images(NAME))
