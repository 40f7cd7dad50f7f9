"""Loading from the Hugging Face hub: quickly refused without a network, and without noise."""

from __future__ import annotations

import logging
import pickle
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CaptumClipError, InputError

EMBEDDED = "load_clip('demo/vit') is embedded and needs no network"
_SECONDS = 5.0
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
def loading(name: str) -> Iterator[None]:
    """Load local files: no noise, and one clear error.

    Raises:
        InputError: what is loaded inside cannot be loaded.
    """
    try:
        with quiet():
            yield
    except CaptumClipError:
        raise
    except _failures() as error:
        raise InputError(f"load_clip({name!r}): it cannot be loaded: {_line(error)}.") from error


@contextmanager
def loading_from_hub(name: str, source: str) -> Iterator[None]:
    """Load from the hub's cache, or from the hub where it answers.

    Args:
        name: what the user asked for.
        source: repository or checkpoint.

    Raises:
        InputError: what is loaded inside cannot be loaded.
    """
    online = reachable()
    try:
        with quiet(progress=online), _only_cache(not online):
            yield
    except CaptumClipError:
        raise
    except _failures() as error:
        if online:
            message = f"{source} cannot be loaded from the hub: {_line(error)}. {accepted()}"
        else:
            message = _unreachable(source, error)
        raise InputError(f"load_clip({name!r}): {message}") from error


def accepted() -> str:
    """What a name may be."""
    return (
        "A name is one of the report's ('captum-clip models' lists them), a folder, "
        "'hf-hub:ORG/NAME' or 'ARCHITECTURE/TAG' of OpenCLIP, or 'ORG/NAME' of a transformers "
        f"model on the hub; {EMBEDDED}."
    )


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


def _failures() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError, SafetensorError)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}, {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".:")


@contextmanager
def _only_cache(wanted: bool) -> Iterator[None]:
    """Let the hub's client answer from its cache, as HF_HUB_OFFLINE=1 does."""
    from huggingface_hub import constants

    if not wanted or constants.HF_HUB_OFFLINE:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    _forget_sessions()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        _forget_sessions()


def _forget_sessions() -> None:
    # Clients before 1.0 read the switch when a session is made, later ones at every request.
    from huggingface_hub import utils

    reset = getattr(utils, "reset_sessions", None)
    if reset is not None:
        reset()


class _FromOpenClip(logging.Filter):
    """Lets everything pass but what OpenCLIP says to the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Keep the libraries' remarks on loading to themselves; what matters is raised.

    OpenCLIP calls `logging.info`, which sets up the root logger where nobody did. One thread loads
    at a time: two would restore each other's settings.

    Args:
        progress: leave progress bars on.
    """
    with _ONE_AT_A_TIME, _settings(progress):
        yield


@contextmanager
def _settings(progress: bool) -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    root, silent, handler = logging.getLogger(), _FromOpenClip(), logging.NullHandler()
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled() and not progress
    root.addFilter(silent)
    root.addHandler(handler)
    transformers_logging.set_verbosity(logging.CRITICAL)
    if bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        root.removeFilter(silent)
        root.removeHandler(handler)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
