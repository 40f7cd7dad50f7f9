"""An index of images: its scores, order and maps are those of the model; builds go on."""

from __future__ import annotations

import csv
import os
import shutil
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.apps.search import ImageIndex
from captum_clip.apps.search_table import RowMaker
from captum_clip.demo import MODELS
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, TargetError
from captum_clip.targets import EmotionProbe
from tests import builders
from tests.figure_parts import lines_of
from tests.search.conftest import COUNT, draw

TOWERS: dict[str, Any] = {
    "hf_vit": builders.hf_vit,
    "siglip": builders.siglip,
    "open_clip_vit": builders.open_clip_vit,
    "mean": builders.open_clip_vit_mean,
    "coca": builders.coca,
    "flava": builders.flava,
    "resnet": builders.open_clip_resnet,
    "convnext": builders.timm_convnext,
    "align": builders.align,
}


@pytest.fixture
def read(monkeypatch):
    """The files that were read, as long as they are counted."""
    names = list[str]()
    whole = RowMaker.table

    def table(self, files, readers=0):
        names.extend(file.file for file in files)
        return whole(self, files, readers)

    monkeypatch.setattr(RowMaker, "table", table)
    return names


def cosines(clip, folder, text):
    """Relative path -> score, one image at a time."""
    forward, found = ClipSimilarity(clip, targets.text(clip, text)), {}
    for path in sorted(folder.rglob("*.png")):
        with torch.no_grad():
            found[path.relative_to(folder).as_posix()] = forward(clip.preprocess(path))[0].tolist()
    return found


def test_the_best_images_come_first_by_the_models_own_scores(clip, folder, index):
    """Exactly; what cannot be read is told."""
    scores = cosines(clip, folder, "a horse")
    found = index.search("a horse", top=4)
    assert list(found.files) == sorted(scores, key=lambda name: -scores[name][0])[:4]
    np.testing.assert_allclose(found.scores, [scores[name][0] for name in found.files], atol=1e-6)
    assert (found.compared, len(index), [*index.skipped]) == (COUNT, COUNT, ["broken.jpg"])
    assert found.explanation.names == ("a horse",)
    every = index.search("a horse", top=100)
    assert list(every.files) == sorted(scores, key=lambda name: -scores[name][0])


def test_several_targets_count_by_their_weights(clip, folder, index):
    """The mean of their cosines, by default each the same; each has its map."""
    scores = cosines(clip, folder, ["a horse", "a dog"])
    for weights, shares in ((None, (0.5, 0.5)), ((3, 1), (0.75, 0.25)), ((0, 2), (0, 1))):
        total = {name: np.dot(of, shares) for name, of in scores.items()}
        found = index.search(["a horse", "a dog"], top=5, weights=weights)
        assert list(found.files) == sorted(total, key=lambda name: -total[name])[:5]
        np.testing.assert_allclose(found.scores, [total[name] for name in found.files], atol=1e-6)
        wanted = [scores[name] for name in found.files]
        np.testing.assert_allclose(found.explanation.scores, wanted, atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("name", TOWERS)
def test_maps_are_those_of_the_method_within_the_stated_error(tmp_path, name, precision):
    """Half a step of the scale in each number of a vector; scores are exact."""
    clip = TOWERS[name]().load()
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    index = ImageIndex.build(clip, paths, tmp_path / "index.lance", precision=precision)
    size = index.table.schema.field("vector").type.list_size
    target = targets.embedding(torch.randn(2, size, generator=torch.Generator().manual_seed(0)))
    found = index.explanation(paths, target, sign="both")
    forward = ClipSimilarity(clip, target)
    pixels = clip.preprocess(paths)
    exact = DirectContribution(forward).attribute_targets(pixels)
    signed = found.maps["positive"] - found.maps["negative"]
    rows = index.table.search().select(["file", "scale"]).limit(None).to_arrow().to_pydict()
    scale = dict(zip(rows["file"], rows["scale"], strict=True))
    lengths = target.embeddings.abs().sum(1)  # (K,)
    step = {"int8": 0.5, "float16": 2**-11}[precision]
    for number, path in enumerate(paths):
        bound = step * scale[path.as_posix()] * lengths[:, None, None] * 1.001 + 1e-7
        error = (signed[number] - exact[number]).abs()
        assert (error <= bound).all()
        assert error.max() > 0  # it is not the map itself
    torch.testing.assert_close(found.scores, forward(pixels).detach(), atol=1e-6, rtol=0)


def test_a_build_brings_an_index_up_to_date(clip, folder, index, read, tmp_path):
    """What is new or changed is read, nothing else; what is gone is in it no more."""
    ImageIndex.build(clip, folder, tmp_path / "index.lance")
    assert read == ["broken.jpg"]  # which may be whole now
    read.clear()
    draw(folder / "new.png", 100)
    draw(folder / "0" / "it's 2.png", 101)
    (folder / "1" / "it's 3.png").unlink()
    again = ImageIndex.build(clip, folder, tmp_path / "index.lance")
    assert sorted(read) == ["0/it's 2.png", "broken.jpg", "new.png"]
    wanted = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert again.files == wanted == index.files
    scores = cosines(clip, folder, "a horse")
    found = index.search("a horse", top=100)  # one that was opened before
    assert list(found.files) == sorted(scores, key=lambda name: -scores[name][0])


def test_a_folder_that_was_moved_keeps_its_index(clip, folder, index, read, tmp_path):
    """And another folder does not take its place."""
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(InputError, match=r"another index \(it is of .*images\); name a new one"):
        ImageIndex.build(clip, tmp_path / "other", tmp_path / "index.lance")
    folder.rename(tmp_path / "moved")
    ImageIndex.build(clip, tmp_path / "moved", tmp_path / "index.lance")
    assert read == ["broken.jpg"]
    found = ImageIndex.open(tmp_path / "index.lance", clip).search("a horse", top=1)
    assert found.explanation.photos[0] == tmp_path / "moved" / found.files[0]


def test_a_stop_loses_what_was_at_work_alone(clip, folder, read, tmp_path):
    """Interrupted between two chunks."""

    def stop(done: int, total: int, _: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(clip, folder, tmp_path / "index.lance", chunk_size=2, progress=stop)
    first = [*read]
    read.clear()
    index = ImageIndex.build(clip, folder, tmp_path / "index.lance", chunk_size=2)
    assert {*first}.isdisjoint({*read} - {"broken.jpg"})
    assert len(first) + len(read) == COUNT + 1
    assert index.files == sorted(cosines(clip, folder, "a horse"))


@pytest.mark.slow
def test_ray_makes_the_same_index(folder, tmp_path):
    """In processes that load the model by its name."""
    clip = load_clip("demo/vit")
    computing: Any = {"engine": "ray", "workers": 2, "threads": 1, "chunk_size": 4}
    here = ImageIndex.build(clip, folder, tmp_path / "here.lance")
    there = ImageIndex.build(clip, folder, tmp_path / "there.lance", **computing)
    assert (there.files, there.skipped) == (here.files, here.skipped)
    one, other = (index.explanation(here.files, "a horse") for index in (here, there))
    torch.testing.assert_close(other.scores, one.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.maps["positive"], one.maps["positive"], atol=1e-4, rtol=0)
    small = builders.hf_vit().load()
    with pytest.raises(InputError, match=r"neither a known name|no such"):
        ImageIndex.build(small, folder, tmp_path / "no.lance", **computing)


def test_images_that_are_gone_or_changed_are_told(clip, folder, index):
    """The others are shown; one that was asked for by name is an error."""
    first, second, *others = index.search("a horse", top=5).files
    (folder / first).unlink()
    draw(folder / second, 200)
    found = index.search("a horse", top=5)
    assert list(found.files) == others
    assert "no image file" in found.skipped[first]
    assert found.skipped[second] == "it has changed; build the index again"
    with pytest.raises(InputError, match="there is no image file"):
        index.explanation(first, "a horse")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="cannot be reached"):
        index.search("a horse")


def test_a_text_and_an_emotion(folder, tmp_path):
    """Both are directions in one space."""
    clip = load_clip("demo/vit")
    probe = EmotionProbe.load("captum_clip/demo/emotions/vit.safetensors")
    both = targets.concatenate([targets.text(clip, "grass"), targets.emotion(clip, probe, "awe")])
    index = ImageIndex.build(clip, folder, tmp_path / "index.lance")
    found = index.search(both, weights=(0.25, 0.75))
    paths = [folder / name for name in found.files]
    forward = ClipSimilarity(clip, both)(clip.preprocess(paths)).detach()
    torch.testing.assert_close(found.explanation.scores, forward, atol=1e-6, rtol=0)
    totals = (forward @ torch.tensor([0.25, 0.75])).numpy()
    np.testing.assert_allclose(found.scores, totals, atol=1e-6)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_save_writes_a_table_and_a_figure(index, tmp_path, sign):
    """rank, file, score and that of each text."""
    found = index.search(["a horse", "a dog"], top=COUNT, sign=sign)
    assert list(found.explanation.maps) == (["positive", "negative"] if sign == "both" else [sign])
    table, figure = found.save(tmp_path / "new" / "out")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["rank", "file", "score", "score: a horse", "score: a dog"]
    assert [row["file"] for row in rows] == list(found.files)
    np.testing.assert_allclose([float(row["score"]) for row in rows], found.scores, atol=1e-6)
    dogs = [float(row["score: a dog"]) for row in rows]
    np.testing.assert_allclose(dogs, found.explanation.scores[:, 1], atol=1e-6)
    with Image.open(figure) as image:
        image.verify()
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["search.csv", "search.png"]


def test_another_model_or_setting_is_refused(clip, folder, index, tmp_path):
    """Nothing is lost."""
    path, other = tmp_path / "index.lance", builders.hf_vit(seed=1).load()
    with pytest.raises(InputError, match="embeds texts differently"):
        ImageIndex.open(path, other)
    with pytest.raises(InputError, match="the model has other weights"):
        ImageIndex.build(other, folder, path)
    with pytest.raises(InputError, match=r"another index \(precision was int8 and is float16\)"):
        ImageIndex.build(clip, folder, path, precision="float16")
    with pytest.raises(InputError, match="method was direct and is direct:depth=token"):
        ImageIndex.build(clip, folder, path, method="direct:depth=token")
    assert len(ImageIndex.open(path, clip)) == COUNT


def test_what_is_no_index_is_refused(clip, folder, index, tmp_path):
    """None, a foreign table, a damaged one, a name without its ending."""
    import lancedb

    with pytest.raises(InputError, match=r"expected an index, got .*makes one"):
        ImageIndex.open(tmp_path / "no" / "none.lance", clip)
    assert not (tmp_path / "no").exists()
    lancedb.connect(tmp_path).create_table("foreign", [{"file": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(InputError, match="expected a table of the kind 'captum_clip index 3'"):
        ImageIndex.open(tmp_path / "foreign.lance", clip)
    with pytest.raises(InputError, match=r"an index that ends in \.lance"):
        ImageIndex.build(clip, folder, tmp_path / "index")
    for file in (tmp_path / "index.lance").rglob("*.lance"):
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="delete it and build it again"):
        index.search("a horse")
    with pytest.raises(InputError, match=r"named by letters, digits.* got 'my index\.lance'"):
        ImageIndex.build(clip, folder, tmp_path / "my index.lance")
    for file in (tmp_path / "index.lance" / "_versions").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"is not an index.*; name another"):
        ImageIndex.open(tmp_path / "index.lance", clip)
    shutil.rmtree(tmp_path / "index.lance")
    with pytest.raises(InputError, match="cannot be read or written"):
        index.search("a horse")


BAD: list[Any] = [
    (("a horse",), {"top": 0}, InputError, "top of 1 or more, got 0"),
    (("a horse",), {"sign": "neither"}, InputError, "a sign of positive, negative, both"),
    (("a horse",), {"weights": (1, 2)}, InputError, "expected 1 weights"),
    (("a horse",), {"weights": (-1,)}, InputError, "none below zero"),
    (("a horse",), {"weights": "x"}, InputError, "expected 1 weights"),
    ((" ",), {}, TargetError, "is empty"),
    ((targets.embedding(torch.ones(3)),), {}, TargetError, "expected a target of"),
]


def test_what_cannot_be_searched_is_refused(index) -> None:
    """Each with its reason."""
    for arguments, options, error, message in BAD:
        with pytest.raises(error, match=message):
            index.search(*arguments, **options)


def test_images_elsewhere_are_known_by_url_and_size(clip, tmp_path):
    """Another URL with files of the same names is another folder."""
    store, path = fsspec.filesystem("memory"), tmp_path / "index.lance"
    for seed, name in enumerate(["a/0.png", "a/1.png", "b/0.png"]):
        store.pipe(f"/{name}", draw(tmp_path / "one.png", seed).read_bytes())
    index = ImageIndex.build(clip, "memory://a", path)
    with pytest.raises(InputError, match="indexes images at memory://a; to read"):
        ImageIndex.build(clip, "memory://b", path)
    store.pipe("/a/1.png", draw(tmp_path / "one.png", 3).read_bytes() + b"0")
    found = index.search("a horse")
    assert (found.files, [*found.skipped]) == (("0.png",), ["1.png"])
    found = ImageIndex.build(clip, "memory://a", path).search("a horse")
    score = cosines(clip, tmp_path, "a horse")["one.png"]
    assert found.scores[found.files.index("1.png")] == pytest.approx(score[0], abs=1e-6)


def test_a_model_from_a_folder_is_named_again(folder, tmp_path, monkeypatch):
    """By its whole path, with the size of its images; nobody else may send a search there."""
    shutil.copytree(MODELS["demo/vit"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    ImageIndex.build(load_clip("model", image_size=128), folder, "index.lance")
    monkeypatch.chdir("/")
    path, model = tmp_path / "index.lance", str(tmp_path / "model")
    with pytest.raises(InputError, match=rf"index\.lance names .* yourself: `model='{model}'`"):
        ImageIndex.open(path)
    found = ImageIndex.open(path, model).search("grass", 10**30)
    assert (len(found.files), found.explanation.images.shape[-1]) == (COUNT, 128)


def test_the_image_tower_is_not_run_by_a_search(clip, folder, index, monkeypatch):
    """Nor is anything of the model changed."""
    monkeypatch.setattr(clip.model.vision_model, "forward", lambda *_, **__: pytest.fail("was run"))
    assert len(index.search("a horse").files) == COUNT
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_a_model_for_larger_images_is_found_again(folder, tmp_path):
    """By its name, for images of that size."""
    clip = load_clip("demo/vit", image_size=128)
    index = ImageIndex.build(clip, folder, tmp_path / "index.lance")
    again = ImageIndex.open(tmp_path / "index.lance")
    one, other = (each.search("a horse", top=1).explanation for each in (index, again))
    assert other.images.shape[-2:] == (128, 128)
    torch.testing.assert_close(other.images, one.images)


def test_a_search_says_which_texts_fit_its_images_badly(tmp_path):
    for seed in range(3):
        Image.fromarray(draw_scene(seed, objects=["horse"]).image).save(tmp_path / f"{seed}.png")
    clip = load_clip("demo/vit")
    index = ImageIndex.build(clip, tmp_path, tmp_path / "index.lance")
    assert index.search("a horse").doubts == ()
    found = index.search(["a horse", "a zebra"])
    [doubt] = found.doubts
    assert doubt.startswith("“a zebra” fits 3 of these 3 images no better than unrelated texts")
    assert doubt in " ".join(" ".join(lines_of(found.plot())).split())
    assert index.search(targets.text(clip, "a zebra")).doubts == ()


def test_what_cannot_be_built_is_refused(clip, folder, tmp_path):
    """Before an image is read, and without a trace."""
    path = tmp_path / "new.lance"
    cases: list[Any] = [
        (clip, folder, {"method": "rollout"}, InputError, "direct without `per`"),
        (clip, folder, {"method": "direct:per=head"}, InputError, "direct without `per`"),
        (clip, folder, {"precision": "int4"}, InputError, "precision of int8, float16"),
        (clip, folder, {"chunk_size": 0}, InputError, "`chunk_size` of 1 or more"),
        (clip, folder / "none", {}, InputError, "there is no folder"),
        (clip, [], {}, InputError, "no file was given"),
        (clip, None, {}, InputError, "expected one value or several"),
        ("demo/vit", folder, {}, InputError, "an adapter from load_clip"),
        (clip, [folder / "broken.jpg"], {}, InputError, r"none of the 1 images .*broken\.jpg"),
    ]
    for model, images, options, error, message in cases:
        with pytest.raises(error, match=message):
            ImageIndex.build(model, images, path, **options)
        shutil.rmtree(path, ignore_errors=True)


def test_a_build_that_stopped_before_its_first_image_goes_on(clip, folder, tmp_path):
    """It is an index, of no image yet, and its settings may still be others."""
    path = tmp_path / "index.lance"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(clip, folder, path, progress=stop)
    with pytest.raises(InputError, match="it holds no image"):
        ImageIndex.open(path, clip).search("a horse")
    [_] = ImageIndex.open(path, clip).table.list_versions()  # at any moment it knew what it is
    with pytest.raises(InputError, match="expected images of the index, got \\[\\]"):
        ImageIndex.open(path, clip).explanation([], "a horse")
    index = ImageIndex.build(clip, folder, path, method="direct:depth=token")
    assert len(index) == COUNT


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision_are_searched_too(folder, tmp_path, dtype):
    """Vectors and texts meet in float32."""
    index = ImageIndex.build(load_clip("demo/vit", dtype=dtype), folder, tmp_path / "index.lance")
    found = index.search(["grass", "sky"], 2, sign="both")
    wanted = load_clip("demo/vit").preprocess([folder / name for name in found.files])
    exact = ClipSimilarity(index.clip, targets.text(index.clip, ["grass", "sky"]))
    scores = exact(wanted.to(dtype)).detach().float()
    torch.testing.assert_close(found.explanation.scores, scores, atol=2e-2, rtol=0)
