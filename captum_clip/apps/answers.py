"""Answer the questions of the page by library calls: explanations and their figures."""

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
"""Words with their values as they are written, the color of each value, and images."""
EMBEDDED: Final = ("demo/vit", "demo/resnet", "demo/siglip")
"""Models that every page offers; they come with the package."""
EVIDENCE: Final = {"positive": "supports it", "negative": "contradicts it"}
_COLOR_MAPS: Final[dict[str, Any]] = {"positive": HEAT, "negative": NEGATIVE}
"""The colors of a map of one sign; maps of both signs have their own."""
MAX_TEXTS: Final = 12
MAX_PIXELS: Final = 50_000_000
_REDUCED_FROM: Final = 6_000_000
"""An image of more pixels is read at a half, a quarter, ... of its width and height."""


class Models:
    """The models that a page offers, each loaded once, when it is first asked for.

    `names` are the given names and those of the embedded models. Only the given models get the
    processor and the tokenizer. Images may have `max_pixels`, by default `MAX_PIXELS`.

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
        given_parts = load_parts(processor, tokenizer)

        def load(name: str, image_size: int | None = None) -> ClipAdapter:
            parts = {} if name in EMBEDDED else given_parts
            return load_clip(name, device=device, image_size=image_size, **parts)

        self._load = cache(load)
        self._lock = Lock()

    def get(self, name: str, image_size: int | None = None) -> ClipAdapter:
        """The model of a name, also for larger images; several threads may ask at once."""
        with self._lock:
            return self._load(name, image_size)

    def read(self, file: str) -> Any:
        """Read an uploaded image, a large one at a half, a quarter, ... of its width and height."""
        image: Any
        with limit_pixels(self.max_pixels), spelled(lambda *_: "--max-pixels of the command"):
            [image] = as_pil(file, _REDUCED_FROM, keep_mode=True)
        # An image that Pillow opened itself has this attribute too, and `ask` reads it of any.
        image.filename = Path(file).name
        return image


def offered_methods(clip: ClipAdapter) -> list[tuple[str, str]]:
    """The methods for a model as (label, name): the default first, those without text last."""
    default = default_method(clip.tower)
    of_report = report_method(clip.tower)
    choices = [MethodChoice.of(name) for name in methods_for(clip.kind)]
    choices.sort(key=lambda choice: (choice.name != default, not choice.needs_target, choice.name))
    offered = []
    for choice in choices:
        note = ""
        if choice.name != default:
            if choice.name == of_report:
                note = " (the report)"
            elif not choice.needs_target:
                note = " (no text)"
        offered.append((choice.name + note, choice.name))
    return offered


@dataclass(frozen=True, eq=False)
class Answer:
    """The maps of a question, and which of them are shown.

    Attributes:
        clip: the model.
        sign: the sign that the question asked for.
        pixels: the image as the model took it, (1, 3, H, W).
        explanation: the explanation of the texts.
        chosen: for each text 0 if the text itself is shown, n if its n-th word is.
        name: name of the image's file.
        words: position of a text -> explanation of its words, once a word of it was chosen.
        opacity: the opacity that its maps are drawn with.
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
            # All explanations of an answer share one copy of the image.
            words[text] = replace(explained, images=self.explanation.images)
        chosen = (*self.chosen[:text], word, *self.chosen[text + 1 :])
        return replace(self, chosen=chosen, words=words)

    def _columns(self) -> list[tuple[Explanation, int]]:
        """For each text, the explanation that has its shown map, and the column of the map."""
        columns = []
        for text, word in enumerate(self.chosen):
            if word:
                columns.append((self.words[text], word - 1))
            else:
                columns.append((self.explanation, text))
        return columns

    def shown(self) -> Explanation:
        """One explanation, for each text of the text itself or of the word that was chosen."""
        whole = self.explanation
        columns = self._columns()
        maps = {}
        for sign in whole.maps:
            maps[sign] = torch.stack([source.maps[sign][:, k] for source, k in columns], dim=1)
        names = []
        for (source, k), text, word in zip(columns, whole.names, self.chosen, strict=True):
            names.append(f"{source.names[k]!r} in {text!r}" if word else text)
        return replace(
            whole,
            maps=maps,
            scores=torch.stack([source.scores[:, k] for source, k in columns], dim=1),
            norms=torch.stack([source.norms[k] for source, k in columns]),
            names=tuple(names),
        )

    def notes(self) -> list[str]:
        """The cosine of each text, or the norm of the word that is shown."""
        shown = self.shown()
        sums = torch.cat(list(shown.maps.values())).sum((0, 2, 3))
        notes = []
        for cosine, norm, word, map_sum in zip(
            shown.scores[0], shown.norms, self.chosen, sums, strict=True
        ):
            note = f"norm {norm:.2f}" if word else score_note(cosine.item())
            if not map_sum:
                note += ", empty map"
            notes.append(note)
        return notes

    def _captions(self) -> list[str]:
        """The name of each shown map with its note."""
        names = self.shown().names
        return [f"{name}, {note}" for name, note in zip(names, self.notes(), strict=True)]

    def plot(self, opacity: float) -> Figure:
        """The shown maps as a figure, a word's map dimmed by its norm over the text's largest."""
        shown = self.shown()
        weights = []
        for (source, k), word in zip(self._columns(), self.chosen, strict=True):
            weights.append(source.norms[k] / source.norms.max() if word else 1)
        weight_of_map = torch.tensor(weights)[:, None, None]
        maps = {sign: weight_of_map * heat for sign, heat in shown.heatmap("bicubic").items()}
        look: dict[str, Any] = {
            "names": self._captions(),
            "alpha": opacity,
            "caption": f"{shown.model} \N{MIDDLE DOT} {shown.method}",
        }
        if self.sign == "both":
            return visualization.signs(shown.images, *maps.values(), **look)
        look["cmap"] = _COLOR_MAPS[self.sign]
        return visualization.overlay(shown.images, maps[self.sign], **look)

    def images(self, figure: Figure) -> tuple[Pixels, list[Pixels]]:
        """Take the image and the maps over it from :meth:`plot`, both signs under each other."""
        drawn = [pixels for pixels, _ in panels(figure)]
        image = drawn[0]
        if self.sign != "both":
            return image, drawn[1:]
        # A row of the figure has three panels: the image, then the map of each sign.
        pairs = zip(drawn[1::3], drawn[2::3], strict=True)
        return _stacked(image, image), [_stacked(above, below) for above, below in pairs]

    def row(self, opacity: float) -> list[tuple[Pixels, str]]:
        """The image with its name, and the map of each text with its score."""
        image, maps = self.images(self.plot(opacity))
        return [(image, self.name), *zip(maps, self._captions(), strict=True)]

    @staticmethod
    def legend(sign: Sign, opacity: float = ALPHA) -> str:
        """The colors of maps as HTML: a bar with the meaning of either end beside it."""
        if sign == "both":
            left, right = EVIDENCE["negative"], EVIDENCE["positive"]
            ramps = [ramp(NEGATIVE, opacity).reversed(), ramp(POSITIVE, opacity)]
        else:
            left, right = f"{EVIDENCE[sign]}: low", "high"
            ramps = [ramp(colormap(_COLOR_MAPS[sign]), opacity)]
        shades: list[str] = []
        for colors in ramps:
            shades += map(to_hex, colors(np.linspace(0, 1, 32)))
        bar = f"<span style='background: linear-gradient(90deg, {', '.join(shades)})'></span>"
        return f"{left} {bar} {right}"

    def hints(self) -> str:
        """Reasons to doubt a map, and the model and the method, as Markdown."""
        explanation = self.explanation
        lines = list(chain(*explanation.hints))
        if not all(crop.is_whole for crop in explanation.crops):
            lines.append("The model sees only part of the image.")
        return "\n\n".join([*lines, f"{explanation.model} \N{MIDDLE DOT} {explanation.method}"])

    def text_map(self, text: int) -> Words:
        """The words of a text with their values, the colors of the values, and the text's map.

        A method that was chosen in place of the image's default explains the text too. Without
        one, or if it needs a grid, the default of the text side does.
        """
        name = self.explanation.names[text]
        options = {}
        if self.explanation.method != default_method(self.clip.tower):
            options["method"] = self.explanation.method
        try:
            explanation = self._explain(name, side="text", **options)
        except UnsupportedModelError:
            explanation = self._explain(name, side="text")
        _, *maps = self.show_word(text, 0).row(ALPHA)
        pixels, _ = maps[text]
        values, colors = _colored(explanation.text_maps[0])
        return values, colors, [pixels]

    def pairs(self, text: int) -> Words:
        """The words of a text with their shares, the colors of the shares, and their maps."""
        explanation = self._explain(self.explanation.names[text], side="pairs")
        # The first name and score are those of the whole text.
        words, scores = explanation.names[1:], explanation.scores[0, 1:].tolist()
        shares, colors = _colored(list(zip(words, scores, strict=True)))
        drawn = list(panels(explanation.plot()))
        if self.sign != "both":
            return shares, colors, drawn
        # The figure has the image and the maps of one sign, then those of the other sign.
        half = len(drawn) // 2
        pairs = []
        for (above, note), (below, note_below) in zip(drawn[:half], drawn[half:], strict=True):
            if note_below.endswith("empty map"):
                note += ", contradicts: empty map"
            pairs.append((_stacked(above, below), note))
        return shares, colors, pairs

    def _explain(self, target: Any, **options: Any) -> Explanation:
        return explain(self.pixels, target, model=self.clip, sign=self.sign, **options)


def _colored(words: Sequence[tuple[str, float]]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Words with their values as they are written, and the colors of the values."""
    written = []
    colors = {}
    for (word, _), (color, value) in zip(words, colored_words(words), strict=True):
        written.append((word, value))
        colors[value] = to_hex(color)
    return written, colors


def ask(
    clip: ClipAdapter, image: Any, texts: str | None, method: str, sign: Sign = "positive"
) -> Answer:
    """Explain an image for texts, one per line.

    Texts that the model cannot take are left out, and a hint names them.

    Raises:
        CaptumClipError: no image, no text that the model can take, or another fault of the
            question.
    """
    if image is None:
        raise InputError("Choose an image first, or draw an example scene.")
    lines = _lines(texts)
    hints = []
    for line in list(lines):
        try:
            clip.tokenize(line)
        except TargetError as error:
            # Without any text there is nothing to answer, so the error of the last one stands.
            if len(lines) == 1:
                raise
            lines.remove(line)
            hints.append(f"“{line}” is left out: {error.reason.rstrip('.')}.")
    explanation = explain(image, lines, model=clip, method=method, sign=sign)
    hints += chain(*explanation.hints)
    # The page draws no photos, and they fill the memory.
    explanation = replace(explanation, photos=(), hints=(tuple(hints),))
    return Answer(
        clip=clip,
        sign=sign,
        pixels=clip.preprocess(image),
        explanation=explanation,
        chosen=(0,) * len(lines),
        name=getattr(image, "filename", "image"),
    )


def _lines(texts: str | None) -> list[str]:
    """Split texts, one per line; raise TargetError if there is none, or too many."""
    # A program that calls the page may send None, which the page itself never does.
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
    """The images of a figure, (H, W, 3), each with the text under it in one line."""
    for axes in figure.axes:
        [image] = axes.images
        lines = [" ".join(text.get_text().split()) for text in axes.texts]
        pixels = (255 * np.asarray(image.get_array())).round().astype(np.uint8)
        yield pixels, ", ".join(line for line in lines if line)
