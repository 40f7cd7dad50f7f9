"""``captum-clip app``: a page in the browser."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from ..errors import InputError
from .command import LOADING, MODELS, Command, Option
from .output import steps

_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


def _run(arguments: Namespace) -> None:
    """Load the models, say where the page is, and answer until Ctrl-C."""
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'gradio>=6.17'")
    from ..app.model_cache import ModelCache
    from ..app.serve import open_port, serve, warm

    cache = ModelCache(
        arguments.model or (),
        arguments.device,
        processor=arguments.processor,
        tokenizer=arguments.tokenizer,
    )
    with open_port(arguments.host, arguments.port) as listening:
        with steps(arguments, 1) as begin:
            begin(f"loading {cache.names[0]}")
            warm(cache)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        if arguments.host not in _LOCAL:
            print("everyone who reaches this machine on the network can use the page", flush=True)
        serve(cache, listening, (arguments.host, *(arguments.allow_host or ())))


COMMAND: Final = Command(
    "app",
    "open a page in the browser: drop an image, type texts, see their maps",
    "captum-clip app --model demo/vit --port 7860",
    Option(
        "--host",
        "who can connect: this machine, or 0.0.0.0 for all that reach it",
        default="127.0.0.1",
    ),
    Option("--allow-host NAME...", "a name that the page is reached by, such as that of a proxy"),
    Option("--port N", "the port; 0 takes any that is free", default=7860),
    replace(
        MODELS,
        help="a model to offer; the first is loaded at the start, others when they are chosen; "
        "the embedded models are always offered",
        otherwise="demo/vit",
    ),
    *LOADING,
    run=_run,
)
