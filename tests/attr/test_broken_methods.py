"""The contract has teeth: a method that breaks one of its laws fails that law."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from captum.log import log_usage

from captum_clip import LastGradAttention
from tests import builders
from tests.attr.cases import Case
from tests.attr.laws import LAWS
from tests.attr.subject import Subject

ATTRIBUTE = LastGradAttention.attribute
ATTRIBUTE_TARGETS = LastGradAttention.attribute_targets
kept: list[object] = []
shared = {"target": None}
lock = threading.Lock()


@log_usage(part_of_slo=True)
def leaves_a_hook(self, inputs, target=None, *args, **options):
    self._tower.layers[0].block.register_forward_hook(lambda *_: None)
    return ATTRIBUTE(self, inputs, target, *args, **options)


@log_usage(part_of_slo=True)
def returns_the_wrong_sign(self, inputs, target=None, *args, **options):
    maps = ATTRIBUTE(self, inputs, target, *args, **options)
    return (-maps[0],) if isinstance(maps, tuple) else -maps


@log_usage(part_of_slo=True)
def depends_on_the_batch(self, inputs, target=None, *args, **options):
    maps = ATTRIBUTE(self, inputs, target, *args, **options)
    return maps - maps.mean(0) if len(maps) > 1 else maps


@log_usage(part_of_slo=True)
def sets_eval_mode(self, inputs, target=None, *args, **options):
    self._tower.module.eval()
    return ATTRIBUTE(self, inputs, target, *args, **options)


@log_usage(part_of_slo=True)
def fills_grad(self, inputs, target=None, *args, **options):
    with torch.enable_grad(), torch.inference_mode(False):
        weight = self._tower.module.get_parameter("encoder.layers.0.mlp.fc1.weight")
        if weight.requires_grad:
            weight.sum().backward()
    return ATTRIBUTE(self, inputs, target, *args, **options)


@log_usage(part_of_slo=True)
def marks_the_callers_tensor(self, inputs, target=None, *args, **options):
    images = inputs[0] if isinstance(inputs, tuple) else inputs
    if not images.is_inference():
        images.requires_grad_(not images.requires_grad)
    return ATTRIBUTE(self, images.detach(), target, *args, **options)


@log_usage(part_of_slo=True)
def keeps_its_maps(self, inputs, target=None, *args, **options):
    maps = ATTRIBUTE(self, inputs, target, *args, **options)
    kept.append(maps)
    return maps


@log_usage(part_of_slo=True)
def shows_zeros_for_a_failure(self, inputs, target=None, *args, **options):
    try:
        return ATTRIBUTE(self, inputs, target, *args, **options)
    except Exception:
        return torch.zeros(len(inputs), 1, 4, 4)


@log_usage(part_of_slo=True)
def wraps_the_users_exception(self, inputs, target=None, *args, **options):
    try:
        return ATTRIBUTE(self, inputs, target, *args, **options)
    except Exception as error:
        raise RuntimeError("something went wrong") from error


@log_usage(part_of_slo=True)
def keeps_the_target_in_a_global(self, inputs, target=None, *args, **options):
    shared["target"] = target
    time.sleep(0.02)
    with lock:
        return ATTRIBUTE(self, inputs, shared["target"], *args, **options)


@log_usage(part_of_slo=True)
def reverses_the_targets(self, inputs, targets=None, *args, **options):
    return ATTRIBUTE_TARGETS(self, inputs, targets, *args, **options).flip(1)


@log_usage(part_of_slo=True)
def unpacks_a_tuple(self, inputs, target=None, *args, **options):
    images = inputs[0] if isinstance(inputs, tuple) else inputs
    return ATTRIBUTE(self, images, target, *args, **options)


@log_usage(part_of_slo=True)
def leaves_grad_mode_on(self, inputs, target=None, *args, **options):
    maps = ATTRIBUTE(self, inputs, target, *args, **options)
    torch.set_grad_enabled(True)
    return maps


@log_usage(part_of_slo=True)
def draws_random_numbers(self, inputs, target=None, *args, **options):
    maps = ATTRIBUTE(self, inputs, target, *args, **options)
    return (maps[0],) if isinstance(maps, tuple) else maps + 1e-6 * torch.rand_like(maps)


@log_usage(part_of_slo=True)
def returns_half(self, inputs, targets=None, *args, **options):
    maps = ATTRIBUTE_TARGETS(self, inputs, targets, *args, **options)
    return (maps[0].half(), maps[1]) if isinstance(maps, tuple) else maps.half()


def has_no_captum_wrapper(self, inputs, target=None, *args, **options):
    return ATTRIBUTE(self, inputs, target, *args, **options)


BROKEN = [
    (leaves_a_hook, "leaves_nothing_behind"),
    (returns_the_wrong_sign, "equals_its_oracle"),
    (depends_on_the_batch, "batch_equals_loop"),
    (sets_eval_mode, "leaves_nothing_behind"),
    (fills_grad, "leaves_nothing_behind"),
    (marks_the_callers_tensor, "leaves_nothing_behind"),
    (keeps_its_maps, "keeps_no_tensors"),
    (shows_zeros_for_a_failure, "leaves_nothing_behind_after_a_failure"),
    (wraps_the_users_exception, "leaves_nothing_behind_after_a_failure"),
    (keeps_the_target_in_a_global, "threads_do_not_mix"),
    (reverses_the_targets, "all_targets_equal_each"),
    (unpacks_a_tuple, "returns_what_it_was_given"),
    (leaves_grad_mode_on, "works_in_every_mode"),
    (draws_random_numbers, "gives_the_same_twice"),
    (returns_half, "half_precision_gives_single"),
    (returns_half, "has_shape_and_type"),
    (has_no_captum_wrapper, "runs_in_noise_tunnel"),
]


def broken_subject(method):
    """The broken method on a model of its own."""
    wrapped = getattr(method, "__wrapped__", method)
    name = "attribute_targets" if "targets" in wrapped.__code__.co_varnames else "attribute"
    return subject(type("Broken", (LastGradAttention,), {name: method}))


def subject(kind=LastGradAttention):
    """The class on a model of its own."""
    case = Case("LastGradAttention", {})
    return Subject("hf_vit", case, "similarity", kind=kind, small=builders.hf_vit())


@pytest.mark.parametrize(("method", "law"), BROKEN)
def test_broken_method_fails_its_law(method, law):
    """The law that the method breaks fails; the method as it is keeps it."""
    LAWS[law](broken_subject_as_it_is())
    subject = broken_subject(method)
    with pytest.raises((AssertionError, AttributeError, pytest.fail.Exception, RuntimeError)):
        LAWS[law](subject)
    kept.clear()
    torch.set_grad_enabled(True)


def broken_subject_as_it_is():
    """The method that the broken ones are made of."""
    return Subject("hf_vit", Case("LastGradAttention", {}), "similarity", small=builders.hf_vit())
