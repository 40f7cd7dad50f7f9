"""Vectors and shares of pairs equal their equations, in all families, and add up to the cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_clip import (
    ClipPairSimilarity,
    ClipSimilarity,
    DirectContribution,
    DirectInteraction,
    TextSimilarity,
    load_clip,
    targets,
)
from captum_clip.errors import InputError, TargetError, UnsupportedModelError
from captum_clip.models.steps import Direction, GatedLinear, Residual, pull_back, push_forward
from tests import builders, oracles
from tests.attr import cases, state, test_direct, test_text_side
from tests.attr.cases import CONVOLUTIONAL

PAIRS = ["hf_vit", "siglip", "align", "open_clip_mean"]
"""Images pool CLS, by a head, on average, and CLS; texts the end, the last token, CLS, a mean."""
TEXTS = test_text_side.TEXTS
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def inputs(name: str) -> tuple[Any, Tensor, Tensor, Tensor | None]:
    """A small model in float64, two images, and two texts with their mask."""
    clip = test_text_side.small(name).load()
    pixels = test_text_side.small(name).images(2, torch.float64)
    return clip, pixels, *test_text_side.inputs(name)


def image_vectors(name: str) -> Tensor:
    """The share of each position in the unit embedding, (B, N, E), from the equation."""
    model = test_text_side.small(name).model
    pixels = test_text_side.small(name).images(2, torch.float64)
    if name == "align":
        view = oracles.see_average_pooled(model, pixels)
        parts = view.features.flatten(2).mT / view.features[0, 0].numel()
        return (parts / view.embedding.norm(dim=-1)[:, None, None]).detach()
    if name != "siglip":
        layers, embedding = test_direct.vit_parts_of(model, oracles.see(model, pixels), pixels)
        return (layers.sum((1, 2)) / embedding.norm(dim=-1)[:, None, None])[:, 1:]
    head, seen = model.vision_model.head, []
    handle = head.attention.register_forward_hook(lambda _, args, result: seen.append(args))
    with torch.no_grad():
        embedding = model.get_image_features(pixels).pooler_output
    handle.remove()
    query, tokens, _ = seen[0]
    own = head.attention
    maps = zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
    q, k, v = (
        (x @ weight.T + bias).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
        for x, (weight, bias) in zip((query, tokens, tokens), maps, strict=True)
    )
    weights = (q @ k.mT / v.shape[-1] ** 0.5).softmax(-1)[:, :, 0]  # (B, H, s)
    split = own.out_proj.weight.unflatten(1, (own.num_heads, -1))
    parts = torch.einsum("bhj,bhjd,ohd->bjo", weights, v, split)
    whole = (parts.sum(1) + own.out_proj.bias).detach().requires_grad_()
    inner = oracles.linear(
        oracles.norm(whole, head.layernorm, detached=True),
        *test_text_side.linear(head.mlp.fc1),
    )
    inner = oracles.activated(head.mlp.activation_fn, inner, detached=True)
    result = whole + oracles.linear(inner, *test_text_side.linear(head.mlp.fc2))
    torch.testing.assert_close(result, embedding, **EXACT)
    axes = [torch.autograd.grad(y, whole, retain_graph=True)[0] for y in result.sum(0)]
    slopes = torch.stack(axes, 1)  # (B, E, D)
    vectors = torch.einsum("bed,bjd->bje", slopes, parts)
    return (vectors / embedding.norm(dim=-1)[:, None, None]).detach()


@pytest.mark.parametrize("name", PAIRS)
def test_shares_equal_their_equation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text's values for each image vector as a target, one pair of inputs at a time."""
    clip, pixels, ids, mask = inputs(name)
    vectors, count = image_vectors(name), ids.shape[1]
    method = DirectInteraction(ClipPairSimilarity(clip))
    found = method.attribute((pixels, ids), additional_forward_args=mask)
    every = method.attribute_pairs(pixels, ids, mask)
    for image in range(2):
        monkeypatch.setattr(test_text_side, "embeddings", lambda _, own=vectors[image]: own)
        seen = test_text_side.run(name, ids, mask)
        wanted = test_text_side.direct(name, seen)[..., :count].mT  # (N, T, h w)
        assert wanted.abs().max() > 1e-4
        test_text_side.assert_near(name, every[image].flatten(2), wanted)
        test_text_side.assert_near(name, found[image].flatten(1), wanted[image])


def test_shares_through_all_layers_equal_the_second_derivative_with_gates_detached() -> None:
    r"""x_i . d^2 cos / dx_i dw_j . w_j, x and w the projected patches and the embedded tokens."""
    clip, pixels, ids, mask = inputs("hf_vit")
    view = oracles.see(clip.model, pixels, detached=True)
    seen = test_text_side.run("hf_vit", ids, mask, hold=True)
    text = seen_embedding("hf_vit", seen)
    unit, other = (e / e.detach().norm(dim=-1, keepdim=True) for e in (view.embedding, text))
    (slopes,) = torch.autograd.grad((unit * other).sum(), view.projected, create_graph=True)
    by_patch = (slopes * view.projected.detach()).sum(-1)  # (B, N)
    rows = [torch.autograd.grad(y, seen.words, retain_graph=True)[0] for y in by_patch.sum(0)]
    wanted = torch.stack([(row * seen.words.detach()).sum(-1) for row in rows], -1)  # (B, T, N)
    method = DirectInteraction(ClipPairSimilarity(clip))
    found = method.attribute((pixels, ids), additional_forward_args=mask, depth="all")
    torch.testing.assert_close(found.flatten(2), wanted, **EXACT)
    # of one side, along the other's vectors: what the two sides' own methods give
    for depth in (("all", "pooling"), ("pooling", "all")):
        mixed = method.attribute((pixels, ids), additional_forward_args=mask, depth=depth)
        images = DirectContribution(cases_similarity(clip)).vectors(pixels, depth=depth[0])
        texts = DirectContribution(TextSimilarity(clip, axis(clip))).vectors(
            ids, mask, depth=depth[1]
        )
        expected = torch.einsum("bhwe,bte->bthw", images, texts)
        torch.testing.assert_close(mixed, expected, **EXACT)
        every, rest = method.attribute_pairs(pixels[:1], ids, mask, depth=depth, return_rest=True)
        assert [part.shape for part in (every, *rest)] == [
            (1, 2, ids.shape[1], 4, 4),
            (1, 2, ids.shape[1]),
            (1, 2, 4, 4),
            (1, 2),
        ]
        torch.testing.assert_close(every[:, :1], expected[:1, None], **EXACT)


def test_a_side_through_all_layers_takes_a_gradient_for_each_position_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, pixels, ids, mask = inputs("hf_vit")
    method = DirectInteraction(ClipPairSimilarity(clip))
    grad, counts = torch.autograd.grad, list[int]()

    def counted(outputs: Any, inputs: Any, rows: Tensor, *rest: Any, **options: Any) -> Any:
        counts.append(len(rows) if options.get("is_grads_batched") else 1)
        return grad(outputs, inputs, rows, *rest, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for depth, sides, wanted in (
        (("all", "pooling"), 1, ids.shape[1] + 1),
        (("pooling", "all"), 1, 16 + 1),
        ("all", 2, clip.embedding_dim + ids.shape[1] + 1),
    ):
        for _ in range(2):  # the first call of a kind looks at the model
            counts.clear()
            method.attribute((pixels, ids), additional_forward_args=mask, depth=depth)
        assert sum(counts) == wanted + sides  # one of each sees that what is held is linear
        assert len(counts) <= 3 * sides  # all but the first of a side go together


def seen_embedding(name: str, seen: Any) -> Tensor:
    token = seen.hidden[torch.arange(len(seen.rows)), seen.rows]
    head = test_text_side.parts(test_text_side.small(name).model)["head"]
    return test_text_side.through_head(token, head, hold=True)


def axis(clip: Any) -> Any:
    return targets.embedding(torch.eye(2, clip.embedding_dim))


def cases_similarity(clip: Any) -> ClipSimilarity:
    return ClipSimilarity(clip, axis(clip))


OPTIONS: list[dict[str, Any]] = [{}, {"baseline": "mean"}, {"start_layer": 1}, {"depth": "all"}]


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean", "siglip", "open_clip_resnet"])
def test_a_map_is_the_product_of_the_vectors_with_its_text(name: str) -> None:
    """Of every family and option, the rest as well; and no vector depends on the target."""
    method = DirectContribution(cases.similarity(name, torch.float64))
    pixels, rows = cases.images(name, torch.float64), cases.embeddings()
    for options in OPTIONS if name not in CONVOLUTIONAL else OPTIONS[:2]:
        maps, rest = method.attribute_targets(pixels, return_rest=True, **options)
        vectors, left = method.vectors(pixels, return_rest=True, **options)
        assert vectors.shape == (3, *maps.shape[-2:], rows.shape[1])
        wanted = torch.einsum("bhwe,ke->bkhw", vectors, rows)
        torch.testing.assert_close(maps, wanted, **EXACT)
        torch.testing.assert_close(rest, left @ rows.T, **EXACT)


@pytest.mark.parametrize("name", test_text_side.READING)
def test_values_of_words_are_products_of_their_vectors(name: str) -> None:
    ids, mask = test_text_side.inputs(name)
    method = DirectContribution(test_text_side.similarity(name))
    for options in OPTIONS:
        values, rest = method.attribute_targets(
            ids, additional_forward_args=mask, return_rest=True, **options
        )
        vectors, left = method.vectors(ids, mask, return_rest=True, **options)
        rows = test_text_side.embeddings(name)
        test_text_side.assert_near(name, values, (vectors @ rows.T).mT)
        test_text_side.assert_near(name, rest, left @ rows.T)


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("hf_vit", torch.float32, 1e-6),
        *((n, torch.float64, 1e-10) for n in ("siglip", "open_clip_resnet")),
    ],
)
def test_shares_and_rests_add_up_to_the_cosine(name: str, dtype: torch.dtype, bound: float) -> None:
    """Of texts and of images, one with one and all with all."""
    clip, pixels = cases.adapter(name, dtype), cases.images(name, dtype)
    ids, mask = clip.text_inputs([*TEXTS, "a cat"])
    for side, others, extra in (("text", ids, mask), ("image", pixels.flip(0), None)):
        forward = ClipPairSimilarity(clip, side)  # type: ignore[arg-type]
        with torch.no_grad():
            scores = forward(pixels, others, extra)
        method = DirectInteraction(forward)
        shares, rest = method.attribute(
            (pixels, others), additional_forward_args=extra, return_rest=True
        )
        cells = shares.shape[1:-2]
        assert shares.shape[-2:] == rest.image.shape[1:]
        assert rest.other.shape == (3, *cells)
        parts = (shares, rest.other, rest.image)
        total = sum(part.flatten(1).sum(1) for part in parts) + rest.constant
        assert (total - scores).abs().max() < bound
        every, left = method.attribute_pairs(pixels, others, extra, return_rest=True)
        assert every.shape == (3, 3, *shares.shape[1:])
        picked = torch.arange(3), torch.arange(3)
        near: dict[str, Any] = {"rtol": 1e-4, "atol": bound}
        torch.testing.assert_close(every[picked], shares, **near)
        for whole, one in zip(left, rest, strict=True):
            torch.testing.assert_close(whole[picked], one, **near)


def test_options_of_one_side_leave_the_other_as_it_is() -> None:
    clip, pixels, ids, mask = inputs("hf_vit")
    method = DirectInteraction(ClipPairSimilarity(clip))
    run = {"additional_forward_args": mask}
    plain = method.attribute((pixels, ids), **run)
    centered = method.attribute((pixels, ids), **run, baseline=("mean", "none"))
    images = DirectContribution(cases_similarity(clip)).vectors(pixels, baseline="mean")
    texts = DirectContribution(TextSimilarity(clip, axis(clip))).vectors(ids, mask)
    torch.testing.assert_close(centered, torch.einsum("bhwe,bte->bthw", images, texts), **EXACT)
    assert (centered - plain).abs().max() > 1e-3 * plain.abs().max()
    later = method.attribute((pixels, ids), **run, start_layer=(0, 1))
    torch.testing.assert_close(
        later, method.attribute((pixels, ids), **run, start_layer=[0, 1]), rtol=0, atol=0
    )
    assert not torch.allclose(later, plain)


def test_a_part_goes_forward_as_a_direction_comes_back() -> None:
    """d . f(v) = f'(d) . v for every kind of step, one the transpose of the other."""
    torch.manual_seed(0)
    mlp = (nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))
    rms = nn.RMSNorm(6, eps=1e-6)
    gated = (nn.Linear(6, 6).double(), nn.SiLU()), nn.Linear(6, 6).double()
    steps: Any = (nn.LayerNorm(6), Residual((rms, *mlp)), nn.Tanh(), nn.Dropout())
    steps = (*steps, GatedLinear(*gated), nn.Linear(6, 3))
    for module in (*steps[0].parameters(), *rms.parameters()):
        nn.init.normal_(module)
    steps = tuple(s.double().eval() if isinstance(s, nn.Module) else s for s in steps)
    for part in (rms, *mlp):
        part.double()
    token, vectors = torch.randn(2, 6).double(), torch.randn(2, 4, 6).double()
    rows = torch.randn(3, 2, 3).double()
    with torch.no_grad():
        back = pull_back(steps, token, Direction.of(rows, torch.ones(2).double())).dense()
        _, forth = push_forward(steps, token, vectors)
    torch.testing.assert_close(
        torch.einsum("kbd,bnd->kbn", back, vectors), torch.einsum("kbe,bne->kbn", rows, forth)
    )


def test_integrated_gradients_take_a_pair_of_images() -> None:
    """The forward function is differentiable in both, so Captum's completeness holds."""
    clip = cases.adapter("hf_vit", torch.float64)
    pixels = cases.images("hf_vit", torch.float64)
    forward = ClipPairSimilarity(clip, "image")
    method = IntegratedGradients(forward)
    baselines = (torch.zeros_like(pixels) + 0.1, torch.zeros_like(pixels) - 0.1)
    maps, delta = method.attribute(
        (pixels, pixels.flip(0)), baselines=baselines, n_steps=100, return_convergence_delta=True
    )
    assert all(part.shape == pixels.shape and part.abs().max() > 0 for part in maps)
    assert delta.abs().max() < 1e-3
    ids, mask = clip.text_inputs(TEXTS)
    scores = ClipPairSimilarity(clip)(pixels[:2], ids, mask)
    wanted = (clip.encode_image(pixels[:2]) * clip.encode_text(TEXTS)).sum(-1)
    torch.testing.assert_close(scores, wanted)


def test_bad_pairs_are_a_sentence_each() -> None:
    clip, similarity = cases.adapter("hf_vit"), cases.similarity("hf_vit")
    pixels, (ids, mask) = cases.images("hf_vit"), clip.text_inputs([*TEXTS, "a cat"])
    assert mask is not None
    pair: Any = ClipPairSimilarity
    interaction: Any = DirectInteraction
    method = DirectInteraction(ClipPairSimilarity(clip))
    images = DirectInteraction(ClipPairSimilarity(clip, "image"))
    long = torch.ones(3, 200, dtype=torch.long)
    for run, error, message in (
        (lambda: method.attribute((pixels[:1], ids), None, mask), InputError, "as many texts as"),
        (lambda: method.attribute((pixels, ids), None, mask[:, 1:]), InputError, "attention_mask"),
        (lambda: method.attribute((pixels, long)), InputError, "texts of up to 77 tokens"),
        (lambda: method.attribute((pixels, pixels)), InputError, r"token ids of shape \(B, T\)"),
        (lambda: method.attribute(pixels), InputError, "a tuple of two tensors"),
        (lambda: interaction.attribute(method, None), InputError, "images and texts, got None"),
        (
            lambda: method.attribute((pixels, ids), torch.zeros(3)),
            TargetError,
            "no target, got Ten",
        ),
        (lambda: method.attribute((pixels, ids), None, mask, depth=mask), InputError, "of pooling"),
        (lambda: method.attribute((pixels, ids), 1, mask), TargetError, "one score for each pair"),
        (lambda: method.attribute((pixels, ids), None, mask, depth="x"), InputError, "of pooling"),
        (lambda: method.attribute((pixels, ids), None, mask, depth=("all",) * 3), InputError, "or"),
        (lambda: images.attribute((pixels, pixels), None, mask), InputError, "belongs to texts"),
        (lambda: images.attribute((pixels, pixels[:1])), InputError, "as many reference images as"),
        (lambda: pair(clip, "word"), InputError, "expected a side of text, image"),
        (lambda: pair(clip.model), InputError, "an adapter from load_clip"),
        (lambda: interaction(similarity), InputError, "ClipPairSimilarity"),
    ):
        with pytest.raises(error, match=message):
            run()
    with pytest.raises(InputError, match=r"expected a tensor of images, got \(\)"):
        DirectContribution(similarity).vectors(())
    own = DirectContribution(lambda x: x, cases.built("hf_vit").model)
    with pytest.raises(InputError, match="which embedding a forward function of your own"):
        own.vectors(pixels)


@pytest.mark.parametrize("where", ["head", "outside", "layer"])
def test_a_changed_model_is_followed_or_refused(where: str) -> None:
    """A hook on the projection or on a layer's MLP is followed, one on the last norm is refused."""
    small = builders.hf_vit()
    clip, pixels, (ids, mask) = small.load(), small.images(2), small.load().text_inputs(TEXTS)
    method = DirectInteraction(ClipPairSimilarity(clip))
    vision = small.model.vision_model
    module = {
        "head": vision.post_layernorm,
        "outside": small.model.visual_projection,
        "layer": vision.encoder.layers[0].mlp,
    }[where]
    handle = module.register_forward_hook(lambda _, args, result: result * 2)
    run = {"additional_forward_args": mask, "return_rest": True}
    if where != "head":
        shares, rest = method.attribute((pixels, ids), **run)
        total = shares.sum((1, 2, 3)) + rest.other.sum(1) + rest.image.sum((1, 2)) + rest.constant
        torch.testing.assert_close(total, ClipPairSimilarity(clip)(pixels, ids, mask).detach())
    else:
        for each in (method, DirectInteraction(ClipPairSimilarity(small.load()))):
            with pytest.raises(UnsupportedModelError, match="the embedding of the vision tower"):
                each.attribute((pixels, ids), **run)
    handle.remove()


def test_a_forward_function_of_another_score_is_refused() -> None:
    """A subclass, a hook and a patched forward may all scale the cosine."""

    class Scaled(ClipPairSimilarity):
        def forward(self, *args: Any) -> Tensor:
            return 2 * super().forward(*args)

    clip, pixels, ids, mask = inputs("hf_vit")
    hooked, patched = ClipPairSimilarity(clip), ClipPairSimilarity(clip)
    hooked.register_forward_hook(lambda _, args, result: 2 * result)
    patched.forward = lambda *args: 0  # type: ignore[method-assign, assignment]
    for forward in (Scaled(clip), hooked, patched):
        with pytest.raises(UnsupportedModelError, match="its score may be more than the cosine"):
            DirectInteraction(forward).attribute((pixels, ids), None, mask)


def test_nothing_is_left_behind() -> None:
    clip = load_clip("demo/vit")
    pixels = torch.randn(2, 3, 224, 224, requires_grad=True)
    ids, mask = clip.text_inputs(TEXTS)
    before = state.of_model(clip.model)
    method = DirectInteraction(ClipPairSimilarity(clip))
    shares = method.attribute((pixels, ids), additional_forward_args=mask, depth=("all", "pooling"))
    assert not shares.requires_grad
    assert pixels.grad is None
    with torch.inference_mode():
        again = method.attribute(
            (pixels, ids), additional_forward_args=mask, depth=("all", "pooling")
        )
    torch.testing.assert_close(again, shares, rtol=0, atol=0)
    state.assert_same(before, state.of_model(clip.model))
