"""What captions say, and which scenes they are true of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import TargetError
from .catalogue import ADJECTIVES, BACKGROUNDS, CONCEPTS, NOUNS, THINGS
from .vocabulary import CONTEXT_LENGTH, FUNCTION_WORDS, split_words

_PHRASES: Final = frozenset(thing.name for thing in THINGS if thing.adjective is not None)
_TEMPLATES: Final = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}",
    "a scene with {}", "there is {}", "this is {}",
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A text with the concepts it names.

    Args:
        text: such as ``"a red heart and a dog on grass"``.
        concepts: names out of :data:`captum_clip.demo.catalogue.CONCEPTS`, here
            ``{"red heart", "dog", "grass"}``.
    """

    text: str
    concepts: frozenset[str]

    def holds(self, concepts: Collection[str]) -> bool:
        """Whether it is true of a scene with these concepts: all that it names is there."""
        return self.concepts.issubset(concepts)


def scene_concepts(names: Sequence[str], background: str) -> frozenset[str]:
    """All that is true of a scene: its things with and without their adjective, a named background.

    >>> sorted(scene_concepts(["red heart", "dog"], "grass"))
    ['dog', 'grass', 'heart', 'red heart']
    """
    nouns = (name.split()[-1] for name in names)
    return frozenset((*names, *nouns, *({background} & set(BACKGROUNDS))))


def parse_caption(text: str) -> Caption:
    """Read which concepts a text names.

    >>> sorted(parse_caption("a photo of a red heart and a dog").concepts)
    ['dog', 'red heart']

    Raises:
        TargetError: if a colour or a feeling is not followed by a thing that comes with it.
    """
    concepts: list[str] = []
    adjective: str | None = None
    for word in split_words(text):
        name = word if adjective is None else f"{adjective} {word}"
        if adjective is not None and name not in _PHRASES:
            raise TargetError(f"no demo scene shows a {name!r} (in {text!r})")
        adjective = word if word in ADJECTIVES else None
        if name in _PHRASES or word in NOUNS or word in BACKGROUNDS:
            concepts.append(name)
    if adjective is not None:
        raise TargetError(f"the word {adjective!r} ends {text!r}: name a thing after it")
    return Caption(text, frozenset(concepts))


def article(name: str) -> str:
    """Prefix the indefinite article: ``"an apple"``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def on_background(background: str) -> str:
    """Say where a thing is: ``"on grass"``, ``"in the sky"``."""
    return {"sky": "in the sky", "water": "in the water"}.get(background, f"on {background}")


def compose(names: Sequence[str], background: str | None = None) -> Caption:
    """Write the plain caption for things and, if given, their background.

    >>> compose(["horse", "red heart"], "grass").text
    'a horse and a red heart on grass'
    """
    text = " and ".join(article(name) for name in names)
    if background is not None:
        text = f"{text} {on_background(background)}".strip()
    return Caption(text, frozenset((*names, *(() if background is None else (background,)))))


def draw_caption(names: Sequence[str], background: str, generator: np.random.Generator) -> Caption:
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


def vary(caption: Caption, generator: np.random.Generator) -> Caption:
    """Say the same in other words: templates, "with" for "and", missing function words."""
    text = caption.text
    if generator.random() < 0.2:
        text = text.replace(" and ", " with ", 1)
    if generator.random() < 0.4:
        text = _TEMPLATES[generator.integers(len(_TEMPLATES))].format(text)
    words = text.split()
    if generator.random() < 0.2:
        kept = [w for w in words if generator.random() < 0.6 or w not in FUNCTION_WORDS]
        words = kept or words
    if len(words) + 2 > CONTEXT_LENGTH:
        words = caption.text.split()
    return Caption(" ".join(words), caption.concepts)


def concept_prompts(generator: np.random.Generator | None = None) -> tuple[str, ...]:
    """One prompt per concept, in the order of ``CONCEPTS``: "a horse", ..., "grass".

    Args:
        generator: if given, one wording is drawn for all of them.
    """
    template, bare, the = "{}", False, False
    if generator is not None:
        if generator.random() >= 0.5:
            template = _TEMPLATES[generator.integers(len(_TEMPLATES))]
        bare, the = generator.random() < 0.15, generator.random() < 0.1
    prompts = []
    for concept in CONCEPTS:
        if concept in BACKGROUNDS or bare:
            phrase = concept
        else:
            phrase = f"the {concept}" if the else article(concept)
        prompts.append(template.format(phrase))
    return tuple(prompts)
