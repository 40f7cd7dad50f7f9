"""Drop-in: your own transformers CLIP in existing Captum code; one class name changes.

Runs offline on the embedded model. For a real one replace the folder by a hub name, such as
"openai/clip-vit-base-patch32", and the scene by your picture.
"""

import torch
from captum.attr import IntegratedGradients, NoiseTunnel
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
from transformers.utils import logging

from captum_clip import LastGradAttention, maps
from captum_clip.demo import MODELS
from captum_clip.demo.scenes import draw_scene

logging.disable_progress_bar()
folder = MODELS["demo/vit"]
model = CLIPModel.from_pretrained(folder).float().eval()
images = CLIPImageProcessor.from_pretrained(folder)(draw_scene(7).image, return_tensors="pt")
tokens = AutoTokenizer.from_pretrained(folder)(
    ["a horse", "a dog"], padding=True, return_tensors="pt"
)


def embedding(features: object) -> torch.Tensor:
    """Unit rows; version 5 of transformers returns an object, 4 a tensor."""
    return normalize(getattr(features, "pooler_output", features), dim=-1)


with torch.no_grad():
    texts = embedding(model.get_text_features(**tokens))  # (2, D)


def forward(pixels: torch.Tensor) -> torch.Tensor:
    """Your own forward function: images -> similarities (B, 2)."""
    return embedding(model.get_image_features(pixels)) @ texts.T


pixels = images["pixel_values"]

# Before: a Captum method on pixels.
before = IntegratedGradients(forward).attribute(pixels, target=0, n_steps=8)

# After: the same call, another class, and where to look.
method = LastGradAttention(forward, layer=model)
after = method.attribute(pixels, target=0)
print(f"IntegratedGradients {tuple(before.shape)}, LastGradAttention {tuple(after.shape)}")

# All targets from one forward, and Captum's NoiseTunnel around the method.
both = method.attribute_targets(pixels)
smooth = NoiseTunnel(method).attribute(pixels, target=0, nt_samples=4, stdevs=0.1)
print(f"two targets {tuple(both.shape)}, smoothed {tuple(smooth.shape)}")

heat = maps.normalize(maps.upsample(after, pixels.shape[-2:]))
print(f"ready to draw: {tuple(heat.shape)}, from {heat.min():.1f} to {heat.max():.1f}")
