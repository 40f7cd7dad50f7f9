"""The captions of demo scenes."""

from collections.abc import Sequence

import numpy as np

from .catalog import BACKGROUNDS, CONCEPTS


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


def draw_caption(names: Sequence[str], background: str, generator: np.random.Generator) -> str:
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
