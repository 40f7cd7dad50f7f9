"""What was found, as HTML: a card per text, pictures of the layers and of the heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import Final

import numpy as np
import torch
from matplotlib.colors import Colormap, to_hex
from PIL import Image
from torch import Tensor

from .. import maps
from ..explanation import TextMap
from ..figures import ScoreParts
from ..models.images import as_pil
from ..visualization.colors import ALPHA, HEAT, NEGATIVE, POSITIVE, colormap, ramp, score_note
from ..visualization.sentences import colored_words
from ..visualization.strips import REST, sum_notes
from .pictures import css_gradient, data_url, layer, photo, signed_heat, signed_layer
from .queries import Result

WELCOME = '<p class="hint">The maps will be here.</p>'
"""In place of the cards, before anything was asked."""

_THUMBNAIL: Final = 520  # pixels
_WORDS: Final = {"positive": "for", "negative": "against"}


def cards(result: Result) -> str:
    """The image, then a card for each text: its maps, its cosine, its words to click."""
    shown, heatmap = result.shown(), result.heatmap()
    image = shown.images[0]
    plain = _picture(data_url(image.permute(1, 2, 0).numpy()), "the image", kind="plain")
    parts = [_card(plain, "<b>image</b>", "as the model sees it")]
    if result.crop != (0, 0, 1, 1):
        framed = _framed(as_pil(shown.photos[0])[0], result.crop)
        parts.insert(0, _card(framed, "<b>photo</b>", "the model sees the frame"))
    for text, (name, score) in enumerate(zip(shown.names, shown.scores[0].tolist(), strict=True)):
        pictures = _pictures({sign: values[0, text] for sign, values in heatmap.items()}, name)
        note = score_note(score)
        if word := result.picks[text]:
            norms = result.words[text].norms
            note = f"norm {norms[word]:.2f}, largest {norms[1:].max():.2f}"
        if not any(bool(values[0, text].any()) for values in heatmap.values()):
            note += ", no heat"
        parts.append(_card(pictures, _words(result, text), note, wide=len(heatmap) == 2))
    source = escape(f"{shown.model} \N{MIDDLE DOT} {shown.method}")
    foot = f'<p class="foot">{_legend(heatmap)}<span class="source">{source}</span></p>'
    hints = "".join(f'<p class="hint">{escape(hint)}</p>' for said in shown.hints for hint in said)
    return f'<div class="cards" style="{_style(image)}">{"".join(parts)}</div>{hints}{foot}'


def word_row(result: Result, text: int, words: TextMap) -> str:
    """The maps of a text beside its words, coloured by what each adds."""
    explanation, image = result.explanation, result.explanation.images[0]
    heatmap = explanation.heatmap("bicubic")
    name = explanation.names[text]
    pictures = _pictures({sign: values[0, text] for sign, values in heatmap.items()}, name)
    score = score_note(float(explanation.scores[0, text]))
    drawn = "".join(
        f'<span><b style="background:{to_hex(color)}">{escape(word)}</b>{number}</span>'
        for (word, _), (color, number) in zip(words, colored_words(words), strict=True)
    )
    note = (
        "Orange words speak for the image and blue ones against it, by the chosen method, or by "
        "conservative where that needs a grid; the values need not add up to the cosine."
    )
    card = _card(pictures, "", score, wide=len(heatmap) == 2)
    return _view(image, note, f'<div class="sentence">{card}<p>{drawn}</p></div>')


def layer_rows(result: Result, text: int, attention: Tensor, gradient: Tensor) -> str:
    """Two rows: the attention of every layer, and the gradient with respect to it, (1, n, h, w)."""
    image = result.explanation.images[0]
    size = (image.shape[-2], image.shape[-1])
    large = maps.upsample(attention, size, mode="bicubic", clamp=True)
    signed = zip(*(part[0] for part in signed_heat(gradient, size)), strict=True)
    rows = {
        "attention": [layer(values, colormap(HEAT)) for values in maps.normalize(large)[0]],
        "gradient": [signed_layer(up, down, (POSITIVE, NEGATIVE)) for up, down in signed],
    }
    body = ""
    for title, pictures in rows.items():
        each = "".join(
            _card(_picture(data_url(pixels), f"{title}, layer {index}"), "", f"layer {index}")
            for index, pixels in enumerate(pictures)
        )
        body += f'<h2>{title}</h2><div class="layers">{each}</div>'
    name = escape(result.explanation.names[text])
    note = (
        f"For \u201c{name}\u201d: where each layer attends, heads averaged, and where more "
        "attention would raise the cosine (orange) or lower it (blue). Each picture has a scale of "
        "its own; layers count from 0, as in LayerAttention."
    )
    return _view(image, note, body)


def head_cards(result: Result, text: int, parts: ScoreParts) -> str:
    """A card for each of the heads, for all others together, and for the rest."""
    image = result.explanation.images[0]
    # the rest has no map: the pale photo alone
    raw = torch.cat([parts.maps, torch.zeros_like(parts.maps[:1])])
    pairs = zip(*signed_heat(raw, (image.shape[-2], image.shape[-1])), strict=True)
    total, notes = sum_notes(parts.maps.numpy(), parts.rest)
    cards = ""
    for (up, down), label, note in zip(pairs, [*parts.labels, REST], notes, strict=True):
        drawn = _picture(data_url(signed_layer(up, down, (POSITIVE, NEGATIVE))), label)
        cards += _card(drawn, "", f"{label}<br>{note}")
    name = escape(result.explanation.names[text])
    what = {
        "positive": "the heads that add most",
        "negative": "the heads that take most away",
        "both": "the heads that add most, then those that take most away",
    }[result.sign]
    note = (
        f"\u201c{name}\u201d has the {total}; here are {what}, with what each adds and its share. "
        "With all other heads and the rest (class token, MLPs, biases) the numbers add up to the "
        "cosine. Orange adds to it, blue takes away; each picture has a scale of its own; layers "
        "and heads count from 0, as in DirectContribution."
    )
    return _view(image, note, f'<div class="layers">{cards}</div>')


def problem(sentence: str) -> str:
    """A sentence that says what is wrong."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>' if sentence else ""


def _colors(signs: Collection[str]) -> dict[str, Colormap]:
    """One sign has the heat's colours or those against; of both, orange is for."""
    colors = {"positive": POSITIVE if len(signs) == 2 else colormap(HEAT), "negative": NEGATIVE}
    return {sign: colors[sign] for sign in signs}


def _legend(signs: Collection[str]) -> str:
    meaning = {"positive": "speaks for the text", "negative": "speaks against it"}
    return "".join(
        f'<span class="legend"><i style="background:{css_gradient(ramp(color, ALPHA))}"></i>'
        f"{meaning[sign]}: low to high</span>"
        for sign, color in _colors(signs).items()
    )


def _view(image: Tensor, note: str, body: str) -> str:
    return f'<div style="{_style(image)}"><p class="hint">{note}</p>{body}</div>'


def _style(image: Tensor) -> str:
    return f"--photo:url({photo(image)});--shape:{image.shape[-1]}/{image.shape[-2]}"


def _pictures(heatmap: Mapping[str, Tensor], name: str) -> str:
    """The maps (H, W) of a text; of both signs, each is marked."""
    colors = _colors(heatmap)
    return "".join(
        _picture(
            data_url(layer(values, colors[sign])),
            f"what speaks {_WORDS[sign]} {name}",
            mark=_WORDS[sign] if len(heatmap) == 2 else "",  # colours alone are not for everybody
        )
        for sign, values in heatmap.items()
    )


def _picture(url: str, description: str, *, kind: str = "map", mark: str = "") -> str:
    sign = mark and f'<span class="sign" aria-hidden="true">{mark}</span>'
    image = f'<img class="{kind}" src="{url}" alt="{escape(description)}">'
    return f'<span class="picture">{image}{sign}</span>'


def _framed(photo: Image.Image, crop: tuple[float, float, float, float]) -> str:
    """A whole photo, with a frame around a part of it."""
    small = photo.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    url = data_url(np.asarray(small, dtype=np.float32) / np.float32(255))
    sides = zip(("left", "top", "width", "height"), crop, strict=True)
    place = ";".join(f"{side}:{share:.2%}" for side, share in sides)
    picture = f'<img class="plain" src="{url}" alt="the whole photo"><i style="{place}"></i>'
    return f'<span class="picture" style="--shape:{small.width}/{small.height}">{picture}</span>'


def _card(pictures: str, title: str, note: str, *, wide: bool = False) -> str:
    head = f'<div class="title">{title}</div>' if title else ""
    return (
        f'<figure class="card{" wide" if wide else ""}">{head}'
        f'<div class="pictures">{pictures}</div><figcaption>{note}</figcaption></figure>'
    )


def _words(result: Result, text: int) -> str:
    """The words of a text as buttons, in front of them one for the whole."""
    picked = result.picks[text]
    names = ["whole text", *result.explanation.names[text].split()]
    return "".join(
        f'<button type="button" class="word{" whole" if not word else ""}" data-text="{text}" '
        f'data-word="{word}" aria-pressed="{str(word == picked).lower()}">{escape(name)}</button>'
        for word, name in enumerate(names)
    )
