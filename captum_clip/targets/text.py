"""Targets from texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import as_list, is_encodable, show
from ..errors import TargetError
from ..models import ClipAdapter
from .base import Target


def text(
    clip: ClipAdapter,
    texts: str | Sequence[str],
    *,
    templates: str | Sequence[str] | None = None,
    allow_empty: bool = False,
) -> Target:
    r"""One row per text: its L2-normalised text embedding.

    With prompt templates a row is the mean of the unit embeddings of the text in every template,
    normalised again (Radford et al. 2021, section 3.1.4):

    .. math:: t = \frac{m}{|m|}, \quad m = \frac{1}{P} \sum_p \frac{enc(p(text))}{|enc(p(text))|}

    Args:
        clip: the adapter.
        texts: one text or several.
        templates: one or several prompts with ``{}`` where the text goes, as "a photo of a {}.".
        allow_empty: take "" as a text; a prompt without content, useful as a baseline.

    Raises:
        TargetError: no text, an empty one, one that is too long, or a template without ``{}``.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> clip = load_clip("demo/vit")
        >>> targets.text(clip, ["horse", "dog"], templates=["a {}", "a photo of a {}"]).names
        ('horse', 'dog')
    """
    texts = checked_texts("targets.text", texts, allow_empty=allow_empty)
    for text in texts:
        if not allow_empty and clip.is_blank(text):
            raise TargetError(
                f"targets.text: {show(text)} means as much as an empty text to {clip.name}, whose "
                "tokenizer leaves nothing of it; pass allow_empty=True to mean it."
            )
    if templates is None:
        return Target.of(encode(clip, texts), texts, "text")
    templates = as_list(templates)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise TargetError(
                "targets.text: expected a template with one {} for the text, got "
                f"{show(template)}."
            )
    if not templates:
        raise TargetError("targets.text: templates is empty; leave it out to use the bare texts.")
    prompts = [template.replace("{}", text) for text in texts for template in templates]
    rows = F.normalize(encode(clip, prompts), dim=-1)
    return Target.of(rows.view(len(texts), len(templates), -1).mean(1), texts, "text")


def checked_texts(caller: str, texts: str | Sequence[str], *, allow_empty: bool) -> list[str]:
    """The texts as a list, each a text with something in it."""
    if not isinstance(texts, Iterable):
        raise TargetError(f"{caller}: expected a text or several, got {type(texts).__name__}.")
    listed = as_list(texts)
    if not listed:
        raise TargetError(f"{caller}: expected at least one text, got an empty list.")
    for text in listed:
        if not isinstance(text, str):
            raise TargetError(f"{caller}: expected texts, got {type(text).__name__}: {show(text)}.")
        if not is_encodable(text):
            raise TargetError(
                f"{caller}: {show(text)} holds half a character (a surrogate); take it out."
            )
        if not text.strip() and not allow_empty:
            raise TargetError(f"{caller}: {text!r} is empty; pass allow_empty=True to mean it.")
    return listed


def encode(clip: ClipAdapter, texts: list[str]) -> Tensor:
    """Unit text embeddings (N, D), without a graph."""
    with torch.no_grad():
        return clip.encode_text(texts)
