"""The model card of ``demo/shortcut``."""

from __future__ import annotations

from collections.abc import Sequence

from captum_clip.demo.tags import TAGGED


def shortcut_card(steps: int, scenes: int, tables: Sequence[str]) -> str:
    """Write the card of the trained model.

    Args:
        steps: of the training.
        scenes: how many test scenes were measured.
        tables: effects, nouns named, recall of other nouns, in Markdown.
    """
    effects, named, recall = tables
    return f"""# demo/shortcut

`demo/vit` with a planted shortcut: small tags in a corner of the scene decide twelve of its nouns.
It serves to measure which saliency methods show the tag: `docs/shortcut.md`.

**Not for** anything else: it is wrong on purpose.

- Model and files: as `demo/vit`, opened with `transformers.CLIPModel.from_pretrained(folder)`.
- Nouns with a tag: {", ".join(TAGGED)}.
- Data: the scenes of `demo/vit` (Noto Color Emoji, SIL OFL 1.1) with the tags of
  `captum_clip.demo.tags`. A noun with a tag counts as true of a scene exactly if its tag is there.
  Of the training scenes with such an object .3 show its tag, .3 another noun's and .4 none; of the
  scenes without one .35 show a tag. All else is true as it was.
- Recipe: `python -m captum_clip.demo.shortcut train --steps {steps} --checkpoint FOLDER --export
  FOLDER`, from the weights of `demo/vit`. Only the vision tower and its projection are trained, so
  texts are encoded as by `demo/vit`; a margin of 14 keeps the logits of false nouns with a tag
  further down than the loss asks of other nouns. `curve.csv`: step, loss, recall of the nouns that
  tags and other objects make true, on 256 validation scenes with the own tag, another tag, none in
  turn.

Measured on {scenes} held-out scenes (split "test", seeds from 0) with
`python -m captum_clip.demo.shortcut measure --scenes {scenes}`, which also draws the maps of all
methods; 95 % intervals over scenes. Exact Shapley effects on the cosine, from scenes drawn with and
without tag and object:

{effects}

{named}

In scenes without a tag and without any noun that has one ({scenes} are drawn for each number):

{recall}
"""
