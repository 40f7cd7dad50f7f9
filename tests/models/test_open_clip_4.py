"""OpenCLIP 4, in whose towers every attention is its own: the maps are version 3's of the weights.

The classes here have the parts and the calls of version 4. With a real one the tests of the
families are run by `python -m tests.models.open_clip_checkout`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from open_clip import transformer
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import ClipSimilarity, TextSimilarity, attr, targets
from captum_clip.models import ClipAdapter, ViTTower, tower_of
from tests import builders
from tests.attr import cases

TOWERS = {
    "default": builders.open_clip_vit,
    "mean": builders.open_clip_vit_mean,
    "layer scale": lambda: builders.open_clip_vit(ls_init_value=0.5),
    "custom": builders.open_clip_custom_vit,
    "norms": builders.open_clip_norms,
    "coca": builders.coca,
}
TEXTS = ["a horse and a dog", "a dog"]


class Attention(transformer.Attention):  # type: ignore[misc]
    """Takes keys and values of their own; True in a mask shows a key."""

    def forward(
        self,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        sources = [x, x if k_x is None else k_x, x if v_x is None else v_x]
        if self.in_proj_weight is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        else:
            weights = self.in_proj_weight.chunk(3)
        query, key, value = (
            F.linear(source, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for source, weight, bias in zip(
                sources, weights, self.in_proj_bias.chunk(3), strict=True
            )
        )
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(x), self.num_heads))
        query, key = self.ln_q(query), self.ln_k(key)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        output: Tensor = self.out_proj(self.ln_inner(heads.transpose(1, 2).flatten(2)))
        return output


class Block(transformer.ResidualAttentionBlock):  # type: ignore[misc]
    """Calls it with keys and values by name."""

    def attention(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        key, value = (q_x if tokens is None else tokens for tokens in (k_x, v_x))
        attended: Tensor = self.attn(q_x, k_x=key, v_x=value, attn_mask=attn_mask)
        return attended


class Pooler(transformer.AttentionalPooler):  # type: ignore[misc]
    """Calls it with its queries, and keys of another width."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_k(x)
        queries = self.ln_q(self.query).expand(len(x), -1, -1)
        pooled: Tensor = self.attn(queries, k_x=x, v_x=x)
        return pooled


def attention_of(old: Any) -> Attention:
    """One with the same parameters."""
    made = Attention(len(old.out_proj.weight), old.num_heads)
    for name in ("in_proj_weight", *(f"{part}_proj_weight" for part in "qkv"), "in_proj_bias"):
        setattr(made, name, getattr(old, name, None))
    for name in ("out_proj", "ln_q", "ln_k", "ln_inner"):
        setattr(made, name, getattr(old, name, getattr(made, name)))
    return made.eval()


def modernized(model: Any) -> Any:
    """The same model with the attentions, blocks and pool of version 4."""
    kinds = {transformer.ResidualAttentionBlock: Block, transformer.AttentionalPooler: Pooler}
    for part in [part for part in model.modules() if hasattr(part, "attn")]:
        part.attn = attention_of(part.attn)
        part.__class__ = kinds.get(type(part), type(part))
    return model


@cache
def old(name: str) -> builders.Small:
    small = TOWERS[name]()
    return small._replace(model=small.model.double())


@cache
def new(name: str) -> builders.Small:
    small = TOWERS[name]()
    return small._replace(model=modernized(small.model).double())


def clips(name: str) -> tuple[ClipAdapter, ClipAdapter]:
    return new(name).load(), old(name).load()


def vit(model: nn.Module) -> ViTTower:
    tower = tower_of(model)
    assert isinstance(tower, ViTTower)
    return tower


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_the_stand_ins_compute_the_same(name: str) -> None:
    images, (found, expected) = old(name).images(dtype=torch.float64), clips(name)
    pairs = [[clip.image_features(images) for clip in (found, expected)]]
    pairs.append([clip.text_features(*clip.text_inputs(TEXTS)) for clip in (found, expected)])
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", TOWERS)
def test_every_map_of_an_image_is_the_same(name: str) -> None:
    images = old(name).images(dtype=torch.float64)
    target = targets.embedding(cases.embeddings())
    methods = [m for n, m in cases.OWN.items() if n not in ("grad-cam", "cam")]
    two = [attr.AllGradAttention, attr.DirectContribution]
    for method in methods if name in ("default", "coca") else two:
        found, expected = (
            method(ClipSimilarity(clip, target)).attribute_targets(images) for clip in clips(name)
        )
        cases.assert_maps_close(found, expected, 1e-10)


@pytest.mark.parametrize("name", ["default", "coca"])
def test_every_map_of_a_text_is_the_same(name: str) -> None:
    target = targets.embedding(cases.embeddings())
    for method in (attr.AllGradAttention, attr.GradEclip, attr.DirectContribution):
        found, expected = (
            method(TextSimilarity(clip, target)).attribute_targets(*clip.text_inputs(TEXTS))
            for clip in clips(name)
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert expected.abs().max() > 0


@pytest.mark.parametrize("name", ["default", "custom"])
def test_true_in_a_mask_shows_a_key(name: str) -> None:
    """As numbers that are added do, in the attention that a method sees."""
    model = modernized(TOWERS[name]().model)
    shown = torch.ones(1, 1, 17, 17, dtype=torch.bool)
    shown[..., 3] = False
    added = torch.zeros(shown.shape).masked_fill(~shown, -torch.inf)
    images, target = old(name).images(), targets.embedding(cases.embeddings())
    maps = []
    for mask in (shown, added):
        handle = model.visual.transformer.resblocks[-1].attn.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attn_mask": mask}),
            with_kwargs=True,
        )
        clip = old(name)._replace(model=model).load()
        maps.append(attr.LayerAttention(ClipSimilarity(clip, target)).attribute_targets(images))
        handle.remove()
    torch.testing.assert_close(maps[0], maps[1])
    assert (maps[0].flatten(-2)[..., 2] == 0).all()  # the third patch
    assert (maps[0].flatten(-2)[..., 3] > 0).all()
