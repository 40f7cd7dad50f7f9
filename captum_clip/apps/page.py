"""The page: what is on it, which answer each click shows, and its server."""

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
from typing import Any, Final

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..demo.catalog import WORDS
from ..demo.scenes import draw_scene
from ..errors import CaptumClipError, InputError, spelled
from ..explaining.request import Request
from ..visualization import save_figure
from ..visualization.colors import ALPHA
from .answers import EVIDENCE, MAX_TEXTS, Answer, Models, ask, offered_methods

_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD of glibc
LOCAL: Final = ("127.0.0.1", "localhost", "::1")
MAX_IMAGES: Final = 12
_SESSIONS: Final = 12  # whose answers are kept, each of some megabytes
LARGER: Final = (448, 672)  # sides of larger images; patches of 14, 16 and 32 divide them
_LABELS: Final = {f.name: f.metadata["label"] for f in fields(Request) if "label" in f.metadata}
_PICTURE: Final[dict[str, Any]] = {"interactive": False, "buttons": []}
_EXAMPLE: Final = "example"  # the caption of a scene, which leaves when a photo comes
_SESSION: Final[dict[str, Any]] = {"time_to_live": 3600}  # what a session keeps, for an hour
_EVENT: Final[dict[str, Any]] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "always_last",  # a click while the files are made counts
    "concurrency_id": "models",
    "concurrency_limit": 2,  # of all events together; others wait in line
}
# until the next answer the maps are of another question
_STALE: Final = "() => ({__type__: 'update', elem_classes: ['stale']})"
_PAGE: Final = json.loads(Path(__file__).with_name("page.json").read_text("utf-8"))
_, _PAIRS = _PAGE["tabs"]
_DOWNLOADS: Final = _PAGE["downloads"]


def build(models: Models) -> Any:
    """The page, a `gradio.Blocks`, with the first model chosen."""
    # uploads older than an hour are deleted every ten minutes
    with gr.Blocks(title="captum-clip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(_PAGE["introduction"])
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                question, button, scene = _question(page, models)
            with gr.Column(scale=7, min_width=320) as drawn:
                with gr.Tabs(selected="texts", overflow_behavior="wrap") as tabs:
                    with gr.Tab("Texts", id="texts"):
                        answer, answers, table, opacity, maps, show = _cards_tab()
                    details = [_detail_tab(tab, answer) for tab in _PAGE["tabs"]]
                gr.Markdown(_PAGE["about"], elem_id="about")

        def fill(reply: Answer, opacity: float, more: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
            names = [(name, index) for index, name in enumerate(reply.explanation.names)]
            longest = max(names, key=lambda name: len(name[0].split()))[1]  # has words to compare
            choices = {
                text: gr.Radio(names, value=longest, visible=len(names) > 1) for text, *_ in details
            }
            yield choices | {tabs: gr.Tabs(selected="texts")}
            yield dict.fromkeys(chain(*(tab[1:] for tab in details)))
            steps = show(reply, opacity)
            yield next(steps) | more
            yield from steps

        def explain(opacity: float, model: str, size: Any, files: Any, *how: Any) -> Iterator[Any]:
            paths, replies, rows = _readable(models, files), [], []
            for path in paths or [None]:
                photo = path and models.read(path)
                replies.append(ask(models.get(model, size), photo, *how))
                if len(replies) == 1:
                    yield from fill(replies[0], opacity, {drawn: gr.Column(elem_classes="")})
                rows += replies[-1].row(opacity)
                columns, several = len(rows) // len(replies), len(paths) > 1
                yield {answers: replies, table: gr.Gallery(rows, columns=columns, visible=several)}

        def choose(replies: list[Answer], opacity: float, event: gr.SelectData) -> Iterator[Any]:
            yield from fill(replies[event.index // (len(replies[0].chosen) + 1)], opacity, {})

        outputs = [*maps, *chain(*details), tabs]
        table.select(choose, [answers, opacity], outputs, **_EVENT)
        outputs += [drawn, answers, table]
        event = _sentences(explain), [opacity, *question], outputs
        button.click(*event, scroll_to_output=True, **_EVENT)
        scene.success(*event, **_EVENT)
        gr.on([field.change for field in question], None, None, drawn, js=_STALE, **_EVENT)
        page.load(None, None, None, js=_PAGE["keys"])
    return page.queue(api_open=False, max_size=64)


def _question(page: Any, models: Models) -> tuple[list[Any], Any, Any]:
    """Model, its size, image, texts, method, sign; the button that asks; the event of a scene."""
    # files of any kind, so that what is wrong with one is said here
    look: dict[str, Any] = {"sources": ["upload", "clipboard"], "buttons": [], "format": "png"}
    look |= {"file_types": ["file"], "height": 150, "allow_preview": False}
    images = gr.Gallery(**look, show_label=False, elem_id="images")
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
    signs = [*((label, sign) for sign, label in EVIDENCE.items()), ("both", "both")]
    sign = gr.Radio(signs, value="positive", label=_LABELS["sign"], elem_id="sign")
    button = gr.Button("Show the maps", variant="primary", elem_id="show")
    with gr.Accordion("Words that the embedded models know", open=False):
        gr.Markdown(" ".join(WORDS))
    with gr.Accordion("Larger images, for finer maps", open=False):
        sides = [("the model's own size", None), *((f"{side} pixels", side) for side in LARGER)]
        size = gr.Radio(sides, value=None, label=_LABELS["image_size"], elem_id="size")

    def offer(name: str) -> Iterator[Any]:
        offered = offered_methods(models.get(name))
        yield gr.Dropdown(offered, value=offered[0][1])

    def draw_example(number: int) -> Iterator[tuple[Any, str]]:
        drawn = draw_scene(number, count=2)
        yield [(drawn.image, _EXAMPLE)], "\n".join(drawn.captions)

    def take(shown: Any, added: Sequence[str] | None = None) -> Any:
        own = [pair for pair in shown or () if pair[1] != _EXAMPLE]
        good = _readable(models, own, added) or [pair for pair in shown or () if pair not in own]
        return gr.skip() if good == [path for path, _ in shown or ()] else good

    model.input(_sentences(offer), model, method, **_EVENT)
    images.upload(take, images, images, **_EVENT)
    more.upload(take, [images, more], images, **_EVENT)
    triggers = [page.load, draw.click, number.submit]
    scene = gr.on(triggers, _sentences(draw_example), number, [images, texts], **_EVENT)
    return [model, size, images, texts, method, sign], button, scene


def _uploaded(path: Any) -> str:
    """The path of an upload; a `gr.Error` for any other file of the machine."""
    # Gradio trusts a path of which a client does not claim that it is an upload
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if folder not in Path(str(path)).resolve().parents:
        raise gr.Error("This file was not uploaded to this page.", print_exception=False)
    return str(path)


def _readable(models: Models, files: Any, added: Sequence[str] | None = None) -> list[Any]:
    """The images of a gallery and among more files; what is wrong with others is said."""
    paths, images = [*(path for path, _ in files or ()), *(added or ())], []
    if len(paths) > MAX_IMAGES:
        gr.Warning(f"The page takes the first {MAX_IMAGES} of these {len(paths)} images.")
    for path in map(_uploaded, paths[:MAX_IMAGES]):
        try:
            models.read(path)
            images.append(path)
        except CaptumClipError as error:
            _show_warning(error)
    return images


def _cards_tab() -> tuple[Any, ...]:
    """The tab of texts: states of the shown answer and of all, a table of all; what shows one."""
    answer, answers, cards = gr.State(**_SESSION), gr.State(**_SESSION), []
    label = "Choose an image to see its words, here and in the other tabs"
    table = gr.Gallery(
        **_PICTURE, height="auto", label=label, allow_preview=False, visible=False, elem_id="table"
    )
    with gr.Row(elem_id="cards"):
        with gr.Column(min_width=160):
            name = gr.Markdown()
            image = gr.Image(show_label=False, alt_text="the image", **_PICTURE)
        for _ in range(MAX_TEXTS):
            with gr.Column(visible=False, min_width=160) as card:
                words = gr.Radio([], elem_classes="words")
                drawn = gr.Image(show_label=False, **_PICTURE)
            cards.append((card, words, drawn))
    legend = gr.HTML(padding=False, elem_classes="legend")
    hints = gr.Markdown("The maps appear here.", elem_id="hints")
    with gr.Row(elem_classes="tight"):
        opacity = gr.Slider(0, 1, ALPHA, step=0.05, label="Opacity", min_width=240)
        files = [gr.DownloadButton(n, size="sm", min_width=140) for n in _DOWNLOADS.values()]

    def show(reply: Answer, opacity: float) -> Iterator[dict[Any, Any]]:
        figure = reply.plot(opacity)
        whole, maps = reply.images(figure)
        shown = {answer: replace(reply, opacity=opacity), image: whole}
        shown |= {name: f"**{reply.name}** as the model sees it"}
        shown |= {legend: reply.legend(reply.sign, opacity), hints: reply.hints()}
        shown |= {button: gr.DownloadButton(interactive=False) for button in files}
        shown |= {card: gr.Column(visible=False) for card, *_ in cards}
        rows = zip(cards, reply.explanation.names, reply.chosen, reply.notes(), maps, strict=False)
        for (card, words, drawn), text, number, note, pixels in rows:
            choices = [(word, index) for index, word in enumerate(["whole text", *text.split()])]
            shown[card] = gr.Column(visible=True)
            shown[words] = gr.Radio(choices, value=number, label=note)
            shown[drawn] = gr.Image(pixels, alt_text=text)
        yield shown
        # The files take longer. In the folder of uploads Gradio deletes what is old.
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        paths = [folder / name for name in _DOWNLOADS]
        save_figure(figure, paths[0])
        reply.shown().save(paths[1])
        written = zip(files, paths, strict=True)
        yield {button: gr.DownloadButton(value=path, interactive=True) for button, path in written}

    def show_word(text: int, reply: Answer, opacity: float, word: int) -> Iterator[dict[Any, Any]]:
        yield from show(reply.show_word(text, word), opacity)

    def redraw(reply: Answer, opacity: float) -> Iterator[dict[Any, Any]]:
        if opacity != reply.opacity:  # Gradio calls it released wherever the focus leaves it
            yield from show(reply, opacity)

    outputs = [answer, image, name, legend, hints, *files, *chain(*cards)]
    opacity.release(_sentences(redraw), [answer, opacity], outputs, **_EVENT)
    for text, (_, words, *_) in enumerate(cards):
        inputs = [answer, opacity, words]
        words.input(_sentences(partial(show_word, text)), inputs, outputs, **_EVENT)
    return answer, answers, table, opacity, outputs, show


def _detail_tab(tab: str, answer: Any) -> tuple[Any, ...]:
    """A tab that is filled when it is opened: what chooses the text, its words, and maps."""
    with gr.Tab(tab) as opened:
        text = gr.Radio([], label="Text", visible=False)
        gr.Markdown(_PAGE["tabs"][tab])
        words = gr.HighlightedText(show_label=False, elem_classes="values")
        maps = gr.Gallery(**_PICTURE, show_label=False, height="auto")

    def fill(reply: Answer, index: int) -> Iterator[list[Any]]:
        values, colors, drawn = (reply.pairs if tab == _PAIRS else reply.text_map)(index)
        yield [gr.HighlightedText(values, color_map=colors), drawn]

    def enlarge(event: gr.SelectData) -> Any:
        return gr.Gallery(selected_index=2 + event.index)  # after the image and the whole text

    gr.on([opened.select, text.input], _sentences(fill), [answer, text], [words, maps], **_EVENT)
    if tab == _PAIRS:
        words.select(enlarge, None, maps, **_EVENT)
    return text, words, maps


def _sentences(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A handler that shows an error of the library as a message; what is shown stays."""

    def answer(*inputs: Any) -> Iterator[Any]:
        # the first input is None where no answer is shown yet
        steps = iter(()) if inputs[0] is None else handler(*inputs)
        try:
            while True:
                with spelled(label):  # around one step, since the next may run in another thread
                    shown = next(steps)
                yield shown
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
    # gr.Error would stand in place of the maps
    gr.Warning(re.sub(rf"{folder}\S*/", "", error.reason))


def label(name: str, value: Any = None) -> str:
    """What the page calls an argument of `explain`, with its value, as “Show what”: both."""
    if name not in _LABELS:
        return name if value is None else f"{name}={value!r}"
    return f"“{_LABELS[name]}”" + ("" if value is None else f": {EVIDENCE.get(value, value)}")


def find_port(host: str, port: int) -> int:
    """A port that can be listened on: `port`, or any free one for 0; else an InputError."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: expected a number from 0 (any free one) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            return int(listening.getsockname()[1])
    except (OSError, UnicodeError, TypeError) as error:  # TypeError: half a character
        raise InputError(
            f"cannot listen on port {port} of {host} ({getattr(error, 'strerror', error)}); give "
            "another port with --port, or --port 0 for any free one."
        ) from error


def _refuse_other_origins(app: ASGIApp) -> ASGIApp:
    """The app, without what a browser sends for pages of other origins, such as an upload."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        changes = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        refused = changes and _is_foreign(Headers(scope=scope))
        answering = PlainTextResponse("This page accepts no requests from other pages.", 403)
        await (answering if refused else app)(scope, receive, send)

    return answer


def _is_foreign(headers: Headers) -> bool:
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    # Browsers leave it out over plain HTTP on a network. Proxies change the host, and no page can
    # set the other header.
    names = [headers.get(name, "").lower() for name in ("origin", "host", "x-forwarded-host")]
    default = ":443" if names[0].startswith("https:") else ":80"  # which an origin leaves out
    origin, *own = (re.sub(r"^\w+://", "", name).removesuffix(default) for name in names)
    return names[0] != "" and (not origin or origin not in own)  # "file://" has no host


def trim_memory() -> None:
    """Give back what is free; fast within :func:`lean_memory`."""
    gc.collect()  # figures refer to themselves, so they would stay for a while
    _glibc("malloc_trim", 0)


@contextmanager
def lean_memory() -> Iterator[None]:
    """Give back free memory within the block, and have collections pass over what is loaded."""
    # glibc keeps up to 64 MB of each heap for later, and threads have heaps of their own
    _glibc("mallopt", _TRIM_THRESHOLD, 2**20)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _glibc("mallopt", _TRIM_THRESHOLD, 2**26)


def _glibc(name: str, *values: int) -> None:
    """Call a function of the C library, if it has it: others than glibc do not."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), name, lambda *_: None)(*values)


@contextmanager
def serving(models: Models, host: str, port: int, names: Collection[str] = ()) -> Iterator[str]:
    """Serve the page at the address that is yielded, until Ctrl-C; uploads are gone then.

    `port` is from :func:`find_port`. The page is reached by `names` besides those of this machine
    to itself; requests that name another are refused. Without them a network may use any name.
    """
    hosts = ["*"] if host not in LOCAL and not names else [*LOCAL, host, *names]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    own = Middleware(_refuse_other_origins)
    bracketed = f"[{host}]" if ":" in host else host
    with lean_memory(), tempfile.TemporaryDirectory(prefix="captum-clip-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when a page is built
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
            theme=gr.themes.Base(**_PAGE["theme"]),  # no font is fetched
            css_paths=Path(__file__).with_name("page.css"),
            head=_PAGE["policy"],  # the browser itself refuses to ask any other server
            app_kwargs={"openapi_url": None, "middleware": [trusted, own]},
        )
        # SIGTERM would leave the folder behind
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with suppress(KeyboardInterrupt):
                yield f"http://{bracketed}:{port}"
        finally:
            signal.signal(signal.SIGTERM, before)
            page.close(verbose=False)
