"""``captum-clip models`` and ``demo``: names of models, and examples to try them on."""

import shlex
import textwrap
from pathlib import Path
from typing import Any, Final

from . import options, shared
from .application import PATH, Range, app, option
from .options import Loading

_SCENES: Final = (
    (0, ("horse", "dog")),
    (1, ("elephant", "zebra")),
    (2, ("cow", "sheep")),
    (3, ("red heart", "blue circle")),
)
"""Seeds of held-out scenes, with the report's pairs of animals and a pair of phrases."""
_SHOWN_METHODS: Final = {
    "demo/vit": ("direct", "last-grad"),
    "demo/resnet": ("direct", "grad-cam"),
    "demo/siglip": ("conservative",),
}


@app.command("models", panel="First steps", example="--vocabulary")
@option(
    "--vocabulary",
    is_flag=True,
    help="list the words that the embedded demo models know instead",
)
def models_command(vocabulary: bool) -> None:
    """List the models that load by name."""
    from ..demo.catalog import WORDS
    from ..models import available

    if vocabulary:
        print(textwrap.fill(" ".join(sorted(WORDS)), 80))
        return
    rows = [("name", "tower", "library", "checkpoint", "also called")]
    for model in available():
        tower = {"vit": "ViT", "resnet": "ResNet"}[model.kind]
        rows.append((model.name, tower, model.library, model.checkpoint, ", ".join(model.aliases)))
    for line in shared.columns(rows):
        print(line)
    print("\nOther models: a folder, or a name of a family, as docs/own_model.md lists them.")


@app.command("demo", panel="First steps", example="-o figures")
@option(
    "--output",
    "-o",
    type=PATH,
    metavar="FOLDER",
    help="a folder for the figures (default: the current folder)",
)
@option(
    "--scenes",
    type=Range(int, 0, 1000),
    default=0,
    metavar="N",
    help="how many images to draw into the folder \"scenes\", to try 'index', 'heads' or 'study' "
    "on",
)
@options.device_option
@options.quiet_option
def demo_command(output: Path | None, scenes: int, device: str | None, quiet: bool) -> None:
    """Draw maps of the embedded models, without a network, and leave a scene.jpg to try.

    With --scenes it draws scenes alone.
    """
    from ..demo.catalog import WORDS
    from ..demo.scenes import draw_scene
    from ..files import make_folder

    folder = make_folder(output or Path())
    written = []
    if not scenes:
        written = _draw_figures(folder, Loading(device=device, quiet=quiet))
    scene = folder / "scene.jpg"
    image, _ = _example(0)
    if _save_new(scene, image):
        written.append(scene)
    if scenes:
        scene_folder = make_folder(folder / "scenes")
        for number in range(scenes):
            image = draw_scene(number, split="test").image
            _save_new(scene_folder / f"{number:03}.jpg", image)
        written.append(scene_folder)
    print(*written, sep="\n")
    print(
        f"The models know {len(WORDS)} words ('captum-clip models --vocabulary') and no photographs"
        f'; next: captum-clip explain {shlex.quote(str(scene))} "a horse" -m demo/vit'
    )


def _save_new(file: Path, pixels: Any) -> bool:
    """Save an image unless there is such a file, which may be the user's.

    Returns:
        Whether it was saved.
    """
    from PIL import Image

    try:
        with open(file, "xb") as opened:
            Image.fromarray(pixels).save(opened, "JPEG", quality=95)
    except FileExistsError:
        return False
    return True


def _draw_figures(folder: Path, loading: Loading) -> list[Path]:
    """Draw methods, words and both signs, and return the files."""
    from ..explaining.explain import explain
    from ..visualization import save_figure

    image, texts = _example(0)
    clips = {model: shared.load_model(model, loading) for model in _SHOWN_METHODS}
    with shared.step("drawing", quiet=loading.quiet):
        towers = [clips["demo/vit"], clips["demo/resnet"]]
        words: Any = explain(image, " and ".join(texts), words=True, model=towers, hints=False)
        signs: Any = explain(image, texts, sign="both", method="direct", model=towers, hints=False)
        figures = {
            "captum-clip-demo.jpg": _draw_methods(clips),
            "captum-clip-demo-words.jpg": words.plot(),
            "captum-clip-demo-signs.jpg": signs.plot(),
        }
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _draw_methods(clips: dict[str, Any]) -> Any:
    """Draw a row for each object of the scenes, and a column for each method of each model."""
    import torch

    from ..explaining.explain import explain
    from ..visualization import contact_sheet

    examples = [_example(index) for index in range(len(_SCENES))]
    columns = {}
    scores = []
    # Every model sees the same scenes, so a row shows them as the last model does.
    images = []
    for model, methods in _SHOWN_METHODS.items():
        for method in methods:
            explained = []
            for image, texts in examples:
                explained.append(
                    explain(image, texts, model=clips[model], method=method, hints=False)
                )
            heatmaps = [row.heatmap("bicubic")["positive"][0] for row in explained]  # (K, H, W)
            columns[f"{model} \N{MIDDLE DOT} {method}"] = torch.cat(heatmaps)[:, None]
            images = [row.images.expand(len(row.names), -1, -1, -1) for row in explained]
            scores.append(torch.cat([row.scores[0] for row in explained]))
    return contact_sheet(
        torch.cat(images),
        columns,
        names=[name for _, texts in examples for name in texts],
        scores=torch.stack(scores, dim=1),
        caption="grad-cam of demo/resnet also follows the query of the attention pool, a mean "
        "of all positions, and so marks the other object; direct leaves the query as it is.",
    )


def _example(index: int) -> tuple[Any, list[str]]:
    """Draw an image, and return it with the texts that are true of it."""
    from ..demo.catalog import article
    from ..demo.scenes import draw_scene

    seed, objects = _SCENES[index]
    return draw_scene(seed, objects=objects).image, [article(name) for name in objects]
