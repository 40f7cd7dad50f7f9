"""Questions and their answers: an image and texts in, explanations out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from .. import targets
from ..attr import LayerAttention
from ..demo.scenes import draw_scene
from ..errors import InputError, TargetError
from ..explanation import Explanation, Sign, explain
from ..models.base import ImageLike
from ..models.towers import ViTTower
from ..similarity import ClipSimilarity
from .shelf import Shelf

MOST_TEXTS: Final = 12
"""Texts of one question."""


@dataclass(frozen=True, eq=False)
class Question:
    """What someone asks.

    Attributes:
        image: a file, a PIL image or an array; None where none was chosen.
        texts: one a line; empty lines do not count.
        model: a name that the shelf offers.
        method: a command-line name.
        sign: what speaks for the texts, against them, or both.
    """

    image: ImageLike | None
    texts: str
    model: str
    method: str
    sign: Sign = "positive"


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found, and what of it is looked at.

    Attributes:
        model: its name on the shelf.
        pixels: the image as the model took it, (1, 3, H, W).
        found: maps and scores of the K texts.
        words: a text's position -> maps of the text and of its words, for texts taken apart.
        picks: for each text what is shown: 0 the text, n its n-th word.
    """

    model: str
    pixels: Tensor
    found: Explanation
    words: Mapping[int, Explanation] = field(default_factory=dict)
    picks: tuple[int, ...] = ()

    @property
    def weights(self) -> Tensor:
        """How bright the map of each card is, (K,): a word's norm over the largest of its text."""
        weights = torch.ones(len(self.picks))
        for text, word in enumerate(self.picks):
            if word:
                norms = self.words[text].norms
                weights[text] = norms[word] / norms[1:].max()
        return weights


@dataclass(frozen=True, eq=False)
class Layers:
    """A text, layer by layer.

    Attributes:
        text: the text.
        image: what the model saw, (1, 3, H, W), colours in [0, 1].
        attention: of each of the n layers, heads averaged, (1, n, h, w).
        gradient: of the cosine with respect to each attention, signed, (1, n, h, w).
    """

    text: str
    image: Tensor
    attention: Tensor
    gradient: Tensor


def ask(shelf: Shelf, question: Question) -> Answer:
    """Explain the image for each text.

    Raises:
        CaptumClipError: no image or one that cannot be read, no text or one that the model cannot
            read, a method that does not go with the model or the sign.
    """
    if question.image is None:
        raise InputError("Choose an image first, or draw an example scene.")
    texts = _lines(question.texts)
    clip = shelf.get(question.model)
    pixels = _pixels(shelf, question)
    found = explain(pixels, texts, model=clip, method=question.method, sign=question.sign)
    return Answer(question.model, pixels, found, picks=(0,) * len(texts))


def pick(shelf: Shelf, answer: Answer, text: int, word: int) -> Answer:
    """Show one word of a text instead of the text, or with word 0 the text again.

    All words of a text are explained when the first is asked for, in one pass.

    Raises:
        CaptumClipError: no such word, or one without which the model sees the same.
    """
    if not 0 <= text < len(answer.picks):
        raise InputError("This text is no longer there; show the maps again.")
    words = dict(answer.words)
    if word and text not in words:
        found = answer.found
        words[text] = explain(
            answer.pixels,
            found.names[text],
            model=shelf.get(answer.model),
            method=found.method,
            sign="both" if len(found.maps) == 2 else _only(found),
            words=True,
        )
    if word and not 0 < word < len(words[text].names):
        raise InputError("This word is no longer there; show the maps again.")
    picks = (*answer.picks[:text], word, *answer.picks[text + 1 :])
    return replace(answer, words=words, picks=picks)


def shown(answer: Answer) -> Explanation:
    """What the cards show as one explanation: for each text, itself or the chosen word of it."""
    found = answer.found
    sources = [
        (answer.words[text], word) if word else (found, text)
        for text, word in enumerate(answer.picks)
    ]
    names = [
        f"{words.names[word]!r} in {found.names[text]!r}" if word else found.names[text]
        for text, (word, (words, _)) in enumerate(zip(answer.picks, sources, strict=True))
    ]
    return replace(
        found,
        maps={
            sign: torch.stack([source.maps[sign][:, row] for source, row in sources], dim=1)
            for sign in found.maps
        },
        scores=torch.stack([source.scores[:, row] for source, row in sources], dim=1),
        norms=torch.stack([source.norms[row] for source, row in sources]),
        names=tuple(names),
    )


def layers(shelf: Shelf, answer: Answer, text: int = 0) -> Layers:
    """The attention of every layer, and the gradient of the text's cosine with respect to it.

    Raises:
        CaptumClipError: the model is no vision transformer.
    """
    clip = shelf.get(answer.model)
    tower = clip.tower
    if not isinstance(tower, ViTTower):
        raise InputError(
            f"The layer view shows attention, which the ResNet of {answer.model} has none of; "
            "choose a vision transformer, such as demo/vit."
        )
    if not 0 <= text < len(answer.found.names):
        raise InputError("There is no such text; ask again.")
    name = answer.found.names[text]
    method = LayerAttention(ClipSimilarity(clip, targets.text(clip, name)))

    def all_layers(of: str) -> Tensor:
        each = [
            method.attribute(answer.pixels, target=0, index=index, of=of)
            for index in range(len(tower.layers))
        ]
        return torch.cat(each, dim=1).cpu()

    image = answer.found.images
    return Layers(name, image, all_layers("attention"), all_layers("gradient"))


def example(seed: float | None) -> tuple[ImageLike, str]:
    """A held-out demo scene and texts that are true of it, one a line.

    Raises:
        InputError: the seed is no whole number from 0 on.

    Example:
        >>> from captum_clip.app.answers import example
        >>> print(example(7)[1])
        a hedgehog
        a bulb
        a bulb and a hedgehog
    """
    if seed is None or not math.isfinite(seed) or seed != int(seed) or seed < 0:
        raise InputError("Example scenes have whole numbers from 0 on.")
    scene = draw_scene(int(seed), count=2)
    return scene.image, "\n".join(scene.captions)


def sentence(error: Exception) -> str:
    """An error as it is said in the page: without the name of the function that raised it."""
    text = " ".join(str(error).split())
    head, colon, rest = text.partition(": ")
    if colon and " " not in head and rest:
        text = rest
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _lines(texts: str) -> list[str]:
    lines = [" ".join(line.split()) for line in texts.splitlines()]
    listed = [line for line in lines if line]
    if not listed:
        raise TargetError("Type a text, such as: a horse.")
    if len(listed) > MOST_TEXTS:
        raise TargetError(f"These are {len(listed)} texts; {MOST_TEXTS} go at a time.")
    return listed


def _pixels(shelf: Shelf, question: Question) -> Tensor:
    assert question.image is not None
    try:
        return shelf.get(question.model).preprocess(question.image)
    except InputError as error:
        if not isinstance(question.image, (str, Path)):
            raise
        path = Path(question.image)  # where the server keeps it is nobody's business
        raise InputError(str(error).replace(str(path), repr(path.name))) from error


def _only(found: Explanation) -> Sign:
    return "negative" if "negative" in found.maps else "positive"
