"""Direct contributions to a score, of positions and heads, and of pairs of positions."""

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast, final

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from .. import targets
from ..checks import check_choice, check_flag, expect, is_integer
from ..errors import InputError, TargetError, UnsupportedModelError, public
from ..maps import autocast_disabled
from ..models import ClipAdapter
from ..models.library import has_no_foreign_hooks
from ..models.towers import ResNetTower, TransformerTower
from ..recording.graph import no_graph
from ..targets import Target
from ..targets.similarity import ClipPairSimilarity, ClipSimilarity, Similarity, TextSimilarity
from ._call import Call, Computed, many_columns
from .additive import (
    AdditiveAttribution,
    parts_of_heads,
    pooled_rows,
    products,
    propagated_to_patches,
    pulled_rows,
    pushed_rows,
    with_rest,
)

Baseline = Literal["none", "mean"]
Per = Literal["head", "layer", None]
Depth = Literal["pooling", "token", "all"]


def any_target(clip: ClipAdapter) -> Target:
    """Make a target for a forward function, where only vectors are taken: they depend on none."""
    dimension = clip.embedding_dim or clip.measured_dim()
    return targets.embedding(torch.eye(1, dimension, device=clip.device))


class HeadVectors(NamedTuple):
    """What each head of n attentions adds to the unit embeddings; all fields add up to these.

    Attributes:
        heads: (B, n, H, E), the sums over all tokens that the pooled one attends to. In a ResNet's
            pool, these are the positions.
        mlps: (B, n, E), of the same layers. For a pooling head it is (B, 0, E), since the heads'
            vectors pass the head's MLP.
        rest: (B, E), from the pooled token's embedding, the biases, and the layers below.

    Example:
        >>> from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> vectors = DirectContribution(forward).vectors(images, per="head")
        >>> bool((vectors.embeddings - clip.encode_image(images)).abs().max() < 1e-5)
        True
    """

    heads: Tensor
    mlps: Tensor
    rest: Tensor

    @property
    def embeddings(self) -> Tensor:
        """The unit embeddings, (B, E)."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.rest

    @classmethod
    def split(cls, vectors: Tensor, heads: int, rest: Tensor) -> "HeadVectors":
        """Split the vectors (B, n, H or H + 1, E) of each layer's heads, and of its MLP if any."""
        return cls(vectors[:, :, :heads], vectors[:, :, heads:].flatten(1, 2), rest)


@final
class DirectContribution(AdditiveAttribution):
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
    :math:`g + (y - b - g \cdot e) \, e / |e|^2`, g the score's gradient there and b its constant:
    one small backward per target. The rest has b, so a bias or a prior changes no map. The first
    call asks for the score of -e to find b, at the price of a forward. A score that is not odd in
    e up to a constant, such as that of an MLP, has no b. Then :math:`G` begins with g alone, and
    the rest has what that leaves of the score.

    Pass the model as `layer`. transformers keeps the projection P outside the vision tower, so P is
    not known if you pass the tower alone. Then e is the tower's unprojected output v, and the part
    of the score along e follows :math:`v / |v|^2` instead of :math:`P^T P v / |P v|^2`.
    That is a different map with the same sum.

    It answers "what does this place add?", not "what if it were gone?", which is what
    :class:`ReaderRemoval` answers. Closer to the second, without a further forward, is
    ``depth="token"``, in a tower that pools one token, with a direction for each layer,

    .. math:: G_l = \frac{\partial \tilde y}{\partial z_l}

    the gradient at the pooled token's stream :math:`z_l` after attention l, through the MLPs that
    it still passes, with norms and gates f(x) / x as constants. What it attends to later, its own
    values among that, counts where it is read. The rest holds the MLPs' biases, and what the
    MLPs make of the pooled token's own embedding and values.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        baseline (str): "none", or "mean" for :math:`v_j - \frac{1}{N} \sum_i v_i`, the share of a
            position beyond an average one.
        per (str): None for one map, "layer" for one per attention that takes part, or "head" for
            one per head of these.
        start_layer (int): first layer that takes part, 0-based, 0 by default. Those below count in
            the rest.
        depth (str): "pooling", as above; "token", through the pooled token's MLPs; or "all" to
            carry the tokens' shares on through all layers to the patches. "all" is
            :class:`ConservativePropagation`, at a backward per target.
        return_rest (bool): return the rest, (B, 1) or (B, K), as well.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). With n
        attentions of H heads they are (B, K, n, h, w) per layer and (B, K, n, H, h, w) per head.
        The maps of a text have T in the place of h and w.

    Raises:
        InputError: an option does not fit the tower, such as ``per="head"`` if it pools a mean.
        UnsupportedModelError: a part of the tower cannot be written as a sum over tokens.

    Source: after Gandelsman et al. 2024 (arXiv:2310.05916), who split the CLS token of a ViT. Their
    code spreads the output bias of each attention over tokens and heads; here it is in the rest.
    Other pools and the text side are ours. Zhou et al. 2016 (arXiv:1512.04150), CAM.

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
    signed = True
    differentiable = True
    reads_projection = True
    _tower: TransformerTower | ResNetTower

    def _compute(
        self,
        call: Call,
        *,
        baseline: Baseline = "none",
        per: Per = None,
        start_layer: int = 0,
        depth: Depth = "pooling",
    ) -> Computed:
        tower = self._tower
        centered = baseline == "mean"
        layers = self._reading_layers(start_layer, depth, per)
        if depth == "all":
            assert isinstance(tower, TransformerTower)
            return propagated_to_patches(tower, call, centered=centered)
        pooled = pooled_rows(tower, call, layers, centered)
        embedded = pooled.embedded
        through_mlps = depth == "token"
        with no_graph(), autocast_disabled(pooled.token):
            direction = pooled.direction
            total = direction.dot(pooled.token) + direction.constant  # (K', B)
            # The MLPs are passed by the tokens' shares or by the targets' directions, whichever
            # are fewer. A map per layer or head needs the directions.
            pushes_tokens = False
            if through_mlps and per is None:
                token_count = pooled.rows[layers[0]].parts.shape[2]
                pushes_tokens = len(total) > token_count
            if pushes_tokens:
                shares = pushed_rows(pooled, through_mlps)
                maps = torch.einsum("kbd,bsd->kbs", direction.dense(), shares)
            else:
                maps = pulled_rows(pooled, direction, per=per, mlps=through_mlps)
            if embedded.remainder is not None:
                total = total + embedded.remainder.T
            rest = total - maps[..., pooled.record.span].flatten(2).sum(-1)
            # This is the last law: what was taken apart must add up to the score.
            scores = embedded.run.chosen
            size = scores.norm(dim=1, keepdim=True).clamp(min=1)
            pooled.record.compare("the score", total.T, scores.to(embedded.dtype), size)
            return embedded.run.computed(maps, rest.T)

    def _laws_of(self, **options: Any) -> tuple[str, ...]:
        # Options that do not fit the tower are refused here, before any work.
        self._reading_layers(**options)
        return () if options.get("depth") == "all" else ("blocks", "embedding")

    def _reading_layers(
        self, start_layer: int = 0, depth: Depth = "pooling", per: Per = None, **options: Any
    ) -> range:
        """The layers whose attention takes part; one stands for a convolutional tower's pool.

        Raises:
            InputError: an option does not fit the tower, or another option.
        """
        pooling = self._tower.pooling
        is_convolutional = isinstance(self._tower, ResNetTower)
        if depth != "pooling" and is_convolutional:
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
        # The features of a convolutional tower count as one layer, even if no attention reads them.
        has_layers = per == "layer" and is_convolutional
        if per is not None and pooling == "mean" and not has_layers:
            raise InputError(f"per: no attention, and so no {per}, reads a mean; leave it out.")
        if is_convolutional:
            if start_layer:
                raise InputError("start_layer: a convolutional tower has one pool; leave it out.")
            return range(1)
        layers = self._layers(start_layer)
        if pooling == "attention":
            # Only the pooling head reads tokens for the embedding.
            return layers[-1:]
        return layers

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
        r"""Compute the share of each position in the unit embedding, a vector.

        .. math:: \hat e = \sum_j c_j + c_0, \qquad r_j(t) = c_j \cdot t

        so the map of any text is one product with its unit embedding, whatever the forward
        function's own target. One forward, and one product with the weights of each layer;
        ``depth="all"`` takes E backwards.

        With ``per="head"``, compute the shares of heads and MLPs:

        .. math:: \hat e = \sum_{lh} c_{lh} + \sum_l m_l + c_0, \qquad
            c_{lh} = \frac{1}{|e|} W_{lh} \sum_j A_{lh}[CLS, j] \, v_{lhj}

        with the head's output map, the final norm and the projection in :math:`W_{lh}`. The sum
        is over all tokens, CLS among them, which has no place in ``attribute(..., per="head")``.

        Args:
            inputs: preprocessed images (B, 3, H, W), or token ids (B, T).
            additional_forward_args: the attention mask of texts.
            per: "position", or "head" in a tower that pools by attention. "head" takes no
                `baseline` and no `depth`.
            return_rest: return :math:`c_0` (B, E), which belongs to no position, as well. With
                ``per="head"`` it is always there.
            baseline: "none" or "mean", as for the class.
            start_layer: first layer that takes part.
            depth: "pooling", "token" or "all", as for the class.
            create_graph: leave the vectors in the graph of the model, as `attribute` does.

        Returns:
            Vectors (B, h, w, E), or (B, T, E) of texts; with ``per="head"`` a
            :class:`captum_clip.attr.HeadVectors`.

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
        options: Any = {"start_layer": start_layer, "create_graph": create_graph}
        if per == "head":
            if baseline == "mean" or depth != "pooling":
                raise InputError("per returns whole vectors; leave out `baseline` and `depth`.")
            return self.head_parts(inputs, additional_forward_args, **options)[0]
        options |= {"baseline": baseline, "depth": depth}
        computed = self._products(inputs, additional_forward_args, options)
        vectors = computed.values.movedim(1, -1).contiguous()
        return (vectors, computed.rest) if return_rest else vectors

    def head_parts(self, inputs: Any, extra: Any = None, **options: Any) -> tuple[HeadVectors, Any]:
        """The vectors by head; the parts of the pooled token, and their linear map to vectors."""
        options |= {"per": "head", "baseline": "none", "depth": "pooling"}
        computed = self._products(inputs, extra, options)
        vectors = computed.values.movedim(0, -1).contiguous()
        head_count = vectors.shape[2]
        if self._tower.pooling == "cls":
            head_count -= 1  # The MLP of each layer comes after its heads.
        return HeadVectors.split(vectors, head_count, cast(Tensor, computed.rest)), computed.parts

    def _products(
        self, inputs: Any, extra: Any, options: dict[str, Any], directions: Tensor | None = None
    ) -> Computed:
        """Multiply the vectors with directions (n, B or 1, E), by default with the E axes.

        The values of the result are (B, n, h, w), and its rest has the products (B, n) of the
        vectors' rest.
        """

        def compute(
            call: Call, *, baseline: Baseline, depth: Depth, start_layer: int = 0, per: Per = None
        ) -> Computed:
            tower = self._tower
            centered = baseline == "mean"
            layers = self._reading_layers(start_layer, depth, per)
            if depth == "all":
                assert isinstance(tower, TransformerTower)
                rows = directions
                if rows is None:
                    assert isinstance(call.forward, Similarity)
                    width = call.forward.embeddings.shape[1]
                    rows = torch.eye(width, device=call.images[0].device)[:, None]
                return propagated_to_patches(tower, call, centered=centered, directions=rows)
            pooled = pooled_rows(tower, call, layers, centered)
            with no_graph(), autocast_disabled(pooled.token):
                if per is None:
                    parts = pushed_rows(pooled, depth == "token")
                    vectors = pooled.embed(parts)
                else:
                    parts = parts_of_heads(pooled)
                    # The last part belongs to no layer, and counts in the rest.
                    vectors = pooled.embed(parts)[:, :-1]
                    batch, _, width = vectors.shape
                    # (B, n, H, E), or H + 1 where the layer's MLP follows its heads
                    vectors = vectors.reshape(batch, len(layers), -1, width)
                values = products(vectors, directions)
                computed = with_rest(pooled.embedded, values, directions)
                return computed._replace(parts=(parts, pooled.embed))

        every_target = partial(many_columns, None)
        # Vectors by head have no grid.
        on_grid = options.get("per") is None
        return self._run(inputs, extra, every_target, options, compute, on_grid)


_Option = TypeVar("_Option")
OneOrTwo: TypeAlias = _Option | tuple[_Option, _Option]
"""An option of both sides, or one for the images and one for what they are compared with."""


class InteractionRest(NamedTuple):
    """The parts of the scores of B pairs that belong to no pair of positions.

    If all images are paired with all N others, B stands for B, N.

    Attributes:
        other: what belongs to a token alone, (B, T), or to a position of the other image alone,
            (B, h', w').
        image: what belongs to a position of the image alone, (B, h, w).
        constant: what belongs to neither, (B,).
    """

    other: Tensor
    image: Tensor
    constant: Tensor


class _Side(NamedTuple):
    """The images of pairs, or the texts or images that they are compared with."""

    method: DirectContribution
    inputs: Tensor
    mask: Any
    options: dict[str, Any]


class DirectInteraction(Attribution):  # type: ignore[misc]
    r"""What each pair of a token and a position adds to their cosine: the second order, exactly.

    Both unit embeddings are sums of vectors, one for each position and a rest
    (:meth:`DirectContribution.vectors`), so the cosine is a sum over pairs:

    .. math:: \hat e = \sum_i c_i + c_0, \quad \hat t = \sum_j d_j + d_0, \qquad
              \cos = \sum_{ij} c_i \cdot d_j + \sum_j c_0 \cdot d_j + \sum_i c_i \cdot d_0
              + c_0 \cdot d_0

    with the gates of both towers detached. It is the share that is attributed to word j at position
    i, signed: all shares and rests add up to the score. It does not answer what the word does to
    the region's effect once either is gone, which is a difference of scores (docs/text.md).

    One forward of each tower and a product, for any number of pairs. The start, end and padding
    tokens of a text have positions like words; :func:`captum_clip.targets.word_tokens` tells which
    tokens belong to which word.

    Args:
        forward_func: a :class:`captum_clip.ClipPairSimilarity`.

    Keyword Args:
        return_rest (bool): return the :class:`captum_clip.attr.InteractionRest` as well.
        baseline (str or pair): "none" or "mean", as for :class:`DirectContribution`. Each of these
            three options is a value for both sides, or a pair (for the images, for the others).
        start_layer (int or pair): first layer that takes part, 0-based, 0 by default.
        depth (str or pair): "pooling", "token" or "all". If one side has "all", its tower takes a
            backward for each position of the other side. If both have it, one tower takes E.

    Returns:
        `attribute` returns shares (B, T, h, w) of B images with a text each, or
        (B, h', w', h, w) with an image each. `attribute_pairs` returns those of all pairs,
        (B, N, T, h, w) or (B, N, h', w', h, w).

    Raises:
        InputError: another forward function.
        UnsupportedModelError: a tower that cannot be taken apart.

    Source: the sum over pairs of two decompositions after Gandelsman et al. 2024
    (arXiv:2310.05916), of which the text's is ours. Möller et al. 2025 (arXiv:2408.14153), exCLIP,
    attribute to the same pairs by integrated second derivatives.

    Example:
        >>> from captum_clip import ClipPairSimilarity, DirectInteraction, load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipPairSimilarity(clip)
        >>> pair = (clip.preprocess(draw_scene(0).image), clip.text_inputs("a horse")[0])
        >>> maps, rest = DirectInteraction(forward).attribute(pair, return_rest=True)
        >>> maps.shape  # a map for each of 16 tokens
        torch.Size([1, 16, 7, 7])
        >>> total = maps.sum((1, 2, 3)) + rest.other.sum(1) + rest.image.sum((1, 2)) + rest.constant
        >>> bool((total - forward(*pair)).abs().max() < 1e-5)
        True
    """

    @public("DirectInteraction")
    def __init__(self, forward_func: ClipPairSimilarity) -> None:
        is_pair = isinstance(forward_func, ClipPairSimilarity)
        advice = "pass ClipPairSimilarity(load_clip(model))"
        expect(is_pair, "a ClipPairSimilarity", forward_func, advice)
        super().__init__(forward_func)
        clip = forward_func.clip
        target = any_target(clip)
        self._image = DirectContribution(ClipSimilarity(clip, target))
        self._other = self._image
        if forward_func.side == "text":
            self._other = DirectContribution(TextSimilarity(clip, target))

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute")
    def attribute(
        self,
        inputs: tuple[Tensor, Tensor],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_rest: bool = False,
        baseline: OneOrTwo[Baseline] = "none",
        start_layer: OneOrTwo[int] = 0,
        depth: OneOrTwo[Depth] = "pooling",
    ) -> Any:
        """Compute the shares of B pairs, (B, T, h, w), or (B, h', w', h, w) for pairs of images.

        Args:
            inputs: images (B, 3, H, W), and token ids (B, T) or as many images.
            target: None or 0, since there is a single score for each pair.
            additional_forward_args: the attention mask of the texts.
            return_rest: return (shares, :class:`InteractionRest`).
            baseline: "none" or "mean", or a pair.
            start_layer: first layer that takes part, or a pair.
            depth: "pooling", "token" or "all", or a pair.

        Raises:
            InputError: invalid inputs or options, or other numbers of images and others.
            TargetError: a target other than None or 0.
        """
        expected = f"a tuple of two tensors, images and {self.forward_func.side}s"
        expect(isinstance(inputs, tuple) and len(inputs) == 2, expected, inputs)
        is_first = target is None or (is_integer(target) and target == 0)
        expect(is_first, "no target", target, "there is one score for each pair", error=TargetError)
        options = {"baseline": baseline, "start_layer": start_layer, "depth": depth}
        return self._shares(inputs, additional_forward_args, options, return_rest, paired=True)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute_pairs")
    def attribute_pairs(
        self,
        images: Tensor,
        others: Tensor,
        additional_forward_args: Any = None,
        *,
        return_rest: bool = False,
        baseline: OneOrTwo[Baseline] = "none",
        start_layer: OneOrTwo[int] = 0,
        depth: OneOrTwo[Depth] = "pooling",
    ) -> Any:
        """Compute the shares (B, N, T, h, w) of B images with each of N texts, or of N images.

        The arguments are those of :meth:`attribute`, with any number of images and others. The
        rest is (B, N, T), (B, N, h, w) and (B, N).
        """
        options = {"baseline": baseline, "start_layer": start_layer, "depth": depth}
        inputs, extra = (images, others), additional_forward_args
        return self._shares(inputs, extra, options, return_rest, paired=False)

    def _shares(
        self,
        inputs: tuple[Tensor, Tensor],
        extra: Any,
        options: dict[str, Any],
        return_rest: bool,
        *,
        paired: bool,
    ) -> Any:
        check_flag("return_rest", return_rest)
        forward = self.forward_func
        if type(forward) is not ClipPairSimilarity or not has_no_foreign_hooks(forward):
            raise UnsupportedModelError(
                "the forward function has a hook, a patched method or its own code, "
                "so its score may be more than the cosine; pass a plain ClipPairSimilarity."
            )
        image_options = {}
        other_options = {}
        for name, value in options.items():
            pair = value if isinstance(value, (tuple, list)) else (value, value)
            expect(len(pair) == 2, f"{name} for both sides, or a pair of them", pair)
            image_options[name], other_options[name] = pair
        # A wrong option of the second side must not cost the forward of the first.
        DirectContribution.check_options(**image_options)
        DirectContribution.check_options(**other_options)
        mask = extra[0] if isinstance(extra, tuple) and len(extra) == 1 else extra
        forward.check(*inputs, mask, pairs=paired)
        image_side = _Side(self._image, inputs[0], None, image_options)
        other_side = _Side(self._other, inputs[1], mask, other_options)
        # The first side gives vectors, which a second side of depth "all" multiplies with its own
        # at a backward each. As the first side, it would take E backwards.
        image_first = other_options["depth"] == "all" and image_options["depth"] != "all"
        if image_first:
            table, image_shape, other_shape = self._table(image_side, other_side, paired)
            # The rows of the table are those of the other side from here on.
            table = table.mT if paired else table.transpose(0, 1).mT
        else:
            table, other_shape, image_shape = self._table(other_side, image_side, paired)
        lead = table.shape[:-2]
        shares = table[..., :-1, :-1].reshape(*lead, *other_shape, *image_shape)
        other = table[..., :-1, -1].reshape(*lead, *other_shape)
        image = table[..., -1, :-1].reshape(*lead, *image_shape)
        rest = InteractionRest(other, image, table[..., -1, -1])
        return (shares, rest) if return_rest else shares

    def _table(
        self, first: _Side, second: _Side, paired: bool
    ) -> tuple[Tensor, torch.Size, torch.Size]:
        """The products of all parts of two sides, and the shapes of their positions.

        The table is (B, n + 1, m + 1) for n and m positions, each followed by a rest. Without
        pairs it is (B, N, n + 1, m + 1), with the B of the second side.
        """
        vectors, rest = first.method.vectors(
            first.inputs, first.mask, return_rest=True, **first.options
        )
        parts = torch.cat([vectors.flatten(1, -2), rest[:, None]], 1)  # (N, n + 1, E)
        directions = parts.transpose(0, 1) if paired else parts.flatten(0, 1)[:, None]
        computed = second.method._products(second.inputs, second.mask, second.options, directions)
        assert computed.rest is not None
        table = torch.cat([computed.values.flatten(2), computed.rest[..., None]], 2)
        if not paired:
            table = table.view(len(table), *parts.shape[:2], -1)
        return table, vectors.shape[1:-1], computed.values.shape[2:]
