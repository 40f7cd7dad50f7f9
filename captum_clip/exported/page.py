"""The page of an exported folder, which runs its graphs in a browser."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from ..checks import find_folder
from ..demo import MODELS
from ..demo.scenes import draw_scene
from ..errors import InputError, argument
from ..explaining.interactive import SIGNS, render
from ..pictures import NARROW
from ..visualization.colors import NEGATIVE, POSITIVE
from .manifest import SUMS, Manifest

RUNTIME: Final = {"onnxruntime-web": "1.30.0", "@huggingface/tokenizers": "0.2.0"}
"""Packages of npm, in the versions that are tested."""
INSTALL: Final = "npm install " + " ".join(map("@".join, RUNTIME.items()))
_WASM = [f"dist/ort-wasm-simd-threaded{kind}" for kind in (".mjs", ".wasm")]
_GPU = [name.replace("threaded", "threaded.asyncify") for name in _WASM]
FILES: Final = {
    "onnxruntime-web": ["dist/ort.wasm.min.mjs", "dist/ort.webgpu.min.mjs", *_WASM, *_GPU],
    "@huggingface/tokenizers": ["dist/tokenizers.min.mjs", "LICENSE"],
}
CDN: Final = "https://cdn.jsdelivr.net"
SCENES: Final = (("horse", "dog"), ("bee", "rocket"), ("cat", "guitar"))
PIXELS: Final = 89_478_485
"""The most of an image on the page: Pillow's own limit."""
TEXTS: Final = ("a horse and a dog", "a horse", "a rocket")


def runtime_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder node_modules that the page needs, by their names beside the page.

    InputError where a file is missing, or has another version than the one that is tested.
    """
    path, files = find_folder(folder), dict[str, Path]()
    for package, version in RUNTIME.items():
        about = path / package / "package.json"
        installed = json.loads(about.read_text("utf-8"))["version"] if about.is_file() else None
        names = {f"runtime/{package}/{name}": path / package / name for name in FILES[package]}
        if installed != version or not all(map(Path.is_file, names.values())):
            raise InputError(
                f"{argument('runtime')}: {folder} does not hold {package} {version}; run "
                f"`{INSTALL}` in an empty folder, and give its folder node_modules."
            )
        files |= names
    return files


def write_page(folder: Path, about: Manifest, runtime: Mapping[str, Path]) -> None:
    """Write index.html, the drawn scenes that it offers, and copies of the runtime's files."""
    for name, file in runtime.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    scenes = [f"scene{seed}.png" for seed in range(len(SCENES))]
    for seed, (name, things) in enumerate(zip(scenes, SCENES, strict=True)):
        Image.fromarray(draw_scene(seed, objects=things).image).save(folder / name)
    bases = [f"{CDN}/npm/{package}@{version}/dist/" for package, version in RUNTIME.items()]
    if runtime:
        bases = [f"./runtime/{package}/dist/" for package in RUNTIME]
    values: Any = {"about": about, "small": about.model in MODELS, "scenes": scenes}
    values |= {"texts": TEXTS, "origin": "" if runtime else CDN, "sums": SUMS}
    values |= {"narrow": NARROW, "pixels": PIXELS}
    values |= {"ort": bases[0], "tokenizers": bases[1]}
    looks = {"positive": (SIGNS[0], POSITIVE), "negative": (SIGNS[1], NEGATIVE)}
    page = render(Path(__file__).with_name("index.html"), looks, **values)
    (folder / "index.html").write_text(page, encoding="utf-8")
