"""Right calls of public functions in which one argument is of a wrong kind."""

from __future__ import annotations

import io
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from captum_clip import (
    AttentionRollout,
    ClipPairSimilarity,
    ClipSimilarity,
    Comparison,
    DirectContribution,
    DirectInteraction,
    Explanation,
    LastGradAttention,
    Target,
    TextSimilarity,
    attr,
    classify,
    explain,
    load_clip,
    maps,
    metrics,
    targets,
    visualization,
)
from captum_clip import bench as evaluation
from captum_clip.apps import heads
from captum_clip.apps.search import ImageIndex
from captum_clip.bench import emotions, figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.explaining.regions import save_regions
from captum_clip.models import variants
from tests.fuzz.calls import end_of
from tests.fuzz.ends import End

Call = tuple[Callable[..., Any], dict[str, Any]]
"""A public function, and right arguments of it by their names."""


def _closed(file: Any) -> Any:
    file.close()
    return file


def _closed_image() -> Any:
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "PNG")
    image = Image.open(content)
    return _closed(image)


KINDS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "3": lambda: 3,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "1j": lambda: 1j,
    "fraction": lambda: Fraction(1, 2),
    "str": lambda: "x",
    "bytes": lambda: b"x",
    "list": lambda: [],
    "lists": lambda: [[1, 2], [3]],
    "numbers": lambda: [0.1, 0.2, 0.3],
    "dict": lambda: {},
    "dict of 3": lambda: {"a": 3},
    "set": lambda: {1},
    "range": lambda: range(3),
    "generator": lambda: (number for number in range(2)),
    "slice": lambda: slice(None),
    "object": object,
    "class": lambda: dict,
    "function": lambda: lambda: None,
    "path": lambda: Path("none"),
    "linear": lambda: nn.Linear(2, 2),
    "closed file": lambda: _closed(tempfile.TemporaryFile()),  # noqa: SIM115,
    "closed bytes": lambda: _closed(io.BytesIO(b"x")),
    "closed image": _closed_image,
    "array": lambda: np.zeros((2, 3)),
    "array of none": lambda: np.zeros(0),
    "array of objects": lambda: np.array([object(), None]),
    "array of texts": lambda: np.array(["a horse", "a dog"]),
    "array of indices": lambda: np.array([0, 1]),
    "array of one": lambda: np.array(0),
    "tensor": lambda: torch.rand(2, 3, 4, 4),
    "row": lambda: torch.rand(3),
    "scalar": lambda: torch.tensor(1.0),
    "integers": lambda: torch.zeros(2, 2, dtype=torch.int64),
    "bools": lambda: torch.ones(2, 5, 5, dtype=torch.bool),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.zeros(2, 4), torch.zeros(3, 4)], layout=torch.jagged
    ),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(1, 3, 224, 224, device="meta"),
    "complex": lambda: torch.zeros(2, 2, dtype=torch.complex64),
    "tensors": lambda: [torch.rand(2, 2), torch.rand(3)],
    "dtype": lambda: torch.float16,
    "device": lambda: torch.device("meta"),
}
"""Kinds of values that some argument or other does not take."""
CALLABLE = {"class", "function", "linear"}

PHOTO = np.full((32, 40, 3), 90, np.uint8)
TEXTS = ["a horse", "a dog"]


class _Things:
    """What right calls take, made once."""

    def __init__(self, folder: Path) -> None:
        self.clip = load_clip("demo/vit")
        self.pixels = self.clip.preprocess(PHOTO)
        self.target = targets.text(self.clip, TEXTS)
        self.forward = ClipSimilarity(self.clip, self.target)
        self.pairs = ClipPairSimilarity(self.clip)
        self.ids = self.clip.tokenize(TEXTS[:1])
        self.explanation = explain(PHOTO, TEXTS, model=self.clip)
        self.comparison = Comparison([self.explanation])
        self.maps, self.masks = torch.rand(2, 5, 5), torch.eye(10, dtype=torch.bool)[:5, :5][None]
        self.masks = self.masks.repeat(2, 1, 1)
        self.images = torch.rand(2, 3, 8, 8)
        self.changes = metrics.masked_changes(_mean, self.images, grid=(2, 2), samples=4)
        self.vectors = heads.head_vectors(self.clip, [PHOTO, 255 - PHOTO])
        self.spans = heads.describe_heads(self.vectors, self.target, count=1)
        self.probe = targets.EmotionProbe.load("demo/vit")
        self.figure = self.explanation.plot()
        self.folder = folder
        photos = folder / "photos"
        photos.mkdir(exist_ok=True)
        Image.fromarray(PHOTO).save(photos / "a.png")
        self.index = ImageIndex.build(self.clip, photos, folder / "a.lance")
        self.result = self.index.search("a horse")


def _mean(images: Any) -> Any:
    return images.mean((1, 2, 3))


@cache
def _things(folder: Path) -> _Things:
    return _Things(folder)


def calls(folder: Path) -> dict[str, Call]:
    """The right calls by name; `folder` is written to."""
    w = _things(folder)
    clip, forward, pixels = w.clip, w.forward, w.pixels
    single, pair = {"maps": w.maps}, {"maps": w.maps, "masks": w.masks}
    heat = torch.rand(1, 1, 32, 40)
    plain = torch.rand(1, 3, 32, 40)
    return {
        "explain": (
            explain,
            {
                "image": PHOTO,
                "texts": TEXTS,
                "against": None,
                "reference": None,
                "model": clip,
                "method": None,
                "sign": "both",
                "words": False,
                "side": "image",
                "whole": False,
                "hints": None,
                "batch_size": None,
                "processor": None,
                "tokenizer": None,
                "device": None,
                "image_size": None,
            },
        ),
        "classify": (
            classify,
            {"image": PHOTO, "classes": TEXTS, "model": clip, "templates": None, "top": 1},
        ),
        "load_clip": (
            load_clip,
            {
                "name_or_model": "demo/vit",
                "processor": None,
                "tokenizer": None,
                "device": "cpu",
                "dtype": None,
                "image_size": None,
            },
        ),
        "ClipSimilarity": (ClipSimilarity, {"clip": clip, "target": w.target}),
        "ClipSimilarity()": (forward, {"images": pixels}),
        "TextSimilarity": (
            TextSimilarity,
            {"clip": clip, "target": targets.image(clip, PHOTO)},
        ),
        "TextSimilarity()": (
            TextSimilarity(clip, targets.image(clip, PHOTO)),
            {"ids": w.ids},
        ),
        "ClipPairSimilarity": (ClipPairSimilarity, {"clip": clip, "side": "text"}),
        "ClipPairSimilarity()": (w.pairs, {"images": pixels, "others": w.ids}),
        "Target": (
            Target,
            {"embeddings": torch.eye(3), "norms": torch.ones(3), "names": ("a", "b", "c")},
        ),
        "Target[]": (w.target.__getitem__, {"key": 0}),
        "Explanation": (
            Explanation,
            {
                name: getattr(w.explanation, name)
                for name in ("maps", "scores", "names", "norms", "model", "method", "images")
            },
        ),
        "Explanation[]": (w.explanation.__getitem__, {"index": 0}),
        "Comparison[]": (w.comparison.__getitem__, {"index": 0}),
        "plot": (
            w.explanation.plot,
            {"cmap": None, "alpha": 0.5, "interpolation": "bilinear", "original": False},
        ),
        "heatmap": (w.explanation.heatmap, {"interpolation": "bilinear", "original": False}),
        "regions": (w.explanation.regions, {"threshold": "otsu"}),
        "save": (w.explanation.save, {"path": folder / "a.npz"}),
        "load": (Explanation.load, {"path": w.explanation.save(folder / "b.npz")}),
        "save_regions": (
            save_regions,
            {"regions": w.explanation.regions(), "folder": folder / "regions", "about": None},
        ),
        **{
            f"{method.__name__}": (method, {"forward_func": forward, "layer": None})
            for method in (LastGradAttention, AttentionRollout, DirectContribution)
        },
        "DirectInteraction": (DirectInteraction, {"forward_func": w.pairs}),
        "attribute": (
            LastGradAttention(forward).attribute,
            {"inputs": pixels, "target": 0, "additional_forward_args": None, "start_layer": 0},
        ),
        "attribute_targets": (
            DirectContribution(forward).attribute_targets,
            {"inputs": pixels, "targets": [0], "return_scores": False, "return_rest": False},
        ),
        "attribute of pairs": (
            DirectInteraction(w.pairs).attribute,
            {"inputs": (pixels, w.ids), "target": None},
        ),
        "register": (attr.register, {"method": LastGradAttention}),
        "preprocess": (clip.preprocess, {"images": PHOTO}),
        "denormalize": (clip.denormalize, {"images": pixels}),
        "encode_image": (clip.encode_image, {"images": pixels}),
        "encode_text": (clip.encode_text, {"texts": TEXTS}),
        "tokenize": (clip.tokenize, {"texts": TEXTS}),
        "color": (clip.color, {"rgb": (0, 0, 0)}),
        "grid": (clip.grid, {"height": 224, "width": 224}),
        "targets.text": (
            targets.text,
            {"clip": clip, "texts": TEXTS, "templates": "a {}", "allow_empty": False},
        ),
        "targets.words": (
            targets.words,
            {"clip": clip, "text": "a horse and a dog", "words": ["horse"]},
        ),
        "targets.word_tokens": (targets.word_tokens, {"clip": clip, "text": "a horse"}),
        "targets.image": (targets.image, {"clip": clip, "images": PHOTO, "names": ["a"]}),
        "targets.embedding": (
            targets.embedding,
            {"embeddings": torch.eye(3), "names": ["a", "b", "c"]},
        ),
        "targets.emotion": (
            targets.emotion,
            {"clip": clip, "probe": w.probe, "names": ["awe"], "center": False},
        ),
        "concatenate": (targets.concatenate, {"targets": [w.target, w.target]}),
        "upsample": (
            maps.upsample,
            {"maps": w.maps, "size": (9, 9), "mode": "bilinear", "clamp": False},
        ),
        "uncrop": (maps.uncrop, {"maps": w.maps, "box": (0, 0, 5, 5), "size": (9, 9)}),
        "normalize": (maps.normalize, dict(single)),
        "positive": (maps.positive, dict(single)),
        "negative": (maps.negative, dict(single)),
        "expand_to_input": (
            maps.expand_to_input,
            {"maps": torch.rand(2, 1, 5, 5), "images": w.images},
        ),
        **{
            function.__name__: (function, dict(single))
            for function in (
                metrics.center_bias,
                metrics.corner_bias,
                metrics.spatial_entropy,
                metrics.spatial_variance,
                metrics.value_entropy,
            )
        },
        **{
            function.__name__: (function, dict(pair))
            for function in (
                metrics.average_precision,
                metrics.energy_inside,
                metrics.object_mass,
                metrics.segmentation_scores,
                metrics.two_class_average_precision,
            )
        },
        "pointing_game": (metrics.pointing_game, {**pair, "tolerance": 0}),
        "coverage": (metrics.coverage, {**pair, "area": 0.2}),
        "word_mosaic_game": (
            metrics.word_mosaic_game,
            {"maps": w.maps, "cells": w.masks},
        ),
        "rank_correlation": (metrics.rank_correlation, {"maps": w.maps, "others": w.maps}),
        "bootstrap_mean": (
            metrics.bootstrap_mean,
            {"values": [0.1, 0.2], "groups": None, "level": 0.9, "resamples": 9, "seed": 0},
        ),
        "paired_difference": (
            metrics.paired_difference,
            {"first": [0.1, 0.2], "second": [0.3, 0.1], "groups": None, "resamples": 9},
        ),
        "holm": (metrics.holm, {"p_values": [0.1, 0.2]}),
        "mean_fill": (metrics.mean_fill, {"images": w.images}),
        "blur_fill": (metrics.blur_fill, {"images": w.images, "deviation": 2.0}),
        "masked_changes": (
            metrics.masked_changes,
            {
                "forward": _mean,
                "images": w.images,
                "target": None,
                "grid": (2, 2),
                "share": 0.2,
                "samples": 2,
                "fill": 0.0,
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "infidelity": (metrics.infidelity, {"maps": w.maps, "changes": w.changes}),
        "faithfulness_correlation": (
            metrics.faithfulness_correlation,
            {"maps": w.maps, "changes": w.changes},
        ),
        "perturbation_test": (
            metrics.perturbation_test,
            {
                "forward": _mean,
                "images": w.images,
                "maps": w.maps,
                "targets": None,
                "fill": metrics.mean_fill(w.images),
                "labels": None,
                "fractions": (0.0, 0.5, 1.0),
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "sensitivity": (
            metrics.sensitivity,
            {
                "attribute": lambda images, **_: images.mean(1, keepdim=True),
                "images": w.images,
                "target": None,
                "radius": 0.02,
                "samples": 2,
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "shapley_effects": (metrics.shapley_effects, {"scores": torch.rand(2, 4)}),
        "effect_agreement": (
            metrics.effect_agreement,
            {"mass": torch.rand(2, 3), "effects": torch.rand(2, 3)},
        ),
        "overlay": (
            visualization.overlay,
            {
                "images": plain,
                "heatmap": heat,
                "negative": None,
                "names": ["a"],
                "scores": torch.rand(1, 1),
                "notes": None,
                "labels": (),
                "alpha": 0.5,
                "cmap": None,
                "caption": "",
            },
        ),
        "signs": (
            visualization.signs,
            {
                "images": plain,
                "positive": heat,
                "negative": heat,
                "names": ["a"],
                "scores": None,
                "references": None,
                "labels": (),
                "alpha": 0.5,
                "caption": "",
            },
        ),
        "contact_sheet": (
            visualization.contact_sheet,
            {
                "images": plain,
                "columns": {"a": heat},
                "names": None,
                "scores": None,
                "references": None,
                "models": (),
                "cmap": "inferno",
                "caption": "",
            },
        ),
        "visualization.average": (
            visualization.average,
            {
                "rows": {"a": torch.rand(2, 5, 5)},
                "names": ["a", "b"],
                "notes": None,
                "scale": None,
                "cmap": "inferno",
                "caption": "",
            },
        ),
        "matches": (
            visualization.matches,
            {
                "images": plain,
                "references": plain,
                "shares": torch.rand(1, 2, 2, 4, 4),
                "scores": None,
                "caption": "",
            },
        ),
        "sentences": (
            visualization.sentences,
            {
                "images": plain,
                "texts": [[("a", 0.1), ("horse", 0.2)]],
                "scores": None,
                "heatmap": None,
                "alpha": 0.5,
                "cmap": "inferno",
                "caption": "",
            },
        ),
        "save_figure": (
            visualization.save_figure,
            {"figure": w.figure, "path": folder / "a.png", "dpi": 20},
        ),
        "figures.compare_methods": (
            figures.compare_methods,
            {
                "images": PHOTO,
                "texts": "a horse",
                "references": (),
                "models": clip,
                "methods": "direct",
                "cmap": "inferno",
                "device": None,
            },
        ),
        "figures.draw_average": (figures.draw_average, {"studies": folder / "none", "names": None}),
        "head_vectors": (
            heads.head_vectors,
            {"clip": clip, "images": [PHOTO], "batch_size": 2},
        ),
        "describe_heads": (
            heads.describe_heads,
            {"vectors": w.vectors, "pool": w.target, "direction": None, "count": 1},
        ),
        "rank_heads": (heads.rank_heads, {"vectors": w.vectors, "direction": None}),
        "heads_figure": (
            heads.heads_figure,
            {"clip": clip, "images": [PHOTO, 255 - PHOTO], "vectors": w.vectors, "spans": w.spans},
        ),
        "text_span": (
            heads.text_span,
            {"outputs": w.vectors.heads[:, 0, 0], "pool": w.target, "count": 1, "seed": 0},
        ),
        "draw_scene": (
            draw_scene,
            {
                "seed": 0,
                "split": "test",
                "objects": ["horse"],
                "count": None,
                "background": None,
                "size": 64,
                "without": (),
            },
        ),
        "find_artemis": (emotions.find_artemis, {"folder": folder / "none"}),
        "read_artemis": (
            emotions.read_artemis,
            {"path": folder / "none", "images": folder / "none"},
        ),
        "fit_probe": (
            emotions.fit_probe,
            {
                "features": np.random.default_rng(0).normal(size=(60, 4)),
                "votes": np.eye(9, dtype=int)[np.arange(60) % 9] * 5,
                "seed": 0,
                "held_out": 0.2,
                "strength": 0.001,
                "model": "",
            },
        ),
        "EmotionProbe": (
            targets.EmotionProbe,
            {"weights": w.probe.weights, "bias": w.probe.bias, "model": ""},
        ),
        "EmotionProbe.predict": (
            w.probe.predict,
            {"features": np.ones((2, w.probe.weights.shape[1]))},
        ),
        "EmotionProbe.save": (w.probe.save, {"path": folder / "a.safetensors"}),
        "EmotionProbe.load": (targets.EmotionProbe.load, {"path": "demo/vit"}),
        "image_features": (
            evaluation.image_features,
            {"clip": clip, "paths": [folder / "photos/a.png"], "batch_size": 1, "workers": 0},
        ),
        "StudyConfig": (
            evaluation.StudyConfig,
            {
                "images": "a",
                "output": "b",
                "texts": TEXTS,
                "models": ("demo/vit",),
                "methods": (),
                "centered": False,
                "limit": None,
                "batch_size": 2,
            },
        ),
        "EvaluationConfig": (
            evaluation.EvaluationConfig,
            {
                "model": "demo/vit",
                "output": "b",
                "data": ("demo",),
                "methods": ("direct",),
                "tasks": (),
                "images": 2,
                "fills": ("mean",),
                "template": None,
            },
        ),
        "evaluate": (evaluation.evaluate, {"config": 0}),
        "run_study": (evaluation.run_study, {"config": 0}),
        "open_data": (evaluation.open_data, {"name": "demo", "number": 2, "seed": 0}),
        "methods_for": (evaluation.methods_for, {"clip": clip}),
        "permute_heads": (
            variants.permute_heads,
            {"model": clip.model, "layer": 0, "permutation": [*range(clip.tower.layers[0].heads)]},
        ),
        "randomize_parameters": (
            variants.randomize_parameters,
            {"model": clip, "seed": 0, "stages": 1},
        ),
        "randomization_stages": (variants.randomization_stages, {"model": clip}),
        "ImageIndex.build": (
            ImageIndex.build,
            {"clip": clip, "images": folder / "photos", "path": folder / "c.lance"},
        ),
        "ImageIndex.open": (ImageIndex.open, {"path": folder / "a.lance", "model": clip}),
        "search": (w.index.search, {"texts": "a horse", "top": 1, "sign": "positive"}),
        "search.explanation": (
            w.index.explanation,
            {"paths": list(w.result.files), "texts": "a horse"},
        ),
    }


def ends(folder: Path, cases: range, seed: int = 0) -> Iterator[End]:
    """Make right calls with one argument of another kind, and tell how each ended."""
    right, generator = calls(folder), random.Random()
    os.chdir(folder)  # a path of the wrong kind may be written to
    for case in cases:
        generator.seed(f"{seed} {case}")
        name = generator.choice([*right])
        function, arguments = right[name]
        argument = generator.choice([*arguments])
        # what a function of the user's own raises is the user's
        kinds = [*KINDS] if not callable(arguments[argument]) else [*KINDS.keys() - CALLABLE]
        kind = generator.choice(sorted(kinds))
        changed = {**arguments, argument: KINDS[kind]()}
        yield end_of(case, f"{name}, {argument}: {kind}", partial(function, **changed))
