"""Maps that another method made: any grid, and all that may be wrong with a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip import maps
from captum_clip.bench.data.demo import DemoScenes
from captum_clip.bench.methods import PrecomputedMaps
from captum_clip.errors import InputError
from tests.bench.cases import (
    TEXTS,
    context,
    measured,
    model,
    on_batch,
    queries,
    random_maps,
    same_rows,
)

VIT = "hf_vit"
ONE = np.ones((1, 2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("grid", "dtype"), [((1, 1), "float16"), ((3, 5), "uint8"), ((50, 70), "float64")]
)
def test_maps_stay_on_their_grid_or_are_resized_where_there_are_several(
    tmp_path: Path, grid: tuple[int, int], dtype: str
) -> None:
    """Found by sample and text, in any order of both."""
    heatmap = np.random.default_rng(0).integers(0, 100, (2, *grid)).astype(dtype)
    for number in (0, 1):
        names = np.array(TEXTS[:2])
        np.savez(tmp_path / f"image{number}.npz", maps=heatmap[::-1] + number, names=names[::-1])
    asked = queries(model(VIT))
    on_grid = PrecomputedMaps(tmp_path).maps(model(VIT), asked)
    np.savez(tmp_path / "other.npz", maps=np.ones((1, 7, 7)), names=np.array(["other"]))
    resized = PrecomputedMaps(tmp_path).maps(model(VIT), asked)
    for number in (0, 1):
        expected = torch.tensor((heatmap[number] + number).astype(np.float32))
        torch.testing.assert_close(on_grid[number], expected)
        torch.testing.assert_close(resized[number], maps.upsample(expected, (32, 32)))


def test_no_map_is_read_from_outside_of_the_folder(tmp_path: Path) -> None:
    """A stranger's list of samples may name one "../image0"."""
    random_maps(tmp_path, ["image0"], TEXTS)
    method = PrecomputedMaps(random_maps(tmp_path / "mine", ["image1"], TEXTS))
    clip = model(VIT)
    asked = queries(clip).select([0, 1])
    for outside in ("../image0", str(tmp_path / "image0")):
        renamed = replace(asked, names=(outside, "image1"))
        missing = method.maps(clip, renamed).isnan().flatten(1).all(1)
        assert missing.tolist() == [True, False]
        assert method.failure_reason(outside, TEXTS[0]) == f"there is no file {outside}.npz"


def test_a_folder_is_a_method_of_its_name(tmp_path: Path) -> None:
    method = PrecomputedMaps(random_maps(tmp_path / "LeGrad", ["a", "cats/b"], TEXTS))
    assert method.name == "LeGrad"
    assert method.what == "maps read from files, 2 of them, on a grid of 5 x 3"
    assert not any([method.signed, method.baseline, method.costly])
    assert method.attribute(model(VIT), torch.ones(1, 1)) is None


def test_any_map_below_zero_makes_all_signed(tmp_path: Path) -> None:
    clip, asked = model(VIT), queries(model(VIT))
    positive = PrecomputedMaps(random_maps(tmp_path / "p", asked.names, TEXTS))
    assert positive.negative_maps(clip, asked, positive.maps(clip, asked)) is None
    random_maps(tmp_path / "s", asked.names[:1], TEXTS)
    signed = PrecomputedMaps(random_maps(tmp_path / "s", asked.names, TEXTS, offset=-0.5))
    raw = signed.maps(clip, asked)
    against = signed.negative_maps(clip, asked, raw)
    assert against is not None
    assert torch.equal(against, (-raw).clamp(min=0))
    assert against.any()


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    """A file, a name, a number: NaN in its place, and the reason."""
    heatmap = np.array([1, np.nan, np.inf, 1e300])[:, None, None] * ONE
    np.savez(tmp_path / "image0.npz", maps=heatmap, names=np.array(["fine", "nan", "inf", "large"]))
    method = PrecomputedMaps(tmp_path)
    clip = model(VIT)
    asked = queries(clip, ("fine", "nan", "inf", "large", "lost")).select([0, 1, 2, 3, 4, 0])
    names = ("image0",) * 5 + ("image9",)
    asked = type(asked)(asked.pixels, asked.embeddings, names, asked.texts, asked.numbers)
    got = torch.isfinite(method.maps(clip, asked)).flatten(1).all(1)
    assert got.tolist() == [True, *[False] * 5]
    reasons = [method.failure_reason(n, t) for n, t in zip(names, asked.texts, strict=True)][1:]
    assert reasons == [
        *(f"the map of {text!r} holds NaN or infinity" for text in ("nan", "inf", "large")),
        "image0.npz has no map of 'lost'",
        "there is no file image9.npz",
    ]


def written(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def garbage(path: Path) -> None:
    path.write_bytes(b"no archive")


def cut(path: Path) -> None:
    written(path, maps=ONE, names=np.array(["a"]))
    path.write_bytes(path.read_bytes()[:-20])


def lone(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, ONE)


READ, EXPECTED = (
    "but reading it failed",
    "expected maps (K, h, w) of numbers and names (K,) of text",
)
WRONG: dict[str, tuple[Any, str]] = {
    "garbage": (garbage, READ),
    "empty": (lambda path: path.write_bytes(b""), READ),
    "cut": (cut, READ),
    "an array": (lone, READ),
    "no names": (lambda path: written(path, maps=ONE), READ),
    "no maps": (lambda path: written(path, names=np.array(["a"])), READ),
    "objects": (lambda path: written(path, maps=ONE, names=np.array(["a"], object)), READ),
    "one map flat": (lambda path: written(path, maps=ONE[0], names=np.array(["a"])), EXPECTED),
    "channels": (lambda path: written(path, maps=ONE[None], names=np.array(["a"])), EXPECTED),
    "too few": (lambda path: written(path, maps=ONE, names=np.array(["a", "b"])), EXPECTED),
    "one name": (lambda path: written(path, maps=ONE, names=np.array("a")), EXPECTED),
    "numbers": (lambda path: written(path, maps=ONE, names=np.array([1])), EXPECTED),
    "text": (lambda path: written(path, maps=ONE.astype("U9"), names=np.array(["a"])), EXPECTED),
    "complex": (lambda path: written(path, maps=ONE + 1j, names=np.array(["a"])), EXPECTED),
    "no pixels": (lambda path: written(path, maps=ONE[:, :0], names=np.array(["a"])), EXPECTED),
    "twice": (
        lambda path: written(path, maps=np.repeat(ONE, 2, 0), names=np.array(["a", "a"])),
        "expected each name once",
    ),
}


def test_a_wrong_file_is_refused_at_once(tmp_path: Path) -> None:
    """Before any map is asked for, also where another file shows that maps are signed."""
    for name, (write, message) in WRONG.items():
        folder = tmp_path / name
        folder.mkdir()
        written(folder / "a.npz", maps=-ONE, names=np.array(["a"]))
        write(folder / "wrong.npz")
        with pytest.raises(InputError, match=rf"wrong\.npz: .*{re.escape(message)}"):
            PrecomputedMaps(folder)


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.npy").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for folder in ("lost", "empty", "file"):
        with pytest.raises(InputError, match=r"no such folder, or no \.npz file in it; expected"):
            PrecomputedMaps(tmp_path / folder)


def test_the_same_maps_give_the_same_rows(tmp_path: Path) -> None:
    """Those of last-grad, at the size of the image: exact but for rounding in single precision."""
    clip, data = model("demo/vit"), DemoScenes(2)
    every = context(clip, data)
    own = on_batch(every, "last-grad")
    asked, raw = own.regions, own.raw
    for sample in {*asked.names}:
        places = [i for i, name in enumerate(asked.names) if name == sample]
        texts = np.array([asked.texts[place] for place in places])
        written(tmp_path / f"{sample}.npz", maps=raw[places].numpy(), names=texts)
    got = measured("localization", every, PrecomputedMaps(tmp_path))
    for metric, expected in measured("localization", every, "last-grad").items():
        same_rows(got[metric], expected, 0 if "pointing" in metric else 1e-6)
