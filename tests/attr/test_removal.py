"""Removal at the reader equals the library's own forward with the reader's keys masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import DirectContribution, ReaderRemoval, TextSimilarity
from captum_clip.attr import removal
from captum_clip.errors import InputError
from captum_clip.recording.passes import run_blocks
from tests import explicit
from tests.attr import cases, running, test_text_side
from tests.attr.cases import POOLINGS

Forward = Callable[[], Tensor]


def method(name: str, dtype: torch.dtype = torch.float64) -> ReaderRemoval:
    return ReaderRemoval(cases.similarity(name, dtype))


def masks_of(name: str, *cells: list[int]) -> Tensor:
    grid = cases.adapter(name).tower.grid(*cases.images(name).shape[-2:])
    masks = torch.zeros(len(cells), grid[0] * grid[1], dtype=torch.bool)
    for mask, inside in zip(masks, cells, strict=True):
        mask[inside] = True
    return masks.unflatten(1, grid)


CELLS = [1, 2, 6]
TOWERS = ["hf_vit", "siglip", "pe_core", "eva02", "aimv2", "timm_registers", "blip"]


@pytest.mark.parametrize("name", TOWERS)
def test_losses_equal_a_forward_whose_reader_does_not_see_the_region(name: str) -> None:
    """Of the reader alone, of it and two patches, and with all patches the masked forward."""
    row, prefix = POOLINGS.get(name, ("cls", 1))
    model, pixels = cases.built(name, torch.float64).model, cases.images(name, torch.float64)
    explained, masks = method(name), masks_of(name, CELLS, [])
    hidden = F.pad(masks[0].flatten(), (prefix, 0))
    embed = lambda: cases.embed(model, pixels)  # noqa: E731
    clean = F.normalize(embed(), dim=-1)
    count = masks[0].numel()
    with explicit.explicit_attention(len(pixels)) as attentions:
        embed()
    read = attentions[-1:] if row == "attention" else attentions
    looked = torch.stack([each[:, :, 0, prefix : prefix + count].mean(1) for each in read]).sum(0)
    seen = looked.masked_fill(masks[0].flatten(), -torch.inf)
    # the blocks of BLIP and FLAVA write their attention out, in which a row cannot be exchanged
    written = name in ("blip", "flava")
    rtol, atol = (1e-6, 1e-7) if name == "aimv2" else (1e-9, 1e-12)  # its norms are in float32
    for readers in [count] if written else [0, 2, count]:
        ids = torch.cat(
            [torch.zeros(3, row == "cls").long(), seen.topk(readers).indices + prefix], 1
        )
        wanted = clean - explicit.blinded(embed, hidden, ids)
        wanted = wanted @ explained.forward_func.embeddings.T
        found = explained.losses_of(pixels, masks, readers=readers)
        torch.testing.assert_close(found[..., 0], wanted.detach(), rtol=rtol, atol=atol)
        assert not found[..., 1].any()


def marked(tokens: Tensor, hidden: Tensor) -> Tensor:
    """Tokens (B, s, D), the hidden ones replaced by the mean of the others."""
    mean = tokens[:, ~hidden].mean(1, keepdim=True)
    return torch.where(hidden[None, :, None], mean, tokens)


@pytest.mark.parametrize("name", ["timm_convnext", "timm_gap", "open_clip_vit_mean"])
def test_a_mean_is_that_of_the_others(name: str) -> None:
    model, pixels = cases.built(name, torch.float64).model, cases.images(name, torch.float64)
    explained, masks = method(name), masks_of(name, CELLS)
    hidden, tower = masks[0].flatten(), cases.adapter(name, torch.float64).tower

    def change(module: Any, args: Any, out: Tensor) -> Tensor:
        if out.ndim == 4:
            return marked(out.flatten(2).mT, hidden).mT.view_as(out)
        return torch.cat([out[:, : tower.prefix], marked(out[:, tower.prefix :], hidden)], 1)

    clean = F.normalize(cases.embed(model, pixels), dim=-1)
    last: Any = tower.stage if tower.kind == "resnet" else tower.layers[-1].block
    if tower.steps_before_mean:
        last = tower.head[tower.steps_before_mean - 1]
    handle = last.register_forward_hook(change)
    changed = F.normalize(cases.embed(model, pixels), dim=-1)
    handle.remove()
    wanted = (clean - changed) @ explained.forward_func.embeddings.T
    found = explained.losses_of(pixels, masks)[..., 0]
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-12)


def test_the_pool_of_a_resnet_asks_with_the_mean_of_the_others() -> None:
    """Written out: the mean token without the region is query, key and value."""
    name = "open_clip_resnet"
    small, pixels = cases.built(name, torch.float64), cases.images(name, torch.float64)
    explained, masks = method(name), masks_of(name, [1, 2, 6])
    pool, features = small.model.visual.attnpool, []
    handle = small.model.visual.layer4.register_forward_hook(lambda m, a, out: features.append(out))
    clean = F.normalize(cases.embed(small.model, pixels), dim=-1)
    handle.remove()
    tokens = features[0].flatten(2).mT
    kept = ~masks[0].flatten()
    tokens = (
        torch.cat([tokens[:, kept].mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
    )
    tokens = tokens[:, F.pad(kept, (1, 0), value=True)]
    query, key, value = (
        each(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for each in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    heads = explicit.weights(query[:, :, :1], key) @ value
    embedding = F.normalize(pool.c_proj(heads[:, :, 0].flatten(1)), dim=-1)
    wanted = (clean - embedding) @ explained.forward_func.embeddings.T
    found = explained.losses_of(pixels, masks)[..., 0]
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-12)


TEXT_MODELS = ["hf_vit", "siglip", "coca", "altclip"]


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_words_are_removed_from_the_token_that_a_text_is_read_at(name: str) -> None:
    forward = test_text_side.similarity(name)
    ids, mask = test_text_side.inputs(name)
    assert isinstance(forward, TextSimilarity)
    explained = ReaderRemoval(forward)
    masks = torch.zeros(1, ids.shape[1], dtype=torch.bool)
    masks[0, 2] = True
    pooled = forward.clip.text_tower.pooled(ids, mask).rows
    places = torch.zeros(len(ids), 1).long() if pooled is None else pooled[:, None]

    def embed() -> Tensor:
        return forward.clip.text_features(ids, mask)

    with torch.no_grad():
        clean = F.normalize(embed(), dim=-1)
        changed = explicit.blinded(embed, masks[0], places)
    wanted = (clean - changed) @ forward.embeddings.T
    found = explained.losses_of(ids, masks, None, mask)
    torch.testing.assert_close(found[..., 0], wanted, rtol=1e-9, atol=1e-12)
    # the token itself is never hidden from it
    itself = F.one_hot(places, ids.shape[1] + 1)[..., :-1].bool()
    assert not explained.losses_of(ids, itself, None, mask).any()
    maps = explained.attribute_targets(ids, None, mask, share=None)
    torch.testing.assert_close(maps[..., 2], wanted, rtol=1e-9, atol=1e-12)


def test_a_map_is_made_of_its_windows() -> None:
    """Whole, in equal parts, and in proportion to what direct contribution gives to the sign."""
    name = "hf_vit"
    explained, pixels = method(name), cases.images(name, torch.float64)
    windows = torch.zeros(4, 4, 4, dtype=torch.bool)
    for index, (row, column) in enumerate((y, x) for y in (1, 3) for x in (1, 3)):
        windows[index, row - 1 : row + 2, column - 1 : column + 2] = True
    losses = explained.losses_of(pixels, windows)
    direct = DirectContribution(explained.forward_func).attribute_targets(pixels)
    for share in ("direct", "cells", None):
        wanted = torch.zeros_like(direct)
        for image in range(len(pixels)):
            for target in range(cases.COUNT):
                for cell in [(y, x) for y in range(4) for x in range(4)]:
                    inside = [n for n, window in enumerate(windows) if window[cell]]
                    for n in inside:
                        loss, signed = losses[image, target, n], direct[image, target]
                        part = 1 / int(windows[n].sum())
                        own = (signed * loss.sign()).clamp(min=0)
                        if share == "direct" and own[windows[n]].sum() > 0:
                            part = own[cell] / own[windows[n]].sum()
                        part = part if share else 1
                        wanted[image, target][cell] += loss * part / len(inside)
        found = explained.attribute_targets(pixels, window=3, stride=2, share=share)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        # of one cell it is the loss, whatever sign the cell has
        found = explained.attribute_targets(pixels, window=1, share=share)
        wanted = explained.losses_of(pixels, torch.eye(16).bool().view(16, 4, 4))
        torch.testing.assert_close(found.flatten(2), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hf_vit", {}),
        ("siglip", {"readers": 3, "stride": 2}),
        ("open_clip_resnet", {}),
        ("timm_gap", {}),
        ("hf_vit", {"readers": 3}),
    ],
)
def test_vectors_give_the_map_of_any_text(name: str, options: dict[str, Any]) -> None:
    """With readers a cell takes the whole loss unless another share is named."""
    explained, pixels = method(name), cases.images(name, torch.float64)
    vectors = explained.vectors(pixels, window=3, **options)
    found = torch.einsum("bhwe,ke->bkhw", vectors, explained.forward_func.embeddings)
    options |= {} if options else {"share": None}
    wanted = explained.attribute_targets(pixels, window=3, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_masks_of_the_images_size_are_the_cells_that_they_cover() -> None:
    """By half; a mask that covers none by half is the cell that it covers most."""
    explained, pixels = method("hf_vit"), cases.images("hf_vit", torch.float64)
    side = pixels.shape[-1]
    patch = side // 4
    large, small = torch.zeros(2, side, side, dtype=torch.bool)
    large[: patch + patch // 2, :patch] = True
    small[2 * patch + 1, 2 * patch + 1] = True
    found = explained.losses_of(pixels, torch.stack([large, small]))
    wanted = explained.losses_of(pixels, masks_of("hf_vit", [0, 4], [10]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, "odd `window`"),
        ({"window": 1, "stride": 2}, "a `stride` of at most the window's 1"),
        ({"readers": 99}, "`readers` of at most 16"),
        ({"readers": -1}, "readers"),
        ({"share": "words"}, "share"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        method("hf_vit").attribute_targets(cases.images("hf_vit", torch.float64), **options)


def test_masks_of_another_shape_are_refused() -> None:
    explained, pixels = method("hf_vit"), cases.images("hf_vit", torch.float64)
    for masks in (torch.zeros(4, 4).bool(), torch.zeros(1, 4, 4), torch.zeros(2, 1, 4, 4).bool()):
        with pytest.raises(InputError, match="masks"):
            explained.losses_of(pixels, masks)
    for name in ("timm_gap", "open_clip_resnet"):
        with pytest.raises(InputError, match="has neither"):
            method(name).attribute_targets(cases.images(name, torch.float64), readers=2)


def test_a_token_whose_keys_depend_on_its_place_runs_at_its_place() -> None:
    """EVA's rotary positions: as many windows as make the sequence as long as the image's."""
    explained, pixels = method("eva02"), cases.images("eva02", torch.float64)
    masks = masks_of("eva02", *([i] for i in range(16)))
    found = explained.losses_of(pixels, masks)
    apart = torch.cat([explained.losses_of(pixels, mask[None]) for mask in masks], -1)
    torch.testing.assert_close(found, apart, rtol=1e-9, atol=1e-12)


def test_attention_that_is_written_out_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are seen, and the scale of its products is what makes them."""
    explained, pixels = method("hf_vit"), cases.images("hf_vit", torch.float64)
    words, (ids, mask) = (
        ReaderRemoval(test_text_side.similarity("hf_vit")),
        test_text_side.inputs("hf_vit"),
    )

    def both() -> list[Tensor]:
        images = explained.attribute_targets(pixels, readers=2)
        return [images, words.attribute_targets(ids, None, mask)]

    fused = both()
    models: Any = cases.built("hf_vit", torch.float64).model, test_text_side.small("hf_vit").model
    for config in (models[0].vision_model.config, models[1].text_model.config):
        monkeypatch.setattr(config, "_attn_implementation", "eager")
    # its softmax is in float32
    torch.testing.assert_close(both(), fused, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("name", "runs"), [("hf_vit", 1), ("eva02", 9)])
def test_windows_run_one_by_one_where_keys_depend_on_places(
    name: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once in one sequence, or a forward for each."""
    small = cases.BUILDERS[name]()
    explained = ReaderRemoval(running.similarity_of(small.load()))
    ran: list[int] = []

    def counted(*call: Any) -> Tensor:
        ran.append(1)
        return run_blocks(*call)

    monkeypatch.setattr(removal, "run_blocks", counted)
    explained.losses_of(cases.images(name), masks_of(name, *([i] for i in range(8))))
    assert len(ran) == runs


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_of_any_stride_cover_every_cell(stride: int) -> None:
    explained, pixels = method("hf_vit"), cases.images("hf_vit", torch.float64)
    vectors = explained.vectors(pixels, window=3, stride=stride)
    assert vectors.abs().sum(-1).all()


@pytest.mark.parametrize("name", ["hf_vit", "siglip"])
def test_no_mask_at_all_loses_nothing(name: str) -> None:
    """As where a segmentation has found nothing."""
    masks = masks_of(name, CELLS)[:0]
    losses = method(name).losses_of(cases.images(name, torch.float64), masks)
    assert losses.shape == (3, 4, 0)


def test_a_hook_on_one_token_runs_at_its_place() -> None:
    """A patch that somebody's hook halves is no other token of the reader's."""
    small = running.double()
    explained = ReaderRemoval(running.similarity_of(small.load()))
    block, pixels = running.layers_of(small.model)[1], running.images()
    mask = F.pad(torch.ones(16, 1, dtype=torch.float64), (0, 0, 1, 0), value=1)
    mask[5] = 0.5
    handle = block.register_forward_pre_hook(lambda m, args: (mask * args[0], *args[1:]))
    masks = torch.eye(16, dtype=torch.bool).view(16, 4, 4)
    together = explained.losses_of(pixels, masks)
    apart = [explained.losses_of(pixels, each[None]) for each in masks]
    handle.remove()
    torch.testing.assert_close(together, torch.cat(apart, -1), rtol=1e-9, atol=1e-12)
