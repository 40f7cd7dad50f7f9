"""What holds for every method on every tower: one function a law, which raises if it is broken."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor
from torch.nn import functional as F

from tests import builders
from tests.attr import cases, state
from tests.attr.cases import COUNT
from tests.attr.subject import Subject


def maps_equal(found: Tensor, wanted: Tensor) -> None:
    """Equal up to rounding, as seen from the largest value."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def maps_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Alike, as two precisions are: in the length of the difference of the centered maps."""
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    difference = (found - wanted).norm()
    assert difference <= tolerance * (wanted - wanted.mean((2, 3), keepdim=True)).norm()


def equals_its_oracle(subject: Subject) -> None:
    """The maps have the values and the sign of the equation."""
    scale = 1 if subject.forward == "similarity" else 20
    wanted = cases.expected(subject.name, subject.case, scale=scale)
    maps_equal(subject.all(), wanted.float())
    maps_equal(subject.one(), wanted[:, 1:2].float())


def has_shape_and_type(subject: Subject) -> None:
    """(B, 1, h, w) and (B, K, h, w), float32, contiguous, detached, where the images are."""
    grid = subject.small.load().grid(*subject.images.shape[-2:])
    one, many = subject.one(), subject.all()
    assert one.shape == (3, 1, *grid)
    assert many.shape == (3, COUNT, *grid)
    for maps in (one, many):
        assert maps.dtype == torch.float32
        assert maps.device == subject.images.device
        assert maps.is_contiguous()
        assert not maps.requires_grad
        assert not maps.is_inference()
        assert torch.isfinite(maps).all()


def batch_equals_loop(subject: Subject) -> None:
    """An image's map does not depend on its neighbors."""
    loop = torch.cat([subject.all(image[None]) for image in subject.images])
    maps_equal(subject.all(), loop)
    loop = torch.cat([subject.one(image[None]) for image in subject.images])
    maps_equal(subject.one(), loop)


def all_targets_equal_each(subject: Subject) -> None:
    """`attribute_targets` is `attribute` for one target after the other, in the order asked."""
    many = subject.all()
    maps_equal(many, torch.cat([subject.one(target=k) for k in range(COUNT)], 1))
    maps_equal(subject.all(targets=[2, 0, -1]), many[:, [2, 0, COUNT - 1]])
    maps_equal(subject.all(targets=torch.tensor([3])), many[:, 3:])


def takes_a_target_an_image(subject: Subject) -> None:
    """A list or a tensor holds one target per image, and an index may count from the end."""
    picked = [2, 0, 1]
    wanted = torch.cat([subject.one(subject.images[i : i + 1], k) for i, k in enumerate(picked)])
    for each in (picked, torch.tensor(picked), tuple(picked)):
        maps_equal(subject.one(target=each), wanted)
    one = subject.one(target=COUNT - 1)
    for last in (-1, [COUNT - 1], torch.tensor([COUNT - 1]), torch.tensor(COUNT - 1)):
        assert torch.equal(subject.one(target=last), one)


def gives_the_same_twice(subject: Subject) -> None:
    """The same call returns the same bits, from the same object and a new one."""
    method = subject.method
    first = subject.one(method=method)
    assert torch.equal(subject.one(method=method), first)
    assert torch.equal(subject.one(), first)
    assert torch.equal(subject.all(), subject.all())


def returns_what_it_was_given(subject: Subject) -> None:
    """A tuple for a tuple, a tensor for a tensor."""
    given = subject.one((subject.images,))
    assert isinstance(given, tuple)
    assert len(given) == 1
    assert torch.equal(given[0], subject.one())


def scores_equal_the_forward(subject: Subject) -> None:
    """`return_scores` gives what the forward function gives."""
    with torch.no_grad():
        wanted = subject.function(subject.images)
    maps, scores = subject.all(return_scores=True)
    assert torch.equal(maps, subject.all())
    assert not scores.requires_grad
    torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)
    _, scores = subject.all(targets=[2, 0], return_scores=True)
    torch.testing.assert_close(scores, wanted[:, [2, 0]], rtol=1e-5, atol=1e-5)


def runs_in_noise_tunnel(subject: Subject) -> None:
    """Captum's NoiseTunnel averages the maps; without noise they are the maps."""
    tunnel = NoiseTunnel(subject.method)
    wanted = subject.one()
    options = {"nt_samples": 2, "target": 1, **subject.options}
    found = tunnel.attribute(subject.images, nt_type="smoothgrad", stdevs=0.0, **options)
    maps_equal(found, wanted)
    found = tunnel.attribute(subject.images, nt_type="smoothgrad", stdevs=0.3, **options)
    assert found.shape == wanted.shape
    options["target"] = [2, 0, 1]
    found = tunnel.attribute(subject.images, nt_type="smoothgrad_sq", stdevs=0.3, **options)
    assert (found >= 0).all()
    assert found.max() > 0


def runs_in_metrics(subject: Subject) -> None:
    """Captum's infidelity and sensitivity_max take the method as it is."""
    images = subject.images

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.full_like(inputs, 0.01)
        return noise, inputs - noise

    for target in (1, [2, 0, 1]):
        maps = F.interpolate(subject.one(target=target), size=images.shape[-2:])
        value = infidelity(
            subject.function,
            perturb,
            images,
            maps.expand_as(images),
            target=target,
            normalize=True,
        )
        assert value.shape == (3,)
        assert torch.isfinite(value).all()
        value = sensitivity_max(
            subject.method.attribute, images, target=target, n_perturb_samples=2, **subject.options
        )
        assert value.shape == (3,)
        assert torch.isfinite(value).all()


def works_in_every_mode(subject: Subject) -> None:
    """The caller's grad mode changes nothing; autocast little."""
    wanted, many = subject.one(), subject.all()
    with torch.no_grad():
        assert torch.equal(subject.one(), wanted)
        assert torch.equal(subject.all(), many)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(subject.one(), wanted)
        inside = subject.images.clone()
        assert inside.is_inference()
        assert torch.equal(subject.one(inside), wanted)
        assert torch.equal(subject.all(inside), many)
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tolerance = precisions(subject)[torch.bfloat16]
        maps_close(subject.one(), wanted, tolerance)
        maps_close(subject.all(), many, tolerance)


# The ResNet rounds more often: three convolutions and batch norms a block.
PRECISIONS = {
    "vit": {torch.float16: 0.005, torch.bfloat16: 0.05},
    "resnet": {torch.float16: 0.02, torch.bfloat16: 0.15},
}


def precisions(subject: Subject) -> dict[torch.dtype, float]:
    """How far half precision may be off.

    The gradients of the CAM family pass the last block in the tower's own precision, where the
    package's own methods compute in single precision.
    """
    factor = 1.5 if subject.case.method == "CamFamily" else 1
    bounds = PRECISIONS[subject.small.load().kind]
    return {dtype: factor * bound for dtype, bound in bounds.items()}


@torch.no_grad()
def rounding(small: builders.Small, images: Tensor) -> float:
    """How far the library's own embeddings of half precision are off, relative, at most."""
    exact = small._replace(model=copy.deepcopy(small.model).float()).load()
    wanted = exact.image_features(images.float())
    off = small.load().image_features(images).float() - wanted
    return float((off.norm(dim=-1) / wanted.norm(dim=-1)).max())


def half_precision_gives_single(subject: Subject) -> None:
    """float16 and bfloat16 towers give float32 maps close to those of the float32 tower."""
    for dtype, tolerance in precisions(subject).items():
        small = subject.small._replace(model=copy.deepcopy(subject.model).to(dtype))
        function, layer = subject.build(small)
        exact, exact_layer = subject.build(small._replace(model=copy.deepcopy(small.model).float()))
        images = subject.images.to(dtype)
        # some processors round a network's half precision by more than its maps may be off
        tolerance = max(tolerance, 2 * rounding(small, images))
        wanted = subject.kind(exact, exact_layer).attribute_targets(
            images.float(), **subject.options
        )
        for given in (images, images.float()):
            method = subject.kind(function, layer)
            found, scores = method.attribute_targets(given, return_scores=True, **subject.options)
            assert scores.dtype == torch.float32
            maps_close(found, wanted, tolerance)


def _unchanged(subject: Subject, run: Callable[[], object]) -> None:
    caller = subject.images
    kept = (subject.model, subject.function.clip) if subject.layer is None else (subject.model,)
    before = state.of_model(subject.model), state.of_tensor(caller), state.of_thread()
    attributes = [sorted(vars(thing)) for thing in kept]
    run()
    state.assert_same(before[0], state.of_model(subject.model))
    state.assert_same(before[1], state.of_tensor(caller))
    state.assert_same(before[2], state.of_thread())
    assert [sorted(vars(thing)) for thing in kept] == attributes


def _upset(subject: Subject) -> None:
    """A user's model, with flags and gradients of its own, and images that want a gradient."""
    state.upset(subject.model)
    subject.images = subject.images.clone().requires_grad_()
    subject.images.grad = torch.ones_like(subject.images)


def leaves_nothing_behind(subject: Subject) -> None:
    """Model, images and modes are as before, in each of the caller's modes."""
    plain = subject.images
    subject.one()
    _unchanged(subject, lambda: (subject.one(), subject.all(return_scores=True)))
    _upset(subject)
    _unchanged(subject, lambda: (subject.one(), subject.all(return_scores=True)))
    with torch.no_grad():
        _unchanged(subject, subject.one)
    with torch.inference_mode():
        _unchanged(subject, subject.one)
    subject.images = plain


class Boom(Exception):
    """The user's own."""


def leaves_nothing_behind_after_a_failure(subject: Subject) -> None:
    """The same after an exception half-way and after the tower, which comes out as it was."""
    _upset(subject)
    boom = Boom("the user's own", 7)

    def fail(*_: Any) -> None:
        raise boom

    def run() -> None:
        for call in (subject.one, subject.all):
            with pytest.raises(Boom) as caught:
                call()
            assert caught.value is boom
            assert boom.args == ("the user's own", 7)
            assert boom.__cause__ is None
            assert boom.__context__ is None
            boom.__traceback__ = None

    for register in ("register_forward_pre_hook", "register_forward_hook"):
        handle = getattr(subject.middle, register)(fail)
        try:
            _unchanged(subject, run)
        finally:
            handle.remove()
    function = subject.function
    if subject.layer is None:
        function.score = fail
        _unchanged(subject, run)
        del function.score
    else:
        subject.function = lambda pixels: fail(function(pixels))
        _unchanged(subject, run)
        subject.function = function
    subject.one()


def keeps_no_tensors(subject: Subject) -> None:
    """No tensor that was made in 20 calls is alive after them."""
    subject.one()
    subject.all()
    method = subject.method
    gc.freeze()
    try:
        for _ in range(20):
            subject.one(method=method)
        subject.all()
        gc.collect()
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    finally:
        gc.unfreeze()
    assert not alive, f"{len(alive)} tensors, such as {tuple(alive[0].shape)}"


def threads_do_not_mix(subject: Subject) -> None:
    """Two threads explain different targets on one model while a third merely uses it."""
    wanted = {0: subject.one(target=0), 2: subject.one(target=2)}
    with torch.no_grad():
        scores = subject.function(subject.images)
    failures: list[BaseException] = []
    start = threading.Barrier(3)

    def work(target: int | None) -> None:
        try:
            start.wait(30)
            for _ in range(4):
                if target is None:
                    found = subject.function(subject.images)
                    assert found.requires_grad
                    assert torch.allclose(found.detach(), scores, rtol=1e-5, atol=1e-6)
                else:
                    maps_equal(subject.one(target=target), wanted[target])
        except BaseException as error:  # seen by the main thread
            failures.append(error)

    workers = [threading.Thread(target=work, args=(target,)) for target in (0, 2, None)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


LAWS: dict[str, Callable[[Subject], None]] = {
    law.__name__: law
    for law in (
        equals_its_oracle,
        has_shape_and_type,
        batch_equals_loop,
        all_targets_equal_each,
        takes_a_target_an_image,
        gives_the_same_twice,
        returns_what_it_was_given,
        scores_equal_the_forward,
        runs_in_noise_tunnel,
        runs_in_metrics,
        works_in_every_mode,
        half_precision_gives_single,
        leaves_nothing_behind,
        leaves_nothing_behind_after_a_failure,
        keeps_no_tensors,
        threads_do_not_mix,
    )
}
UPSETTING = {"leaves_nothing_behind", "leaves_nothing_behind_after_a_failure"}
