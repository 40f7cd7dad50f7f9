"""Layer by layer
=================

The attention of each layer, which no text changes, and the gradient of the cosine with respect to
it: red where more attention raises the cosine, blue where it lowers it. Figures 2 and 3 of the
report.
"""

import torch
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from captum_clip import ClipSimilarity, LayerAttention, load_clip, targets
from captum_clip.demo.scenes import draw_scene

clip, texts, box = load_clip("demo/vit"), ["a horse", "a dog"], (0, 1, 1, 0)
images = clip.preprocess(draw_scene(0, objects=["horse", "dog"]).image)
method = LayerAttention(ClipSimilarity(clip, targets.text(clip, texts)))
layers = range(len(clip.tower.layers))
attention = torch.cat([method.attribute(images, target=0, index=i) for i in layers])
gradients = torch.cat([method.attribute_targets(images, index=i, of="gradient") for i in layers])
rows = torch.cat([attention, gradients], dim=1).transpose(0, 1).numpy()
axes = Figure(figsize=(12, 6.5), layout="constrained").subplots(len(rows), len(layers))
for row, label, maps in zip(axes, ["attention", *texts], rows, strict=True):
    for axis, layer, raw in zip(row, layers, maps, strict=True):
        axis.imshow(images.mean((0, 1)).numpy(), "gray", extent=box)
        axis.imshow(raw, "RdBu_r", alpha=0.7, extent=box, norm=CenteredNorm())
        ends = f"{raw.min():.2g} to {raw.max():.2g}"
        axis.set(xticks=[], yticks=[], title=f"{label}, layer {layer}", xlabel=ends)
axes[0, 0].figure.savefig("layers.png", dpi=100)
