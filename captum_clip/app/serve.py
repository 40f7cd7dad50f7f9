"""The page on a port of this machine, and nothing else on the network."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from ..errors import InputError
from .model_cache import EMBEDDED, ModelCache
from .queries import Query, ask, example

LARGEST_UPLOAD: Final = "20mb"
_POLICY: Final = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors"
"""The browser itself refuses to ask any other server; whose frames may hold the page follows."""

_Message = MutableMapping[str, Any]
_App = Callable[..., Awaitable[None]]


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: expected a number from 0 (any free one) to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except UnicodeError as error:
        raise InputError(f"--host {host}: this is not the name or address of a machine.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use, perhaps by another captum-clip app; give "
                "another one with --port, or --port 0 for any that is free."
            ) from error
        reason = error.strerror or str(error)
        raise InputError(f"cannot listen on port {port} of {host}: {reason}.") from error


def warm(cache: ModelCache) -> None:
    """Load the first model and the embedded ones, and let each answer once."""
    from ..attr.registry import default_method

    image, texts = example(0)
    for name in dict.fromkeys((cache.names[0], *EMBEDDED)):
        method = default_method(cache.get(name).tower)
        ask(cache, Query(image, texts, name, method))


def serve(cache: ModelCache, listening: socket.socket, hosts: Collection[str] = ()) -> None:
    """Answer until Ctrl-C or the end of the session; uploaded images are gone then.

    A request is refused, and so is a frame, that names another host than `hosts`, localhost, and
    this machine's name and addresses.
    """
    with tempfile.TemporaryDirectory(prefix="captum-clip-app-") as folder, _settings(folder):
        import uvicorn

        config = uvicorn.Config(
            _guarded(_application(cache, folder), hosts),
            log_config=None,
            log_level="critical",  # it calls it an error when a page is open at the end
            timeout_graceful_shutdown=1,
        )
        # uvicorn raises the signal that ended it again; SIGTERM would leave the folder behind
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _settings(folder: str) -> Iterator[None]:
    """What Gradio reads in the environment when it is imported and when a page is built."""
    before = dict(os.environ)
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": folder,
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _application(cache: ModelCache, folder: str) -> _App:
    import gradio as gr
    from fastapi import FastAPI

    from . import page, style

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    blocks = page.build(cache, folder)
    blocks.has_launched = True  # else Gradio takes any path on this machine for an upload
    gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        footer_links=[],
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        show_error=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        theme=style.theme(),
        css=style.CSS,
    )
    app: _App = outer
    return app


def _guarded(app: _App, hosts: Collection[str]) -> _App:
    """The same application, for these hosts, whose answers forbid to ask other servers.

    A page from elsewhere, whose name was made to lead to this machine, so reaches nothing.
    """
    frames = (f"https://{host}" for host in hosts if not _is_host(host.encode(), ()))
    policy = " ".join((_POLICY, "'self'", *frames)).encode()
    names = {"localhost", socket.gethostname(), *hosts}

    async def answer(scope: _Message, receive: Any, send: Callable[[_Message], Any]) -> None:
        async def sending(message: _Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", policy)
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        if scope["type"] == "http" and not _is_host(dict(scope["headers"]).get(b"host"), names):
            await send({"type": "http.response.start", "status": 421, "headers": []})
            await send({"type": "http.response.body", "body": b"This page has another name.\n"})
            return
        await app(scope, receive, sending)

    return answer


def _is_host(header: bytes | None, hosts: Collection[str]) -> bool:
    """Whether a request names an address or one of the hosts, with or without a port."""
    name = re.sub(r":\d+$", "", (header or b"").decode("latin-1")).strip("[]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in {host.lower() for host in hosts}
    return True
