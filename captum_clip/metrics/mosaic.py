"""Mosaic games: does the map of a word or a class lie in its own cell?"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_count
from .resize import cell_indices, maps_at_masks


def word_mosaic_game(maps: Tensor, cells: Tensor) -> Tensor:
    r"""The share of a word's map that is where it should be, in a mosaic of pictures.

    .. math:: g = \frac{\sum_{p \in C} m_p^+ + \sum_{p \notin C} m_p^-}{\sum_p |m_p|}

    where C is the cell of the picture that the word names, :math:`m^+` what speaks for the word and
    :math:`m^-` what speaks against it. Maps are resized to the mosaic first (bilinear). A map that
    is constant gets the share of the image in C if it is positive, and the rest if it is negative.

    One non-negative map of a whole caption that names n cells divides its mass among them, so the
    mean over its n words is at most 1/n. A signed map per word (:func:`captum_clip.targets.words`)
    has no such bound.

    Args:
        maps: (..., h, w), signed or not, one per word.
        cells: (..., H, W) bool, the word's own cell; :func:`mosaic_cells` makes them.

    Returns:
        (...) from 0 to 1; NaN for a map of zeros.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full cells.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> cells = metrics.mosaic_cells(2, 2, (2, 2))
        >>> heatmap = torch.tensor([[3.0, 1.0], [-4.0, 0.0]])
        >>> metrics.word_mosaic_game(heatmap, cells[0])
        tensor(0.8750)
    """
    heatmap = maps_at_masks("word_mosaic_game", maps, cells, what="cells")
    right = torch.where(cells, heatmap.clamp(min=0), (-heatmap).clamp(min=0))
    return right.sum((-2, -1)) / heatmap.abs().sum((-2, -1))


def grid_pointing_game(maps: Tensor, cells: Tensor) -> Tensor:
    r"""GridPG: the share of a map's positive mass in the cell of its class, in a grid of pictures.

    .. math:: L = \frac{\sum_{p \in C} m_p^+}{\sum_p m_p^+}

    Maps are resized to the grid first (bilinear). The authors take pictures that the model puts
    into their classes with confidence, each of another class. A map of one value gets the share of
    the grid that a cell has.

    FIxLIP plays it with captions of one to four objects in 2 x 2 cells, and a map for each object;
    where a method has one map of the whole caption, which bounds the mean over n objects by 1/n,
    that map is each object's.

    Args:
        maps: (..., h, w), signed or not; only what is above zero counts.
        cells: (..., H, W) bool, one a map; :func:`mosaic_cells` makes them.

    Returns:
        (...) from 0 to 1; NaN for a map without positive mass, which the authors' code gives 0.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full cells.

    Source: Böhle et al. 2021 (arXiv:2104.00032); Rao et al. 2022 (arXiv:2205.10435), who call it
    GridPG; Baniecki et al. 2025, FIxLIP (arXiv:2508.05430).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> cells = metrics.mosaic_cells(2, 2, (2, 2))
        >>> metrics.grid_pointing_game(torch.tensor([[3.0, 1.0], [-4.0, 0.0]]), cells[0])
        tensor(0.7500)
    """
    mass = maps_at_masks("grid_pointing_game", maps, cells, what="cells").clamp(min=0)
    return (mass * cells).sum((-2, -1)) / mass.sum((-2, -1))


def mosaic_cells(rows: int, columns: int, size: tuple[int, int]) -> Tensor:
    """The cells (rows * columns, H, W) of a mosaic, bool, row by row.

    Args:
        rows: of the mosaic.
        columns: of the mosaic.
        size: (H, W) in pixels; pixel i of H lies in row i * rows // H.

    Raises:
        InputError: numbers below 1, or more cells than pixels.

    Example:
        >>> from captum_clip import metrics
        >>> metrics.mosaic_cells(1, 2, (1, 4)).int()
        tensor([[[1, 1, 0, 0]],
        <BLANKLINE>
                [[0, 0, 1, 1]]], dtype=torch.int32)
    """
    height, width = size
    check_count("mosaic_cells", "rows", rows)
    check_count("mosaic_cells", "columns", columns)
    check_count("mosaic_cells", "the height", height, least=rows)
    check_count("mosaic_cells", "the width", width, least=columns)
    row, column = cell_indices((rows, columns), torch.empty(size))
    return row * columns + column == torch.arange(rows * columns)[:, None, None]
