"""What was found, as HTML: a card a text, a row of pictures a layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.colors import Colormap
from torch import Tensor

from .. import maps
from ..visualization.overlay import score_note
from ..visualization.style import HEAT, NEGATIVE, POSITIVE, colormap
from .answers import Answer, Layers, shown
from .pictures import data_url, gradient, layer, photo, signed_heat, signed_layer

WELCOME = '<p class="hint">The maps will be here.</p>'
"""In place of the cards, before anything was asked."""


def cards(answer: Answer) -> str:
    """The image, then a card for each text: its maps, its cosine, its words to click."""
    found = shown(answer)
    heat = {
        sign: answer.weights[:, None, None] * values[0] for sign, values in found.heat().items()
    }
    colors = _colors(tuple(heat))
    image = found.images[0]
    plain = _picture(data_url(image.permute(1, 2, 0).numpy()), "the image", kind="plain")
    parts = [_card(plain, "<b>image</b>", "as the model sees it")]
    for text, (name, score) in enumerate(zip(found.names, found.scores[0].tolist(), strict=True)):
        pictures = "".join(
            _picture(data_url(layer(values[text], colors[sign])), _alt(sign, name))
            for sign, values in heat.items()
        )
        word = answer.picks[text]
        note = _norm_note(answer, text) if word else score_note(score)
        if not any(bool(values[text].any()) for values in heat.values()):
            note += ", no heat"
        parts.append(_card(pictures, _words(answer, text), note, wide=len(heat) == 2))
    caption = escape(f"{found.model} \N{MIDDLE DOT} {found.method}")
    foot = f'<p class="foot">{_legend(tuple(heat))}<span class="source">{caption}</span></p>'
    return f'<div class="cards" style="{_photo(image)}">{"".join(parts)}</div>{foot}'


def layer_rows(found: Layers) -> str:
    """Two rows: the attention of every layer, and the gradient with respect to it."""
    size = (found.image.shape[-2], found.image.shape[-1])
    attention = maps.normalize(maps.upsample(found.attention, size))[0]  # (n, H, W)
    up, down = (part[0] for part in signed_heat(found.gradient, size))
    heat = colormap(HEAT)
    rows = [
        ("attention", [layer(values, heat) for values in attention]),
        (
            "gradient",
            [signed_layer(*pair, (POSITIVE, NEGATIVE)) for pair in zip(up, down, strict=True)],
        ),
    ]
    parts = []
    for title, pictures in rows:
        each = "".join(
            _card(_picture(data_url(pixels), f"{title}, layer {index}"), "", f"layer {index}")
            for index, pixels in enumerate(pictures)
        )
        parts.append(f'<h4>{title}</h4><div class="layers">{each}</div>')
    note = (
        f"For \u201c{escape(found.text)}\u201d: where each layer attends, heads averaged, and "
        "where more attention would raise the cosine (orange) or lower it (blue). Each picture has "
        "a scale of its own; layers count from 0, as in LayerAttention."
    )
    body = "".join(parts)
    return f'<div style="{_photo(found.image[0])}"><p class="hint">{note}</p>{body}</div>'


def problem(sentence: str) -> str:
    """A sentence that says what is wrong."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>' if sentence else ""


def _colors(signs: Sequence[str]) -> dict[str, Colormap]:
    alone = {"positive": colormap(HEAT), "negative": NEGATIVE}
    return {"positive": POSITIVE, "negative": NEGATIVE} if len(signs) == 2 else alone


def _legend(signs: Sequence[str]) -> str:
    colors = _colors(signs)
    says = {"positive": "speaks for the text", "negative": "speaks against it"}
    return "".join(
        f'<span class="legend"><i style="background:{gradient(colors[sign])}"></i>'
        f"{says[sign]}: low to high</span>"
        for sign in signs
    )


def _photo(image: Tensor) -> str:
    return f"--photo:url({photo(image)});--shape:{image.shape[-1]}/{image.shape[-2]}"


def _picture(url: str, description: str, *, kind: str = "map") -> str:
    return (
        f'<span class="picture"><img class="{kind}" src="{url}" alt="{escape(description)}"></span>'
    )


def _alt(sign: str, name: str) -> str:
    return f"what speaks {'for' if sign == 'positive' else 'against'} {name}"


def _card(pictures: str, title: str, note: str, *, wide: bool = False) -> str:
    head = f'<div class="title">{title}</div>' if title else ""
    return (
        f'<figure class="card{" wide" if wide else ""}">{head}'
        f'<div class="pictures">{pictures}</div><figcaption>{note}</figcaption></figure>'
    )


def _norm_note(answer: Answer, text: int) -> str:
    norms = answer.words[text].norms
    return f"norm {norms[answer.picks[text]]:.2f}, largest {norms[1:].max():.2f}"


def _words(answer: Answer, text: int) -> str:
    """The words of a text as buttons, in front of them one for the whole."""
    picked = answer.picks[text]
    named = ["whole text", *answer.found.names[text].split()]
    return "".join(
        f'<button type="button" class="word{" whole" if not word else ""}" data-text="{text}" '
        f'data-word="{word}" aria-pressed="{str(word == picked).lower()}">{escape(name)}</button>'
        for word, name in enumerate(named)
    )
