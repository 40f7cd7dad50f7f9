"""The vectors of heads equal their equation, add up to the embedding, and agree with the maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from tests.attr import cases, test_text_side
from tests.attr.cases import CLS_TOWERS, POOLINGS
from tests.attr.test_direct import caught, frozen_norm, vit_parts

READ = ["hf_vit", "open_clip_vit", "open_clip_resnet", "siglip", "eva02", "timm_registers"]


def vectors_of(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    method = DirectContribution(cases.similarity(name, dtype))
    return method.vectors(cases.images(name, dtype), per="head", **options)


def mlps_of(name: str) -> Tensor:
    """What the MLP of every layer adds to the embedding, (B, n, E), of a plain forward."""
    model, view = cases.built(name, torch.float64).model, cases.seen(name)
    hf = not hasattr(model, "visual")
    blocks = model.vision_model.encoder.layers if hf else model.visual.transformer.resblocks
    seen = caught(model, {str(i): b.mlp for i, b in enumerate(blocks)}, cases.images(name).double())
    end = model.vision_model.post_layernorm if hf else model.visual.ln_post
    projection = model.visual_projection.weight.T if hf else model.visual.proj
    parts = []
    for index, block in enumerate(blocks):
        added = seen[str(index)][1][:, 0] * getattr(getattr(block, "ls_2", None), "gamma", 1)
        parts.append(frozen_norm(end, added, view.hidden[:, 0]) @ projection)
    return torch.stack(parts, 1).detach()


@pytest.mark.parametrize("name", CLS_TOWERS[:2])
def test_heads_and_mlps_equal_their_equation_on_a_tower_that_reads_cls(name: str) -> None:
    """Of all layers, and from a later one on, with the lower ones in the rest."""
    found, (parts, embedding) = vectors_of(name), vit_parts(name)
    length = embedding.norm(dim=-1)[:, None, None]
    torch.testing.assert_close(found.heads, parts.sum(3) / length[..., None], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mlps, mlps_of(name) / length, rtol=1e-9, atol=1e-12)
    later = vectors_of(name, start_layer=1)
    torch.testing.assert_close(later.heads, found.heads[:, 1:], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(later.mlps, found.mlps[:, 1:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["siglip", "pe_core"])
def test_heads_of_a_pooling_head_are_the_sums_of_their_maps(name: str) -> None:
    """It has no token of its own among those that it reads, but for CLS, which is in no map."""
    found, similarity = vectors_of(name), cases.similarity(name, torch.float64)
    assert found.heads.shape[1] == 1
    assert found.mlps.shape[1] == 0
    maps = DirectContribution(similarity).attribute_targets(
        cases.images(name, torch.float64), per="head"
    )
    products = torch.einsum("bnhe,ke->bknh", found.heads, similarity.embeddings)
    off = (products - maps.sum((-2, -1))).abs().max()
    assert off < 1e-12 if POOLINGS[name][1] == 0 else off > 1e-4


def test_heads_of_an_attention_pool_equal_their_equation() -> None:
    """All but the bias and what the mean token's own position adds, which is in the rest."""
    name = "open_clip_resnet"
    view, pool = cases.seen(name), cases.built(name, torch.float64).model.visual.attnpool
    features = view.features.detach().flatten(2).mT
    places = pool.positional_embedding
    tokens = torch.cat([features.mean(1, keepdim=True), features], 1) + places

    def split(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (pool.num_heads, -1)).transpose(-3, -2)

    query, key, value = (split(m(tokens)) for m in (pool.q_proj, pool.k_proj, pool.v_proj))
    row = (query[:, :, :1] @ key.mT / value.shape[-1] ** 0.5).softmax(-1)[:, :, 0]  # (B, H, s)
    whole = torch.einsum("bhs,bhsd->bhd", row, value)
    own = row[..., :1] * split(pool.v_proj(places[:1]))[:, 0]
    weight = pool.c_proj.weight.unflatten(1, (pool.num_heads, -1))
    length = view.embedding.norm(dim=-1)[:, None, None]
    wanted, left = (torch.einsum("bhd,ehd->bhe", h, weight) / length for h in (whole - own, own))
    found = vectors_of(name)
    torch.testing.assert_close(found.heads[:, 0], wanted.detach(), rtol=1e-9, atol=1e-12)
    rest = left.sum(1) + pool.c_proj.bias / length[:, 0]
    torch.testing.assert_close(found.rest, rest.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", READ)
def test_head_vectors_add_up_to_the_unit_embedding(name: str) -> None:
    """Whatever the family: the rest is what neither heads nor MLPs have."""
    heads, mlps, rest = vectors_of(name, torch.float32)
    with torch.no_grad():
        embedded = cases.embed(cases.built(name).model, cases.images(name))
    total = heads.sum((1, 2)) + mlps.sum(1) + rest
    torch.testing.assert_close(total, F.normalize(embedded, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["demo/vit"])
def test_head_vectors_of_the_demo_models_add_up(model: str) -> None:
    """To 2e-7, in float32; and as a batch they are those of each image alone."""
    clip = load_clip(model)
    method = DirectContribution(ClipSimilarity(clip, targets.text(clip, "a horse")))
    pixels = clip.preprocess([draw_scene(seed).image for seed in range(3)])
    heads, mlps, rest = found = method.vectors(pixels, per="head")
    with torch.no_grad():
        unit = F.normalize(clip.image_features(pixels), dim=-1)
    assert (heads.sum((1, 2)) + mlps.sum(1) + rest - unit).abs().max() < 2e-7
    for each, alone in zip(found, method.vectors(pixels[1:2], per="head"), strict=True):
        torch.testing.assert_close(each[1:2], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["hf_vit", "flava"])
def test_heads_of_a_text_tower_are_the_sums_of_their_maps(name: str) -> None:
    """Norms on the stream, as in a BERT, are passed; with MLPs and the rest they add up."""
    similarity, (ids, mask) = test_text_side.similarity(name), test_text_side.inputs(name)
    method = DirectContribution(similarity)
    heads, mlps, rest = method.vectors(ids, mask, per="head")
    with torch.no_grad():
        unit = F.normalize(similarity.features(ids, mask), dim=-1)
    torch.testing.assert_close(heads.sum((1, 2)) + mlps.sum(1) + rest, unit)
    maps = method.attribute_targets(ids, additional_forward_args=mask, per="head")
    products = torch.einsum("bnhe,ke->bknh", heads, similarity.embeddings)
    torch.testing.assert_close(products, maps.sum(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "mean"}, "leave out `baseline` and `depth`"),
        ({"depth": "token"}, "leave out `baseline` and `depth`"),
        ({"per": "layer"}, "expected `per` of position, head, got 'layer'"),
        ({"start_layer": 9}, "start_layer"),
    ],
)
def test_wrong_options_of_head_vectors(options: dict[str, Any], message: str) -> None:
    method = DirectContribution(cases.similarity("hf_vit"))
    with pytest.raises(InputError, match=message):
        method.vectors(cases.images("hf_vit"), **{"per": "head", **options})
