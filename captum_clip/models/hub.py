"""Loading from the Hugging Face hub: quickly refused without a network, and without noise."""

from __future__ import annotations

import logging
import pickle
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CaptumClipError, InputError

EMBEDDED = "load_clip('demo/vit') is embedded and needs no network"
ACCEPTED = (
    "A name is one of Mamooler's ('captum-clip models' lists them), a folder, 'hf-hub:ORG/NAME' or "
    "'ARCHITECTURE/TAG' of OpenCLIP, or 'ORG/NAME' of a transformers model on the hub; "
    f"{EMBEDDED}."
)
_SECONDS = 5.0
_FAILURES = (
    *(OSError, ValueError, RuntimeError, KeyError),
    *(pickle.UnpicklingError, SafetensorError),
)
_ONE_AT_A_TIME = threading.RLock()


def reachable() -> bool:
    """Whether the hub answers; one short attempt, without the libraries' retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, whatever it says
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the libraries bring their own certificates
    except OSError:
        return False


@contextmanager
def loading(name: str, source: str | None = None) -> Iterator[None]:
    """Load local files (`source` is None), or from the hub's cache, or from the hub; without noise.

    What cannot be loaded inside is an InputError.
    """
    online = source is not None and reachable()
    try:
        with quiet(progress=online), _only_cache(source is not None and not online):
            yield
    except CaptumClipError:
        raise
    except _FAILURES as error:
        if source is None:
            message = f"it cannot be loaded: {_line(error)}."
        elif online:
            message = f"{source} cannot be loaded from the hub: {_line(error)}. {ACCEPTED}"
        else:
            message = _unreachable(source, error)
        raise InputError(f"load_clip({name!r}): {message}") from error


def _unreachable(source: str, error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    problem = f"cannot be loaded from the cache {constants.HF_HUB_CACHE}: {_line(error)}"
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            problem = f"is not in the cache {constants.HF_HUB_CACHE}"
        link = link.__cause__ or link.__context__
    switch = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    return (
        f"{source} {problem}, and {constants.ENDPOINT} cannot be reached{switch}. Connect once so "
        "that it is downloaded, copy the cache from another machine, or pass a local folder; "
        f"{EMBEDDED}."
    )


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}, {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".:")


@contextmanager
def _only_cache(asked: bool) -> Iterator[None]:
    """Let the hub's client answer from its cache, as HF_HUB_OFFLINE=1 does."""
    from huggingface_hub import constants, utils

    if not asked or constants.HF_HUB_OFFLINE:
        yield
        return
    # Clients before 1.0 read the switch when a session is made, later ones at every request.
    forget_sessions = getattr(utils, "reset_sessions", lambda: None)
    constants.HF_HUB_OFFLINE = True
    forget_sessions()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        forget_sessions()


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Keep the libraries' remarks on loading to themselves; what matters is raised.

    OpenCLIP calls `logging.info`, which sets up the root logger where nobody did. One thread loads
    at a time: two would restore each other's settings. `progress` leaves progress bars on.
    """
    from transformers.utils import logging as transformers_logging

    def is_not_open_clips(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    # one for each call: the end of an inner one would take the outer one's away
    root, handler = logging.getLogger(), logging.NullHandler()
    with _ONE_AT_A_TIME, ExitStack() as undo:
        undo.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity(logging.CRITICAL)
        root.addFilter(is_not_open_clips)
        undo.callback(root.removeFilter, is_not_open_clips)
        root.addHandler(handler)
        undo.callback(root.removeHandler, handler)
        if transformers_logging.is_progress_bar_enabled() and not progress:
            transformers_logging.disable_progress_bar()
            undo.callback(transformers_logging.enable_progress_bar)
        yield
