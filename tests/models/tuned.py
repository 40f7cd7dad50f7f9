"""Small models that were tuned in the ways of docs/own_model.md, under the names that it uses."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from open_clip import factory
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip.demo import MODELS
from tests import builders
from tests.models import test_openai as openai

__all__ = [
    *("adapter", "coop", "keys", "lora_model", "maple", "openai_model", "preprocess", "values"),
    "write_checkpoints",
]


class CoOp(nn.Module):
    """The parts of CoOp's `CustomCLIP` that outlive its training."""

    tokenized_prompts = torch.tensor([4, 5])  # where the end token is

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(2, 32))

    def prompt_learner(self) -> Tensor:
        return self.context

    def text_encoder(self, prompts: Tensor, tokenized: Tensor) -> Tensor:
        return prompts / tokenized[:, None]


class MaPLe(nn.Module):
    """MaPLe's `CustomCLIP`: images to logits, with a tower that takes prompts."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        visual.__class__ = openai.VisionTransformer_MaPLe
        for block in visual.transformer.resblocks:
            block.__class__ = openai.PromptedBlock
        self.image_encoder = visual
        self.prompts, self.texts = torch.randn(2, 2, 64), F.normalize(torch.randn(2, 32), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.image_encoder(images, *self.prompts)
        return 100 * F.normalize(features, dim=-1) @ self.texts.T


with torch.random.fork_rng():
    torch.manual_seed(0)
    openai_model, preprocess = openai.load("ViT-B/32")
    lora_model = openai.split_attentions(openai.model_of("vit", seed=1))
    coop, maple = CoOp(), MaPLe(openai.model_of("vit", seed=2).visual).eval()
    adapter = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.ReLU())
    keys, values = F.normalize(torch.randn(6, 32), dim=-1), torch.eye(2).repeat(3, 1)


def write_checkpoints() -> None:
    """Write the files that the page reads into the working directory."""
    shutil.copytree(MODELS["demo/vit"], "runs/checkpoint-500")
    trained = builders.open_clip_vit()
    factory._MODEL_CONFIGS["small"] = {
        "embed_dim": 24,
        "vision_cfg": builders.VIT_CONFIG,
        "text_cfg": builders.TEXT_CONFIG,
    }
    weights = {f"module.{key}": value for key, value in trained.model.state_dict().items()}
    Path("logs/run/checkpoints").mkdir(parents=True)
    torch.save({"epoch": 5, "state_dict": weights}, "logs/run/checkpoints/epoch_5.pt")
    weights = {f"module.{key}": value for key, value in openai.model_of("vit").state_dict().items()}
    torch.save(weights, "tuned.pt")
    if find_spec("peft"):
        from peft import LoraConfig, get_peft_model
        from transformers import CLIPModel

        lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        base = CLIPModel.from_pretrained(MODELS["demo/vit"])
        get_peft_model(base, lora).save_pretrained("my_lora")
