"""How much each word of a caption matters: ``python -m captum_clip.demo.word_norms``.

Prints a Markdown table of the lengths of the differences enc(t) - enc(t without w), for the nouns
of captions such as "a horse and a dog" and the words between them, with intervals over captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from .. import targets
from ..metrics import Interval, bootstrap_mean
from ..models import ClipAdapter, load_clip
from . import MODELS
from .captions import article
from .scenes import pick_things


def captions(number: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """Pairs and triples of nouns in turn, as (first, second) or (first, second, third)."""
    generator = np.random.default_rng(seed)
    counts = [2 + index % 2 for index in range(number)]
    return [tuple(thing.noun for thing in pick_things(count, generator)) for count in counts]


def norms(clip: ClipAdapter, nouns: Sequence[tuple[str, ...]]) -> dict[str, Interval]:
    """Mean norms of nouns, of articles and of "and", with 95 % intervals over captions."""
    found: dict[str, list[tuple[float, int]]] = {"nouns": [], "a, an": [], "and": []}
    for number, names in enumerate(nouns):
        target = targets.words(clip, " and ".join(map(article, names)))
        for word, norm in zip(target.names, target.norms.tolist(), strict=True):
            kind = "nouns" if word in names else "and" if word == "and" else "a, an"
            found[kind].append((norm, number))
    return {
        kind: bootstrap_mean([norm for norm, _ in rows], [owner for _, owner in rows])
        for kind, rows in found.items()
    }


def table(names: Sequence[str], *, number: int) -> str:
    """One row a model."""
    lines = [
        f"Norms of words, {number} captions of two and three nouns; 95 % intervals over captions",
        "",
        "| model | nouns | a, an | and |",
        "|---|---|---|---|",
    ]
    nouns = captions(number)
    for name in names:
        found = norms(load_clip(name), nouns)
        lines.append(f"| {name} | {' | '.join(map(str, found.values()))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print how much nouns, articles and "and" matter to a caption."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="any model by name")
    parser.add_argument("--captions", type=int, default=500)
    options = parser.parse_args(arguments)
    print(table(options.model, number=options.captions))


if __name__ == "__main__":
    main()
