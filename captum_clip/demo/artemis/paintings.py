"""A small ArtEmis of demo scenes: files exactly as the data set's, with a known truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ...checks import check_integer, expand, find_folder
from ...emotions import CLASSES, EMOTIONS, SOMETHING_ELSE
from ...emotions.artemis import COLUMNS, FILE_NAME, IMAGE_FOLDERS
from ...errors import InputError
from ...files import DAMAGED, make_folder, replace_file
from ..catalogue import FEELINGS, THINGS
from ..scenes import Scene, Split, draw_scene

LOCAL: Final = ("amusement", "anger", "disgust", "sadness")
"""Emotions decided by a face with that feeling, on a background that decides nothing."""
GLOBAL: Final = {"awe": "sky", "contentment": "grass", "excitement": "water", "fear": "brick"}
"""Emotions decided by the whole background, without any face."""
NEUTRAL: Final = ("sand", "snow")
"""Backgrounds that decide nothing."""
ART_STYLE: Final = "Emoji_Scenes"
HELD_OUT: Final = "held_out"
"""The folder, inside the data set's own, of a second data set with faces that the first lacks."""
TRUTH: Final = "emotion_truth"
"""The folder with what decides each painting's emotion, and where."""
_TRUTH_COLUMNS: Final = ("art_style", "painting", "emotion", "cause")

TRUE_VOTE: Final = 0.7  # probability that an annotator feels what the painting was drawn for
OTHER_VOTE: Final = 0.1  # ... says "something else"; the rest is spread over the other emotions
ANNOTATORS: Final = (4, 8)  # a painting's annotators, fewest and most

_OPENERS: Final = (
    *("to me", "honestly", "at first sight", "after a while"),
    *("as a whole", "looking at it", "somehow", "in the end"),
)


@dataclass(frozen=True, eq=False)
class Truth:
    """What decides the emotion of a painting of the demo's data set.

    Attributes:
        image: its file.
        emotion: that it was drawn for.
        kind: "local", a face decides, or "global", the background does.
        cause: what decides, as "angry face" or "sky".
        mask: (H, W) bool, where that is.
    """

    image: Path
    emotion: str
    kind: Literal["local", "global"]
    cause: str
    mask: npt.NDArray[np.bool_]


def write_demo_artemis(
    folder: str | Path, *, paintings: int = 400, seed: int = 0, progress: bool = False
) -> Path:
    """Write a data set in the format of ArtEmis, drawn from the demo's scenes.

    Of eight emotions four are local: a face decides (:data:`LOCAL`), and four are global: the
    background decides (:data:`GLOBAL`). Up to two further things lie in each scene and decide
    nothing. An annotator feels the painting's emotion with probability 0.7, says "something else"
    with 0.1, and feels any of the other seven emotions with 0.2.

    In ``folder`` there will be the CSV file under its official name, the images in
    ``images/art_style/painting.jpg``, the truth in ``emotion_truth``, and the same again in
    ``held_out``, half as many paintings, with drawings of faces that the first part lacks.

    Args:
        folder: made where there is none; without a data set.
        paintings: in the first part, each emotion equally often.
        seed: of scenes and votes; the same seed gives the same data set.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        InputError: fewer than 16 paintings, a seed below 0, a folder that cannot be written to or
            that holds a data set.
    """
    folder = expand(folder)
    if (folder / FILE_NAME).exists():
        raise InputError(f"{folder} holds a data set already: name another folder, or delete it.")
    check_integer("write_demo_artemis", "paintings", paintings, least=2 * len(EMOTIONS))
    check_integer("write_demo_artemis", "a seed", seed, least=0)
    parts: tuple[tuple[Path, Split, int], ...] = (
        (folder, "train", paintings),
        (folder / HELD_OUT, "test", paintings // 2),
    )
    total = paintings + paintings // 2
    with tqdm(total=total, desc="drawing", disable=not progress, leave=False) as bar:
        for part, split, count in parts:
            _write_part(part, split, count, seed, bar.update)
    return folder


def emotion_truth(folder: str | Path) -> tuple[Truth, ...]:
    """What decides each painting of a part of the demo's data set, and where.

    Args:
        folder: one that :func:`write_demo_artemis` wrote, or the ``held_out`` in it.

    Raises:
        InputError: there is no such truth in it.
    """
    import pandas as pd

    folder = find_folder(folder, caller="emotion_truth")
    try:
        with open(folder / TRUTH / "truth.csv", encoding="utf-8") as rows:
            table = pd.read_csv(rows, dtype=str, keep_default_na=False)
        with open(folder / TRUTH / "masks.npz", "rb") as archive, np.load(archive) as masks:
            return tuple(
                Truth(
                    image=folder / IMAGE_FOLDERS[0] / style / f"{painting}.jpg",
                    emotion=emotion,
                    kind="local" if emotion in LOCAL else "global",
                    cause=cause,
                    mask=masks[painting],
                )
                for style, painting, emotion, cause in table[list(_TRUTH_COLUMNS)].to_numpy()
            )
    except DAMAGED as error:
        raise InputError(
            f"emotion_truth: {folder} holds no truth that 'captum-clip emotions demo-data' writes "
            f"({getattr(error, 'strerror', None) or error})."
        ) from error


def _write_part(
    folder: Path, split: Split, count: int, seed: int, advance: Callable[[], Any]
) -> None:
    generator = np.random.default_rng([seed, 0 if split == "train" else 1])
    images = make_folder(folder / IMAGE_FOLDERS[0] / ART_STYLE)
    truth = make_folder(folder / TRUTH)
    utterances: list[tuple[str | int, ...]] = []
    causes: list[tuple[str, ...]] = []
    masks: dict[str, Any] = {}
    for number, index in enumerate(generator.permutation(count)):
        emotion = EMOTIONS[index % len(EMOTIONS)]
        name = f"noto_scene-{number:05d}"
        scene, cause, masks[name] = _draw(emotion, split, generator)
        save = partial(Image.fromarray(scene.image).save, format="JPEG", quality=95)
        replace_file(images / f"{name}.jpg", save)
        utterances += _utterances(name, emotion, cause, generator)
        causes.append((ART_STYLE, name, emotion, cause))
        advance()
    _write_table(folder / FILE_NAME, COLUMNS, utterances)
    _write_table(truth / "truth.csv", _TRUTH_COLUMNS, causes)
    replace_file(truth / "masks.npz", lambda file: np.savez_compressed(file, **masks))


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    import pandas as pd

    text = pd.DataFrame(rows, columns=list(columns)).to_csv(index=False, lineterminator="\n")
    replace_file(path, lambda file: file.write(text.encode()))


def _draw(
    emotion: str, split: Split, generator: np.random.Generator
) -> tuple[Scene, str, npt.NDArray[np.bool_]]:
    """A scene of an emotion, what decides it, and where that is."""
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
    """The rows of a painting, no two of them equal."""
    count = int(generator.integers(ANNOTATORS[0], ANNOTATORS[1] + 1))
    rest = (1 - TRUE_VOTE - OTHER_VOTE) / (len(EMOTIONS) - 1)
    chances = [TRUE_VOTE if felt == emotion else rest for felt in EMOTIONS] + [OTHER_VOTE]
    rows: list[tuple[str | int, ...]] = []
    for opener in generator.permutation(_OPENERS)[:count]:
        felt = CLASSES[generator.choice(len(CLASSES), p=chances)]
        reason = f"it reminds me of something that made me feel {felt}"
        if felt == SOMETHING_ELSE:
            reason = "this is something else altogether"
        elif felt == emotion:
            everywhere = "" if emotion in LOCAL else " all around"
            reason = f"the {cause}{everywhere} makes me feel {emotion}"
        rows.append((ART_STYLE, name, felt, f"{opener}, {reason}", count))
    return rows
