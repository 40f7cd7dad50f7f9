"""The words of a text: what each of them adds to it, and the tokens it is made of."""

from __future__ import annotations

import string
from collections.abc import Sequence

from ..checks import as_list, is_integer
from ..errors import InputError, TargetError
from ..models import ClipAdapter
from .base import Target
from .text import checked_texts, encode

Span = tuple[int, int]
_PUNCTUATION = string.punctuation + "“”‘’«»„¿¡…–—"


def words(clip: ClipAdapter, text: str, words: Sequence[str | Span] | None = None) -> Target:
    r"""One row for each word or span w of the text t: what is lost when w is left out.

    .. math:: row_w \propto \widehat{enc}(t) - \widehat{enc}(t \setminus w)

    with both encodings L2-normalised first.

    The text is split at white space and words are taken out by position, so a repeated word gives
    a row for each occurrence, and the punctuation of the other words stays. ``.norms`` holds the
    length of each difference: how much the word matters to the text at all. The rows themselves
    have unit length, so a word map differs from Mamooler's, which keeps the length, by
    second order. Where nothing is left, the empty encoding is subtracted.

    Args:
        clip: the adapter.
        text: the whole text.
        words: which; each a word or span as it stands in the text ("horse", "red hair"; outer
            punctuation does not count) or (start, stop) positions of words; all words by default.

    Raises:
        TargetError: an empty text, a word that is not in it, or one whose removal changes nothing.

    Source: CLIP Explainability (Mamooler, EPFL), word-wise saliency.

    Example:
        >>> from captum_clip import load_clip, targets
        >>> targets.words(load_clip("demo/vit"), "a horse and a dog.", ["horse", "dog"]).names
        ('horse', 'dog')
    """
    checked_texts("targets.words", [text], allow_empty=False)
    parts = text.split()
    spans = _spans(parts, words)
    # By position: `re.sub` would take the word as a pattern, and "a" would remove every a.
    without = [" ".join(parts[:start] + parts[stop:]) for start, stop in spans]
    rows = encode(clip, [text, *without])
    names = [_bare(" ".join(parts[start:stop])) for start, stop in spans]
    return Target.of(rows[:1] - rows[1:], names, "text")


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


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION) or word


def _spans(parts: list[str], words: Sequence[str | Span] | None) -> list[Span]:
    if words is None:
        return [(index, index + 1) for index in range(len(parts))]
    listed = as_list(words)
    if not listed:
        raise TargetError("targets.words: words is empty; leave it out to take all words.")
    return [
        span
        for word in listed
        for span in (_find(parts, word) if isinstance(word, str) else [_checked(parts, word)])
    ]


def _find(parts: list[str], word: str) -> list[Span]:
    """Every occurrence of a word or span, by its words without outer punctuation."""
    wanted = [_bare(part) for part in word.split()]
    bare = [_bare(part) for part in parts]
    size = len(wanted)
    spans = [
        (start, start + size)
        for start in range(len(parts) - size + 1)
        if size and bare[start : start + size] == wanted
    ]
    if not spans:
        raise TargetError(f"targets.words: {word!r} is not in the text; its words are {bare}.")
    return spans


def _checked(parts: list[str], span: Span) -> Span:
    if (
        not isinstance(span, (tuple, list))
        or len(span) != 2
        or not all(is_integer(end) for end in span)
        or not 0 <= span[0] < span[1] <= len(parts)
    ):
        raise TargetError(
            f"targets.words: expected a word of the text or (start, stop) with "
            f"0 <= start < stop <= {len(parts)}, got {span!r}."
        )
    return (span[0], span[1])
