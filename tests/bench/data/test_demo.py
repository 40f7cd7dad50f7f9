"""The demo scenes as data sets: held out, exact, drawn anew each time."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip.bench.data.demo import DemoMosaics, DemoObjects, DemoScenes
from captum_clip.demo.catalog import CONTEXT_LENGTH, NOUNS, DemoTokenizer, article
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError

KINDS = [DemoScenes, DemoObjects, DemoMosaics]
CELL = 112


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_demo_data_are_lawful(kind, lawful):
    """Names, masks, labels, pickles and identities are what every data set's are."""
    lawful(kind(4, seed=3))


def test_scenes_are_those_of_the_figures():
    """Seed 0 draws the scenes that the demo models' own figures stand on."""
    data = DemoScenes(5)
    for index, scene in enumerate(draw_scene(seed, count=2 + seed % 2) for seed in range(5)):
        sample = data.read(index)
        assert np.array_equal(np.asarray(sample.image), scene.image)
        assert [region.text for region in sample.regions] == [
            article(thing.noun) for thing in scene.objects
        ]
        for region, thing in zip(sample.regions, scene.objects, strict=True):
            assert np.array_equal(region.mask, thing.mask)
    assert [len(data.read(index).regions) for index in range(5)] == [2, 3, 2, 3, 2]


@pytest.mark.parametrize("index", range(2))
def test_subsets_are_exact(index):
    """Adding an object changes its own pixels and no other; bit i of a subset is region i."""
    sample = DemoScenes(6).read(index)
    count = len(sample.regions)
    scene = draw_scene(index, count=count)
    assert len(sample.subsets) == 2**count
    assert np.array_equal(pixels(sample.subsets[-1]), pixels(sample.image))
    for chosen in range(2**count):
        for position, region in enumerate(sample.regions):
            if chosen >> position & 1:
                continue
            with_it = chosen | 1 << position
            before, after = pixels(sample.subsets[chosen]), pixels(sample.subsets[with_it])
            changed = (before != after).any(-1)
            absent = [other for other in range(count) if not with_it >> other & 1]
            shown = draw_scene(index, count=count, without=absent)
            [own] = [thing.mask for thing in shown.objects if article(thing.noun) == region.text]
            assert changed.any()
            assert not changed[~own].any()
    empty = pixels(sample.subsets[0])
    assert np.array_equal(empty[scene.background_mask], scene.image[scene.background_mask])
    for region in sample.regions:
        assert (empty != pixels(sample.image)).any(-1)[region.mask].mean() > 0.9


def test_references_show_the_noun_alone_in_another_scene(monkeypatch):
    """A reference is a held-out scene with this noun and nothing else, of a seed of its own."""
    calls = []

    def spy(seed, **options):
        scene = draw_scene(seed, **options)
        calls.append((seed, options, scene))
        return scene

    monkeypatch.setattr("captum_clip.bench.data.demo.scenes.draw_scene", spy)
    data = DemoScenes(4)
    seen = set()
    for index in range(4):
        calls.clear()
        sample = data.read(index)
        drawn = {scene.image.tobytes(): (seed, scene) for seed, _, scene in calls}
        assert all(options.get("split", "test") == "test" for _, options, _ in calls)
        for region in sample.regions:
            seed, scene = drawn[np.asarray(region.reference).tobytes()]
            assert [article(thing.noun) for thing in scene.objects] == [region.text]
            assert seed >= 10**12
            seen.add(seed)
    assert len(seen) == 10


def test_objects_are_labeled_with_their_first_noun():
    """The label counts the classes, which are all nouns with their article."""
    data = DemoObjects(20)
    assert data.classes == tuple(article(noun) for noun in NOUNS)
    for index in range(20):
        sample = data.read(index)
        assert len(sample.regions) == 1 + index % 3
        assert sample.label == data.classes.index(sample.regions[0].text)
    assert len({data.read(index).label for index in range(20)}) > 10


def test_mosaics_name_one_to_four_cells_in_turn():
    """Captions name n = 1, 2, 3, 4, 1 ... different nouns, whose masks are different cells."""
    data = DemoMosaics(9)
    for index in range(9):
        sample = data.read(index)
        assert sample.image.size == (2 * CELL, 2 * CELL)
        words = [region.text for region in sample.regions]
        assert len(set(words)) == 1 + index % 4
        assert sample.caption == " and ".join(map(article, words))
        assert DemoTokenizer().count(sample.caption) <= CONTEXT_LENGTH
        cells = np.stack([region.mask for region in sample.regions])
        assert cells.sum(0).max() == 1
        for cell in cells:
            rows, columns = (np.flatnonzero(cell.any(axis)) for axis in (1, 0))
            assert rows[0] % CELL == columns[0] % CELL == 0
            assert cell.sum() == len(rows) * len(columns) == CELL**2


def test_mosaics_show_the_named_noun_whole_in_its_cell(monkeypatch):
    """Each cell is a window of a held-out scene with one object, and all of the object is in it."""
    calls = []

    def spy(seed, **options):
        scene = draw_scene(seed, **options)
        calls.append(scene)
        return scene

    monkeypatch.setattr("captum_clip.bench.data.demo.scenes.draw_scene", spy)
    data = DemoMosaics(12)
    for index in range(12):
        calls.clear()
        sample = data.read(index)
        image = np.asarray(sample.image)
        tiles = [image[r : r + CELL, c : c + CELL] for r in (0, CELL) for c in (0, CELL)]
        nouns = []
        for tile, scene in zip(tiles, calls, strict=True):
            [thing] = scene.objects
            windows = np.lib.stride_tricks.sliding_window_view(scene.image, (CELL, CELL), (0, 1))
            same = (windows[:, :, :, :8, :8] == tile[:8, :8].transpose(2, 0, 1)).all((2, 3, 4))
            whole = [
                (top, left)
                for top, left in zip(*np.nonzero(same), strict=True)
                if np.array_equal(scene.image[top : top + CELL, left : left + CELL], tile)
            ]
            [(top, left)] = whole
            assert thing.mask[top : top + CELL, left : left + CELL].sum() == thing.mask.sum()
            nouns.append(thing.noun)
        for region in sample.regions:
            row, column = (int(np.flatnonzero(region.mask.any(axis))[0]) for axis in (1, 0))
            assert nouns[row // CELL * 2 + column // CELL] == region.text


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_the_same_samples_again_and_other_seeds_others(kind):
    """What is drawn depends on seed and place alone."""
    data, longer, other = kind(3), kind(8), kind(3, seed=1)
    strangers = [np.asarray(other.read(index).image).tobytes() for index in range(3)]
    for index in range(3):
        image = np.asarray(data.read(index).image)
        assert np.array_equal(image, np.asarray(longer.read(index).image))
        assert image.tobytes() not in strangers
    assert data.identity() == kind(3).identity()
    assert data.identity() != other.identity()


def test_numbers_out_of_range_are_refused():
    """The message names the class, the argument and the value."""
    for number, seed, message in (
        (0, 0, "number of 1 or more, got 0"),
        (True, 0, "number of 1 or more, got True"),
        (1, -1, "seed of 0 or more, got -1"),
        (100_001, 0, "number up to 100000"),
    ):
        with pytest.raises(InputError, match=f"DemoScenes: expected {message}"):
            DemoScenes(number, seed=seed)
