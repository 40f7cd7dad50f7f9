"""The words of the demo models, with the tokenizer that knows no others.

Token 0 pads, tokens 1 to ``len(WORDS)`` are words, then come the start and the end token. The end
token has the highest number because OpenCLIP pools a text at its largest token.
"""

import re
from typing import Final

import torch

from ..checks import expect
from ..errors import TargetError
from .catalog import ADJECTIVES, BACKGROUNDS, NOUNS

FUNCTION_WORDS: Final[tuple[str, ...]] = (
    "a", "an", "the", "one", "and", "with", "on", "in", "of",
    "photo", "picture", "image", "drawing", "scene", "there", "this", "is",
)  # fmt: skip
WORDS: Final[tuple[str, ...]] = NOUNS + ADJECTIVES + BACKGROUNDS + FUNCTION_WORDS
CONTEXT_LENGTH: Final = 16
PAD: Final = 0
START: Final = len(WORDS) + 1
END: Final = len(WORDS) + 2
VOCAB_SIZE: Final = len(WORDS) + 3
IDS: Final = {word: number for number, word in enumerate(WORDS, start=1)}
OUTER: Final = r"(?<!\S)[^\w\s]+|[^\w\s]+(?!\S)"
"""Characters that are cut from the ends of words, as a regular expression."""


def split_words(text: str) -> list[str]:
    """Split at white space; words lose capitals and the punctuation around them.

    >>> split_words("A horse, and a dog.")
    ['a', 'horse', 'and', 'a', 'dog']
    """
    return re.sub(OUTER, "", text).lower().split()


class DemoTokenizer:
    """Texts -> tokens of the demo models; it refuses what it would have to change.

    >>> DemoTokenizer()("a horse").shape
    torch.Size([1, 16])
    """

    context_length: Final = CONTEXT_LENGTH

    def count(self, text: str) -> int:
        """Count the tokens of a text of any length, start and end token included.

        Raises:
            TargetError: if a word is not in the vocabulary.
        """
        return len(self._words(text)) + 2

    def __call__(self, texts: str | list[str]) -> torch.Tensor:
        """Tokenize one or several texts.

        Returns:
            (N, 16) int64: start, words, end, padding.

        Raises:
            TargetError: if words are not in the vocabulary, or a text has over 16 tokens.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = torch.full((len(texts), CONTEXT_LENGTH), PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            numbers = [START, *(IDS[word] for word in self._words(text)), END]
            expected = f"a text of up to {CONTEXT_LENGTH} tokens with its start and end"
            expect(len(numbers) <= CONTEXT_LENGTH, expected, text, error=TargetError)
            tokens[row, : len(numbers)] = torch.tensor(numbers)
        return tokens

    def _words(self, text: str) -> list[str]:
        words = split_words(text)
        unknown = [word for word in dict.fromkeys(words) if word not in IDS]
        if unknown:
            raise TargetError(
                f"the demo models do not know {', '.join(map(repr, unknown))} (in {text!r}); "
                f"they know {len(WORDS)} words: captum-clip models --vocabulary lists them"
            )
        return words
