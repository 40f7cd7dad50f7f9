"""Maps of texts: what each word adds to the similarity with an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from . import targets
from .attr.registry import MethodChoice
from .errors import InputError
from .models import ClipAdapter
from .similarity import TextSimilarity

TextMap: TypeAlias = tuple[tuple[str, float], ...]
"""The words of a text, each with its value."""


def text_maps(
    clip: ClipAdapter, pixels: Tensor, texts: Sequence[str], choice: MethodChoice, sign: str
) -> tuple[tuple[TextMap, ...], Tensor]:
    """A map of each text for one image, and the cosines (1, K).

    A word's value is the sum over its tokens, below zero where it speaks against. With :math:`m(t)`
    for a method without signs it is :math:`m(t)` for the positive sign, :math:`-m(-t)` for the
    negative one, and :math:`m(t) - m(-t)` for both.

    Args:
        clip: the adapter.
        pixels: the image, preprocessed, (1, 3, H, W).
        texts: K texts.
        choice: a method that explains text towers.
        sign: "positive", "negative" or "both"; a signed method gives both always.

    Raises:
        InputError: more than one image.
        UnsupportedModelError: the method needs a grid, or the text tower is none that is supported.
    """
    if len(pixels) != 1:
        raise InputError(
            f"explain: words are explained for one image at a time, got {len(pixels)}."
        )
    target = targets.image(clip, pixels)
    forward = TextSimilarity(clip, targets.concatenate([target, -target]))
    attribution = choice.method(forward)
    spans = [targets.word_tokens(clip, text) for text in texts]
    ids, mask = clip.text_inputs(texts)
    values, scores = attribution.attribute_targets(
        ids, additional_forward_args=mask, return_scores=True, **choice.options
    )
    if values.ndim != 3:
        raise InputError(f"explain: {choice.name} gives several values per token; leave `per` out.")
    positive, negative = values.cpu().unbind(1)  # (K, T)
    if choice.signed or sign == "positive":
        signed = positive
    else:
        signed = -negative if sign == "negative" else positive - negative
    maps = tuple(
        tuple((word, float(row[span.start : span.stop].sum())) for word, span in words)
        for row, words in zip(signed, spans, strict=True)
    )
    return maps, torch.as_tensor(scores[:, :1].T.cpu())


def from_json(text: str) -> tuple[TextMap, ...]:
    """The maps in what `json.dumps` made of them."""
    return tuple(tuple((str(word), float(value)) for word, value in m) for m in json.loads(text))
