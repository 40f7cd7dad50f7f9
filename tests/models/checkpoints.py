"""Small models written as the libraries write them."""

from __future__ import annotations

import json

import torch
from PIL import Image
from safetensors.torch import save_file

from tests import builders

TEXTS = ["a horse", "a red house"]


def save_transformers(built, folder, parts=True):
    built.model.save_pretrained(folder)
    if parts:
        built.processor.save_pretrained(folder)
        built.tokenizer.save_pretrained(folder)


def save_open_clip(
    built, folder, config, weights="open_clip_model.safetensors", preprocess=None, **model
):
    folder.mkdir(exist_ok=True)
    state = {key: value.contiguous() for key, value in built.model.state_dict().items()}
    if weights.endswith("safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": config,
            "text_cfg": builders.TEXT_CONFIG,
            **model,
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, **(preprocess or {})},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@torch.no_grad()
def assert_same(clip, built):
    clip_images, images = clip.encode_image(built.images()), built.load().encode_image
    torch.testing.assert_close(clip_images, images(built.images()), atol=1e-5, rtol=0)
    texts = built.load().encode_text(TEXTS)
    torch.testing.assert_close(clip.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    assert not any(module.training for module in clip.model.modules())
    height, width = built.images().shape[-2:]
    assert clip.preprocess(Image.new("RGB", (80, 70))).shape == (1, 3, height, width)
