"""``captum-clip export``: a model as graphs of ONNX, and the page that runs them in a browser.

The graphs hold no gradient: what :mod:`captum_clip.attr` checks by gradients is compared instead.
"""

import io
import json
import re
import shutil
import string
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .._version import __version__
from ..attr import DirectContribution, extend
from ..attr.registry import MethodChoice
from ..checks import check_new_folder, excerpt, expect, find_folder
from ..demo import MODELS
from ..demo.catalog import DemoTokenizer
from ..demo.scenes import draw_scene
from ..errors import CaptumClipError, InputError, UnsupportedModelError, argument, public
from ..explaining.drawing import MEANINGS, render
from ..explaining.hints import SHARE, UNRELATED
from ..files import NARROW, make_folder
from ..maps import to_float32
from ..models import ClipAdapter
from ..models.adapter import BOUND, FIXED_TEXTS, fixed_images, is_transformers_tokenizer
from ..models.images import geometry_of, image_processor
from ..models.steps import ROUNDING, Direction, push_forward
from ..models.towers import ResNetTower, TransformerTower
from ..recording.observe import Features, Kernels, Outputs, Sums, observe
from ..recording.records import NOTHING
from ..targets.similarity import ClipSimilarity
from ..visualization.colors import NEGATIVE, POSITIVE
from .exported import SUMS, ExportedClip, Manifest, Preprocessing, Tokens, digest_line, load

OUTPUTS: Final = ("embedding", "vectors", "rest")
CARD: Final = (*FIXED_TEXTS, "a horse", "two dogs, and a cat!", "Crème brûlée", "naïve 🐴 ☕", "鯨")
"""Texts of which the exported tokenizer must make what the model's own makes, or refuse as it."""
RUNTIME: Final = {"onnxruntime-web": "1.30.0", "@huggingface/tokenizers": "0.2.0"}
"""Packages of npm, in the versions that are tested."""
INSTALL: Final = "npm install " + " ".join(map("@".join, RUNTIME.items()))
_WASM = ["dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"]
_GPU = [name.replace("threaded", "threaded.asyncify") for name in _WASM]
RUNTIME_FILES: Final = {
    "onnxruntime-web": ["dist/ort.wasm.min.mjs", "dist/ort.webgpu.min.mjs", *_WASM, *_GPU],
    "@huggingface/tokenizers": ["dist/tokenizers.min.mjs", "LICENSE"],
}
_LICENSE: Final = re.compile(r"^license: *(\S+)", re.M)  # of the weights, in a model card
CDN: Final = "https://cdn.jsdelivr.net"
_OFFERED: Final = (("horse", "dog"), ("bee", "rocket"), ("cat", "guitar"))
"""What stands in the drawn scenes of the page."""
PIXELS: Final = 89_478_485
"""The most of an image on the page: Pillow's own limit."""
TEXTS: Final = ("a horse and a dog", "a horse", "a rocket")


@public("export")
def export(
    clip: ClipAdapter,
    folder: str | Path,
    *,
    method: str = "direct",
    runtime: str | Path | None = None,
) -> dict[str, float]:
    """Write a model as a folder that :func:`captum_clip.apps.exported.load` explains images with.

    The graphs are run on fixed images and texts, and compared with the model; where they differ,
    nothing is written.

    Args:
        clip: the model in float32, on the CPU, with its processor and tokenizer.
        folder: a new one, or an empty one.
        method: direct, with its options but `per`.
        runtime: a folder node_modules, of which index.html gets copies; by default it loads
            onnxruntime-web and the tokenizers from a CDN.

    Returns:
        How far the graphs are from the model: of embeddings, vectors, sums and texts relative to
        their length.

    Raises:
        InputError: a folder with files in it, another method, or a runtime without the files of the
            page.
        UnsupportedModelError: a model that cannot be written, or whose graphs differ from it.
    """
    plain = clip.dtype == torch.float32 and clip.device.type == "cpu"
    expect(plain, "a model in float32 on the CPU", f"{clip.dtype} on {clip.device}")
    choice, target = MethodChoice.of(method, tower=clip.tower), check_new_folder(folder)
    fits = choice.method.name == "direct" and "per" not in choice.options
    expect(fits, "direct with its options but `per`, which has vectors", method)
    files = {} if runtime is None else runtime_files(runtime)
    make_folder(target.parent)
    blank, graph = clip.preprocess(draw_scene(0).image), ImageGraph(clip, dict(choice.options))
    ids, mask = clip.text_inputs(["a horse", "a horse and a dog"])
    inputs = {"ids": ids} if mask is None else {"ids": ids, "mask": mask}
    # as the model was trained: to its longest text, or to that of a batch
    free = [*inputs] if len(clip.text_inputs("a")[0][0]) < ids.shape[1] else []
    longest, pad = clip.context_length or ids.shape[1], int(ids[0, -1])  # of the shorter text
    size = (blank.shape[-2], blank.shape[-1])
    # which lets the page see whether its own tokenizer reads texts like the model
    rows = {text: _ids_or_none(clip.text_inputs, text) for text in CARD}
    card = {text: None if row is None else row[0].tolist() for text, row in rows.items()}
    files_of_model = (MODELS.get(clip.name) or Path(clip.name)).glob("*.md")
    cards = [file.read_text("utf-8", "replace") for file in files_of_model]
    about = Manifest(
        captum_clip=__version__,
        model=clip.name,
        license=next((line[1] for line in map(_LICENSE.search, cards) if line), None),
        method=choice.name,
        grid=clip.grid(*size),
        dimension=clip.encode_text("a horse").shape[1],
        tokens=Tokens(longest, not free, pad, "mask" in inputs, card),
        preprocessing=resizing_of(clip, size),
        identity=clip.identity(),
    )
    models = {
        "image.onnx": to_onnx(graph, {"pixels": torch.cat([blank, blank])}, OUTPUTS),
        "text.onnx": to_onnx(TextGraph(clip), inputs, ["embedding"], free),
    }
    # a folder that takes the place of the target, unless something fails: then it is gone
    path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (path / "tokenizer.json").write_text(tokenizer_of(clip), encoding="utf-8")
        (path / "manifest.json").write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
        write_browser_page(path, about, files)
        for name, model in models.items():
            (path / name).write_bytes(model.SerializeToString())
        written = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [digest_line(f.read_bytes(), f.relative_to(path).as_posix()) for f in written]
        (path / SUMS).write_bytes(b"".join(line + b"\n" for line in lines))
        differences = check_graphs(clip, graph, load(path))
        path.chmod(0o755)
        path.rename(target)  # or in the place of an empty one
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)
    return differences


class ImageGraph(nn.Module):
    """Pixels (B, 3, H, W) -> unit embeddings (B, E), vectors (B, h, w, E) and their rest (B, E).

    As :meth:`DirectContribution.vectors` has them. Its laws are checked by gradients, which PyTorch
    cannot trace, so here nothing is checked, and the numbers are to be compared with its own.
    """

    def __init__(self, clip: ClipAdapter, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self._clip, self.options = clip.model, clip, options
        self.direct = DirectContribution(ClipSimilarity(clip, extend.any_target(clip)))
        depth = options.get("depth", "pooling")
        if depth == "all":
            raise UnsupportedModelError(
                "direct:depth=all needs a backward pass for each number of an embedding, which an "
                "ONNX graph cannot run; export direct, or direct:depth=token."
            )
        self._layers = self.direct._reading_layers(options.get("start_layer", 0), depth)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the tower once, and take its embedding apart."""
        tower, layers = self._clip.tower, self._layers
        centered = self.options.get("baseline") == "mean"
        take = partial(extend.PooledRow.of, centered=centered)
        if isinstance(tower, TransformerTower):
            last = len(tower.layers) - 1
            blocks = Sums(range(layers.start, min(layers.stop, last + 1)))
            recording = observe(tower, Kernels(layers, take), blocks, Outputs([last]))
        else:
            assert isinstance(tower, ResNetTower)
            recording = observe(tower, Features(), Kernels(range(len(tower.attentions)), take))
        with torch.enable_grad(), recording as record:
            embedding = to_float32(self._clip.image_features(pixels).detach())
        with torch.no_grad():
            token, run = extend.pooled_tokens(tower, record), extend.Pass(record, NOTHING, NOTHING)
            none = Direction.of(NOTHING[None], NOTHING)  # vectors are those of every score
            embedded = extend.PooledEmbedding(
                run, embedding, none, NOTHING, token=to_float32(token), dtype=token.dtype
            )
            pooled = extend.rows_of(tower, embedded, centered)
            rows = extend.pushed_rows(pooled, self.options.get("depth") == "token")
            shares = push_forward(pooled.head, pooled.token, rows)[1]
            length = embedding.norm(dim=-1, keepdim=True)
            vectors = record.on_grid((shares / length[:, None]).transpose(1, 2)).permute(0, 2, 3, 1)
            unit = embedding / length
            return unit, vectors, unit - vectors.sum((1, 2))


class TextGraph(nn.Module):
    """Token ids (N, T), and a mask where the tower takes one -> unit embeddings (N, E)."""

    def __init__(self, clip: ClipAdapter) -> None:
        super().__init__()
        self.model, self._clip = clip.model, clip

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the tower."""
        return F.normalize(to_float32(self._clip.text_features(ids, mask)), dim=-1)


def to_onnx(
    graph: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], free: Sequence[str] = ()
) -> Any:
    """Trace a graph, whose batch stays free, of some inputs the length too: a `ModelProto` of ONNX.

    UnsupportedModelError for a model with an operation that ONNX does not have.
    """
    import onnx

    file: Any = io.BytesIO()  # which the type of the path leaves out
    names = [*inputs, *outputs]
    axes = {name: dict(enumerate(["batch", "length"][: 1 + (name in free)])) for name in names}
    options: Any = {"input_names": [*inputs], "output_names": [*outputs], "dynamic_axes": axes}
    # no mode of the model is switched
    options |= {"training": torch.onnx.TrainingMode.PRESERVE, "opset_version": 17, "dynamo": False}
    # a fused layer is a function that ONNX does not have
    unfused = patch.object(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    # a failed export prints the whole graph, and switches the log on if it is off
    silent = patch.object(torch._C, "_jit_onnx_log", lambda *_: None)
    try:
        with warnings.catch_warnings(), unfused, silent:
            warnings.simplefilter("ignore")  # what is compared becomes a constant, which it is
            torch.onnx.export(graph, tuple(inputs.values()), file, **options)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = excerpt(str(error).strip().partition("\n")[0], 200)
        message = f"PyTorch cannot write the model as an ONNX graph: {reason}"
        raise UnsupportedModelError(message) from error
    model = onnx.load_from_string(file.getvalue())
    for node in model.graph.node:  # axes from the end, which onnxruntime refuses
        for attribute in node.attribute if node.op_type == "Transpose" else ():
            attribute.ints[:] = [axis % len(attribute.ints) for axis in attribute.ints]
    return model


def resizing_of(clip: ClipAdapter, size: tuple[int, int]) -> Preprocessing:
    """What :meth:`ExportedClip.preprocess` needs to do as a processor does."""
    inner, statistics = image_processor(clip.processor), clip._statistics()
    steps: Any = [s for s in getattr(inner, "transforms", ()) if hasattr(s, "interpolation")]
    name: Any = steps[0].interpolation.value if steps else getattr(inner, "resample", 3)
    crop = geometry_of(inner, (300, 401))
    box: Any = crop.box
    left, top, right, bottom = box
    short = 0 if crop.size == size else min(crop.size)  # 0 where both sides are given
    if (bottom - top, right - left) != size or min(left, top) < 0 or 0 < short < max(size):
        raise UnsupportedModelError("its preprocessing pads images, or has no fixed size.")
    rounds_up = int(2 * left > crop.size[1] - size[1])  # half a pixel of a margin
    resample = int({"bilinear": 2, "bicubic": 3}.get(name, name))
    values: Any = (size, short, rounds_up, *map(tuple, statistics), resample)
    return Preprocessing(*values)


def tokenizer_of(clip: ClipAdapter) -> str:
    """The JSON of the library tokenizers for a tokenizer; UnsupportedModelError for another one."""
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers.convert_slow_tokenizer import CLIPConverter

    own: Any = clip._require("tokenizer")
    inner: Any = own if is_transformers_tokenizer(own) else getattr(own, "tokenizer", None)
    if isinstance(own, DemoTokenizer):
        return (MODELS["demo/vit"] / "tokenizer.json").read_text("utf-8")
    if hasattr(inner, "backend_tokenizer"):
        tokenizer = Tokenizer.from_str(inner.backend_tokenizer.to_str())
        punctuation = Regex(f"[{re.escape(string.punctuation.replace('_', ''))}]")
        lower: list[Any] = [normalizers.Lowercase()]
        bare = [normalizers.Replace("_", " "), normalizers.Replace(punctuation, ""), *lower]
        # OpenCLIP cleans a text before the tokenizer gets it
        cleaning = {"_clean_lower": lower, "_clean_canonicalize": bare}
        steps = cleaning.get(getattr(getattr(own, "clean_fn", None), "__name__", ""), [])
        steps += [tokenizer.normalizer] * (tokenizer.normalizer is not None)
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    elif hasattr(own, "bpe_ranks"):  # OpenCLIP's own
        begin, end = "<start_of_text>", "<end_of_text>"
        vocabulary = {"encoder": own.encoder, "bpe_ranks": own.bpe_ranks, "unk_token": end}
        vocabulary |= {"bos_token": begin, "bos_token_id": own.encoder[begin]}
        vocabulary |= {"eos_token": end, "eos_token_id": own.encoder[end]}
        tokenizer = CLIPConverter(SimpleNamespace(**vocabulary)).converted()
    else:
        raise UnsupportedModelError(
            f"a {type(own).__name__} cannot be written as JSON; pass a tokenizer of transformers."
        )
    return str(tokenizer.to_str())


def check_graphs(clip: ClipAdapter, graph: ImageGraph, exported: ExportedClip) -> dict[str, float]:
    """How far graphs, preprocessing and tokens are from the model; an error where they differ."""
    images, worst = fixed_images(), dict[str, float]()
    pixels = torch.cat([clip.preprocess(image) for image in images])
    vectors, rest = graph.direct.vectors(pixels, return_rest=True, **graph.options)
    embedding = vectors.sum((1, 2)) + rest

    def note(
        name: str, computed: Any, expected: Any, bound: float = ROUNDING[torch.float32]
    ) -> None:
        rows = [np.asarray(each).reshape(len(each), -1) for each in (computed, expected)]
        length = np.linalg.norm(rows[1], axis=1).clip(1e-30)
        off = float((np.linalg.norm(rows[0] - rows[1], axis=1) / length).max())
        worst[name] = max(worst.get(name, 0), off)
        if not off <= bound:
            raise UnsupportedModelError(
                f"the graph's {name} differ by {off:.1g} of their size, more than {bound}."
            )

    try:
        for count in (len(pixels), 1):  # the batch is free
            computed = exported.vectors(pixels[:count].numpy())
            note("embeddings", computed.embedding, embedding[:count])
            note("vectors", computed.vectors, vectors[:count])
            note("sums", computed.vectors.sum((1, 2)) + computed.rest, embedding[:count])
        own_pixels = exported.preprocess(images)
        note("preprocessed images", exported.vectors(own_pixels).embedding, embedding, 2 * BOUND)
        for text in CARD:
            ids, own = (_ids_or_none(each, text) for each in (exported.tokenize, clip.text_inputs))
            if not np.array_equal(ids, own):
                raise UnsupportedModelError(f"its tokenizer as JSON reads {text!r} differently.")
            if ids is not None:
                note("texts", exported.encode_text(text), clip.encode_text(text).detach())
    except InputError as error:
        raise UnsupportedModelError(error.reason) from error
    return worst


def _ids_or_none(tokenize: Any, text: str) -> Any:
    """The ids of a text, or None where it is refused."""
    with suppress(CaptumClipError):
        tokens = tokenize(text)
        return tokens["ids"] if isinstance(tokens, dict) else tokens[0].numpy()
    return None


def runtime_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder node_modules that the page needs, by their names beside the page.

    InputError where a file is missing, or has another version than the one that is tested.
    """
    path, files = find_folder(folder), dict[str, Path]()
    for package, version in RUNTIME.items():
        about = path / package / "package.json"
        installed = json.loads(about.read_text("utf-8"))["version"] if about.is_file() else None
        names = {f"runtime/{package}/{n}": path / package / n for n in RUNTIME_FILES[package]}
        if installed != version or not all(map(Path.is_file, names.values())):
            raise InputError(
                f"{argument('runtime')}: {folder} does not hold {package} {version}; run "
                f"`{INSTALL}` in an empty folder, and give its folder node_modules."
            )
        files |= names
    return files


def write_browser_page(folder: Path, about: Manifest, runtime: Mapping[str, Path]) -> None:
    """Write index.html, the drawn scenes that it offers, and copies of the runtime's files."""
    for name, file in runtime.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    scenes = [f"scene{seed}.png" for seed in range(len(_OFFERED))]
    for seed, (name, things) in enumerate(zip(scenes, _OFFERED, strict=True)):
        Image.fromarray(draw_scene(seed, objects=things).image).save(folder / name)
    bases = [f"{CDN}/npm/{package}@{version}/dist/" for package, version in RUNTIME.items()]
    if runtime:
        bases = [f"./runtime/{package}/dist/" for package in RUNTIME]
    values: Any = {"about": about, "small": about.model in MODELS, "scenes": scenes}
    values |= {"texts": TEXTS, "origin": "" if runtime else CDN, "sums": SUMS}
    values |= {"narrow": NARROW, "pixels": PIXELS, "unrelated": UNRELATED, "share": SHARE}
    values |= {"ort": bases[0], "tokenizers": bases[1]}
    looks = {"positive": (MEANINGS[0], POSITIVE), "negative": (MEANINGS[1], NEGATIVE)}
    page = render(Path(__file__).with_name("exported.html"), looks, **values)
    (folder / "index.html").write_text(page, encoding="utf-8")
