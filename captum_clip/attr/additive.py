"""Scores and embeddings as sums over positions or heads: vectors, their products, relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import expect
from ..errors import CaptureError, UnsupportedModelError, public
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PostNormLayer
from ..models.steps import (
    Direction,
    Step,
    constants,
    flattened,
    needs_token,
    pull_back,
    push_forward,
    run_steps,
    split_heads,
)
from ..models.towers import Tower, TransformerTower
from ..recording.graph import detached, held, keeps_graph, no_graph
from ..recording.observe import Embedding, Kernels, Observer, Sums, observe
from ..recording.passes import HeldGates, refuse_nonlinear
from ..recording.reads import AttentionRead
from ..recording.records import NOTHING, Recording
from . import _attention as mha
from ._base import ClipAttribution
from ._call import (
    Call,
    Computed,
    Indices,
    PooledEmbedding,
    batched,
    embedded_scores,
    further_arguments,
    one_column,
    pooled_embedding,
    refuse_checkpointing,
)


def products(vectors: Tensor, directions: Tensor | None) -> Tensor:
    """Vectors (B, ..., E) times others (n, B or 1, E), by default the axes: (n, B, ...)."""
    if directions is None:
        return vectors.movedim(-1, 0)
    directions = directions.to(vectors).expand(-1, len(vectors), -1)
    return torch.einsum("nbe,b...e->nb...", directions, vectors)


class PooledRow(NamedTuple):
    """The pooled row of an attention as a sum over tokens, and how it reaches the stream.

    Where tokens are averaged, the mean is the row: it has a single head and no further steps.
    """

    name: str  # in messages
    parts: Tensor  # (B, H, s, d), what each token adds to the heads' outputs
    extra: Tensor | None = None  # (B, H d), what no token adds
    attention: Attention | None = None
    mixture: tuple[Tensor, Tensor] | None = None  # a mixed value, as computed again and as it ran

    @property
    def heads(self) -> Tensor:
        """The heads' outputs, (B, H d)."""
        added_by_tokens = self.parts.sum(2).flatten(1)
        if self.extra is None:
            return added_by_tokens
        return added_by_tokens + self.extra

    @classmethod
    def of(cls, _: int, read: AttentionRead, *, centered: bool) -> "PooledRow":
        """Read the row of an attention as it runs; `centered` takes values less their mean.

        The index of the layer is what `Kernels` gives to whatever takes a read.
        """
        with no_graph(), autocast_disabled(read.value):
            row = read.row()
            value = to_float32(read.value)
            if read.attention.positions is not None:
                return _resnet_pool_row(read, row, value, centered)
            extra = read.extra
            if centered:
                # The value of a mean token is the mean of the values, since the map is linear.
                mean = read.pooled.mean(value.transpose(1, 2).flatten(2), read.span)
                mean = split_heads(mean, value.shape[1]).transpose(1, 2)  # (B, H, 1, d)
                value = value - mean
                # What all tokens give alike belongs to none of them.
                mean_share = (row.sum(-1, keepdim=True) * mean[:, :, 0]).flatten(1)
                extra = mean_share if extra is None else extra + mean_share
            return cls(read.name, value * row[..., None], extra, read.attention)


def _resnet_pool_row(read: AttentionRead, row: Tensor, value: Tensor, centered: bool) -> PooledRow:
    r"""The row of a ResNet's pool, whose mean token is spread over the positions.

    .. math:: a_j \, v_j + \frac{a_0}{N} (v_j - c_j), \qquad c_j = W_V p_j + b_V

    with p the position embeddings, which no image changes; :math:`a_0 c_0` belongs to no position.
    """
    embeddings: Any = read.attention.positions
    count = len(embeddings) - 1
    # One mixture of the tokens passes the map as well. Its value shows whether the values that ran
    # were made of the features.
    mixed, mixed_value = mha.mixed_values(read, mha.pool_tokens(read))
    value_map = read.attention.input_maps()[2]
    mapped = value_map(torch.cat([embeddings.to(value.dtype), mixed]))
    of_positions = split_heads(mapped[: 1 + count], value.shape[1]).transpose(0, 1)  # (H, 1 + N, d)
    own = value[:, :, 1:]  # what a position gives where it is attended to
    in_mean = (value - of_positions)[:, :, 1:]  # what it gives through the mean token
    first = row[..., :1]  # the attention to the mean token
    others = row[..., 1:]
    extra = first * of_positions[:, 0]
    if centered:
        mean_in_mean = in_mean.mean(2, keepdim=True)
        mean_own = own.mean(2, keepdim=True)
        in_mean = in_mean - mean_in_mean
        own = own - mean_own
        extra = extra + first * mean_in_mean[:, :, 0]
        extra = extra + others.sum(-1, keepdim=True) * mean_own[:, :, 0]
    parts = own * others[..., None] + in_mean * (first[..., None] / count)
    return PooledRow(
        name=read.name,
        parts=F.pad(parts, (0, 0, 1, 0)),  # the mean token itself has no place in a map
        extra=extra.flatten(1),
        attention=read.attention,
        mixture=(mapped[1 + count :], mixed_value),
    )


def _mean_row(tower: Tower, embedded: PooledEmbedding, centered: bool) -> PooledRow:
    """The row of a mean of tokens, each of which passes the first steps of the head."""
    pooled = embedded.run.record.pooled
    tokens = embedded.token  # (B, N, D)
    steps = embedded.head(tower)[: tower.steps_before_mean]
    share = mha.initial_row("mean", tokens[..., 0], 0, pooled)[..., None]  # (B, N, 1)
    mean = pooled.mean(tokens, slice(None)).expand_as(tokens)
    # Each token has a norm of its own, so the mean passes the norm once for every token.
    vectors = torch.stack([tokens, mean], 2).flatten(0, 1)  # (B N, 2, D)
    if not centered:
        vectors = vectors[:, :1]
    _, vectors = push_forward(steps, tokens.flatten(0, 1), vectors)
    # (B, N, 2, D), or (B, N, 1, D) without the mean
    vectors = vectors.view(*tokens.shape[:2], *vectors.shape[1:]) * share[..., None]
    parts = vectors[:, :, 0]
    # The norm of a zero vector is the norm's bias.
    extra = run_steps(steps, torch.zeros_like(tokens[:, 0]))
    if centered:
        of_mean = vectors[:, :, 1]
        parts = parts - of_mean
        extra = extra + of_mean.sum(1)
    parts = F.pad(parts, (0, 0, tower.prefix, 0))
    return PooledRow("the mean of the tokens", parts[:, None], extra)


class PooledRows(NamedTuple):
    """The pooled rows of some attentions, and the way from them to the embedding."""

    embedded: PooledEmbedding
    rows: dict[int, PooledRow]
    token: Tensor  # (B, D), what is pooled
    head: tuple[Step, ...]  # from there to the embedding

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record

    @property
    def direction(self) -> Direction:
        """The direction on the pooled token along which the scores grow."""
        return pull_back(self.head, self.token, self.embedded.direction)

    def embed(self, parts: Tensor) -> Tensor:
        """Map parts (B, m, D) of the pooled token to parts (B, m, E) of the unit embedding.

        The norm's deviation, the gates and the embedding's length are those of this image.
        """
        with no_graph(), autocast_disabled(self.token):
            _, vectors = push_forward(self.head, self.token, parts.to(self.token))
            return torch.einsum("b...,b->b...", vectors, self.embedded.direction.scale)


def pooled_rows(
    tower: Tower, call: Call, layers: range, centered: bool, *observers: Observer
) -> PooledRows:
    """Run once, and read the pooled row of the attentions of some layers, or a mean.

    Other observers, if there are any, read the attentions, and keep the rows of these layers.
    """
    # A network that averages its features has no attention, so no layer is read there.
    layers = layers[: len(tower.attentions)]
    if not observers:
        observers = (Kernels(layers, partial(PooledRow.of, centered=centered)),)
    # A pooling head is the last of the attentions, but no block.
    blocks = range(layers.start, min(layers.stop, len(tower.layers)))
    sums = Sums(blocks, copies=call.copies)
    embedded = pooled_embedding(tower, call, *observers, sums)
    record = embedded.run.record
    if record.rows:
        record.compare_sums()
    if tower.pooling == "mean":
        token = embedded.token
        with no_graph(), autocast_disabled(token):
            row = _mean_row(tower, embedded, centered)
            head = embedded.head(tower)[tower.steps_before_mean :]
            after_all_layers = len(tower.layers)
            return PooledRows(embedded, {after_all_layers: row}, row.heads, head)
    rows = {index: row for index, row in sorted(record.reads.items()) if isinstance(row, PooledRow)}
    for row in rows.values():
        if row.mixture is not None:
            record.compare(row.name, *row.mixture)
    return PooledRows(embedded, rows, embedded.token, embedded.head(tower))


class _TokenSteps(NamedTuple):
    """Steps that the pooled token passes after an attention, what enters them, and what leaves."""

    steps: tuple[Step, ...]
    token: Tensor
    returned: Tensor


def _steps_after_attention(pooled: PooledRows, mlps: bool) -> dict[int, list[_TokenSteps]]:
    """The steps of each layer that shares follow.

    Without the `mlps` these are the norms on the stream, which only a few text towers have.
    """
    layers = dict(enumerate(pooled.record.tower.layers))
    norms_on_stream = any(isinstance(layer, PostNormLayer) for layer in layers.values())
    if not (mlps or norms_on_stream):
        return {}
    followed: dict[int, list[_TokenSteps]] = {}
    for index, (stream, returned) in pooled.record.streams().items():
        steps = flattened(layers[index].after_attention())
        token = to_float32(stream)
        if mlps:
            followed[index] = [_TokenSteps(steps, token, returned)]
        else:
            # Shares pass both norms; what the MLP between these adds counts in the rest.
            first_norm, mlp, second_norm = steps[:1], steps[1:2], steps[2:]
            normed = run_steps(first_norm, token)
            followed[index] = [
                _TokenSteps(first_norm, token, normed),
                _TokenSteps(second_norm, run_steps(mlp, normed), returned),
            ]
    return followed


class _RowSteps(NamedTuple):
    """What follows the heads of a pooled row, and what ran there."""

    merge: tuple[Step, ...] = ()  # the output map
    branch: tuple[Step, ...] = ()  # from the output map to the stream
    returned: Tensor = NOTHING  # (B, D), between the two


def _steps_of_row(pooled: PooledRows, index: int) -> _RowSteps:
    """The steps of a layer's row; a mean of tokens has none."""
    row = pooled.rows[index]
    if row.attention is None:
        return _RowSteps(returned=row.heads)
    record = pooled.record
    if row.attention.is_pool:
        returned = record.pool
    else:
        _, returned, _, _ = record.rows[index]
    return _RowSteps(row.attention.merge_steps(), row.attention.branch(), returned)


def parts_of_heads(pooled: PooledRows) -> Tensor:
    """The pooled token as a sum of parts, (B, n (H + 1) + 1, D).

    For each layer these are the parts of its heads and of its MLP. The last part is the remainder.
    """
    parts = []
    record = pooled.record
    streams = record.streams()
    layers = dict(enumerate(record.tower.layers))
    for index, row in pooled.rows.items():
        layer = layers.get(index)
        if isinstance(layer, PostNormLayer):
            raise UnsupportedModelError(
                "this text tower has norms between its layers, so heads do not add up; "
                "leave out `per`."
            )
        # Each head stands alone in a row, with zeros for the others. The heads have disjoint
        # columns of the output map, so one matrix product maps them all.
        head_outputs = row.parts.sum(2)  # (B, H, d)
        one_head_each = torch.diag_embed(head_outputs.mT, dim1=1, dim2=2).flatten(2)
        parts.append(_push_row(pooled, index, one_head_each))
        # The MLP of a pooling head follows all of its heads, so it has no part of its own.
        if layer is not None:
            stream, returned = streams[index]
            parts.append((to_float32(returned) - to_float32(stream))[:, None])
    added = torch.cat(parts, 1)
    remainder = pooled.token[:, None] - added.sum(1, keepdim=True)
    return torch.cat([added, remainder], 1)


def _push_row(pooled: PooledRows, index: int, vectors: Tensor) -> Tensor:
    """Map parts (B, n, H d) of a row's head outputs to parts (B, n, D) of the stream."""
    row = pooled.rows[index]
    steps = _steps_of_row(pooled, index)
    output, vectors = push_forward(steps.merge, row.heads, vectors)
    pooled.record.compare(row.name, output, steps.returned)
    _, vectors = push_forward(steps.branch, output, vectors)
    return vectors


def pushed_rows(pooled: PooledRows, mlps: bool) -> Tensor:
    """The share of each patch or word in the pooled token, (B, s, D), through all layers' rows.

    The share of other tokens, such as CLS, is zero: no map shows them.
    """
    share: Any = 0
    record = pooled.record
    followed = _steps_after_attention(pooled, mlps)
    span: slice = record.span
    for index, row in pooled.rows.items():
        vectors = row.parts[:, :, span].transpose(1, 2).flatten(2)  # (B, n, H d)
        share = share + _push_row(pooled, index, vectors)
        for steps, token, returned in followed.get(index, ()):
            output, share = push_forward(steps, token, share)
            record.compare(f"what follows the attention of layer {index}", output, returned)
    return F.pad(share, (0, 0, span.start, row.parts.shape[2] - span.stop))


@dataclass(frozen=True, eq=False)
class _PulledRow:
    """A layer's map, and what it takes to compare it with what ran."""

    name: str
    at_stream: Direction  # where the row is added
    at_heads: Direction
    maps: Tensor  # (K', B, ..., s), not yet scaled
    extra: Tensor | None  # (K', B), what no token adds
    added: Tensor  # (B, D), what ran: the row as it was added to the stream


def pulled_rows(
    pooled: PooledRows, direction: Direction, *, per: str | None = None, mlps: bool = False
) -> Tensor:
    """The maps (K, B, ..., s) along directions on the pooled token, from the last layer down.

    They are kept `per` "layer" or "head", (K, B, n, s) or (K, B, n, H, s), or added up.
    """
    followed = _steps_after_attention(pooled, mlps)
    comparisons: list[_Products] = []
    pulled: list[_PulledRow] = []
    for index, row in reversed(pooled.rows.items()):
        for steps, token, returned in reversed(followed.get(index, [])):
            above = direction
            direction = pull_back(steps, token, above.without_constant())
            # Along `above`, the steps return what enters along `direction`, and their biases.
            whole = direction.dot(token) + direction.constant
            name = f"what follows the attention of layer {index}"
            comparisons.append(_Products(name, above, whole, returned))
        pulled.append(_pull_row(pooled, index, row, direction, per))
    directions = [layer.at_heads for layer in pulled]
    scales = torch.stack([at_heads.scale for at_heads in directions])  # (L, B)
    maps = torch.stack([layer.maps for layer in pulled])  # (L, K', B, ..., s)
    ones = [1] * (maps.ndim - 3)
    maps = maps * scales.view(len(pulled), 1, -1, *ones)
    wholes = maps.flatten(3).sum(-1) + constants(directions)  # (L, K', B)
    if any(layer.extra is not None for layer in pulled):
        zero = torch.zeros_like(wholes[0])
        extras = [zero if layer.extra is None else layer.extra for layer in pulled]
        wholes = wholes + torch.stack(extras)
    for layer, whole in zip(pulled, wholes, strict=True):
        comparisons.append(_Products(layer.name, layer.at_stream, whole, layer.added))
    _compare_products(pooled.record, comparisons)
    if per is None:
        return maps.sum(0)
    # The layers were read from the last one down.
    return maps.flip(0).movedim(0, 2)


def _pull_row(
    pooled: PooledRows, index: int, row: PooledRow, direction: Direction, per: str | None
) -> _PulledRow:
    """Pull directions on the stream back to the heads of a layer's row."""
    merge, branch, returned = _steps_of_row(pooled, index)
    steps = (*merge, *branch)
    # Linear steps are the same for every token, so the heads' outputs need not be added up.
    token = row.heads if needs_token(steps) else direction.rows[0]
    at_heads = pull_back(steps, token, direction.without_constant())
    # The attention kernel may have run in half precision, while the direction is float32.
    parts = row.parts.to(at_heads.rows.dtype)  # (B, H, s, d)
    if per == "head":
        rows = split_heads(at_heads.rows, parts.shape[1])  # (K', B or 1, H, d)
        rows = rows.expand(-1, len(parts), -1, -1)
        maps = torch.einsum("kbhd,bhsd->kbhs", rows, parts)
    else:
        maps = at_heads.products(parts.transpose(1, 2).flatten(2))  # (K', B, s)
    return _PulledRow(
        name=row.name,
        at_stream=direction,
        at_heads=at_heads,
        maps=maps,
        extra=None if row.extra is None else at_heads.dot(row.extra),
        added=run_steps(branch, to_float32(returned)).to(returned.dtype),
    )


class _Products(NamedTuple):
    """What the parts of a token add along some directions, and the token itself, as it ran."""

    name: str
    direction: Direction
    whole: Tensor  # (K', B), the sum of all parts
    token: Tensor  # (B, D)


def _compare_products(record: Recording, comparisons: Sequence[_Products]) -> None:
    """Compare the products of all parts with those of the library's tokens.

    To compare the tokens themselves, all parts would have to pass the weights of every layer.
    """
    # Products along one direction are compared together, which takes fewer kernels.
    directions = {id(product.direction): product.direction for product in comparisons}
    for direction in directions.values():
        alike = [product for product in comparisons if product.direction is direction]
        tokens = torch.stack([product.token for product in alike], 1)  # (B, n, D)
        wide = to_float32(tokens)
        # Of a random difference, 1 / sqrt(D) of its length lies along a vector, rarely four times
        # that much.
        size = torch.linalg.vector_norm(wide, dim=-1) * 4 * tokens.shape[-1] ** -0.5
        size = direction.length * size.T  # (n, B)
        wholes = torch.stack([product.whole for product in alike]).transpose(1, 2)  # (n, B, K')
        returned = direction.dots(wide).permute(2, 1, 0).to(tokens.dtype)
        names = [product.name for product in alike]
        record.compare_all(names, wholes, returned, size[..., None])


@no_graph()
def with_rest(embedded: PooledEmbedding, values: Tensor, directions: Tensor | None) -> Computed:
    """Add the rest to products (n, B, s) or (n, B, L, H) of the unit embedding's parts."""
    record = embedded.run.record
    unit = to_float32(detached(embedded.embedding)) * embedded.direction.scale[:, None]
    scored = record.scored.detach()
    recomputed = unit
    if scored.shape != unit.shape:
        # A forward function may score more than the tower's embedding. NaN fails the comparison.
        recomputed = torch.full_like(scored, torch.nan)
    record.compare("the embedding", recomputed, F.normalize(scored, dim=-1))
    # Tokens outside the span have no place in a map, so what they add is in the rest. Values by
    # head have no tokens.
    in_map = values[..., record.span] if values.ndim == 3 else values.flatten(2)
    rest = products(unit, directions) - in_map.sum(-1)
    return embedded.run.computed(values, rest.T)


class AdditiveAttribution(ClipAttribution):
    """Base of the methods whose maps and rest add up to the score, with Captum's delta.

    The rest is the part of the score that no position adds, so that
    ``maps.sum((-2, -1)) + rest`` is the score.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`.
        layer: the model, with a forward function of your own.

    Keyword Args:
        return_rest (bool): return the rest, (B, 1) or (B, K), after the maps. With
            ``return_scores``, `attribute_targets` returns maps, scores (B, K) and rest.
        return_convergence_delta (bool): `attribute` returns the delta (B,) of
            `compute_convergence_delta` last.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w), or a tuple
        of the maps and what else was asked for.

    Example:
        >>> from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> method = DirectContribution(forward)
        >>> maps, rest, delta = method.attribute(
        ...     images, return_rest=True, return_convergence_delta=True
        ... )
        >>> rest.shape, bool(delta.abs().max() < 1e-5)
        (torch.Size([1, 1]), True)
    """

    additive = True
    multiplies_by_inputs = True

    def has_convergence_delta(self) -> bool:
        return True

    @torch.no_grad()
    @public("compute_convergence_delta")
    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        rest: Tensor,
        inputs: Tensor | tuple[Tensor, ...],
        target: Indices = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        r"""Compute the sum of map and rest less each image's score, with Captum's sign.

        .. math:: \delta = \Bigl(\sum_j r_j + \text{rest}\Bigr) - y

        y comes from another call of the forward function, without hooks. For the maps that
        `attribute` returns, delta is rounding. It shows what a resized or changed map lost.

        Args:
            attributions: the map of one target, (B, 1, ...), or a tuple that holds it.
            rest: (B, 1), from ``return_rest=True``.
            inputs: the images or token ids, as in `attribute`.
            target: index of a score, or one index per image.
            additional_forward_args: further arguments of the forward function.

        Returns:
            The delta (B,).

        Raises:
            InputError: the attributions or the rest have another number of images.
            TargetError: as `attribute`.
        """
        maps = attributions if isinstance(attributions, tuple) else (attributions,)
        images = inputs if isinstance(inputs, tuple) else (inputs,)
        scores: Tensor = self.forward_func(*images, *further_arguments(additional_forward_args))
        batch = len(scores)
        scores = scores.view(batch, -1)
        is_one_map = len(maps) == 1 and len(maps[0]) == batch
        fits = is_one_map and rest.shape == (batch, 1)
        expected = f"maps (B, 1, ...) and a rest (B, 1) of {batch} images"
        expect(fits, expected, [*maps, rest], "return_rest=True gives both")
        column = one_column(target, *scores.shape).to(scores.device)
        chosen = scores.gather(1, column.T)[:, 0]
        return maps[0].flatten(1).sum(1) + rest[:, 0] - chosen


@final
class ConservativePropagation(AdditiveAttribution):
    r"""Gradient times input with attention, norms and activations detached: signed, conservative.

    .. math:: r_j = x_j \cdot \frac{\partial \tilde y}{\partial x_j}

    with :math:`x_j` the projected patch before positions are added, and :math:`\tilde y` the score
    in which the attention's weights, the norms' standard deviations, the activations' gates
    :math:`f(x) / x` and the embedding's length are constants. What is left is linear, so relevance
    is neither made nor lost on the way: ``maps.sum((-2, -1)) + rest`` is the score, and the rest
    is the share of class token, positions and biases. A gated MLP (SwiGLU) keeps its gate.

    One forward, and a backward per target, several at once where memory allows. Evidence against
    the target is negative. With a forward function of your own the score's gradient is taken at the
    embedding, a constant of the score is in the rest, and `layer` matters, as for
    :class:`DirectContribution`. For transformers only.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        return_rest (bool): return the rest, (B, 1) or (B, K), as well.
        return_convergence_delta (bool): `attribute` returns the delta (B,) as well.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T).

    Raises:
        UnsupportedModelError: the tower is convolutional, checkpoints its activations, or has a
            part that is not linear once its gates are constants.
        CaptureError: no gradient leads from the embedding back to the patches.

    Source: Ali et al. 2022 (arXiv:2202.07304).

    Example:
        >>> from captum_clip import ClipSimilarity, ConservativePropagation, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> maps, rest = ConservativePropagation(forward).attribute(images, return_rest=True)
        >>> bool((maps.sum((-2, -1)) + rest - forward(images)).abs().max() < 1e-5)
        True
    """

    name = "conservative"
    towers = ("vit", "text")
    signed = True
    differentiable = True
    reads_projection = True
    _laws = ()  # its gradient goes through whatever is linear
    _tower: TransformerTower

    def _compute(self, call: Call) -> Computed:
        return propagated_to_patches(self._tower, call)


def propagated_to_patches(
    tower: TransformerTower, call: Call, *, centered: bool = False, directions: Tensor | None = None
) -> Computed:
    """Relevance of every projected patch; `centered` takes each patch less their mean.

    The scores are explained, or the unit embedding's products with `directions` (n, B or 1, E).
    """
    refuse_checkpointing(tower)
    observers = HeldGates(call.readout), Embedding(call.readout)
    run = call.run(observe(tower, *observers))
    record = run.record
    patches = record.input
    embedded = embedded_scores(tower, run, patches)
    if not embedded.embedding.requires_grad:
        raise CaptureError(
            f"no gradient leads from the embedding back to the {tower.noun}; remove what turns the "
            "graph off or keeps earlier results, or use direct."
        )

    def as_tokens(tensor: Tensor) -> Tensor:  # (..., B, N, D)
        if record.is_map(patches):
            tensor = tensor.movedim(-3, -1)
        batch_axis = tensor.ndim - patches.ndim
        return to_float32(tensor).flatten(batch_axis + 1, -2)

    inputs = as_tokens(detached(patches))  # (B, N, D)
    if centered:
        span = slice(tower.prefix, tower.prefix + inputs.shape[1])
        padded = F.pad(inputs, (0, 0, tower.prefix, 0))
        inputs = inputs - record.pooled.mean(padded, span)
    direction = embedded.direction
    if directions is not None:
        direction = Direction.of(directions.expand(-1, record.batch, -1), direction.scale)
    rows = held(direction.dense()).to(embedded.embedding.dtype)  # (K', B, E)

    def shares(rows: Tensor, *, check: bool = False, **options: bool) -> tuple[Tensor]:
        (gradient,) = torch.autograd.grad(
            embedded.embedding,
            patches,
            rows,
            retain_graph=True,
            create_graph=check or keeps_graph(),
            **options,
        )
        if check:
            # The gradient of what is linear does not depend on the patches.
            refuse_nonlinear(gradient, patches, tower.noun)
        return ((as_tokens(detached(gradient)) * inputs).sum(-1),)

    # One target is enough to see that the rest is linear, at the price of a second derivative.
    (first,) = shares(rows[0], check=True)
    relevance = first[None]  # (K', B, N)
    if len(rows) > 1:
        # An MLP may be four times as wide as its tokens, which bounds how many targets fit at once.
        widest = patches.expand(4, *patches.shape)
        relevance = torch.cat([relevance, batched(shares, rows[1:], widest)])
    padded = F.pad(relevance, (tower.prefix, 0))
    if directions is not None:
        return with_rest(embedded, padded, directions)
    return run.computed(padded, run.chosen - relevance.sum(-1).T)
