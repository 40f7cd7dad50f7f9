"""Towers that return all tokens and no embedding, of which a score takes the patches' mean."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import attr, load_clip
from captum_clip.errors import CaptureError, UnsupportedModelError
from tests import builders

METHODS = ["direct", "last-grad", "rollout"]
TAKEN_APART = ["direct"]


def siglip_without_head() -> tuple[Any, Tensor]:
    """A SigLIP's vision tower as people keep it for dense features."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    small = builders.siglip()
    config = SiglipVisionConfig(
        **{**small.model.vision_model.config.to_dict(), "vision_use_head": False}
    )
    return SiglipVisionModel(config).eval(), small.images()


@pytest.mark.parametrize("method", METHODS)
def test_a_siglip_without_its_head_is_explained_by_the_mean_of_its_patches(method: str) -> None:
    """It returns an output of transformers without a pooled one."""
    tower, images = siglip_without_head()

    def forward(images: Tensor) -> Tensor:
        hidden: Tensor = tower(images).last_hidden_state
        return hidden.mean(1)[:, :3]

    explainer = attr.METHODS[method](forward, tower)
    if method in TAKEN_APART:
        with pytest.raises(CaptureError, match=r"more than the embedding.*all-grad"):
            explainer.attribute_targets(images)
        return
    maps = explainer.attribute_targets(images)
    assert maps.shape[:2] == (len(images), 3)
    assert maps.any()


def test_a_whole_siglip_without_its_head_says_that_it_has_no_embedding() -> None:
    """There is nothing to compare with texts."""
    small = builders.siglip()
    config = copy.deepcopy(small.model.config)
    config.vision_config.vision_use_head = False
    clip = load_clip(type(small.model)(config).eval())
    with pytest.raises(UnsupportedModelError, match=r"no embedding, as a SigLIP.*with its head"):
        clip.encode_image(small.images())


def timm_tower() -> Any:
    """A ViT of timm that pools CLS, but whose forward returns what comes before its head."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=0, global_pool="token").eval().double()


def test_grad_eclip_of_the_mean_of_patches_is_that_of_their_rows() -> None:
    """And not of CLS, which nobody reads where the forward of a timm tower returns all tokens."""
    tower, images = timm_tower(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tower.forward = tower.forward_features
    kept: dict[str, Tensor] = {}
    last = tower.blocks[-1].attn
    handles = [
        last.qkv.register_forward_hook(lambda _, __, out: kept.update(qkv=out)),
        last.proj.register_forward_pre_hook(lambda _, args: kept.update(out=args[0])),
    ]
    score = tower(images)[:, 1:].mean(1)[:, 0]
    for handle in handles:
        handle.remove()
    [gradient] = torch.autograd.grad(score.sum(), kept["out"])
    query, key, value = kept["qkv"].detach().chunk(3, -1)
    weight = (gradient[:, None, 1:].mean(2) * value).sum(-1)[:, 1:].clamp(min=0)
    cosine = F.cosine_similarity(query[:, 1:].mean(1)[:, None], key[:, 1:], dim=-1)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    expected = (weight * (cosine - low) / (high - low)).view(2, 1, 4, 4)
    maps = attr.GradEclip(lambda x: tower(x)[:, 1:].mean(1)[:, :1], tower).attribute(images)
    torch.testing.assert_close(maps, expected)
