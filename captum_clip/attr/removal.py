"""Removal at the reader: what the score loses if the token that is read may not see a region."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from ..recording.look import kind_of
from ..recording.observe import Kernels
from ..recording.passes import Arrivals, arrivals, read_pool, run_blocks
from ..recording.reads import AttentionRead
from ..recording.records import Recording, agree
from . import _attention as mha
from ._base import ClipAttribution
from ._call import Call, Columns, Computed, PooledEmbedding, many_columns, pooled_embedding
from .additive import PooledRow, pooled_rows, products, pulled_rows

_FEW = 8  # tokens beside the reader that a look at the blocks runs on
LossShare = Literal["direct", "cells", None]


@final
class ReaderRemoval(ClipAttribution):
    r"""What the score loses if the token that is read may not look at a window.

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
    With a forward function of your own the score is taken as linear in the unit embedding.

    It costs one forward, and the readers' share of the tokens of another one: as much again for 49
    windows of a ViT-B/32, nearly nothing for pooling heads, ResNets and means. If a token's keys
    depend on its position (rotary positions of EVA02 and PE-Core, masks of most text towers), each
    window costs a forward. The first call runs a few tokens once more to see which it is.

    Options, keyword-only:

    - ``window``: side of a window in cells, odd; by default the largest odd share of the side up to
      that of 3 in 7. In a text one token.
    - ``stride``: from one window's center to the next; by default such that a side has about 7.
    - ``readers``: number of patches, those that the reader looks at most, that run anew as well.
      With all of them it is the forward without the window's keys.
    - ``share``: "direct", in proportion to what :class:`DirectContribution` gives the cells of the
      loss's sign; "cells", in equal parts; None, the whole loss for each cell.

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
    signed = True
    _laws = ("blocks", "embedding")

    def _compute(
        self,
        call: Call,
        *,
        window: int | None = None,
        stride: int | None = None,
        readers: int = 0,
        share: LossShare = "direct",
    ) -> Computed:
        reader = self._reader(call, readers, rows=share == "direct")
        windows = _windows_of(self._tower, reader.record, window, stride)  # (W, N)
        run, direction = reader.embedded.run, reader.embedded.direction
        with torch.no_grad(), autocast_disabled(reader.embedded.token):
            losses = products(reader.losses(windows[None]), direction.rows)  # (K', B, W)
            cells = windows.to(losses)
            count = cells.sum(0).clamp(min=1)
            equal = (losses if share is None else losses / cells.sum(1)) @ (cells / count)
            if share != "direct":
                return run.computed(reader.padded(equal))
            # (K', B, N)
            direct = pulled_rows(reader.pooled, reader.pooled.direction)[..., reader.record.span]
            maps = torch.zeros_like(equal)
            for sign in (1, -1):
                added, lost = (sign * direct).clamp(min=0), (sign * losses).clamp(min=0)
                whole = added @ cells.T  # (K', B, W)
                # a window without a cell of that sign
                plain = torch.where(whole > 0, 0, lost / cells.sum(1))
                shares = torch.where(whole > 0, lost / whole.clamp(min=1e-30), 0)
                maps += sign * (added * (shares @ cells) + plain @ cells) / count
            return run.computed(reader.padded(maps))

    def _reader(self, call: Call, readers: int, *, rows: bool = False) -> "_Reader":
        """Run once, with `rows` for the pooled rows as well; look at each kind of model once."""
        tower, last = self._tower, len(self._tower.attentions)
        if readers and (tower.kind != "vit" or tower.pooling == "mean"):
            raise InputError(
                "readers: the chosen patches run again beside a vision transformer's CLS token or "
                f"pooling head, and this {tower.noun} has neither; leave it out."
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
        inputs = call.images[0].dtype, call.images[0].shape[1:]
        kind = readers > 0, inputs, tower.kind, kind_of(tower.module)
        if kind not in self._kinds:
            self._kinds[kind] = reader.look()
        return replace(reader, knows_positions=self._kinds[kind])

    @cached_property
    def _kinds(self) -> dict[Hashable, bool]:
        """Whether blocks know the positions of their tokens, by kinds of models and inputs."""
        return {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        super().check_options(**options)
        for name in ("window", "stride"):
            if (value := options.get(name)) is not None:
                check_integer(name, value, least=1)
        window = options.get("window")
        expect(window is None or window % 2 == 1, "an odd `window`, which has a center", window)
        check_integer("readers", options.get("readers", 0), least=0)

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
        r"""What the scores lose without each of M regions, (B, K, M), such as objects of SAM.

        .. math:: L_m = t \cdot (\hat e - \hat e_m)

        at the price of as many windows. An empty mask loses nothing.

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
        is_mask = isinstance(masks, Tensor) and masks.dtype == torch.bool
        expect(is_mask, "a boolean tensor of masks", masks)

        def compute(call: Call, *, readers: int) -> Computed:
            reader = self._reader(call, readers)
            losses = reader.losses(_cells_of(self._tower, reader.record, masks))
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
            reader = self._reader(call, readers)
            windows = _windows_of(self._tower, reader.record, window, stride)
            losses = reader.losses(windows[None])  # (B, W, E)
            cells = windows.to(losses)
            vectors = torch.einsum("bwe,wn->ebn", losses, cells / cells.sum(0).clamp(min=1))
            unit = F.normalize(to_float32(reader.embedded.embedding.detach()), dim=-1)
            run = reader.embedded.run
            return run.computed(reader.padded(vectors), unit - vectors.sum(-1).T)

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
        knows_positions: whether a token's keys depend on its position among all, as with rotary
            positions, so that groups run one after the other.
    """

    tower: Tower
    embedded: PooledEmbedding
    reads: dict[int, AttentionRead]
    arrived: Arrivals
    count: int
    pooled: Any = None
    knows_positions: bool = False

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record

    def padded(self, values: Tensor) -> Tensor:
        """Values (..., s) of all tokens, zero where those of cells (..., N) are none."""
        span = self.record.span
        return F.pad(values, (span.start, self.record.count - span.stop))

    @torch.no_grad()
    def losses(self, cells: Tensor) -> Tensor:
        """What the unit embedding loses (B, M, E) without each of some regions (B or 1, M, N)."""
        record, embedded, tower = self.record, self.embedded, self.tower
        returned, visible = embedded.embedding.detach(), record.pooled.visible
        hidden = self.padded(cells.to(returned.device)).expand(record.batch, -1, -1)
        if visible is not None:
            hidden = hidden & visible[:, None]
        if tower.pooling == "cls":  # a reader always sees itself
            hidden = hidden & ~_at(self._position(), hidden)
        hides = hidden.any(-1).any(0)
        # the last group sees everything, so it must give what the forward gave
        hidden = F.pad(hidden[:, hides], (0, 0, 0, 1))
        steps = embedded.head(tower)
        with autocast_disabled(embedded.token):
            if tower.pooling == "mean":
                before, steps = steps[: tower.steps_before_mean], steps[tower.steps_before_mean :]
                left = ~hidden[:, :, tower.prefix :]
                left = left if visible is None else left & visible[:, None]
                token = _mean(run_steps(before, embedded.token), left)
            elif tower.pooling == "cls":
                token = self._tokens(hidden, self._positions())[:, :, 0]
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
            beside = key, value, self._position()
        elif self.count:
            ids = self._positions()
            anew = self._tokens(hidden, ids)  # (B, G, n, D)
            again = read_pool(self.record, anew.flatten(1, 2))
            key, value = (_grouped(x, anew.shape[1:3]) for x in (again.shown[1], again.value))
            beside = key, value, ids
        heads = read.attend(query, self._seen(hidden, beside and beside[2]), beside)
        heads = heads[:, :, :, 0].transpose(1, 2).flatten(2)
        return mha.merged(read.attention, heads.flatten(0, 1)).view(*heads.shape[:2], -1)

    def _position(self) -> Tensor:
        """That of the pooled token, or of the mean of a ResNet's pool, (B, 1)."""
        rows, like = self.record.pooled.rows, self.embedded.embedding
        return torch.zeros_like(like[:, :1], dtype=torch.long) if rows is None else rows[:, None]

    def _positions(self) -> Tensor:
        """Those of the tokens that run anew, (B, n): a CLS reader, and those it reads most."""
        record, pools = self.record, self.tower.pooling == "attention"
        rows = [self.reads[len(self.tower.attentions) - 1]] if pools else self.reads.values()
        ids = [] if pools else [self._position()]
        if self.count:
            looked = torch.stack([read.row().mean(1)[:, record.span] for read in rows]).sum(0)
            most = looked.shape[1]
            expect(self.count <= most, f"`readers` of at most {most} patches", self.count)
            ids.append(looked.topk(self.count).indices + record.span.start)
        return torch.cat(ids, 1)

    def _tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Tokens at positions (B, n) as they leave the blocks in each group, (B, G, n, D)."""
        if self.knows_positions:
            return torch.cat([self._in_place(each, ids) for each in torch.split(hidden, 1, 1)], 1)
        # all groups in one sequence
        groups, seen = (hidden.shape[1], ids.shape[1]), self._seen(hidden, ids)
        tokens = _taken(self._entered(), ids)[:, None].expand(-1, groups[0], -1, -1)

        def attend(index: int, read: AttentionRead) -> Tensor:
            query, key, value = (_grouped(x, groups) for x in (*read.shown, read.value))
            out = self.reads[index].attend(query, seen, (key, value, ids))
            return out.flatten(2, 3).to(read.out.dtype)

        tokens = run_blocks(self.record, self.arrived, tokens.flatten(1, 2), attend)
        return tokens.view(len(ids), *groups, -1)

    def _in_place(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The same, of one group among all tokens."""
        seen, at = self._seen(hidden, ids), ids[:, None, :, None]

        def attend(index: int, read: AttentionRead) -> Tensor:
            heads = (*read.shown, read.value)
            query, key, value = (x.take_along_dim(at, 2)[:, :, None] for x in heads)
            out = self.reads[index].attend(query, seen, (key, value, ids))[:, :, 0]
            return read.out.scatter(2, at.expand_as(out), out.to(read.out.dtype))

        return _taken(run_blocks(self.record, self.arrived, self._entered(), attend), ids)[:, None]

    def _entered(self) -> Tensor:
        """The tokens (B, s, D) that entered the first block."""
        return self.record.transformer.layers[0].residual(*self.arrived[0])

    def _seen(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """What is added to products (B, 1, G, 1, s), with those of tokens that run anew behind."""
        if ids is not None:
            anew = hidden.take_along_dim(ids[:, None], 2)
            hidden = torch.cat([hidden | _at(ids, hidden), anew], -1)
        hidden = hidden[:, None, :, None]
        zeros = torch.zeros_like(hidden, dtype=self.embedded.token.dtype)
        return zeros.masked_fill(hidden, -torch.inf)

    @torch.no_grad()
    def look(self) -> bool:
        """Whether a few tokens have other keys than among all, since blocks know positions.

        Raises:
            UnsupportedModelError: an attention is no softmax over all keys.
        """
        for read in self.reads.values():
            if read.sees_by_head():
                raise _chooses(read.name)
        if not self.arrived:
            return False
        # a few of the tokens that the reader looks at least, and the reader
        reader, rows = self._position(), [read.row().mean(1) for read in self.reads.values()]
        looked = torch.stack(rows).sum(0)
        hidden = _at(reader, looked[:, None].bool())[:, 0]
        if self.record.pooled.visible is not None:
            hidden = hidden | ~self.record.pooled.visible
        few = min(_FEW, int((~hidden).sum(1).min()))
        order = looked.masked_fill(hidden, torch.inf).topk(few, largest=False).indices
        order = torch.cat([order.sort().values, reader], 1)
        seen, at = self._seen(~_at(order, hidden[:, None])), order[:, None, :, None]
        keys, outs = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()

        def attend(index: int, read: AttentionRead) -> Tensor:
            before = self.reads[index]
            query, key = (x.take_along_dim(at, 2) for x in before.shown)
            keys.append((read.shown[1], key))
            out = before.attend(query[:, :, None, -1:], seen)[:, :, 0, 0]
            outs.append((out, read.out[:, :, -1]))
            return before.out.take_along_dim(at, 2)

        try:
            run_blocks(self.record, self.arrived, _taken(self._entered(), order), attend)
        except Exception:  # of code that counts its tokens
            return True
        if not agree(self.record, *keys):
            return True
        for read, pair in zip(self.reads.values(), outs, strict=False):
            if not agree(self.record, pair):
                raise _chooses(read.name)
        return False


def _chooses(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} does not weigh its keys by a softmax over all of them: without some keys it gives "
        "something else, as with top-k attention; use another method, such as direct."
    )


def _windows_of(tower: Tower, record: Recording, window: int | None, stride: int | None) -> Tensor:
    """The windows (W, N) of the cells of a grid, or of the tokens of a text."""
    assert record.size is not None
    is_text = tower.kind == "text"
    sides = record.size[1:] if is_text else tower.grid(*record.size)
    windows = torch.ones(1, 1, dtype=torch.bool, device="cpu")
    for side in sides:
        width = window or (1 if is_text else 2 * round(3 * side / 14 - 0.5) + 1)
        step = stride or (1 if is_text else -(-side // 7))
        expect(step <= width, f"a `stride` of at most the window's {width} cells", step)
        centers = torch.arange(step // 2, side, step, device="cpu")
        near = (torch.arange(side, device="cpu") - centers[:, None]).abs() <= width // 2
        windows = torch.kron(windows, near)
    return windows


def _cells_of(tower: Tower, record: Recording, masks: Tensor) -> Tensor:
    """The cells (B or 1, M, N) of masks."""
    assert record.size is not None
    is_text = tower.kind == "text"  # whose masks are (B, M, T)
    grid: Any = record.size[1:] if is_text else tower.grid(*record.size)
    sizes = {grid} if is_text else {grid, record.size}
    batched = masks if masks.ndim == 2 + len(grid) else masks[None]
    fits = len(batched) in (1, record.batch) and batched.shape[2:] in sizes
    shapes = " or ".join(f"(B, M, {', '.join(map(str, size))})" for size in sizes)
    expect(fits and batched.ndim == 2 + len(grid), f"masks {shapes}, or without B", masks)
    if batched.shape[2:] != grid:
        covered = F.adaptive_avg_pool2d(batched.float(), grid)
        most = covered.amax((-2, -1), keepdim=True)
        batched = (covered >= most.clamp(max=0.5)) & (most > 0)
    return batched.flatten(2)


def _mean(tokens: Tensor, left: Tensor) -> Tensor:
    """The mean (B, G, D) of the tokens (B, N, D) that are left (B, G, N); zero of none."""
    left = left.to(tokens)
    return left @ tokens / left.sum(-1, keepdim=True).clamp(min=1)


def _at(ids: Tensor, like: Tensor) -> Tensor:
    """Whether a token is at any of these positions (B, n), (B, 1, s) for values (B, G, s)."""
    return torch.zeros_like(like[:, :1]).scatter(2, ids[:, None], True)


def _grouped(heads: Tensor, groups: Sequence[int]) -> Tensor:
    """What tokens have in each head (B, H, G n, d), group by group (B, H, G, n, d)."""
    return heads.reshape(*heads.shape[:2], *groups, -1)


def _taken(tokens: Tensor, ids: Tensor) -> Tensor:
    """The tokens (B, n, D) at some positions (B, n)."""
    return tokens.take_along_dim(ids[..., None], 1)
