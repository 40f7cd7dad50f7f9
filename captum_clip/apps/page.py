"""The page in the browser: its components, the answer to each click, and its server."""

import ctypes
import gc
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..demo.catalog import WORDS
from ..demo.scenes import draw_scene
from ..errors import CaptumClipError, InputError, spelled
from ..explaining.request import Request, Sign
from ..visualization import save_figure
from ..visualization.colors import ALPHA
from .answers import EVIDENCE, MAX_TEXTS, Answer, Models, ask, offered_methods

_TRIM_THRESHOLD: Final = -1
"""M_TRIM_THRESHOLD of glibc."""
LOCAL: Final = ("127.0.0.1", "localhost", "::1")
MAX_IMAGES: Final = 12
_SESSIONS: Final = 12
"""Sessions whose answers are kept; each takes some megabytes."""
LARGER: Final = (448, 672)
"""Sides of larger images; patches of 14, 16 and 32 pixels divide them."""
_LABELS: Final = {f.name: f.metadata["label"] for f in fields(Request) if "label" in f.metadata}
_PICTURE: Final[dict[str, Any]] = {"interactive": False, "buttons": []}
_EXAMPLE: Final = "example"
"""The caption of an example scene, by which it is told from an upload."""
_SESSION: Final[dict[str, Any]] = {"time_to_live": 3600}
"""States of a session are kept for an hour."""
_EVENT: Final[dict[str, Any]] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    # A click while the files are made counts.
    "trigger_mode": "always_last",
    # The limit is for all events together; others wait in line.
    "concurrency_id": "models",
    "concurrency_limit": 2,
}
_STALE: Final = "() => ({__type__: 'update', elem_classes: ['stale']})"
"""Marks maps that belong to another question than the one that is typed now."""
_PAGE: Final = json.loads(Path(__file__).with_name("page.json").read_text("utf-8"))
# The file has the two tabs about words by name: the map of a text, then pairs with the image.
_, _PAIRS = _PAGE["tabs"]
_DOWNLOADS: Final = _PAGE["downloads"]


class _Cards(NamedTuple):
    """The tab of texts: a card for the image and one for each text.

    Attributes:
        answer: state with the answer that is shown.
        answers: state with the answers for all images.
        table: the maps of all images, where there are several.
        opacity: the slider.
        outputs: the components that `show` updates.
        show: handler that shows an answer at an opacity.
    """

    answer: Any
    answers: Any
    table: Any
    opacity: Any
    outputs: list[Any]
    show: Callable[[Answer, float], Iterator[dict[Any, Any]]]


class _Details(NamedTuple):
    """A tab about the words of one text."""

    text: Any
    words: Any
    maps: Any


class _Question(NamedTuple):
    """The column in which a question is asked.

    Attributes:
        inputs: model, size of the image, images, texts, method and sign.
        button: asks the question.
        scene: event that an example scene was drawn.
    """

    inputs: list[Any]
    button: Any
    scene: Any


def build(models: Models) -> Any:
    """Build the page, a `gradio.Blocks`, with the first model chosen."""
    # Uploads older than an hour are deleted every ten minutes.
    with gr.Blocks(title="captum-clip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(_PAGE["introduction"])
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                question = _question(page, models)
            with gr.Column(scale=7, min_width=320) as results:
                with gr.Tabs(selected="texts", overflow_behavior="wrap") as tabs:
                    with gr.Tab("Texts", id="texts"):
                        cards = _cards_tab()
                    details = [_detail_tab(name, cards.answer) for name in _PAGE["tabs"]]
                gr.Markdown(_PAGE["about"], elem_id="about")

        def fill(reply: Answer, opacity: float, more: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
            names = reply.explanation.names
            # The text with the most words has the most to compare.
            word_counts = [len(name.split()) for name in names]
            longest = word_counts.index(max(word_counts))
            choices = [(name, index) for index, name in enumerate(names)]
            updates: dict[Any, Any] = {tabs: gr.Tabs(selected="texts")}
            cleared: dict[Any, Any] = {}
            for tab in details:
                updates[tab.text] = gr.Radio(choices, value=longest, visible=len(names) > 1)
                cleared |= {tab.words: None, tab.maps: None}
            yield updates
            yield cleared
            steps = cards.show(reply, opacity)
            yield {**next(steps), **more}
            yield from steps

        def explain(
            opacity: float, model: str, size: Any, files: Any, texts: str, method: str, sign: Sign
        ) -> Iterator[Any]:
            paths = _readable(models, files)
            replies: list[Answer] = []
            rows: list[Any] = []
            # Without an image `ask` says what is missing.
            for path in paths or [None]:
                photo = None if path is None else models.read(path)
                reply = ask(models.get(model, size), photo, texts, method, sign)
                replies.append(reply)
                if len(replies) == 1:
                    yield from fill(reply, opacity, {results: gr.Column(elem_classes="")})
                rows += reply.row(opacity)
                columns = len(rows) // len(replies)
                table = gr.Gallery(rows, columns=columns, visible=len(paths) > 1)
                yield {cards.answers: replies, cards.table: table}

        def choose(replies: list[Answer], opacity: float, event: gr.SelectData) -> Iterator[Any]:
            # A row of the table is the image and a map for each text.
            columns = 1 + len(replies[0].chosen)
            yield from fill(replies[event.index // columns], opacity, {})

        outputs = [*cards.outputs, *chain(*details), tabs]
        cards.table.select(choose, [cards.answers, cards.opacity], outputs, **_EVENT)
        inputs = [cards.opacity, *question.inputs]
        outputs += [results, cards.answers, cards.table]
        event = (_with_messages(explain), inputs, outputs)
        question.button.click(*event, scroll_to_output=True, **_EVENT)
        question.scene.success(*event, **_EVENT)
        changes = [component.change for component in question.inputs]
        gr.on(changes, None, None, results, js=_STALE, **_EVENT)
        page.load(None, None, None, js=_PAGE["keys"])
    return page.queue(api_open=False, max_size=64)


def _question(page: Any, models: Models) -> _Question:
    """Build the column in which a question is asked."""
    images = gr.Gallery(
        sources=["upload", "clipboard"],
        buttons=[],
        format="png",
        # Files of any kind are taken, so that the page itself says what is wrong with one.
        file_types=["file"],
        height=150,
        allow_preview=False,
        show_label=False,
        elem_id="images",
    )
    more = gr.UploadButton("Add images", size="sm", file_count="multiple")
    with gr.Row(elem_classes="tight"):
        number = gr.Number(5, label="Example scene no.", precision=0)
        draw = gr.Button("Draw it", size="md", min_width=90)
    label = "Texts, one per line (Ctrl+Enter shows the maps)"
    texts = gr.Textbox(label=label, lines=3, max_lines=6, placeholder="a horse", elem_id="texts")
    with gr.Row():
        names = list(models.names)  # the first one is chosen
        model = gr.Dropdown(names, label=_LABELS["model"], scale=4, min_width=110, elem_id="model")
        methods = offered_methods(models.get(names[0]))
        method = gr.Dropdown(
            methods, label=_LABELS["method"], scale=5, min_width=140, elem_id="method"
        )
    signs = [(meaning, sign) for sign, meaning in EVIDENCE.items()]
    signs.append(("both", "both"))
    sign = gr.Radio(signs, value="positive", label=_LABELS["sign"], elem_id="sign")
    button = gr.Button("Show the maps", variant="primary", elem_id="show")
    with gr.Accordion("Words that the embedded models know", open=False):
        gr.Markdown(" ".join(WORDS))
    with gr.Accordion("Larger images, for finer maps", open=False):
        sides: list[tuple[str, int | None]] = [("the model's own size", None)]
        sides += [(f"{side} pixels", side) for side in LARGER]
        size = gr.Radio(sides, value=None, label=_LABELS["image_size"], elem_id="size")

    def offer(name: str) -> Iterator[Any]:
        offered = offered_methods(models.get(name))
        yield gr.Dropdown(offered, value=offered[0][1])

    def draw_example(number: int) -> Iterator[tuple[Any, str]]:
        scene = draw_scene(number, count=2)
        yield [(scene.image, _EXAMPLE)], "\n".join(scene.captions)

    def take(shown: Any, added: Sequence[str] | None = None) -> Any:
        shown = shown or []
        uploads = [pair for pair in shown if pair[1] != _EXAMPLE]
        # An example scene leaves when a photo comes.
        taken = _readable(models, uploads, added)
        if not taken:
            taken = [pair for pair in shown if pair[1] == _EXAMPLE]
        if taken == [path for path, _ in shown]:
            return gr.skip()
        return taken

    model.input(_with_messages(offer), model, method, **_EVENT)
    images.upload(take, images, images, **_EVENT)
    more.upload(take, [images, more], images, **_EVENT)
    triggers = [page.load, draw.click, number.submit]
    scene = gr.on(triggers, _with_messages(draw_example), number, [images, texts], **_EVENT)
    return _Question([model, size, images, texts, method, sign], button, scene)


def _uploaded(path: Any) -> str:
    """Return the path of an upload; raise `gr.Error` for any other file of the machine."""
    # Gradio checks only paths that a client claims to be uploads, and trusts all others.
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if folder not in Path(str(path)).resolve().parents:
        raise gr.Error("This file was not uploaded to this page.", print_exception=False)
    return str(path)


def _readable(models: Models, files: Any, added: Sequence[str] | None = None) -> list[Any]:
    """Return the images of a gallery and of added files; warn about those that are none."""
    paths = [path for path, _ in files or ()]
    paths += added or ()
    if len(paths) > MAX_IMAGES:
        gr.Warning(f"The page takes the first {MAX_IMAGES} of these {len(paths)} images.")
    images = []
    for path in map(_uploaded, paths[:MAX_IMAGES]):
        try:
            models.read(path)
            images.append(path)
        except CaptumClipError as error:
            _show_warning(error)
    return images


def _cards_tab() -> _Cards:
    """Build the tab of texts."""
    answer = gr.State(**_SESSION)
    answers = gr.State(**_SESSION)
    label = "Choose an image to see its words, here and in the other tabs"
    table = gr.Gallery(
        **_PICTURE, height="auto", label=label, allow_preview=False, visible=False, elem_id="table"
    )
    cards = []
    with gr.Row(elem_id="cards"):
        with gr.Column(min_width=160):
            name = gr.Markdown()
            image = gr.Image(show_label=False, alt_text="the image", **_PICTURE)
        for _ in range(MAX_TEXTS):
            with gr.Column(visible=False, min_width=160) as card:
                words = gr.Radio([], elem_classes="words")
                text_map = gr.Image(show_label=False, **_PICTURE)
            cards.append((card, words, text_map))
    legend = gr.HTML(padding=False, elem_classes="legend")
    hints = gr.Markdown("The maps appear here.", elem_id="hints")
    with gr.Row(elem_classes="tight"):
        opacity = gr.Slider(0, 1, ALPHA, step=0.05, label="Opacity", min_width=240)
        buttons = [gr.DownloadButton(n, size="sm", min_width=140) for n in _DOWNLOADS.values()]

    def show(reply: Answer, opacity: float) -> Iterator[dict[Any, Any]]:
        figure = reply.plot(opacity)
        whole, maps = reply.images(figure)
        updates = {
            answer: replace(reply, opacity=opacity),
            image: whole,
            name: f"**{reply.name}** as the model sees it",
            legend: reply.legend(reply.sign, opacity),
            hints: reply.hints(),
        }
        for button in buttons:
            updates[button] = gr.DownloadButton(interactive=False)
        notes = reply.notes()
        names = reply.explanation.names
        for index, (card, words, text_map) in enumerate(cards):
            if index >= len(names):
                updates[card] = gr.Column(visible=False)
                continue
            text = names[index]
            labels = ["whole text", *text.split()]
            choices = [(word, number) for number, word in enumerate(labels)]
            updates[card] = gr.Column(visible=True)
            updates[words] = gr.Radio(choices, value=reply.chosen[index], label=notes[index])
            updates[text_map] = gr.Image(maps[index], alt_text=text)
        yield updates
        # The files take longer. They lie in the folder of uploads, where Gradio deletes old ones.
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        picture, archive = (folder / name for name in _DOWNLOADS)
        save_figure(figure, picture)
        reply.shown().save(archive)
        written = zip(buttons, (picture, archive), strict=True)
        yield {button: gr.DownloadButton(value=path, interactive=True) for button, path in written}

    def show_word(text: int, reply: Answer, opacity: float, word: int) -> Iterator[dict[Any, Any]]:
        yield from show(reply.show_word(text, word), opacity)

    def redraw(reply: Answer, opacity: float) -> Iterator[dict[Any, Any]]:
        # Gradio reports a release whenever the slider loses the focus, moved or not.
        if opacity != reply.opacity:
            yield from show(reply, opacity)

    outputs = [answer, image, name, legend, hints, *buttons, *chain(*cards)]
    opacity.release(_with_messages(redraw), [answer, opacity], outputs, **_EVENT)
    for text, (_, words, _) in enumerate(cards):
        inputs = [answer, opacity, words]
        words.input(_with_messages(partial(show_word, text)), inputs, outputs, **_EVENT)
    return _Cards(answer, answers, table, opacity, outputs, show)


def _detail_tab(name: str, answer: Any) -> _Details:
    """Build a tab about the words of one text, which is filled when it is opened."""
    with gr.Tab(name) as opened:
        text = gr.Radio([], label="Text", visible=False)
        gr.Markdown(_PAGE["tabs"][name])
        words = gr.HighlightedText(show_label=False, elem_classes="values")
        maps = gr.Gallery(**_PICTURE, show_label=False, height="auto")

    def fill(reply: Answer, index: int) -> Iterator[list[Any]]:
        explain_words = reply.pairs if name == _PAIRS else reply.text_map
        values, colors, pictures = explain_words(index)
        yield [gr.HighlightedText(values, color_map=colors), pictures]

    def enlarge(event: gr.SelectData) -> Any:
        # The image and the map of the whole text come before the words' maps.
        return gr.Gallery(selected_index=2 + event.index)

    events = [opened.select, text.input]
    gr.on(events, _with_messages(fill), [answer, text], [words, maps], **_EVENT)
    if name == _PAIRS:
        words.select(enlarge, None, maps, **_EVENT)
    return _Details(text, words, maps)


def _with_messages(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Make a handler show an error of the library as a message, and leave the page as it is."""

    def answer(*inputs: Any) -> Iterator[Any]:
        # The first input is None until there is an answer.
        if inputs[0] is None:
            return
        try:
            steps = handler(*inputs)
            while True:
                # The context is entered anew for each step, which may run in another thread.
                with spelled(label):
                    updates = next(steps)
                yield updates
        except StopIteration:
            return
        except CaptumClipError as error:
            _show_warning(error)
            yield gr.skip()
        finally:
            trim_memory()

    return answer


def _show_warning(error: CaptumClipError) -> None:
    """Show an error as a message, without the folder in which an upload is kept."""
    folder = re.escape(os.environ["GRADIO_TEMP_DIR"])
    # A gr.Error would take the place of the maps.
    gr.Warning(re.sub(rf"{folder}\S*/", "", error.reason))


def label(name: str, value: Any = None) -> str:
    """Return what the page calls an argument of `explain`, with its value: “Show what”: both."""
    if name in _LABELS:
        name = f"“{_LABELS[name]}”"
        return name if value is None else f"{name}: {EVIDENCE.get(value, value)}"
    return name if value is None else f"{name}={value!r}"


def find_port(host: str, port: int) -> int:
    """Return a port that can be listened on: `port`, or any free one if it is 0.

    Raises:
        InputError: there is no such port, or it is taken.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: expected a number from 0 (any free one) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    # A host with half a character (a surrogate) in it raises a TypeError.
    except (OSError, UnicodeError, TypeError) as error:
        raise InputError(
            f"cannot listen on port {port} of {host} ({getattr(error, 'strerror', error)}); give "
            "another port with --port, or --port 0 for any free one."
        ) from error


def _refuse_other_origins(app: ASGIApp) -> ASGIApp:
    """Wrap an app: it gets no request, such as an upload, that pages of other origins send."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_change = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if is_change and _is_foreign(Headers(scope=scope)):
            refusal = PlainTextResponse("This page accepts no requests from other pages.", 403)
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


def _is_foreign(headers: Headers) -> bool:
    """Tell whether a browser sent a request for a page of another origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers leave that header out over plain HTTP on a network. Proxies replace the host, but no
    # page can set the header in which they forward it.
    origin = headers.get("origin", "").lower()
    if not origin:
        return False
    # An origin leaves out the default port, which a host may include.
    default_port = ":443" if origin.startswith("https:") else ":80"
    hosts = []
    for name in ("host", "x-forwarded-host"):
        hosts.append(_without_scheme(headers.get(name, "").lower()).removesuffix(default_port))
    origin_host = _without_scheme(origin).removesuffix(default_port)
    # The origin of a file, "file://", has no host.
    return not origin_host or origin_host not in hosts


def _without_scheme(address: str) -> str:
    return re.sub(r"^\w+://", "", address)


def trim_memory() -> None:
    """Give free memory back to the system; fast within :func:`lean_memory`."""
    # Figures are in reference cycles, so they would stay until the next collection.
    gc.collect()
    _glibc("malloc_trim", 0)


@contextmanager
def lean_memory() -> Iterator[None]:
    """Keep little free memory within the block; collections pass over what is loaded already."""
    # Every thread has a heap of its own, and glibc keeps up to 64 MB of each for later.
    _glibc("mallopt", _TRIM_THRESHOLD, 2**20)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _glibc("mallopt", _TRIM_THRESHOLD, 2**26)


def _glibc(name: str, *values: int) -> None:
    """Call a function of glibc; do nothing if the C library is another one."""
    if sys.platform != "linux":
        return
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*values)


@contextmanager
def serving(models: Models, host: str, port: int, names: Collection[str]) -> Iterator[str]:
    """Serve the page at the address that is yielded, until Ctrl-C; uploads are deleted then.

    Args:
        models: the models that the page offers.
        host: address to listen on.
        port: a port from :func:`find_port`.
        names: hosts by which the page is reached besides the names of this machine to itself.
            Requests for other hosts are refused; without names a network may use any host.
    """
    allowed_hosts = [*LOCAL, host, *names]
    if host not in LOCAL and not names:
        allowed_hosts = ["*"]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts),
        Middleware(_refuse_other_origins),
    ]
    bracketed = f"[{host}]" if ":" in host else host
    with lean_memory(), tempfile.TemporaryDirectory(prefix="captum-clip-app-") as folder:
        # Gradio reads the variable when a page is built.
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(models)
        page.launch(
            server_name=bracketed,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            state_session_capacity=_SESSIONS,
            max_file_size="20mb",
            # The theme has fonts of the system only, so none is fetched.
            theme=gr.themes.Base(**_PAGE["theme"]),
            css_paths=Path(__file__).with_name("page.css"),
            # With this policy the browser itself refuses to ask any other server.
            head=_PAGE["policy"],
            app_kwargs={"openapi_url": None, "middleware": middleware},
        )
        # By default SIGTERM ends Python without a cleanup, and the folder would stay.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with suppress(KeyboardInterrupt):
                yield f"http://{bracketed}:{port}"
        finally:
            signal.signal(signal.SIGTERM, before)
            page.close(verbose=False)
