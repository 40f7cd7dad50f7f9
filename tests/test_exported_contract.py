"""An exported folder of anybody, called with anything: an answer, InputError or TargetError."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from captum_clip.apps import exported
from captum_clip.apps.export import export
from captum_clip.apps.exported import FILES, SUMS, Explained, ExportedClip
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, TargetError
from captum_clip.models import load_clip

SCENE = draw_scene(0, objects=["horse", "dog"]).image
OURS = (InputError, TargetError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("exported") / "vit"
    export(load_clip("demo/vit"), path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> ExportedClip:
    return exported.load(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def sign(folder: Path, name: str) -> None:
    """What somebody does who wants his own file in the place of an exported one."""
    file, line = folder / SUMS, f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}"
    file.write_text(re.sub(rf"(?m)^.*  {name}$", line, file.read_text()))


def outcome(call: Callable[[], Any]) -> BaseException | None:
    """The error of a call, whichever it is."""
    try:
        call()
    except BaseException as error:
        return error
    return None


def pixels(value: float = 0, shape: tuple[int, ...] = (1, 3, 224, 224)) -> Any:
    return np.full(shape, value, np.float32)


def images(folder: Path) -> Iterator[Any]:
    """What is no image, or none of a sensible size."""
    (folder / "text.png").write_text("a horse")
    (folder / "empty.png").touch()
    Image.fromarray(SCENE).save(folder / "torn.jpg")
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:900])
    for size in ((1, 9000), (20_000, 1), (9450, 9470)):
        path = folder / f"{size[0]}.png"
        Image.new("1", size).save(path)
        yield path
    yield from (None, 3, True, 1.5, "", "missing.png", "\0", "~nobody/a.png", "http://a/b.png")
    yield from (folder, folder / "text.png", folder / "empty.png", folder / "torn.jpg", b"a", {})
    yield from ([], [None], [SCENE, None], [[SCENE]], {"a": SCENE}, {3}, object(), iter(()), int)
    yield from (np.zeros(s, np.uint8) for s in ((), (4,), (0, 4, 3), (5, 6, 7), (1, 9000, 3)))
    yield from (np.zeros((4, 4, 3), kind) for kind in (np.float32, np.int64, complex, object, "U3"))
    yield np.full((4, 4, 3), np.nan)
    yield from (Image.new("F", (4, 4), value) for value in (0.5, math.nan, math.inf))
    yield from (Image.new("RGB", (0, 4)), Image.new("L", (1, 9000)), torch.zeros(4, 4, 3))


TEXTS: list[Any] = [
    *(None, 3, True, b"a horse", object(), [], {}, {"a": 1}, {"a horse"}, frozenset(["a horse"])),
    *("", " ", "\n", "\0", [""], ["a horse", ""], [None], ["a horse", 3], [["a horse"]], [b"a"]),
    *("\ud800", "a xylophone of jade", "🐴", "a horse " * 20, "a" * 10**6, iter(()), np.zeros(3)),
]
PIXELS: list[Any] = [
    *(None, "", "a.png", 3, [], [[1, 2], [3]], {}, object(), SCENE, Image.fromarray(SCENE)),
    *(pixels(math.nan), pixels(math.inf), pixels(-math.inf), np.full((1, 3, 224, 224), 1e300)),
    *(pixels().astype(kind) for kind in (np.uint8, np.int64, bool, complex, object)),
    *(pixels(0, shape) for shape in ((3, 224, 224), (0, 3, 224, 224), (1, 3, 224, 225))),
]
LOADS: list[Any] = [None, 3, True, "", "missing", "\0", "~nobody/a", "a" * 5000, b"a", [], {}]
COUNTS: list[Any] = ["2", -1, 0, True, 1.5, 10**9, [], math.nan]
PLOTS: list[Any] = ["x", None, 3, [], b"positive"]
PATHS: list[Any] = ["", "a", "a.gif", "\0.png", "missing/a.png", None, 3, b"a.png", []]


def test_hostile_calls_are_one_sentence(
    folder: Path, clip: ExportedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "none").mkdir()
    explained = clip.explain(SCENE, "a horse")
    calls: list[tuple[str, Any, Callable[[Any], Any]]] = [
        *(("explain", each, lambda v: clip.explain(v, "a horse")) for each in images(tmp_path)),
        *(("explain", each, lambda v: clip.explain(SCENE, v)) for each in TEXTS),
        *(("encode_text", each, clip.encode_text) for each in TEXTS[:4]),
        *(("preprocess", each, clip.preprocess) for each in PLOTS),
        *(("vectors", each, clip.vectors) for each in PIXELS),
        *(("load", each, exported.load) for each in [*LOADS, "file", "none"]),
        *(("load", each, lambda v: exported.load(folder, threads=v)) for each in COUNTS),
        *(
            ("explain", each, lambda v: clip.explain(SCENE, "a horse", max_pixels=v))
            for each in [*COUNTS[:4], 100]
        ),
        *(("plot", each, explained.plot) for each in PLOTS),
        *(("save", each, explained.save) for each in PATHS),
    ]
    assert len(calls) >= 125
    foreign, unnamed = [], []
    for function, value, call in calls:
        error = outcome(partial(call, value))
        if type(error) not in OURS:
            foreign.append((function, repr(value)[:60], repr(error)[:200]))
        elif not str(error).startswith(f"{function}: ") or len(str(error)) > 500:
            unnamed.append((function, str(error)))
    assert foreign == []
    assert unnamed == []
    assert exported.load(folder, threads=1).explain(SCENE, "a horse").scores == explained.scores


def test_what_is_no_number_is_named(clip: ExportedClip) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(InputError, match="the pixels hold NaN or infinity"):
            clip.vectors(pixels(value))
    with pytest.raises(InputError, match="the image holds floating-point values"):
        clip.explain(Image.new("F", (4, 4), math.nan), "a horse")


def test_numbers_that_are_too_large_to_multiply_are_named(
    clip: ExportedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.full((1, 128), 3e38, np.float32)
    monkeypatch.setattr(ExportedClip, "encode_text", lambda *_: large)
    monkeypatch.setattr(
        ExportedClip, "vectors", lambda *_: (large, np.tile(large, (1, 7, 7, 1)), large)
    )
    with pytest.raises(InputError, match="the maps hold NaN or infinity"):
        clip.explain(SCENE, "a horse")


def test_texts_that_are_read_once_are_all_named(clip: ExportedClip) -> None:
    texts: Any = (text for text in ("a horse", "a dog"))
    assert clip.explain(SCENE, texts).names == ("a horse", "a dog")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document."""
    yield path
    keys = value.keys() if isinstance(value, dict) else ()
    for key in range(len(value)) if isinstance(value, list) else keys:
        yield from places(value[key], (*path, key))


def edited(about: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    """A manifest in which one value is another."""
    document = json.loads(json.dumps(["manifest", about]))
    at, (*way, last) = document, (1, *path)
    for key in way:
        at = at[key]
    change(at, last)
    return json.dumps(document[1]).encode() if len(document) > 1 else b""


def put(value: Any) -> Callable[[Any, Any], None]:
    return lambda at, key: at.__setitem__(key, value)


def more(at: Any, key: Any) -> None:
    """A value, or a list of them, once more."""
    if isinstance(at, dict):
        at["other"] = at[key]
    else:
        at.append(at[key])


EDITS: list[Callable[[Any, Any], None]] = [
    *map(put, (None, True, -1, 1.5, 30_000, 10**30, math.nan, "x", [], {})),
    lambda at, key: at.pop(key),
    more,
]


def test_edits_of_a_manifest_are_refused_or_harmless(
    copied: Path, clip: ExportedClip, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a new digest all are refused; with one, a folder is either refused or explains."""
    session = cache(onnxruntime.InferenceSession)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda content, **_: session(content))
    file = copied / "manifest.json"
    about, first = json.loads(file.read_bytes()), clip.explain(SCENE, "a horse")
    nodes = [path for path in places(about) if len(path) < 4]  # the tokens of a card are many
    edits = {edited(about, path, edit): path for path in nodes for edit in EDITS}
    edits |= {b"": (), b"[" * 10**5: (), b"\xff\xfe": (), file.read_bytes()[:-1]: ()}
    edits.pop(json.dumps(about).encode(), None)  # where the value was that
    assert len(edits) >= 222
    foreign, accepted, silent = [], set(), []
    for content, path in edits.items():
        file.write_bytes(content)
        error = outcome(partial(exported.load, copied))
        if type(error) is not InputError:
            silent.append((path, error))
        sign(copied, file.name)
        made: list[Explained] = []
        error = outcome(lambda: made.append(exported.load(copied).explain(SCENE, "a cat")))  # noqa: B023
        if error is None:
            accepted.add(path[0])
            for key, values in (*made[0].maps.items(), ("scores", made[0].scores)):
                assert np.isfinite(values).all(), (path, key)
        elif type(error) not in OURS:
            foreign.append((path, content[:60], repr(error)[:200]))
        shutil.copy(folder / SUMS, copied)
    assert foreign == []
    assert silent == []
    labels = {"captum_clip", "model", "license", "method", "identity"}
    assert accepted == labels | {"tokens", "preprocessing"}
    file.write_bytes((folder / "manifest.json").read_bytes())
    again = exported.load(copied).explain(SCENE, "a horse")
    assert np.array_equal(again.maps["positive"], first.maps["positive"])


def test_a_value_that_a_model_never_has_is_named(copied: Path) -> None:
    file = copied / "manifest.json"
    about = json.loads(file.read_bytes())
    for path, value, said in (
        (("preprocessing", "resize"), 30_000, r"expected resize in \[0, 4096\], got 30000\.\)\."),
        (("preprocessing", "resize"), 200, "expected resize of 0, or of 224 and up, got 200"),
        (("preprocessing", "std", 0), math.nan, r"expected std in \[0\.0001, 1000\], got nan"),
        (("preprocessing", "mean", 1), math.inf, r"expected mean in \[-1000, 1000\], got inf"),
        (("tokens", "length"), "x", "expected length as int, got 'x'"),
        (("grid", 0), 0, r"expected grid in \[1, 4096\], got 0"),
    ):
        file.write_bytes(edited(about, path, put(value)))
        sign(copied, file.name)
        with pytest.raises(InputError, match=rf"not a folder of captum-clip export \({said}"):
            exported.load(copied)


def test_flipped_bits_of_a_graph_are_refused(copied: Path) -> None:
    draw, refused = random.Random(0), 0
    for name in ("image.onnx", "text.onnx"):
        content = (copied / name).read_bytes()
        for _ in range(30):
            at, flipped = draw.randrange(8 * len(content)), bytearray(content)
            flipped[at // 8] ^= 1 << at % 8
            (copied / name).write_bytes(flipped)
            with pytest.raises(InputError, match=rf"expected {name} as SHA256SUMS has it"):
                exported.load(copied)
            refused += 1
        (copied / name).write_bytes(content)
    assert refused == 60
    assert exported.load(copied)


def constant_graph(inputs: dict[str, int], **outputs: Any) -> bytes:
    """A graph of ONNX that gives the same numbers for anything."""
    from onnx import helper, numpy_helper

    values = {name: np.asarray(value) for name, value in outputs.items()}
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values.items()}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    sides = [
        [helper.make_tensor_value_info(name, kind, None) for name, kind in side.items()]
        for side in (inputs, kinds)
    ]
    graph, opset = helper.make_graph(nodes, "constant", *sides), [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


def test_weights_outside_of_a_graph_are_not_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside it nor in the working directory: they have no digest."""
    import onnx
    from onnx import external_data_helper

    monkeypatch.chdir(copied)
    model = onnx.load(copied / "text.onnx")
    external_data_helper.convert_model_to_external_data(model, location="weights.bin")
    onnx.save(model, copied / "text.onnx")
    assert (copied / "weights.bin").stat().st_size > 10**6
    sign(copied, "text.onnx")
    with pytest.raises(InputError, match="is not a folder of captum-clip export"):
        exported.load(copied)


def test_graphs_of_another_kind_are_refused(copied: Path, folder: Path) -> None:
    from onnx import TensorProto

    zero: Any = np.zeros
    whole = {
        "embedding": zero((1, 128), np.float32),
        "vectors": zero((1, 7, 7, 128), np.float32),
        "rest": zero((1, 128), np.float32),
    }
    takes = {"pixels": TensorProto.FLOAT}

    def image(**changes: Any) -> bytes:
        return constant_graph(takes, **(whole | changes))

    nan = np.full((1, 7, 7, 128), math.nan, np.float32)
    cases: list[tuple[str, bytes, str]] = [
        ("image.onnx", image(vectors=nan), "the vectors of image.onnx hold NaN or infinity"),
        (
            "image.onnx",
            image(rest=zero((1, 128), np.float32) + np.inf),
            "the rest of image.onnx hold NaN",
        ),
        ("image.onnx", image(vectors=nan[:, :6]), r"vectors of .* shape \(1, 7, 7, 128\)"),
        ("image.onnx", image(embedding=zero((2, 128), np.float32)), r"embedding of .* \(1, 128\)"),
        ("image.onnx", image(embedding=zero((1, 128), np.int64)), "its numbers are of int64"),
        ("image.onnx", image(rest=zero((), np.float32)), r"rest of .* shape \(1, 128\)"),
        (
            "image.onnx",
            constant_graph(takes, embedding=whole["embedding"]),
            "image.onnx does not run",
        ),
        ("image.onnx", constant_graph({"x": 1}, **whole), "image.onnx does not run"),
        ("image.onnx", constant_graph({"pixels": 7}, **whole), "image.onnx does not run"),
        ("text.onnx", constant_graph({"ids": 7}, embedding=nan[0, 0, :1]), "hold NaN"),
        ("text.onnx", constant_graph({"ids": 1}, embedding=nan[0, 0]), "text.onnx does not run"),
        *(
            (name, content, "is not a folder of captum-clip export")
            for name in FILES[1:]
            for content in (b"", b"\xff" * 99, b"{}", b"[" * 10**5)
        ),
    ]
    for name, content, said in cases:
        (copied / name).write_bytes(content)
        sign(copied, name)
        error = outcome(lambda: exported.load(copied).explain(SCENE, "a horse"))
        assert type(error) is InputError, (name, content[:20], error)
        assert re.search(said, str(error)), (name, content[:20], error)
        for each in (name, SUMS):
            shutil.copy(folder / each, copied)
