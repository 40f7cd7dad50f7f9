"""A class of a user's own is registered once, and then offered wherever methods are named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from itertools import product
from typing import Any, final

import pytest
import torch
from captum.attr import LayerGradCam

from captum_clip import ClipSimilarity, DirectContribution, attr, explain, load_clip, targets
from captum_clip.attr import ResNetAttribution, ViTAttribution, register, registry
from captum_clip.attr.extend import Call, Computed, last_gradient, resnet_gradient
from captum_clip.attr.registry import MethodChoice, methods_for
from captum_clip.bench.methods import methods_for as evaluated
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, UnsupportedModelError
from tests.attr import cases


def picture() -> Any:
    """A scene that the embedded models know."""
    return draw_scene(0, objects=["horse", "dog"]).image


@final
class LastGradient(ViTAttribution):
    """The last attention's gradient, heads averaged, times a number."""

    name = "my-gradient"
    signed = True

    def _compute(self, call: Call, *, times: int = 1) -> Computed:
        last = last_gradient(self._tower, call)
        assert last.row is not None
        return last.run.computed(times * last.row.mean(2))


@final
class Activation(ResNetAttribution):
    """The mean of the features, whatever the target."""

    name = "my-activation"
    needs_target = False
    costly = True

    def _compute(self, call: Call) -> Computed:
        run, _ = resnet_gradient(self._tower, call)
        mean = run.record.features.float().mean(1)
        return run.computed(mean.expand(len(run.columns), *mean.shape))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points of the group, looked up anew."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry._load_entry_points.cache_clear()
    yield found
    registry._load_entry_points.cache_clear()


def test_a_method_of_each_tower_is_offered_for_it_alone() -> None:
    assert register(LastGradient) is LastGradient
    register(Activation)
    for kind, own, other in (
        ("vit", LastGradient, Activation),
        ("resnet", Activation, LastGradient),
    ):
        clip = load_clip(f"demo/{kind}")
        assert own.name in methods_for(kind)
        assert own.name in evaluated(clip)
        assert other.name not in methods_for(kind)
        assert other.name not in evaluated(clip)


def test_a_registered_method_is_explained_by_its_name_with_its_options() -> None:
    register(LastGradient)
    once = explain(picture(), "a horse", model="demo/vit", method="my-gradient")
    twice = explain(picture(), "a horse", model="demo/vit", method="my-gradient:times=2")
    assert twice.method == "my-gradient:times=2"
    torch.testing.assert_close(twice.maps["positive"], 2 * once.maps["positive"])
    with pytest.raises(UnsupportedModelError, match="LastGradient needs a vision transformer"):
        explain(picture(), "a horse", model="demo/resnet", method=LastGradient)


def test_an_option_of_another_type_is_refused_by_its_name() -> None:
    """Whether `_compute` annotates it, or `attribute_targets` of a class of another package."""
    register(LastGradient)
    expected = r"my-gradient: expected the option times as int, got 'abc'\.$"
    with pytest.raises(InputError, match=expected):
        explain(picture(), "a horse", model="demo/vit", method="my-gradient:times=abc")

    class Powered(AroundDirect):
        name = "powered"

        def attribute_targets(self, images: torch.Tensor, *, power: float = 1) -> torch.Tensor:
            return super().attribute_targets(images) ** power

    register(Powered)
    assert MethodChoice.of("powered:power=2").options == {"power": 2}
    with pytest.raises(InputError, match="powered: expected the option power as float, got 'abc'"):
        MethodChoice.of("powered:power=abc")


class AroundDirect:
    """A class around a method, whose `attribute_targets` takes the images alone."""

    name, towers, listed, signed = "around-direct", ("vit",), False, True

    def __init__(self, forward: ClipSimilarity) -> None:
        self.method = DirectContribution(forward)

    def attribute(self, images: torch.Tensor, target: Any = None) -> torch.Tensor:
        return self.method.attribute(images, target=target)

    def attribute_targets(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.method.attribute_targets(images)
        return maps.requires_grad_()


@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_a_class_without_scores_is_explained_with_those_of_the_model(sign: Any) -> None:
    register(AroundDirect)
    clip = load_clip("demo/vit")
    texts = ["a horse", "a dog"]
    found = explain(picture(), texts, model=clip, method=AroundDirect, sign=sign)
    expected = explain(picture(), texts, model=clip, method="direct", sign=sign)
    assert found.method == "around-direct"
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.maps, expected.maps)


def test_a_class_defined_anew_takes_its_own_place_but_not_another_name() -> None:
    register(LastGradient)
    again = type("LastGradient", (ViTAttribution,), {**vars(LastGradient)})
    again.__qualname__ = LastGradient.__qualname__
    assert register(again) is again
    assert registry.registered()["my-gradient"] is again
    taken = type("Other", (ViTAttribution,), {"name": "last-grad"})
    with pytest.raises(InputError, match="other than that of LastGradAttention, got 'last-grad'"):
        register(taken)
    assert registry.registered()["last-grad"] is attr.LastGradAttention


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"name": "a:b"}, "expected a `name` of small letters, digits and hyphens, got 'a:b'"),
        ({"towers": ("swin",)}, r"expected `towers` among vit, resnet.*, got \('swin',\)"),
        ({"signed": "yes"}, "expected `signed` of True or False, got 'yes'"),
        (
            {"attribute_targets": None},
            "expected a method attribute_targets, got None; derive the class",
        ),
    ],
)
def test_what_is_said_wrongly_of_a_class_is_refused(stated: dict[str, Any], message: str) -> None:
    wrong = type("Wrong", (ViTAttribution,), {"name": "wrong", **stated})
    with pytest.raises(InputError, match=f"register: Wrong.*{message}"):
        register(wrong)
    assert "wrong" not in registry.registered()


def test_other_packages_bring_methods_and_a_broken_one_is_named(
    listed: list[EntryPoint],
) -> None:
    group = registry.ENTRY_POINTS
    listed.append(EntryPoint("mine", f"{__name__}:LastGradient", group))
    listed.append(EntryPoint("broken", "no_such_package:Method", group))
    with pytest.warns(UserWarning, match="method broken of .* no_such_package:Method"):
        assert "my-gradient" in methods_for("vit")


@pytest.mark.parametrize("text", ["last_grad", "LastGradAttentio"])
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(text: str) -> None:
    with pytest.raises(InputError, match=r"did you mean (last-grad|LastGradAttention)\?"):
        MethodChoice.of(text)


def test_the_name_of_the_list_is_offered_rather_than_that_of_the_class() -> None:
    register(AroundDirect)
    with pytest.raises(InputError, match=r"got 'around-drect' \(did you mean around-direct\?\)"):
        MethodChoice.of("around-drect")


def test_both_methods_have_a_signature_with_the_options() -> None:
    """As help and completion show it; anything else is a TypeError at the call."""
    for method, name in product(cases.OWN.values(), ("attribute", "attribute_targets")):
        parameters = inspect.signature(getattr(method, name)).parameters
        assert list(parameters)[:2] == ["self", "inputs"]
        options = inspect.signature(method._compute).parameters
        assert set(list(options)[2:]) <= set(parameters)
        takes_others = method is attr.CamFamily  # what the class of pytorch-grad-cam takes
        assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()) == takes_others
        clip = load_clip(f"demo/{method.towers[0]}")
        attribution = method(ClipSimilarity(clip, targets.text(clip, "a horse")))
        error = InputError if takes_others else TypeError
        message = r"eigen_smooth, got 'nonsense'|takes no nonsense; it takes inputs"
        with pytest.raises(error, match=message):
            getattr(attribution, name)(clip.preprocess(picture()), nonsense=1)


def test_grad_cam_is_still_captums() -> None:
    assert issubclass(attr.ClipGradCam, LayerGradCam)
    ours = list(inspect.signature(attr.ClipGradCam.attribute).parameters)
    assert ours == [*inspect.signature(LayerGradCam.attribute).parameters, "attention"]


@pytest.mark.parametrize(
    ("name", "default", "of_report"),
    [
        ("hf_vit", "direct", "last-grad"),
        ("open_clip_vit_mean", "direct", "last-grad"),
        ("siglip", "conservative", "conservative"),
        ("open_clip_resnet", "direct", "grad-cam"),
        ("timm_convnext", "direct", "grad-cam"),
    ],
)
def test_the_default_is_what_our_scenes_say(name: str, default: str, of_report: str) -> None:
    """Mamooler's methods have one name on every tower; results show their own."""
    clip = cases.adapter(name)
    assert registry.report_method(clip.tower) == of_report
    assert registry.default_method(clip.tower) == default
    for method, used in ((None, default), ("mamooler", of_report)):
        target = targets.embedding(cases.embeddings())
        assert explain(cases.images(name), target, model=clip, method=method).method == used


def test_mamooler_is_no_method_with_options_and_no_name_to_take() -> None:
    for call in (
        lambda: MethodChoice.of("mamooler:heads=paired"),
        lambda: explain("none.jpg", "a", model="none", method="mamooler", heads="paired"),
    ):
        with pytest.raises(InputError, match=r"takes no options.*name the method itself \(last-g"):
            call()
    taken = type("Mine", (attr.LastGradAttention,), {"name": "mamooler"})
    with pytest.raises(InputError, match="other than that of the report's methods, got 'mamooler'"):
        registry.register(taken)
