"""Whole evaluations: what they write, how they go on after a stop, and what they refuse."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from captum_clip import files
from captum_clip.bench import evaluator
from captum_clip.bench.evaluator import Evaluation, EvaluationPlan, evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.study import run_study
from captum_clip.bench.table import COLUMNS
from captum_clip.errors import CaptumClipError, InputError
from tests.bench.cases import SMALL, TEXTS, make_classes, random_maps
from tests.bench.data.writing import JPEG_OF_NOTHING, LEFT, noise, save, save_bytes, save_mask
from tests.folders import content

ROOT = Path(__file__).parents[2]


def config_of(model: str, data: str, output: Path, **given: Any) -> EvaluationConfig:
    return EvaluationConfig(model, str(output), (data,), **{**SMALL, **given})


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_an_evaluation_writes_tables_units_and_a_manifest(whole: dict[str, bytes]) -> None:
    units = [name for name in whole if name.startswith("units/")]
    assert units == [
        f"units/00-masks/{start:06d}-{method}.npz"
        for start in (0, 2)
        for method in ("00-last-grad", "01-rollout", "02-random", "03-uniform", "04-center")
    ]
    others = {"manifest.json", "results.csv", "results.md", "report.html"}
    assert set(whole) - set(units) == others
    table = list(csv.DictReader(io.StringIO(whole["results.csv"].decode())))
    baselines = {"random", "uniform", "center"}  # beside what was asked for
    assert {line["method"] for line in table} == {"last-grad", "rollout", *baselines}
    assert {line["reference"] for line in table} == {"last-grad"}
    energy = next(line for line in table if line["metric"] == "energy")
    assert (energy["images"], energy["rows"]) == ("3", "6")
    negative = [line for line in table if line["metric"] == "negative_target"]
    assert [line["images"] for line in negative] == ["3", "0", "3", "0", "0"]  # of a sign
    told = json.loads(whole["manifest.json"])
    assert told["state"] == "measured"
    assert told["images"] == {"masks": 3}
    assert told["skipped"] == {"masks": []}
    assert told["model"]["name"] == "small-vit"


def figure(found: Evaluation, metric: str, method: str) -> Any:
    """A row of the summary."""
    lines = found.summary.figures
    [line] = lines[(lines["metric"] == metric) & (lines["method"] == method)].itertuples()
    return line


def test_every_figure_and_file_is_made_of_one_long_table(
    output: Path, vit: str, masks: str
) -> None:
    """One row per measured value, by the names that people know; the means are the table's own."""
    found = evaluate(config_of(vit, masks, output))
    assert tuple(found.table.columns) == COLUMNS
    assert repr(found).startswith(f"Evaluation(output='{output}', values={len(found.table)}, met")
    energy = found.table[(found.table["metric"] == "energy") & (found.table["method"] == "random")]
    regions = energy[["task", "sample", "region", "part"]].astype(str).to_numpy().tolist()
    assert sorted(regions) == [  # samples come in the order in which they would be drawn
        ["localization", f"image{number}", text, ""]
        for number in range(3)
        for text in ("a dog", "a horse")
    ]
    assert energy["x"].isna().all()
    assert figure(found, "energy", "random").mean == pytest.approx(energy["value"].mean())
    rounded = pd.read_csv(output / "results.csv")
    assert rounded.columns.tolist() == found.summary.figures.columns.tolist()
    assert np.allclose(rounded["mean"], found.summary.figures["mean"], atol=5e-4, equal_nan=True)


def test_progress_counts_images_times_methods(output: Path, vit: str, masks: str) -> None:
    """What an earlier run had done counts from the first call on."""
    (output / "units/00-masks/000002-01-rollout.npz").unlink()
    said: list[tuple[int, int, str]] = []
    evaluate(config_of(vit, masks, output), progress=lambda *counts: said.append(counts))
    assert said == [(14, 15, ""), (15, 15, "masks, rollout")]


def damage(output: Path) -> None:
    path = output / "units/00-masks/000000-00-last-grad.npz"
    path.write_bytes(path.read_bytes()[:-9])


STOPS = {
    "all units gone": lambda out: shutil.rmtree(out / "units"),
    "some units gone": lambda out: [p.unlink() for p in out.glob("units/*/000002-*")],
    "no tables yet": lambda out: [(out / f"results.{end}").unlink() for end in ("csv", "md")],
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_an_evaluation_goes_on_after_a_stop(
    output: Path, vit: str, masks: str, whole: dict[str, bytes], stop: Any
) -> None:
    """Whenever it was, the folder ends up the same to the byte; whole units are left alone."""
    stop(output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("units/*/0*.npz")}
    evaluate(config_of(vit, masks, output))
    assert content(output) == whole
    for path, changed in before.items():
        if "last-grad" not in path.name:
            assert path.stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ("last-grad",)}, r'methods was \["last-grad", "rollout", "random"\] and is'),
        (
            {"chunk_size": 3, "slow_images": 2},
            r"chunk_size was 2 and is 3; config\.slow_images was \d+ and is 2",
        ),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused(
    output: Path, vit: str, masks: str, whole: dict[str, bytes], given: Any, message: str
) -> None:
    """One sentence with what changed; nothing in the folder does."""
    with pytest.raises(InputError, match=message) as caught:
        evaluate(config_of(vit, masks, output, **given))
    assert "holds another evaluation" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(output) == whole


def test_other_intervals_need_no_other_maps(output: Path, vit: str, masks: str) -> None:
    """Neither the bootstrap nor the reference decides what is measured."""
    units = {path: path.stat().st_mtime_ns for path in output.glob("units/*/*")}
    found = evaluate(config_of(vit, masks, output, resamples=30, reference="rollout"))
    assert found.summary.reference == "rollout"
    assert found.summary.resamples == 30
    assert {path: path.stat().st_mtime_ns for path in output.glob("units/*/*")} == units


def test_another_model_in_the_same_folder_is_refused(output: Path, resnet: str, masks: str) -> None:
    with pytest.raises(InputError, match='name was "small-vit" and is "small-resnet"'):
        evaluate(config_of(resnet, masks, output, methods=("grad-cam",)))


def test_what_cannot_be_used_is_counted_with_its_reason(
    tmp_path: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """A broken image, masks of another size, empty or full; the rest is measured."""
    folder = tmp_path / "data"
    for name in ("fine", "size", "some", "broken"):
        save(noise(), folder / f"images/{name}.png")
        save_mask(LEFT, folder / f"masks/{name}/a horse.png")
    save_mask(LEFT[1:], folder / "masks/size/a horse.png")
    save_mask(LEFT & False, folder / "masks/some/a dog.png")
    save_mask(LEFT | True, folder / "masks/some/a cat.png")
    save_bytes(JPEG_OF_NOTHING, folder / "images/broken.png")
    found = evaluate(config_of(vit, f"masks:{folder}", tmp_path / "out", tasks=("localization",)))
    told = manifest(tmp_path / "out")["skipped"]["masks"]
    assert told == found.skipped["masks"]
    said = {
        (entry["sample"], re.sub(r".*?(the mask|cannot be read).*", r"\1", entry["reason"]))
        for entry in told
    }
    assert said == {("size", "the mask"), ("some", "the mask"), ("broken", "cannot be read")}
    reasons = "; ".join(entry["reason"] for entry in told)
    for part in ("19 x 30 pixels, its image 20 x 30", "is empty", "is full", "'a dog'"):
        assert part in reasons
    energy = figure(found, "energy", "last-grad")
    assert (energy.images, energy.rows) == (2, 2)
    assert "4 samples, regions or maps left out" in (tmp_path / "out" / "results.md").read_text()


def test_where_nothing_can_be_read_nothing_is_written(tmp_path: Path, vit: str) -> None:
    """One error with the first reason; all of them are in the manifest; no table."""
    folder = tmp_path / "data"
    for name in ("a", "b"):
        save_bytes(JPEG_OF_NOTHING, folder / f"images/{name}.png")
        save_mask(LEFT, folder / f"masks/{name}/a horse.png")
    for _ in range(2):  # the second time all units are there
        with pytest.raises(InputError, match=r"masks: none of the 2 samples can be used") as caught:
            evaluate(config_of(vit, f"masks:{folder}", tmp_path / "out"))
        assert re.search(r"first: .*\)\. All reasons are in .*manifest\.json\.$", str(caught.value))
        assert [e["sample"] for e in manifest(tmp_path / "out")["skipped"]["masks"]] == ["a", "b"]
        assert not (tmp_path / "out" / "results.csv").exists()


def test_methods_that_a_task_cannot_measure_are_said(tmp_path: Path, vit: str, masks: str) -> None:
    config = config_of(vit, masks, tmp_path, methods=("random", "center"), tasks=("sanity",))
    message = "masks: sanity measures nothing of random, center, uniform on its"
    with pytest.raises(InputError, match=message):
        evaluate(config)
    assert not (tmp_path / "results.csv").exists()


def test_images_with_classes_have_curves(tmp_path: Path, vit: str) -> None:
    """A picture for each fill and class, and the same after a stop."""
    data = make_classes(tmp_path / "data")
    given: dict[str, Any] = {"tasks": ("perturbation",), "fills": ("mean",)}
    config = config_of(vit, data, tmp_path / "out", methods=("last-grad", "center"), **given)
    found = evaluate(config)
    assert found.curves == ("curves_mean_predicted.png", "curves_mean_true.png")
    before = content(tmp_path / "out")
    assert set(found.curves) < set(before)
    for path in (tmp_path / "out").glob("units/*/*last-grad*"):
        path.unlink()
    evaluate(config)
    assert content(tmp_path / "out") == before


def test_a_text_that_no_model_reads_is_said_before_any_work(tmp_path: Path) -> None:
    """The embedded tokenizer names the word; nothing is written."""
    save(noise(), tmp_path / "data" / "images" / "one.jpg")
    save_mask(LEFT, tmp_path / "data" / "masks" / "one" / "a xylophone.png")
    config = config_of("demo/vit", f"masks:{tmp_path / 'data'}", tmp_path / "out")
    with pytest.raises(CaptumClipError, match=r"masks: .*xylophone"):
        evaluate(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_maps_made_elsewhere_stand_beside_ours(tmp_path: Path, vit: str, masks: str) -> None:
    """A missing map is counted; other maps under the same name are another evaluation."""
    texts = TEXTS[::2]
    folder = random_maps(tmp_path / "theirs", ["image0", "image2"], texts)
    config = config_of(vit, masks, tmp_path / "out", maps=(str(folder),))
    found = evaluate(config)
    theirs = figure(found, "energy", "theirs")
    assert (theirs.images, theirs.rows, theirs.images_paired) == (2, 4, 2)
    assert found.skipped["masks"] == [
        {"sample": "image1", "reason": "theirs: there is no file image1.npz"}
    ]
    random_maps(folder, ["image0", "image2"], texts, offset=1)
    with pytest.raises(InputError, match=r"holds another evaluation: methods\.\d\."):
        evaluate(config)


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"tasks": ("pointing",)},
        "expected a task of thirds, identical, .*, got 'pointing'",
    ),
    ({"tasks": ("words",)}, "the data do not serve the task words, but localization"),
    (
        {"tasks": ("segmentation",), "data": ()},
        "the demo's data do not serve the task segmentation",
    ),
    ({"data": ("voc:x",)}, "there is no data set 'voc:x'; expected one of demo.*convert.py"),
    ({"reference": "all-grad"}, "the reference 'all-grad' is not among the methods last-grad, r"),
    (
        {"reference": "mamooler", "methods": ("rollout", "random")},
        "the reference 'last-grad' is not among the methods rollout, random",
    ),
    ({"methods": ("mamooler:heads=paired",)}, "name the method itself"),
    ({"methods": ("last-grad", "grad-cam")}, "ClipGradCam"),
    ({"data": ("demo-objects",)}, "data do not serve the task localization, but pert"),
    ({"data": ("demo", "demo-objects")}, "demo-objects serves none of localization, signs; it"),
    (
        {"against": "image", "tasks": ("effect",)},
        "effect explains texts; `against='image'` works with",
    ),
    ({"against": "image"}, "another image of each region for `against='image'`, got 'masks'"),
    ({"template": "a {}"}, "none of the data sets masks.* takes `template`"),
    ({"model": "demo/bit"}, "demo/bit"),
    ({"model": ""}, "expected model by name or path"),
    ({"maps": ("nowhere",)}, "--maps nowhere: there is no such folder"),
    ({"maps": ("random",)}, "two methods are called 'random'; rename the folder of maps"),
    ({"images": 0}, "expected images of 1 or more, got 0"),
    ({"slow_images": True}, "expected `slow_images` of 1 or more, got True"),
    ({"batch_size": 2.0}, "expected `batch_size` of 1 or more, got 2.0"),
    ({"threads": 0}, "expected threads of 1 or more, got 0"),
    ({"against": "texts"}, "expected against of text, image, got 'texts'"),
    ({"engine": "spark"}, "expected engine of local, ray, got 'spark'"),
    ({"fills": ("gray",)}, "expected fills of mean, black, blur, got 'gray'"),
    ({"output": None}, "expected output as a folder or a URL, got None"),
    ({"reference": 3}, "expected reference as a text, got 3"),
    ({"fills": ()}, "expected fills of .*, got 'none'"),
    ({"methods": ("rollout", "rollout")}, "'rollout' is given twice in methods"),
    ({"gpus": 2}, "the local engine computes on one GPU"),
    ({"engine": "ray", "gpus": 2, "workers": 1}, "as many as GPUs, got `workers=1` and `gpus=2`"),
]


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, vit: str, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and no table."""
    for given, message in BAD:
        monkeypatch.chdir(tmp_path)
        random_maps(tmp_path / "random", ["image0"], ["a horse"])
        settings = {**SMALL, "images": 2, "data": (masks,), "model": vit, "output": "out", **given}
        with pytest.raises(CaptumClipError, match=message) as caught:
            evaluate(EvaluationConfig(**settings))
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out/results*"))


def test_settings_come_as_a_config_of_the_run(tmp_path: Path) -> None:
    """Neither as a name nor as those of the other kind of run."""
    config = EvaluationConfig("demo/vit", str(tmp_path / "out"))
    with pytest.raises(
        InputError, match="evaluate: expected `config` as EvaluationConfig, got str"
    ):
        evaluate("demo/vit")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="run_study: expected `config` as StudyConfig, got Eval"):
        run_study(config)  # type: ignore[arg-type]


def test_a_missing_pandas_names_the_extra(
    tmp_path: Path, vit: str, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded or written."""
    monkeypatch.setattr(evaluator, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"pandas is needed: pip install 'captum-clip\[evaluation\]'"
    ):
        evaluate(config_of(vit, masks, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_task_reads_one_data_set(tmp_path: Path, vit: str, masks: str) -> None:
    config = EvaluationConfig(vit, str(tmp_path / "out"), ("demo", masks), tasks=("signs",))
    with pytest.raises(InputError, match="demo and masks are both measured by signs; give each"):
        evaluate(config)


def test_a_method_of_another_tower_is_refused_before_any_work(
    tmp_path: Path, resnet: str, masks: str
) -> None:
    with pytest.raises(
        CaptumClipError, match="LastGradAttention needs a vision transformer or a text"
    ):
        evaluate(config_of(resnet, masks, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_evaluation_goes_on_after_a_kill(
    tmp_path: Path, vit: str, masks: str, whole: dict[str, bytes]
) -> None:
    """Killed while it writes its third unit: two are there, and no table."""
    output = tmp_path / "out"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-m", "tests.bench.killed", vit, masks, str(output), "4"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(output.glob("units/*/0*.npz"))) == 2
    assert not (output / "results.csv").exists()
    assert manifest(output)["state"] == "running"
    evaluate(config_of(vit, masks, output))
    assert content(output) == whole


def test_samples_that_were_away_are_tried_again(
    tmp_path: Path, vit: str, masks: str, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once their disk answers they are in the results of the next run, byte for byte."""
    config, read = config_of(vit, masks, tmp_path / "out"), files.read_file

    def refuse(path: Path) -> bytes:
        if path.name == away:
            raise InputError("away") from OSError(errno.EIO, "Input/output error")
        return read(path)

    [away, *_] = sorted(path.name for path in Path(masks.partition(":")[2], "images").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_file", refuse)
        [entry] = evaluate(config).skipped["masks"]
    assert entry["reason"].endswith("It is tried again when the same command runs again.")
    assert evaluate(config).skipped["masks"] == []
    assert content(tmp_path / "out") == whole


def test_a_table_never_stands_beside_missing_units(
    output: Path, vit: str, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes away before the first unit is computed."""
    damage(output)

    class Stopped(Exception):
        pass

    def stop(*_: Any) -> None:
        assert not (output / "results.csv").exists()
        raise Stopped

    monkeypatch.setattr(EvaluationPlan, "_measure", stop)
    with pytest.raises(Stopped):
        evaluate(config_of(vit, masks, output))
    assert manifest(output)["state"] == "running"


def test_a_model_with_other_preprocessing_is_refused(
    tmp_path: Path, output: Path, vit: str, masks: str
) -> None:
    """Of the same name and the same weights."""
    changed = tmp_path / "small-vit"
    shutil.copytree(vit, changed)
    file = changed / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(InputError, match="holds another evaluation: ") as caught:
        evaluate(config_of(str(changed), masks, output))
    assert re.findall(r"(\S+) was", str(caught.value)) == ["model.identity.image_embeddings"]


@pytest.mark.slow
def test_ray_gives_the_same_bytes(
    tmp_path: Path,
    vit: str,
    masks: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two workers on a Ray of their own, which says nothing, not even that it starts."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("PYTHONPATH", path)
    said: list[int] = []
    config = config_of(vit, masks, tmp_path / "out", engine="ray", workers=2)
    capfd.readouterr()
    evaluate(config, progress=lambda done, *_: said.append(done))
    assert capfd.readouterr() == ("", "")
    assert content(tmp_path / "out") == whole
    assert said[0] == 0
    assert said[-1] == 15
