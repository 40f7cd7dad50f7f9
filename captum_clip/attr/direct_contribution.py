"""DirectContribution: what each position adds to the score, for every text from one forward."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ..checks import check_choice
from ..errors import InputError, UnsupportedModelError
from ..models.library import has_no_foreign_hooks, runs_library_code
from ..models.steps import Direction, needs_token, pull_back, run_steps
from ..models.text import PostNormLayer
from ..models.towers import (
    Attention,
    AttentionLayer,
    AveragePooledTower,
    PooledToken,
    ResNetTower,
    ViTTower,
)
from ..recording import LayerRecord
from ._attention import (
    autocast_disabled,
    contributions,
    heads_output,
    initial_row,
    merged,
    pooled_attention,
    to_float32,
)
from ._base import ClipAttribution
from ._call import Call, Computed
from ._engine import PooledEmbedding, pooled_embedding
from .conservative_propagation import propagated_to_patches

Baseline = Literal["none", "mean"]
Per = Literal["head", "layer"]
Depth = Literal["pooling", "all"]


@final
class DirectContribution(ClipAttribution):
    r"""What every position adds to the score directly: signed, additive, without a gradient.

    The embedding is a sum over tokens once the final norm's standard deviation and the embedding's
    length are held as they are at this image. With :math:`G = \gamma \odot W_P^T t / (\sigma |e|)`
    less its mean over channels, position j adds

    .. math:: r_j = \sum_l \sum_h A_{lh}[CLS, j] \; (W_O^{h\,T} G) \cdot v_{lhj}

    in a tower that reads CLS; the sum over layers is that of the residual stream. A pooling head
    (probe) is one such attention, with its MLP's gates held as well; a mean of N patches adds
    :math:`G \cdot x_j / N`; the attention pool of a ResNet is one attention, whose mean token is
    spread over the positions; on a network that ends in average pooling this is CAM.

    ``maps.sum((-2, -1)) + rest`` is the score: the rest has the class token, the MLPs and the
    biases. What is below zero speaks against the target. All targets come from one forward pass.
    With a forward function of your own, :math:`G` begins at the tower's output e with
    :math:`g + (y - g \cdot e) \, e / |e|^2`, g the score's gradient there: one small backward per
    target. It answers "what does this place add"; "what if it were gone" is another question.

    Options, keyword-only on both verbs:

    - ``baseline``: "none", or "mean" for :math:`v_j - \frac{1}{N} \sum_i v_i`, what a position
      adds beyond an average one.
    - ``per``: None, "layer" for maps (B, K, n, h, w) or "head" for (B, K, n, H, h, w), n the
      attentions that take part.
    - ``start_layer``: first layer that takes part, 0-based; what is below is in the rest.
    - ``depth``: "readout", or "all" to carry what tokens add on through all layers to the patches
      they are made of, which is :class:`ConservativePropagation`, at a backward a target.
    - ``return_rest``: give the rest (B, K) too.

    Source: Gandelsman et al. 2024 (arXiv:2310.05916), who use it for heads and texts; Zhou et al.
    2016 (arXiv:1512.04150), CAM.

    Example:
        >>> from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> maps, rest = DirectContribution(forward).attribute_targets(images, return_rest=True)
        >>> bool((maps.sum((-2, -1)) + rest - forward(images)).abs().max() < 1e-5)
        True
    """

    name = "direct"
    towers = ("vit", "resnet", "text")
    signed = additive = True
    _tower: ViTTower | ResNetTower

    @override
    def _compute(
        self,
        call: Call,
        *,
        baseline: Baseline = "none",
        per: Per | None = None,
        start_layer: int = 0,
        depth: Depth = "pooling",
    ) -> Computed:
        check_choice("baseline", baseline, ("none", "mean"))
        if per is not None:
            check_choice("per", per, ("head", "layer"))
        check_choice("depth", depth, ("pooling", "all"))
        tower = self._tower
        if depth == "all":
            if isinstance(tower, ResNetTower):
                raise InputError(
                    "depth: what a ResNet's stages below the pool add is not carried on; leave it "
                    "out, or take a ViT."
                )
            if per is not None or start_layer:
                raise InputError(
                    "depth: 'all' carries every layer and head on to the patches, so none of them "
                    "can be kept or left out; leave out `per` and `start_layer`."
                )
            return propagated_to_patches(tower, call, centred=baseline == "mean")
        if isinstance(tower, ResNetTower):
            return _of_resnet(tower, call, baseline, per, start_layer)
        layers = self._layers(start_layer)
        if tower.pooling == "mean":
            return _of_mean(tower, call, baseline, per)
        if tower.pooling == "attention":
            layers = layers[-1:]  # only the pool reads the tokens
        for index in layers:
            _check_unchanged(index, tower.attentions[index])
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def visit(index: int, record: LayerRecord) -> None:
            seen[index] = record.tokens, pooled_attention(tower.attentions[index], record)

        found = pooled_embedding(tower, call, (layers, visit))
        with torch.no_grad(), autocast_disabled(found.token):
            return _of_rows(tower, found, seen, baseline, per)


def _check_unchanged(index: int, attention: Attention) -> None:
    """What an attention adds is told from its parameters, so it must be what they say."""
    modules = [attention.input_module, attention.output_module]
    if isinstance(attention, AttentionLayer):
        modules.append(attention.block)
    for module in modules:
        if not (runs_library_code(module) and has_no_foreign_hooks(module)):
            raise UnsupportedModelError(
                f"DirectContribution: the {type(module).__name__} of layer {index} has a hook, a "
                "patched forward or code of its own, so what it adds is not known; remove that, or "
                "take a method with gradients, such as AllGradAttention."
            )


def _of_rows(
    tower: ViTTower,
    found: PooledEmbedding,
    seen: dict[int, tuple[Tensor, Tensor]],
    baseline: Baseline,
    per: Per | None,
) -> Computed:
    """From the row of every attention that takes part."""
    token, span, pooled = found.token, tower.span, found.run.record.pooled
    direction = pull_back(found.steps, token, found.direction)
    total = direction.along(token) + direction.constant  # (K', B)
    values = []
    for index, (tokens, row) in sorted(seen.items(), reverse=True):
        attention = tower.attentions[index]
        steps = (*attention.merge_steps(), *attention.branch())
        # linear steps are the same wherever they are read
        heads = heads_output(attention, row, tokens) if needs_token(steps) else token
        direction = _below_norms(attention, direction, tokens, row, pooled)
        at_heads = pull_back(steps, heads, Direction.of(direction.rows, direction.scale))
        mean = pooled.mean(to_float32(tokens), span) if baseline == "mean" else None
        by_head = per == "head"
        values.append(contributions(attention, at_heads, row, tokens, mean=mean, by_head=by_head))
    values.reverse()
    maps = torch.stack(values, 2) if per else torch.stack(values).sum(0)
    rest = total - maps[..., span].flatten(2).sum(-1)
    return found.run.computed(maps, rest.T)


def _below_norms(
    layer: Attention, direction: Direction, tokens: Tensor, row: Tensor, pooled: PooledToken
) -> Direction:
    """A direction on a block's output -> on the stream before the norms that follow its sums."""
    if not isinstance(layer, PostNormLayer):
        return direction
    attended = merged(layer, heads_output(layer, row, tokens))
    # such a block attends to the stream itself
    entered = layer.entering(pooled.read(tokens), attended.to(tokens.dtype))
    for norm, token in zip(reversed(layer.stream_norms), reversed(entered), strict=True):
        direction = pull_back((norm,), to_float32(token), direction)
    return direction


def _of_mean(tower: ViTTower, call: Call, baseline: Baseline, per: Per | None) -> Computed:
    """From the last tokens themselves, whose mean is read."""
    if per is not None:
        tokens = "tokens" if tower.kind == "text" else "patches"
        raise InputError(
            f"per: a mean of {tokens} is read by no attention, so there is nothing to keep per "
            f"{per}; leave it out."
        )
    found = pooled_embedding(tower, call)
    with torch.no_grad(), autocast_disabled(found.token):
        token, before = found.token, tower.steps_before_mean  # (B, N, D)
        pooled = found.run.record.pooled
        share = initial_row("mean", token[..., 0], 0, pooled)  # (B, N)
        batch, count, _ = token.shape
        flat = token.flatten(0, 1)
        mean = pooled.mean(run_steps(found.steps[:before], token), slice(None))[:, 0]
        direction = pull_back(found.steps[before:], mean, found.direction)
        constant = direction.constant
        direction = pull_back(found.steps[:before], flat, direction.repeated(count))
        total = direction.along(flat) + direction.constant
        total = (total.reshape(-1, batch, count) * share).sum(-1) + constant
        if baseline == "mean":
            flat = (token - pooled.mean(token, slice(None))).flatten(0, 1)
        maps = direction.along(flat).reshape(-1, batch, count) * share
        rest = total - maps.sum(-1)
        padding = maps.new_zeros(*maps.shape[:-1], tower.prefix)
    maps = torch.cat([padding, maps], -1)
    return found.run.computed(maps, rest.T)


def _of_resnet(
    tower: ResNetTower, call: Call, baseline: Baseline, per: Per | None, start_layer: int
) -> Computed:
    """From the features that the pool reads."""
    if start_layer:
        raise InputError("start_layer: a ResNet has one pool, which is always read; leave it out.")
    if per == "head" and isinstance(tower, AveragePooledTower):
        raise InputError("per: average pooling has no heads; leave it out, or take a ViT.")
    found, centred = pooled_embedding(tower, call), baseline == "mean"
    with torch.no_grad():
        maps, rest = tower.contributions(found.token, found.direction, centred=centred)
    # (K', B, H, h, w)
    maps = maps[:, :, None] if per == "head" else maps.sum(2, keepdim=per == "layer")
    return found.run.computed(maps, rest.T)
