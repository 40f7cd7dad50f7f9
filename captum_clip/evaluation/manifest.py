"""What an evaluation says of itself, and whether the one in a folder may go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from ..errors import InputError
from ..studies.manifest import environment
from ..studies.storage import Storage

NAME: Final = "manifest.json"
FORMAT: Final = "captum_clip evaluation 1"
_FIXED: Final = ("config", "model", "data", "methods", "tasks")  # the last three follow


def begin(about: dict[str, Any], output: Storage, *, threads: int, device: str) -> dict[str, Any]:
    """The manifest of a new evaluation, or of the one in the folder that is to go on.

    Args:
        about: all that decides the results, under the names of `_FIXED`.
        output: the folder.
        threads: of each process.
        device: where it computes.

    Raises:
        InputError: the folder holds another evaluation, or something else.
    """
    now = environment(threads, device)
    content = output.read(NAME)
    if content is None:
        other = [name for name, _ in output.files() if not name.startswith(".")]
        if other:
            raise InputError(
                f"{output.root} holds files that are no evaluation's, such as {other[0]}; name a "
                "new or an empty folder."
            )
        return {"format": FORMAT, **about, "environments": [now], "state": "running"}
    before = _read(content, output)
    about = json.loads(json.dumps(about))
    changed = [_change(name, before[name], about[name]) for name in _FIXED]
    said = [one for one in changed[:2] if one] or [one for one in changed if one]
    if said:
        raise InputError(
            f"{output.root} holds an evaluation with other settings: {'; '.join(said)}. Take "
            "another output folder, or the settings of that one to go on with it."
        )
    known = before["environments"]
    environments = known if now in known else [*known, now]
    return {"format": FORMAT, **about, "environments": environments, "state": "running"}


def _read(content: bytes, output: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(content)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        missing = [name for name in (*_FIXED, "environments") if name not in found]
        if missing:
            raise KeyError(missing[0])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.root}/{NAME} is no manifest of an evaluation that this version can go on "
            f"with ({error}); name another output folder."
        ) from error
    return found


def _change(name: str, before: Any, now: Any) -> str:
    """What differs between the evaluation in the folder and this one, in words."""
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [
            f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        return "; ".join(parts)
    return f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def to_bytes(manifest: dict[str, Any]) -> bytes:
    """JSON for people and programs; names of files that are no text are escaped."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def skipped(names: Sequence[str], reasons: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """Each sample with each of its reasons, once."""
    return [
        {"sample": names[number], "reason": reason}
        for number, reason in sorted(dict.fromkeys(reasons))
    ]
