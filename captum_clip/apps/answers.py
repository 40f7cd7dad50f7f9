"""Answers to what the page asks, by library calls: explanations and their figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from .. import targets, visualization
from ..attr.registry import MethodChoice, default_method, methods_for, report_method
from ..checks import limit_pixels
from ..errors import InputError, TargetError, UnsupportedModelError, spelled
from ..explaining.explain import explain
from ..explaining.explanation import Explanation
from ..explaining.request import Sign
from ..files import as_pil
from ..models import ClipAdapter, load_clip
from ..models.loading import load_parts
from ..models.names import resolve
from ..visualization.charts import colored_words
from ..visualization.colors import ALPHA, HEAT, NEGATIVE, POSITIVE, colormap, ramp, score_note

Pixels: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = tuple[list[tuple[str, str]], dict[str, str], list[Any]]
EMBEDDED: Final = ("demo/vit", "demo/resnet", "demo/siglip")
"""Models that every page offers; they come with the package."""
EVIDENCE: Final = {"positive": "supports it", "negative": "contradicts it"}
_COLOR_MAPS: Final[dict[str, Any]] = {"positive": HEAT, "negative": NEGATIVE}  # where one is drawn
MAX_TEXTS: Final = 12
MAX_PIXELS: Final = 50_000_000
_REDUCED_FROM: Final = 6_000_000  # pixels above which an image is read at a half, a quarter, ...


class Models:
    """The models that a page offers, each loaded once, when it is first asked for.

    `names` are those given, which alone get the processor and the tokenizer, and the embedded ones.
    Images may have `max_pixels`, by default `MAX_PIXELS`.

    Raises:
        InputError: a name that leads to no model.

    Example:
        >>> from captum_clip.apps.answers import Models
        >>> Models(["demo/resnet"]).names
        ('demo/resnet', 'demo/vit', 'demo/siglip')
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        device: str | None = None,
        *,
        processor: str | None = None,
        tokenizer: str | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.max_pixels = max_pixels or MAX_PIXELS
        self.names = tuple(dict.fromkeys((*names, *EMBEDDED)))
        for name in self.names:
            resolve(name)
        own = load_parts(processor, tokenizer)

        def load(name: str, image_size: int | None = None) -> ClipAdapter:
            processors = {} if name in EMBEDDED else own
            return load_clip(name, device=device, image_size=image_size, **processors)

        self._load, self._lock = cache(load), Lock()

    def get(self, name: str, image_size: int | None = None) -> ClipAdapter:
        """The model of a name, also for larger images; several threads may ask at once."""
        with self._lock:
            return self._load(name, image_size)

    def read(self, file: str) -> Any:
        """An uploaded image, a large one at a half, a quarter, ... of its width and height."""
        image: Any
        with limit_pixels(self.max_pixels), spelled(lambda *_: "--max-pixels of the command"):
            [image] = as_pil(file, _REDUCED_FROM, keep_mode=True)
        image.filename = Path(file).name  # as Pillow notes it
        return image


def offered_methods(clip: ClipAdapter) -> list[tuple[str, str]]:
    """The methods for a model as (label, name): the default first, those without text last."""
    default = default_method(clip.tower)
    notes = {report_method(clip.tower): " (the report)", default: ""}
    choices = [MethodChoice.of(name) for name in methods_for(clip.kind)]
    choices.sort(key=lambda choice: (choice.name != default, not choice.needs_target, choice.name))
    plain = {True: "", False: " (no text)"}
    return [(c.name + notes.get(c.name, plain[c.needs_target]), c.name) for c in choices]


@dataclass(frozen=True, eq=False)
class Answer:
    """The maps of a question, and which of them are shown.

    Attributes:
        clip: the model.
        sign: as it was asked for.
        pixels: the image as the model took it, (1, 3, H, W).
        explanation: of the texts.
        chosen: of each text 0 where it is shown itself, n where its n-th word is.
        name: of the image's file.
        words: position of a text -> explanation of its words, where one was chosen.
        opacity: that its maps are drawn with.
    """

    clip: ClipAdapter
    sign: Sign
    pixels: Tensor
    explanation: Explanation
    chosen: tuple[int, ...]
    name: str
    words: Mapping[int, Explanation] = field(default_factory=dict)
    opacity: float | None = None

    def show_word(self, text: int, word: int) -> "Answer":
        """Show a word of a text instead of the text, or with 0 the text again.

        All words of a text are explained when the first is asked for, in one pass.
        """
        words = dict(self.words)
        if word and text not in words:
            target = targets.words(self.clip, self.explanation.names[text])
            explained = self._explain(target, method=self.explanation.method)
            words[text] = replace(explained, images=self.explanation.images)  # one copy of them
        chosen = (*self.chosen[:text], word, *self.chosen[text + 1 :])
        return replace(self, chosen=chosen, words=words)

    def _columns(self) -> list[tuple[Explanation, int]]:
        """The explanation and the column of the map that is shown of each text."""
        return [
            (self.words[text], word - 1) if word else (self.explanation, text)
            for text, word in enumerate(self.chosen)
        ]

    def shown(self) -> Explanation:
        """One explanation of each text itself, or of the word that was chosen."""
        columns, whole = self._columns(), self.explanation
        names = zip(columns, whole.names, self.chosen, strict=True)
        return replace(
            whole,
            maps={s: torch.stack([e.maps[s][:, k] for e, k in columns], dim=1) for s in whole.maps},
            scores=torch.stack([e.scores[:, k] for e, k in columns], dim=1),
            norms=torch.stack([e.norms[k] for e, k in columns]),
            names=tuple(f"{e.names[k]!r} in {text!r}" if w else text for (e, k), text, w in names),
        )

    def notes(self) -> list[str]:
        """The cosine of each text, or the norm of the word that is shown."""
        shown = self.shown()
        sums = torch.cat(list(shown.maps.values())).sum((0, 2, 3))
        values = zip(shown.scores[0], shown.norms, self.chosen, sums, strict=True)
        return [
            (f"norm {norm:.2f}" if word else score_note(cos.item())) + ", empty map" * (not heat)
            for cos, norm, word, heat in values
        ]

    def plot(self, opacity: float) -> Figure:
        """The shown maps as a figure, a word's map dimmed by its norm over the text's largest."""
        shown, columns = self.shown(), zip(self._columns(), self.chosen, strict=True)
        weights = torch.tensor([e.norms[k] / e.norms.max() if w else 1 for (e, k), w in columns])
        maps = {sign: weights[:, None, None] * m for sign, m in shown.heatmap("bicubic").items()}
        look: dict[str, Any] = {
            "names": [", ".join(pair) for pair in zip(shown.names, self.notes(), strict=True)],
            "alpha": opacity,
            "caption": f"{shown.model} \N{MIDDLE DOT} {shown.method}",
        }
        if self.sign == "both":
            return visualization.signs(shown.images, *maps.values(), **look)
        look["cmap"] = _COLOR_MAPS[self.sign]
        return visualization.overlay(shown.images, maps[self.sign], **look)

    def images(self, figure: Figure) -> tuple[Pixels, list[Pixels]]:
        """From :meth:`plot` the image, and each text's map over it, both signs under each other."""
        drawn = [pixels for pixels, _ in panels(figure)]
        if self.sign != "both":
            return drawn[0], drawn[1:]
        # a row of the figure is the image, then the map of each sign
        pairs = zip(drawn[1::3], drawn[2::3], strict=True)
        return _stacked(drawn[0], drawn[0]), [_stacked(*pair) for pair in pairs]

    def row(self, opacity: float) -> list[tuple[Pixels, str]]:
        """The image with its name, and the map of each text with its score."""
        image, maps = self.images(self.plot(opacity))
        written = zip(self.shown().names, self.notes(), strict=True)
        return [(image, self.name), *zip(maps, map(", ".join, written), strict=True)]

    @staticmethod
    def legend(sign: Sign, opacity: float = ALPHA) -> str:
        """The colors of maps as HTML: a bar with what stands at either end."""
        left, right = EVIDENCE["negative"], EVIDENCE["positive"]
        ramps = [ramp(NEGATIVE, opacity).reversed(), ramp(POSITIVE, opacity)]
        if sign != "both":
            left, right = f"{EVIDENCE[sign]}: low", "high"
            ramps = [ramp(colormap(_COLOR_MAPS[sign]), opacity)]
        shades = [to_hex(color) for colors in ramps for color in colors(np.linspace(0, 1, 32))]
        bar = f"<span style='background: linear-gradient(90deg, {', '.join(shades)})'></span>"
        return f"{left} {bar} {right}"

    def hints(self) -> str:
        """Why to doubt a map, the model and the method, as Markdown."""
        explanation = self.explanation
        lines = [hint for hints in explanation.hints for hint in hints]
        if not all(crop.is_whole for crop in explanation.crops):
            lines.append("The model sees only part of the image.")
        return "\n\n".join([*lines, f"{explanation.model} \N{MIDDLE DOT} {explanation.method}"])

    def text_map(self, text: int) -> Words:
        """The words of a text with their values, the colors of these, and the text's map.

        By the method that was chosen in place of the image's default; else, or where that one
        needs a grid, by the default of the text side.
        """
        name, method = self.explanation.names[text], self.explanation.method
        chosen = {} if method == default_method(self.clip.tower) else {"method": method}
        try:
            explanation = self._explain(name, side="text", **chosen)
        except UnsupportedModelError:
            explanation = self._explain(name, side="text")
        drawn = self.show_word(text, 0).row(ALPHA)[1 + text][0]
        return *_colored(explanation.text_maps[0]), [drawn]

    def pairs(self, text: int) -> Words:
        """The words of a text with their shares, the colors of these, and their maps."""
        explanation = self._explain(self.explanation.names[text], side="pairs")
        shares = list(zip(explanation.names[1:], explanation.scores[0, 1:].tolist(), strict=True))
        drawn = list(panels(explanation.plot()))
        if self.sign == "both":  # the image and the maps of one sign, then those of the other
            half = len(drawn) // 2
            for index, (below, lower) in enumerate(drawn[half:]):
                above, note = drawn[index]
                empty = ", contradicts: empty map" * lower.endswith("empty map")
                drawn[index] = _stacked(above, below), note + empty
            del drawn[half:]
        return *_colored(shares), drawn

    def _explain(self, target: Any, **how: Any) -> Explanation:
        return explain(self.pixels, target, model=self.clip, sign=self.sign, **how)


def _colored(words: Sequence[tuple[str, float]]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Words with their values as they are written, and the colors of the values."""
    looks = colored_words(words)
    values = [(word, value) for (word, _), (_, value) in zip(words, looks, strict=True)]
    return values, {value: to_hex(color) for color, value in looks}


def ask(
    clip: ClipAdapter, image: Any, texts: str | None, method: str, sign: Sign = "positive"
) -> Answer:
    """Explain an image for texts, one per line; a CaptumClipError where that cannot be.

    A hint says which texts the model cannot take, unless it can take none.
    """
    if image is None:
        raise InputError("Choose an image first, or draw an example scene.")
    lines, hints, name = _lines(texts), list[str](), getattr(image, "filename", "image")
    for line in [*lines]:
        try:
            clip.tokenize(line)
        except TargetError as error:
            if len(lines) == 1:
                raise
            lines.remove(line)
            hints.append(f"“{line}” is left out: {error.reason.rstrip('.')}.")
    explanation = explain(image, lines, model=clip, method=method, sign=sign)
    hints += chain(*explanation.hints)
    # the page draws no photos, and they fill the memory
    explanation = replace(explanation, photos=(), hints=(tuple(hints),))
    return Answer(clip, sign, clip.preprocess(image), explanation, (0,) * len(lines), name)


def _lines(texts: str | None) -> list[str]:
    """Texts, one per line; a TargetError where there is none, or too many."""
    # a client of one's own may send no texts at all
    lines = [" ".join(line.split()) for line in (texts or "").splitlines() if line.strip()]
    if not lines:
        raise TargetError("Type a text, such as: a horse.")
    if len(lines) > MAX_TEXTS:
        raise TargetError(f"These are {len(lines)} texts; at most {MAX_TEXTS} at once.")
    return lines


def _stacked(above: Pixels, below: Pixels) -> Pixels:
    """Two images with a white line between them."""
    return np.vstack([above, np.full_like(above[:4], 255), below])


def panels(figure: Figure) -> Iterator[tuple[Pixels, str]]:
    """The images of a figure, (H, W, 3), each with what is written under it."""
    for axes in figure.axes:
        [drawn] = axes.images
        written = (" ".join(text.get_text().split()) for text in axes.texts)
        pixels = (255 * np.asarray(drawn.get_array())).round().astype(np.uint8)
        yield pixels, ", ".join(filter(None, written))
