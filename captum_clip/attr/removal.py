"""Removal at the reader: what the score loses if the token that is read may not see a region."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_integer, expect
from ..errors import InputError, UnsupportedModelError, public
from ..maps import autocast_disabled, to_float32
from ..models.steps import run_steps, split_heads
from ..models.towers import Tower, TransformerTower
from ..recording.laws import refuse_other_weights
from ..recording.observe import Kernels, Observer
from ..recording.passes import Arrivals, BlockArguments, read_pool, run_blocks
from ..recording.reads import AttentionRead
from ..recording.records import Recording
from . import _attention as mha
from ._base import ClipAttribution
from ._call import Call, Columns, Computed, PooledEmbedding, many_columns, pooled_embedding
from .additive import PooledRow, PooledRows, pooled_rows, products, pulled_rows


@final
class ReaderRemoval(ClipAttribution):
    r"""Show what the reader, the token that is read, loses if it may not see a window of cells.

    The reader is CLS or a pooling head's query. It runs once more for each window w, with the keys
    and values of all other tokens as they were,

    .. math:: z \leftarrow z + W_O \, \mathrm{softmax}(q K + \log 1[j \notin w]) V, \quad
        z \leftarrow z + \mathrm{MLP}(z)

    in every layer, then norm, projection and length: softmax, norms and MLPs are exact. A window's
    loss is :math:`L_w = t \cdot (\hat e - \hat e_w)`, signed. In the pool of a CLIP ResNet the mean
    token that asks is made without w, and a mean of tokens leaves those of w out.

    A cell's value is the mean, over the windows that hold it, of its share in their losses. It is
    **not additive**: windows overlap, and what two of them lose together is not the sum. It answers
    "what if it were gone?" for the reader alone, since other tokens have seen the window before.
    With a forward function of your own the score is taken as linear in the unit embedding, with
    the direction of :class:`DirectContribution`; its constant is lost with no window.

    It costs a forward, and more for each token that runs anew (docs/costs.md); for pooling heads,
    ResNets and means hardly more. Each window costs a forward where a token's keys may
    depend on its position: with rotary positions (EVA02, PE-Core), masks of most text towers, or
    somebody's hook or patch in the tower.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        window (int): side of a window in cells, odd. The default is the odd side that is nearest to
            3/7 of the grid's. In a text it is one token.
        stride (int): step from the center of a window to the next, at most `window`. The default
            puts about 7 windows along a side, and one at each token of a text.
        readers (int): number of patches that run anew as well, 0 by default. Each window has its
            own: those outside of it that the reader looks at most. With all patches it is the
            forward without the window's keys. Only for vision transformers that do not average.
        share (str): how cells divide a window's loss. "direct" divides it in proportion to what
            :class:`DirectContribution` gives the cells of the loss's sign, "cells" in equal parts,
            and None gives the whole loss to each cell. The default, "auto", is "direct", and None
            with readers.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T).

    Raises:
        InputError: a window, stride or number of readers does not fit the grid or the tower.
        UnsupportedModelError: an attention shows no queries and keys, or is no softmax over all
            keys, as with top-k; or the reader does not give what it gave when it runs once more.

    Source: ours; attention knockout (Geva et al. 2023, arXiv:2304.14767) at the token that is read.

    Example:
        >>> from captum_clip import ClipSimilarity, ReaderRemoval, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> ReaderRemoval(forward).attribute_targets(images).shape
        torch.Size([1, 2, 7, 7])
    """

    name = "removal"
    towers = ("vit", "resnet", "text")
    signed = True
    reads_projection = True
    _laws = ("blocks", "embedding")

    def _compute(
        self,
        call: Call,
        *,
        window: int | None = None,
        stride: int | None = None,
        readers: int = 0,
        share: Literal["auto", "direct", "cells", None] = "auto",
    ) -> Computed:
        if share == "auto":
            share = None if readers else "direct"
        reader = self._reader(call, readers, rows=share == "direct")
        with torch.no_grad(), autocast_disabled(reader.embedded.token):
            windows = reader.windows(window, stride)
            losses = products(windows.losses, reader.embedded.direction.rows)  # (K', B, W)
            if share == "direct":
                maps = self._shared_by_contribution(reader, windows, losses)
            elif share == "cells":
                maps = (losses / windows.cells.sum(1)) @ windows.means
            else:
                maps = losses @ windows.means
            return reader.embedded.run.computed(reader.padded(maps))

    def _shared_by_contribution(
        self, reader: "_Reader", windows: "_Windows", losses: Tensor
    ) -> Tensor:
        """Divide losses (K', B, W) among cells in proportion to their direct contributions."""
        assert reader.pooled is not None
        direct = pulled_rows(reader.pooled, reader.pooled.direction)  # (K', B, s)
        direct = direct[..., reader.record.span]
        # A loss is shared by the cells that support the target, a gain by those that oppose it.
        loss_shares = _in_proportion(windows, losses.clamp(min=0), direct.clamp(min=0))
        gain_shares = _in_proportion(windows, (-losses).clamp(min=0), (-direct).clamp(min=0))
        return loss_shares - gain_shares

    def _reader(self, call: Call, readers: int, rows: bool) -> "_Reader":
        """Run once, with `rows` for the pooled rows as well."""
        tower = self._tower
        layer_count = len(tower.attentions)
        if readers and (tower.kind != "vit" or tower.pooling == "mean"):
            raise InputError(
                "readers: the chosen patches run again beside a vision transformer's CLS token "
                f"or pooling head. This {tower.noun} has neither; leave out `readers`."
            )
        # A pooling head is the only attention that reads tokens, and a mean has no attention.
        first = {"cls": 0, "mean": layer_count, "attention": layer_count - 1}[tower.pooling]
        pooling_layers = range(first, layer_count)
        reads: dict[int, AttentionRead] = {}

        def take(index: int, read: AttentionRead) -> AttentionRead | PooledRow:
            # The pooled row needs all that was read, but the read that is kept does not.
            reads[index] = read.alone()
            if rows and index in pooling_layers:
                return PooledRow.of(index, read, centered=False)
            return read

        tokens_run = isinstance(tower, TransformerTower) and (tower.pooling == "cls" or readers)
        arrivals = Arrivals()
        observers: tuple[Observer, ...] = (Kernels(pooling_layers, take),)
        # Tokens pass all blocks once more; a pooling head or a mean by itself passes none.
        if tokens_run:
            observers = Kernels(range(layer_count), take), arrivals
        if rows:
            pooled = pooled_rows(tower, call, pooling_layers, False, *observers)
            embedded = pooled.embedded
        else:
            pooled = None
            embedded = pooled_embedding(tower, call, *observers)
        reader = _Reader(tower, embedded, reads, arrivals.of_blocks, readers, pooled)
        # The reader runs once more with the weights of now, which a hook may have changed since.
        refuse_other_weights(reader.record)
        for read in reads.values():
            if read.sees_by_head():
                raise UnsupportedModelError(
                    f"{read.name} does not weigh its keys by a softmax over all of them: without "
                    "some keys it gives something else, as with top-k attention; use another "
                    "method, such as direct."
                )
        return reader

    @classmethod
    def check_options(cls, **options: Any) -> None:
        super().check_options(**options)
        for name, least in (("window", 1), ("stride", 1), ("readers", 0)):
            value = options.get(name)
            if value is not None:
                check_integer(name, value, least=least)
        window = options.get("window")
        expect(window is None or window % 2 == 1, "an odd `window`, which has a center", window)

    @public("losses_of")
    def losses_of(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor,
        targets: Columns = None,
        additional_forward_args: Any = None,
        *,
        readers: int = 0,
    ) -> Tensor:
        r"""Compute what the *reader* loses if it may not see each of M regions, such as SAM's.

        .. math:: L_m = t \cdot (\hat e - \hat e_m)

        An empty mask loses nothing; M masks cost as much as M windows. The score loses another
        amount if the region is not there, since other tokens have seen it (docs/right.md).

        Args:
            inputs: as in `attribute`.
            masks: (M, h, w) or (B, M, h, w) bool, on the grid or of the images' size; for texts
                (M, T) or (B, M, T). A cell counts if half of it is covered. If no cell is half
                covered, those that are covered most count.
            targets: indices of scores; None for all.
            additional_forward_args: further arguments of the forward function.
            readers: number of patches that run anew as well, as for the class.

        Returns:
            The losses (B, K, M), signed.

        Raises:
            InputError: the masks have another shape or type.
            TargetError: no target, or one out of range.
        """
        expect(getattr(masks, "dtype", None) is torch.bool, "a boolean tensor of masks", masks)

        def compute(call: Call, *, readers: int) -> Computed:
            reader = self._reader(call, readers, rows=False)
            losses = reader.losses(reader.cells(masks))
            values = products(losses, reader.embedded.direction.rows)  # (K', B, M)
            return reader.embedded.run.computed(values.transpose(0, 1))

        select = partial(many_columns, targets)
        # An option that goes through `_run` is checked there.
        options = {"readers": readers}
        result = self._run(inputs, additional_forward_args, select, options, compute, on_grid=False)
        return result.values

    @public("vectors")
    def vectors(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        *,
        window: int | None = None,
        stride: int | None = None,
        readers: int = 0,
        return_rest: bool = False,
    ) -> Any:
        r"""Compute what the unit embedding loses at each position.

        .. math:: c_j = \frac{1}{|\{w \ni j\}|} \sum_{w \ni j} (\hat e - \hat e_w)

        so the map of any text with ``share=None`` is a product with its unit embedding.

        Args:
            inputs: preprocessed images (B, 3, H, W), or token ids (B, T).
            additional_forward_args: the attention mask of texts.
            window: side of a window in cells, as for the class.
            stride: step from one window to the next, as for the class.
            readers: number of patches that run anew as well, as for the class.
            return_rest: return the unit embedding less all vectors, (B, E), as well.

        Returns:
            The vectors (B, h, w, E), for texts (B, T, E), or the tuple (vectors, rest).

        Raises:
            InputError: a forward function of your own, or an invalid input or option.
        """
        self._check_similarity()

        def compute(call: Call, **_: Any) -> Computed:
            reader = self._reader(call, readers, rows=False)
            windows = reader.windows(window, stride)
            vectors = torch.einsum("bwe,wn->ebn", windows.losses, windows.means)
            embedding = to_float32(reader.embedded.embedding.detach())
            unit = F.normalize(embedding, dim=-1)
            rest = unit - vectors.sum(-1).T
            return reader.embedded.run.computed(reader.padded(vectors), rest)

        options = {"window": window, "stride": stride, "readers": readers}
        select = partial(many_columns, None)
        result = self._run(inputs, additional_forward_args, select, options, compute)
        vectors = result.values.movedim(1, -1).contiguous()
        return (vectors, result.rest) if return_rest else vectors


class _Windows(NamedTuple):
    """The windows of a grid, and what is lost without each."""

    losses: Tensor  # (B, W, E), of the unit embedding
    cells: Tensor  # (W, N), 1 in a window and 0 elsewhere
    means: Tensor  # (W, N), the weight of a window in the mean over those that hold a cell


def _in_proportion(windows: _Windows, losses: Tensor, contributions: Tensor) -> Tensor:
    """Divide losses (K', B, W) in proportion to contributions (K', B, N); both are positive."""
    in_window = contributions @ windows.cells.T  # (K', B, W)
    # A window whose cells contribute nothing of this sign divides its loss in equal parts.
    equal = torch.where(in_window > 0, 0, losses / windows.cells.sum(1))
    ratio = torch.where(in_window > 0, losses / in_window.clamp(min=1e-30), 0)
    return contributions * (ratio @ windows.means) + equal @ windows.means


@dataclass(eq=False)
class _Reader:
    """One forward, and what it takes to run its reader once more.

    The groups (G) of hidden tokens are the windows or regions, each of which runs on its own.

    Attributes:
        reads: the attentions that it runs through, by index.
        arrived: the arguments of the blocks, where tokens run once more.
        readers: number of patches that run anew beside the reader.
        pooled: the pooled rows, for the shares of `DirectContribution`.
    """

    tower: Tower
    embedded: PooledEmbedding
    reads: dict[int, AttentionRead]
    arrived: BlockArguments
    readers: int
    pooled: PooledRows | None = None

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record

    @cached_property
    def among_all(self) -> bool:
        """Whether a group's tokens run among all others, so that groups run one by one.

        They must where a token's keys may depend on its position: where blocks get more than their
        tokens, such as masks or rotary positions, or where somebody's hook may look at positions.
        """
        if self.record.is_hooked:
            return True
        tensor_count = 0
        for args, kwargs in self.arrived.values():
            arguments = (*args, *kwargs.values())
            tensor_count += sum(isinstance(argument, Tensor) for argument in arguments)
        return tensor_count > len(self.arrived)

    def padded(self, values: Tensor) -> Tensor:
        """Pad values (..., N) of cells with zeros to values (..., s) of all tokens."""
        span = self.record.span
        return F.pad(values, (span.start, self.record.count - span.stop))

    @property
    def grid(self) -> Any:
        """Rows and columns of cells, or the number of a text's tokens."""
        size: Any = self.record.size
        if self.tower.kind == "text":
            return size[1:]
        return self.tower.grid(*size)

    def cells(self, masks: Tensor) -> Tensor:
        """The cells (B or 1, M, N) of masks, (B, M, T) of a text's."""
        grid = self.grid
        sizes = {grid}
        if len(grid) > 1:
            sizes.add(self.record.size)
        batched = masks if masks.ndim == 2 + len(grid) else masks[None]
        fits = len(batched) in (1, self.record.batch) and batched.shape[2:] in sizes
        shapes = [f"(B, M, {', '.join(map(str, size))})" for size in sizes]
        expect(fits, f"masks {' or '.join(shapes)}, or without B", masks)
        if batched.shape[2:] != grid:
            covered = F.adaptive_avg_pool2d(batched.float(), grid)
            # A region that covers no cell by half counts where it covers most.
            most = covered.amax((-2, -1), keepdim=True)
            batched = (covered >= most.clamp(max=0.5)) & (most > 0)
        return batched.flatten(2)

    def windows(self, window: int | None, stride: int | None) -> _Windows:
        """Lay windows over the grid, and hide each from the reader."""
        is_text = len(self.grid) == 1
        in_window = torch.ones(1, 1, dtype=torch.bool, device="cpu")
        for side in self.grid:
            default_width = 1
            default_step = 1
            if not is_text:
                # The odd side nearest to 3/7 of the grid's, and about seven windows along it.
                default_width = 2 * round(3 * side / 14 - 0.5) + 1
                default_step = -(-side // 7)
            width = window or default_width
            step = stride or default_step
            expect(step <= width, f"a `stride` of at most the window's {width} cells", step)
            # If the last center is so far from the edge that its window does not reach it, one more
            # follows, which `clamp` moves inside.
            end = side + max(0, step - 1 - width // 2)
            centers = torch.arange(step // 2, end, step, device="cpu").clamp(max=side - 1)
            positions = torch.arange(side, device="cpu")
            distances = (positions - centers[:, None]).abs()
            # A window is the product of an interval of rows and one of columns.
            in_window = torch.kron(in_window, distances <= width // 2)
        losses = self.losses(in_window[None])
        cells = in_window.to(losses)
        return _Windows(losses, cells, cells / cells.sum(0).clamp(min=1))

    @torch.no_grad()
    def losses(self, cells: Tensor) -> Tensor:
        """Compute the unit embedding's losses (B, M, E) without each region (B or 1, M, N)."""
        record = self.record
        embedded = self.embedded
        returned = embedded.embedding.detach()
        hidden = self._hidden(cells.to(returned.device))  # (B, M, s)
        hides = hidden.any(-1).any(0)  # (M,)
        # The last group sees everything, so it must give what the forward gave.
        hidden = F.pad(hidden[:, hides], (0, 0, 0, 1))
        steps = embedded.head(self.tower)
        with autocast_disabled(embedded.token):
            if self.tower.pooling == "mean":
                token = self._mean(hidden)
                steps = steps[self.tower.steps_before_mean :]
            elif self.tower.pooling == "cls":
                token = self._tokens(hidden, self._positions(hidden))[:, :, 0]
            else:
                token = self._pool(hidden)
            embeddings = run_steps(steps, to_float32(token).flatten(0, 1))
            embeddings = embeddings.view(*token.shape[:2], -1)
            record.compare("the embedding", embeddings[:, -1], returned.to(embedded.dtype))
            unit = F.normalize(embeddings, dim=-1)
        # A region without a visible token loses nothing, so no group ran for it.
        losses = unit.new_zeros(len(unit), len(hides), unit.shape[-1])
        losses[:, hides] = unit[:, -1:] - unit[:, :-1]
        return losses

    def _hidden(self, cells: Tensor) -> Tensor:
        """Find the tokens (B, M, s) that each region (B or 1, M, N) hides from the reader."""
        hidden = self.padded(cells).expand(self.record.batch, -1, -1)
        visible = self.record.pooled.visible
        if visible is not None:
            hidden = hidden & visible[:, None]
        if self.tower.pooling == "cls":
            # The reader always sees itself: in a text it may be a token of the region.
            hidden = hidden & ~_at(self.position(), hidden)
        return hidden

    def _mean(self, hidden: Tensor) -> Tensor:
        """The mean of the tokens that each group is left with, (B, G, D)."""
        tower = self.tower
        kept = ~hidden[:, :, tower.prefix :]
        visible = self.record.pooled.visible
        if visible is not None:
            kept = kept & visible[:, None]
        steps = self.embedded.head(tower)[: tower.steps_before_mean]
        tokens = run_steps(steps, self.embedded.token)
        if kept.shape[-1] != tokens.shape[1]:
            raise UnsupportedModelError(
                f"the mean of the {tower.noun} is of {tokens.shape[1]} tokens, expected "
                f"{kept.shape[-1]}; remove what drops tokens behind the last block."
            )
        return _masked_mean(tokens, kept)

    def _pool(self, hidden: Tensor) -> Tensor:
        """Run the pooling head's attention for each group, (B, G, D)."""
        read = self.reads[len(self.tower.attentions) - 1]
        ids = None  # positions of the tokens with new keys and values
        beside = None  # these keys and values, and their positions
        if read.attention.positions is not None:
            query, key, value = self._mean_token(read, hidden)
            ids = self.position()
            beside = key, value, ids
        else:
            queries, _ = read.shown
            group_count = hidden.shape[1]
            query = read.select(queries)[:, :, None, None]
            query = query.expand(-1, -1, group_count, -1, -1)
            if self.readers:
                ids = self._positions(hidden)
                tokens = self._tokens(hidden, ids)
                again = read_pool(self.record, tokens.flatten(1, 2))
                _, keys = again.shown
                beside = _by_group(keys, ids), _by_group(again.value, ids), ids
        head_outputs = read.attend(query, self._bias(hidden, ids), beside)
        head_outputs = head_outputs[:, :, :, 0].transpose(1, 2).flatten(2)
        merged = mha.merged(read.attention, head_outputs.flatten(0, 1))
        return merged.view(*head_outputs.shape[:2], -1)

    def _mean_token(self, read: AttentionRead, hidden: Tensor) -> list[Tensor]:
        """Compute query, key and value (B, H, G, 1, d) of the mean token of a ResNet's pool."""
        positions: Any = read.attention.positions
        features = to_float32(read.features.detach()).flatten(2).mT
        mean = _masked_mean(features, ~hidden[:, :, 1:])  # (B, G, C)
        mean = mean + positions[0].to(features)
        mapped = [input_map(mean) for input_map in read.attention.input_maps()]
        heads = [split_heads(vectors, read.attention.heads) for vectors in mapped]
        return [vectors.transpose(1, 2)[:, :, :, None] for vectors in heads]

    def position(self) -> Tensor:
        """Position of the pooled token, or of the mean in a ResNet's pool, (B, 1, 1)."""
        rows = self.record.pooled.rows
        if rows is None:
            device = self.embedded.embedding.device
            rows = torch.zeros(self.record.batch, dtype=torch.long, device=device)
        return rows[:, None, None]

    def _positions(self, hidden: Tensor) -> Tensor:
        """Choose the tokens that run anew, and give their positions (B, G, n).

        They are the reader, if it is a token, and the patches that it attends to most.
        """
        ids = []
        if self.tower.pooling == "attention":
            reads = [self.reads[len(self.tower.attentions) - 1]]
        else:
            reads = list(self.reads.values())
            ids.append(self.position().expand(-1, hidden.shape[1], -1))
        if self.readers:
            span = self.record.span
            rows = [read.row().mean(1)[:, span] for read in reads]  # (B, N) each
            attention = torch.stack(rows).sum(0)
            most = attention.shape[1]
            expect(self.readers <= most, f"`readers` of at most {most} patches", self.readers)
            # No token sees a hidden patch, so it would run in vain.
            attention = attention[:, None].masked_fill(hidden[..., span], -torch.inf)
            ids.append(attention.topk(self.readers).indices + span.start)
        return torch.cat(ids, -1)

    def _tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Tokens at positions (B, G, n) as they leave the blocks in each group, (B, G, n, D).

        All groups run in one sequence of the chosen tokens, or one group among all tokens.
        """
        if self.among_all and hidden.shape[1] > 1:
            outputs = []
            pairs = zip(torch.split(hidden, 1, 1), torch.split(ids, 1, 1), strict=True)
            for hidden_of_group, ids_of_group in pairs:
                outputs.append(self._tokens(hidden_of_group, ids_of_group))
            return torch.cat(outputs, 1)
        at = ids.flatten(1)[..., None]  # (B, G n, 1)
        bias = self._bias(hidden, ids)
        first_layer = self.record.transformer.layers[0]
        tokens = first_layer.residual(*self.arrived[0])  # (B, s, D)
        if not self.among_all:
            tokens = tokens.take_along_dim(at, 1)

        def attend(index: int, read: AttentionRead) -> Tensor:
            heads = [*read.shown, read.value]
            if self.among_all:
                heads = [vectors.take_along_dim(at[:, None], 2) for vectors in heads]
            query, key, value = (_by_group(vectors, ids) for vectors in heads)
            outputs = self.reads[index].attend(query, bias, (key, value, ids))
            outputs = outputs.flatten(2, 3).to(read.out.dtype)
            if not self.among_all:
                return outputs
            # All other tokens keep the outputs that they have in this run.
            return read.out.scatter(2, at[:, None].expand_as(outputs), outputs)

        try:
            tokens = run_blocks(self.record, self.arrived, tokens, attend)
        except Exception:
            if self.among_all:
                raise
            # Code of the block may count its tokens, so they run again among all others.
            self.among_all = True
            return self._tokens(hidden, ids)
        if self.among_all:
            tokens = tokens.take_along_dim(at, 1)
        return tokens.view(*ids.shape, -1)

    def _bias(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """The bias of the products of queries and keys, (B, 1, G, 1, s or s + n).

        It is minus infinity where a group sees nothing. Tokens at positions `ids` (B, G or 1, n)
        run anew, so their new keys at the end take the place of those of the forward.
        """
        if ids is not None:
            of_new_keys = hidden.take_along_dim(ids, 2)
            hidden = torch.cat([hidden | _at(ids, hidden), of_new_keys], -1)
        hidden = hidden[:, None, :, None]
        return self.embedded.token.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def _by_group(heads: Tensor, ids: Tensor) -> Tensor:
    """Split the tokens (B, H, G n, d) of all groups into (B, H, G, n, d)."""
    return heads.reshape(*heads.shape[:2], *ids.shape[1:], -1)


def _masked_mean(tokens: Tensor, kept: Tensor) -> Tensor:
    """The mean (B, G, D) of the tokens (B, N, D) that are kept (B, G, N); zero if none is."""
    kept = kept.to(tokens)
    return kept @ tokens / kept.sum(-1, keepdim=True).clamp(min=1)


def _at(ids: Tensor, like: Tensor) -> Tensor:
    """Whether a token is at any of these positions (B, G or 1, n), as for values (B, G, s)."""
    return like.new_zeros(*ids.shape[:2], like.shape[-1]).scatter(2, ids, True)
