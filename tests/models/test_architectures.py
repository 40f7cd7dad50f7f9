"""OpenCLIP's architectures on the meta device, of true width: nearly all are accepted."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa

from captum_clip.errors import UnsupportedModelError
from captum_clip.models.families import adapter_of

SMALL_TEXT = {"layers": 1, "width": 64, "heads": 1}
CONFIGS = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
# version 4 has models of sounds, and language models, as well
ARCHITECTURES = [n for n, c in CONFIGS.items() if "vision_cfg" in c and "genlip_cfg" not in c]


def built(architecture: str) -> Any:
    """The whole model without numbers, with few layers, where these are a number of its own."""
    config = copy.deepcopy(CONFIGS[architecture])
    config["vision_cfg"]["timm_model_pretrained"] = False
    layers = config["vision_cfg"].get("layers")
    if layers is not None:
        config["vision_cfg"]["layers"] = [1] * len(layers) if isinstance(layers, list) else 1
    config["text_cfg"] = {
        **SMALL_TEXT,
        **{
            key: config["text_cfg"][key]
            for key in ("embed_cls", "output_tokens")
            if key in config["text_cfg"]
        },
    }
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = CoCa
        config["multimodal_cfg"].update(SMALL_TEXT)
    with torch.device("meta"):
        return kind(**config)


def test_nearly_all_architectures_are_accepted():
    """With a grid and embeddings of the configured length; the refused ones are printed."""
    refused = {}
    for architecture in ARCHITECTURES:
        model = built(architecture)
        try:
            clip = adapter_of(model, name=architecture, processor=None, tokenizer=None)
        except UnsupportedModelError as error:
            refused[architecture] = str(error)
            continue
        rows, columns = clip.grid(*clip.tower.native)
        assert min(rows, columns) > 1
        assert clip.embedding_dim == CONFIGS[architecture]["embed_dim"]
    for message in refused.values():
        print(message)
    assert len(ARCHITECTURES) - len(refused) >= 142
