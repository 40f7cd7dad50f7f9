"""Queries and their results: an image and texts in, explanations out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from .. import targets
from ..attr import LayerAttention
from ..demo.scenes import draw_scene
from ..errors import InputError, TargetError, UnsupportedModelError
from ..explanation import Explanation, Sign, TextMap, explain
from ..figures import ScoreParts, score_parts
from ..models import ClipAdapter
from ..models.adapter import ImageLike
from ..models.images import as_pil
from ..models.towers import ViTTower
from ..similarity import ClipSimilarity
from ..targets import Target
from .model_cache import ModelCache

MAX_TEXTS: Final = 12
"""Texts of one query."""


@dataclass(frozen=True, eq=False)
class Query:
    """What someone asks: of a model by its name in the cache, a method by its command-line name."""

    image: ImageLike | None
    texts: str  # one per line; empty lines do not count
    model: str
    method: str
    sign: Sign = "positive"


@dataclass(frozen=True, eq=False)
class Result:
    """The maps of a query, and which of them are looked at.

    Attributes:
        model: its name in the cache.
        pixels: the image as the model took it, (1, 3, H, W).
        words: a text's position -> maps of the text and of its words, for texts taken apart.
        picks: for each text what is shown: 0 the text, n its n-th word.
    """

    model: str
    sign: Sign
    pixels: Tensor
    explanation: Explanation
    words: Mapping[int, Explanation] = field(default_factory=dict)
    picks: tuple[int, ...] = ()

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """The part of the photo that the model saw: left, top, width and height in [0, 1]."""
        for crop in self.explanation.crops:
            left, top, right, bottom = (min(max(edge, 0), 1) for edge in crop.scaled((1, 1)))
            return left, top, right - left, bottom - top
        return 0, 0, 1, 1

    @property
    def weights(self) -> Tensor:
        """How bright the map of each card is, (K,): a word's norm over the largest of its text."""
        weights = torch.ones(len(self.picks))
        for text, word in enumerate(self.picks):
            if word:
                norms = self.words[text].norms
                weights[text] = norms[word] / norms[1:].max()
        return weights

    def shown(self) -> Explanation:
        """What the cards show as one explanation: for each text, itself or the chosen word."""
        whole = self.explanation
        rows = [
            (self.words[text], word) if word else (whole, text)
            for text, word in enumerate(self.picks)
        ]
        names = [
            f"{source.names[row]!r} in {text!r}" if word else text
            for (source, row), text, word in zip(rows, whole.names, self.picks, strict=True)
        ]
        return replace(
            whole,
            maps={
                sign: torch.stack([source.maps[sign][:, row] for source, row in rows], dim=1)
                for sign in whole.maps
            },
            scores=torch.stack([source.scores[:, row] for source, row in rows], dim=1),
            norms=torch.stack([source.norms[row] for source, row in rows]),
            names=tuple(names),
        )

    def heatmap(self) -> dict[str, Tensor]:
        """Sign -> the maps of the cards (1, K, H, W) in [0, 1], those of words dimmed."""
        weights = self.weights[:, None, None]
        return {sign: weights * values for sign, values in self.shown().heatmap("bicubic").items()}


def ask(cache: ModelCache, query: Query) -> Result:
    """Explain the image for each text; CaptumClipError where that cannot be, as in all below."""
    if query.image is None:
        raise InputError("Choose an image first, or draw an example scene.")
    lines = [" ".join(line.split()) for line in query.texts.splitlines()]
    texts = [line for line in lines if line]
    if not texts:
        raise TargetError("Type a text, such as: a horse.")
    if len(texts) > MAX_TEXTS:
        raise TargetError(f"These are {len(texts)} texts; at most {MAX_TEXTS} at once.")
    clip = cache.get(query.model)
    try:
        (photo,) = as_pil(query.image)
        pixels = clip.preprocess(photo)
    except InputError as error:
        # where the server keeps an upload is nobody's business
        if isinstance(query.image, (str, Path)):
            path = Path(query.image)
            raise InputError(str(error).replace(str(path), repr(path.name))) from error
        raise
    sign = query.sign
    explanation = explain(
        photo, texts, model=clip, method=query.method, sign=sign, hints=sign != "negative"
    )
    return Result(query.model, sign, pixels, explanation, picks=(0,) * len(texts))


def pick(cache: ModelCache, result: Result, text: int, word: int) -> Result:
    """Show one word of a text instead of the text, or with word 0 the text again.

    All words of a text are explained when the first is asked for, in one pass.
    """
    if not 0 <= text < len(result.picks):
        raise InputError("This text is no longer there; show the maps again.")
    words = dict(result.words)
    if word and text not in words:
        whole = result.explanation
        words[text] = explain(
            result.pixels,
            whole.names[text],
            model=cache.get(result.model),
            method=whole.method,
            sign=result.sign,
            words=True,
        )
    if word and not 0 < word < len(words[text].names):
        raise InputError("This word is no longer there; show the maps again.")
    picks = (*result.picks[:text], word, *result.picks[text + 1 :])
    return replace(result, words=words, picks=picks)


def words(cache: ModelCache, result: Result, text: int = 0) -> TextMap:
    """What each word of a text adds, by conservative where the query's method needs a grid."""
    clip = cache.get(result.model)
    [name] = _target_of(clip, result, text).names

    asked: dict[str, Any] = {"model": clip, "sign": result.sign, "side": "text"}
    try:
        found = explain(result.pixels, name, method=result.explanation.method, **asked)
    except UnsupportedModelError:
        found = explain(result.pixels, name, method="conservative", **asked)
    return found.text_maps[0]


def layers(cache: ModelCache, result: Result, text: int = 0) -> tuple[Tensor, Tensor]:
    """The attention of every layer, and the gradient of the text's cosine with respect to it.

    Both are (1, n, h, w) for n layers, heads averaged; the gradient is signed.
    """
    clip = cache.get(result.model)
    tower = clip.tower
    if not isinstance(tower, ViTTower):
        raise InputError(
            f"The layer view shows attention, and the ResNet of {result.model} has none; choose a "
            "vision transformer, such as demo/vit."
        )
    method = LayerAttention(ClipSimilarity(clip, _target_of(clip, result, text)))

    def all_layers(of: str) -> Tensor:
        each = [
            method.attribute(result.pixels, target=0, index=index, of=of)
            for index in range(len(tower.layers))
        ]
        return torch.cat(each, dim=1).cpu()

    return all_layers("attention"), all_layers("gradient")


def heads(cache: ModelCache, result: Result, text: int = 0) -> ScoreParts:
    """The heads that a text's cosine comes from: those of the query's sign, and what is left."""
    clip = cache.get(result.model)
    return score_parts(clip, _target_of(clip, result, text), result.pixels, sign=result.sign)


def _target_of(clip: ClipAdapter, result: Result, text: int) -> Target:
    if not 0 <= text < len(result.explanation.names):
        raise InputError("There is no such text; ask again.")
    return targets.text(clip, result.explanation.names[text])


def example(seed: float | None) -> tuple[ImageLike, str]:
    """A held-out demo scene and texts that are true of it, one per line.

    Example:
        >>> from captum_clip.app.queries import example
        >>> print(example(7)[1])
        a hedgehog
        a bulb
        a bulb and a hedgehog
    """
    if seed is None or not math.isfinite(seed) or seed != int(seed) or seed < 0:
        raise InputError("Example scenes have whole numbers from 0 on.")
    scene = draw_scene(int(seed), count=2)
    return scene.image, "\n".join(scene.captions)
