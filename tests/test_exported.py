"""captum-clip export: the folder says what the model says, and what differs is not left behind."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import ClipSimilarity, DirectContribution, explain, load_clip
from captum_clip.apps import export as writing
from captum_clip.apps import exported
from captum_clip.apps.export import (
    OUTPUTS,
    RUNTIME,
    RUNTIME_FILES,
    ImageGraph,
    runtime_files,
    to_onnx,
    write_browser_page,
)
from captum_clip.attr.contributions import any_target
from captum_clip.cli import main
from captum_clip.demo import MODELS
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, TargetError, UnsupportedModelError
from tests import builders, timm_builders

pytest.importorskip("onnxruntime")
SCENES = [draw_scene(seed, objects=["horse", "dog"]).image for seed in range(3)]
TEXTS = ["a horse", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("exported") / "vit"
    assert main(["export", "demo/vit", "-o", str(path), "--quiet"]) == 0
    return path


def test_scores_maps_and_picture_are_those_of_explain(folder: Path, tmp_path: Path) -> None:
    made = exported.load(folder).explain(SCENES, TEXTS)
    found = explain(SCENES, TEXTS, model="demo/vit", method="direct", sign="both", hints=False)
    assert np.allclose(made.scores, found.scores, atol=1e-6)
    for sign in ("positive", "negative"):
        assert np.allclose(made.maps[sign], found.maps[sign], atol=1e-6)
        single = explain(SCENES, TEXTS, model="demo/vit", method="direct", sign=sign, hints=False)
        paths = made.save(tmp_path / "made.png", sign), single.save(tmp_path / "found.png")
        drawn = [np.asarray(Image.open(path).convert("RGB"), int) for path in paths]
        assert drawn[0].shape[1] == drawn[1].shape[1]
        if sign == "positive":  # the caption of the other sign has another place
            assert np.abs(drawn[0] - drawn[1]).max() <= 2


def test_it_runs_without_torch(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(SCENES[0]).save(tmp_path / "scene.png")
    code = (
        "import sys; from captum_clip.apps import exported; "
        "found = exported.load(sys.argv[1]).explain(sys.argv[2], 'a horse'); "
        "assert 'torch' not in sys.modules; found.save(sys.argv[3])"
    )
    paths = map(str, (folder, tmp_path / "scene.png", tmp_path / "map.png"))
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=120)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_the_manifest_says_who_it_is(folder: Path) -> None:
    about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert about["identity"] == load_clip("demo/vit").identity()
    assert (about["model"], about["method"], about["grid"]) == ("demo/vit", "direct", [7, 7])


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(builders.hf_vit, id="transformers"),
        pytest.param(builders.open_clip_resnet, id="ResNet"),
        pytest.param(builders.coca, id="CoCa"),
        pytest.param(timm_builders.timm_siglip, id="timm"),
        pytest.param(timm_builders.timm_gap, id="mean of patches"),
    ],
)
@pytest.mark.parametrize("depth", ["pooling"])
def test_graph_of_a_tower_is_its_vectors_for_any_batch(build: Any, depth: str) -> None:
    import onnxruntime

    small = build()
    clip, images = small.load(), small.images(3)
    direct = DirectContribution(ClipSimilarity(clip, any_target(clip)))
    vectors, rest = direct.vectors(images, return_rest=True)
    model = to_onnx(ImageGraph(clip, {}), {"pixels": images[:2]}, OUTPUTS)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 3):
        unit, made, other = session.run(None, {"pixels": images[:count].numpy()})
        wanted = vectors[:count], rest[:count], (vectors.sum((1, 2)) + rest)[:count]
        for own, each in zip((made, other, unit), wanted, strict=True):
            assert np.abs(own - each.numpy()).max() <= 1e-5 * float(each.abs().max())
    assert not clip.model.training


def test_options_of_the_method(tmp_path: Path) -> None:
    clip = load_clip("demo/vit")
    method = "direct:baseline=mean,depth=token"
    writing.export(clip, tmp_path / "token", method=method)
    made = exported.load(tmp_path / "token").explain(SCENES[0], TEXTS)
    found = explain(SCENES[0], TEXTS, model=clip, method=method, sign="both", hints=False)
    assert np.allclose(made.maps["positive"], found.maps["positive"], atol=1e-6)


def test_a_graph_that_differs_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(ImageGraph):
        def forward(self, pixels: Any) -> Any:
            unit, vectors, rest = super().forward(pixels)
            return unit, vectors * 1.001, rest

    class Fixed(ImageGraph):
        def forward(self, pixels: Any) -> Any:
            unit, vectors, rest = super().forward(pixels)
            return unit + torch.zeros(len(pixels), 1), vectors, rest

    messages = {Wrong: r"the graph's vectors differ by 0\.001", Fixed: "image.onnx does not run"}
    for kind, message in messages.items():
        monkeypatch.setattr(writing, "ImageGraph", kind)
        with pytest.raises(UnsupportedModelError, match=message):
            writing.export(load_clip("demo/vit"), tmp_path / "folder")
        assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    clip = load_clip("demo/vit")
    with pytest.raises(InputError, match="not empty"):
        writing.export(clip, folder)
    with pytest.raises(UnsupportedModelError, match="a backward pass for each number"):
        writing.export(clip, tmp_path / "all", method="direct:depth=all")
    with pytest.raises(InputError, match="direct with its options"):
        writing.export(clip, tmp_path / "other", method="rollout")
    with pytest.raises(InputError, match="not a folder of captum-clip export"):
        exported.load(tmp_path)


def test_a_disk_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> str:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(writing, "to_onnx", lambda *_: None)
    monkeypatch.setattr(writing, "tokenizer_of", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: File too large"):
        writing.export(load_clip("demo/vit"), tmp_path / "folder")
    assert [*tmp_path.iterdir()] == []


def test_a_model_that_onnx_cannot_hold_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    small = builders.tipsv2()
    clip, log = small.load(), torch._C._jit_onnx_log
    with pytest.raises(UnsupportedModelError, match=r"cannot write .*bilinear2d_aa") as info:
        to_onnx(ImageGraph(clip, {}), {"pixels": small.images(2)}, OUTPUTS)
    assert len(str(info.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert torch._C._jit_onnx_log is log


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder node_modules whose files hold their own names."""
    path: Path = tmp_path_factory.mktemp("node_modules")
    for package, version in RUNTIME.items():
        for name in ("package.json", *RUNTIME_FILES[package]):
            (path / package / name).parent.mkdir(parents=True, exist_ok=True)
            (path / package / name).write_text(f'{{"name": "{name}", "version": "{version}"}}')
    return path


def test_the_page_loads_its_runtime_from_a_cdn_or_from_copies(
    folder: Path, packages: Path, tmp_path: Path
) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https://[^\s\"';]+", page)) == {
        "https://cdn.jsdelivr.net",
        "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/",
        "https://cdn.jsdelivr.net/npm/@huggingface/tokenizers@0.2.0/dist/tokenizers.min.mjs",
    }
    assert not (folder / "runtime").exists()
    about = replace(exported.load(folder).about, model="<b>")
    write_browser_page(tmp_path, about, runtime_files(packages))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|<b>", page)
    assert "drawn scenes only" not in page
    for package, names in RUNTIME_FILES.items():
        for name in names:
            copy = tmp_path / "runtime" / package / name
            assert copy.read_bytes() == (packages / package / name).read_bytes()


def test_a_folder_without_the_runtime_is_refused_before_anything_is_written(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, old, torn = (tmp_path / name for name in ("other", "old", "torn"))
    other.mkdir()
    for copy in (old, torn):
        shutil.copytree(packages, copy)
    (old / "onnxruntime-web" / "package.json").write_text('{"version": "1.29.0"}')
    (torn / "@huggingface/tokenizers" / "LICENSE").unlink()
    for path, package in ((other, "onnx"), (old, "onnx"), (torn, "@huggingface/tokenizers 0.2.0")):
        command = ["export", "demo/vit", "-o", str(tmp_path / "new"), "--quiet", "--runtime"]
        assert main([*command, str(path)]) == 2
        said = capsys.readouterr().err
        assert f"--runtime: {path} does not hold {package}" in said
        assert "npm install onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0" in said
    with pytest.raises(InputError, match="there is no folder"):
        writing.export(load_clip("demo/vit"), tmp_path / "new", runtime=tmp_path / "none")
    assert not (tmp_path / "new").exists()


def test_texts_are_tokens_as_the_model_makes_them_or_refused(folder: Path) -> None:
    clip, made = load_clip("demo/vit"), exported.load(folder)
    texts = ["A Horse.", "a dog and a cat", "photo of the horse!"]
    assert np.array_equal(made.tokenize(texts)["ids"], clip.text_inputs(texts)[0])
    with pytest.raises(TargetError, match="a text that demo/vit knows"):
        made.tokenize("a xylophone of jade")
    with pytest.raises(TargetError, match="up to 16 tokens"):
        made.tokenize("a horse " * 20)


def test_a_copy_under_another_name_is_exported(tmp_path: Path) -> None:
    """Its tokenizer is one of transformers, which fails in its own way on a word that it lacks."""
    shutil.copytree(MODELS["demo/vit"], tmp_path / "copy")
    clip = load_clip(tmp_path / "copy")
    with pytest.raises(TargetError, match=r"the tokenizer of .*copy can read, got 'naïve'; WordL"):
        clip.encode_text("naïve")
    writing.export(clip, tmp_path / "made")
    made = exported.load(tmp_path / "made").tokenize("a horse")["ids"]
    assert made.tolist() == clip.text_inputs("a horse")[0].tolist()


def test_openclips_own_tokenizer_has_a_form_as_json() -> None:
    from open_clip import get_tokenizer
    from tokenizers import Tokenizer

    clip = builders.open_clip_vit().load(tokenizer=get_tokenizer("ViT-B-32"))
    made = Tokenizer.from_str(writing.tokenizer_of(clip))
    for text in ("a photo of a dog", "it's 3 O'Clock!", "Crème brûlée", "naïve 🐴"):
        row = clip.tokenizer(text)[0]
        assert made.encode(text).ids == row[: int(row.argmax()) + 1].tolist(), text
