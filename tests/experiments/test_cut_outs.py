"""Pictures of cut-outs: what is removed is gone, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captum_clip.bench.data import open_data
from captum_clip.demo.scenes import load_sprites
from tests.bench.data.writing import noise, save
from tests.experiments import experiment

cut_outs = experiment("cut_outs")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Cut-outs, two of one text, backgrounds, and where the pictures go."""
    for number, path in enumerate(("a horse", "a_dog/1", "a_dog/2")):
        sprite = [*load_sprites().values()][number][0]
        save(sprite, tmp_path / f"cut/{path}.png")
    for seed in range(2):
        save(noise((90, 130), seed), tmp_path / f"grounds/{seed}.jpg")
    return tmp_path / "cut", tmp_path / "grounds", tmp_path / "made"


def test_pictures_differ_where_something_is_gone(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line makes a folder that is read; the same again by its seed."""
    options = ["--images", "4", "--objects", "2", "--size", "96"]
    monkeypatch.setattr("sys.argv", ["cut_outs.py", *map(str, folders), *options])
    cut_outs.main()
    data = open_data(f"samples:{folders[2]}/samples.jsonl")
    assert (len(data), data.classes) == (4, ("a dog", "a horse"))
    for sample in map(data.read, range(4)):
        nothing, *_, whole = (np.asarray(image) for image in sample.subsets)
        assert np.array_equal(whole, np.asarray(sample.image))
        changed = (nothing != whole).any(-1)
        shown = np.any([region.mask for region in sample.regions], axis=0)
        assert (changed & shown).sum() > 0.9 * shown.sum()
        for index, region in enumerate(sample.regions):
            alone = np.asarray(sample.subsets[1 << index])
            assert (alone != nothing).any(-1)[region.mask].mean() > 0.9
            assert not (alone != nothing).any(-1)[~changed].any()
    first = np.asarray(data.read(3).image)
    cut_outs.make(*folders, images=4, objects=2, size=96)
    assert np.array_equal(np.asarray(data.read(3).image), first)


def test_what_cannot_be_pasted_is_refused(folders: tuple[Path, Path, Path]) -> None:
    with pytest.raises(SystemExit, match="expected 1 to 2 objects, got 3"):
        cut_outs.make(*folders, objects=3)
    with pytest.raises(SystemExit, match="2 objects do not fit side by side"):
        cut_outs.make(*folders, images=1, size=64, scales=(1, 1))
    save(noise(), folders[0] / "a_horse.png")
    (folders[0] / "a horse.png").unlink()
    with pytest.raises(SystemExit, match=r"a_horse\.png: expected a cut-out with transparent"):
        cut_outs.make(*folders, images=1, size=64)
    with pytest.raises(SystemExit, match=r"nowhere: expected images, found none"):
        cut_outs.make(folders[0], folders[1] / "nowhere", folders[2])
