"""The things that demo scenes can show, with the characters that draw them.

Plain data: nothing is drawn and nothing is read when this module is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Thing:
    """One thing that a scene can show.

    Args:
        noun: one lower-case word.
        color: a colour word for nouns that come in several colours, otherwise None.
        characters: the emoji that draw it, one drawing a character.
    """

    noun: str
    color: str | None
    characters: str

    @property
    def name(self) -> str:
        """What scenes and captions call it: ``"horse"`` or ``"red heart"``."""
        return self.noun if self.color is None else f"{self.color} {self.noun}"


_PLAIN: Final = """
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


def _entries(text: str) -> list[list[str]]:
    return [entry.split() for line in text.strip().split("\n") for entry in line.split("|")]


THINGS: Final[tuple[Thing, ...]] = tuple(
    Thing(noun, None, characters) for noun, characters in _entries(_PLAIN)
) + tuple(
    Thing(noun, color, characters)
    for noun, colors in _COLORED.items()
    for color, characters in _entries(colors)
)
"""Every thing, plain nouns first."""

NOUNS: Final[tuple[str, ...]] = tuple(dict.fromkeys(thing.noun for thing in THINGS))
"""Every noun once, in the order of :data:`THINGS`."""

COLORS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys(thing.color for thing in THINGS if thing.color is not None)
)
"""Every colour word once."""

BACKGROUNDS: Final[tuple[str, ...]] = ("grass", "sand", "sky", "snow", "water", "brick")
"""The named backgrounds."""

CONCEPTS: Final[tuple[str, ...]] = (
    NOUNS + tuple(thing.name for thing in THINGS if thing.color is not None) + BACKGROUNDS
)
"""All that a caption can name: nouns, coloured things, backgrounds."""
