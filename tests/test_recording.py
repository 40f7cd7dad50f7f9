"""A recording sees what it should, ends where it should, and takes everything back."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

from captum_clip import attr, load_clip
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from captum_clip.models.steps import run_steps
from captum_clip.recording.inspection import inspect_model
from captum_clip.recording.laws import LAWS, verify
from captum_clip.recording.observe import (
    Embedding,
    Features,
    Kernels,
    LeafAtInput,
    Observer,
    Outputs,
    Probes,
    Sums,
    observe,
)
from captum_clip.recording.passes import HeldGates
from tests.attr import cases, state


@pytest.fixture(params=["hf_vit", "open_clip_vit"])
def setting(request):
    """A tower, a function that runs it, and what an oracle sees."""
    name = request.param
    clip = cases.adapter(name, torch.float64)
    images = cases.images(name, torch.float64)
    return clip.tower, (lambda: clip.image_features(images)), cases.seen(name)


def test_a_kept_attention_shows_what_ran(setting):
    """Weights, values and heads' outputs."""
    tower, run, seen = setting
    with torch.no_grad(), observe(tower, Kernels(range(1, 3)), Sums(range(1, 3))) as record:
        result = run()
    assert set(record.reads) == {1, 2}
    assert (record.size, record.batch) == ((32, 32), 3)
    for index, read in record.reads.items():
        torch.testing.assert_close(read.matrix(), seen.attention[index], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(read.row(), seen.attention[index][:, :, 0])
        assert read.obeys(1e-10)
        torch.testing.assert_close(read.out, read.matrix() @ read.value)
        heads = run_steps(read.attention.merge_steps(), read.select(read.out).flatten(1))
        torch.testing.assert_close(heads, record.rows[index][1])
    torch.testing.assert_close(result, seen.embedding, rtol=1e-10, atol=1e-10)
    verify(record, "a method")


def test_attentions_are_taken_in_order(setting):
    """Each layer once, where its attention ran, without a graph; what they return is kept."""
    tower, run, _ = setting
    visits = []

    def take(index, read):
        visits.append((index, read.value.shape, read.value.requires_grad))
        return -index

    with torch.no_grad(), observe(tower, Kernels(range(0, 2), take)) as record:
        run()
    assert visits == [(0, (3, 4, 17, 8), False), (1, (3, 4, 17, 8), False)]
    assert record.reads == {0: 0, 1: -1}


def test_the_stream_is_compared_with_what_its_branches_return(setting):
    """Of every block, and what enters the next one; read from copies, it is the same."""
    tower, run, _ = setting
    for copies in (False, True):
        blocks = Sums(range(3), copies=copies)
        with torch.no_grad(), observe(tower, blocks, Outputs([1])) as record:
            run()
        record.compare_sums()
        assert sum(len(each.names) for each in record.claims) == 5
        verify(record, "a method")
    stream, returned = record.streams()[1]
    torch.testing.assert_close(run_steps(tower.layers[1].after_attention(), stream), returned)
    torch.testing.assert_close(record.outputs[1][:, 0], returned)
    torch.testing.assert_close(record.rows[2][0], record.outputs[1][:, 0])


def test_graph_begins_at_the_leaf(setting):
    """Nothing before it is in a graph; it is a leaf of the result."""
    tower, run, _ = setting
    grad_modes = []
    handles = [
        layer.block.register_forward_pre_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
        for layer in tower.layers
    ]
    try:
        with observe(tower, Kernels([1], leaf=True), Kernels([2])) as record:
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    assert grad_modes == [False, False, True]
    leaf, last = record.reads[1].out, record.reads[2].out
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert not record.reads[1].value.requires_grad
    assert last.grad_fn is not None
    for gradient in torch.autograd.grad(result.sum(), (leaf, last)):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean", "naflex"])
def test_the_input_can_be_the_leaf(name):
    """The gradient at the images is that of a plain forward, and the maps are a formula of it."""
    clip, images = cases.adapter(name, torch.float64), cases.images(name, torch.float64)
    with observe(clip.tower, LeafAtInput(), Kernels([0])) as record:
        result = clip.image_features(images)
    assert record.input.is_leaf
    assert record.reads[0].value.requires_grad
    (found,) = torch.autograd.grad(result[:, 0].sum(), record.input)
    plain = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(clip.image_features(plain)[:, 0].sum(), plain)
    if name == "naflex":  # whose tower takes patches
        size = clip.tower.patch[0]
        wanted = wanted.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        wanted = wanted.reshape(found.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_input_of_a_text_tower_is_its_token_embeddings():
    """Token ids have no gradient."""
    clip = cases.adapter("hf_vit", torch.float64)
    ids, mask = clip.text_inputs(["a horse", "a dog and a cat"])
    tower = clip.text_tower
    with observe(tower, LeafAtInput()) as record:
        result = clip.text_features(ids, mask)
    (found,) = torch.autograd.grad(result[:, 0].sum(), record.input)
    tokens = tower.stem(ids).detach().requires_grad_()
    handle = tower.stem.register_forward_hook(lambda *_: tokens)
    (wanted,) = torch.autograd.grad(clip.text_features(ids, mask)[:, 0].sum(), tokens)
    handle.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


class ReadLayers(Observer):
    """An observer of a user's own: the layers whose attention was read when a block returns."""

    def __init__(self):
        self.seen = []

    def plan(self, hooks, record):
        for layer in record.tower.layers:
            hooks.after(layer.block, lambda args, result: self.seen.append(record.reads.copy()))


def test_an_observer_of_ones_own_works_beside_those_of_the_package(setting):
    """Its hooks run after theirs, so it sees what they kept."""
    tower, run, seen = setting
    own = ReadLayers()
    with torch.no_grad(), observe(tower, own, Kernels(range(3)), Embedding()):
        result = run()
    assert [list(reads) for reads in own.seen] == [[0], [0, 1], [0, 1, 2]]
    torch.testing.assert_close(result, seen.embedding, rtol=1e-10, atol=1e-10)


def graph(tower):
    """All that a recording may see, with a graph from a layer on."""
    kernels = Kernels([1], leaf=True), Kernels([0])
    return observe(tower, *kernels, Probes([0]), Sums(range(2)), Outputs(range(2)), Embedding())


RECORDINGS: dict[str, Any] = {
    "plain": observe,
    "leaf": graph,
    "embedding": lambda tower: observe(tower, Sums(range(2)), Embedding(leaf=True)),
    "held": lambda tower: observe(tower, HeldGates(), Embedding()),
}


@pytest.mark.parametrize("part", [None, "attention"])
@pytest.mark.parametrize(("recorded", "mode"), [("plain", False), ("leaf", True), ("held", True)])
def test_everything_is_taken_back(setting, recorded, part, mode):
    """Hooks and modes, wherever the forward ends."""
    tower, run, _ = setting

    def fail(*_):
        raise ZeroDivisionError

    before = state.of_model(tower.module), state.of_thread()
    with torch.set_grad_enabled(mode):
        if part is None:
            with RECORDINGS[recorded](tower):
                run()
        else:
            handle = getattr(tower.layers[1], part).register_forward_hook(fail)
            with pytest.raises(ZeroDivisionError), RECORDINGS[recorded](tower):
                run()
            handle.remove()
        assert torch.is_grad_enabled() == mode
    state.assert_same(before[0], state.of_model(tower.module))
    state.assert_same(before[1], state.of_thread())


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean", "siglip", "eva02", "words"])
def test_a_recording_does_not_change_the_result(name):
    """The forward computes what it always does; so does the one of a look."""
    clip = cases.adapter("hf_vit" if name == "words" else name, torch.float64)
    tower, run = clip.tower, clip.image_features
    if name == "words":
        tower, run = clip.text_tower, clip.text_features
        inputs = clip.text_inputs(["a horse", "a dog and a cat"])
    else:
        inputs = (cases.images(name, torch.float64),)
    for recorded in RECORDINGS.values():
        with recorded(tower):
            result = run(*inputs)
        torch.testing.assert_close(result.detach(), run(*inputs).detach())
    seen = []

    def looked():
        seen.append(run(*inputs))
        return seen[0]

    inspect_model(tower, [looked], ["blocks", "merge", "embedding"])
    torch.testing.assert_close(seen[0].detach(), run(*inputs).detach())


MOVES = {
    "permuted": lambda x: torch.cat([x[:, :1], x[:, 1:].roll(1, 1)], 1),
    "merged": lambda x: torch.cat([x[:, :2], x[:, 1:-1]], 1),
    "mixed": lambda x: x + 0.1 * x.mean(1, keepdim=True),
    "dropped": lambda x: x[:, :-1],
}


@pytest.mark.parametrize(
    ("move", "part"),
    [
        *((move, "encoder.layers.1") for move in MOVES),
        ("permuted", "encoder.layers.1.layer_norm1"),
        ("merged", "embeddings"),
    ],
)
def test_tokens_that_are_elsewhere_are_refused(move, part):
    """In the norm before an attention, before the first block, or behind another."""
    clip, images = cases.adapter("hf_vit", torch.float64), cases.images("hf_vit", torch.float64)
    module = clip.vision.get_submodule(part)
    handle = module.register_forward_hook(lambda m, a, out: MOVES[move](out))
    message = (
        r"does not read .* at its own place: .*such as prompts.*Occlusion|merges, drops or pads"
    )
    try:
        with pytest.raises(UnsupportedModelError, match=message):
            inspect_model(clip.tower, [lambda: clip.image_features(images)], ["blocks"])
    finally:
        handle.remove()


def test_tokens_below_which_the_graph_is_off_are_refused():
    """With frozen weights nothing else has a gradient, so nothing tells the tokens apart."""
    clip, images = cases.adapter("hf_vit", torch.float64), cases.images("hf_vit", torch.float64)
    frozen = copy.deepcopy(clip.model).requires_grad_(False)
    clip = load_clip(frozen)
    for layer in clip.tower.layers:
        layer.block.layer_norm1.register_forward_hook(lambda m, a, out: out.detach())
        layer.block.layer_norm2.register_forward_hook(lambda m, a, out: out.detach())
    message = r"no gradient passes the vision tower .*turns the graph off"
    with pytest.raises(UnsupportedModelError, match=message):
        inspect_model(clip.tower, [lambda: clip.image_features(images)], ["blocks"])


def test_each_law_has_a_name_and_those_of_some_methods_are_known():
    """A method names the laws that it needs, and no other one would be seen to."""
    names = [law.name for law in LAWS]
    assert len({*names}) == len(names)
    named = {law.name for law in LAWS if not law.is_general}
    # Other tests register methods of their own, which may be no `ClipAttribution`.
    needed = {name for kind in attr.METHODS.values() for name in getattr(kind, "_laws", ())}
    assert needed == named == {"blocks", "merge", "embedding"}


def test_forward_without_the_tower_is_refused(setting):
    """The end of the recording refuses it."""
    tower, _, _ = setting
    message = r"did not run the vision tower.*exactly once"
    with pytest.raises(CaptureError, match=message), observe(tower):
        pass


def test_second_run_of_the_tower_is_refused(setting):
    """At once."""
    tower, run, _ = setting
    message = r"twice.*Encode texts and reference images beforehand"
    with torch.no_grad(), pytest.raises(CaptureError, match=message), observe(tower):
        [run(), run()]


@pytest.mark.parametrize("mode", [torch.inference_mode])
def test_recording_of_a_gradient_without_grad_is_refused(setting, mode):
    """The cure is named."""
    tower, run, _ = setting
    message = r"under torch\.no_grad\(\) or torch\.inference_mode"
    with pytest.raises(CaptureError, match=message), observe(tower, LeafAtInput()), mode():
        run()


def test_bad_images_are_refused_before_the_tower_runs():
    """Whatever the callable passes on is checked at the tower's door."""
    clip = cases.adapter("hf_vit")
    message = r"the images .* hold NaN or infinity"
    with pytest.raises(InputError, match=message), torch.no_grad(), observe(clip.tower):
        clip.vision(torch.full((1, 3, 32, 32), float("nan")))


def test_other_threads_are_not_recorded(setting):
    """A forward in another thread shows nothing."""
    tower, run, seen = setting
    results = []

    def elsewhere():
        results.append(run())

    with torch.no_grad(), observe(tower, Kernels(range(0, 3))) as record:
        worker = threading.Thread(target=elsewhere)
        worker.start()
        worker.join()
        assert record.size is None
        run()
    assert len(record.reads) == 3
    assert results[0].requires_grad
    torch.testing.assert_close(results[0].detach(), seen.embedding, rtol=1e-10, atol=1e-10)


def test_two_threads_record_one_tower(setting):
    """Each sees its own images."""
    tower, _, _ = setting
    start, batches = threading.Barrier(2), {}

    def work(batch):
        images = torch.zeros(batch, 3, 32, 32, dtype=torch.float64)
        with torch.no_grad(), observe(tower, Kernels(range(0, 3))) as record:
            start.wait(30)
            tower.module(images)
        batches[batch] = {len(read.value) for read in record.reads.values()} | {record.batch}

    workers = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert batches == {1: {1}, 2: {2}}


def test_resnet_shows_its_features():
    """The last stage, at which the graph begins."""
    clip = cases.adapter("open_clip_resnet", torch.float64)
    images, seen = cases.images("open_clip_resnet", torch.float64), cases.seen("open_clip_resnet")
    before = state.of_model(clip.vision)
    with observe(clip.tower, Features(leaf=True)) as record:
        result = clip.image_features(images)
    torch.testing.assert_close(record.features, seen.features, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(result, seen.embedding, rtol=1e-9, atol=1e-10)
    (found,) = torch.autograd.grad(result.sum(), record.features)
    (whole,) = torch.autograd.grad(seen.embedding.sum(), seen.features, retain_graph=True)
    torch.testing.assert_close(found, whole, rtol=1e-8, atol=1e-10)
    state.assert_same(before, state.of_model(clip.vision))
