"""Next to Captum's own methods
===============================

``ClipSimilarity`` is a forward function like any other, so Captum's methods run on it. Integrated
gradients give a value per pixel; one pass of ``DirectContribution`` gives one per cell.
"""

import torch
from captum.attr import IntegratedGradients

from captum_clip import ClipSimilarity, DirectContribution, load_clip, maps, targets, visualization
from captum_clip.demo.scenes import draw_scene

clip = load_clip("demo/vit")
images = clip.preprocess(draw_scene(0, objects=["horse", "dog"]).image)  # (1, 3, 224, 224)
forward = ClipSimilarity(clip, targets.text(clip, "a horse"))

pixels = IntegratedGradients(forward).attribute(images, target=0, n_steps=16).sum(1, keepdim=True)
cells = DirectContribution(forward).attribute(images, target=0)  # (1, 1, 7, 7)
both = [maps.upsample(maps.positive(raw), images.shape[-2:]) for raw in (pixels, cells)]
heatmap = maps.normalize(torch.cat(both, dim=1))  # (1, 2, 224, 224)
names = ["IntegratedGradients", "DirectContribution"]
visualization.overlay(clip.denormalize(images), heatmap, names=names).savefig("captum.png")
