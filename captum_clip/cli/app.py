"""``captum-clip app``: a page in the browser."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from ..errors import InputError

NAME = "app"
HELP = "open a page in the browser: drop an image, type texts, see their maps"
EXAMPLE = "captum-clip app --model demo/vit --port 7860"

_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="who may come: this machine (default: %(default)s), or 0.0.0.0 for all that reach it",
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="0 for any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="as in 'captum-clip explain'; may be repeated: the first is loaded at the start, "
        "others when they are chosen; the embedded models are always offered (default: demo/vit)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: CUDA if there is one)")


def run(arguments: argparse.Namespace) -> None:
    """Load the models, say where the page is, and answer until Ctrl-C.

    Raises:
        CaptumClipError: a model that cannot be loaded, a port that is taken, or no Gradio.
    """
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'captum-clip[app]'")
    from ..app.serve import open_port, serve, warm
    from ..app.shelf import Shelf
    from .progress import steps

    shelf = Shelf(arguments.model or (), arguments.device)
    with open_port(arguments.host, arguments.port) as listening:
        with steps(1) as begin:
            begin(f"loading {shelf.names[0]}")
            warm(shelf)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        if arguments.host not in _LOCAL:
            print("everyone who reaches this machine on the network can use the page", flush=True)
        serve(shelf, listening)
