"""Every method equals its equation on every family, on the library's own modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import CaptureError, UnsupportedModelError
from tests import builders, explicit, oracles, timm_builders
from tests.attr import cases
from tests.attr.cases import FORWARDS, KEY_CASES, POOLINGS, TOLERANCE, Case

FAMILIES = list(POOLINGS)
POOLING_HEADS = [name for name in FAMILIES if POOLINGS[name][0] == "attention"]
# index 2 is the last self-attention, below a pooling head where there is one
LAYERS = [
    Case("LayerAttention", {"index": -1, "of": "attention", "rows": "cls"}),
    Case("LayerAttention", {"index": 2, "of": "gradient", "rows": "sum"}),
]
FURTHER = [
    Case("AttentionGradCam", {"weights": "pooled"}),
    Case("AttentionRollout", {"start_layer": 1}),
    Case("AllGradAttention", {"start_layer": 1}),
    Case("LastGradAttention", {"heads": "paired", "start_layer": 1}),
    Case("LastGradAttention", {"heads": "averaged", "start_layer": 0}),
]
# a family of each pooling; the others read their tokens as these do
EACH_POOLING = ["siglip", "pe_core", "timm_gap", "timm_registers"]
CHECKED = [
    *((KEY_CASES[3], name, "callable, layer=model") for name in FAMILIES),
    *((case, name, "similarity") for name in EACH_POOLING for case in KEY_CASES[:3]),
    *((case, "siglip", "similarity") for case in [*FURTHER, *LAYERS]),
    (KEY_CASES[3], "siglip", "callable, layer=tower"),
]


@pytest.mark.parametrize(("case", "name", "forward"), CHECKED, ids=str)
def test_method_equals_its_equation(case, name, forward):
    """All targets of a batch, with every way to name the tower."""
    function, layer = FORWARDS[forward](name, torch.float64)
    method = case.kind(function, layer)
    found = method.attribute_targets(cases.images(name, torch.float64), **case.options)
    wanted = cases.expected(name, case, scale=1 if forward == "similarity" else 20)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["siglip"])
@pytest.mark.parametrize("method", ["AttentionRollout", "AllGradAttention", "LastGradAttention"])
def test_pooling_head_alone_may_take_part(method, name):
    """The last start layer is the pool: its own row."""
    case = Case(method, {"start_layer": 3})
    method = case.kind(cases.similarity(name, torch.float64))
    found = method.attribute_targets(cases.images(name, torch.float64), **case.options)
    cases.assert_maps_close(found, cases.expected(name, case), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["siglip", "tipsv2", "flava", "blip"])
@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_method_equals_its_equation_on_wide_images(method, name):
    """Where the library interpolates its positions, images may have another shape."""
    case = Case(method, {})
    found = case.kind(cases.similarity(name, torch.float64)).attribute_targets(
        cases.images(name, torch.float64, wide=True)
    )
    assert found.shape == (3, 4, 4, 6)
    wanted = cases.expected(name, case, wide=True)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", EACH_POOLING)
def test_half_precision_gives_single(name):
    """Maps in float32, close to those of the float32 model."""
    small, images = cases.BUILDERS[name](), cases.images(name)
    target = targets.embedding(cases.embeddings())
    kinds = {torch.float16: attr.AttentionGradCam, torch.bfloat16: attr.AllGradAttention}
    single = ClipSimilarity(small.load(), target)
    wanted = {dtype: kind(single).attribute_targets(images) for dtype, kind in kinds.items()}
    for dtype, kind in kinds.items():
        half = cases.BUILDERS[name]()
        half.model.to(dtype)
        found = kind(ClipSimilarity(half.load(), target)).attribute_targets(images)
        assert found.dtype == torch.float32
        error = (found - wanted[dtype]).norm() / wanted[dtype].norm()
        assert error < (0.02 if dtype == torch.float16 else 0.15)


@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_scores_of_a_pools_other_queries_are_refused(method):
    """CoCa's captions are made of them: no image embedding is."""
    model = cases.built("coca").model

    def forward(pixels):
        return model.visual(pixels)[1].mean((1, 2))

    with pytest.raises(CaptureError, match="several queries of the tower's pooling head"):
        getattr(attr, method)(forward, model).attribute(cases.images("coca"))


@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_scores_that_do_not_come_from_the_pool_are_refused(method):
    """The tokens of SigLIP, and not its pooling head."""
    model = cases.built("siglip").model

    def forward(pixels):
        return model.vision_model(pixel_values=pixels).last_hidden_state.mean((1, 2))

    with pytest.raises(CaptureError, match=r"read what enters the pooling head, and not"):
        getattr(attr, method)(forward, model).attribute(cases.images("siglip"))


@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_a_score_that_also_reads_the_tokens_equals_the_equation(method):
    """Next to the pool the last layer's tokens may have a part; the gradients are the score's."""
    model = cases.built("siglip", torch.float64).model
    direction = torch.linspace(-1, 1, 24, dtype=torch.float64)

    def score(pixels):
        seen = model.vision_model(pixel_values=pixels)
        tokens = seen.last_hidden_state.tanh().mean(1) @ direction
        return F.normalize(seen.pooler_output, dim=-1) @ cases.embeddings().T + tokens[:, None]

    images, case = cases.images("siglip", torch.float64), Case(method, {})
    found = case.kind(score, model).attribute_targets(images)
    tower = cases.adapter("siglip").tower
    heads = [attention.heads for attention in tower.attentions]
    view = explicit.see(score, images, heads=heads, grid=(4, 4), row="attention", prefix=0)
    wanted = oracles.maps(method, view, view.embedding)
    cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])


def gated():
    built = timm_builders.eva()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in built.model.visual.trunk.blocks:
            block.attn.gate = nn.Linear(32, 32)
    return built


def latents(pool="token"):
    from timm.layers import AttentionPoolLatent

    built = timm_builders.timm_siglip()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooling = AttentionPoolLatent(24, num_heads=4, latent_len=2, pool_type=pool)
    built.model.visual.trunk.attn_pool = pooling.eval()
    return built


# how an attention is made, which no family says -> the row and prefix that are pooled, the tower,
# and whether what follows the heads is linear
VARIANTS: dict[str, Any] = {
    "scale_heads": ("cls", 1, partial(builders.open_clip_vit, scale_heads=True), False),
    "gated": ("cls", 1, gated, False),
    "grouped": (
        *("cls", 1),
        partial(timm_builders.eva, attn_type="rope", qkv_fused=False, num_kv_heads=2),
        True,
    ),
    "rotated by head": (
        *("cls", 1),
        partial(timm_builders.eva, attn_type="rope", use_rot_pos_emb=True, rope_type="mixed"),
        True,
    ),
    "normed": ("cls", 1, partial(timm_builders.vision_transformer, qk_norm=True), True),
    "two latent queries": ("attention", 0, latents, True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_attention_of_another_form_is_explained_as_it_runs(variant):
    """Nothing is computed again but what follows the heads, in a method that takes that apart."""
    row, prefix, build, is_linear = VARIANTS[variant]
    built = build()
    built.model.double()
    clip, images = built.load(), built.images(2, torch.float64)
    similarity = ClipSimilarity(clip, targets.embedding(cases.embeddings()))
    heads = [attention.heads for attention in clip.tower.attentions]
    run = partial(cases.embed, built.model)
    view = explicit.see(run, images, heads=heads, grid=(4, 4), row=row, prefix=prefix)
    scores = oracles.cosines(view.embedding, cases.embeddings())
    for case in KEY_CASES:
        found = case.kind(similarity).attribute_targets(images, **case.options)
        wanted = oracles.maps(case.method, view, scores, **case.options)
        cases.assert_maps_close(found, wanted, TOLERANCE[torch.float64])
    for method in (attr.DirectContribution, attr.ConservativePropagation):
        explain = partial(method(similarity).attribute_targets, images, return_rest=True)
        if not is_linear and method is attr.DirectContribution:
            with pytest.raises(UnsupportedModelError, match=r"attention of layer \d of the vision"):
                explain()
        else:
            found, rest = explain()
            torch.testing.assert_close(found.sum((-2, -1)) + rest, scores.detach())


@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_a_pool_that_reads_several_queries_is_refused(method):
    built = latents("avg")
    similarity = ClipSimilarity(built.load(), targets.embedding(cases.embeddings()))
    with pytest.raises(CaptureError, match="several queries of the tower's pooling head"):
        getattr(attr, method)(similarity).attribute_targets(built.images())
