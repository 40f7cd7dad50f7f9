"""The methods written plainly from their equations: slow, obvious, independent of the package.

The vision towers are written out in plain tensor operations on the libraries' own parameters, so
that every attention and every feature map is a tensor in autograd's graph. Nothing is imported
from captum_clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Row = Literal["cls", "mean", "attention"]


class Seen(NamedTuple):
    """What a vision tower computed."""

    embedding: Tensor  # (B, E)
    hidden: Tensor  # (B, s, D), the last block's output
    patches: Tensor  # (B, s - 1, D), the patches as OpenCLIP returns them with the embedding
    attention: tuple[Tensor, ...]  # n x (B, H, s, s), in the graph
    grid: tuple[int, int]
    row: Row  # what the tower pools
    prefix: int = 1  # tokens before the patches
    projected: Tensor = torch.empty(0)  # (B, N, D), the patches before positions, in the graph


Score = Callable[[Seen], Tensor]  # -> (B, K)


# The pieces of a transformer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product with a weight (D_out, D_in)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def norm(x: Tensor, module: Any, detached: bool = False) -> Tensor:
    """Layer norm over the last axis; its deviation may be a constant."""
    if isinstance(module, nn.Identity):
        return x
    centered = x - x.mean(-1, keepdim=True)
    sigma = (centered.square().mean(-1, keepdim=True) + module.eps).sqrt()
    return centered / (sigma.detach() if detached else sigma) * module.weight + module.bias


def activated(function: Any, x: Tensor, detached: bool) -> Tensor:
    """An activation, whose gate may be a constant."""
    return x * (function(x) / x).detach() if detached else function(x)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's activation."""
    return x * torch.sigmoid(1.702 * x)


def exact_gelu(x: Tensor) -> Tensor:
    """The activation with the error function."""
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def cut(images: Tensor, weight: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch embeddings (B, h w, D), row by row, and the grid."""
    size = weight.shape[-1]
    h, w = images.shape[-2] // size, images.shape[-1] // size
    pieces = images[..., : h * size, : w * size].reshape(len(images), 3, h, size, w, size)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).reshape(len(images), h * w, -1)
    return pieces @ weight.flatten(1).T, (h, w)


def attend(
    x: Tensor, maps: list[tuple[Tensor, Tensor | None]], heads: int, detached: bool = False
) -> tuple[Tensor, Tensor]:
    """Self-attention (B, s, D) from query, key, value and output maps, and its weights A.

    The weights may be constants, and are leaves then.
    """
    batch, tokens, width = x.shape
    q, k, v = (
        linear(x, *one).reshape(batch, tokens, heads, width // heads).transpose(1, 2)
        for one in maps[:3]
    )
    attention = torch.softmax(q @ k.transpose(2, 3) / (width // heads) ** 0.5, dim=3)
    if detached:
        attention = attention.detach().requires_grad_()
    mixed = (attention @ v).transpose(1, 2).reshape(batch, tokens, width)
    return linear(mixed, *maps[3]), attention


# The towers


def see(model: Any, images: Tensor, *, detached: bool = False, apart: bool = False) -> Seen:
    """A forward through the vision tower of a transformers or OpenCLIP model.

    With `detached` every gate is a constant: attention, deviations of norms, activations. With
    `apart` so is what an attention reads: each token's stream leads on to itself alone.
    """
    images = images.detach().clone().requires_grad_()
    own = _see_open_clip if hasattr(model, "visual") else _see_hf
    return own(model, images, detached, apart)


def _see_hf(model: Any, images: Tensor, detached: bool, apart: bool) -> Seen:
    vision = model.vision_model
    assert model.config.vision_config.hidden_act == "quick_gelu"
    embeddings = vision.embeddings
    projected, grid = cut(images, embeddings.patch_embedding.weight)
    x = torch.cat([embeddings.class_embedding.expand(len(images), 1, -1), projected], 1)
    positions = embeddings.position_embedding.weight
    side = embeddings.image_size // embeddings.patch_size
    if grid != (side, side):
        square = positions[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:1], resized.flatten(2)[0].T])
    x = norm(x + positions, vision.pre_layrnorm, detached)
    seen = []
    for block in vision.encoder.layers:
        own = block.self_attn
        maps = [(m.weight, m.bias) for m in (own.q_proj, own.k_proj, own.v_proj, own.out_proj)]
        normed = norm(x.detach() if apart else x, block.layer_norm1, detached)
        attended, attention = attend(normed, maps, own.num_heads, detached)
        seen.append(attention)
        x = x + attended
        mlp = block.mlp
        inner = linear(norm(x, block.layer_norm2, detached), mlp.fc1.weight, mlp.fc1.bias)
        inner = activated(quick_gelu, inner, detached)
        x = x + linear(inner, mlp.fc2.weight, mlp.fc2.bias)
    pooled = norm(x[:, 0], vision.post_layernorm, detached)
    embedding = pooled @ model.visual_projection.weight.T
    return Seen(embedding, x, x[:, 1:], tuple(seen), grid, "cls", projected=projected)


def _see_open_clip(model: Any, images: Tensor, detached: bool, apart: bool) -> Seen:
    visual = model.visual
    projected, grid = cut(images, visual.conv1.weight)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), projected], 1)
    x = norm(x + visual.positional_embedding, visual.ln_pre, detached)
    seen = []
    for block in visual.transformer.resblocks:
        own = block.attn
        weights, biases = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        maps = [*zip(weights, biases, strict=True), (own.out_proj.weight, own.out_proj.bias)]
        normed = norm(x.detach() if apart else x, block.ln_1, detached)
        attended, attention = attend(normed, maps, own.num_heads, detached)
        seen.append(attention)
        attended = norm(attended, getattr(block, "ln_attn", nn.Identity()), detached)
        x = x + attended * getattr(block.ls_1, "gamma", 1)
        mlp = block.mlp
        inner = linear(norm(x, block.ln_2, detached), mlp.c_fc.weight, mlp.c_fc.bias)
        inner = activated(exact_gelu, inner, detached)
        inner = norm(inner, getattr(mlp, "ln", nn.Identity()), detached)
        inner = linear(inner, mlp.c_proj.weight, mlp.c_proj.bias)
        x = x + inner * getattr(block.ls_2, "gamma", 1)
    row: Row = "cls" if visual.pool_type == "tok" else "mean"
    if visual.final_ln_after_pool:
        pooled, patches = norm(read(x, row), visual.ln_post, detached), x[:, 1:]
    else:
        normed = norm(x, visual.ln_post, detached)
        pooled, patches = read(normed, row), normed[:, 1:]
    embedding = pooled @ visual.proj
    return Seen(embedding, x, patches, tuple(seen), grid, row, projected=projected)


class SeenResNet(NamedTuple):
    """What a ResNet tower computed."""

    embedding: Tensor  # (B, E)
    features: Tensor  # (B, C, h, w), the last stage's output, in the graph


def see_resnet(model: Any, images: Tensor) -> SeenResNet:
    """A forward through OpenCLIP's ModifiedResNet in eval mode."""
    visual = model.visual
    x = images.detach().clone().requires_grad_()
    for conv, batch_norm, stride in (
        (visual.conv1, visual.bn1, 2),
        (visual.conv2, visual.bn2, 1),
        (visual.conv3, visual.bn3, 1),
    ):
        x = torch.relu(_normed(F.conv2d(x, conv.weight, stride=stride, padding=1), batch_norm))
    x = F.avg_pool2d(x, 2)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for block in stage:
            x = _bottleneck(x, block)
    pool = visual.attnpool
    tokens = x.flatten(2).transpose(1, 2)  # (B, h w, C)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
    maps = [(m.weight, m.bias) for m in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)]
    return SeenResNet(attend(tokens, maps, pool.num_heads)[0][:, 0], x)


def see_average_pooled(model: Any, images: Tensor) -> SeenResNet:
    """A forward through a ConvNeXt or FastViT of timm, or through ALIGN, by the library's steps."""
    x = images.detach().clone().requires_grad_()
    if hasattr(model, "visual"):
        visual = model.visual
        features = visual.trunk.forward_features(x)
        return SeenResNet(visual.head(visual.trunk.forward_head(features)), features)
    output = model.vision_model(pixel_values=x)
    return SeenResNet(output.pooler_output, output.last_hidden_state)


def _normed(x: Tensor, module: Any) -> Tensor:
    mean, variance, weight, bias = (
        value[:, None, None]
        for value in (module.running_mean, module.running_var, module.weight, module.bias)
    )
    return (x - mean) / (variance + module.eps).sqrt() * weight + bias


def _bottleneck(x: Tensor, block: Any) -> Tensor:
    stride = block.stride
    y = torch.relu(_normed(F.conv2d(x, block.conv1.weight), block.bn1))
    y = torch.relu(_normed(F.conv2d(y, block.conv2.weight, padding=1), block.bn2))
    y = F.avg_pool2d(y, stride)
    y = _normed(F.conv2d(y, block.conv3.weight), block.bn3)
    if block.downsample is not None:
        _, conv, batch_norm = block.downsample
        x = _normed(F.conv2d(F.avg_pool2d(x, stride), conv.weight), batch_norm)
    return torch.relu(y + x)


# The equations


def read(matrix: Tensor, row: Row, prefix: int = 1) -> Tensor:
    """Row CLS, or the mean of the patches' rows, of (B, s, ...)."""
    return matrix[:, 0] if row == "cls" else matrix[:, prefix:].mean(1)


def gradients(y: Tensor, seen: Seen) -> list[Tensor]:
    """The gradient of the scores y (B,) with respect to every attention."""
    found = torch.autograd.grad(y.sum(), seen.attention, retain_graph=True, allow_unused=True)
    pairs = zip(found, seen.attention, strict=True)
    return [torch.zeros_like(a) if g is None else g for g, a in pairs]


def relevance(steps: list[Tensor]) -> Tensor:
    """R after R = I and R = R + Abar R for one matrix (B, s, s) after the other, less I."""
    batch, size, _ = steps[0].shape
    r = torch.eye(size, dtype=steps[0].dtype).repeat(batch, 1, 1)
    for step in steps:
        r = r + step @ r
    return r - torch.eye(size, dtype=r.dtype)


def all_grad_attention(seen: Seen, y: Tensor, row: Row, *, start_layer: int = 0) -> Tensor:
    """Equation 5: each layer's own gradient; a pooling head's row ends it, without residual."""
    steps = [
        (g * a).clamp(min=0).mean(1)
        for g, a in zip(gradients(y, seen), seen.attention, strict=True)
    ]
    if row == "attention":
        return propagated(steps[-1], steps[start_layer:-1])
    return read(relevance(steps[start_layer:]), row, seen.prefix)


def propagated(pool: Tensor, steps: list[Tensor]) -> Tensor:
    """The first row of a pooling head's step (B, queries, s), carried through the layers below."""
    if not steps:
        return pool[:, 0]
    return pool[:, 0] + (pool[:, :1] @ relevance(steps))[:, 0]


def last_grad_attention(
    seen: Seen, y: Tensor, row: Row, *, heads: str = "paired", start_layer: int = 0
) -> Tensor:
    """Equation 6: the last layer's gradient with every attention.

    Below a pooling head it is the last self-attention's gradient.
    """

    def step(gradient: Tensor, attention: Tensor) -> Tensor:
        if heads == "paired":
            return (gradient * attention).clamp(min=0).mean(1)
        return gradient.mean(1).clamp(min=0) * attention.mean(1)

    own, attention = gradients(y, seen), list(seen.attention)
    if row == "attention":
        steps = [step(own[-2], a) for a in attention[start_layer:-1]]
        return propagated(step(own[-1], attention[-1]), steps)
    steps = [step(own[-1], a) for a in attention[start_layer:]]
    return read(relevance(steps), row, seen.prefix)


def attention_grad_cam(seen: Seen, y: Tensor, row: Row, *, weights: str = "elementwise") -> Tensor:
    """Grad-CAM on the last attention."""
    gradient, attention = gradients(y, seen)[-1], seen.attention[-1]
    if row == "attention":
        gradient, attention, row = gradient[:, :, :1], attention[:, :, :1], "cls"
    if weights == "elementwise":
        return read((gradient * attention).clamp(min=0).mean(1), row, seen.prefix)
    total = torch.zeros_like(attention[:, 0, 0])
    count = attention.shape[1]
    for head in range(count):
        of_patches = read(gradient[:, head], row, seen.prefix)[:, seen.prefix :]
        pooled = of_patches.mean(1, keepdim=True)  # (B, 1)
        total = total + pooled * read(attention[:, head], row, seen.prefix) / count
    return total.clamp(min=0)


def attention_rollout(seen: Seen, y: Tensor, row: Row, *, start_layer: int = 0) -> Tensor:
    """Rollout of Abnar and Zuidema, whatever y is; no residual runs around a pooling head."""
    attention = list(seen.attention)
    pool = attention.pop() if row == "attention" else None
    size = seen.attention[-1].shape[-1]
    identity = torch.eye(size, dtype=seen.embedding.dtype)
    product = identity.repeat(len(seen.embedding), 1, 1)
    for weights in attention[start_layer:]:
        mixed = weights.mean(1) + identity
        product = mixed / mixed.sum(-1, keepdim=True) @ product
    if pool is not None:
        return (pool.mean(1)[:, :1] @ product)[:, 0]
    return read(product, row, seen.prefix)


def layer_attention(
    seen: Seen, y: Tensor, row: Row, *, index: int = -1, of: str = "attention", rows: str = "cls"
) -> Tensor:
    """One layer's attention or its gradient, the heads averaged; a pooling head's has one row."""
    matrix = (gradients(y, seen) if of == "gradient" else seen.attention)[index].mean(1)
    if row == "attention" and index % len(seen.attention) == len(seen.attention) - 1:
        return matrix[:, 0]
    return matrix.sum(1) if rows == "sum" else read(matrix, row, seen.prefix)


METHODS: dict[str, Callable[..., Tensor]] = {
    "AllGradAttention": all_grad_attention,
    "AttentionGradCam": attention_grad_cam,
    "AttentionRollout": attention_rollout,
    "LastGradAttention": last_grad_attention,
    "LayerAttention": layer_attention,
}


def maps(method: str, seen: Seen, scores: Tensor, row: Row | None = None, **options: Any) -> Tensor:
    """Maps (B, K, h, w) of all scores (B, K), read at the row that the tower pools or at `row`."""
    columns = [
        METHODS[method](seen, y, row or seen.row, **options)[:, seen.prefix :].unflatten(
            1, seen.grid
        )
        for y in scores.T
    ]
    return torch.stack(columns, 1).detach()


def grad_cam(seen: SeenResNet, scores: Tensor) -> Tensor:
    """Equations 1 and 2 without the ReLU, (B, K, h, w)."""
    columns = []
    for y in scores.T:
        (gradient,) = torch.autograd.grad(y.sum(), seen.features, retain_graph=True)
        alpha = gradient.mean((2, 3))  # (B, C)
        columns.append((alpha[:, :, None, None] * seen.features).sum(1))
    return torch.stack(columns, 1).detach()


def cosines(embedding: Tensor, embeddings: Tensor) -> Tensor:
    """Cosine similarities (B, K) to rows (K, E)."""
    lengths = embedding.norm(dim=1)[:, None] * embeddings.norm(dim=1)
    return embedding @ embeddings.T / lengths
