"""`explain`: images and texts in, an `Explanation` with maps, scores and a picture out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from . import maps, targets, visualization
from .attr.registry import MethodChoice, default_method
from .checks import check_destination, check_integer, find_file
from .errors import InputError, TargetError
from .files import DAMAGED, replace_file
from .maps import Mode
from .models import ClipAdapter, load_clip
from .models.base import ImageLike
from .similarity import ClipSimilarity
from .targets import Target
from .text_maps import TextMap, from_json, text_maps
from .visualization import saving
from .visualization.style import ALPHA

Sign = Literal["positive", "negative", "both"]
Side = Literal["image", "text", "both"]

FORMATS: Final = (*saving.FORMATS, ".npz")
"""Endings of the files that :meth:`Explanation.save` writes."""

_PARTS: Final = ("scores", "names", "norms", "model", "method", "images", "words")
_SIGNS: Final = ("positive", "negative")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What :func:`explain` found; tensors on the CPU.

    Attributes:
        maps: sign ("positive", "negative") -> raw maps (B, K, h, w), none below zero, on the
            tower's own grid.
        scores: cosine similarities (B, K).
        names: of the K targets.
        norms: lengths (K,) that the targets had before they became unit rows.
        model: its name.
        method: its command-line name with its options.
        images: what the model saw, (B, 3, H, W), colours in [0, 1].
        words: whether the first target is a text and the others are its words.
        text_maps: of the text side, for each text its words with their values; start, end and
            padding are left out. Where only the text side was asked for, `maps` is empty.

    Raises:
        InputError: the shapes do not belong together.
    """

    maps: Mapping[str, Tensor]
    scores: Tensor
    names: tuple[str, ...]
    norms: Tensor
    model: str
    method: str
    images: Tensor
    words: bool = False
    text_maps: tuple[TextMap, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.images), len(self.names))
        fits = (
            self.images.ndim == 4
            and self.scores.shape == shape
            and self.norms.shape == shape[1:]
            and len(self.maps) + len(self.text_maps) > 0
            and len(self.text_maps) in (0, len(self.names))
            and all(sign in _SIGNS and m.ndim == 4 for sign, m in self.maps.items())
            and all(m.shape[:2] == shape for m in self.maps.values())
        )
        if not fits:
            shapes = {sign: tuple(m.shape) for sign, m in self.maps.items()}
            raise InputError(
                f"Explanation: images {tuple(self.images.shape)}, {len(self.names)} names, scores "
                f"{tuple(self.scores.shape)} and maps {shapes} do not belong together."
            )

    def plot(
        self,
        *,
        cmap: str | Colormap | None = None,
        alpha: float = ALPHA,
        interpolation: Mode = "bicubic",
    ) -> Figure:
        """The maps over the images, resized, and min-max normalised one by one.

        One row per image and one column per target; with words, one column per word, dimmed by its
        norm; with both signs, one row per image and target, positive beside negative on a scale
        that the two share. With the text side one row per text: the image, or its map, beside the
        words in their colours. For another look pass the maps to
        :mod:`captum_clip.visualization` yourself.

        Args:
            cmap: colour map, by name or as it is; by default inferno, blue for what speaks against
                alone, and orange and blue where both signs are drawn.
            alpha: opacity where a map is 1; where it is 0 the image shows through.
            interpolation: between the cells of a map: "bicubic", kept within the map's range,
                "bilinear", or "nearest", which shows the cells as they are.

        Raises:
            InputError: an unknown colour map or interpolation, an alpha that is not in [0, 1].
        """
        heat = self.heat(interpolation)
        caption = f"{self.model} \N{MIDDLE DOT} {self.method}"
        if list(self.maps) == ["negative"]:
            caption += " \N{MIDDLE DOT} what speaks against"
        shown: dict[str, Any] = {"names": self.names, "scores": self.scores, "caption": caption}
        shown["alpha"] = alpha
        if not self.words and not self.text_maps and len(heat) == 2:
            if cmap is not None:
                shown["cmaps"] = (cmap, cmap)
            return visualization.signs(self.images, heat["positive"], heat["negative"], **shown)
        first, second = (*heat.values(), None, None)[:2]
        if cmap is not None:
            shown["cmap"] = cmap
        elif list(heat) == ["negative"]:
            shown["cmap"] = visualization.NEGATIVE
        if self.text_maps:
            del shown["names"]
            return visualization.sentences(self.images, self.text_maps, heat=first, **shown)
        assert first is not None
        if self.words:
            shown.update(norms=self.norms, negative=second)
            return visualization.words(self.images, first, **shown)
        return visualization.overlay(self.images, first, **shown)

    def heat(self, interpolation: Mode = "bilinear") -> dict[str, Tensor]:
        """The maps resized, then min-max normalised one by one, sign -> (B, K, H, W) in [0, 1].

        The two signs of a map share one scale. :meth:`plot` draws them, with the interpolation
        that it is given.

        Raises:
            InputError: an unknown interpolation.
        """
        size = (self.images.shape[-2], self.images.shape[-1])
        signs = [sign for sign in _SIGNS if sign in self.maps]
        if not signs:
            return {}
        large = [
            maps.upsample(
                self.maps[sign], size, mode=interpolation, clamp=interpolation == "bicubic"
            )
            for sign in signs
        ]
        shared = maps.normalize(torch.cat(large, dim=-1))
        return dict(zip(signs, shared.chunk(len(signs), dim=-1), strict=True))

    def save(self, path: str | Path) -> Path:
        """Write the picture (.png, .jpg, .pdf, .svg) or everything (.npz).

        The file appears under its name only when it is complete; an existing one is replaced.

        Returns:
            The path.

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = check_destination(path, FORMATS)
        if path.suffix.lower() != ".npz":
            return saving.save_figure(self.plot(), path)
        arrays: dict[str, Any] = {
            f"maps_{sign}": values.numpy() for sign, values in self.maps.items()
        }
        for part in _PARTS:
            value = getattr(self, part)
            arrays[part] = value.numpy() if isinstance(value, Tensor) else np.array(value)

        if self.text_maps:
            arrays["text_maps"] = np.array(json.dumps(self.text_maps))

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, **arrays)

        replace_file(path, write)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Read what :meth:`save` wrote as .npz.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        path = find_file(path, caller="Explanation.load")
        try:
            with zipfile.ZipFile(path):
                pass
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return cls(
                maps={
                    key.removeprefix("maps_"): torch.from_numpy(array)
                    for key, array in arrays.items()
                    if key.startswith("maps_")
                },
                names=tuple(arrays["names"].tolist()),
                model=str(arrays["model"]),
                method=str(arrays["method"]),
                words=bool(arrays["words"]),
                text_maps=from_json(str(arrays.get("text_maps", "[]"))),
                **{part: torch.from_numpy(arrays[part]) for part in ("scores", "norms", "images")},
            )
        except DAMAGED as error:
            raise InputError(
                f"Explanation.load: {path} is no file of Explanation.save ({error})."
            ) from error

    def __repr__(self) -> str:
        return (
            f"Explanation(model={self.model!r}, method={self.method!r}, images={len(self.images)}, "
            f"names={list(self.names)}, signs={list(self.maps)})"
        )


def explain(
    image: ImageLike | Sequence[ImageLike],
    texts: str | Sequence[str] | Target,
    *,
    model: str | Path | nn.Module | ClipAdapter = "ViT-B/32",
    method: str | type[Any] | None = None,
    sign: Sign = "positive",
    words: bool | Sequence[str | tuple[int, int]] = False,
    side: Side = "image",
    batch_size: int | None = None,
    processor: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Explanation:
    r"""Why does the image fit the text, and which parts speak against it?

    With :math:`m(t)` for the method's map of target t, the positive map is :math:`m(t)^+` and the
    negative one :math:`m(-t)^+`; for Grad-CAM, whose map is linear in t, that is the ReLU of the
    negated map. Both come from one forward pass. For the attention methods, whose ReLU is taken
    before layers and heads are put together, the two maps may overlap.

    Args:
        image: one or several of what ``ClipAdapter.preprocess`` takes: path, PIL image, array,
            uint8 tensor, or preprocessed float tensors (B, 3, H, W).
        texts: one or several, or a :class:`captum_clip.Target`.
        model: a name that :func:`captum_clip.load_clip` knows, a model or an adapter.
        method: a class of :mod:`captum_clip.attr`, or a name of its `METHODS`, which may have
            options, as "last-grad:heads=averaged"; by default "last-grad" for vision transformers,
            "conservative" for those with a pooling head (SigLIP), "grad-cam" for ResNets.
        sign: "positive", "negative" or "both".
        words: explain one text word by word; True for all words, or those to take as in
            ``targets.words``. The first target is the whole text.
        side: "image" for where in the image, "text" for which words of the texts, "both". On the
            text side a method without a grid, by default "conservative", for one image.
        batch_size: images at a time, with a progress bar; all at once by default.
        processor: the model's image processor, where it has none yet; pictures are drawn with its
            mean and deviation, also where the images are tensors.
        tokenizer: the model's tokenizer, where it has none yet.
        device: where a model loaded by name goes.
        **options: the method's own, such as ``heads="averaged"`` or ``start_layer=6``.

    Raises:
        InputError: an image, an option or a method that is not one, a negative map of a method
            that the target does not change.
        TargetError: a text that cannot be a target, or not exactly one where words are asked for.
        UnsupportedModelError: the method does not fit the model.

    Example:
        >>> from captum_clip import explain
        >>> from captum_clip.demo.scenes import draw_scene
        >>> scene = draw_scene(0, objects=["horse", "dog"])
        >>> explanation = explain(scene.image, ["a horse", "a dog"], model="demo/vit")
        >>> explanation.maps["positive"].shape, explanation.method
        (torch.Size([1, 2, 7, 7]), 'last-grad')
        >>> figure = explanation.plot()
    """
    _check_arguments(texts, sign, words, batch_size, side)
    chosen = None if method is None else MethodChoice.of(method, options)
    clip = load_clip(model, processor=processor, tokenizer=tokenizer, device=device)
    on_text = chosen or MethodChoice.of("conservative", options if side == "text" else {})
    if side == "text":
        return _of_text(clip, image, texts, on_text, sign)
    if chosen is None:
        chosen = MethodChoice.of(default_method(clip.tower), options)
    if sign != "positive":
        chosen.check_negative()
    beside = None if side == "image" else _of_text(clip, image, texts, on_text, sign)
    pieces = _pieces(image, batch_size)
    target = _target(clip, texts, words)
    signed = {"positive": target, "negative": -target}
    wanted = _SIGNS if sign == "both" else (sign,)
    bank = targets.concatenate([signed[which] for which in wanted])
    attribution = chosen.method(ClipSimilarity(clip, bank))
    raw, scores, images = [], [], []
    for piece in tqdm(pieces, desc="explain", unit="batch", disable=len(pieces) == 1):
        pixels = clip.preprocess(piece)
        images.append(clip.denormalize(pixels).cpu())
        values, cosines = attribution.attribute_targets(
            pixels, return_scores=True, **chosen.options
        )
        raw.append(maps.positive(values.cpu()))
        scores.append(cosines.cpu())
    chunks = _joined(raw).chunk(len(wanted), dim=1)
    cosines = _joined(scores)[:, : len(target)]
    return Explanation(
        maps={which: chunk.contiguous() for which, chunk in zip(wanted, chunks, strict=True)},
        scores=-cosines if sign == "negative" else cosines,
        names=target.names,
        norms=target.norms.cpu(),
        model=clip.name,
        method=chosen.name if beside is None else _both(chosen.name, beside.method),
        images=_joined(images),
        words=bool(words),
        text_maps=() if beside is None else beside.text_maps,
    )


def _of_text(
    clip: ClipAdapter, image: Any, texts: Any, choice: MethodChoice, sign: Sign
) -> Explanation:
    """The text side alone."""
    if sign != "positive":
        choice.check_negative()
    pixels, target = clip.preprocess(image), targets.text(clip, texts)
    by_word, scores = text_maps(clip, pixels, target.names, choice, sign)
    return Explanation(
        maps={},
        scores=-scores if sign == "negative" else scores,
        names=target.names,
        norms=target.norms.cpu(),
        model=clip.name,
        method=choice.name,
        images=clip.denormalize(pixels).cpu(),
        text_maps=by_word,
    )


def _both(image: str, text: str) -> str:
    return image if image == text else f"{image}, words {text}"


def _check_arguments(texts: Any, sign: Any, words: Any, batch_size: Any, side: Any) -> None:
    if side not in ("image", "text", "both"):
        raise InputError(f"explain: expected side image, text or both, got {side!r}.")
    if side != "image" and (isinstance(texts, Target) or words):
        given = "a Target" if isinstance(texts, Target) else f"words={words!r}"
        raise InputError(
            f"explain: side={side!r} explains whole texts word by word, got {given}; pass the "
            "texts, and leave `words` out."
        )
    if sign not in (*_SIGNS, "both"):
        raise InputError(f"explain: expected sign positive, negative or both, got {sign!r}.")
    if batch_size is not None:
        check_integer("explain", "batch_size", batch_size)
    if words and (isinstance(texts, Target) or (not isinstance(texts, str) and len(texts) != 1)):
        raise TargetError(f"explain: words need exactly one text, got {texts!r}.")


def _target(
    clip: ClipAdapter,
    texts: str | Sequence[str] | Target,
    words: bool | Sequence[str | tuple[int, int]],
) -> Target:
    if isinstance(texts, Target):
        return texts
    whole = targets.text(clip, texts)
    if not words:
        return whole
    picked = None if words is True else words
    return targets.concatenate([whole, targets.words(clip, whole.names[0], picked or None)])


def _pieces(image: Any, batch_size: int | None) -> list[Any]:
    """The images as they were given, a batch at a time."""
    several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
    if batch_size is None or not several or len(image) <= batch_size:
        return [image]
    return [image[start : start + batch_size] for start in range(0, len(image), batch_size)]


def _joined(parts: list[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) > 1:
        sizes = sorted({tuple(part.shape[-2:]) for part in parts})
        raise InputError(f"explain: the images differ in size between batches ({sizes}).")
    return torch.cat(parts)
