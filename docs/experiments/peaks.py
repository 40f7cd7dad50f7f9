"""How often the peak of a map lies on the object that the text names, next to other packages.

``python docs/experiments/peaks.py`` draws 100 scenes of two objects, asks `demo/vit` for both, and
counts peaks on the right one. The functions are what somebody writes to get a map with a package,
as its README or its examples show; `captum_clip` itself takes one line. Needs the extra `cam`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from captum.attr import LayerGradCam, Occlusion
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn
from torch.nn.functional import normalize

from captum_clip import explain, load_clip, maps, metrics, targets
from captum_clip.demo.catalog import article
from captum_clip.demo.scenes import draw_scene
from captum_clip.models.adapter import ClipAdapter
from tables import markdown

SCENES = 100
Draw = Callable[[ClipAdapter, Tensor, list[str]], Tensor]


def ours(clip: ClipAdapter, pixels: Tensor, texts: list[str], method: str | None = None) -> Tensor:
    """This package, by default `direct`."""
    return explain(pixels, texts, model=clip, method=method, hints=False).maps["positive"][0]


class Scores(nn.Module):
    """Images to logits, as every other package needs them."""

    def __init__(self, clip: ClipAdapter, texts: list[str]) -> None:
        super().__init__()
        self.model = clip.model
        self.texts = targets.text(clip, texts).embeddings

    def forward(self, pixels: Tensor) -> Tensor:
        """The cosines, (B, K)."""
        features = self.model.vision_model(pixels).pooler_output
        return normalize(self.model.visual_projection(features), dim=-1) @ self.texts.T


def tokens_as_grid(tokens: Tensor) -> Tensor:
    """Tokens (B, 1 + h * w, D) without CLS, as channels (B, D, h, w)."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def pytorch_grad_cam(clip: ClipAdapter, pixels: Tensor, texts: list[str]) -> Tensor:
    """Its example of CLIP: Grad-CAM at the first norm of the last block."""
    model = Scores(clip, texts)
    norm = model.model.vision_model.encoder.layers[-1].layer_norm1
    heatmaps = []
    with GradCAM(model, [norm], reshape_transform=tokens_as_grid) as cam:
        for index in range(len(texts)):
            heatmap = cam(pixels, [lambda scores, index=index: scores[index]])
            heatmaps.append(torch.from_numpy(heatmap[0]))
    return torch.stack(heatmaps)


def captum_occlusion(clip: ClipAdapter, pixels: Tensor, texts: list[str]) -> Tensor:
    """Windows of a patch, which are set to the mean color."""
    occlusion = Occlusion(Scores(clip, texts))
    patch = clip.model.config.vision_config.patch_size
    heatmaps = []
    for index in range(len(texts)):
        window = (3, patch, patch)
        losses = occlusion.attribute(pixels, window, strides=window, target=index)
        heatmaps.append(losses[0].sum(0))
    return torch.stack(heatmaps)


class LastGrid(nn.Module):
    """Stands behind the tokens of a layer, since Captum takes a map from channels."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The grid of the tokens."""
        return tokens_as_grid(tokens)


def captum_grad_cam(clip: ClipAdapter, pixels: Tensor, texts: list[str]) -> Tensor:
    """LayerGradCam of the same norm, whose tokens become a grid and tokens again on the way."""
    model = Scores(clip, texts)
    norm = model.model.vision_model.encoder.layers[-1].layer_norm1
    as_grid = LastGrid()

    def through_grid(module: nn.Module, inputs: object, tokens: Tensor) -> Tensor:
        patches = as_grid(tokens).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :1], patches], dim=1)

    hook = norm.register_forward_hook(through_grid)
    try:
        grad_cam = LayerGradCam(model, as_grid)
        heatmaps = [grad_cam.attribute(pixels, target=index)[0, 0] for index in range(len(texts))]
    finally:
        hook.remove()
    return torch.stack(heatmaps)


def main() -> None:
    """Print the table."""
    clip = load_clip("demo/vit")
    last = clip.model.config.vision_config.num_hidden_layers - 1
    packages: dict[str, Draw] = {
        "captum_clip, default": ours,
        "pytorch-grad-cam, GradCAM": pytorch_grad_cam,
        "Captum, Occlusion": captum_occlusion,
        "Captum, LayerGradCam": captum_grad_cam,
        # these two packages take other models, and the methods here equal their code
        "LeGrad (`legrad`)": partial(ours, method="legrad"),
        "LeGrad, all layers": partial(ours, method="legrad:layers=all"),
        "Chefer et al.'s notebook": partial(ours, method=f"all-grad:start_layer={last}"),
        "Chefer et al.'s paper": partial(ours, method="all-grad"),
    }
    hits = dict.fromkeys(packages, 0)
    for seed in range(SCENES):
        scene = draw_scene(seed, count=2)
        texts = [article(thing.noun) for thing in scene.objects]
        masks = torch.stack([torch.from_numpy(thing.mask) for thing in scene.objects])
        for name, draw in packages.items():
            heatmaps = draw(clip, clip.preprocess(scene.image), texts).detach()
            heatmaps = maps.upsample(heatmaps[None], masks.shape[-2:])[0]
            hits[name] += int(metrics.pointing_game(heatmaps, masks).sum())
    rows = [[name, f"{count / (2 * SCENES):.0%}"] for name, count in hits.items()]
    markdown(("package", "peaks on the named object"), rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    main()
