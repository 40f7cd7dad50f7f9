"""The mosaic game of the harness: words, whole captions, and the bound of the latter."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any

import pytest
import torch

from captum_clip import attr, metrics, targets
from captum_clip.bench.data.base import NamedRegion, Sample
from captum_clip.bench.data.demo import DemoMosaics
from captum_clip.bench.methods import method_of, methods_for
from tests.bench.cases import (
    KINDS,
    Listed,
    Rows,
    context,
    direct,
    half,
    measured,
    model,
    picture,
    rows,
    same_rows,
)

CORNERS = ("top left", "top right", "bottom left", "bottom right")


def mosaic(name: str, caption: str, *words: str) -> Sample:
    regions = [NamedRegion(word, half(CORNERS[place])) for place, word in enumerate(words)]
    return Sample(name, picture(len(words)), tuple(regions), caption=caption)


@lru_cache
def found(name: str, batch_size: int = 32) -> dict[str, Rows]:
    every = context(model(name), DemoMosaics(4), batch_size=batch_size)
    return measured("words", every, KINDS[name][0])


@pytest.mark.parametrize("name", list(KINDS))
def test_words_and_captions_are_the_game_of_their_maps(name: str) -> None:
    """Captions of one to four words; a word's target is what it adds to its caption."""
    clip, kind = model(name), KINDS[name][1]
    for number in range(4):
        sample = DemoMosaics(4).read(number)
        assert sample.caption is not None
        [pixels] = clip.preprocess([sample.image])
        whole = direct(clip, kind, pixels, targets.text(clip, sample.caption).embeddings[0])
        values: dict[str, list[Any]] = defaultdict(list)
        for region in sample.regions:
            mask = torch.from_numpy(region.mask)
            row = targets.words(clip, sample.caption, [region.text]).embeddings[0]
            raw = direct(clip, kind, pixels, row)
            against = direct(clip, kind, pixels, -row).clamp(min=0)
            signed = raw if name == "demo/resnet" else raw.clamp(min=0) - against
            values["words"].append(metrics.word_mosaic_game(signed, mask))
            values["word_energy"].append(metrics.energy_inside(raw.clamp(min=0), mask))
            values["caption"].append(metrics.energy_inside(whole.clamp(min=0), mask))
            values["word_pointing"].append(metrics.pointing_game(raw.clamp(min=0), mask))
        count = len(sample.regions)
        assert count == number + 1
        for metric, expected in values.items():
            owners = [number] * count
            same_rows(found(name)[f"{metric}_{count}"], rows(owners, expected), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_no_map_of_a_whole_caption_exceeds_its_bound(name: str) -> None:
    """For every method: one positive map shares its mass among the n cells."""
    clip = model(name)
    words = ("horse", "dog", "boat", "tree")
    data = Listed(*(mosaic(f"{n}", " and ".join(words[:n]), *words[:n]) for n in (1, 2, 3, 4)))
    every = context(clip, data)
    for method in methods_for(clip):
        got = measured("words", every, method)
        for count in (1, 2, 3, 4):
            one = got[f"caption_{count}"]
            assert len(one.values) == count, method
            assert one.values.sum() <= 1 + 1e-5, method
        assert got["caption_4"].values.mean() == pytest.approx(0.25, abs=1e-5), method


def test_an_empty_map_of_a_word_scores_chance() -> None:
    """A row for every word, so that it counts like any other map."""
    clip = model("hf_vit")
    data = context(clip, Listed(mosaic("a", "horse and dog", "horse", "dog")))
    nothing = method_of("uniform", clip)
    nothing.draw = lambda grid, number: torch.zeros(grid)  # type: ignore[attr-defined]
    for signed, words in ((False, 0.25), (True, 0.5)):
        nothing.signed = signed
        got = measured("words", data, nothing)
        expected = {"words_2": words, "word_energy_2": 0.25, "word_pointing_2": 0.25}
        for metric, value in {**expected, "caption_2": 0.25}.items():
            assert got[metric].values.tolist() == [[value], [value]], metric


def test_a_word_is_found_as_a_whole() -> None:
    """ "cat" stands in "catalog", which comes first and is another word."""
    clip = model("hf_vit")
    caption = "a catalog beside a cat"
    sample = mosaic("a", caption, "cat", "catalog")
    got = measured("words", context(clip, Listed(sample)), "last-grad")["words_2"]
    [pixels] = clip.preprocess([sample.image])
    encoded = clip.encode_text([caption, "a catalog beside a", "a beside a cat"]).detach()
    expected = []
    for place, region in enumerate(sample.regions):
        row = torch.nn.functional.normalize(encoded[0] - encoded[place + 1], dim=0)
        heatmap = [
            direct(clip, attr.LastGradAttention, pixels, s * row).clamp(min=0) for s in (1, -1)
        ]
        mask = torch.from_numpy(region.mask)
        expected.append(metrics.word_mosaic_game(heatmap[0] - heatmap[1], mask))
    same_rows(got, rows([0, 0], expected), 1e-4)
