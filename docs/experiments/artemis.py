r"""An ArtEmis of drawn scenes, whose emotions have a known cause; and where maps of emotions point.

    python docs/experiments/artemis.py write art
    captum-clip emotions fit art --model demo/vit -o vit.safetensors --test art/held_out
    python docs/experiments/artemis.py check art/held_out --model demo/vit \
        --emotions vit.safetensors

The first command writes files exactly as ArtEmis' authors publish theirs, so that the second one
cannot tell the difference; the third one knows what decides each emotion, and where that is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from captum_clip import ClipSimilarity, load_clip, maps, metrics, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.demo.catalog import CLASSES, EMOTIONS, FEELINGS, SOMETHING_ELSE, THINGS
from captum_clip.demo.scenes import Scene, Split, draw_scene
from captum_clip.targets import EmotionProbe

LOCAL = ("amusement", "anger", "disgust", "sadness")
"""Emotions decided by a face with that feeling, on a background that decides nothing."""
GLOBAL = {"awe": "sky", "contentment": "grass", "excitement": "water", "fear": "brick"}
"""Emotions decided by the whole background, without any face."""
NEUTRAL = ("sand", "snow")
"""Backgrounds that decide nothing."""
HELD_OUT = "held_out"
"""The folder, inside the data set's own, of a second data set with faces that the first lacks."""

COLUMNS = ("art_style", "painting", "emotion", "utterance", "repetition")
ANNOTATIONS = "artemis_dataset_release_v0.csv"
ART_STYLE = "Emoji_Scenes"
TRUTH = "emotion_truth"  # the folder with what decides each painting's emotion, and where

TRUE_VOTE = 0.7  # probability that an annotator feels what the painting was drawn for
OTHER_VOTE = 0.1  # ... answers "something else"; the rest is spread over the other emotions
ANNOTATORS = (4, 8)  # a painting's annotators, fewest and most
OPENERS = (
    *("to me", "honestly", "at first sight", "after a while"),
    *("as a whole", "looking at it", "somehow", "in the end"),
)


@dataclass(frozen=True, eq=False)
class Truth:
    """The cause of the emotion of one painting.

    Attributes:
        image: its file.
        emotion: that it was drawn for.
        kind: "local", a face decides, or "global", the background does.
        cause: what decides, as "angry face" or "sky".
        mask: (H, W) bool, where that is.
    """

    image: Path
    emotion: str
    kind: str
    cause: str
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EmotionPointing:
    """How the maps of one emotion lie on what decides it.

    Attributes:
        emotion: its name.
        kind: "local", a face decides, or "global", the background does.
        images: paintings of this emotion.
        pointing: share of them with the map's maximum in the deciding region.
        energy: mean share of the map's positive mass in it, over the maps that have any.
        chance: mean share of the image that it covers; what a constant map gets in both.
        empty: maps without positive mass; they have no part in the energy, and count in the
            pointing as a constant map does.
    """

    emotion: str
    kind: str
    images: int
    pointing: float
    energy: float
    chance: float
    empty: int


def write_artemis(
    folder: str | Path, *, paintings: int = 400, seed: int = 0, progress: bool = False
) -> Path:
    """Write a data set in the format of ArtEmis, drawn from the demo's scenes.

    Of eight emotions four are local: a face decides (:data:`LOCAL`), and four are global: the
    background decides (:data:`GLOBAL`). Up to two further things lie in each scene and decide
    nothing. An annotator feels the painting's emotion with probability 0.7, answers "something
    else" with 0.1, and feels any of the other seven emotions with 0.2.

    In ``folder`` there will be the CSV file under its official name, the images in
    ``images/art_style/painting.jpg``, the truth in ``emotion_truth``, and the same again in
    ``held_out``, half as many paintings, with drawings of faces that the first part lacks.

    Args:
        folder: made where there is none.
        paintings: in the first part, 16 or more, each emotion equally often.
        seed: of scenes and votes; the same seed gives the same data set.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        ValueError: too few paintings, or a folder that holds a data set already.
    """
    folder = Path(folder)
    if (folder / ANNOTATIONS).exists():
        raise ValueError(f"{folder} holds a data set already: name another folder, or delete it.")
    if paintings < 2 * len(EMOTIONS):
        raise ValueError(f"expected 16 paintings or more, got {paintings}.")
    with tqdm(total=paintings + paintings // 2, desc="drawing", disable=not progress) as bar:
        _write_part(folder, "train", paintings, np.random.default_rng([seed, 0]), bar)
        _write_part(
            folder / HELD_OUT, "test", paintings // 2, np.random.default_rng([seed, 1]), bar
        )
    return folder


def emotion_truth(folder: str | Path) -> tuple[Truth, ...]:
    """Read what decides each painting, and where, from a folder of :func:`write_artemis`."""
    folder = Path(folder)
    table = pd.read_csv(folder / TRUTH / "truth.csv", dtype=str)
    with np.load(folder / TRUTH / "masks.npz") as masks:
        return tuple(
            Truth(
                image=folder / "images" / style / f"{painting}.jpg",
                emotion=emotion,
                kind="local" if emotion in LOCAL else "global",
                cause=cause,
                mask=masks[painting],
            )
            for style, painting, emotion, cause in table.to_numpy()
        )


def emotion_pointing(
    clip: Any,
    probe: EmotionProbe,
    folder: str | Path,
    *,
    method: str | None = None,
    progress: bool = False,
) -> tuple[EmotionPointing, ...]:
    """Compare maps with the truth of a folder of :func:`write_artemis`, one entry per emotion.

    Each painting gets the map of the emotion that it was drawn for; its positive part is resized
    to the painting, and compared with the face or the background that decides that emotion.

    Args:
        clip: what :func:`captum_clip.load_clip` returns.
        probe: fitted on features of this model.
        folder: the data set's, or the ``held_out`` in it.
        method: a command-line name; by default the tower's own, as in `explain`.
        progress: show a bar.
    """
    target = targets.emotion(clip, probe)
    choice = MethodChoice.of(method, tower=clip.tower)
    attribution = choice.method(ClipSimilarity(clip, target))
    truths = sorted(emotion_truth(folder), key=lambda truth: EMOTIONS.index(truth.emotion))
    heatmaps = []
    for truth in tqdm(truths, desc="maps", unit="image", disable=not progress, leave=False):
        [raw] = attribution.attribute_targets(
            clip.preprocess(truth.image),
            targets=[EMOTIONS.index(truth.emotion)],
            **choice.options,
        )
        heatmaps.append(maps.positive(raw[0].cpu()))
    pairs = groupby(zip(truths, heatmaps, strict=True), key=lambda pair: pair[0].emotion)
    return tuple(_compare(*zip(*of_emotion, strict=True)) for _, of_emotion in pairs)


def _compare(truths: Sequence[Truth], heatmaps: Sequence[Tensor]) -> EmotionPointing:
    stacked = torch.stack(list(heatmaps))  # (N, h, w)
    masks = torch.from_numpy(np.stack([truth.mask for truth in truths]))  # (N, H, W)
    energy = metrics.energy_inside(stacked, masks)
    measured = ~energy.isnan()
    return EmotionPointing(
        emotion=truths[0].emotion,
        kind=truths[0].kind,
        images=len(truths),
        pointing=float(metrics.pointing_game(stacked, masks).mean()),
        energy=float(energy[measured].mean()),
        chance=float(masks.float().mean()),
        empty=int((~measured).sum()),
    )


def _write_part(
    folder: Path, split: Split, count: int, generator: np.random.Generator, bar: Any
) -> None:
    images, truth = folder / "images" / ART_STYLE, folder / TRUTH
    images.mkdir(parents=True, exist_ok=True)
    truth.mkdir(exist_ok=True)
    utterances: list[tuple[str | int, ...]] = []
    causes: list[tuple[str, ...]] = []
    masks: dict[str, Any] = {}
    for number, index in enumerate(generator.permutation(count)):
        emotion = EMOTIONS[index % len(EMOTIONS)]
        name = f"noto_scene-{number:05d}"
        scene, cause, masks[name] = _draw(emotion, split, generator)
        Image.fromarray(scene.image).save(images / f"{name}.jpg", quality=95)
        utterances += _utterances(name, emotion, cause, generator)
        causes.append((ART_STYLE, name, emotion, cause))
        bar.update()
    _write_table(folder / ANNOTATIONS, COLUMNS, utterances)
    _write_table(truth / "truth.csv", ("art_style", "painting", "emotion", "cause"), causes)
    np.savez_compressed(truth / "masks.npz", **masks)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False, lineterminator="\n")


def _draw(
    emotion: str, split: Split, generator: np.random.Generator
) -> tuple[Scene, str, npt.NDArray[np.bool_]]:
    """Draw a scene of an emotion: the scene, what decides it, and where that is."""
    names = [thing.name for thing in THINGS if thing.noun != "face"]
    others = [names[i] for i in generator.choice(len(names), generator.integers(1, 3), False)]
    seed = int(generator.integers(2**31))
    if emotion in GLOBAL:
        scene = draw_scene(seed, split=split, objects=others, background=GLOBAL[emotion])
        return scene, scene.background, scene.background_mask
    face = f"{FEELINGS[emotion]} face"
    objects = [*others[: generator.integers(3)], face]  # the face in front
    background = NEUTRAL[generator.integers(len(NEUTRAL))]
    scene = draw_scene(seed, split=split, objects=objects, background=background)
    return scene, face, scene.objects[-1].mask


def _utterances(
    name: str, emotion: str, cause: str, generator: np.random.Generator
) -> list[tuple[str | int, ...]]:
    """Draw the rows of a painting, no two of them equal."""
    count = int(generator.integers(ANNOTATORS[0], ANNOTATORS[1] + 1))
    rest = (1 - TRUE_VOTE - OTHER_VOTE) / (len(EMOTIONS) - 1)
    chances = [TRUE_VOTE if felt == emotion else rest for felt in EMOTIONS] + [OTHER_VOTE]
    rows: list[tuple[str | int, ...]] = []
    for opener in generator.permutation(OPENERS)[:count]:
        felt = CLASSES[generator.choice(len(CLASSES), p=chances)]
        reason = f"it reminds me of something that made me feel {felt}"
        if felt == SOMETHING_ELSE:
            reason = "this is something else altogether"
        elif felt == emotion:
            everywhere = "" if emotion in LOCAL else " all around"
            reason = f"the {cause}{everywhere} makes me feel {emotion}"
        rows.append((ART_STYLE, name, felt, f"{opener}, {reason}", count))
    return rows


def _write(arguments: argparse.Namespace) -> None:
    print(
        write_artemis(
            arguments.folder, paintings=arguments.paintings, seed=arguments.seed, progress=True
        )
    )


def _check(arguments: argparse.Namespace) -> None:
    rows = emotion_pointing(
        load_clip(arguments.model),
        EmotionProbe.load(arguments.emotions),
        arguments.folder,
        method=arguments.method,
        progress=True,
    )
    head = ("", "kind", "images", "pointing", "energy", "chance", "no heatmap")
    print("{:<14}{:<8}{:>8}{:>10}{:>8}{:>8}{:>9}".format(*head))
    for row in rows:
        print(
            f"{row.emotion:<14}{row.kind:<8}{row.images:>8}{row.pointing:>10.2f}{row.energy:>8.2f}"
            f"{row.chance:>8.2f}{row.empty:>9}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set, or check where maps point on it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    write = commands.add_parser("write", help="write the data set to a new folder")
    write.set_defaults(action=_write)
    write.add_argument("folder", type=Path)
    write.add_argument("--paintings", type=int, default=400, help="FOLDER/held_out gets half")
    write.add_argument("--seed", type=int, default=0, help="of scenes and votes")
    check = commands.add_parser("check", help="measure where the maps of emotions point")
    check.set_defaults(action=_check)
    check.add_argument("folder", type=Path, help="the data set's folder, or its held_out")
    check.add_argument("--model", required=True)
    check.add_argument("--emotions", required=True, help="a file of 'captum-clip emotions fit'")
    check.add_argument("--method", help="by default that of 'captum-clip explain'")
    options = parser.parse_args(arguments)
    options.action(options)


if __name__ == "__main__":
    main()
