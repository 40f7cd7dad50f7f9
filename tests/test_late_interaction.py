"""captum_clip.apps.late_interaction: shares, and what the score loses, against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captum_clip import Explanation, load_clip
from captum_clip.apps import late_interaction
from captum_clip.apps.late_interaction import LateInteraction
from captum_clip.errors import InputError, UnsupportedModelError

GRID = (3, 4)


def draw(seed: int = 0, pages: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query (5, 8), pages (B, 15, 8), and which of their vectors are the 3 x 4 patches."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5 + 15 * pages, 8, generator=generator, dtype=torch.float64)
    unit = F.normalize(vectors, dim=-1)
    patches = torch.ones(15, dtype=torch.bool)
    patches[[0, 7, 14]] = False
    return unit[:5], unit[5:].view(pages, 15, 8), patches


@pytest.fixture
def drawn() -> LateInteraction:
    query, pages, patches = draw()
    return late_interaction.explain(query, pages, GRID, patches=patches)


def score(query: torch.Tensor, page: torch.Tensor) -> float:
    """The equation, written plainly."""
    return sum(max(float(q @ p) for p in page) for q in query)


def test_shares_sum_to_the_score(drawn: LateInteraction) -> None:
    query, pages, _ = draw()
    wanted = torch.tensor([score(query, page) for page in pages], dtype=torch.float64)
    assert torch.allclose(drawn.scores, wanted, atol=1e-12)
    assert torch.allclose(drawn.shares.sum((1, 2)), wanted, atol=1e-12)
    assert torch.allclose(drawn.maps().sum((1, 2, 3)) + drawn.rest, wanted, atol=1e-12)
    assert (drawn.rest.abs() > 0.1).any()  # a vector that is no patch wins


def test_removal_equals_deletion_of_each_patch_and_of_random_regions(
    drawn: LateInteraction,
) -> None:
    query, pages, patches = draw()
    (where,) = patches.nonzero(as_tuple=True)
    for cell, vector in enumerate(where.tolist()):
        lost = drawn.maps("removal").sum(1).flatten(1)[:, cell]
        for page, whole, loss in zip(pages, drawn.scores, lost, strict=True):
            kept = torch.cat([page[:vector], page[vector + 1 :]])
            assert loss == pytest.approx(float(whole) - score(query, kept), abs=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        region = torch.rand(2, *GRID, generator=generator) < 0.6
        losses = drawn.loss(region)
        for page, cells, whole, loss in zip(pages, region, drawn.scores, losses, strict=True):
            gone = torch.zeros(15, dtype=torch.bool)
            gone[where[cells.flatten()]] = True
            wanted = float(whole) - score(query, page[~gone])
            assert float(loss.sum()) == pytest.approx(wanted, abs=1e-12)


def test_an_explanation_has_tokens_and_the_whole(drawn: LateInteraction, tmp_path: Path) -> None:
    found = drawn.explanation()
    assert isinstance(found, Explanation)
    assert found.names == ("query", *(f"token {n}" for n in range(1, 6)))
    assert torch.allclose(found.scores[:, 0].double(), drawn.scores)
    assert torch.allclose(found.maps["positive"][:, 0].double(), drawn.maps().sum(1), atol=1e-6)
    assert found[0].shown()[0][0].note == f"share {float(drawn.scores[0]):+.3f}"
    assert "cosine" not in str([found.shown(), found["query"].shown()])
    page = drawn.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "token 5" in page
    similar = drawn.explanation("similarity")
    assert set(similar.maps) == {"positive", "negative"}
    signed = (similar.maps["positive"] - similar.maps["negative"])[:, 1:]
    torch.testing.assert_close(signed, drawn.maps("similarity").float())
    assert similar.hints[1] == (late_interaction._HINTS["similarity"],)


def test_pages_are_drawn_whole_in_their_own_shape() -> None:
    """Squeezed to the grid for the model, and not in the picture nor in masks."""
    query, pages, patches = draw(pages=1)
    photo = np.full((90, 60, 3), 200, dtype=np.uint8)
    options: Any = {"patches": patches, "tokens": list("abcde"), "images": photo}
    found = late_interaction.explain(query.numpy(), pages[0].numpy(), GRID, **options)
    assert found.explanation().regions()[0].mask.shape == (90, 60)
    (panel, *_) = [axes for axes in found.plot().axes if axes.images]
    height, width = np.asarray(panel.images[0].get_array()).shape[:2]
    assert height / width == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (3, 3)}, "3 x 3 patches, True in each row of `patches`, of 15 vectors"),
        ({"patches": None}, "of 15 vectors"),
        ({"pages": torch.ones(15, 7)}, "the query's length 8"),
        ({"query": torch.full((5, 8), torch.nan)}, "NaN"),
        ({"tokens": ["a"]}, "`tokens` of 5 names"),
        ({"images": np.zeros((9, 9, 3), np.uint8)}, "`images` of 2 pages"),
    ],
)
def test_embeddings_that_do_not_belong_together_are_refused(
    change: dict[str, Any], message: str
) -> None:
    query, pages, patches = draw()
    arguments: Any = {"query": query, "pages": pages, "grid": GRID, "patches": patches} | change
    with pytest.raises(InputError, match=message):
        late_interaction.explain(**arguments)


def test_a_region_must_leave_a_vector() -> None:
    query, pages, _ = draw()
    found = late_interaction.explain(query, pages[:, :12], GRID)
    with pytest.raises(InputError, match="holds all vectors"):
        found.loss(torch.ones(GRID, dtype=torch.bool))
    with pytest.raises(InputError, match=r"a region of booleans \(3, 4\)"):
        found.loss(torch.ones(GRID))


def test_load_clip_sends_a_late_interaction_model_here() -> None:
    kind = type("ColPaliForRetrieval", (torch.nn.Module,), {})
    with pytest.raises(UnsupportedModelError, match=r"captum_clip\.apps\.late_interaction"):
        load_clip(kind())


def test_an_order_of_patches_moves_the_maps_alone_also_of_patches_that_tie() -> None:
    """The winner of a tie would be the first in order; losing one of two equals loses nothing."""
    query, pages, _ = draw(pages=1)
    page = torch.cat([pages[0, :9], pages[0, :3]])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain, moved = (late_interaction.explain(query, each, GRID) for each in (page, page[order]))
    for kind in ("shares", "removal", "similarity"):
        before, after = (each.maps(kind).flatten(2) for each in (plain, moved))
        assert torch.equal(before[..., order], after), kind
    shares, removal = plain.shares[0], plain.removal[0]
    assert (shares[:, :3] > 0).any()
    assert torch.equal(shares[:, :3], shares[:, 9:])
    assert not removal[:, :3].any()


def test_one_page_of_several_is_what_it_is_alone(drawn: LateInteraction) -> None:
    query, pages, patches = draw()
    alone = late_interaction.explain(query, pages[1], GRID, patches=patches)
    torch.testing.assert_close(drawn[1].maps("removal"), alone.maps("removal"))  # of float64
    assert drawn[-1].explanation().images.shape[0] == 1
