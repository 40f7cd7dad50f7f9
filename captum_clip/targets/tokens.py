"""Which tokens a word of a text is made of."""

from __future__ import annotations

from ..errors import InputError, TargetError
from ..models import ClipAdapter
from .text import checked_texts


def word_tokens(clip: ClipAdapter, text: str) -> tuple[tuple[str, range], ...]:
    """The words of a text, split at white space, each with the positions of its tokens.

    A value for each token, as methods give them on a :class:`captum_clip.TextSimilarity`, is summed
    over them; start, end and padding belong to no word.

    Raises:
        TargetError: an empty text, or one that is too long.
        InputError: a tokenizer that does not cut texts at white space, or cannot count.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.word_tokens(load_clip("demo/vit"), "a horse.")
        (('a', range(1, 2)), ('horse.', range(2, 3)))
    """
    checked_texts("targets.word_tokens", [text], allow_empty=False)
    words = text.split()
    ids = clip.text_inputs(" ".join(words))[0][0].tolist()
    empty = clip.text_inputs("")[0][0].tolist()
    start = next((i for i, (a, b) in enumerate(zip(ids, empty, strict=False)) if a != b), None)
    counts = [clip.count_tokens(" ".join(words[:stop])) for stop in range(len(words) + 1)]
    if start is None:
        raise TargetError(f"targets.word_tokens: {text!r} has no tokens of its own.")
    if None in counts:
        raise InputError(
            "targets.word_tokens: the tokenizer does not say how many tokens a text has; sum the "
            "values over each word yourself."
        )
    known = [count for count in counts if count is not None]
    stops = [start + count - known[0] for count in known]
    if stops != sorted(stops):
        raise InputError(
            f"targets.word_tokens: the tokenizer does not cut {text!r} at white space; sum the "
            "values over each word yourself."
        )
    spans = zip(words, stops, stops[1:], strict=False)
    return tuple((word, range(first, last)) for word, first, last in spans)
