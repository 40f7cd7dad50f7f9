"""How a text embedding reads its tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple

Row = Literal["end", "last", "first", "mean"]


class TextReadout(NamedTuple):
    """How a text tower reads its tokens.

    Attributes:
        row: the token whose output is the embedding: the "end" token of the text, the "last"
            position of the sequence whatever stands there, the "first" one (CLS), or the "mean".
        causal: whether a token sees only those before it.
        padding: what the model was trained with: to the "longest" text of a batch, or to
            "max_length"; where the last position is read, or no mask is given, another padding
            gives another embedding.
    """

    row: Row
    causal: bool
    padding: Literal["longest", "max_length"]
