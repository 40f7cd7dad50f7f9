r"""Which patch of a page answers which token of a query, in a late-interaction retriever.

ColPali, ColQwen2 and ColBERT-like models score a page by its best vector for each query vector,

.. math:: s = \sum_q \max_p \; q \cdot p

so what each patch adds, and what the score loses without it, follow from the embeddings alone: no
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
_LONGER_SIDE: Final = 448  # pixels of the longer side of a page in a figure, about
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
        patches: which vector of its page each cell of the grid is, (B, h, w).
        tokens: names of the query's Q vectors.
        pages: the pages' images, or none.
        model: its name in figures.
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
        best = self.similarity.topk(2).values  # (B, Q, 2)
        wins = self.similarity == best[..., :1]
        return torch.where(wins, best[..., :1] - best[..., 1:], 0)

    @public("loss")
    def loss(self, region: Any) -> Tensor:
        r"""What the score loses without the patches of a region, by tokens, (B, Q).

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
        gone = torch.zeros_like(self.similarity[:, 0], dtype=torch.bool)
        gone.scatter_(1, self.patches.flatten(1), cells.expand(shape).flatten(1))
        if gone.all(-1).any():
            raise InputError(
                "the region holds all vectors of a page, and without them there is no score."
            )
        left = self.similarity.masked_fill(gone[:, None], -torch.inf)
        return self.similarity.amax(-1) - left.amax(-1)

    def maps(self, kind: Cells = "shares") -> Tensor:
        """The shares, the removal or the similarities of the patches, (B, Q, h, w).

        ``maps().sum((1, 2, 3)) + rest`` is the score.
        """
        check_choice(kind, _HINTS, name="`kind`")
        where = self.patches.flatten(1)[:, None].expand(-1, len(self.tokens), -1)
        values: Tensor = getattr(self, kind)
        return values.gather(2, where).view(*values.shape[:2], *self.patches.shape[1:])

    @property
    def rest(self) -> Tensor:
        """The share of vectors that are no patch, such as a prompt's, (B,)."""
        return self.scores - self.maps().sum((1, 2, 3))

    @public("explanation")
    def explanation(self, kind: Cells = "shares") -> Explanation:
        """The maps of the whole query, a sum over its tokens, and of each token, as an Explanation.

        It has the figure, the HTML page and the masks of all others. Its `scores` are s and the
        tokens' shares of s.

        Args:
            kind: "shares"; "removal", the score's loss without each patch; or "similarity", which
                is what heat maps of late interaction usually show, and is not the score.

        Raises:
            InputError: another kind.
        """
        values, shares = (
            torch.cat([by_token.sum(1, keepdim=True), by_token], 1).cpu().float()
            for by_token in (self.maps(kind), self.similarity.amax(-1))
        )
        maps = {"positive": values.clamp(min=0), "negative": (-values).clamp(min=0)}
        if not maps["negative"].any():
            del maps["negative"]
        count, *grid = self.patches.shape
        cell = max(1, _LONGER_SIDE // max(grid))
        size = (cell * grid[0], cell * grid[1])
        # a retriever may squeeze its pages, so they are drawn in the shape of the grid
        drawn = [page.resize(size[::-1]) for page in self.pages]
        drawn = drawn or [Image.new("RGB", size[::-1], "white")] * count
        pixels = torch.from_numpy(np.stack([np.asarray(page) for page in drawn]))
        return Explanation(
            maps=maps,
            scores=shares,
            names=("query", *self.tokens),
            norms=torch.ones(1 + len(self.tokens)),
            model=self.model,
            method=kind,
            images=pixels.movedim(-1, 1).float() / 255,
            words=True,
            hints=((_HINTS[kind],) * bool(_HINTS[kind]),) * count,
            crops=tuple(Crop((p.height, p.width), (0, 0, p.width, p.height)) for p in self.pages),
            photos=self.pages,
            leave_one_out=shares,  # without a token its share is lost
            cells=(1, len(self.tokens)),
        )

    def plot(self, kind: Cells = "shares", **look: Any) -> Figure:
        """Draw :meth:`explanation`, in a look that :meth:`captum_clip.Explanation.plot` takes."""
        return self.explanation(kind).plot(**{"original": bool(self.pages), **look})

    def save(self, path: str | Path, kind: Cells = "shares", **look: Any) -> Path:
        """Write :meth:`explanation` as an Explanation saves itself, .html included."""
        return self.explanation(kind).save(path, **{"original": bool(self.pages), **look})

    def __getitem__(self, index: int) -> "LateInteraction":
        """That of one page."""
        number = range(len(self.similarity))[index]
        chosen = slice(number, number + 1)
        fields = {name: getattr(self, name)[chosen] for name in ("similarity", "patches", "pages")}
        return replace(self, **fields)


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
        query: its vectors (Q, E), as the retriever scores them; a tensor or an array.
        pages: the vectors (P, E) of a page, or (B, P, E) of several of one grid, without padding.
        grid: rows and columns (h, w) of a page's patches.
        patches: True for the vectors that are patches, (P,) or (B, P), row by row; where None all
            are. The others, such as a prompt's, may win too: :attr:`LateInteraction.rest`.
        tokens: names of the query's vectors.
        images: the pages' images, one or several, whole; for figures.
        model: its name in figures.

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
        vectors, several = (torch.as_tensor(each).detach() for each in (query, pages))
    several = several[None] if several.ndim == 2 else several
    check_tensor("the query's vectors", vectors, "(Q, E)")
    check_tensor("the pages' vectors", several, "(B, P, E)")
    same = vectors.shape[1] == several.shape[2]
    expect(same, f"pages with vectors of the query's length {vectors.shape[1]}", several)
    batch, count, _ = several.shape
    expect(count > 1, "pages of two or more vectors", several)
    with expecting("a grid (h, w)", grid):
        height, width = grid
    for side in (height, width):
        check_integer("a side of the grid", side)
    expected = f"{height} x {width} patches, True in each row of `patches`,"
    with expecting(expected, patches):
        mask = torch.ones(count) > 0 if patches is None else torch.as_tensor(patches).cpu()
        expect(mask.dtype == torch.bool, expected, patches)
        mask = mask.expand(batch, count)
    each = mask.sum(1)
    expect(bool((each == height * width).all()), f"{expected} of {count} vectors", each.tolist())
    where = mask.nonzero()[:, 1].view(batch, height, width)
    names = tuple(f"token {n}" for n in range(1, len(vectors) + 1)) if tokens is None else tokens
    fits = all(isinstance(name, str) for name in names) and len(names) == len(vectors)
    expect(fits, f"`tokens` of {len(vectors)} names", tokens)
    photos = () if images is None else tuple(as_pil(images))
    expect(len(photos) in (0, batch), f"`images` of {batch} pages", images)
    device = vectors.device
    similarity = torch.einsum("qe,bpe->bqp", to_float32(vectors), to_float32(several).to(device))
    return LateInteraction(similarity, where.to(device), tuple(names), photos, model)
