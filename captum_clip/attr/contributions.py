"""Methods whose maps and a rest add up to the score: direct contribution, and conservative."""

from functools import partial
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from .. import targets
from ..checks import check_choice, check_flag
from ..errors import InputError, public
from ..maps import autocast_disabled, to_float32
from ..models import ClipAdapter
from ..models.steps import Direction, pull_back, push_forward
from ..models.towers import ResNetTower, TransformerTower
from ..recording.gates import record_held, refuse_nonlinear
from ..recording.graph import detached, held, keeps_graph, no_graph
from ..recording.records import Recording
from ..similarity import Similarity
from ..targets import Target
from ._base import ClipAttribution
from ._call import Call, Computed, batched, many_columns
from ._engine import embedded_scores, refuse_checkpointing
from ._vectors import (
    HeadVectors,
    decompose,
    parts_of_heads,
    pooled_rows,
    products,
    pulled_rows,
    pushed_rows,
)


@final
class ConservativePropagation(ClipAttribution):
    r"""Gradient times input with attention, norms and activations detached: signed, conservative.

    .. math:: r_j = x_j \cdot \frac{\partial \tilde y}{\partial x_j}

    with :math:`x_j` the projected patch before positions are added, and :math:`\tilde y` the score
    in which the attention's weights, the norms' standard deviations, the activations' gates
    :math:`f(x) / x` and the embedding's length are constants. What is left is linear, so relevance
    is neither made nor lost on the way: ``maps.sum((-2, -1)) + rest`` is the score, and the rest
    is the share of class token, positions and biases. A gated MLP (SwiGLU) keeps its gate.

    One forward, and a backward per target, several at once where memory allows. Evidence against
    the target is negative. With a forward function of your own the score's gradient is taken at the
    embedding, and `layer` matters, as for :class:`DirectContribution`. For transformers only.

    Option, keyword-only: ``return_rest``, to return the rest (B, K) as well.

    Source: Ali et al. 2022 (arXiv:2202.07304).
    """

    name = "conservative"
    towers = ("vit", "text")
    signed = additive = differentiable = True
    _tower: TransformerTower

    @override
    def _compute(self, call: Call) -> Computed:
        return propagated_to_patches(self._tower, call)

    @classmethod
    @override
    def _laws(cls, **options: Any) -> tuple[str, ...]:
        return ()  # its gradient goes through whatever is linear


def propagated_to_patches(
    tower: TransformerTower, call: Call, *, centered: bool = False, directions: Tensor | None = None
) -> Computed:
    """Relevance of every projected patch; `centered` takes each patch less their mean.

    The scores are explained, or the unit embedding's products with `directions` (n, B or 1, E).
    """
    refuse_checkpointing(tower)
    run = call.run(record_held(tower, readout=call.readout))
    record, patches = run.record, run.record.input
    embedded = embedded_scores(tower, run, patches)

    def as_tokens(tensor: Tensor) -> Tensor:  # (..., B, N, D)
        if patches.ndim == 4 and isinstance(tower.stem, nn.Conv2d):
            tensor = tensor.movedim(-3, -1)
        return to_float32(tensor).flatten(1 + tensor.ndim - patches.ndim, -2)

    entered = as_tokens(detached(patches))
    if centered:
        span = slice(tower.prefix, tower.prefix + entered.shape[1])
        padded = F.pad(entered, (0, 0, tower.prefix, 0))
        entered = entered - record.pooled.mean(padded, span)
    direction = embedded.direction
    if directions is not None:
        direction = Direction.of(directions.expand(-1, record.batch, -1), direction.scale)
    rows = held(direction.dense()).to(embedded.embedding.dtype)  # (K', B, E)

    def shares(rows: Tensor, *, check: bool = False, **options: bool) -> tuple[Tensor]:
        options |= {"retain_graph": True, "create_graph": check or keeps_graph()}
        (gradient,) = torch.autograd.grad(embedded.embedding, patches, rows, **options)
        if check:  # what is linear has a gradient that does not depend on the patches
            refuse_nonlinear(gradient, patches, tower.noun)
        return ((as_tokens(detached(gradient)) * entered).sum(-1),)

    stacked = shares(rows[0], check=True)[0][None]  # (K', B, N)
    if len(rows) > 1:  # an MLP may be as wide as four tokens
        others = batched(shares, rows[1:], patches.expand(4, *patches.shape))
        stacked = torch.cat([stacked, others])
    padded = F.pad(stacked, (tower.prefix, 0))
    if directions is not None:
        return decompose(tower, call, embedded, padded, directions)
    return embedded.run.computed(padded, embedded.run.chosen - stacked.sum(-1).T)


Baseline = Literal["none", "mean"]
Per = Literal["head", "layer", None]
Depth = Literal["pooling", "token", "all"]


def any_target(clip: ClipAdapter) -> Target:
    """A target for a forward function of which the vectors are wanted, which depend on none."""
    dimension = clip.embedding_dim or clip.measured_dim()
    return targets.embedding(torch.eye(1, dimension, device=clip.device))


@final
class DirectContribution(ClipAttribution):
    r"""What each position adds to the score directly: signed, additive, without a gradient.

    The embedding is a sum over tokens if the final norm's standard deviation and the embedding's
    length are taken as constants of this image. With the direction in token space along which the
    score grows, :math:`G = \gamma \odot W_P^T t / (\sigma |e|)` less its mean over channels,
    position j adds

    .. math:: r_j = \sum_l \sum_h A_{lh}[CLS, j] \; (W_O^{h\,T} G) \cdot v_{lhj}

    in a tower that pools CLS; the sum over layers is that of the residual stream. A pooling head is
    one such attention, with its MLP's gates detached as well. In a mean of N patches each adds
    :math:`G \cdot x_j / N`. The attention pool of a ResNet is one attention, whose mean token is
    spread over the positions. On a network that ends in average pooling this is CAM.

    ``maps.sum((-2, -1)) + rest`` is the score: the rest is the share of the class token, the MLPs
    and the biases. Evidence against the target is negative. All targets come from one forward.
    With a forward function of your own, :math:`G` begins at the embedding e with
    :math:`g + (y - g \cdot e) \, e / |e|^2`, g the score's gradient there: one small backward per
    target. Pass the model as `layer`. transformers keeps the projection P outside the vision tower,
    so P is not known if you pass the tower alone. Then e is the tower's unprojected output v, and
    the part of the score along e follows :math:`v / |v|^2` instead of :math:`P^T P v / |P v|^2`.
    That is a different map with the same sum.

    It answers "what does this place add?", not "what if it were gone?", which is what
    :class:`ReaderRemoval` answers. Closer to the second, without a further forward, is
    ``depth="token"``, in a tower that pools one token, with a direction for each layer,

    .. math:: G_l = \frac{\partial \tilde y}{\partial z_l}

    the gradient at the pooled token's stream :math:`z_l` after attention l, through the MLPs that
    it still passes, with norms and gates f(x) / x as constants. What it attends to later, its own
    values among that, counts where it is read. The rest holds the MLPs' biases, and what the
    MLPs make of the pooled token's own embedding and values.

    Options, keyword-only:

    - ``baseline``: "none", or "mean" for :math:`v_j - \frac{1}{N} \sum_i v_i`, the share of a
      position beyond an average one.
    - ``per``: None, "layer" for maps (B, K, n, h, w) or "head" for (B, K, n, H, h, w), n the
      attentions that take part.
    - ``start_layer``: first layer that takes part, 0-based; those below count in the rest.
    - ``depth``: "pooling"; "token", through the pooled token's MLPs; or "all" to carry the tokens'
      shares on through all layers to the patches, which is :class:`ConservativePropagation`, at a
      backward per target.
    - ``return_rest``: return the rest (B, K) as well.

    Source: after Gandelsman et al. 2024 (arXiv:2310.05916), who split the CLS token of a ViT; other
    pools and the text side are ours. Zhou et al. 2016 (arXiv:1512.04150), CAM.

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
    signed = additive = differentiable = True
    _tower: TransformerTower | ResNetTower

    @override
    def _compute(
        self,
        call: Call,
        *,
        baseline: Baseline = "none",
        per: Per = None,
        start_layer: int = 0,
        depth: Depth = "pooling",
    ) -> Computed:
        tower, centered = self._tower, baseline == "mean"
        layers = self._reading_layers(start_layer, depth, per)
        if depth == "all":
            assert isinstance(tower, TransformerTower)
            return propagated_to_patches(tower, call, centered=centered)
        pooled = pooled_rows(tower, call, layers, centered)
        token, embedded, mlps = pooled.token, pooled.embedded, depth == "token"
        with no_graph(), autocast_disabled(token):
            direction = pull_back(pooled.head, token, embedded.direction)
            total = direction.dot(token) + direction.constant  # (K', B)
            # where tokens are fewer than targets, their shares pass the MLPs at a lower price
            if mlps and per is None and len(total) > pooled.rows[layers[0]].parts.shape[2]:
                share = pushed_rows(pooled, mlps)
                maps = torch.einsum("kbd,bsd->kbs", direction.dense(), share)
            else:
                maps = pulled_rows(
                    pooled, direction, by_layer=per is not None, by_head=per == "head", mlps=mlps
                )
            rest = total - maps[..., pooled.record.span].flatten(2).sum(-1)
            # the last law: whatever was taken apart must be the score
            scores = embedded.run.chosen
            size = scores.norm(dim=1, keepdim=True).clamp(min=1)
            pooled.record.compare("the score", total.T, scores.to(embedded.dtype), size)
            return embedded.run.computed(maps, rest.T)

    @classmethod
    @override
    def _laws(cls, **options: Any) -> tuple[str, ...]:
        return () if options.get("depth") == "all" else ("blocks", "embedding")

    @override
    def _check_layers(self, **options: Any) -> None:
        start: Any = options.get("start_layer", 0)
        depth: Any = options.get("depth", "pooling")
        self._reading_layers(start, depth, options.get("per"))

    @override
    def _on_grid(self, record: Recording, values: Tensor) -> Tensor:
        return record.on_grid(values.transpose(0, 1))

    def _reading_layers(self, start_layer: int, depth: Depth, per: Per = None) -> range:
        """The layers whose attention takes part, empty of a convolutional tower."""
        pooling = self._tower.pooling
        if depth != "pooling" and isinstance(self._tower, ResNetTower):
            raise InputError(
                "depth: what a convolutional tower's stages below the pool add cannot be followed; "
                "leave it out, or use a ViT."
            )
        if depth == "token" and pooling in ("mean", "attention"):
            raise InputError(
                "depth: 'token' follows the single token that a tower pools through its MLPs, but "
                f"this {self._tower.noun} pools by {pooling}; leave it out, or use 'all'."
            )
        if depth == "all" and (per is not None or start_layer):
            raise InputError(
                "depth: 'all' follows all layers and heads to the patches together, so none can be "
                "kept or left out; leave out `per` and `start_layer`."
            )
        # of a network the features are one layer
        is_layer = per == "layer" and isinstance(self._tower, ResNetTower)
        if per is not None and pooling == "mean" and not is_layer:
            raise InputError(f"per: no attention, and so no {per}, reads a mean; leave it out.")
        if isinstance(self._tower, ResNetTower):
            if start_layer:
                raise InputError("start_layer: a convolutional tower has one pool; leave it out.")
            return range(1)
        layers = self._layers(start_layer)
        # only the pool reads the tokens
        return layers[-1:] if self._tower.pooling == "attention" else layers

    @public("vectors")
    def vectors(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        *,
        per: Literal["position", "head"] = "position",
        return_rest: bool = False,
        baseline: Baseline = "none",
        start_layer: int = 0,
        depth: Depth = "pooling",
        create_graph: bool = False,
    ) -> Any:
        r"""The share of each position in the unit embedding, (B, h, w, E), of texts (B, T, E).

        .. math:: \hat e = \sum_j c_j + c_0, \qquad r_j(t) = c_j \cdot t

        so the map of any text is one product with its unit embedding, whatever the forward
        function's own target. One forward, and one product with the weights of each layer;
        ``depth="all"`` takes E backwards.

        With ``per="head"`` the shares of heads and MLPs, a :class:`captum_clip.attr.HeadVectors`,

        .. math:: \hat e = \sum_{lh} c_{lh} + \sum_l m_l + c_0, \qquad
            c_{lh} = \frac{1}{|e|} W_{lh} \sum_j A_{lh}[CLS, j] \, v_{lhj}

        with the head's output map, the final norm and the projection in :math:`W_{lh}`. The sum
        is over all tokens, CLS among them, which has no place in ``attribute(..., per="head")``.

        Args:
            inputs: preprocessed images (B, 3, H, W), or token ids (B, T).
            additional_forward_args: the attention mask of texts.
            per: "position", or "head", without a `baseline` or `depth`, where attention pools.
            return_rest: return :math:`c_0` (B, E), which belongs to no position, as well.
            baseline: as the class has it, like what follows.
            start_layer: first layer that takes part.
            depth: "pooling", "token" or "all".
            create_graph: leave the vectors in the graph of the model, as `attribute` does.

        Raises:
            InputError: a forward function of your own, or an invalid input or option.
            UnsupportedModelError: a hook or a patched method changes what is taken apart.

        Example:
            >>> import torch
            >>> from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
            >>> from captum_clip.demo.scenes import draw_scene
            >>> clip = load_clip("demo/vit")
            >>> horse = targets.text(clip, "a horse")
            >>> direct = DirectContribution(ClipSimilarity(clip, horse))
            >>> images = clip.preprocess(draw_scene(0).image)
            >>> vectors = direct.vectors(images)
            >>> torch.allclose(vectors @ horse.embeddings[0], direct.attribute(images)[:, 0])
            True
        """
        self._check_similarity()
        check_flag("return_rest", return_rest)
        check_choice(per, ("position", "head"), name="`per`")
        options: Any = {"baseline": baseline, "start_layer": start_layer, "depth": depth}
        kept = "head" if per == "head" else None
        options |= {"create_graph": create_graph, "per": kept}
        computed = self._products(inputs, additional_forward_args, options)
        vectors = computed.values.movedim(0 if kept else 1, -1).contiguous()
        if kept:
            count = vectors.shape[2] - (self._tower.pooling == "cls")
            heads, mlps = vectors[:, :, :count], vectors[:, :, count:].flatten(1, 2)
            return HeadVectors(heads, mlps, cast(Tensor, computed.rest))
        return (vectors, computed.rest) if return_rest else vectors

    def _products(
        self, inputs: Any, extra: Any, options: dict[str, Any], directions: Tensor | None = None
    ) -> Computed:
        """The products (B, n, h, w) of the vectors with others (n, B or 1, E); with the axes E."""
        compute = partial(self._compute_products, directions=directions)
        on_grid, select = options.get("per") is None, partial(many_columns, None)
        return self._run(inputs, extra, select, options, compute, on_grid)

    def _compute_products(
        self,
        call: Call,
        *,
        directions: Tensor | None,
        baseline: Baseline,
        start_layer: int,
        depth: Depth,
        per: Per = None,
    ) -> Computed:
        tower, centered = self._tower, baseline == "mean"
        layers = self._reading_layers(start_layer, depth, per)
        if per is not None and (centered or depth != "pooling"):
            raise InputError("per returns whole vectors; leave out `baseline` and `depth`.")
        if directions is None and depth == "all":
            assert isinstance(call.forward, Similarity)
            axes = torch.eye(call.forward.embeddings.shape[1], device=call.images[0].device)
            directions = axes[:, None]
        if depth == "all":
            assert isinstance(tower, TransformerTower)
            return propagated_to_patches(tower, call, centered=centered, directions=directions)
        pooled = pooled_rows(tower, call, layers, centered)
        embedded = pooled.embedded
        with no_graph(), autocast_disabled(pooled.token):
            shares = parts_of_heads(pooled) if per else pushed_rows(pooled, depth == "token")
            vectors = push_forward(pooled.head, pooled.token, shares)[1]
            if per is not None:
                vectors = vectors.reshape(len(vectors), len(layers), -1, vectors.shape[-1])
            vectors = torch.einsum("b...,b->b...", vectors, embedded.direction.scale)
            return decompose(tower, call, embedded, products(vectors, directions), directions)
