"""``captum-clip models``, ``demo`` and ``app``: names, examples and a page to try them on."""

import shlex
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, Final

from typer import Option

from ..errors import InputError
from ..explaining.request import check_request
from . import shared
from .options import Loading, Quiet, app, command, ruled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

# the report's pairs and a pair of phrases, in the first held-out scenes
_SCENES: Final = (
    (0, ("horse", "dog")),
    (1, ("elephant", "zebra")),
    (2, ("cow", "sheep")),
    (3, ("red heart", "blue circle")),
)
_COLUMNS: Final = {
    "demo/vit": ("direct", "last-grad"),
    "demo/resnet": ("direct", "grad-cam"),
    "demo/siglip": ("conservative",),
}


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is listed."""

    vocabulary: bool = False


@command(app, "models", "--vocabulary")
def models_command(typed: Models) -> None:
    """List the models that load by name."""
    from ..demo.vocabulary import WORDS
    from ..models import available
    from ..models.names import EXAMPLES

    if typed.vocabulary:
        print(textwrap.fill(" ".join(sorted(WORDS)), 80))
        return
    rows = [("name", "tower", "library", "checkpoint", "also called")]
    for model in available():
        tower = {"vit": "ViT", "resnet": "ResNet"}[model.kind]
        rows.append((model.name, tower, model.library, model.checkpoint, ", ".join(model.aliases)))
    print(*shared.columns(rows), sep="\n")
    print(
        "\nOther models: a folder, ORG/NAME of transformers on the Hugging Face hub, "
        "hf-hub:ORG/NAME\nor ARCHITECTURE/TAG of OpenCLIP. One name of each family:\n"
    )
    print(*shared.columns([("family", "name", "library"), *EXAMPLES]), sep="\n")


@dataclass(frozen=True, kw_only=True)
class Demo(Quiet):
    """What is drawn, and where."""

    output: Path | None = None
    scenes: Annotated[int, Option(min=0, max=1000)] = 0
    device: str | None = None


@command(app, "demo", "-o figures")
def demo_command(typed: Demo) -> None:
    """Draw maps of the embedded models, without a network, and leave a photo.jpg to try."""
    from PIL import Image

    from .. import figures
    from ..demo.scenes import draw_scene
    from ..demo.vocabulary import WORDS
    from ..files import make_folder
    from ..visualization import save_figure

    folder, scenes = make_folder(typed.output or Path()), typed.scenes
    loading = Loading(device=typed.device, quiet=typed.quiet)
    image, texts = _scene(0)
    clips = {model: shared.load_model(loading, model) for model in _COLUMNS}
    with shared.step("drawing", quiet=typed.quiet):
        towers = [clips["demo/vit"], clips["demo/resnet"]]
        drawn = {
            "captum-clip-demo.jpg": _methods(clips),
            "captum-clip-demo-words.jpg": figures.words(image, " and ".join(texts), models=towers),
            "captum-clip-demo-signs.jpg": figures.signs(
                image, texts, models=towers, methods="direct"
            ),
        }
        paths = [save_figure(figure, folder / name) for name, figure in drawn.items()]
    photo, photos = folder / "photo.jpg", make_folder(folder / "scenes") if scenes else folder
    images = {photo: image}
    images |= {photos / f"{n:03}.jpg": draw_scene(n, split="test").image for n in range(scenes)}
    for path, pixels in images.items():
        with suppress(FileExistsError), open(path, "xb") as file:  # a photo of the user's stays
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            paths += [path] * (path == photo)
    print(*paths, *[photos] * (scenes > 0), sep="\n")
    print(
        f"The models know {len(WORDS)} words ('captum-clip models --vocabulary') and no photographs"
        f'; next: captum-clip explain {shlex.quote(str(photo))} "a horse" -m demo/vit'
    )


def _methods(clips: "dict[str, ClipAdapter]") -> "Figure":
    """Draw a row for each object and a column for each method."""
    import torch

    from ..explaining.explain import explain
    from ..visualization import contact_sheet

    scenes = [_scene(index) for index in range(len(_SCENES))]
    columns, scores, images = {}, [], []
    for model, method in ((model, name) for model, names in _COLUMNS.items() for name in names):
        rows = [explain(*scene, model=clips[model], method=method, hints=False) for scene in scenes]
        heatmap = torch.cat([row.heatmap("bicubic")["positive"][0] for row in rows])[:, None]
        columns[f"{model} \N{MIDDLE DOT} {method}"] = heatmap
        images = [image for row in rows for image in row.images.expand(len(row.names), -1, -1, -1)]
        scores.append(torch.cat([row.scores[0] for row in rows]))
    names = [name for _, texts in scenes for name in texts]
    return contact_sheet(
        torch.stack(images), columns, names=names, scores=torch.stack(scores, dim=1)
    )


def _scene(index: int) -> tuple[Any, list[str]]:
    """An image and the texts that are true of it."""
    from ..demo.captions import article
    from ..demo.scenes import draw_scene

    seed, objects = _SCENES[index]
    return draw_scene(seed, objects=objects).image, [article(name) for name in objects]


@dataclass(frozen=True, kw_only=True)
class Page(Loading):
    """What the page offers, and to whom."""

    host: str = "127.0.0.1"
    allow_host: list[str] | None = None
    port: int = 7860
    model: list[str] | None = None
    index: str | None = None
    index_model: str | None = ruled(needs=("index",))


@command(app, "app", "--model demo/vit --port 7860")
def app_command(typed: Page) -> None:
    """Open a page in the browser: drop an image, type texts, see their maps."""
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'gradio>=6.29'")
    check_request(typed)
    from ..app.answers import Models
    from ..app.page import LOCAL, find_port, serving

    own: Any = {"processor": typed.processor, "tokenizer": typed.tokenizer}
    own |= {"index": typed.index, "index_model": typed.index_model}
    own |= {"max_pixels": typed.max_pixels}
    models = Models(typed.model or (), typed.device, **own)
    port = find_port(typed.host, typed.port)
    with shared.step(f"loading {models.names[0]}", quiet=typed.quiet):
        models.get(models.names[0])
    with serving(models, typed.host, port, typed.allow_host or ()) as address:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if typed.host not in LOCAL:
            print(
                "everyone who can reach this machine over the network can use the page", flush=True
            )
        Event().wait()
