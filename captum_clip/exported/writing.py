"""``captum-clip export``: the towers of a model as graphs, which stay where they agree with it."""

import json
import re
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, get_args

import numpy as np
import torch

from .._version import __version__
from ..attr.registry import MethodChoice
from ..checks import check_choice, expand, expect
from ..demo import MODELS
from ..demo.scenes import draw_scene
from ..demo.vocabulary import DemoTokenizer
from ..errors import CaptumClipError, InputError, UnsupportedModelError, public
from ..files import make_folder
from ..models import ClipAdapter
from ..models.adapter import is_transformers_tokenizer
from ..models.geometry import geometry_of
from ..models.identity import BOUND, FIXED_TEXTS, fixed_images
from ..models.images import image_processor
from ..models.steps import ROUNDING
from . import ExportedClip, load
from .graphs import OUTPUTS, ImageGraph, TextGraph, to_onnx
from .manifest import Identity, Manifest, Precision, Preprocessing, Tokens, write_sums
from .page import runtime_files, write_page

CARD: Final = (*FIXED_TEXTS, "a horse", "two dogs, and a cat!", "Crème brûlée", "naïve 🐴 ☕", "鯨")
"""Texts of which the exported tokenizer must make what the model's own makes, or refuse as it."""

SCENES = 64  # on which smaller weights are measured


@public("export")
def export(
    clip: ClipAdapter,
    folder: str | Path,
    *,
    method: str = "direct",
    precision: Precision = "float32",
    runtime: str | Path | None = None,
) -> dict[str, float]:
    """Write a model as a folder that :func:`captum_clip.exported.load` explains images with.

    The graphs are run on fixed images and texts, and compared with the model; where they differ,
    nothing is written.

    Args:
        clip: the model in float32, on the CPU, with its processor and tokenizer.
        folder: a new one, or an empty one.
        method: direct, with its options but `per`.
        precision: of the weights; int8 has a scale for each row of a matrix.
        runtime: a folder node_modules, of which index.html gets copies; by default it loads
            onnxruntime-web and the tokenizers from a CDN.

    Returns:
        How far the graphs are from the model: of embeddings, vectors, sums and texts relative to
        their length; for another `precision` also the worst "score" and the worst "cell" of a map,
        relative to the map's largest, on 64 drawn scenes.

    Raises:
        InputError: a folder with files in it, another method or precision, or a runtime without the
            files of the page.
        UnsupportedModelError: a model that cannot be written, or whose graphs differ from it.
    """
    check_choice(precision, get_args(Precision), name="precision")
    plain = clip.dtype == torch.float32 and clip.device.type == "cpu"
    expect(plain, "a model in float32 on the CPU", f"{clip.dtype} on {clip.device}")
    choice, target = MethodChoice.of(method, tower=clip.tower), expand(folder)
    fits = choice.method.name == "direct" and "per" not in choice.options
    expect(fits, "direct with its options but `per`, which has vectors", method)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{folder} exists and is not empty; give a new folder.")
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
    about = Manifest(
        captum_clip=__version__,
        model=clip.name,
        license=license_of(clip.name),
        method=choice.name,
        precision=precision,
        grid=clip.grid(*size),
        dimension=clip.encode_text("a horse").shape[1],
        tokens=Tokens(longest, not free, pad, "mask" in inputs, card),
        preprocessing=preprocessing_of(clip, size),
        identity=Identity(**clip.identity()),
    )
    models = {
        "image": to_onnx(graph, {"pixels": torch.cat([blank, blank])}, OUTPUTS),
        "text": to_onnx(TextGraph(clip), inputs, ["embedding"], free),
    }
    with _beside(target) as path:
        (path / "tokenizer.json").write_text(tokenizer_of(clip), encoding="utf-8")
        (path / "manifest.json").write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
        write_page(path, about, files)
        exact = _saved(models, path)
        differences = compare(clip, graph, exact)
        if precision != "float32":
            reduced = _saved({name: smaller(m, precision) for name, m in models.items()}, path)
            differences |= precision_of(exact, reduced)
    return differences


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder that takes the place of another one, unless something fails: then it is gone."""
    path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield path
        path.chmod(0o755)
        path.rename(target)  # or in the place of an empty one
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _saved(models: dict[str, Any], folder: Path) -> ExportedClip:
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    write_sums(folder)
    return load(folder)


def preprocessing_of(clip: ClipAdapter, size: tuple[int, int]) -> Preprocessing:
    """What :func:`captum_clip.exported.preprocess` needs to do about the same as a processor."""
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
        made = Tokenizer.from_str(inner.backend_tokenizer.to_str())
        punctuation = Regex(f"[{re.escape(string.punctuation.replace('_', ''))}]")
        lower: list[Any] = [normalizers.Lowercase()]
        bare = [normalizers.Replace("_", " "), normalizers.Replace(punctuation, ""), *lower]
        # OpenCLIP cleans a text before the tokenizer gets it
        cleaning = {"_clean_lower": lower, "_clean_canonicalize": bare}
        steps = cleaning.get(getattr(getattr(own, "clean_fn", None), "__name__", ""), [])
        steps += [made.normalizer] * (made.normalizer is not None)
        made.normalizer = normalizers.Sequence(steps)
        made.no_padding()
        made.no_truncation()
    elif hasattr(own, "bpe_ranks"):  # OpenCLIP's own
        begin, end = "<start_of_text>", "<end_of_text>"
        vocabulary = {"encoder": own.encoder, "bpe_ranks": own.bpe_ranks, "unk_token": end}
        vocabulary |= {"bos_token": begin, "bos_token_id": own.encoder[begin]}
        vocabulary |= {"eos_token": end, "eos_token_id": own.encoder[end]}
        made = CLIPConverter(SimpleNamespace(**vocabulary)).converted()
    else:
        raise UnsupportedModelError(
            f"a {type(own).__name__} cannot be written as JSON; pass a tokenizer of transformers."
        )
    return str(made.to_str())


def license_of(name: str) -> str | None:
    """The license of the weights that the card in a folder names, if there is one."""
    for card in (MODELS.get(name) or Path(name)).glob("*.md"):
        if line := re.search(r"^license: *(\S+)", card.read_text("utf-8", "replace"), re.M):
            return line[1]
    return None


def compare(clip: ClipAdapter, graph: ImageGraph, exported: ExportedClip) -> dict[str, float]:
    """How far graphs, preprocessing and tokens are from the model; an error where they differ."""
    images, worst = fixed_images(), dict[str, float]()
    pixels = torch.cat([clip.preprocess(image) for image in images])
    vectors, rest = graph.direct.vectors(pixels, return_rest=True, **graph._options)
    embedding = vectors.sum((1, 2)) + rest

    def note(name: str, made: Any, wanted: Any, bound: float = ROUNDING[torch.float32]) -> None:
        rows = [np.asarray(each).reshape(len(each), -1) for each in (made, wanted)]
        length = np.linalg.norm(rows[1], axis=1).clip(1e-30)
        off = float((np.linalg.norm(rows[0] - rows[1], axis=1) / length).max())
        worst[name] = max(worst.get(name, 0), off)
        if not off <= bound:
            raise UnsupportedModelError(
                f"the graph's {name} differ by {off:.1g} of their size, more than {bound}."
            )

    try:
        for count in (len(pixels), 1):  # the batch is free
            made = exported.vectors(pixels[:count].numpy())
            note("embeddings", made.embedding, embedding[:count])
            note("vectors", made.vectors, vectors[:count])
            note("sums", made.vectors.sum((1, 2)) + made.rest, embedding[:count])
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
    try:
        made = tokenize(text)
    except CaptumClipError:
        return None
    return made["ids"] if isinstance(made, dict) else made[0].numpy()


def smaller(model: Any, precision: str) -> Any:
    """A graph with its matrices in fewer bits, which are widened where it begins."""
    from onnx import TensorProto, helper, numpy_helper

    widening, nodes = [], [*model.graph.node]
    for weight in [*model.graph.initializer]:
        values, name = numpy_helper.to_array(weight), weight.name
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        stored = {f"{name}_stored": values.astype(np.float16)}
        node = helper.make_node("Cast", [*stored], [name], to=TensorProto.FLOAT)
        if precision == "int8":
            scale = np.abs(values).reshape(len(values), -1).max(1).clip(1e-30) / 127
            rows = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1)))
            stored = {f"{name}_stored": rows.astype(np.int8), f"{name}_scale": scale}
            node = helper.make_node("DequantizeLinear", [*stored], [name], axis=0)
        model.graph.initializer.remove(weight)
        model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in stored.items())
        widening.append(node)
    del model.graph.node[:]
    model.graph.node.extend([*widening, *nodes])
    return model


def precision_of(exact: ExportedClip, reduced: ExportedClip) -> dict[str, float]:
    """The worst score, and the worst cell relative to its map's largest, on 64 drawn scenes."""
    texts, worst = ["a horse", "a dog", "a cat"], {"score": 0.0, "cell": 0.0}
    for seed in range(SCENES):
        first, other = (each.explain(draw_scene(seed).image, texts) for each in (exact, reduced))
        raw, made = (each.maps["positive"] - each.maps["negative"] for each in (first, other))
        cells = np.abs(raw - made) / np.abs(raw).max((2, 3), keepdims=True)
        worst["score"] = max(worst["score"], float(np.abs(first.scores - other.scores).max()))
        worst["cell"] = max(worst["cell"], float(cells.max()))
    return worst
