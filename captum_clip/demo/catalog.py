"""The things that demo scenes can show, with the characters that draw them, and their words.

Nothing is drawn or read when this module is imported, and torch is not loaded. The demo models know
no other words. Token 0 pads, tokens 1 to ``len(WORDS)`` are words, then come the start and the end
token. The end token has the highest number because OpenCLIP pools a text at its largest token.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..checks import expect
from ..errors import TargetError

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Thing:
    """One thing that a scene can show.

    Args:
        noun: one lower-case word.
        adjective: the color or the feeling that tells things of one noun apart, otherwise None.
        characters: the emoji that draw it; each character is a drawing.
        held_out: further emoji that draw it in test scenes only, in place of the others.
    """

    noun: str
    adjective: str | None
    characters: str
    held_out: str = ""

    @property
    def name(self) -> str:
        """The name in scenes and captions: ``"horse"``, ``"red heart"`` or ``"sad face"``."""
        return self.noun if self.adjective is None else f"{self.adjective} {self.noun}"


_WITHOUT_COLOR: Final = """
horse 🐎|dog 🐕|sheep 🐑|cow 🐄|elephant 🐘|zebra 🦓
cat 🐈|pig 🐖|rabbit 🐇|tiger 🐅|giraffe 🦒|camel 🐪🐫
kangaroo 🦘|monkey 🐒|gorilla 🦍|rhino 🦏|deer 🦌|hedgehog 🦔
penguin 🐧|owl 🦉|duck 🦆|flamingo 🦩|parrot 🦜|peacock 🦚
rooster 🐓|dinosaur 🦖|turtle 🐢|snake 🐍|whale 🐋|dolphin 🐬
shark 🦈|octopus 🐙|fish 🐠|crab 🦀|snail 🐌|butterfly 🦋
bee 🐝|ladybug 🐞|spider 🕷|burger 🍔|donut 🍩|pizza 🍕
hotdog 🌭|taco 🌮|popcorn 🍿|cake 🎂🍰|cookie 🍪|cheese 🧀
pretzel 🥨|sandwich 🥪|lollipop 🍭|apple 🍎🍏|banana 🍌|lemon 🍋
strawberry 🍓|pineapple 🍍|watermelon 🍉|avocado 🥑|carrot 🥕|corn 🌽
eggplant 🍆|broccoli 🥦|mushroom 🍄|pumpkin 🎃|coffee ☕|tree 🌳🌲
cactus 🌵|rose 🌹|sunflower 🌻|car 🚗|bus 🚌|truck 🚚🚛
bicycle 🚲|motorcycle 🏍|train 🚆|plane ✈|helicopter 🚁|rocket 🚀
sailboat ⛵|tractor 🚜|balloon 🎈|house 🏠|castle 🏰|tent ⛺
phone 📱|laptop 💻|television 📺|camera 📷|clock ⏰|bulb 💡
key 🔑|hammer 🔨|umbrella ☂|guitar 🎸|piano 🎹|drum 🥁
trumpet 🎺|football ⚽|basketball 🏀|dice 🎲|gift 🎁|crown 👑
hat 🎩|shirt 👕|shoe 👟|backpack 🎒|ring 💍|chair 🪑
toilet 🚽|anchor ⚓|trophy 🏆|robot 🤖|ghost 👻|snowman ⛄
"""

_COLORED: Final = {
    "heart": "red ❤|orange 🧡|yellow 💛|green 💚|blue 💙|purple 💜|brown 🤎|black 🖤|white 🤍",
    "circle": "red 🔴|orange 🟠|yellow 🟡|green 🟢|blue 🔵|purple 🟣|brown 🟤|black ⚫|white ⚪",
    "square": "red 🟥|orange 🟧|yellow 🟨|green 🟩|blue 🟦|purple 🟪|brown 🟫|black ⬛|white ⬜",
    "book": "red 📕|orange 📙|green 📗|blue 📘",
}

_FACES: Final = """
amusement amused 😂🤣😝😜 😆
awe awed 😮😯🤯 😲
contentment contented 😌☺🙂 😊
excitement excited 🤩🥳😃😍 😄
anger angry 😠🤬😤 😡
disgust disgusted 🤢😖🥴 🤮
fear scared 😱😰😧 😨
sadness sad 😢😭☹😞 🙁
"""
"""A line has an emotion, the adjective of a face with it, its drawings and the held-out drawing."""


def _entries(table: str) -> list[list[str]]:
    """Split a table into the fields of each entry.

    Line breaks or bars divide the entries, and spaces divide their fields.
    """
    entries = table.strip().replace("\n", "|").split("|")
    return [entry.split() for entry in entries]


def _things() -> tuple[Thing, ...]:
    things = []
    for noun, characters in _entries(_WITHOUT_COLOR):
        things.append(Thing(noun, None, characters))
    for noun, colors in _COLORED.items():
        for color, characters in _entries(colors):
            things.append(Thing(noun, color, characters))
    for _, feeling, characters, held_out in _entries(_FACES):
        things.append(Thing("face", feeling, characters, held_out))
    return tuple(things)


THINGS: Final[tuple[Thing, ...]] = _things()
"""Every thing: plain nouns, things in colors, faces."""

NOUNS: Final[tuple[str, ...]] = tuple(dict.fromkeys(thing.noun for thing in THINGS))
"""Every noun once, in the order of :data:`THINGS`."""

FEELINGS: Final[dict[str, str]] = {emotion: feeling for emotion, feeling, *_ in _entries(_FACES)}
"""The eight emotions of ArtEmis -> the word for a face with it: ``"sadness"`` -> ``"sad"``."""
EMOTIONS: Final = tuple(FEELINGS)
"""The eight emotions, positive ones first."""
SOMETHING_ELSE: Final = "something else"
CLASSES: Final = (*EMOTIONS, SOMETHING_ELSE)
"""The choices of an annotator of ArtEmis: the columns of all votes."""

ADJECTIVES: Final[tuple[str, ...]] = tuple(
    dict.fromkeys(thing.adjective for thing in THINGS if thing.adjective is not None)
)
"""Every word that stands before a noun."""

BACKGROUNDS: Final[tuple[str, ...]] = ("grass", "sand", "sky", "snow", "water", "brick")
"""The named backgrounds."""

CONCEPTS: Final = (*NOUNS, *(t.name for t in THINGS if t.adjective is not None), *BACKGROUNDS)
"""Everything that a caption can name: nouns, colored things, faces with a feeling, backgrounds."""


def article(name: str) -> str:
    """Prefix the indefinite article: ``"an apple"``."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def concept_texts() -> list[str]:
    """Everything that a caption can name, each as a text."""
    return [name if name in BACKGROUNDS else article(name) for name in CONCEPTS]


def compose(names: Sequence[str], background: str | None = None) -> str:
    """Write the plain caption for things and, if given, their background.

    >>> compose(["horse", "red heart"], "grass")
    'a horse and a red heart on grass'
    """
    text = " and ".join(article(name) for name in names)
    if background is None:
        return text
    # Without a thing the caption is its place alone.
    place = f"in the {background}" if background in ("sky", "water") else f"on {background}"
    return f"{text} {place}".strip()


def draw_caption(names: Sequence[str], background: str, generator: "np.random.Generator") -> str:
    """Write a caption for all the given things, at random in order, adjectives and background.

    Args:
        names: names of the things to mention, at least one.
        background: the scene's background, mentioned in a third of the captions if it is in
            `BACKGROUNDS`.
        generator: the source of the choices.
    """
    mentioned: dict[str, None] = {}
    for index in generator.permutation(len(names)):
        name = names[index]
        # In four of ten cases only the noun is mentioned.
        if generator.random() >= 0.6:
            name = name.split()[-1]
        # Things of one noun may have become the same name, which a caption has once.
        mentioned[name] = None
    # The number is drawn for any background, so that later draws do not depend on its name.
    is_named = generator.random() < 1 / 3 and background in BACKGROUNDS
    return compose(list(mentioned), background if is_named else None)


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
"""A regular expression of the characters that are cut from the ends of words."""


def split_words(text: str) -> list[str]:
    """Split at white space; words lose capitals and the punctuation around them.

    >>> split_words("A horse, and a dog.")
    ['a', 'horse', 'and', 'a', 'dog']
    """
    return re.sub(OUTER, "", text).lower().split()


class DemoTokenizer:
    """Texts -> tokens of the demo models; it refuses texts that it would have to change.

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

    def __call__(self, texts: str | list[str]) -> "torch.Tensor":
        """Tokenize one or several texts.

        Returns:
            (N, 16) int64: start, words, end, padding.

        Raises:
            TargetError: if words are not in the vocabulary, or a text has over 16 tokens.
        """
        import torch

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
        # A symbol that stands alone, such as an emoji, would be dropped as if it were punctuation.
        symbols = [character for character in text if unicodedata.category(character) == "So"]
        unknown = [word for word in dict.fromkeys([*words, *symbols]) if word not in IDS]
        if unknown:
            raise TargetError(
                f"the demo models do not know {', '.join(map(repr, unknown))} (in {text!r}); "
                f"they know {len(WORDS)} words: captum-clip models --vocabulary lists them"
            )
        return words
