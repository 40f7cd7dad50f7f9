"""DirectContribution equals its equation, position by position, and adds up to the score."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, DirectContribution, targets
from captum_clip.attr import METHODS
from captum_clip.errors import InputError, UnsupportedModelError
from tests import builders, oracles
from tests.attr import cases, plain
from tests.attr.cases import CLS_TOWERS, CONVOLUTIONAL, FORWARDS, POOLINGS, TOWERS

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
HEADS = 4


def explain(
    name: str, forward: str = "similarity", dtype: Any = torch.float64, **options: Any
) -> Any:
    """Maps, scores and rest of a small model's images."""
    function, layer = FORWARDS[forward](name, dtype)
    method = DirectContribution(function, layer)
    return method.attribute_targets(
        cases.images(name, dtype), return_scores=True, return_rest=True, **options
    )


def caught(model: Any, modules: dict[str, nn.Module], pixels: Tensor) -> dict[str, tuple[Any, Any]]:
    """What entered some modules and what they returned."""
    seen: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, result: Any) -> None:
            seen[name] = (next(iter([*args, *kwargs.values()])), result)

        return hook

    handles = [m.register_forward_hook(note(n), with_kwargs=True) for n, m in modules.items()]
    with torch.no_grad():
        cases.embed(model, pixels)
    for handle in handles:
        handle.remove()
    return seen


def frozen_norm(norm: Any, vectors: Tensor, at: Tensor) -> Tensor:
    """What vectors add to a norm's output whose deviation is that of `at`, less its bias."""
    if isinstance(norm, nn.Identity):
        return vectors
    sigma = (at.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    while sigma.ndim < vectors.ndim:
        sigma = sigma[:, None]
    return (vectors - vectors.mean(-1, keepdim=True)) / sigma * norm.weight


def vit_parts(name: str) -> tuple[Tensor, Tensor]:
    """What every head of every layer adds to the embedding, (B, n, H, s, E), and the embedding."""
    model = cases.built(name, torch.float64).model
    return vit_parts_of(model, cases.seen(name), cases.images(name).double())


def vit_parts_of(model: Any, view: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any model that pools CLS, as its oracle saw it."""
    hf = not hasattr(model, "visual")
    blocks = model.vision_model.encoder.layers if hf else model.visual.transformer.resblocks
    attentions = {str(i): b.self_attn if hf else b.attn for i, b in enumerate(blocks)}
    seen = caught(model, attentions, pixels)
    end = model.vision_model.post_layernorm if hf else model.visual.ln_post
    projection = model.visual_projection.weight.T if hf else model.visual.proj
    parts = []
    for index, block in enumerate(blocks):
        own = attentions[str(index)]
        if hf:
            value, output = own.v_proj, own.out_proj
            weight, bias = value.weight, value.bias
        else:
            weight, bias = own.in_proj_weight.chunk(3)[2], own.in_proj_bias.chunk(3)[2]
            output = own.out_proj
        tokens = seen[str(index)][0]
        if not hf and not getattr(own, "batch_first", True):
            tokens = tokens.transpose(0, 1)
        batch, count, width = tokens.shape
        values = (tokens @ weight.T + bias).reshape(batch, count, HEADS, -1).transpose(1, 2)
        each = view.attention[index][:, :, 0, :, None] * values  # (B, H, s, d)
        per_head = output.weight.reshape(width, HEADS, -1)  # (D, H, d)
        added = torch.einsum("bhsd,whd->bhsw", each, per_head)
        whole = added.sum((1, 2)) + output.bias  # the attention's output for CLS
        added = frozen_norm(getattr(block, "ln_attn", nn.Identity()), added, whole)
        added = added * getattr(getattr(block, "ls_1", None), "gamma", 1)
        parts.append(frozen_norm(end, added, view.hidden[:, 0]) @ projection)
    return torch.stack(parts, 1).detach(), view.embedding.detach()


def shown(parts: Tensor, embeddings: Tensor, embedding: Tensor) -> Tensor:
    """Parts (B, ..., N, E) along K rows over the embedding's length, (B, K, ..., N)."""
    rows = embeddings[None] / embedding.norm(dim=-1)[:, None, None]
    return torch.einsum("b...ne,bke->bk...n", parts, rows)


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
@pytest.mark.parametrize("name", CLS_TOWERS[:2])
def test_direct_equals_its_equation_on_a_tower_that_reads_cls(name: str, forward: str) -> None:
    """By head, by layer and in all; from a later layer on; less the mean value."""
    scale = 1 if forward == "similarity" else 20
    parts, embedding = vit_parts(name)
    wanted = scale * shown(parts, cases.embeddings(), embedding)[..., 1:]  # (B, K, n, H, N)
    assert (wanted < 0).any()
    grid = (4, 4)
    by_head = explain(name, forward, per="head")[0]
    torch.testing.assert_close(by_head, wanted.unflatten(-1, grid), rtol=1e-9, atol=1e-12)
    by_layer = explain(name, forward, per="layer")[0]
    torch.testing.assert_close(by_layer, wanted.sum(3).unflatten(-1, grid), rtol=1e-9, atol=1e-12)
    later = explain(name, forward, start_layer=1)[0]
    expected = wanted[:, :, 1:].sum((2, 3)).unflatten(-1, grid)
    torch.testing.assert_close(later, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CLS_TOWERS[:1])
def test_baseline_takes_every_value_less_the_mean_value(name: str) -> None:
    """With v less its mean the value bias and a common shift of all patches drop out."""
    parts, embedding = vit_parts(name)
    wanted = shown(parts, cases.embeddings(), embedding)[..., 1:]
    view = cases.seen(name)
    weights = torch.stack([a[:, :, 0, 1:] for a in view.attention], 1)[:, None]  # (B, 1, n, H, N)
    values = wanted / weights  # what a patch would add with a weight of one
    wanted = (weights * (values - values.mean(-1, keepdim=True))).sum((2, 3)).detach()
    found = explain(name, baseline="mean")[0]
    torch.testing.assert_close(found, wanted.unflatten(-1, (4, 4)), rtol=1e-8, atol=1e-11)


@cache
def token_maps(name: str) -> Tensor:
    """What every head of every layer adds to the scores by the path of CLS, (B, K, n, H, N).

    The gradient with respect to the attention times the attention, of a plain forward in which
    every gate is a constant and each token's stream leads through its own MLPs alone.
    """
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    view = oracles.see(model, pixels, detached=True, apart=True)
    scores = view.embedding @ cases.embeddings().T
    scores = scores / view.embedding.norm(dim=-1, keepdim=True).detach()
    columns = []
    for y in scores.T:
        found = torch.autograd.grad(y.sum(), view.attention, retain_graph=True)
        shares = [g * a for g, a in zip(found, view.attention, strict=True)]
        assert not any(share[:, :, 1:].any() for share in shares)  # only the row of CLS is read
        columns.append(torch.stack([share[:, :, 0, 1:] for share in shares], 1))
    return torch.stack(columns, 1).detach()


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
@pytest.mark.parametrize("name", CLS_TOWERS[:2])
def test_depth_token_equals_its_equation(name: str, forward: str) -> None:
    """By head, by layer and in all; from a later layer on; for many targets; and as vectors."""
    scale = 1 if forward == "similarity" else 20
    wanted = scale * token_maps(name).unflatten(-1, (4, 4))
    whole = wanted.sum((2, 3))
    found = {
        "head": wanted,
        "layer": wanted.sum(3),
        None: whole,
    }
    for per, expected in found.items():
        maps = explain(name, forward, per=per, depth="token")[0]
        torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)
    later = explain(name, forward, start_layer=1, depth="token")[0]
    torch.testing.assert_close(later, wanted[:, :, 1:].sum((2, 3)), rtol=1e-9, atol=1e-12)
    direct = explain(name, forward)[0]
    assert (whole - direct).abs().max() > 0.1 * direct.abs().max()
    # the last layer's attention passes one MLP as well
    last = explain(name, forward, start_layer=2)[0]
    assert (wanted[:, :, 2].sum(2) - last).abs().max() > 0.1 * last.abs().max()
    if forward == "similarity":
        method = DirectContribution(cases.similarity(name, torch.float64))
        vectors = method.vectors(cases.images(name).double(), depth="token")
        products = torch.einsum("bhwe,ke->bkhw", vectors, cases.embeddings())
        torch.testing.assert_close(products, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["eva01", "eva02"])
def test_depth_token_equals_autograd_through_the_librarys_own_modules(name: str) -> None:
    """With gated MLPs, norms inside MLPs, norms after the sums' branches, and registers."""
    method = DirectContribution(cases.similarity(name, torch.float64))
    found = method.attribute_targets(cases.images(name, torch.float64), depth="token")
    wanted = plain.direct(name, mlps=True).view_as(found)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
def test_direct_equals_its_equation_on_a_mean_of_patches(forward: str, after: bool) -> None:
    """Every patch's own norm, or that of the mean, is a constant."""
    small = builders.open_clip_vit_mean(final_ln_after_pool=after)
    small.model.double()
    pixels, embeddings = small.images(3).double(), cases.embeddings()
    view = oracles.see(small.model, pixels)
    tokens = view.hidden[:, 1:]
    visual = small.model.visual
    at = tokens.mean(1) if after else tokens
    added = frozen_norm(visual.ln_post, tokens, at) @ visual.proj / tokens.shape[1]
    wanted = shown(added, embeddings, view.embedding).unflatten(-1, view.grid).detach()
    if forward == "similarity":
        method = DirectContribution(ClipSimilarity(small.load(), targets.embedding(embeddings)))
    else:
        method = DirectContribution(
            lambda x: F.normalize(small.model.encode_image(x), dim=-1) @ embeddings.T, small.model
        )
    found = method.attribute_targets(pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
def test_direct_equals_its_equation_on_an_attention_pool(forward: str) -> None:
    """Every position through its own value and through the mean token's."""
    name, scale = "open_clip_resnet", 1 if forward == "similarity" else 20
    view, pool = cases.seen(name), cases.built(name, torch.float64).model.visual.attnpool
    features = view.features.detach().flatten(2).transpose(1, 2)  # (B, N, C)
    tokens = torch.cat([features.mean(1, keepdim=True), features], 1) + pool.positional_embedding
    batch, count, width = tokens.shape
    query, key, value = (
        (tokens @ m.weight.T + m.bias).reshape(batch, count, pool.num_heads, -1).transpose(1, 2)
        for m in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    weights = (query[:, :, :1] @ key.mT / value.shape[-1] ** 0.5).softmax(-1)[:, :, 0]  # (B, H, s)
    own = weights[..., 1:, None] * value[:, :, 1:]
    spread = (features @ pool.v_proj.weight.T).reshape(batch, count - 1, pool.num_heads, -1)
    spread = weights[..., :1, None] * spread.transpose(1, 2) / (count - 1)
    per_head = pool.c_proj.weight.reshape(-1, pool.num_heads, width // pool.num_heads)
    parts = torch.einsum("bhsd,ehd->bhse", own + spread, per_head)
    wanted = scale * shown(parts, cases.embeddings(), view.embedding).detach()
    found = explain(name, forward, per="head")[0][:, :, 0]
    torch.testing.assert_close(found, wanted.unflatten(-1, (3, 3)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("forward", ["similarity", "callable, layer=model"])
def test_direct_is_cam_where_the_embedding_is_the_mean_of_the_features(forward: str) -> None:
    """Zhou et al. 2016: the class's weights times the features."""
    view, scale = cases.seen("align"), 1 if forward == "similarity" else 20
    features = view.features.detach()
    weights = cases.embeddings()[None] / view.embedding.norm(dim=-1)[:, None, None]
    cam = torch.einsum("bkc,bchw->bkhw", weights, features) / features[0, 0].numel()
    found = explain("align", forward)[0]
    torch.testing.assert_close(found, scale * cam.detach(), rtol=1e-9, atol=1e-12)


OPTIONS: list[dict[str, Any]] = [
    *({}, {"baseline": "mean"}, {"per": "layer"}, {"per": "head"}, {"start_layer": 1}),
    {"depth": "all", "baseline": "mean"},
    *({"depth": "token"}, {"depth": "token", "baseline": "mean", "start_layer": 1}),
]
FORWARD = [("similarity", torch.float32), ("callable, layer=model", torch.float64)]
# every tower as it is, and every option on a tower of each pooling
ADDING_UP = [
    *((name, {}, *FORWARD[1]) for name in [*TOWERS, *POOLINGS]),
    *((name, {}, *FORWARD[0]) for name in ("hf_vit", "open_clip_resnet")),
    *(("hf_vit", options, *FORWARD[1]) for options in OPTIONS[1:]),
    *(
        (name, options, *FORWARD[1])
        for name in ("open_clip_vit_mean", "siglip", "open_clip_resnet")
        for options in OPTIONS[1:3]
    ),
]


@pytest.mark.parametrize(("name", "options", "forward", "dtype"), ADDING_UP, ids=str)
def test_maps_and_rest_add_up_to_the_score(
    name: str, options: dict[str, Any], forward: str, dtype: torch.dtype
) -> None:
    """Whatever the forward makes of the embedding."""
    of_mean = name == "open_clip_vit_mean" or POOLINGS.get(name, ("cls", 0))[0] == "mean"
    unfit = {
        "per": of_mean or (name in cases.AVERAGE_POOLED and options.get("per") == "head"),
        "start_layer": name in CONVOLUTIONAL,
        "depth": name in CONVOLUTIONAL
        or (
            options.get("depth") == "token"
            and (of_mean or POOLINGS.get(name, ("cls",))[0] != "cls")
        ),
    }
    if any(unfit.get(option) for option in options):
        with pytest.raises(InputError, match=r"^attribute(_targets)?: (start_layer|per|depth): "):
            explain(name, forward, dtype, **options)
        return
    maps, scores, rest = explain(name, forward, dtype, **options)
    assert rest.shape == scores.shape == (3, cases.COUNT)
    function, _ = FORWARDS[forward](name, dtype)
    with torch.no_grad():
        wanted = function(cases.images(name, dtype))
    bound = EXACT[dtype] * wanted.abs().max().item()
    assert (maps.flatten(2).sum(-1) + rest - wanted).abs().max().item() <= bound
    assert (scores - wanted).abs().max().item() <= bound
    # a plain mean of features leaves nothing over
    bare = name == "align" and "baseline" not in options
    assert (rest.abs() > 1e-3 * wanted.abs().max()).any() != bare


@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
def test_a_cosine_of_ones_own_gives_the_similaritys_map(name: str) -> None:
    """F9: the gradient of a cosine is orthogonal to the embedding, and the length is put back."""
    ours, theirs = explain(name)[0], explain(name, "callable, layer=model")[0]
    torch.testing.assert_close(theirs, 20 * ours, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.* is not known, so maps are those before it")
@pytest.mark.parametrize(("name", "outside"), [("hf_vit", True), ("open_clip_vit", False)])
def test_a_tower_alone_hides_a_projection_outside_it(name: str, outside: bool) -> None:
    """Its maps are others then, but of the same score; methods with gradients give one map."""
    pixels = cases.images(name, torch.float64)
    both = [FORWARDS[f"callable, layer={of}"](name, torch.float64) for of in ("model", "tower")]
    for method in ("direct", "conservative", "legrad", "patches"):
        whole, alone = (METHODS[method](*each).attribute_targets(pixels) for each in both)
        apart = (alone - whole).abs().max() / whole.abs().max()
        assert apart > 0.05 if outside else apart < 1e-9
    for method in ("all-grad", "last-grad", "grad-eclip"):
        whole, alone = (METHODS[method](*each).attribute_targets(pixels) for each in both)
        torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-12)
    maps, scores, rest = explain(name, "callable, layer=tower")
    torch.testing.assert_close(maps.sum((-2, -1)) + rest, scores)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_scores_that_bypass_the_projection_are_explained_at_the_tower(name: str) -> None:
    """A score that also uses the embedding before the projection still adds up."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()

    def forward(images: Tensor) -> Tensor:
        if name == "hf_vit":
            pooled = model.vision_model(images).pooler_output
            return (model.visual_projection(pooled)[:, :2] + pooled[:, :2].square()).tanh()
        return model.visual(images)[:, :2].tanh()

    maps, rest = DirectContribution(forward, model).attribute_targets(pixels, return_rest=True)
    torch.testing.assert_close(maps.sum((-2, -1)) + rest, forward(pixels).detach())


def test_rest_has_the_shape_of_the_targets_that_are_asked_for() -> None:
    """One target per image, tuples as Captum passes them, and a list of targets."""
    method = DirectContribution(cases.similarity("hf_vit"))
    pixels = cases.images("hf_vit")
    every, rest = method.attribute_targets(pixels, return_rest=True)
    maps, one = method.attribute((pixels,), target=[2, 0, 1], return_rest=True)
    picked = torch.arange(3), torch.tensor([2, 0, 1])
    torch.testing.assert_close(maps[0], every[picked][:, None])
    torch.testing.assert_close(one, rest[picked][:, None])
    some, scores, part = method.attribute_targets(
        pixels, [3, 1], return_scores=True, return_rest=True
    )
    torch.testing.assert_close(part, rest[:, [3, 1]])
    assert some.shape[1] == scores.shape[1] == 2
    assert method.attribute(pixels, target=0).shape == (3, 1, 4, 4)


def test_direct_needs_no_gradient() -> None:
    """It runs inside inference mode, and nothing of it can be differentiated."""
    method, pixels = DirectContribution(cases.similarity("hf_vit")), cases.images("hf_vit")
    wanted = method.attribute_targets(pixels)
    with torch.inference_mode():
        torch.testing.assert_close(method.attribute_targets(pixels), wanted)
    assert not wanted.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "zero"}, "expected `baseline` of none, mean, got 'zero'"),
        ({"per": "token"}, "expected `per` of head, layer, got 'token'"),
        ({"depth": 2}, "expected `depth` of pooling, token, all, got 2"),
        ({"depth": "token", "start_layer": 3}, "`start_layer` up to 2, got 3"),
        ({"depth": "all", "per": "layer"}, "depth: 'all' follows all layers and heads to"),
        ({"depth": "all", "start_layer": 1}, "leave out `per` and `start_layer`"),
        ({"start_layer": 3}, "`start_layer` up to 2, got 3"),
    ],
)
def test_an_option_that_is_none_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain("hf_vit", **options)


@pytest.mark.parametrize(
    ("name", "pools"),
    [
        ("siglip", "this vision tower pools by attention"),
        ("open_clip_vit_mean", "this vision tower pools by mean"),
        ("open_clip_resnet", "what a convolutional tower's stages below the pool add"),
    ],
)
def test_depth_token_is_refused_where_no_token_is_pooled(name: str, pools: str) -> None:
    method = DirectContribution(cases.similarity(name))
    for explained in (method.attribute_targets, method.vectors):
        with pytest.raises(InputError, match=f"depth: .*{pools}.*; leave it out"):
            explained(cases.images(name), depth="token")


def test_depth_token_refuses_an_mlp_that_it_cannot_hold() -> None:
    small = builders.hf_vit()
    mlp: Any = small.model.vision_model.encoder.layers[1].mlp
    mlp.register_forward_hook(lambda module, args, out: out.tanh())
    method = DirectContribution(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
    for explained in (method.attribute_targets, method.vectors):
        with pytest.raises(UnsupportedModelError, match="what follows the attention of layer 1 of"):
            explained(small.images(3), depth="token")
    method.attribute_targets(small.images(3))  # whose MLPs are in the rest


def test_depth_token_refuses_a_gated_mlp_of_other_parts() -> None:
    """Such as EVA's, which has the name of timm's."""

    class SwiGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 32)

        def forward(self, tokens: Tensor) -> Tensor:
            gated: Tensor = self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))
            return gated

    small = builders.hf_vit()
    small.model.vision_model.encoder.layers[1].mlp = SwiGLU()
    method = DirectContribution(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
    with pytest.raises(UnsupportedModelError, match="a SwiGLU follows the pooled token"):
        method.attribute_targets(small.images(3), depth="token")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depth_token_calls_an_adapter_in_its_own_type(dtype: torch.dtype) -> None:
    """As LoRA on an MLP is, or a map with a hook."""
    small = builders.hf_vit()
    small.model.to(dtype)
    method = DirectContribution(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
    pixels = small.images(3).to(dtype)
    wanted = method.attribute_targets(pixels, depth="token")
    for map_ in ("fc1", "fc2"):
        mlp: Any = small.model.vision_model.encoder.layers[1].mlp
        getattr(mlp, map_).register_forward_hook(lambda module, args, out: out)
    found = method.attribute_targets(pixels, depth="token")
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_depth_all_less_the_mean_gives_nothing_to_a_patch_like_all_others() -> None:
    """An image of one color has the same projected patches everywhere."""
    method = DirectContribution(cases.similarity("hf_vit", torch.float64))
    images = torch.full_like(cases.images("hf_vit", torch.float64), 0.3)
    maps, rest = method.attribute_targets(images, depth="all", baseline="mean", return_rest=True)
    assert maps.abs().max() < 1e-12 * rest.abs().max()
    assert method.attribute_targets(images, depth="all").abs().max() > 1e-3


def test_a_final_norm_of_another_kind_is_refused_by_name() -> None:
    """What it computes is not known, so the score cannot be taken apart."""
    small = builders.hf_vit()
    small.model.vision_model.post_layernorm = nn.GroupNorm(2, 32)
    method = DirectContribution(ClipSimilarity(small.load(), targets.embedding(cases.embeddings())))
    with pytest.raises(UnsupportedModelError, match="a GroupNorm follows the pooled token"):
        method.attribute_targets(small.images(3))


@pytest.mark.parametrize(("forward", "baseline"), [("similarity", "mean"), ("callable", "none")])
@pytest.mark.parametrize(
    ("name", "depth", "count"),
    [
        ("hf_vit", "pooling", 16),
        ("siglip", "pooling", 16),
        ("hf_vit", "token", 20),
    ],
)
def test_many_targets_give_the_maps_of_few(
    name: str, depth: str, count: int, forward: str, baseline: str
) -> None:
    """Values computed once for many targets, and directions folded onto tokens for few.

    Through the MLPs the tokens' shares go forward, of which there are fewer, 17 here.
    """
    similarity = cases.similarity(name, torch.float64, count=count)
    function: Any = similarity if forward == "similarity" else lambda images: similarity(images)
    layer = None if forward == "similarity" else cases.built(name, torch.float64).model
    method, pixels = DirectContribution(function, layer), cases.images(name, torch.float64)
    explained = partial(method.attribute_targets, pixels, baseline=baseline, depth=depth)
    many, few = explained(), [explained(targets=[k, k + 1]) for k in range(0, count, 2)]
    torch.testing.assert_close(many, torch.cat(few, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TOWERS)
def test_direct_is_linear_in_the_target(name: str) -> None:
    """The map of the negated target is the negated map: evidence against it is negative."""
    maps = explain(name)[0]  # rows 1 and 3 are rows 0 and 2 negated
    torch.testing.assert_close(maps[:, 1], -maps[:, 0], rtol=1e-9, atol=1e-12)
