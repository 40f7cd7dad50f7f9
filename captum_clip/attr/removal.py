"""Removal at the reader: what the score loses if the token that is read may not see a region."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, cast, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_integer, expect
from ..errors import InputError, UnsupportedModelError, public
from ..maps import autocast_disabled, to_float32
from ..models.steps import run_steps, split_heads
from ..models.towers import Tower, TransformerTower
from ..recording.laws import refuse_other_weights
from ..recording.observe import Kernels
from ..recording.passes import Arrivals, arrivals, read_pool, run_blocks
from ..recording.reads import AttentionRead
from ..recording.records import Recording
from . import _attention as mha
from ._base import ClipAttribution
from ._call import Call, Columns, Computed, PooledEmbedding, many_columns, pooled_embedding
from .additive import PooledRow, pooled_rows, products, pulled_rows


@final
class ReaderRemoval(ClipAttribution):
    r"""What the reader loses, the token that is read, if it may not look at a window.

    The reader, CLS or a pooling head's query, runs once more for each window w of cells, with the
    keys and values of all other tokens as they were,

    .. math:: z \leftarrow z + W_O \, \mathrm{softmax}(q K + \log 1[j \notin w]) V, \quad
        z \leftarrow z + \mathrm{MLP}(z)

    in every layer, then norm, projection and length: softmax, norms and MLPs are exact. A window's
    loss is :math:`L_w = t \cdot (\hat e - \hat e_w)`, signed. The mean token that asks in the pool
    of a CLIP ResNet is made without w; a mean of tokens leaves those of w out.

    A cell's value is the mean over the windows that hold it of its share in their losses. It is
    **not additive**: windows overlap, and what two of them lose together is not the sum. It answers
    "what if it were gone?" of the reader alone, since other tokens have seen the window before.
    With a forward function of your own the score is taken as linear in the unit embedding, with
    the direction of :class:`DirectContribution`; its constant is lost with no window.

    It costs a forward, and more for each token that runs anew (docs/costs.md); for pooling heads,
    ResNets and means hardly more. Each window costs a forward where a token's keys may
    depend on its position: with rotary positions (EVA02, PE-Core), masks of most text towers, or
    somebody's hook or patch in the tower.

    Options, keyword-only:

    - ``window``: side of a window in cells, odd; by default the largest odd share of the side up to
      that of 3 in 7. In a text one token.
    - ``stride``: from one window's center to the next; by default such that a side has about 7.
    - ``readers``: number of patches that run anew as well, by default none. Each window has its
      own, those outside of it that the reader looks at most. With all of them it is the forward
      without the window's keys.
    - ``share``: "direct", in proportion to what :class:`DirectContribution` gives the cells of the
      loss's sign; "cells", in equal parts; None, the whole loss for each cell; by default "direct",
      and None with readers.

    Raises:
        UnsupportedModelError: an attention that shows no queries and keys, or is no softmax over
            all keys, as with top-k; or a reader that does not give what it gave when it is run
            once more.

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
    signed = reads_projection = True
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
            vectors, cells, means = reader.windows(window, stride)
            losses = products(vectors, reader.embedded.direction.rows)  # (K', B, W)
            maps = (losses if share is None else losses / cells.sum(1)) @ means  # (K', B, N)
            if share == "direct":
                pooled, maps = reader.pooled, torch.zeros_like(maps)
                direct = pulled_rows(pooled, pooled.direction)[..., reader.record.span]
                for sign in (1, -1):
                    added, lost = (sign * direct).clamp(min=0), (sign * losses).clamp(min=0)
                    whole = added @ cells.T  # (K', B, W)
                    # a window without a cell of that sign
                    plain = torch.where(whole > 0, 0, lost / cells.sum(1))
                    shares = torch.where(whole > 0, lost / whole.clamp(min=1e-30), 0)
                    maps += sign * (added * (shares @ means) + plain @ means)
            return reader.embedded.run.computed(reader.padded(maps))

    def _reader(self, call: Call, readers: int, rows: bool) -> "_Reader":
        """Run once, with `rows` for the pooled rows as well; look at each kind of model once."""
        tower, last = self._tower, len(self._tower.attentions)
        if readers and (tower.kind != "vit" or tower.pooling == "mean"):
            raise InputError(
                "readers: the chosen patches run again beside a vision transformer's CLS token "
                f"or pooling head. This {tower.noun} has neither; leave out `readers`."
            )
        # a pool alone reads the tokens, and a mean no attention
        first = {"cls": 0, "mean": last, "attention": last - 1}[tower.pooling]
        pooling, reads = range(first, last), dict[int, AttentionRead]()

        def take(index: int, read: AttentionRead) -> AttentionRead | PooledRow:
            # with a row, what it is made of is watched below
            reads[index] = read.alone()
            return PooledRow.of(index, read, centered=False) if rows and index in pooling else read

        runs = isinstance(tower, TransformerTower) and (tower.pooling == "cls" or readers)
        kernels = Kernels(range(last) if runs else pooling, take)
        keep = arrivals(cast(TransformerTower, tower)) if runs else nullcontext(Arrivals())
        with keep as arrived:
            pooled = pooled_rows(tower, call, pooling, False, kernels) if rows else None
            embedded = pooled.embedded if pooled else pooled_embedding(tower, call, kernels)
        reader = _Reader(tower, embedded, reads, arrived, readers, pooled)
        refuse_other_weights(reader.record)  # the reader runs once more, with the weights of now
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
        window = options.get("window")
        for name, least in (("window", 1), ("stride", 1), ("readers", 0)):
            if (value := options.get(name)) is not None:
                check_integer(name, value, least=least)
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
        r"""What the *reader* loses if it does not see each of M regions, (B, K, M), as of SAM.

        .. math:: L_m = t \cdot (\hat e - \hat e_m)

        An empty mask loses nothing; M masks cost as much as M windows. The score loses another
        amount if the region is not there, since other tokens have seen it (docs/right.md).

        Args:
            inputs: as in `attribute`.
            masks: (M, h, w) or (B, M, h, w) bool, on the grid or of the images' size; for texts
                (M, T) or (B, M, T). A cell counts if half of it is covered, or as much as of the
                cell that is covered most.
            targets: indices of scores; None for all.
            additional_forward_args: further arguments of the forward function.
            readers: as the class has it.

        Raises:
            InputError: masks of another shape or type.
        """
        expect(getattr(masks, "dtype", None) is torch.bool, "a boolean tensor of masks", masks)

        def compute(call: Call, *, readers: int) -> Computed:
            reader = self._reader(call, readers, rows=False)
            losses = reader.losses(reader.cells(masks))
            values = products(losses, reader.embedded.direction.rows)  # (K', B, M)
            return reader.embedded.run.computed(values.transpose(0, 1))

        select, options = partial(many_columns, targets), {"readers": readers}
        return self._run(inputs, additional_forward_args, select, options, compute, False).values

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
        r"""What the unit embedding loses at each position, (B, h, w, E), of texts (B, T, E).

        .. math:: c_j = \frac{1}{|\{w \ni j\}|} \sum_{w \ni j} (\hat e - \hat e_w)

        so the map of any text with ``share=None`` is one product with its unit embedding.

        Args:
            inputs: preprocessed images (B, 3, H, W), or token ids (B, T).
            additional_forward_args: the attention mask of texts.
            window: as the class has it, like what follows.
            stride: from one window to the next.
            readers: number of patches that run anew as well.
            return_rest: return the unit embedding less all of them, (B, E), as well.

        Raises:
            InputError: a forward function of your own, or an invalid input or option.
        """
        self._check_similarity()

        def compute(call: Call, **_: Any) -> Computed:
            reader = self._reader(call, readers, rows=False)
            losses, *_cells, means = reader.windows(window, stride)
            vectors = torch.einsum("bwe,wn->ebn", losses, means)
            unit = F.normalize(to_float32(reader.embedded.embedding.detach()), dim=-1)
            return reader.embedded.run.computed(reader.padded(vectors), unit - vectors.sum(-1).T)

        options = {"window": window, "stride": stride, "readers": readers}
        select = partial(many_columns, None)
        result = self._run(inputs, additional_forward_args, select, options, compute)
        vectors = result.values.movedim(1, -1).contiguous()
        return (vectors, result.rest) if return_rest else vectors


@dataclass(frozen=True, eq=False)
class _Reader:
    """One forward, and what it takes to run its reader once more.

    Attributes:
        reads: the attentions that it runs through, by index.
        arrived: the arguments of the blocks, where tokens run once more.
        count: number of patches that run anew beside the reader.
        pooled: the `PooledRows`, for the shares of `DirectContribution`.
    """

    tower: Tower
    embedded: PooledEmbedding
    reads: dict[int, AttentionRead]
    arrived: Arrivals
    count: int
    pooled: Any = None

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record

    @cached_property
    def in_place(self) -> bool:
        """Whether a token's keys may depend on its position, so that groups run one by one.

        They may where blocks get more than their tokens, such as masks or rotary positions.
        """
        if self.record.is_hooked:
            return True
        count = 0
        for args, kwargs in self.arrived.values():
            count += sum(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        return count > len(self.arrived)

    def padded(self, values: Tensor) -> Tensor:
        """Values (..., s) of all tokens, zero where those of cells (..., N) are none."""
        span = self.record.span
        return F.pad(values, (span.start, self.record.count - span.stop))

    @property
    def grid(self) -> Any:
        """Rows and columns of cells, or the number of a text's tokens."""
        size: Any = self.record.size
        return size[1:] if self.tower.kind == "text" else self.tower.grid(*size)

    def cells(self, masks: Tensor) -> Tensor:
        """The cells (B or 1, M, N) of masks, of a text (B, M, T)."""
        grid = self.grid
        sizes = {grid, grid if len(grid) == 1 else self.record.size}
        batched = masks if masks.ndim == 2 + len(grid) else masks[None]
        fits = len(batched) in (1, self.record.batch) and batched.shape[2:] in sizes
        shapes = " or ".join(f"(B, M, {', '.join(map(str, size))})" for size in sizes)
        expect(fits, f"masks {shapes}, or without B", masks)
        if batched.shape[2:] != grid:
            covered = F.adaptive_avg_pool2d(batched.float(), grid)
            most = covered.amax((-2, -1), keepdim=True)
            batched = (covered >= most.clamp(max=0.5)) & (most > 0)
        return batched.flatten(2)

    def windows(self, window: int | None, stride: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is lost at windows (B, W, E), their cells (W, N), and their parts of a mean."""
        is_text, windows = len(self.grid) == 1, torch.ones(1, 1, dtype=torch.bool, device="cpu")
        for side in self.grid:
            width = window or (1 if is_text else 2 * round(3 * side / 14 - 0.5) + 1)
            step = stride or (1 if is_text else -(-side // 7))
            expect(step <= width, f"a `stride` of at most the window's {width} cells", step)
            # the last one is moved inside if the one before does not reach the edge
            end = side + max(0, step - 1 - width // 2)
            centers = torch.arange(step // 2, end, step, device="cpu").clamp(max=side - 1)
            near = (torch.arange(side, device="cpu") - centers[:, None]).abs() <= width // 2
            windows = torch.kron(windows, near)
        losses = self.losses(windows[None])
        cells = windows.to(losses)
        return losses, cells, cells / cells.sum(0).clamp(min=1)

    @torch.no_grad()
    def losses(self, cells: Tensor) -> Tensor:
        """What the unit embedding loses (B, M, E) without each of some regions (B or 1, M, N)."""
        record, embedded, tower = self.record, self.embedded, self.tower
        returned, visible = embedded.embedding.detach(), record.pooled.visible
        hidden = self.padded(cells.to(returned.device)).expand(record.batch, -1, -1)
        if visible is not None:
            hidden = hidden & visible[:, None]
        if tower.pooling == "cls":  # a reader always sees itself
            hidden = hidden & ~_at(self.position(), hidden)
        hides = hidden.any(-1).any(0)
        # the last group sees everything, so it must give what the forward gave
        hidden = F.pad(hidden[:, hides], (0, 0, 0, 1))
        steps = embedded.head(tower)
        with autocast_disabled(embedded.token):
            if tower.pooling == "mean":
                before, steps = steps[: tower.steps_before_mean], steps[tower.steps_before_mean :]
                left = ~hidden[:, :, tower.prefix :]
                left = left if visible is None else left & visible[:, None]
                tokens = run_steps(before, embedded.token)
                if left.shape[-1] != tokens.shape[1]:
                    raise UnsupportedModelError(
                        f"the mean of the {tower.noun} is of {tokens.shape[1]} tokens, expected "
                        f"{left.shape[-1]}; remove what drops tokens behind the last block."
                    )
                token = _mean(tokens, left)
            elif tower.pooling == "cls":
                token = self._tokens(hidden, self._positions(hidden))[:, :, 0]
            else:
                token = self._pool(hidden)
            embeddings = run_steps(steps, to_float32(token).flatten(0, 1))
            embeddings = embeddings.view(*token.shape[:2], -1)
            record.compare("the embedding", embeddings[:, -1], returned.to(embedded.dtype))
            unit = F.normalize(embeddings, dim=-1)
        losses = unit.new_zeros(len(unit), len(hides), unit.shape[-1])
        losses[:, hides] = unit[:, -1:] - unit[:, :-1]
        return losses

    def _pool(self, hidden: Tensor) -> Tensor:
        """What the pooling head's attention returns for each group, (B, G, D)."""
        read, beside = self.reads[len(self.tower.attentions) - 1], None
        query = read.select(read.shown[0])[:, :, None, None].expand(-1, -1, hidden.shape[1], -1, -1)
        if read.attention.positions is not None:  # the mean of features asks in a ResNet's pool
            positions = read.attention.positions
            features = to_float32(read.features.detach()).flatten(2).mT
            mean = _mean(features, ~hidden[:, :, 1:]) + positions[0].to(features)
            query, key, value = (
                split_heads(each(mean), read.attention.heads).transpose(1, 2)[:, :, :, None]
                for each in read.attention.input_maps()
            )
            beside = key, value, self.position()
        elif self.count:
            ids = self._positions(hidden)
            again = read_pool(self.record, self._tokens(hidden, ids).flatten(1, 2))
            heads = again.shown[1], again.value
            key, value = (x.reshape(*x.shape[:2], *ids.shape[1:], -1) for x in heads)
            beside = key, value, ids
        out = read.attend(query, self._seen(hidden, beside and beside[2]), beside)
        out = out[:, :, :, 0].transpose(1, 2).flatten(2)
        return mha.merged(read.attention, out.flatten(0, 1)).view(*out.shape[:2], -1)

    def position(self) -> Tensor:
        """That of the pooled token, or of the mean of a ResNet's pool, (B, 1, 1)."""
        rows, like = self.record.pooled.rows, self.embedded.embedding
        rows = torch.zeros_like(like[:, 0], dtype=torch.long) if rows is None else rows
        return rows[:, None, None]

    def _positions(self, hidden: Tensor) -> Tensor:
        """Those of the tokens that run anew, (B, G, n): CLS, and what it sees and reads most."""
        record, pools = self.record, self.tower.pooling == "attention"
        rows = [self.reads[len(self.tower.attentions) - 1]] if pools else self.reads.values()
        ids = [] if pools else [self.position().expand(-1, hidden.shape[1], -1)]
        if self.count:
            looked = torch.stack([read.row().mean(1)[:, record.span] for read in rows]).sum(0)
            most = looked.shape[1]
            expect(self.count <= most, f"`readers` of at most {most} patches", self.count)
            # nobody would see what a hidden one becomes
            seen = looked[:, None].masked_fill(hidden[..., record.span], -torch.inf)
            ids.append(seen.topk(self.count).indices + record.span.start)
        return torch.cat(ids, -1)

    def _tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Tokens at positions (B, G, n) as they leave the blocks in each group, (B, G, n, D)."""
        if self.in_place and hidden.shape[1] > 1:
            groups = zip(torch.split(hidden, 1, 1), torch.split(ids, 1, 1), strict=True)
            return torch.cat([self._tokens(*each) for each in groups], 1)
        # all groups in one sequence, or one among all tokens
        size, seen, at = ids.shape[1:], self._seen(hidden, ids), ids.flatten(1)[..., None]
        tokens = self.record.transformer.layers[0].residual(*self.arrived[0])  # (B, s, D)
        tokens = tokens if self.in_place else tokens.take_along_dim(at, 1)

        def attend(index: int, read: AttentionRead) -> Tensor:
            heads = [*read.shown, read.value]
            heads = [x.take_along_dim(at[:, None], 2) for x in heads] if self.in_place else heads
            query, key, value = (x.reshape(*x.shape[:2], *size, -1) for x in heads)
            out = self.reads[index].attend(query, seen, (key, value, ids))
            out = out.flatten(2, 3).to(read.out.dtype)
            return read.out.scatter(2, at[:, None].expand_as(out), out) if self.in_place else out

        try:
            tokens = run_blocks(self.record, self.arrived, tokens, attend)
        except Exception:  # of code that counts its tokens
            if self.in_place:
                raise
            self.__dict__["in_place"] = True  # as what a cached property keeps
            return self._tokens(hidden, ids)
        tokens = tokens.take_along_dim(at, 1) if self.in_place else tokens
        return tokens.view(len(ids), *size, -1)

    def _seen(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """What is added to products (B, 1, G, 1, s), with those of tokens that run anew behind."""
        if ids is not None:
            hidden = torch.cat([hidden | _at(ids, hidden), hidden.take_along_dim(ids, 2)], -1)
        hidden = hidden[:, None, :, None]
        return self.embedded.token.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def _mean(tokens: Tensor, left: Tensor) -> Tensor:
    """The mean (B, G, D) of the tokens (B, N, D) that are left (B, G, N); zero of none."""
    left = left.to(tokens)
    return left @ tokens / left.sum(-1, keepdim=True).clamp(min=1)


def _at(ids: Tensor, like: Tensor) -> Tensor:
    """Whether a token is at any of these positions (B, G or 1, n), as for values (B, G, s)."""
    return like.new_zeros(*ids.shape[:2], like.shape[-1]).scatter(2, ids, True)
