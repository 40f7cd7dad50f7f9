"""A recording sees what it should, ends where it should, and takes everything back."""

from __future__ import annotations

import threading

import pytest
import torch

from captum_clip.errors import CaptureError, InputError
from captum_clip.recording import record_resnet, record_vit
from tests import oracles
from tests.attr import cases, state


def shown(tensor: torch.Tensor | None) -> torch.Tensor:
    """A tensor that was recorded."""
    assert tensor is not None
    return tensor


@pytest.fixture(params=cases.VITS)
def setting(request):
    """A tower, a function that runs it, and what an oracle sees."""
    name = request.param
    clip = cases.adapter(name, torch.float64)
    images = cases.images(name, torch.float64)
    return clip.tower, (lambda: clip.image_features(images)), cases.seen(name)


def test_kept_layers_show_their_tokens_and_output(setting):
    """Tokens, and the attention's output in its place in the block."""
    tower, run, seen = setting
    with torch.no_grad(), record_vit(tower, keep=range(1, 3)) as record:
        run()
    assert set(record.layers) == {1, 2}
    assert (record.size, record.batch, record.stopped) == ((32, 32), 3, False)
    for index in (1, 2):
        kept, layer = record.layers[index], tower.layers[index]
        maps = [(m.weight, m.bias) for m in layer.projections()]
        tokens = shown(kept.tokens)
        output, attention = oracles.attend(tokens, maps, layer.heads)
        torch.testing.assert_close(attention, seen.attention[index], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(kept.output, output, rtol=1e-10, atol=1e-10)
        for part, linear in zip(("query", "key", "value"), maps, strict=False):
            tapped = getattr(kept, part)
            if tapped is not None:
                torch.testing.assert_close(tapped, oracles.linear(tokens, *linear))
        if kept.heads_output is not None:
            torch.testing.assert_close(oracles.linear(kept.heads_output, *maps[3]), output)


def test_layers_that_are_not_kept_show_nothing(setting):
    """What is not asked for is not kept."""
    tower, run, _ = setting
    with torch.no_grad(), record_vit(tower) as record:
        run()
    assert record.layers == {}
    assert record.residual.numel() == 0


def test_visits_come_in_order(setting):
    """Each layer's tokens once, when its attention starts."""
    tower, run, _ = setting
    visits = []

    def visit(index, seen):
        visits.append((index, seen.tokens.shape, seen.tokens.requires_grad))

    with torch.no_grad(), record_vit(tower, visit=(range(0, 2), visit)):
        run()
    assert visits == [(0, (3, 17, 32), False), (1, (3, 17, 32), False)]


def test_stop_ends_the_forward_at_the_attention(setting):
    """Nothing after it runs; its tokens and the block's input are kept."""
    tower, run, _ = setting
    ran = []
    handle = tower.layers[1].block.register_forward_hook(lambda *_: ran.append("the block ended"))
    try:
        with torch.no_grad(), record_vit(tower, stop=1) as record:
            run()
            ran.append("the forward came back")
    finally:
        handle.remove()
    assert record.stopped
    assert ran == []
    residual, tokens = shown(record.residual), shown(record.layers[1].tokens)
    assert residual.shape == tokens.shape == (3, 17, 32)
    layer = tower.layers[1]
    maps = [(m.weight, m.bias) for m in layer.projections()]
    after = layer.tail(residual, oracles.attend(tokens, maps, layer.heads)[0])[1]
    with torch.no_grad(), record_vit(tower, stop=2) as record:
        run()
    torch.testing.assert_close(shown(record.residual), after, rtol=1e-10, atol=1e-10)


def test_graph_begins_at_the_leaf(setting):
    """Nothing before it is in a graph; it is a leaf of the result."""
    tower, run, _ = setting
    grad_modes = []
    handles = [
        layer.block.register_forward_pre_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
        for layer in tower.layers
    ]
    try:
        with record_vit(tower, keep=range(1, 3), leaf=1) as record:
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    assert grad_modes == [False, False, True]
    leaf, last = shown(record.layers[1].output), shown(record.layers[2].output)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert not shown(record.layers[1].tokens).requires_grad
    assert last.grad_fn is not None
    for gradient in torch.autograd.grad(result.sum(), (leaf, last)):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", [*cases.VITS, "siglip", "naflex", "eva02"])
def test_the_input_can_be_the_leaf(name):
    """The gradient at the images is that of a plain forward, and the maps are a formula of it."""
    clip, images = cases.adapter(name, torch.float64), cases.images(name, torch.float64)
    with record_vit(clip.tower, leaf="input", keep=range(1)) as record:
        result = clip.image_features(images)
    assert record.input.is_leaf
    assert record.layers[0].tokens.requires_grad
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
    with record_vit(tower, leaf="input") as record:
        result = clip.text_features(ids, mask)
    (found,) = torch.autograd.grad(result[:, 0].sum(), record.input)
    tokens = tower.embedding_table(ids).detach().requires_grad_()
    handle = tower.embedding_table.register_forward_hook(lambda *_: tokens)
    (wanted,) = torch.autograd.grad(clip.text_features(ids, mask)[:, 0].sum(), tokens)
    handle.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_recording_does_not_change_the_result(setting):
    """The forward computes what it always does."""
    tower, run, seen = setting
    with record_vit(tower, keep=range(0, 3), leaf=0):
        result = run()
    torch.testing.assert_close(result.detach(), seen.embedding, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"keep": range(0, 3), "leaf": 1}, {"stop": 2}], ids=str)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_everything_is_taken_back(setting, options, fails, mode):
    """Hooks and the grad mode, wherever the forward ends."""
    tower, run, _ = setting

    def fail(*_):
        raise ZeroDivisionError

    def recorded():
        with record_vit(tower, **options):
            run()

    gradient = "leaf" in options
    before = state.of_model(tower.module), state.of_thread()
    with torch.set_grad_enabled(mode or gradient):
        if fails:
            handle = tower.layers[1].block.register_forward_hook(fail)
            with pytest.raises(ZeroDivisionError):
                recorded()
            handle.remove()
        else:
            recorded()
        assert torch.is_grad_enabled() == (mode or gradient)
    state.assert_same(before[0], state.of_model(tower.module))
    state.assert_same(before[1], state.of_thread())


def test_forward_without_the_tower_is_refused(setting):
    """The end of the recording refuses it."""
    tower, _, _ = setting
    message = r"did not run the vision tower.*exactly once"
    with pytest.raises(CaptureError, match=message), record_vit(tower):
        pass


def test_second_run_of_the_tower_is_refused(setting):
    """At once."""
    tower, run, _ = setting
    message = r"twice.*Encode texts and reference images beforehand"
    with torch.no_grad(), pytest.raises(CaptureError, match=message), record_vit(tower):
        [run(), run()]


def test_second_run_after_a_stop_never_comes(setting):
    """Code after the stopped forward does not run, so it cannot run the tower again."""
    tower, run, _ = setting
    with torch.no_grad(), record_vit(tower, stop=2) as record:
        run()
        run()
    assert record.stopped


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_recording_of_a_gradient_without_grad_is_refused(setting, mode):
    """The cure is named."""
    tower, run, _ = setting
    message = r"under torch\.no_grad\(\) or torch\.inference_mode"
    with pytest.raises(CaptureError, match=message), record_vit(tower, leaf=2), mode():
        run()


def test_bad_images_are_refused_before_the_tower_runs():
    """Whatever the callable passes on is checked at the tower's door."""
    clip = cases.adapter("hf_vit")
    message = r"the images .* hold NaN or infinity"
    with pytest.raises(InputError, match=message), torch.no_grad(), record_vit(clip.tower):
        clip.vision(torch.full((1, 3, 32, 32), float("nan")))


def test_other_threads_are_not_recorded(setting):
    """A forward in another thread neither stops nor shows anything."""
    tower, run, seen = setting
    results = []

    def elsewhere():
        results.append(run())

    with torch.no_grad(), record_vit(tower, keep=range(0, 3), stop=2) as record:
        worker = threading.Thread(target=elsewhere)
        worker.start()
        worker.join()
        assert record.size is None
        run()
    assert record.stopped
    assert results[0].requires_grad
    torch.testing.assert_close(results[0].detach(), seen.embedding, rtol=1e-10, atol=1e-10)


def test_two_threads_record_one_tower(setting):
    """Each sees its own images."""
    tower, _, _ = setting
    start, batches = threading.Barrier(2), {}

    def work(batch):
        images = torch.zeros(batch, 3, 32, 32, dtype=torch.float64)
        with torch.no_grad(), record_vit(tower, keep=range(0, 3)) as record:
            start.wait(30)
            tower.module(images)
        batches[batch] = {len(shown(kept.tokens)) for kept in record.layers.values()} | {
            record.batch
        }

    workers = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert batches == {1: {1}, 2: {2}}


@pytest.mark.parametrize("stop", [False, True])
def test_resnet_shows_its_features(stop):
    """The last stage, and a zero shift whose gradient is the sum over the positions."""
    clip = cases.adapter("open_clip_resnet", torch.float64)
    images, seen = cases.images("open_clip_resnet", torch.float64), cases.seen("open_clip_resnet")
    before = state.of_model(clip.vision)
    with record_resnet(clip.tower, then="stop" if stop else "shift") as record:
        result = clip.image_features(images)
    features = shown(record.features)
    torch.testing.assert_close(features, seen.features.detach(), rtol=1e-9, atol=1e-10)
    assert not features.requires_grad
    assert record.stopped == stop
    if not stop:
        torch.testing.assert_close(result.detach(), seen.embedding, rtol=1e-9, atol=1e-10)
        (shift,) = torch.autograd.grad(result.sum(), shown(record.shift))
        (whole,) = torch.autograd.grad(seen.embedding.sum(), seen.features, retain_graph=True)
        torch.testing.assert_close(shift, whole.sum((2, 3)), rtol=1e-8, atol=1e-10)
    state.assert_same(before, state.of_model(clip.vision))
