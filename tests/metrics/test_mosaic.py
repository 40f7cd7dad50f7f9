"""The word-wise mosaic game: closed forms, the bound of whole-caption maps, refusals."""

from __future__ import annotations

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import grid_pointing_game, mosaic_cells, word_mosaic_game
from tests.samples import normal, uniform

CELLS = mosaic_cells(2, 2, (16, 16))


def test_cells_part_the_mosaic():
    """Every pixel lies in one cell, row by row, also where the sizes do not divide."""
    cells = mosaic_cells(2, 3, (5, 7))
    assert cells.shape == (6, 5, 7)
    assert (cells.sum(0) == 1).all()
    assert cells[1, 0].tolist() == [False, False, False, True, True, False, False]
    assert cells[3, 3, 0]


def test_signed_map_that_knows_its_cell_scores_one():
    """What speaks for it inside, what speaks against it outside; the opposite gets nothing."""
    for own in CELLS:
        heatmap = torch.where(own, 2.0, -0.5)
        assert word_mosaic_game(heatmap, own) == 1
        assert word_mosaic_game(-heatmap, own) == 0


def test_score_is_the_right_mass_over_all_mass():
    """Against the sums themselves."""
    heatmap = normal(4, 16, 16, seed=0)
    found = word_mosaic_game(heatmap, CELLS)
    for value, one, own in zip(found, heatmap, CELLS, strict=True):
        right = one[own].clamp(min=0).sum() - one[~own].clamp(max=0).sum()
        torch.testing.assert_close(value, right / one.abs().sum())
    torch.testing.assert_close(word_mosaic_game(7 * heatmap, CELLS), found)
    torch.testing.assert_close(word_mosaic_game(heatmap[2], CELLS[2]), found[2])


def test_constant_map_is_at_chance():
    """A quarter of a 2 x 2 mosaic, three quarters for a negative one."""
    for sign, chance in ((1, 0.25), (-1, 0.75)):
        flat = torch.full((4, 7, 7), 0.3 * sign)
        torch.testing.assert_close(word_mosaic_game(flat, CELLS), torch.full((4,), chance))


def test_grid_pointing_game_is_the_authors_share_of_positive_mass():
    """Their way: average the positive part over each cell, and divide by all cells."""
    heatmap = normal(4, 16, 16, seed=1)
    pooled = torch.nn.functional.avg_pool2d(heatmap.clamp(min=0)[:, None], 8).flatten(1)
    wanted = torch.diagonal(pooled / pooled.sum(1, keepdim=True))
    found = grid_pointing_game(heatmap, CELLS)
    torch.testing.assert_close(found, wanted)
    assert grid_pointing_game(-heatmap.abs(), CELLS).isnan().all()
    assert grid_pointing_game(torch.ones(4, 7, 7), CELLS).tolist() == [0.25] * 4
    torch.testing.assert_close(
        grid_pointing_game(heatmap.abs(), CELLS), word_mosaic_game(heatmap.abs(), CELLS)
    )


@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_one_positive_map_for_the_whole_caption_cannot_pass_one_in_n(words):
    """It is reached where all mass lies in the cells that the caption names."""
    named = CELLS[:words]
    heatmap = uniform(50, 16, 16, seed=words)
    scores = torch.stack([word_mosaic_game(heatmap, own.expand(50, 16, 16)) for own in named])
    assert (scores.mean(0) <= 1 / words + 1e-6).all()
    best = torch.stack([word_mosaic_game(named.any(0).float(), own) for own in named])
    assert best.mean().item() == pytest.approx(1 / words)


def test_map_of_zeros_has_no_answer():
    """Neither right nor wrong."""
    assert torch.isnan(word_mosaic_game(torch.zeros(4, 4), CELLS[0]))


def test_what_is_no_mosaic_is_refused():
    """One sentence that says what was given."""
    with pytest.raises(InputError, match="rows as a whole number from 1, got 0"):
        mosaic_cells(0, 2, (4, 4))
    with pytest.raises(InputError, match="the width as a whole number from 3, got 2"):
        mosaic_cells(2, 3, (4, 2))
    with pytest.raises(InputError, match=r"cells \(16, 16\) for maps \(4, 2, 2\)"):
        word_mosaic_game(torch.ones(4, 2, 2), CELLS[0])
    with pytest.raises(InputError, match="NaN"):
        word_mosaic_game(torch.full((2, 2), torch.nan), CELLS[0])
    with pytest.raises(InputError, match="1 of the cells are full"):
        word_mosaic_game(torch.ones(2, 2), mosaic_cells(1, 1, (4, 4))[0])
