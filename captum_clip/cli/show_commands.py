"""``captum-clip models`` and ``demo``: names of models, and examples to try them on."""

import shlex
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from typer import Option

from . import shared
from .options import Loading, Quiet, app, command

# the report's pairs and a pair of phrases, in the first held-out scenes
_SCENES: Final = (
    (0, ("horse", "dog")),
    (1, ("elephant", "zebra")),
    (2, ("cow", "sheep")),
    (3, ("red heart", "blue circle")),
)
_SHOWN_METHODS: Final = {
    "demo/vit": ("direct", "last-grad"),
    "demo/resnet": ("direct", "grad-cam"),
    "demo/siglip": ("conservative",),
}


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """What is listed."""

    vocabulary: bool = False


@command(app, "models", "--vocabulary")
def models_command(args: ModelList) -> None:
    """List the models that load by name."""
    from ..demo.catalog import WORDS
    from ..models import available

    if args.vocabulary:
        print(textwrap.fill(" ".join(sorted(WORDS)), 80))
        return
    rows = [("name", "tower", "library", "checkpoint", "also called")]
    for model in available():
        tower = {"vit": "ViT", "resnet": "ResNet"}[model.kind]
        rows.append((model.name, tower, model.library, model.checkpoint, ", ".join(model.aliases)))
    print(*shared.columns(rows), sep="\n")
    print("\nOther models: a folder, or a name of a family, as docs/own_model.md lists them.")


@dataclass(frozen=True, kw_only=True)
class Demo(Quiet):
    """What is drawn, and where."""

    output: Path | None = None
    scenes: Annotated[int, Option(min=0, max=1000)] = 0
    device: str | None = None


@command(app, "demo", "-o figures")
def demo_command(args: Demo) -> None:
    """Draw maps of the embedded models, without a network, and leave a scene.jpg to try.

    With --scenes it draws scenes alone.
    """
    from PIL import Image

    from ..demo.catalog import WORDS
    from ..demo.scenes import draw_scene
    from ..files import make_folder

    folder = make_folder(args.output or Path())
    paths = [] if args.scenes else _draw_figures(folder, args)
    scene, scenes = folder / "scene.jpg", folder / "scenes"
    images = {scene: _example(0)[0]}
    if args.scenes:
        make_folder(scenes)
    for number in range(args.scenes):
        images[scenes / f"{number:03}.jpg"] = draw_scene(number, split="test").image
    for path, pixels in images.items():
        with suppress(FileExistsError), open(path, "xb") as file:  # a file of the user's stays
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            paths += [path] * (path == scene)
    print(*paths, *[scenes] * (args.scenes > 0), sep="\n")
    print(
        f"The models know {len(WORDS)} words ('captum-clip models --vocabulary') and no photographs"
        f'; next: captum-clip explain {shlex.quote(str(scene))} "a horse" -m demo/vit'
    )


def _draw_figures(folder: Path, args: Demo) -> list[Path]:
    """Draw methods, words and both signs: where the figures are."""
    import torch

    from ..explaining.explain import explain
    from ..visualization import contact_sheet, save_figure

    image, texts = _example(0)
    loading = Loading(device=args.device, quiet=args.quiet)
    clips = {model: shared.load_model(loading, model) for model in _SHOWN_METHODS}
    with shared.step("drawing", quiet=args.quiet):
        towers = [clips["demo/vit"], clips["demo/resnet"]]
        words: Any = explain(image, " and ".join(texts), words=True, model=towers, hints=False)
        signs: Any = explain(image, texts, sign="both", method="direct", model=towers, hints=False)
        scenes = [_example(index) for index in range(len(_SCENES))]
        columns, scores, images = {}, [], []
        for model, method in ((m, name) for m, names in _SHOWN_METHODS.items() for name in names):
            rows = [explain(*s, model=clips[model], method=method, hints=False) for s in scenes]
            heatmap = torch.cat([row.heatmap("bicubic")["positive"][0] for row in rows])[:, None]
            columns[f"{model} \N{MIDDLE DOT} {method}"] = heatmap
            images = [row.images.expand(len(row.names), -1, -1, -1) for row in rows]
            scores.append(torch.cat([row.scores[0] for row in rows]))
        # a row for each object, a column for each method
        methods = contact_sheet(
            torch.cat(images),
            columns,
            names=[name for _, texts in scenes for name in texts],
            scores=torch.stack(scores, dim=1),
            caption="grad-cam of demo/resnet also follows the query of the attention pool, a mean "
            "of all positions, and so marks the other object; direct leaves the query as it is.",
        )
        figures = {"": methods, "-words": words.plot(), "-signs": signs.plot()}
        return [
            save_figure(figure, folder / f"captum-clip-demo{name}.jpg")
            for name, figure in figures.items()
        ]


def _example(index: int) -> tuple[Any, list[str]]:
    """An image and the texts that are true of it."""
    from ..demo.catalog import article
    from ..demo.scenes import draw_scene

    seed, objects = _SCENES[index]
    return draw_scene(seed, objects=objects).image, [article(name) for name in objects]
