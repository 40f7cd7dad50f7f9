"""Maps of a text and its words, or of a reference image and its cells, for `explain`."""

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import targets
from ..models import ClipAdapter
from ..targets.similarity import ClipPairSimilarity, ClipSimilarity
from .contributions import DirectInteraction, InteractionRest


class PairMaps(NamedTuple):
    """Maps of a text and of each of its words, or of a reference image and of each of its cells.

    Attributes:
        names: the name of the whole, then those of its words or cells, K together.
        maps: the signed shares of each, (B, K, h, w).
        scores: the cosine, then the share of each word or cell, the sum of its map, (B, K).
        leave_one_out: what the cosine loses if the empty text takes the place of the text, then if
            each word is left out, (B, K); None for cells.
        norms: how far the text's encoding moves without each word, (K,); 1 for the whole and cells.
        cells: rows and columns of the reference's grid; (0, 0) for a text.
    """

    names: tuple[str, ...]
    maps: Tensor
    scores: Tensor
    leave_one_out: Tensor | None
    norms: Tensor
    cells: tuple[int, int] = (0, 0)


def pair_maps(clip: ClipAdapter, pixels: Tensor, other: str | Tensor, **options: Any) -> PairMaps:
    """Compute the shares of images (B, 3, H, W) with one text, or with one image (1, 3, H, W).

    The start, end and padding tokens of a text count in the whole alone.
    """
    if isinstance(other, str):
        method = DirectInteraction(ClipPairSimilarity(clip, "text"))
        others, mask = clip.text_inputs(other)
    else:
        method = DirectInteraction(ClipPairSimilarity(clip, "image"))
        others, mask = other, None
    # There is one other, so the second axis of all pairs, (B, 1, ...), goes.
    shares, rest = method.attribute_pairs(pixels, others, mask, return_rest=True, **options)
    shares = shares[:, 0]
    rest = InteractionRest(rest.other[:, 0], rest.image[:, 0], rest.constant[:, 0])
    parts = shares.flatten(1, -3)  # (B, T or h' w', h, w)
    # The map of the whole also has what a position of the image adds with the other's rest.
    whole = parts.sum(1) + rest.image
    cosine = whole.sum((-2, -1)) + rest.other.flatten(1).sum(1) + rest.constant
    if isinstance(other, str):
        words = targets.words(clip, other)
        empty = targets.text(clip, "", allow_empty=True)
        differences = targets.concatenate([targets.text(clip, other) - empty, words])
        with torch.no_grad():
            cosines = ClipSimilarity(clip, differences)(pixels)
        # Targets have unit length, so the cosines get the lengths of the differences back.
        leave_one_out = cosines * differences.norms.to(pixels.device)
        spans = [span for _, span in targets.word_tokens(clip, other)]
        # Start, end and padding tokens belong to no word, so they leave the parts here.
        of_words = [parts[:, span.start : span.stop].sum(1) for span in spans]
        parts = torch.stack(of_words, 1)
        names = (other, *words.names)
        norms = torch.cat([torch.ones(1, device="cpu"), words.norms.cpu()])
        grid = (0, 0)
    else:
        leave_one_out = None
        grid = (shares.shape[1], shares.shape[2])
        cells = product(range(grid[0]), range(grid[1]))
        names = ("reference", *(f"row {row}, column {column}" for row, column in cells))
        norms = torch.ones(len(names), device="cpu")
    maps = torch.cat([whole[:, None], parts], 1)
    scores = torch.cat([cosine[:, None], parts.sum((-2, -1))], 1)
    return PairMaps(names, maps, scores, leave_one_out, norms, grid)
