"""Which scenes a caption is true of, and how training captions are worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from captum_clip.demo.catalog import (
    ADJECTIVES,
    BACKGROUNDS,
    CONCEPTS,
    CONTEXT_LENGTH,
    FUNCTION_WORDS,
    NOUNS,
    THINGS,
    article,
    draw_caption,
    split_words,
)
from captum_clip.demo.scenes import MAX_OBJECTS, Scene

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
        concepts: names out of :data:`captum_clip.demo.catalog.CONCEPTS`, here
            ``{"red heart", "dog", "grass"}``.
    """

    text: str
    concepts: frozenset[str]


def parse_caption(text: str) -> Caption:
    """Read which concepts a text names.

    >>> sorted(parse_caption("a photo of a red heart and a dog").concepts)
    ['dog', 'red heart']

    Raises:
        ValueError: if a color or a feeling is not followed by a thing that comes with it.
    """
    concepts: list[str] = []
    adjective: str | None = None
    for word in split_words(text):
        name = word if adjective is None else f"{adjective} {word}"
        if adjective is not None and name not in _PHRASES:
            raise ValueError(f"no demo scene shows a {name!r} (in {text!r})")
        adjective = word if word in ADJECTIVES else None
        if name in _PHRASES or word in NOUNS or word in BACKGROUNDS:
            concepts.append(name)
    if adjective is not None:
        raise ValueError(f"the word {adjective!r} ends {text!r}: name a thing after it")
    return Caption(text, frozenset(concepts))


def scene_concepts(names: Sequence[str], background: str) -> frozenset[str]:
    """All that is true of a scene: its things with and without their adjective, a named background.

    >>> sorted(scene_concepts(["red heart", "dog"], "grass"))
    ['dog', 'grass', 'heart', 'red heart']
    """
    nouns = (name.split()[-1] for name in names)
    return frozenset((*names, *nouns, *({background} & set(BACKGROUNDS))))


def holds(text: str, scene: Scene) -> bool:
    """Whether a caption is true of a scene: the scene has all that the caption names."""
    names = [thing.name for thing in scene.objects]
    return parse_caption(text).concepts <= scene_concepts(names, scene.background)


def describe(names: Sequence[str], background: str, generator: np.random.Generator) -> Caption:
    """Write a training caption for some of the named things, one to three."""
    order = generator.permutation(len(names))
    mentioned = order[: generator.integers(1, min(len(names), MAX_OBJECTS) + 1)]
    return vary(draw_caption([names[i] for i in mentioned], background, generator), generator)


def vary(text: str, generator: np.random.Generator) -> Caption:
    """Say the same in other words: templates, "with" for "and", missing function words."""
    varied = text
    if generator.random() < 0.2:
        varied = varied.replace(" and ", " with ", 1)
    if generator.random() < 0.4:
        varied = _TEMPLATES[generator.integers(len(_TEMPLATES))].format(varied)
    words = varied.split()
    if generator.random() < 0.2:
        kept = [w for w in words if generator.random() < 0.6 or w not in FUNCTION_WORDS]
        words = kept or words
    if len(words) + 2 > CONTEXT_LENGTH:
        words = text.split()
    return Caption(" ".join(words), parse_caption(text).concepts)


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
