"""Maps equal the figures of the authors' own code, on drawn weights, an image and texts.

`figures.npz` holds what the code named in docs/comparison.md returned, by the names of the rows
below. CAMs are those after the ReLU with which their libraries end. The models, which the code had
as well, are drawn here again: nothing else is needed, and nothing of that code runs.

That code ran in single precision. Ours runs in double precision here, so a bound is the rounding
of theirs, and does not depend on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import (
    AllGradAttention,
    AttentionGradCam,
    AttentionRollout,
    CamFamily,
    ClipGradCam,
    ClipSimilarity,
    ConservativePropagation,
    GradEclip,
    LastGradAttention,
    LayerAttention,
    LeGrad,
    PatchSimilarity,
    TextSimilarity,
    load_clip,
    targets,
)
from captum_clip.models import ClipAdapter

DOUBLE = torch.float64
WIDTH = 64  # of the embeddings
CONTEXT = 77

FIGURES = np.load(Path(__file__).with_name("figures.npz"))


# What the authors' code ran on.


def draw_weights(model: nn.Module) -> dict[str, Tensor]:
    """Draw all weights from one generator, in the order of their names."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        if name == "logit_scale":
            weights[name] = torch.tensor(4.6052)
        elif name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        else:
            weights[name] = scaled(name, torch.randn(value.shape, generator=generator))
    return weights


def scaled(name: str, normal: Tensor) -> Tensor:
    """Standard normal numbers at the scale of the weight of that name."""
    is_vector = normal.ndim == 1
    if name.endswith("running_var"):
        return 1 + 0.2 * normal.abs()
    if is_vector and name.endswith("weight"):  # of a norm
        return 1 + 0.2 * normal
    if name.endswith(("bias", "running_mean")):
        return 0.1 * normal
    if is_vector:  # the embedding of CLS
        return normal
    inputs = normal.shape[0] if name.endswith(("proj", "projection")) else normal[0].numel()
    return normal * factor(name) / inputs**0.5


def factor(name: str) -> float:
    """How much larger a matrix is than one that keeps the size of what it maps."""
    if name.startswith(("visual.attnpool.q_proj", "visual.attnpool.k_proj")):
        return 6.0
    if name == "visual.attnpool.positional_embedding":
        return 0.5
    if "token_embedding" in name or "positional_embedding" in name:
        return 10.0
    return 1.6 if "in_proj_weight" in name else 1.0


def draw_image(size: int) -> Tensor:
    """Cells of 7 x 7 with noise, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randn(1, 3, 7, 7, generator=generator)
    noise = torch.randn(1, 3, size, size, generator=generator)
    return (F.interpolate(cells, size=(size, size), mode="nearest") + 0.3 * noise).to(DOUBLE)


def unit_rows(count: int, seed: int) -> Tensor:
    """Unit embeddings, (count, E)."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1).to(DOUBLE)


def without_weights(vision: dict[str, Any]) -> Any:
    import open_clip

    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
    return open_clip.CLIP(WIDTH, {"head_width": 64, **vision}, text, quick_gelu=True)


def vision_transformer(size: int) -> Any:
    return without_weights({"image_size": size, "width": 192, "patch_size": 8, "layers": 4})


def adapted(model: Any, weights: dict[str, Tensor]) -> ClipAdapter:
    model.load_state_dict(weights)
    model = model.eval().requires_grad_(False).to(DOUBLE)
    return load_clip(model, processor=None, tokenizer=tokenize)


TEXTS = {
    "a red car and a dog": [320, 736, 1615, 537, 320, 1929],
    "a car and a dog": [320, 1615, 537, 320, 1929],
    "a dog in a car.": [320, 1929, 530, 320, 1615, 269],
    "a cat": [320, 2368],
}


def tokenize(texts: list[str]) -> Tensor:
    """Token ids (N, T), as CLIP's tokenizer gives them for the texts above."""
    ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens = [49406, *TEXTS[text], 49407]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


@cache
def vit() -> ClipAdapter:
    model = vision_transformer(56)
    return adapted(model, draw_weights(model))


@cache
def larger_vit() -> ClipAdapter:
    model = vision_transformer(112)
    return adapted(model, draw_weights(model))


@cache
def resnet() -> ClipAdapter:
    model = without_weights({"image_size": 224, "width": 16, "layers": [1, 1, 1, 1]})
    return adapted(model, draw_weights(model))


ROWS = targets.embedding(unit_rows(2, seed=2))


def explained(method: type[Any], clip: ClipAdapter, target: Any = ROWS, **options: Any) -> Tensor:
    """Maps (K, h, w) of the drawn image."""
    image = draw_image(clip.tower.native[0])
    maps = method(ClipSimilarity(clip, target)).attribute_targets(image, **options)
    result: Tensor = maps[0].detach()
    return result


def of_logits(method: type[Any], clip: ClipAdapter, target: Any, **options: Any) -> Tensor:
    """Maps of logits, a hundred times the cosines, as the authors' notebook has them."""
    similarity = ClipSimilarity(clip, target)
    attribution = method(lambda images: 100 * similarity(images), clip.model)
    maps: Tensor = attribution.attribute_targets(draw_image(56), **options)[0].detach()
    return maps


def chefer_texts() -> Any:
    return targets.embedding(FIGURES["text embeddings of Transformer-MM-Explainability"])


def word(clip: ClipAdapter) -> Any:
    """The word that the authors' code takes out, with the length of the difference as factor."""
    return targets.words(clip, "a red car and a dog", ["red"])


def per_word(method: type[Any]) -> Tensor:
    """Equations 5 and 6 chain gradients, and the authors' code does not scale the difference."""
    target = word(vit())
    similarity = ClipSimilarity(vit(), target)
    factor = target.norms.to(DOUBLE)
    attribution = method(lambda images: factor * similarity(images), vit().model)
    maps: Tensor = attribution.attribute(draw_image(56), target=0)[0].detach()
    return maps


def positive_cam(variant: str, clip: ClipAdapter) -> Tensor:
    return explained(CamFamily, clip, ROWS[0], variant=variant)


def min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


class Row(NamedTuple):
    """Ours, and how far it may lie from theirs, as a share of the largest value."""

    ours: Callable[[], Tensor]
    bound: float


def legrad_of_112() -> Tensor:
    """On positions that are resized, as OpenCLIP does; drawn at the pixels' size, min-max."""
    from open_clip.model import resize_pos_embed

    weights = draw_weights(vision_transformer(56))
    model = vision_transformer(112)
    resize_pos_embed(weights, model)
    maps = explained(LeGrad, adapted(model, weights))
    large = F.interpolate(maps[None], scale_factor=8, mode="bilinear")[0]
    return min_max(large)[:, ::4, ::4]


def legrad_of_logits_as_torch_cam(layers: int) -> Tensor:
    """torch-cam takes the mean over layers."""
    option: Any = "all" if layers == 4 else layers
    return explained(LeGrad, vit(), ROWS[0], layers=option)[0] / layers


def mamooler(name: str, method: type[Any], **options: Any) -> dict[str, Row]:
    """Both signs: the negative map is the map of the negated target."""
    signs = {"pos": ROWS[0], "neg": -ROWS[0]}
    return {
        f"CLIP_Explainability, {name} {sign}": Row(
            partial(explained, method, vit(), target, **options), 1e-5
        )
        for sign, target in signs.items()
    }


def resnet_cam(target: Any) -> Tensor:
    return explained(ClipGradCam, resnet(), target, relu_attributions=True)


def comparisons() -> dict[str, Row]:
    """Ours by the names of the figures."""
    clip, rows = vit(), dict[str, Row]()
    for layers in (1, 2, 4):
        option: Any = "all" if layers == 4 else layers
        rows[f"LeGrad, {layers} layers"] = Row(
            partial(explained, LeGrad, clip, layers=option), 2e-6
        )
    rows["LeGrad, 112 pixels"] = Row(legrad_of_112, 1e-5)
    rows |= mamooler("gradcam", AttentionGradCam)
    rows |= mamooler("last_grad", LastGradAttention)
    rows |= mamooler("all_grads", AllGradAttention)
    for block in (0, 3):
        for of, name in (("attention", "attn"), ("gradient", "grad")):
            ours = partial(explained, LayerAttention, clip, ROWS[0], index=block, of=of)
            rows[f"CLIP_Explainability, block {block} {name}"] = Row(ours, 1e-5)
    rows["CLIP_Explainability, per word last"] = Row(partial(per_word, LastGradAttention), 1e-5)
    rows["CLIP_Explainability, per word all"] = Row(partial(per_word, AllGradAttention), 1e-5)
    rows["CLIP_Explainability, ResNet pos"] = Row(lambda: resnet_cam(ROWS[0]), 1e-5)
    rows["CLIP_Explainability, ResNet neg"] = Row(lambda: resnet_cam(-ROWS[0]), 1e-5)
    rows["CLIP_Explainability, ResNet per word"] = Row(lambda: resnet_cam(word(resnet())), 1e-5)
    chefer = "Transformer-MM-Explainability"
    for start, layer in ((-1, 3), (2, 2), (0, 0)):
        ours = partial(of_logits, AllGradAttention, clip, chefer_texts(), start_layer=layer)
        rows[f"{chefer}, image from layer {start}"] = Row(ours, 5e-5)
    rows["Transformer-Explainability, generate_cam_attn"] = Row(
        lambda: min_max(explained(AttentionGradCam, larger_vit(), weights="pooled")), 1e-5
    )
    rows["Transformer-Explainability, generate_rollout"] = Row(
        lambda: min_max(explained(AttentionRollout, larger_vit())[0]), 1e-5
    )
    rows["Grad-Eclip, image"] = Row(partial(explained, GradEclip, clip), 3e-6)
    rows["ClearCLIP, ClearCLIP"] = Row(
        partial(explained, PatchSimilarity, clip, attention="qq"), 2e-6
    )
    rows["ClearCLIP, MaskCLIP"] = Row(partial(explained, PatchSimilarity, clip), 2e-6)
    rows["NACLIP, kk"] = Row(partial(explained, PatchSimilarity, clip, attention="kk"), 2e-6)
    for name, attention in (
        ("ClearCLIP, MaskCLIP with residual", "identity"),
        ("ClearCLIP, ClearCLIP with residual", "qq"),
        ("NACLIP, kk with residual", "kk"),
        ("MaskCLIP, QuickGELU", "identity"),
    ):
        options: Any = {"attention": attention, "residual": True}
        rows[name] = Row(partial(explained, PatchSimilarity, clip, **options), 3e-6)
    for name in FIGURES.files:
        library, _, variant = name.partition(", ResNet ")
        if library == "pytorch-grad-cam" and variant:
            # A principal component of a kernel is known to the rounding of its solver.
            bound = 5e-5 if variant == "KPCA_CAM" else 2e-6
            rows[name] = Row(partial(positive_cam, variant, resnet()), bound)
        library, _, variant = name.partition(", ViT ")
        if library == "pytorch-grad-cam" and variant and not variant.startswith("at its norm"):
            # XGradCAM divides by sums that nearly cancel.
            bound = 2e-4 if variant == "XGradCAM" else 1e-5
            rows[name] = Row(partial(positive_cam, variant, clip), bound)
    rows["torch-cam, ResNet GradCAM"] = Row(lambda: resnet_cam(ROWS[0]), 1e-6)
    rows["torch-cam, ResNet LayerCAM"] = Row(partial(positive_cam, "LayerCAM", resnet()), 1e-6)
    for layers in (2, 4):
        ours = partial(legrad_of_logits_as_torch_cam, layers)
        rows[f"torch-cam, LeGrad {layers} layers"] = Row(ours, 1e-6)
    rows["LRP-eXplains-Transformers, CP"] = Row(
        partial(explained, ConservativePropagation, clip), 2e-6
    )
    rollout = partial(explained, AttentionRollout, clip, ROWS[0])
    rows["attention_flow, rollout"] = Row(rollout, 1e-6)
    rows["vit-explain, rollout"] = Row(lambda: rollout() / rollout().max(), 1e-6)
    return rows


COMPARISONS = comparisons()


def distance(name: str) -> float:
    """The largest difference, as a share of the largest value of theirs."""
    theirs = torch.from_numpy(FIGURES[name]).to(DOUBLE)
    if name.endswith("generate_rollout"):
        theirs = min_max(theirs)
    ours = COMPARISONS[name].ours().reshape(theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))


@pytest.mark.parametrize("name", COMPARISONS)
def test_maps_are_those_of_the_authors_code(name: str) -> None:
    assert distance(name) <= COMPARISONS[name].bound


@pytest.mark.parametrize(("start", "layer"), [(-1, 2), (1, 1), (0, 0)])
def test_texts_have_the_values_of_the_authors_code(start: int, layer: int) -> None:
    """Of the tokens between start and end, for logits; the notebook takes shares of their sum."""
    theirs = torch.from_numpy(FIGURES[f"Transformer-MM-Explainability, text from layer {start}"])
    image = targets.embedding(FIGURES["image embedding of Transformer-MM-Explainability"])

    class Logits(TextSimilarity):
        def forward(self, *args: Any) -> Tensor:
            return 100 * super().forward(*args)

    ids = tokenize(["a dog in a car.", "a cat"])
    for row, figures in zip(ids, theirs.to(DOUBLE), strict=True):
        end = int(row.argmax())
        method = AllGradAttention(Logits(vit(), image))
        values = method.attribute(row[None], start_layer=layer)[0, 0].detach()
        shares = [each[1:end] / each[1:end].sum() for each in (values, figures)]
        assert float((shares[0] - shares[1]).abs().max()) < 3e-5
