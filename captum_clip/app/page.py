"""The page: what is on it, and which function answers which click.

Annotations are no strings here: Gradio reads that of an event, and is imported only when a page is
built.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..demo.vocabulary import WORDS
from ..errors import CaptumClipError
from ..visualization.style import ALPHA
from . import cards, files, turns
from .answers import Answer, Question, example, sentence
from .pictures import as_url
from .shelf import Shelf
from .style import ABOUT, INTRODUCTION, SCRIPTS
from .turns import Turn

_WAITING = 64  # questions in line
_QUIET: Final[dict[str, Any]] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "models",
    "concurrency_limit": 2,  # all kinds of clicks together; others wait in line
}
_OLD = 3600  # seconds that an uploaded image is kept
_SCENE = 5  # one that is answered well
_SIGNS = {"for it": "positive", "against it": "negative", "both": "both"}


def build(shelf: Shelf, uploads: str) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        shelf: with the models; the first one is chosen at first.
        uploads: the folder of uploaded images; no file elsewhere is read, whatever a client says.
    """
    import gradio as gr

    with gr.Blocks(
        title="captum-clip",
        analytics_enabled=False,
        delete_cache=(_OLD // 6, _OLD),
        fill_width=True,
    ) as page:
        gr.HTML(INTRODUCTION, elem_id="introduction")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320, elem_id="question"):
                asked = _question(shelf, uploads)
            with gr.Column(scale=7, min_width=320, elem_id="answer"):
                found = _answer()
        _connect(page, shelf, asked, found)
    page.queue(api_open=False, max_size=_WAITING)
    return page


def _question(shelf: Shelf, uploads: str) -> dict[str, Any]:
    import gradio as gr

    methods, method, _ = turns.methods_of(shelf, shelf.names[0])
    asked: dict[str, Any] = {}
    asked["image"] = gr.Image(
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        label="Image",
        show_label=False,
        placeholder="Drop an image here, or click to choose one",
        height=176,
        buttons=[],
        elem_id="image",
    )
    # A file goes on unread, so that a bad one is ours to speak about. Not by a subclass: Gradio
    # writes a .pyi file beside the module of one.
    asked["image"].preprocess = partial(_path, uploads)
    with gr.Row(elem_classes="tight"):
        asked["seed"] = gr.Number(_SCENE, label="Example scene no.", precision=0, min_width=150)
        asked["draw"] = gr.Button("Draw it", size="md", min_width=90, elem_id="draw")
    asked["texts"] = gr.Textbox(
        label="Texts, one a line", lines=3, max_lines=6, placeholder="a horse", elem_id="texts"
    )
    with gr.Row(elem_classes="tight"):
        asked["model"] = gr.Dropdown(
            list(shelf.names),
            value=shelf.names[0],
            label="Model",
            scale=4,
            min_width=110,
            elem_id="model",
        )
        asked["method"] = gr.Dropdown(
            list(methods.items()),
            value=method,
            label="Method",
            scale=5,
            min_width=140,
            elem_id="method",
        )
    asked["sign"] = gr.Radio(
        list(_SIGNS.items()),
        value="positive",
        label="What speaks for a text, or against it",
        elem_id="sign",
    )
    asked["show"] = gr.Button("Show the maps", variant="primary", elem_id="show")
    with gr.Accordion("Words that the embedded models know", open=False):
        gr.HTML(f'<p class="hint">{" ".join(WORDS)}</p>')
    return asked


def _answer() -> dict[str, Any]:
    import gradio as gr

    found: dict[str, Any] = {"turn": gr.State(Turn()), "layered": gr.State(False)}
    found["problem"] = gr.HTML("", elem_id="problem")
    with gr.Tabs():
        with gr.Tab("Texts and their words") as found["texts_tab"]:
            found["cards"] = gr.HTML(cards.WELCOME, elem_id="cards", js_on_load=SCRIPTS["word"])
            with gr.Row(elem_classes="tight"):
                found["opacity"] = gr.Slider(
                    0, 1, ALPHA, step=0.05, label="Opacity", elem_id="opacity", min_width=200
                )
                found["png"] = gr.Button(
                    "Download picture (PNG)", size="md", elem_id="png", min_width=140
                )
                found["npz"] = gr.Button(
                    "Download maps (NPZ)", size="md", elem_id="npz", min_width=140
                )
        with gr.Tab("Layer by layer") as found["layers_tab"]:
            found["text"] = gr.Radio([], label="Text", visible=False, elem_id="text")
            found["layers"] = gr.HTML(cards.WELCOME, elem_id="layers")
    found["file"] = gr.Textbox(visible="hidden", elem_id="file")
    gr.HTML(ABOUT, elem_id="about")
    return found


def _connect(page: Any, shelf: Shelf, asked: dict[str, Any], found: dict[str, Any]) -> None:
    import gradio as gr

    seen = [found[name] for name in ("turn", "cards", "layers", "problem")]
    inputs = [asked[name] for name in ("image", "texts", "model", "method", "sign")]

    def draw(seed: float | None) -> Any:
        try:
            return example(seed)
        except CaptumClipError as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    def show(image: Any, texts: str, model: str, method: str, sign: Any, layered: bool) -> Any:
        turn = turns.show(shelf, Question(image, texts, model, method, sign), with_layers=layered)
        names = () if turn.answer is None else turn.answer.found.names
        chosen = gr.update(
            choices=[(name, index) for index, name in enumerate(names)],
            value=0 if names else None,
            visible=len(names) > 1,
        )
        return *_seen(turn), chosen

    def pick(before: Turn, event: gr.EventData) -> Any:
        places = (str(event.text), str(event.word))
        if not all(re.fullmatch(r"-?\d{1,6}", place) for place in places):
            raise gr.Error("This is no word of a text.", print_exception=False)
        return _seen(turns.pick_word(shelf, before, *map(int, places)))

    def open_layers(before: Turn, text: int | None) -> Any:
        return *_seen(turns.open_layers(shelf, before, text or 0)), True

    def choose(model: str) -> Any:
        methods, method, problem = turns.methods_of(shelf, model)
        update = gr.update(choices=list(methods.items()), value=method or None)
        return update, cards.problem(problem)

    showing = {"inputs": [*inputs, found["layered"]], "outputs": [*seen, found["text"]]}
    asked["show"].click(show, **showing, **{**_QUIET, "show_progress": "minimal"}).then(
        None, None, None, js=SCRIPTS["scroll"]
    )
    drawing = {"inputs": asked["seed"], "outputs": [asked["image"], asked["texts"]]}
    for event in (asked["draw"].click, asked["seed"].submit, page.load):
        event(draw, **drawing, **_QUIET).success(show, **showing, **_QUIET)
    asked["model"].input(choose, asked["model"], [asked["method"], found["problem"]], **_QUIET)
    found["cards"].click(pick, found["turn"], seen, **_QUIET)
    opening = {"inputs": [found["turn"], found["text"]], "outputs": [*seen, found["layered"]]}
    for event in (found["layers_tab"].select, found["text"].input):
        event(open_layers, **opening, **_QUIET)
    found["texts_tab"].select(lambda: False, None, found["layered"], **_QUIET)
    for event in (found["opacity"].change, page.load):  # in the browser alone
        event(None, found["opacity"], None, js=SCRIPTS["opacity"])
    _connect_files(found)


def _connect_files(found: dict[str, Any]) -> None:
    def png(turn: Turn, opacity: float) -> str:
        return _file(turn, lambda answer: files.picture(answer, opacity), "image/png")

    def npz(turn: Turn) -> str:
        return _file(turn, files.archive, "application/octet-stream")

    given = {"png": [found["turn"], found["opacity"]], "npz": found["turn"]}
    for ending, make in (("png", png), ("npz", npz)):
        made = found[ending].click(make, given[ending], found["file"], **_QUIET)
        made.then(None, found["file"], None, js=SCRIPTS["save"].replace("ENDING", ending))


def _path(uploads: str, payload: Any) -> str | None:
    """The file of an image that was uploaded here or drawn here.

    Raises:
        gradio.Error: the client names another file of this machine.
    """
    if payload is None:
        return None
    import gradio as gr

    path = Path(str(payload.path)).resolve()
    if not path.is_relative_to(Path(uploads).resolve()):
        raise gr.Error("This is no image that was uploaded here.", print_exception=False)
    return str(path)


def _seen(turn: Turn) -> tuple[Turn, str, str, str]:
    return turn, turn.cards, turn.layers, cards.problem(turn.problem)


def _file(turn: Turn, make: Callable[[Answer], bytes], kind: str) -> str:
    return "" if turn.answer is None else as_url(make(turn.answer), kind)
