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
from ..visualization.colors import ALPHA
from . import handlers, html
from .handlers import Detail, PageState
from .model_cache import ModelCache
from .pictures import archive, as_url, picture
from .queries import Query, example
from .style import ABOUT, INTRODUCTION, SCRIPTS

_MAX_QUEUE: Final = 64
_QUIET: Final[dict[str, Any]] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "models",
    "concurrency_limit": 2,  # all kinds of clicks together; others wait in line
}
_UPLOAD_SECONDS: Final = 3600
_FIRST_SCENE: Final = 5  # one that is answered well
_VIEWS: Final[dict[Detail, str]] = {
    "words": "Which words",
    "layers": "Layer by layer",
    "heads": "Heads",
}
_SIGNS: Final = {"for it": "positive", "against it": "negative", "both": "both"}


def build(cache: ModelCache, uploads: str) -> Any:
    """The page, a `gradio.Blocks`; the first model is chosen at first.

    No file outside the folder of uploaded images is read, whatever a client says.
    """
    import gradio as gr

    with gr.Blocks(
        title="captum-clip",
        analytics_enabled=False,
        delete_cache=(_UPLOAD_SECONDS // 6, _UPLOAD_SECONDS),
        fill_width=True,
    ) as page:
        gr.HTML(INTRODUCTION, elem_id="introduction")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320, elem_id="question"):
                parts = _query(cache, uploads)
            with gr.Column(scale=7, min_width=320, elem_id="answer"):
                parts |= _result()
        _connect(page, cache, parts)
        _connect_browser(page, parts)
    page.queue(api_open=False, max_size=_MAX_QUEUE)
    page.preprocess_data = partial(_checked_inputs, page.preprocess_data)
    return page


def _query(cache: ModelCache, uploads: str) -> dict[str, Any]:
    """What is asked: components by name."""
    import gradio as gr

    methods, _, _ = handlers.methods_of(cache, cache.names[0])
    image = gr.Image(
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
    image.preprocess = partial(_uploaded_path, uploads)
    with gr.Row(elem_classes="tight"):
        seed = gr.Number(_FIRST_SCENE, label="Example scene no.", precision=0, min_width=150)
        draw = gr.Button("Draw it", size="md", min_width=90, elem_id="draw")
    texts = gr.Textbox(
        label="Texts, one per line (Ctrl+Enter shows the maps)",
        lines=3,
        max_lines=6,
        placeholder="a horse",
        elem_id="texts",
    )
    with gr.Row(elem_classes="tight"):
        names = list(cache.names)  # the first one is chosen
        model = gr.Dropdown(names, label="Model", scale=4, min_width=110, elem_id="model")
        pairs = list(methods.items())
        method = gr.Dropdown(pairs, label="Method", scale=5, min_width=140, elem_id="method")
    signs = list(_SIGNS.items())
    question = "What speaks for a text, or against it"
    sign = gr.Radio(signs, value="positive", label=question, elem_id="sign")
    show = gr.Button("Show the maps", variant="primary", elem_id="show")
    with gr.Accordion("Words that the embedded models know", open=False):
        gr.HTML(f'<p class="hint">{" ".join(WORDS)}</p>')
    return {
        **{"image": image, "seed": seed, "draw": draw, "texts": texts},
        **{"model": model, "method": method, "sign": sign, "show": show},
    }


def _result() -> dict[str, Any]:
    """What is answered: components by name."""
    import gradio as gr

    parts: dict[str, Any] = {"state": gr.State(PageState()), "view": gr.State("texts")}
    parts["problem"] = gr.HTML("", elem_id="problem")
    with gr.Tabs():
        with gr.Tab("Texts") as parts["texts_tab"]:
            parts["cards"] = gr.HTML(html.WELCOME, elem_id="cards", js_on_load=SCRIPTS["word"])
            with gr.Row(elem_classes="tight"):
                parts["opacity"] = gr.Slider(
                    0, 1, ALPHA, step=0.05, label="Opacity", elem_id="opacity", min_width=200
                )
                for name, label in (("png", "picture (PNG)"), ("npz", "maps (NPZ)")):
                    parts[name] = gr.Button(
                        f"Download {label}", size="md", elem_id=name, min_width=140
                    )
        for view, label in _VIEWS.items():
            with gr.Tab(label) as parts[f"{view}_tab"]:
                parts[f"{view}_text"] = gr.Radio(
                    [], label="Text", visible=False, elem_id=f"{view}-text"
                )
                parts[view] = gr.HTML(html.WELCOME, elem_id=view)
    parts["file"] = gr.Textbox(visible="hidden", elem_id="file")
    gr.HTML(ABOUT, elem_id="about")
    return parts


def _connect(page: Any, cache: ModelCache, parts: dict[str, Any]) -> None:
    """Clicks that the server answers."""
    import gradio as gr

    def draw(seed: float | None) -> Any:
        try:
            return example(seed)
        except CaptumClipError as error:
            raise gr.Error(handlers.sentence(error), print_exception=False) from error

    def show(
        image: Any, texts: str, model: str, method: str, sign: Any, before: PageState, view: Any
    ) -> Any:
        query = Query(image, texts, model, method, sign)
        state = handlers.show(cache, query, before, view)
        names = () if state.result is None else state.result.explanation.names
        choices = [(name, index) for index, name in enumerate(names)]
        update = gr.update(choices=choices, value=0 if choices else None, visible=len(choices) > 1)
        return *_outputs(state), *len(_VIEWS) * [update]

    def pick(before: PageState, event: gr.EventData) -> Any:
        data = event._data if isinstance(event._data, dict) else {}
        indices = (str(data.get("text")), str(data.get("word")))
        if not all(re.fullmatch(r"-?\d{1,6}", index) for index in indices):
            raise gr.Error("This is no word of a text.", print_exception=False)
        return _outputs(handlers.pick_word(cache, before, *map(int, indices)))

    def open_view(view: Any, before: PageState, text: int | None) -> Any:
        state = handlers.open_view(cache, before, view, text or 0)
        return *_outputs(state), view, None if state.result is None else text or 0

    def choose(model: str) -> Any:
        methods, method, problem = handlers.methods_of(cache, model)
        return gr.update(choices=list(methods.items()), value=method or None), html.problem(problem)

    def of(*names: str) -> list[Any]:
        return [parts[name] for name in names]

    shown = of("state", "cards", *_VIEWS, "problem")
    query = of("image", "texts", "model", "method", "sign", "state", "view")
    showing = {"inputs": query, "outputs": [*shown, *of(*(f"{view}_text" for view in _VIEWS))]}
    parts["show"].click(show, **showing, **{**_QUIET, "show_progress": "minimal"}).then(
        None, None, None, js=SCRIPTS["scroll"]
    )
    for event in (parts["draw"].click, parts["seed"].submit, page.load):
        drawn = event(draw, parts["seed"], of("image", "texts"), **_QUIET)
        drawn.success(show, **showing, **_QUIET)
    parts["model"].input(choose, parts["model"], of("method", "problem"), **_QUIET)
    parts["cards"].click(pick, parts["state"], shown, **_QUIET)
    for view in _VIEWS:
        for event in (parts[f"{view}_tab"].select, parts[f"{view}_text"].input):
            outputs = [*shown, *of("view", f"{view}_text")]
            event(partial(open_view, view), of("state", f"{view}_text"), outputs, **_QUIET)
    parts["texts_tab"].select(lambda: "texts", None, parts["view"], **_QUIET)


def _connect_browser(page: Any, parts: dict[str, Any]) -> None:
    """What the browser does alone or last: the opacity, and saving a file."""

    def file(make: Callable[..., bytes], kind: str, state: PageState, *look: float) -> str:
        return "" if state.result is None else as_url(make(state.result, *look), kind)

    page.load(None, None, None, js=SCRIPTS["keys"])
    for event in (parts["opacity"].change, page.load):
        event(None, parts["opacity"], None, js=SCRIPTS["opacity"])
    state, opacity = parts["state"], parts["opacity"]
    for ending, make, inputs in (
        ("png", partial(file, picture, "image/png"), [state, opacity]),
        ("npz", partial(file, archive, "application/octet-stream"), [state]),
    ):
        made = parts[ending].click(make, inputs, parts["file"], **_QUIET)
        made.then(None, parts["file"], None, js=SCRIPTS["save"].replace("ENDING", ending))


async def _checked_inputs(preprocess: Callable[..., Any], event: Any, *args: Any) -> Any:
    """As Gradio reads inputs; what no browser would send is refused without a traceback."""
    import gradio as gr

    try:
        if event.fn is None:
            raise TypeError("the browser answers this event alone")
        return await preprocess(event, *args)
    except Exception as error:
        if isinstance(error, gr.Error) and not error.print_exception:
            raise
        raise gr.Error("This is nothing that the page asks.", print_exception=False) from error


def _uploaded_path(uploads: str, payload: Any) -> str | None:
    """The file of an image that was uploaded here or drawn here, and no other of this machine."""
    if payload is None:
        return None
    import gradio as gr

    path = Path(str(payload.path)).resolve()
    if not path.is_relative_to(Path(uploads).resolve()):
        raise gr.Error("This is no image that was uploaded here.", print_exception=False)
    return str(path)


def _outputs(state: PageState) -> tuple[PageState | str, ...]:
    views = (getattr(state, view) for view in _VIEWS)
    return state, state.cards, *views, html.problem(state.problem)
