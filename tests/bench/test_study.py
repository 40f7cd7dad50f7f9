"""A study from end to end on small models, against the same figures computed plainly."""

from __future__ import annotations

import csv
import io
import json
import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, metrics, targets
from captum_clip import maps as resizing
from captum_clip.attr.registry import METHODS, report_method
from captum_clip.bench.run import StudyConfig
from captum_clip.bench.study import StudyResult, run_study
from captum_clip.errors import CaptumClipError, InputError
from captum_clip.folders import workers
from captum_clip.folders.storage import storage_of
from tests import folders

TEXTS = ("a horse", "a dog", "grass")


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def plainly(model: str, images: Path) -> dict[str, Tensor]:
    """Image by image, target by target, at full size, in double precision where it can be."""
    clip = load_clip(model)
    method: Any = METHODS[report_method(clip.tower)]
    forward = ClipSimilarity(clip, targets.text(clip, TEXTS))
    raw, scores = [], []
    for path in sorted(images.rglob("*.png"), key=lambda p: p.relative_to(images).as_posix()):
        pixels = clip.preprocess(path)
        raw.append(torch.cat([method(forward).attribute(pixels, target=k) for k in range(3)], 1))
        scores.append(forward(pixels).detach())
    positive, size = torch.cat(raw).clamp(min=0), (pixels.shape[-2], pixels.shape[-1])
    return {
        "heatmap": resizing.normalize(resizing.upsample(positive.double(), size)),
        "single": resizing.normalize(resizing.upsample(positive, size)),
        "score": torch.cat(scores),
    }


def mean_of(measure: Callable[[Tensor], Tensor], heatmap: Tensor) -> Tensor:
    """NaN, in the table an empty field, where no map varies."""
    return measure(heatmap).mean() if len(heatmap) else torch.tensor(torch.nan)


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, images: Path, vit: str, resnet: str
) -> tuple[Path, StudyResult]:
    """A study of both towers, by Mamooler's methods: a Grad-CAM may be constant."""
    output = tmp_path_factory.mktemp("both") / "out"
    config = StudyConfig(
        str(images),
        str(output),
        TEXTS,
        (vit, resnet),
        batch_size=2,
        chunk_size=4,
        workers=0,
        value_entropy=True,
        methods="mamooler",
    )
    return output, run_study(config)


@pytest.mark.parametrize("tower", [0, 1])
def test_statistics_are_those_of_the_maps(
    both: Any, images: Path, tower: int, request: Any
) -> None:
    """Every column, to the rounding of the tower in another batch."""
    model = request.getfixturevalue(("vit", "resnet")[tower])
    plain = plainly(model, images)
    rows = rows_of((both[0] / "statistics.csv").read_bytes())[3 * tower : 3 * tower + 3]
    assert [row["target"] for row in rows] == list(TEXTS)
    with np.load(sorted((both[0] / "mean_maps").iterdir())[tower]) as file:
        mean = torch.from_numpy(file["stretched"]).nan_to_num()  # of zeros the bias is NaN
    for k, row in enumerate(rows):
        heatmap = plain["heatmap"][:, k]
        varies = heatmap.amax((-2, -1)) > 0
        expected = {
            "score": plain["score"][:, k].mean(),
            "corner_bias": metrics.corner_bias(mean[k]),
            "center_bias": metrics.center_bias(mean[k]),
            "spatial_variance": mean_of(metrics.spatial_variance, heatmap[varies]),
            "spatial_entropy": mean_of(metrics.spatial_entropy, heatmap[varies]),
            "value_entropy": mean_of(metrics.value_entropy, plain["single"][varies, k]),
        }
        for name, value in expected.items():
            rough = 1e-2 if name == "value_entropy" else 1e-4
            found = float(row[name] or "nan")
            assert found == pytest.approx(value.item(), rel=rough, nan_ok=True), name
        assert (row["images"], row["skipped"]) == ("7", "0")
        assert int(row["constant"]) == int((~varies).sum())
        size = (row["dtype"], row["height"], row["width"])
        assert size == ("float32", *(str(side) for side in heatmap.shape[-2:]))


@pytest.mark.parametrize("tower", [0, 1])
def test_mean_maps_are_those_of_the_maps(both: Any, images: Path, tower: int, request: Any) -> None:
    """On the model's grid as documented: upsampled they are the mean at full size."""
    plain = plainly(request.getfixturevalue(("vit", "resnet")[tower]), images)
    path = sorted((both[0] / "mean_maps").iterdir())[tower]
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    for k, mean in enumerate(torch.from_numpy(found["stretched"])):
        heatmap = plain["heatmap"][:, k]
        varies = heatmap.amax((-2, -1)) > 0
        if not varies.any():
            assert mean.isnan().all()
            continue
        large = resizing.upsample(mean, tuple(found["size"]))
        torch.testing.assert_close(large, heatmap[varies].mean(0), rtol=0, atol=1e-4)
    assert found["names"].tolist() == list(TEXTS)
    assert found["images"] == 7


def test_the_manifest_tells_what_was_computed_with_what(both: Any, vit: str) -> None:
    found = json.loads((both[0] / "manifest.json").read_bytes())
    assert found["state"] == "maps done"
    assert found["config"]["texts"] == list(TEXTS)
    assert found["jobs"][0]["identity"] == load_clip(vit).identity()
    assert [job["method"] for job in found["jobs"]] == ["last-grad", "grad-cam"]
    assert found["images"]["number"] == 7
    assert found["skipped"] == []
    assert {"torch", "captum_clip", "threads"} <= found["environments"][0].keys()


def test_the_pictures_are_there_and_nothing_else(both: Any) -> None:
    with Image.open(both[0] / "mean_maps.png") as picture:
        picture.verify()
    assert sorted(path.name for path in both[0].iterdir()) == [
        "images.csv",
        "manifest.json",
        "mean_maps",
        "mean_maps.png",
        "statistics.csv",
        "units",
    ]


def test_all_targets_come_from_one_forward_an_image(
    tmp_path: Path, images: Path, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the tower begins; the identity, a trial and padding are all that is added."""
    seen: list[int] = []

    def counted(name: str, **options: Any) -> Any:
        clip = load_clip(name, **options)
        first = clip.vision.get_submodule("embeddings.patch_embedding")
        first.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return clip

    monkeypatch.setattr(workers, "load_clip", counted)
    config = folders.config_of(images, tmp_path / "out", vit, texts=[f"text {i}" for i in range(9)])
    run_study(config)
    assert seen == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]  # with a look at one image, and at two


@pytest.mark.parametrize("workers", [2])
def test_worker_processes_change_nothing(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes], workers: int
) -> None:
    """To the byte."""
    run_study(folders.config_of(images, tmp_path / "out", vit, workers=workers))
    assert folders.content(tmp_path / "out") == whole_study


@pytest.mark.parametrize("size", [5])
def test_batches_of_another_size_agree(
    tmp_path: Path, images: Path, vit: str, resnet: str, both: Any, size: int
) -> None:
    """To 1e-4 relative: the tower itself differs by rounding."""
    config = folders.config_of(images, tmp_path / "out", vit, texts=TEXTS, batch_size=size)
    run_study(replace(config, models=(vit, resnet), methods="mamooler"))
    expected = rows_of((both[0] / "statistics.csv").read_bytes())
    found = rows_of((tmp_path / "out" / "statistics.csv").read_bytes())
    for first, second in zip(expected, found, strict=True):
        for name in first.keys() - {"value_entropy"}:
            if name in ("model", "method", "target", "dtype") or not first[name]:
                assert second[name] == first[name]
            else:
                assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-4), name


def huge(png: bytes) -> bytes:
    """The same file, which says that it unpacks to 30000 x 30000 pixels."""
    head = b"IHDR" + struct.pack(">II", 30000, 30000) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def test_an_image_that_cannot_be_read_changes_nothing_for_the_others(
    tmp_path: Path, vit: str
) -> None:
    """Bit-identical maps, scores and measures in the same batches; the reason is told."""
    images = folders.make_images(tmp_path / "images", 8)
    run_study(folders.config_of(images, tmp_path / "whole", vit))
    whole = (images / "image3.png").read_bytes()
    broken = {
        "image0.png": b"no picture",
        "image2.png": b"",
        "image3.png": whole[: len(whole) // 2],
    }
    for name, content in broken.items():
        (images / name).write_bytes(content)
    (images / "image5.png").write_bytes(huge((images / "image5.png").read_bytes()))
    result = run_study(folders.config_of(images, tmp_path / "part", vit))
    assert sorted(result.skipped) == sorted([*broken, "image5.png"])
    assert "not an image" in result.skipped["image0.png"]
    assert "truncated" in result.skipped["image3.png"]
    assert "decompression bomb" in result.skipped["image5.png"]
    for path in sorted((tmp_path / "part" / "units").rglob("*.npz")):
        with np.load(path) as part, np.load(str(path).replace("/part/", "/whole/")) as all_of_it:
            kept = np.isin(all_of_it["numbers"], part["numbers"])
            for name in set(part.files) - {"skipped", "unit"}:
                np.testing.assert_array_equal(part[name], all_of_it[name][kept], strict=True)
    manifest = json.loads((tmp_path / "part" / "manifest.json").read_text())
    [row, _] = rows_of((tmp_path / "part" / "statistics.csv").read_bytes())
    assert (row["images"], row["skipped"]) == ("4", "4")
    assert [one["file"] for one in manifest["skipped"]] == sorted(result.skipped)
    assert str(tmp_path) not in json.dumps(manifest)


def test_where_nothing_can_be_read_there_are_no_statistics(tmp_path: Path, vit: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"1")
    config = folders.config_of(images, tmp_path / "out", vit)
    with pytest.raises(InputError, match=r"none of the 1 images can be read; the first: a\.png"):
        run_study(config)
    assert not (tmp_path / "out" / "statistics.csv").exists()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]


def test_images_and_results_may_be_behind_fsspec(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes]
) -> None:
    """The same results to the byte, from and to a store in memory."""
    place = f"memory://{uuid.uuid4()}"
    store = storage_of(place)
    for name in storage_of(images).files():
        store.write(f"images/{name}", (images / name).read_bytes())
    config = folders.config_of(images, tmp_path, vit)
    run_study(replace(config, images=f"{place}/images", output=f"{place}/out"))
    remote = storage_of(f"{place}/out")
    found = {name: remote.read(name) for name in remote.files()}
    assert found == whole_study


BAD: list[tuple[dict[str, Any], str]] = [
    ({"images": "/nowhere"}, "there is no folder /nowhere"),
    ({"models": ("nonsense",)}, "'nonsense' is neither"),
    ({"methods": ("grad-cam",)}, "none of the methods grad-cam fits .* has a vision transformer"),
    ({"methods": ("last-grad:heads=3",)}, "paired, averaged, got 3"),
    ({"texts": ("a" * 200,)}, "takes 77"),
    ({"gpus": 1}, "CUDA"),
]


def test_mistakes_are_reported_before_anything_is_written(
    tmp_path: Path, images: Path, vit: str
) -> None:
    for change, message in BAD:
        with pytest.raises(CaptumClipError, match=message):
            run_study(replace(folders.config_of(images, tmp_path / "out", vit), **change))
        assert not (tmp_path / "out").exists()


def test_two_models_of_one_name_are_refused(tmp_path: Path, images: Path, vit: str) -> None:
    twin = folders.make_vit(tmp_path / "twin" / "small-vit")
    config = folders.config_of(images, tmp_path / "out", vit)
    named = replace(config, models=(vit, twin))
    with pytest.raises(InputError, match="direct of small-vit comes twice"):
        run_study(named)


def test_maps_that_are_no_numbers_are_left_out(
    tmp_path: Path, images: Path, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, and the others' measures are those of the others."""
    from captum_clip.attr import LastGradAttention

    method: Any = LastGradAttention
    original = method.attribute_targets

    def broken(self: Any, pixels: Tensor, **options: Any) -> Any:
        maps, scores = original(self, pixels, **options)
        maps[0, 1, 0, 0] = torch.nan
        return maps, scores

    monkeypatch.setattr(method, "attribute_targets", broken)
    result = run_study(folders.config_of(images, tmp_path / "out", vit, methods="last-grad"))
    assert len(result.skipped) == 4
    assert set(result.skipped.values()) == {"its maps or scores hold NaN or infinity"}
    row = rows_of((tmp_path / "out" / "statistics.csv").read_bytes())[0]
    assert row["images"] == "3"
    assert float(row["spatial_variance"]) > 0


def test_progress_counts_every_image_of_every_subject(
    tmp_path: Path, images: Path, vit: str
) -> None:
    told: list[tuple[int, int]] = []
    config = folders.config_of(images, tmp_path / "out", vit)
    config = replace(config, methods=("last-grad", "rollout"))
    run_study(config, progress=lambda done, total, _: told.append((done, total)))
    assert told[0] == (0, 14)
    assert told[-1] == (14, 14)
    assert told == sorted(told)
    again: list[tuple[int, int]] = []
    run_study(config, progress=lambda done, total, _: again.append((done, total)))
    assert again == [(14, 14)]


def test_a_study_that_was_stopped_at_once_goes_on(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes]
) -> None:
    """With its manifest and no unit yet."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_bytes(whole_study["manifest.json"])
    run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole_study
