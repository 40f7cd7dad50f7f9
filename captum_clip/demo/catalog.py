"""The things that demo scenes can show, with the characters that draw them, and their captions.

Nothing is drawn and nothing is read when this module is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Thing:
    """One thing that a scene can show.

    Args:
        noun: one lower-case word.
        adjective: the color or the feeling that tells things of one noun apart, otherwise None.
        characters: the emoji that draw it, one drawing a character.
        held_out: further emoji that draw it in test scenes only, and there instead of the others.
    """

    noun: str
    adjective: str | None
    characters: str
    held_out: str = ""

    @property
    def name(self) -> str:
        """Its name in scenes and captions: ``"horse"``, ``"red heart"`` or ``"sad face"``."""
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
"""  # the emotion, how a face with it is called, its drawings, the held-out drawing


def _entries(text: str) -> list[list[str]]:
    return [entry.split() for line in text.strip().split("\n") for entry in line.split("|")]


THINGS: Final[tuple[Thing, ...]] = (
    *(Thing(noun, None, characters) for noun, characters in _entries(_WITHOUT_COLOR)),
    *(
        Thing(noun, color, characters)
        for noun, colors in _COLORED.items()
        for color, characters in _entries(colors)
    ),
    *(
        Thing("face", feeling, characters, held_out)
        for _, feeling, characters, held_out in _entries(_FACES)
    ),
)
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
"""All that a caption can name: nouns, colored things, faces with a feeling, backgrounds."""


def article(name: str) -> str:
    """Prefix the indefinite article: ``"an apple"``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def concept_texts() -> list[str]:
    """All that a caption can name, each as a text."""
    return [name if name in BACKGROUNDS else article(name) for name in CONCEPTS]


def compose(names: Sequence[str], background: str | None = None) -> str:
    """Write the plain caption for things and, if given, their background.

    >>> compose(["horse", "red heart"], "grass")
    'a horse and a red heart on grass'
    """
    text = " and ".join(article(name) for name in names)
    if background is None:
        return text
    place = {"sky": "in the sky", "water": "in the water"}.get(background, f"on {background}")
    return f"{text} {place}".strip()


def draw_caption(names: Sequence[str], background: str, generator: "np.random.Generator") -> str:
    """Write a caption for all the given things, at random in order, adjectives and background.

    Args:
        names: names of the things to mention, at least one.
        background: of the scene, mentioned in a third of the captions if it has a name.
        generator: the source of the choices.
    """
    order = generator.permutation(len(names))
    mentioned = list(
        dict.fromkeys(names[i] if generator.random() < 0.6 else names[i].split()[-1] for i in order)
    )
    named = generator.random() < 1 / 3 and background in BACKGROUNDS
    return compose(mentioned, background if named else None)
