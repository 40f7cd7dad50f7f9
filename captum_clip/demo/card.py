"""The model cards of the demo models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from captum_clip.demo.catalogue import NOUNS, THINGS
from captum_clip.demo.evaluate import Figures

_WHAT: Final = {
    "vit": "transformers `CLIPModel`: vision tower of width 128, 6 layers, 4 heads, patch 32 at\n"
    "  224 x 224 (a 7 x 7 grid); text tower of width 128, 2 layers",
    "resnet": "OpenCLIP `CLIP` with a `ModifiedResNet`: layers (1, 1, 2, 2), width 16, attention\n"
    "  pool with 8 heads at 224 x 224 (a 7 x 7 grid); text tower of width 128, 2 layers",
}
_LOAD: Final = {
    "vit": "transformers.CLIPModel.from_pretrained(folder)",
    "resnet": 'open_clip.create_model_from_pretrained(f"local-dir:{folder}")',
}


def model_card(
    name: str,
    *,
    parameters: int,
    step: int,
    steps: int,
    batch_size: int,
    seed: int,
    scenes: int,
    measured: Sequence[Figures],
) -> str:
    """Write the card of a trained model.

    Args:
        name: ``"vit"`` or ``"resnet"``.
        parameters: how many it has.
        step: steps done.
        steps: steps of the whole schedule.
        batch_size: of its training.
        seed: of its training.
        scenes: how many test scenes were measured for each count of objects.
        measured: the figures for one, two, three objects.
    """
    rows = "\n".join(
        f"| {count} | {found.nouns:.3f} | {found.colors:.3f} | {found.feelings:.3f} "
        f"| {found.backgrounds:.3f} |"
        for count, found in enumerate(measured, start=1)
    )
    return f"""# demo/{name}

A small CLIP that knows {len(NOUNS)} nouns, trained on drawn scenes. It lets captum_clip run
offline and be measured where the exact mask of every object is known.

**Not for** conclusions about real CLIPs, photographs, or words outside its vocabulary.

- Model: {_WHAT[name]}.
- Files: {parameters / 1e6:.2f} M parameters in half precision, opened with
  `{_LOAD[name]}`.
- Data: `captum_clip.demo.scenes`, split "train": one to three of {len(THINGS)} things (Noto Color
  Emoji, SIL OFL 1.1) on six procedural backgrounds, with captions such as "a horse and a red heart
  on grass".
- Recipe: `python -m captum_clip.demo.train {name} --steps {steps} --batch-size {batch_size}
  --seed {seed} --checkpoint FOLDER`, {step} of {steps} steps done. Every step scores its scenes
  against their captions and all single-thing prompts; a text counts as true of every scene that
  holds all it names. Sigmoid loss + 0.2 x InfoNCE, AdamW, one cycle. `curve.csv`: step, loss,
  recall of nouns on 256 validation scenes with two or three objects.

Measured on {scenes} held-out scenes (split "test", seeds from 0) for each number of objects with
`python -m captum_clip.demo.evaluate {name} --scenes {scenes}`:

| objects | nouns | colours | feelings | backgrounds |
|---|---|---|---|---|
{rows}

- nouns: share of the nouns of a scene with n objects among its n best-scored of {len(NOUNS)}
  prompts "a horse", "a dog", ...; guessing gives n/{len(NOUNS)}.
- colours: share of coloured things whose own colour scores best ("a red heart" against the
  heart's other colours); guessing gives 1/9, for books 1/4.
- feelings: share of faces whose own feeling scores best ("a sad face" against the seven others), on
  drawings that no training scene has; guessing gives 1/8.
- backgrounds: share of scenes whose own background scores best; guessing gives 1/6.
"""
