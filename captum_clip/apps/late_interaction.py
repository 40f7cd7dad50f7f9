r"""Show which patch of a page answers which token of a query, in a late-interaction retriever.

ColPali, ColQwen2 and ColBERT-like models score a page by its best vector for each query vector,

.. math:: s = \sum_q \max_p \; q \cdot p

What each patch adds, and what the score loses without it, follow from the embeddings alone. No
model is needed, and no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..checks import check_choice, check_integer, expect, expecting
from ..errors import InputError, public
from ..explaining.explanation import Explanation
from ..files import as_pil
from ..maps import check_tensor, to_float32
from ..models.images import Crop

__all__ = ["LateInteraction", "explain"]

Cells = Literal["shares", "removal", "similarity"]
_LONGER_SIDE: Final = 448
"""About the pixels of a page's longer side in a figure."""
_HINTS: Final = {
    "shares": "",
    "removal": "What the score loses without a patch does not add up to the score.",
    "similarity": "A sum of similarities is not the score. The score reads only the best patch "
    "of each token, so the sum may be largest where nothing is read.",
}


@dataclass(frozen=True, eq=False, repr=False)
class LateInteraction:
    r"""The scores of B pages for a query of Q tokens, taken apart; made by :func:`explain`.

    Attributes:
        similarity: :math:`q \cdot p` of the query's vectors and all vectors of a page, (B, Q, P).
        patches: the position of each grid cell's vector among the vectors of its page, (B, h, w).
        tokens: names of the query's Q vectors.
        pages: the pages' images, or none.
        model: the model's name in figures.
    """

    similarity: Tensor
    patches: Tensor
    tokens: tuple[str, ...]
    pages: tuple[Image.Image, ...] = ()
    model: str = "late interaction"

    @property
    def scores(self) -> Tensor:
        """The retriever's scores s, (B,)."""
        return self.similarity.amax(-1).sum(-1)

    @property
    def shares(self) -> Tensor:
        """What each vector adds to the score, (B, Q, P): the maximum where it wins, else 0.

        Vectors that tie share it equally, so no order of the patches matters.
        """
        best = self.similarity.amax(-1, keepdim=True)
        wins = self.similarity == best
        return torch.where(wins, best / wins.sum(-1, keepdim=True), 0)

    @property
    def removal(self) -> Tensor:
        """What the score loses without each vector, (B, Q, P): best less second best, else 0."""
        best, second = self.similarity.topk(2).values.chunk(2, -1)  # each (B, Q, 1)
        # Where two vectors tie, the score loses nothing without either.
        wins = self.similarity == best
        return torch.where(wins, best - second, 0)

    @public("loss")
    def loss(self, region: Any) -> Tensor:
        r"""What the score loses without the patches of a region, for each token, (B, Q).

        .. math:: \max_p q \cdot p - \max_{p \notin R} q \cdot p

        Args:
            region: True in the cells that are left out, (h, w), or (B, h, w), one per page.

        Raises:
            InputError: a region of another shape or type, or one that leaves no vector.
        """
        shape = tuple(self.patches.shape)
        with expecting(f"a region of booleans {shape[1:]}", region):
            cells = torch.as_tensor(region)
            fits = cells.dtype == torch.bool and cells.shape in (shape, shape[1:])
            expect(fits, f"a region of booleans {shape[1:]}", region)
        # The region is over cells of the grid, and the page has other vectors besides its patches.
        gone = torch.zeros_like(self.similarity[:, 0], dtype=torch.bool)  # (B, P)
        gone.scatter_(1, self.patches.flatten(1), cells.expand(shape).flatten(1))
        if gone.all(-1).any():
            raise InputError(
                "the region holds all vectors of a page, and without them there is no score."
            )
        remaining = self.similarity.masked_fill(gone[:, None], -torch.inf)
        return self.similarity.amax(-1) - remaining.amax(-1)

    def maps(self, kind: Cells = "shares") -> Tensor:
        """The shares, the removal or the similarities of the patches, (B, Q, h, w).

        ``maps().sum((1, 2, 3)) + rest`` is the score.
        """
        check_choice(kind, _HINTS, name="`kind`")
        values: Tensor = getattr(self, kind)  # (B, Q, P)
        pages, height, width = self.patches.shape
        count = len(self.tokens)
        vectors = self.patches.flatten(1)[:, None].expand(-1, count, -1)  # (B, Q, h w)
        return values.gather(2, vectors).view(pages, count, height, width)

    @property
    def rest(self) -> Tensor:
        """The share of vectors that are no patch, such as a prompt's, (B,)."""
        return self.scores - self.maps().sum((1, 2, 3))

    @public("explanation")
    def explanation(self, kind: Cells = "shares") -> Explanation:
        """The maps of the whole query, a sum over its tokens, and of each token, as an Explanation.

        It has the figure, the HTML page and the masks of any Explanation. Its `scores` are s and
        the tokens' shares of s.

        Args:
            kind: "shares"; "removal", the score's loss without each patch; or "similarity". Heat
                maps of late interaction usually show similarities, which do not add up to the
                score.

        Raises:
            InputError: another kind.
        """
        values = _with_total(self.maps(kind))
        shares = _with_total(self.similarity.amax(-1))
        maps = {"positive": values.clamp(min=0), "negative": (-values).clamp(min=0)}
        if not maps["negative"].any():
            del maps["negative"]
        page_count, rows, columns = self.patches.shape
        # A retriever may squeeze its pages, so they are drawn in the shape of the grid.
        cell = max(1, _LONGER_SIDE // max(rows, columns))
        size = (cell * columns, cell * rows)
        if self.pages:
            drawn = [page.resize(size) for page in self.pages]
        else:
            drawn = [Image.new("RGB", size, "white")] * page_count
        pixels = torch.from_numpy(np.stack([np.asarray(page) for page in drawn]))
        crops = []
        for page in self.pages:
            crops.append(Crop((page.height, page.width), (0, 0, page.width, page.height)))
        hints_of_page = (_HINTS[kind],) if _HINTS[kind] else ()
        return Explanation(
            maps=maps,
            scores=shares,
            names=("query", *self.tokens),
            norms=torch.ones(1 + len(self.tokens)),
            model=self.model,
            method=kind,
            images=pixels.movedim(-1, 1).float() / 255,
            words=True,
            hints=(hints_of_page,) * page_count,
            crops=tuple(crops),
            photos=self.pages,
            # The score is a sum over tokens, so without one it loses exactly the token's share.
            leave_one_out=shares,
            # After the whole query, the targets are its tokens in one row.
            cells=(1, len(self.tokens)),
        )

    def plot(self, kind: Cells = "shares", **look: Any) -> Figure:
        """Draw :meth:`explanation`, in a look that :meth:`captum_clip.Explanation.plot` takes."""
        return self.explanation(kind).plot(**{"original": bool(self.pages), **look})

    def save(self, path: str | Path, kind: Cells = "shares", **look: Any) -> Path:
        """Write :meth:`explanation` as an Explanation saves itself, .html included."""
        return self.explanation(kind).save(path, **{"original": bool(self.pages), **look})

    def __getitem__(self, index: int) -> "LateInteraction":
        """The scores of one page."""
        # A range counts negative indices from the end, and refuses those that are too large.
        number = range(len(self.similarity))[index]
        chosen = slice(number, number + 1)
        return replace(
            self,
            similarity=self.similarity[chosen],
            patches=self.patches[chosen],
            pages=self.pages[chosen],
        )


def _with_total(by_token: Tensor) -> Tensor:
    """Put the sum over the tokens in front, (B, Q, ...) -> (B, 1 + Q, ...)."""
    total = by_token.sum(1, keepdim=True)
    return torch.cat([total, by_token], 1).cpu().float()


@public("explain")
def explain(
    query: Any,
    pages: Any,
    grid: tuple[int, int],
    *,
    patches: Any = None,
    tokens: Sequence[str] | None = None,
    images: Any = None,
    model: str = "late interaction",
) -> LateInteraction:
    r"""Take the late-interaction scores of some pages for a query apart.

    Args:
        query: the query's vectors (Q, E), as the retriever scores them; a tensor or an array.
        pages: the vectors (P, E) of a page, or (B, P, E) of several of one grid, without padding.
        grid: rows and columns (h, w) of a page's patches.
        patches: True for the vectors that are patches, (P,) or (B, P), row by row; None if all
            are. The others, such as a prompt's, may win too: :attr:`LateInteraction.rest`.
        tokens: names of the query's vectors.
        images: the pages' images, one or several, whole; for figures.
        model: the model's name in figures.

    Raises:
        InputError: shapes that do not belong together, NaN or infinity, or an unreadable image.

    Example:
        >>> import torch
        >>> from captum_clip.apps import late_interaction
        >>> query, page = torch.eye(2), torch.tensor([[0.9, 0.0], [0.5, 0.2], [0.0, 0.8]])
        >>> explained = late_interaction.explain(query, page, grid=(1, 3))
        >>> explained.maps().sum(1)
        tensor([[[0.9000, 0.0000, 0.8000]]])
        >>> explained.maps("removal").sum(1)
        tensor([[[0.4000, 0.0000, 0.6000]]])
    """
    with expecting("embeddings as tensors or arrays", (query, pages)):
        query_vectors = torch.as_tensor(query).detach()
        page_vectors = torch.as_tensor(pages).detach()
    if page_vectors.ndim == 2:
        page_vectors = page_vectors[None]
    check_tensor("the query's vectors", query_vectors, "(Q, E)")
    check_tensor("the pages' vectors", page_vectors, "(B, P, E)")
    token_count, length = query_vectors.shape
    page_count, vector_count, page_length = page_vectors.shape
    expected = f"pages with vectors of the query's length {length}"
    expect(page_length == length, expected, page_vectors)
    expect(vector_count > 1, "pages of two or more vectors", page_vectors)
    with expecting("a grid (h, w)", grid):
        height, width = grid
    for side in (height, width):
        check_integer("a side of the grid", side)

    expected = f"{height} x {width} patches, True in each row of `patches`,"
    with expecting(expected, patches):
        if patches is None:
            mask = torch.ones(vector_count, dtype=torch.bool)
        else:
            mask = torch.as_tensor(patches).cpu()
        expect(mask.dtype == torch.bool, expected, patches)
        mask = mask.expand(page_count, vector_count)
    patch_counts = mask.sum(1)
    fits = bool((patch_counts == height * width).all())
    expect(fits, f"{expected} of {vector_count} vectors", patch_counts.tolist())
    # Patches are given row by row, so their order fills the grid.
    positions = mask.nonzero()[:, 1].view(page_count, height, width)

    if tokens is None:
        names = tuple(f"token {number}" for number in range(1, token_count + 1))
    else:
        names = tuple(tokens)
    fits = len(names) == token_count and all(isinstance(name, str) for name in names)
    expect(fits, f"`tokens` of {token_count} names", tokens)
    photos = () if images is None else tuple(as_pil(images))
    expect(len(photos) in (0, page_count), f"`images` of {page_count} pages", images)

    device = query_vectors.device
    query_rows = to_float32(query_vectors)
    page_rows = to_float32(page_vectors).to(device)
    similarity = torch.einsum("qe,bpe->bqp", query_rows, page_rows)
    return LateInteraction(similarity, positions.to(device), names, photos, model)
