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


def broken(before=lambda method, images: None, after=lambda maps: maps):
    """`attribute` with something done before it, or with its maps changed."""

    @log_usage(part_of_slo=True)
    def attribute(self, inputs, target=None, *args, **options):
        images = inputs[0] if isinstance(inputs, tuple) else inputs
        before(self, images)
        maps = ATTRIBUTE(self, images, target, *args, **options)
        return (after(maps),) if isinstance(inputs, tuple) else after(maps)

    return attribute


def broken_targets(after):
    """`attribute_targets` with its maps changed."""

    def attribute_targets(self, inputs, targets=None, *args, **options):
        maps = ATTRIBUTE_TARGETS(self, inputs, targets, *args, **options)
        return (after(maps[0]), *maps[1:]) if isinstance(maps, tuple) else after(maps)

    return log_usage(part_of_slo=True)(attribute_targets)


def leave_a_hook(method, images):
    method._tower.layers[0].block.register_forward_hook(lambda *_: None)


def fill_grad(method, images):
    with torch.enable_grad(), torch.inference_mode(False):
        weight = method._tower.module.get_parameter("encoder.layers.0.mlp.fc1.weight")
        if weight.requires_grad:
            weight.sum().backward()


def mark_the_callers_tensor(method, images):
    if not images.is_inference():
        images.requires_grad_(not images.requires_grad)


def keep(maps):
    kept.append(maps)
    return maps


def leave_grad_mode_on(maps):
    torch.set_grad_enabled(True)
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
def unpacks_a_tuple(self, inputs, target=None, *args, **options):
    images = inputs[0] if isinstance(inputs, tuple) else inputs
    return ATTRIBUTE(self, images, target, *args, **options)


def has_no_captum_wrapper(self, inputs, target=None, *args, **options):
    return ATTRIBUTE(self, inputs, target, *args, **options)


BROKEN = [
    (broken(leave_a_hook), "leaves_nothing_behind"),
    (broken(after=lambda maps: -maps), "equals_its_oracle"),
    (broken(after=lambda maps: maps - maps.mean(0) * (len(maps) > 1)), "batch_equals_loop"),
    (broken(lambda method, _: method._tower.module.eval()), "leaves_nothing_behind"),
    (broken(fill_grad), "leaves_nothing_behind"),
    (broken(mark_the_callers_tensor), "leaves_nothing_behind"),
    (broken(after=keep), "keeps_no_tensors"),
    (shows_zeros_for_a_failure, "leaves_nothing_behind_after_a_failure"),
    (wraps_the_users_exception, "leaves_nothing_behind_after_a_failure"),
    (keeps_the_target_in_a_global, "threads_do_not_mix"),
    (broken_targets(lambda maps: maps.flip(1)), "all_targets_equal_each"),
    (unpacks_a_tuple, "returns_what_it_was_given"),
    (broken(after=leave_grad_mode_on), "works_in_every_mode"),
    (broken(after=lambda maps: maps + 1e-6 * torch.rand_like(maps)), "gives_the_same_twice"),
    (broken_targets(lambda maps: maps.half()), "half_precision_gives_single"),
    (broken_targets(lambda maps: maps.half()), "has_shape_and_type"),
    (has_no_captum_wrapper, "runs_in_noise_tunnel"),
]


def broken_subject(method):
    """The broken method on a model of its own."""
    wrapped = getattr(method, "__wrapped__", method)
    name = "attribute_targets" if "targets" in wrapped.__code__.co_varnames else "attribute"
    return subject_of(type("Broken", (LastGradAttention,), {name: method}))


def subject_of(kind):
    """The class on a model of its own."""
    case = Case("LastGradAttention", {})
    return Subject("hf_vit", case, "similarity", kind=kind, small=builders.hf_vit())


@pytest.mark.parametrize(("method", "law"), BROKEN)
def test_broken_method_fails_its_law(method, law):
    """The law that the method breaks fails; the method as it is keeps it."""
    LAWS[law](subject_of(LastGradAttention))
    subject = broken_subject(method)
    with pytest.raises((AssertionError, AttributeError, pytest.fail.Exception, RuntimeError)):
        LAWS[law](subject)
    kept.clear()
    torch.set_grad_enabled(True)
