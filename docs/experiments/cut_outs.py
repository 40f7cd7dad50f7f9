"""Makes pictures of cut-outs on backgrounds, for ``--data samples:FOLDER/samples.jsonl``.

Each picture is a background with some cut-outs pasted on it, drawn again without every subset of
them, so that the exact effect of each is known. A cut-out is an RGBA file whose name is its text,
``a horse.png``, or lies in a folder of that name, ``a horse/1.png``; later ones cover earlier ones.

Example: python docs/experiments/cut_outs.py CUT_OUTS BACKGROUNDS FOLDER --images 100 --objects 2
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from captum_clip.files import image_names

LEAST_VISIBLE = 0.5
"""Of each cut-out, else the picture is drawn again."""
_TRIALS = 100


def find(folder: Path) -> list[Path]:
    """All images in a folder; an error where there is none."""
    names = image_names(str(path.relative_to(folder)) for path in folder.rglob("*"))
    if not names:
        raise SystemExit(f"{folder}: expected images, found none.")
    return [folder / name for name in names]


def texts_of(folder: Path) -> dict[str, list[Path]]:
    """The files of each text, by their own name or by that of their folder."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in find(folder):
        text = path.stem if path.parent == folder else path.relative_to(folder).parts[0]
        files[text.replace("_", " ")].append(path)
    return files


def place(
    path: Path, size: int, scales: Sequence[float], random: np.random.Generator
) -> Image.Image:
    """A cut-out (size, size) at a random place, its longer side a random share of the picture's."""
    with Image.open(path) as file:
        cut_out = file.convert("RGBA")
    if cut_out.getchannel("A").getextrema()[0] == 255:
        raise SystemExit(f"{path}: expected a cut-out with transparent pixels, found none.")
    cut_out = cut_out.crop(cut_out.getchannel("A").getbbox())
    side = round(size * random.uniform(*scales))
    cut_out = ImageOps.contain(cut_out, (side, side))
    corner = [int(random.integers(0, size - length + 1)) for length in cut_out.size]
    layer = Image.new("RGBA", (size, size))
    layer.paste(cut_out, (corner[0], corner[1]))
    return layer


def visible(layers: Sequence[Image.Image]) -> list[np.ndarray]:
    """Of each layer the pixels (H, W) that are mostly it, and not covered by those after it."""
    opaque = [np.asarray(layer.getchannel("A")) > 127 for layer in layers]
    return [
        mask & ~np.any([np.zeros_like(mask), *opaque[number + 1 :]], axis=0)
        for number, mask in enumerate(opaque)
    ]


def compose(background: Image.Image, layers: Sequence[Image.Image]) -> Image.Image:
    """The background with layers on it, in order."""
    picture = background.convert("RGBA")
    for layer in layers:
        picture = Image.alpha_composite(picture, layer)
    return picture.convert("RGB")


def write(image: Image.Image, path: Path) -> None:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make(
    cut_outs: Path,
    backgrounds: Path,
    folder: Path,
    *,
    images: int = 100,
    objects: int = 2,
    size: int = 448,
    scales: Sequence[float] = (0.25, 0.5),
    seed: int = 0,
) -> None:
    """Write samples.jsonl and its files; picture n is drawn from seed and n alone."""
    texts, grounds = texts_of(cut_outs), find(backgrounds)
    if not 1 <= objects <= min(8, len(texts)):
        raise SystemExit(f"expected 1 to {min(8, len(texts))} objects, got {objects}.")
    lines = []
    for number in range(images):
        random = np.random.default_rng([seed, number])
        with Image.open(grounds[random.integers(len(grounds))]) as file:
            background = ImageOps.fit(file.convert("RGB"), (size, size))
        chosen = random.choice(sorted(texts), objects, replace=False).tolist()
        files = [texts[text][random.integers(len(texts[text]))] for text in chosen]
        for _ in range(_TRIALS):
            layers = [place(path, size, scales, random) for path in files]
            shown = visible(layers)
            whole = [visible([layer])[0].sum() for layer in layers]
            if all(m.sum() >= LEAST_VISIBLE * n > 0 for m, n in zip(shown, whole, strict=True)):
                break
        else:
            raise SystemExit(f"{objects} objects do not fit side by side; take smaller scales.")
        stem, regions, subsets = f"{number:05d}", [], []
        for text, mask in zip(chosen, shown, strict=True):
            regions.append({"text": text, "mask": f"masks/{stem}/{text}.png"})
            write(Image.fromarray(mask), folder / regions[-1]["mask"])
        for there in range(2**objects):
            kept = [layer for place, layer in enumerate(layers) if there >> place & 1]
            name = " + ".join(text for place, text in enumerate(chosen) if there >> place & 1)
            subsets.append(f"subsets/{stem}/{name or 'nothing'}.png")
            write(compose(background, kept), folder / subsets[-1])
        lines.append(json.dumps({"image": subsets[-1], "regions": regions, "subsets": subsets}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("cut_outs", "backgrounds", "folder"):
        parser.add_argument(name, type=Path)
    for name, value in (("images", 100), ("objects", 2), ("size", 448), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--scales", type=float, nargs=2, default=(0.25, 0.5))
    make(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
